"""Held-out loss and multiple-choice accuracy. torch is imported by the first evaluation, not before."""

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe.config import EvaluateConfig
from moe.data import Data, Items, Questions, averaged_of, families_of
from moe.plain import check, digest, to_plain

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2  # raised when the same model would score otherwise
SUITES = ("full", "probe")
_TOKENS = 1 << 13  # in one pass
_HELD_OUT_TOKENS = 2  # held-out tokens read per item asked, in whole sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Questions under a name; `eval_id` is the digest of what is asked, and of what data."""

    name: str
    eval_id: str
    questions: Questions


def suite_of(config: EvaluateConfig, data_identity: dict[str, Any], name: str, *, seq_len: int) -> Suite:
    """The suite `full` asks `config.items` of each family, `probe` asks `config.probe_items`.

    Held-out sequences are `seq_len` tokens long, as in training.

    ValueError if `config.families` names one that the data does not train.
    """
    check(name in SUITES, f"suite={name} is not a choice; choose one of {', '.join(SUITES)}")
    known = families_of(data_identity)
    averaged = averaged_of(data_identity) if config.families is None else config.families
    for family in averaged:
        check(
            family in known,
            f"evaluate.families has {family}, which data={data_identity['source']} does not train (unknown, "
            f"or its share is 0); choose of {', '.join(known)}",
        )
    questions = Questions(
        num_items=config.items if name == "full" else config.probe_items,
        families=known,
        averaged=tuple(family for family in known if family in averaged),
        context_length=config.context_length,
        continuation_length=config.continuation_length,
    )
    return Suite(name=name, eval_id=_eval_id(name, questions, data_identity, seq_len), questions=questions)


def _eval_id(name: str, questions: Questions, data_identity: dict[str, Any], seq_len: int) -> str:
    """Lengths that the data has no use for are left out: equal questions, equal id."""
    asked = to_plain(questions)
    if data_identity["source"] == "world":
        del asked["context_length"], asked["continuation_length"]
    return digest({"version": VERSION, "suite": name, **asked, "seq_len": seq_len, "data": data_identity})


