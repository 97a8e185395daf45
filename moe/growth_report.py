"""What one growth did: the promise, the jump, and what each part of the operator had in it."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe import flops
from moe.config import ModelConfig, Precision
from moe.diagnostics import feed_forward_norms
from moe.growth import Tensors, grow_weights
from moe.model import MoETransformer
from moe.operator import Operator
from moe.train import autocast

PARTS = ("depth copy", "width copy", "expert noise", "router noise")
_KEPT_BYTES = 1 << 26  # of weights and logits that stay in the process


@torch.no_grad()
def growth_report(
    model: ModelConfig,
    operator: Operator,
    source: Tensors,
    grown: Tensors,
    tokens_BT1: Tensor,
    *,
    precision: Precision = Precision.FP32,
    device: str = "cpu",
) -> dict[str, Any]:
    """Plain JSON: `exactness` as predicted, and on a probe batch [B, T+1] the loss (nats per token) and
    max |Δlogit| of the whole growth and of each of its `PARTS`, added one after the other.

    Also the effective noise scale, parameters and FLOPs per token before and after, and the weight norm of
    each layer's experts (Table 2 of arXiv 2510.08008 shows it around the seam).
    """
    tokens_BT1 = tokens_BT1.to(device)
    before = _Measured.of(model, source, tokens_BT1, precision, device)
    jump, previous = [], before
    for part, partly in _stages(operator):
        weights = grown if partly == operator else grow_weights(model, partly, source)
        now = _Measured.of(partly.apply_to(model), weights, tokens_BT1, precision, device)
        jump.append(
            {
                "part": part,
                "loss_change": _number(now.loss - previous.loss),
                "max_logit_change": _apart(now, previous),
            }
        )
        previous = now
    after, grown_model = previous, operator.apply_to(model)
    return {
        "exactness": operator.exactness(model).value,
        "probe_tokens": tokens_BT1[:, 1:].numel(),
        "loss_before": _number(before.loss),
        "loss_after": _number(after.loss),
        "max_logit_change": _apart(after, before),
        "jump": jump,
        "effective_noise_scale": effective_noise_scale(operator, grown, precision),
        "expert_weight_norm": {"before": before.norms, "after": after.norms},
        "before": _sizes(model, tokens_BT1.shape[1] - 1),
        "after": _sizes(grown_model, tokens_BT1.shape[1] - 1),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    loss: float
    logits_BTV: Tensor
    norms: list[float]

    @classmethod
    def of(
        cls, model: ModelConfig, weights: Tensors, tokens_BT1: Tensor, precision: Precision, device: str
    ) -> "_Measured":
        """Of equal weights once in a process: what grows from one state shares its first parts."""
        asked = _Asked(model, precision, device, weights, tokens_BT1)
        for place, (earlier, measured) in enumerate(_kept):
            if earlier.equals(asked):
                _kept.append(_kept.pop(place))
                return measured
        measured = cls._of(model, weights, tokens_BT1, precision, device)
        _keep(asked, measured)
        return measured

    @classmethod
    def _of(
        cls, model: ModelConfig, weights: Tensors, tokens_BT1: Tensor, precision: Precision, device: str
    ) -> "_Measured":
        network = MoETransformer(model).to(device)
        network.load_state_dict(weights)
        with autocast(precision, device):
            logits_BTV = network(tokens_BT1[:, :-1]).float()
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT1[:, 1:].flatten())
        norms = [round(norm, 6) for norm in feed_forward_norms(network).tolist()]
        return cls(loss.item(), logits_BTV, norms)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """All that decides what is measured."""

    model: ModelConfig
    precision: Precision
    device: str
    weights: Tensors
    tokens_BT1: Tensor

    def equals(self, other: "_Asked") -> bool:
        """Exactly: comparing is a pass over the weights, a thirtieth of measuring them."""
        return (
            (self.model, self.precision, self.device) == (other.model, other.precision, other.device)
            and torch.equal(self.tokens_BT1, other.tokens_BT1)
            and self.weights.keys() == other.weights.keys()
            and all(torch.equal(tensor, other.weights[name]) for name, tensor in self.weights.items())
        )

    def copy(self) -> "_Asked":
        weights = {name: tensor.detach().clone() for name, tensor in self.weights.items()}
        return dataclasses.replace(self, weights=weights, tokens_BT1=self.tokens_BT1.clone())


_kept: list[tuple[_Asked, _Measured]] = []  # the last one asked for is the last


def _keep(asked: _Asked, measured: _Measured) -> None:
    """Beside as many of the last as `_KEPT_BYTES` hold; a GPU's memory is left to training."""
    if asked.device != "cpu" or _num_bytes(asked, measured) > _KEPT_BYTES:
        return
    _kept.append((asked.copy(), measured))  # what others may write to is not kept by reference
    while sum(_num_bytes(*each) for each in _kept) > _KEPT_BYTES:
        del _kept[0]


