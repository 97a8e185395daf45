"""Growth as pure functions: (weights, moments) → the same, grown (arXiv 2510.08008 §3).

Source tensors are never changed. What is drawn depends on (seed, tensor name) alone, not on the order of
visits. Copy c of expert e has index c·E + e, the source itself being copy 0. Shape letters: router.py; m is
the width factor.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moe.config import ModelConfig, NormPlacement
from moe.model import OUTPUT_PROJECTIONS, initial_value
from moe.operator import Copies, DepthMethod, Operator, OptimizerState, WidthMethod
from moe.seeds import derive_seed

Tensors = dict[str, Tensor]
_LAYER = re.compile(r"^layers\.(\d+)\.(.+)$")
_ROUTER, _BIAS = "moe.router.weight", "moe.selection_bias_E"
_IN, _OUT = "moe.experts.w_in_EGD", "moe.experts.w_out_EDH"
_CHUNK = 1 << 17  # numbers
_BRANCH_NORMS = ("attention_norm.weight", "moe_norm.weight")


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's state by parameter name, with the one step counter that all tensors share."""

    step: int
    first: Tensors
    second: Tensors


def grow_weights(model: ModelConfig, operator: Operator, weights: Tensors) -> Tensors:
    """The weights of `operator.apply_to(model)`; ValueError for a growth that `model` does not allow.

    Every copied expert matrix and router row gets N(0, (α·σ)²), σ the standard deviation of the matrix that
    was copied (§3.2); `exactness` says what becomes of the function.
    """
    grown_model = operator.apply_to(model)
    grown: Tensors = {}
    for origin in origins(model, operator, weights):
        name, tensor = origin.name, origin.tensor
        if origin.is_new(operator):
            seed = _seed(operator, "random layers")
            tensor = initial_value(grown_model, name, tensor.shape, seed)
        if (factor := _branch_factor(model, operator, origin)) != 1.0:
            tensor = tensor * factor
        if operator.widens and name.endswith((_ROUTER, _BIAS, _IN, _OUT)):
            tensor = _widen(name, tensor, model, grown_model, operator)
        grown[name] = tensor.clone() if tensor is origin.tensor else tensor
    return grown


def grow_moments(model: ModelConfig, operator: Operator, rule: OptimizerState, moments: Moments) -> Moments:
    """AdamW's moments for the grown weights.

    `reset` is zero moments at step 0; `copy` carries moments with the layers and experts they belong to;
    `rescale` also divides those of m duplicated experts by m and m², since each exact copy receives 1/m of
    the gradient (of the m router rows of a split expert that holds for their sum). What is new gets a zero
    first moment and its source's mean second moment: zeros at an old step counter would miss their bias
    correction, and the first update be (1−β1)/√(1−β2) times too large: 3.2 at β2 = .999.
    """
    if rule is OptimizerState.RESET:
        return Moments(step=0, first={}, second={})
    shares = rule is OptimizerState.RESCALE and operator.width_method.shares_gradient
    m = operator.width_factor if shares else 1

    def grow(tensors: Tensors, divisor: int, fresh: float) -> Tensors:
        grown: Tensors = {}
        for origin in origins(model, operator, tensors):
            name, tensor = origin.name, origin.tensor
            if origin.is_new(operator):
                tensor = torch.full_like(tensor, fresh * tensor.mean().item())
            if operator.widens and name.endswith((_ROUTER, _IN, _OUT)):
                tensor = _widen_moment(name, tensor, operator, divisor, fresh)
            grown[name] = tensor.clone() if tensor is origin.tensor else tensor
        return grown

    first, second = grow(moments.first, m, 0.0), grow(moments.second, m * m, 1.0)
    return Moments(step=moments.step, first=first, second=second)


# --------------------------------------------------------------------------------------------------------
# Depth


@dataclass(frozen=True, slots=True)
class Origin:
    """A grown tensor's name and source: the `copy`-th of `num_copies` appearances of its layer."""

    name: str
    source: str
    tensor: Tensor
    copy: int = 0
    num_copies: int = 1

    def is_new(self, operator: Operator) -> bool:
        return operator.method is DepthMethod.RANDOM and self.copy > 0