def evaluate(
    model: Any, data: Data, questions: Questions, *, seq_len: int, device: str = "cpu"
) -> dict[str, Any]:
    """Scores a `MoETransformer` on items and on held-out sequences of each family asked for; plain JSON.

    `acc` is the mean over the families averaged of the mean over levels, `acc_se` its binomial standard
    error, `acc_above_chance` the mean of (acc - chance) / (1 - chance), `prob_right` the probability of the
    right choice among the choices, `loss` nats per held-out token; `n` counts their items. `families` has
    all that were asked; there `right` is one bit an item in their order, eight a byte, as hex.
    Deterministic; the model's mode is restored. The same items are kept in the process for the next call.
    """
    import torch

    suite = _asked(data, questions, seq_len, device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            scores = _scores(model, suite)
            losses = _losses(model, suite.held_out_BT1).split([len(rows) for rows in suite.held_out.values()])
    finally:
        model.train(was_training)
    families = {
        items.family: _summary(items, score_NC, float(loss_B.mean()))
        for items, score_NC, loss_B in zip(suite.items, scores, losses, strict=True)
    }
    names = questions.averaged or questions.families
    averaged = [families[name] for name in names]
    return {
        "acc": _mean(averaged, "acc"),
        "acc_se": math.sqrt(sum(f["se"] ** 2 for f in averaged)) / len(averaged),
        "n": sum(f["n"] for f in averaged),
        "chance": _mean(averaged, "chance"),
        "acc_above_chance": _mean(averaged, "acc_above_chance"),
        "prob_right": _mean(averaged, "prob_right"),
        "loss": _mean(averaged, "loss"),
        "averaged": list(names),
        "families": families,
    }


def _mean(families: list[dict[str, Any]], name: str) -> float:
    return sum(f[name] for f in families) / len(families)


def _summary(items: Items, score_NC: np.ndarray, loss: float) -> dict[str, Any]:
    """Accuracy is stratified: levels weigh the same, whatever number of items each has."""
    right = np.argmax(score_NC, axis=1) == items.answer
    probability = np.exp(score_NC - score_NC.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    of_right = probability[np.arange(len(right)), items.answer]
    levels, variance, prob_right = {}, 0.0, 0.0
    for level in np.unique(items.level):
        here = items.level == level
        acc, n = float(right[here].mean()), int(here.sum())
        levels[str(level)] = acc
        variance += acc * (1 - acc) / n
        prob_right += float(of_right[here].mean())
    acc = sum(levels.values()) / len(levels)
    return {
        "acc": acc,
        "n": len(right),
        "se": math.sqrt(variance) / len(levels),
        "chance": items.chance,
        "acc_above_chance": (acc - items.chance) / (1 - items.chance),
        "prob_right": prob_right / len(levels),
        "loss": loss,
        "levels": levels,
        "right": np.packbits(right).tobytes().hex(),
    }


# --------------------------------------------------------------------------------------------------------
# Items as tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Items of like length, of any family: `tokens` [N, L] or, for continuations of K > 1 tokens,
    [N·C, L + K - 1]."""

    place: np.ndarray  # [N] of each item among those of all families
    tokens: "Tensor"
    last: "Tensor"  # [N] place of the context's last token
    choices: "Tensor"  # [N, C, K]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What a suite asks, ready for the model; `held_out_BT1` has the rows of all families in their order."""

    items: list[Items]
    batches: list[_Batch]
    held_out: dict[str, np.ndarray]
    held_out_BT1: "Tensor"


_kept: "weakref.WeakKeyDictionary[Data, dict[tuple, _Asked]]" = weakref.WeakKeyDictionary()


def _asked(data: Data, questions: Questions, seq_len: int, device: str) -> _Asked:
    kept = _kept.setdefault(data, {})
    key = (questions, seq_len, device)
    if key not in kept:
        import torch

        items = data.items(questions)
        num_sequences = max(1, math.ceil(questions.num_items * _HELD_OUT_TOKENS / seq_len))
        sequences = data.held_out(num_sequences, seq_len)
        held_out = {family.family: sequences[family.family] for family in items}
        kept[key] = _Asked(
            items=items,
            batches=[_batch(items, place, device) for place in _groups(items)],
            held_out=held_out,
            held_out_BT1=torch.from_numpy(np.concatenate(list(held_out.values()))).to(device),
        )
    return kept[key]


def _groups(items: list[Items]) -> Iterator[np.ndarray]:
    """Places of items that go together: of one shape, of like length, about `_TOKENS` tokens in all."""
    length = np.concatenate([family.context_length for family in items])
    shape = np.concatenate([np.tile(family.choices.shape[1:], (len(family), 1)) for family in items])
    for num_choices, num_tokens in np.unique(shape, axis=0).tolist():
        passes = 1 if num_tokens == 1 else num_choices
        found = np.flatnonzero((shape == [num_choices, num_tokens]).all(axis=1))
        found = found[np.argsort(length[found], kind="stable")]
        while len(found):
            longest = np.arange(1, len(found) + 1) * (length[found] + num_tokens - 1) * passes
            take = max(1, int(np.searchsorted(longest, _TOKENS, side="right")))
            yield found[:take]
            found = found[take:]


def _batch(items: list[Items], place: np.ndarray, device: str) -> _Batch:
    import torch

    first = np.cumsum([0, *map(len, items)])
    of = np.searchsorted(first, place, side="right") - 1
    length = np.array([items[f].context_length[p - first[f]] for f, p in zip(of, place, strict=True)])
    tokens = np.zeros((len(place), length.max()), np.int64)
    choices = np.stack([items[f].choices[p - first[f]] for f, p in zip(of, place, strict=True)])
    for row, (f, p) in enumerate(zip(of, place, strict=True)):
        tokens[row, : length[row]] = items[f].context[p - first[f], : length[row]]
    _, num_choices, num_tokens = choices.shape
    if num_tokens > 1:  # the choice's last token is only predicted, never read
        tokens = np.pad(tokens, ((0, 0), (0, num_tokens - 1))).repeat(num_choices, axis=0)
        places = length.repeat(num_choices)[:, None] + np.arange(num_tokens - 1)
        np.put_along_axis(tokens, places, choices.reshape(-1, num_tokens)[:, :-1], axis=1)
    return _Batch(
        place=place,
        tokens=torch.from_numpy(tokens).to(device),
        last=torch.from_numpy(length - 1).to(device),
        choices=torch.from_numpy(choices).to(device),
    )


# --------------------------------------------------------------------------------------------------------
# Scores


def _scores(model: Any, suite: _Asked) -> list[np.ndarray]:
    """Of each family the log-likelihood of each choice up to a constant per item: [N, C], float64."""
    found = [
        (place, row)
        for b in suite.batches
        for place, row in zip(b.place, _choice_scores(model, b), strict=True)
    ]
    rows = [row for _, row in sorted(found, key=lambda pair: pair[0])]
    ends = np.cumsum([len(family) for family in suite.items])
    return [np.stack(rows[end - len(f) : end]) for end, f in zip(ends, suite.items, strict=True)]


def _choice_scores(model: Any, batch: _Batch) -> np.ndarray:
    """One token: its logit, one pass per item. More: the sum of log-probabilities, one pass per choice."""
    import torch

    from moe.token_loss import token_losses

    N, C, K = batch.choices.shape
    x_BTD = model.hidden(batch.tokens)[0].float()
    head_VD = model.head.weight.float()
    if K == 1:
        x_ND = x_BTD[torch.arange(N, device=x_BTD.device), batch.last]
        score_NC = torch.einsum("nd,ncd->nc", x_ND, head_VD[batch.choices[:, :, 0]])
    else:
        places_BK = batch.last.repeat_interleave(C)[:, None] + torch.arange(K, device=x_BTD.device)
        x_BKD = x_BTD.gather(1, places_BK[:, :, None].expand(-1, -1, x_BTD.shape[-1]))
        losses_BK = token_losses(x_BKD, head_VD, batch.choices.reshape(N * C, K))
        score_NC = -losses_BK.double().sum(1).view(N, C)
    return score_NC.double().cpu().numpy()


def _losses(model: Any, tokens_BT1: "Tensor") -> "Tensor":
    """Mean cross-entropy of each row, nats per token: [B], float64."""
    import torch

    from moe.token_loss import token_losses

    found, head_VD = [], model.head.weight.float()
    for rows_BT1 in tokens_BT1.split(max(1, _TOKENS // tokens_BT1.shape[1])):
        x_BTD = model.hidden(rows_BT1[:, :-1])[0].float()
        found.append(token_losses(x_BTD, head_VD, rows_BT1[:, 1:]).double().mean(1).cpu())
    return torch.cat(found)
