"""The weight norms of a checkpoint's experts and routers, layer by layer, read one block at a time."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from moe.operator import Operator
from moe.plain import parse
from moe.recycle.architecture import Place, Role, architecture_of
from moe.recycle.checkpoint import Checkpoint, Reader, Stored
from moe.recycle.lineage import growths_of
from moe.recycle.plan import places_of

COLUMNS = ("layer", "part", "norm", "min", "max", "num_experts")
_PARTS = {Role.EXPERT_IN: "gate_up", Role.EXPERT_OUT: "down", Role.ROUTER: "router"}
_AT_ONCE = 1 << 20  # numbers
_Sums = dict[str, dict[int, tuple[float, int]]]  # by part and expert: the sum of squares, of how many numbers


def norm_rows(source: Checkpoint) -> Iterator[list[dict[str, Any]]]:
    """For each layer in turn a row of `COLUMNS` for each part; an empty list where it has no experts.

    `norm` is Frobenius/√numel over all experts of the layer, `min` and `max` are over its single experts.
    Parts: `gate_up`, `down`; `expert`, both together (Fig. 2, arXiv 2510.08008); `router`, a row an expert.
    Biases and shared experts do not count. Memory is that of one expert's matrix as it is stored, or of one
    router. ValueError for a checkpoint that cannot be read whole.
    """
    places = places_of(source, architecture_of(source.config))
    by_layer: dict[int, list[tuple[Place, Stored]]] = {}
    for name, place in places.items():
        if place.layer is not None and place.pattern.role in _PARTS:
            by_layer.setdefault(place.layer, []).append((place, source.tensors[name]))
    reader = Reader()
    try:
        for layer in range(int(source.config["num_hidden_layers"])):
            sums: _Sums = {}
            for place, stored in by_layer.get(layer, []):
                own = sums.setdefault(_PARTS[place.pattern.role], {})
                for expert, total, count in _squares(reader, place, stored):
                    before = own.get(expert, (0.0, 0))
                    own[expert] = before[0] + total, before[1] + count
            yield [{"layer": layer, **row} for row in _rows(sums)]
    finally:
        reader.close()


def _rows(sums: _Sums) -> Iterator[dict[str, Any]]:
    matrices = [sums[part] for part in ("gate_up", "down") if part in sums]
    if matrices:
        together = {
            expert: (sum(own[expert][0] for own in matrices), sum(own[expert][1] for own in matrices))
            for expert in matrices[0]
        }
        sums = {"expert": together, **sums}
    for part, own in sums.items():
        single = [math.sqrt(total / count) for total, count in own.values()]
        total, count = (sum(pair[nth] for pair in own.values()) for nth in (0, 1))
        row = {"part": part, "norm": math.sqrt(total / count), "min": min(single), "max": max(single)}
        yield row | {"num_experts": len(own)}


def _squares(reader: Reader, place: Place, stored: Stored) -> Iterator[tuple[int, float, int]]:
    """(expert, sum of squares, numbers) for each expert that has a part in this tensor."""
    if place.pattern.role is Role.ROUTER:
        for expert, row in enumerate(reader.own_block(stored)):
            yield expert, _square(row), row.numel()
    elif place.expert is not None:
        yield place.expert, _square(reader.own_block(stored)), stored.numel
    else:
        for expert in range(stored.shape[0]):
            block = reader.own_block(stored, expert)
            yield expert, _square(block), block.numel()


def _square(numbers: Tensor) -> float:
    parts = numbers.reshape(-1).split(_AT_ONCE)
    return sum(float(part.double().square_().sum()) for part in parts)


def seams_of(source: Checkpoint) -> list[int]:
    """The layers that follow on a later one of the source: where the copies of a stacked block meet.

    From growth.json, through all growths that came after; none for a checkpoint that was not grown.
    """
    seams: set[int] = set()
    for growth in growths_of(source.directory):
        operator = parse(Operator, growth["operator"], "operator")
        sources = operator.layer_sources(int(growth["before"]["layers"]))
        pairs = enumerate(itertools.pairwise(sources), start=1)
        seams = {new for new, (old, then) in pairs if then < old or (then == old + 1 and then in seams)}
    return sorted(seams)
