"""What is logged of a model along training: norms, loads, twins, moments. Shape letters: router.py."""

import math
from typing import Any

import torch
from torch import Tensor

from moe.config import ModelConfig
from moe.growth import Moments, Tensors, origins
from moe.model import Block, MoETransformer
from moe.operator import Operator, WidthMethod
from moe.router import Routing
from moe.seeds import derive_seed

DIAGNOSE_EVERY = 20  # steps between lines that carry diagnostics: a rule, not an option
_SAMPLES = 256  # coordinates of each tensor whose moments are kept

PerLayer = list[float | None]


@torch.no_grad()
def diagnose(model: MoETransformer, routings: list[Routing], num_copies: int = 1) -> dict[str, Any]:
    """One value per layer, None where it has no experts (the weight norm then is the dense layer's).

    `expert_weight_norm` is Frobenius/√numel; `expert_load` the share of slots of each expert, its entropy
    is over ln E; `router_entropy` in nats. With `num_copies` m > 1 experts of one origin, also what
    `twin_divergence` and `co_routing` say.
    """
    dense = model.config.num_dense_layers
    loads_LE = torch.stack([r.load_E for r in routings]) if routings else torch.empty(0, 1)
    entropies_L = torch.stack([r.entropy for r in routings]) if routings else torch.empty(0)
    entropy_L = -torch.special.xlogy(loads_LE, loads_LE).sum(1) / math.log(max(2, loads_LE.shape[1]))
    line: dict[str, Any] = {
        "expert_weight_norm": _rounded(feed_forward_norms(model)),
        "expert_load": [None] * dense + [[round(x, 4) for x in load_E] for load_E in loads_LE.tolist()],
        "expert_load_entropy": [None] * dense + _rounded(entropy_L),
        "router_entropy": [None] * dense + _rounded(entropies_L),
    }
    if num_copies > 1:
        cosine_L, distance_L = twin_divergence(model, num_copies)
        line |= {
            "twin_cosine": [None] * dense + _rounded(cosine_L),
            "twin_distance": [None] * dense + [float(f"{d:.4g}") for d in distance_L.tolist()],
            "co_routing": [None] * dense
            + _rounded(torch.stack([co_routing(r, num_copies) for r in routings])),
        }
    return line


def feed_forward_norms(model: MoETransformer) -> Tensor:
    """Per layer, Frobenius/√numel of its experts' weights, or of its dense feed-forward's: [L]."""
    norms = []
    for layer in model.layers:
        assert isinstance(layer, Block)
        part = layer.dense if layer.moe is None else layer.moe.experts
        assert part is not None
        tensors = list(part.parameters())
        norm = torch.stack([torch.linalg.vector_norm(t.float()) for t in tensors]).norm()
        norms.append(norm / math.sqrt(sum(t.numel() for t in tensors)))
    return torch.stack(norms)


def twin_divergence(model: MoETransformer, num_copies: int) -> tuple[Tensor, Tensor]:
    """Per layer, means over copies and experts of the cosine between a copy's weights and its source's, and
    of their distance over the source's norm: two tensors [layers with experts]."""
    cosines, distances = [], []
    for moe in model.moe_layers():
        dot = source_square = copy_square = apart_square = torch.zeros(())
        for weight in moe.experts.parameters():
            source_EX, *copies = weight.flatten(1).unflatten(0, (num_copies, -1))
            copies_mEX = torch.stack(copies) if len(copies) > 1 else copies[0].unsqueeze(0)
            dot = dot + (copies_mEX * source_EX).sum(-1)
            source_square = source_square + source_EX.square().sum(-1)
            copy_square = copy_square + copies_mEX.square().sum(-1)
            apart_square = apart_square + (copies_mEX - source_EX).square().sum(-1)
        cosines.append((dot / (source_square * copy_square).sqrt()).mean())
        distances.append((apart_square / source_square).sqrt().mean())
    return torch.stack(cosines), torch.stack(distances)


def co_routing(routing: Routing, num_copies: int) -> Tensor:
    """The share of slots whose token also goes to the next copy of the same source (a scalar): 1 for exact
    twins, k/E or so for strangers."""
    num_experts = len(routing.load_E)
    chosen_NE = routing.experts_Nk.new_zeros(len(routing.experts_Nk), num_experts).scatter_(
        1, routing.experts_Nk, 1
    )
    chosen_NmE = chosen_NE.unflatten(1, (num_copies, -1))
    return (chosen_NmE * chosen_NmE.roll(1, dims=1)).sum() / chosen_NE.sum()


# --------------------------------------------------------------------------------------------------------
# Moments before growth


def sample_moments(model: ModelConfig, operator: Operator, moments: Moments) -> Tensors:
    """A few coordinates of every grown tensor that existed before, with AdamW's moments there at growth.

    Kept beside a branch so that its moments can be held against those it came from at any later step, for
    256 coordinates a tensor instead of two whole copies. Empty if there were no moments.
    """
    sample: Tensors = {}
    for origin in origins(model, operator, moments.first):
        is_moved = operator.width_method is WidthMethod.SPLIT and ".moe.experts." in origin.name
        if origin.copy > 0 or is_moved:  # what is left keeps its place at the beginning of the grown tensor
            continue
        generator = torch.Generator().manual_seed(derive_seed(0, "sampled moments", origin.name))
        numel = origin.tensor.numel()
        index = torch.randint(numel, (min(_SAMPLES, numel),), generator=generator)
        sample[f"index.{origin.name}"] = index
        sample[f"first.{origin.name}"] = origin.tensor.flatten()[index]
        sample[f"second.{origin.name}"] = moments.second[origin.source].flatten()[index]
    return sample


def moment_cosines(sample: Tensors, moments: Moments) -> dict[str, float]:
    """The cosine of each of AdamW's moments with its sample from before growth, over all coordinates."""
    cosines = {}
    for order, now in (("first", moments.first), ("second", moments.second)):
        names = [name.removeprefix("index.") for name in sample if name.startswith("index.")]
        before = torch.cat([sample[f"{order}.{name}"] for name in names])
        after = torch.cat([now[name].flatten()[sample[f"index.{name}"]].cpu() for name in names])
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=0)
        cosines[f"{order}_moment_cosine"] = round(cosine.item(), 6)
    return cosines


def _rounded(values: Tensor) -> PerLayer:
    return [round(value, 6) for value in values.tolist()]
