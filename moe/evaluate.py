"""Held-out loss and multiple-choice accuracy. torch is imported by the first evaluation, not before."""

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe.config import EvaluateConfig
from moe.data import Data, Items, Questions, families_of
from moe.plain import check, digest, to_plain

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2  # raised when the same model would score otherwise
SUITES = ("full", "probe")
_ROWS = 256  # sequences in one pass
_HELD_OUT_TOKENS = 4  # held-out tokens read per item asked, in whole sequences


def questions_of(config: EvaluateConfig, data_identity: dict[str, Any], suite: str) -> Questions:
    """What a suite asks: `full` `config.items` of each family, `probe` `config.probe_items`.

    ValueError if `config.families` names one that the data does not train.
    """
    check(suite in SUITES, f"suite={suite} is not a choice; choose one of {', '.join(SUITES)}")
    known = families_of(data_identity)
    for name in config.families or ():
        check(
            name in known,
            f"evaluate.families has {name}, which data={data_identity['source']} does not train (unknown, or "
            f"its share is 0); choose of {', '.join(known)}",
        )
    return Questions(
        num_items=config.items if suite == "full" else config.probe_items,
        families=tuple(name for name in known if config.families is None or name in config.families),
        context_length=config.context_length,
        continuation_length=config.continuation_length,
    )


def eval_id(questions: Questions, data_identity: dict[str, Any], suite: str) -> str:
    """Names an evaluation by what it asks; lengths that this data has no use for are left out."""
    asked = to_plain(questions)
    if data_identity["source"] == "world":
        del asked["context_length"], asked["continuation_length"]
    return digest({"version": VERSION, "suite": suite, **asked, "data": data_identity})