def origins(model: ModelConfig, operator: Operator, tensors: Tensors) -> Iterator[Origin]:
    """Every tensor after growth in depth, with the one of `tensors` that it comes from."""
    by_layer: dict[int, dict[str, str]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match:
            by_layer.setdefault(int(match[1]), {})[match[2]] = name
        else:
            yield Origin(name, name, tensor)
    sources = operator.layer_sources(model.num_layers)
    num_copies, seen = Counter(sources), Counter[int]()
    for new, old in enumerate(sources):
        for rest, name in by_layer.get(old, {}).items():
            yield Origin(f"layers.{new}.{rest}", name, tensors[name], seen[old], num_copies[old])
        seen[old] += 1


def _branch_factor(model: ModelConfig, operator: Operator, origin: Origin) -> float:
    """What this tensor is multiplied by so that its layer's residual branch adds as `copies` says.

    Under output norms that is the norm's gain: a projection zeroed before a norm would start exactly too, but
    with a gradient divided by √ε.
    """
    last = _BRANCH_NORMS if model.norm_placement is NormPlacement.OUTPUT else OUTPUT_PROJECTIONS
    if not origin.name.endswith(last):
        return 1.0
    match operator.copies:
        case Copies.EXACT:
            return 1.0
        case Copies.SCALED:
            return 1.0 / origin.num_copies
        case Copies.ZEROED if origin.copy > 0:
            return 0.0
        case Copies.ZEROED:  # the residual multiplier L₀/L has shrunk with the number of layers
            return model.residual_multiplier / operator.apply_to(model).residual_multiplier


# --------------------------------------------------------------------------------------------------------
# Width


def _widen(
    name: str, tensor: Tensor, model: ModelConfig, grown_model: ModelConfig, operator: Operator
) -> Tensor:
    m, method = operator.width_factor, operator.width_method
    if method is WidthMethod.TOP_K_ONLY:
        return tensor
    if name.endswith(_BIAS):
        tensor = tensor / (m if model.gate.shares_probability else 1)
    if method is WidthMethod.RANDOM_EXPERTS:
        shape = torch.Size([m * len(tensor), *tensor.shape[1:]])
        new = initial_value(grown_model, name, shape, _seed(operator, "random experts"))
        return torch.cat([tensor, new[len(tensor) :]])
    if name.endswith(_BIAS):
        return tensor.repeat(m)
    if method is WidthMethod.SPLIT:
        return _split(name, tensor, m)
    grown = tensor.new_empty(m * len(tensor), *tensor.shape[1:])
    grown[: len(tensor)] = tensor
    copies = _copies(grown, m)
    scale = operator.router_noise if name.endswith(_ROUTER) else operator.noise_scale
    scale = scale if method.takes_noise else 0.0
    if scale > 0:  # in place: the noise is drawn where the copies will be
        draw_normal(copies, _seed(operator, "noise", name))
        copies.mul_(scale * _std_of_each_matrix(name, tensor)).add_(tensor)
    else:
        copies.copy_(tensor.expand_as(copies))
    if method is WidthMethod.DROP_UPCYCLE and not name.endswith(_ROUTER):
        new = draw_normal(torch.empty_like(copies), _seed(operator, "dropped", name))
        new.mul_(_std_of_each_matrix(name, tensor))
        torch.where(_dropped(name, copies, operator), new, copies, out=copies)
    return grown


def _widen_moment(name: str, tensor: Tensor, operator: Operator, divisor: int, fresh: float) -> Tensor:
    m, method = operator.width_factor, operator.width_method
    tile = [m, *[1] * (tensor.ndim - 1)]
    match method:
        case WidthMethod.TOP_K_ONLY:
            return tensor
        case WidthMethod.RANDOM_EXPERTS:
            new = (fresh * tensor.mean()).expand((m - 1) * len(tensor), *tensor.shape[1:])
            return torch.cat([tensor, new])
        case WidthMethod.SPLIT if not name.endswith(_ROUTER):
            return _split(name, tensor, m)  # a part receives the gradient it had within the whole
    grown = tensor.repeat(tile).div_(divisor)
    if method is WidthMethod.DROP_UPCYCLE and not name.endswith(_ROUTER):
        copies = _copies(grown, m)
        copies.masked_fill_(_dropped(name, copies, operator), (fresh * tensor.mean() / divisor).item())
    return grown


def _copies(grown: Tensor, m: int) -> Tensor:
    """All but the sources, as a view [m-1, E, ...]."""
    return grown.unflatten(0, (m, -1))[1:]


def _split(name: str, tensor: Tensor, m: int) -> Tensor:
    """Each expert's hidden units in m parts, part c of expert e at index c·E + e; router rows are copied."""
    if name.endswith(_ROUTER):
        return tensor.repeat(m, 1)
    if name.endswith(_IN):
        parts = tensor.unflatten(1, (2, m, -1)).permute(2, 0, 1, 3, 4)  # [m, E, 2, H/m, D]
        return parts.flatten(2, 3).flatten(0, 1).contiguous()
    return tensor.unflatten(2, (m, -1)).permute(2, 0, 1, 3).flatten(0, 1).contiguous()


def _dropped(name: str, copies: Tensor, operator: Operator) -> Tensor:
    """Which entries of [m-1, E, 2H, D] or [m-1, E, D, H] belong to a unit drawn anew.

    Each copy of an expert drops its own ⌊rH⌉ hidden units, the same ones in gate, up and down.
    """
    layer = name.removesuffix(_IN).removesuffix(_OUT)
    num_units = copies.shape[-1] if name.endswith(_OUT) else copies.shape[-2] // 2
    generator = torch.Generator().manual_seed(_seed(operator, "dropped units", layer))
    uniform = torch.rand(*copies.shape[:2], num_units, generator=generator)
    rank = uniform.argsort(-1).argsort(-1)
    dropped = rank < round(operator.drop_fraction * num_units)
    return dropped.unsqueeze(-2) if name.endswith(_OUT) else dropped.repeat(1, 1, 2).unsqueeze(-1)


def _std_of_each_matrix(name: str, tensor: Tensor) -> Tensor:
    """σ, broadcastable to [..., rows, columns]: of the router, and of each expert's gate, up and down."""
    if not name.endswith(_IN):
        return matrix_std(tensor)
    halves = tensor.unflatten(-2, (2, -1))
    return matrix_std(halves).expand(*halves.shape[:-1], 1).flatten(-3, -2)


def matrix_std(matrices: Tensor) -> Tensor:
    """The standard deviation of each [rows, columns]; torch's own is one pass and forty times slower here."""
    centred = matrices - matrices.mean(dim=(-2, -1), keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True)
    return norm / (matrices.shape[-2] * matrices.shape[-1] - 1) ** 0.5


def draw_normal(out: Tensor, seed: int) -> Tensor:
    """Fills `out` with N(0, 1), each 2¹⁷ numbers from a stream of their own, so that a part can be drawn
    without the rest. On one thread: beside OpenMP's waiting workers a pool of two was slower."""
    for chunk, numbers in enumerate(out.view(-1).split(_CHUNK)):
        numbers.normal_(generator=torch.Generator().manual_seed(derive_seed(seed, chunk)))
    return out


def _seed(operator: Operator, *names: str) -> int:
    assert operator.seed is not None, "something is drawn without a seed"
    return derive_seed(operator.seed, *names)
