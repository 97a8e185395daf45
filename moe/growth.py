"""Growth operators as pure functions: (weights, moments) → the same, grown (arXiv 2510.08008 §3).

Source tensors are never changed. Noise depends on (seed, tensor name) alone, not on the order of visits.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from moe.config import ModelConfig
from moe.operator import DepthMethod, Operator, OptimizerState, WidthMethod
from moe.seeds import derive_seed

Tensors = dict[str, Tensor]
_LAYER = re.compile(r"^layers\.(\d+)\.(.+)$")
_EXPERT_TENSORS = ("moe.router.weight", "moe.experts.w_in_EGD", "moe.experts.w_out_EDH")


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's state by parameter name, with the one step counter that all tensors share."""

    step: int
    first: Tensors
    second: Tensors


def layer_sources(method: DepthMethod, num_layers: int, factor: int) -> list[int]:
    """The source of each grown layer: i mod L for `stack`, ⌊i/g⌋ for `interposition` (Eq. 1 and 2)."""
    match method:
        case DepthMethod.STACK:
            return [i % num_layers for i in range(num_layers * factor)]
        case DepthMethod.INTERPOSITION:
            return [i // factor for i in range(num_layers * factor)]
        case DepthMethod.NONE:
            return list(range(num_layers))


def grow_weights(model: ModelConfig, operator: Operator, weights: Tensors) -> Tensors:
    """The weights of `operator.apply_to(model)`.

    Width growth copies experts and router rows m times, copy c of expert e at index c·E + e; with top_k
    multiplied alike, the function is unchanged at noise_scale 0. Every copied matrix of every copy but the
    first then gets N(0, (α·σ)²), σ the standard deviation of the matrix that was copied (§3.2).
    """
    deep = _map_layers(operator, model.num_layers, weights)
    if operator.width_method is WidthMethod.NONE:
        return deep
    return {
        name: _duplicate(name, tensor, operator) if _has_experts(name) else tensor
        for name, tensor in deep.items()
    }


def grow_moments(model: ModelConfig, operator: Operator, rule: OptimizerState, moments: Moments) -> Moments:
    """AdamW's moments for the grown weights.

    `reset` is zero moments at step 0 (zero moments at an old step would miss their bias correction);
    `copy` carries moments with the layers and experts they belong to; `rescale` also divides those of m
    duplicated experts by m and m², since each exact copy receives 1/m of the gradient.
    """
    if rule is OptimizerState.RESET:
        return Moments(step=0, first={}, second={})
    m = operator.width_factor if rule is OptimizerState.RESCALE else 1

    def grow(tensors: Tensors, divisor: int) -> Tensors:
        deep = _map_layers(operator, model.num_layers, tensors)
        if operator.width_method is WidthMethod.NONE:
            return deep
        return {
            name: _tile(tensor, operator.width_factor) / divisor if _has_experts(name) else tensor
            for name, tensor in deep.items()
        }

    return Moments(step=moments.step, first=grow(moments.first, m), second=grow(moments.second, m * m))


def _map_layers(operator: Operator, num_layers: int, tensors: Tensors) -> Tensors:
    by_layer: dict[int, Tensors] = {}
    grown: Tensors = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match:
            by_layer.setdefault(int(match[1]), {})[match[2]] = tensor
        else:
            grown[name] = tensor.clone()
    for new, old in enumerate(layer_sources(operator.method, num_layers, operator.depth_factor)):
        for rest, tensor in by_layer.get(old, {}).items():
            grown[f"layers.{new}.{rest}"] = tensor.clone()
    return grown


def _has_experts(name: str) -> bool:
    return name.endswith(_EXPERT_TENSORS)


def _tile(tensor: Tensor, factor: int) -> Tensor:
    return tensor.repeat(factor, *[1] * (tensor.ndim - 1))


def _duplicate(name: str, tensor: Tensor, operator: Operator) -> Tensor:
    grown = _tile(tensor, operator.width_factor)
    if operator.noise_scale > 0:
        assert operator.seed is not None, "noise without a seed"
        generator = torch.Generator().manual_seed(derive_seed(operator.seed, "noise", name))
        copies = grown[tensor.shape[0] :]
        noise = torch.randn(copies.shape, generator=generator)
        scale = (operator.noise_scale * _std_of_each_matrix(name, tensor)).expand(tensor.shape)
        copies.add_((noise * _tile(scale, operator.width_factor - 1)).to(tensor))
    return grown


def _std_of_each_matrix(name: str, tensor: Tensor) -> Tensor:
    """σ, broadcastable to the tensor: of the router, and of each expert's gate, up and down by itself."""
    tensor = tensor.float()
    if name.endswith("router.weight"):
        return tensor.std()
    if name.endswith("w_out_EDH"):
        return tensor.std(dim=(1, 2), keepdim=True)
    halves = tensor.unflatten(1, (2, -1))
    return halves.std(dim=(2, 3), keepdim=True).expand(halves.shape).flatten(1, 2)