def _num_bytes(asked: _Asked, measured: _Measured) -> int:
    return sum(tensor.nbytes for tensor in [*asked.weights.values(), measured.logits_BTV])


def _apart(a: _Measured, b: _Measured) -> float | None:
    return _number((a.logits_BTV - b.logits_BTV).abs().max().item())


def _number(value: float) -> float | None:
    """Six digits; a missing measurement is missing: JSON has no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _stages(operator: Operator) -> list[tuple[str, Operator]]:
    """Each part of the operator with all before it; parts that do nothing are left out."""
    stages = []
    if operator.deepens:
        stages.append((PARTS[0], operator.without_width()))
    if operator.widens:
        stages.append((PARTS[1], dataclasses.replace(operator, noise_scale=0.0, router_noise_scale=None)))
        if operator.noise_scale > 0:
            stages.append((PARTS[2], dataclasses.replace(operator, router_noise_scale=0.0)))
        if operator.router_noise > 0:
            stages.append((PARTS[3], operator))
    name, _ = stages[-1]  # the whole operator, whatever its last part is called
    return [*stages[:-1], (name, operator)]


def effective_noise_scale(
    operator: Operator, grown: Tensors, precision: Precision
) -> dict[str, float | None]:
    """The α that a forward pass sees: std of (copy − source) over that of the source, a mean over tensors.

    In bf16 the products read rounded weights, and small noise is mostly rounding: `unchanged` is the share of
    the copied experts' weights that noise did not move. None where nothing was copied whole.
    """
    method, m = operator.width_method, operator.width_factor
    if not method.makes_twins or operator.drop_fraction > 0:
        return {"experts": None, "router": None, "unchanged": None}
    read = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    experts, router, unchanged = [], [], []
    for name, tensor in grown.items():
        if ".moe.experts." in name:
            first, rest = _twins(tensor.to(read).float(), m)
            if not first.any():  # a zeroed copy: no noise of zero's scale
                continue
            experts.append((rest - first).std() / first.std())
            unchanged.append((rest == first).float().mean())
        elif ".moe.router." in name:
            first, rest = _twins(tensor, m)
            router.append((rest - first).std() / first.std())
    means = {"experts": experts, "router": router, "unchanged": unchanged}
    return {name: _number(torch.stack(values).mean().item()) for name, values in means.items()}


def _twins(tensor: Tensor, num_copies: int) -> tuple[Tensor, Tensor]:
    """The sources [1, E, ...] and their copies [m-1, E, ...]."""
    first, rest = tensor.unflatten(0, (num_copies, -1)).split([1, num_copies - 1])
    return first, rest


def _sizes(model: ModelConfig, seq_len: int) -> dict[str, float]:
    return {
        "num_layers": model.num_layers,
        "num_experts": model.num_experts,
        "top_k": model.top_k,
        "total_params": flops.total_params(model),
        "activated_params": flops.activated_params(model),
        "train_flops_per_token": flops.train_flops_per_token(model, seq_len),
    }