def evaluate(
    model: Any, data: Data, questions: Questions, *, seq_len: int, device: str = "cpu"
) -> dict[str, Any]:
    """Scores a `MoETransformer` on items and on held-out sequences of each family asked for; plain JSON.

    `acc` is the mean over families of the mean over levels, `acc_se` its binomial standard error,
    `acc_above_chance` the mean of (acc - chance) / (1 - chance), `prob_right` the probability of the right
    choice among the choices, `loss` nats per held-out token. Deterministic; the model's mode is restored.
    The same items are kept in the process for the next call.
    """
    import torch

    suite = _suite(data, questions, seq_len, device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            families = {
                family.name: family.summary(
                    np.concatenate([_choice_scores(model, batch) for batch in family.batches])[family.order],
                    _loss(model, family.held_out_BT),
                )
                for family in suite
            }
    finally:
        model.train(was_training)
    return {
        "acc": _mean(families, "acc"),
        "acc_se": math.sqrt(sum(f["se"] ** 2 for f in families.values())) / len(families),
        "n": sum(f["n"] for f in families.values()),
        "chance": _mean(families, "chance"),
        "acc_above_chance": _mean(families, "acc_above_chance"),
        "prob_right": _mean(families, "prob_right"),
        "loss": _mean(families, "loss"),
        "families": families,
    }


def _mean(families: dict[str, dict[str, Any]], name: str) -> float:
    return sum(f[name] for f in families.values()) / len(families)


# --------------------------------------------------------------------------------------------------------
# Items as tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Items of like length: `tokens` [N, L] or, for continuations of K > 1 tokens, [N·C, L + K - 1]."""

    tokens: "Tensor"
    last: "Tensor"  # [N] place of the context's last token
    choices: "Tensor"  # [N, C, K]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    name: str
    items: Items
    batches: list[_Batch]
    order: np.ndarray  # where each item went when they were sorted by length
    held_out_BT: "Tensor"

    def summary(self, score_NC: np.ndarray, loss: float) -> dict[str, Any]:
        """Accuracy is stratified: levels weigh the same, whatever number of items each has."""
        right = np.argmax(score_NC, axis=1) == self.items.answer
        probability = np.exp(score_NC - score_NC.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        of_right = probability[np.arange(len(right)), self.items.answer]
        levels, variance, prob_right = {}, 0.0, 0.0
        for level in np.unique(self.items.level):
            here = self.items.level == level
            acc, n = float(right[here].mean()), int(here.sum())
            levels[str(level)] = acc
            variance += acc * (1 - acc) / n
            prob_right += float(of_right[here].mean())
        return {
            "acc": sum(levels.values()) / len(levels),
            "n": len(right),
            "se": math.sqrt(variance) / len(levels),
            "chance": self.items.chance,
            "acc_above_chance": (sum(levels.values()) / len(levels) - self.items.chance)
            / (1 - self.items.chance),
            "prob_right": prob_right / len(levels),
            "loss": loss,
            "levels": levels,
        }


_suites: "weakref.WeakKeyDictionary[Data, dict[tuple, list[_Family]]]" = weakref.WeakKeyDictionary()


def _suite(data: Data, questions: Questions, seq_len: int, device: str) -> list[_Family]:
    kept = _suites.setdefault(data, {})
    key = (questions, seq_len, device)
    if key not in kept:
        import torch

        num_sequences = max(1, math.ceil(questions.num_items * _HELD_OUT_TOKENS / seq_len))
        held_out = data.held_out(num_sequences, seq_len)
        kept[key] = [
            _prepare(items, torch.from_numpy(held_out[items.family]).to(device), device)
            for items in data.items(questions)
        ]
    return kept[key]


def _prepare(items: Items, held_out_BT: "Tensor", device: str) -> _Family:
    import torch

    _, num_choices, num_tokens = items.choices.shape
    by_length = np.argsort(items.context_length, kind="stable")
    rows = _ROWS if num_tokens == 1 else max(1, _ROWS // num_choices)
    batches = []
    for first in range(0, len(items), rows):
        chosen = by_length[first : first + rows]
        length = items.context_length[chosen]
        tokens = items.context[chosen, : length.max()]
        if num_tokens > 1:  # the choice's last token is only predicted, never read
            tokens = np.pad(tokens, ((0, 0), (0, num_tokens - 1))).repeat(num_choices, axis=0)
            places = length.repeat(num_choices)[:, None] + np.arange(num_tokens - 1)
            tokens[np.arange(len(tokens))[:, None], places] = items.choices[chosen].reshape(-1, num_tokens)[
                :, :-1
            ]
        batches.append(
            _Batch(
                tokens=torch.from_numpy(tokens).to(device),
                last=torch.from_numpy(length - 1).to(device),
                choices=torch.from_numpy(items.choices[chosen]).to(device),
            )
        )
    order = np.argsort(by_length, kind="stable")
    return _Family(name=items.family, items=items, batches=batches, order=order, held_out_BT=held_out_BT)


# --------------------------------------------------------------------------------------------------------
# Scores


def _choice_scores(model: Any, batch: _Batch) -> np.ndarray:
    """Log-likelihood of each choice up to a constant per item: [N, C], float64.

    One token: its logit, one pass per item. More: the sum of log-probabilities, one pass per choice.
    """
    import torch

    N, C, K = batch.choices.shape
    x_BTD = model.hidden(batch.tokens)[0].float()
    head_VD = model.head.weight.float()
    if K == 1:
        x_ND = x_BTD[torch.arange(N, device=x_BTD.device), batch.last]
        score_NC = torch.einsum("nd,ncd->nc", x_ND, head_VD[batch.choices[:, :, 0]])
    else:
        places_BK = batch.last.repeat_interleave(C)[:, None] + torch.arange(K, device=x_BTD.device)
        x_BKD = x_BTD.gather(1, places_BK[:, :, None].expand(-1, -1, x_BTD.shape[-1]))
        log_p_BKV = torch.log_softmax(x_BKD @ head_VD.T, dim=-1)
        chosen_BK = log_p_BKV.gather(2, batch.choices.reshape(N * C, K, 1))[:, :, 0]
        score_NC = chosen_BK.double().sum(1).view(N, C)
    return score_NC.double().cpu().numpy()


def _loss(model: Any, tokens_BT: "Tensor") -> float:
    """Mean cross-entropy, nats per token."""
    from torch.nn import functional as F

    total = 0.0
    for rows in tokens_BT.split(max(1, _ROWS * 16 // tokens_BT.shape[1])):
        logits = model.hidden(rows[:, :-1])[0].float() @ model.head.weight.float().T
        total += float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
    return total / tokens_BT[:, 1:].numel()
