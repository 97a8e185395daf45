"""The files of a grown checkpoint: which tensors are in which, where, and the header before them."""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moe.recycle.plan import Piece, Target

_ALIGNMENT = 8


@dataclass(frozen=True)
class Shard:
    """One safetensors file: `header` is its first bytes, `offsets` where each target begins after it."""

    name: str
    targets: tuple[Target, ...]
    header: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.header) + sum(target.num_bytes for target in self.targets)

    def jobs(self) -> Iterator[tuple[Target, Piece, int]]:
        """Every piece with the place of its first byte in the file."""
        place = len(self.header)
        for target in self.targets:
            for piece in target.pieces:
                yield target, piece, place
                place += piece.num_bytes


def shards_of(targets: Sequence[Target], max_bytes: int, metadata: dict[str, str]) -> list[Shard]:
    """Tensors in their order, a new file where `max_bytes` would be passed; named as transformers names them.

    `metadata` goes into every header.
    """
    groups: list[list[Target]] = [[]]
    size = 0
    for target in targets:
        if groups[-1] and size + target.num_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(target)
        size += target.num_bytes
    total = len(groups)
    names = [f"model-{nth:05d}-of-{total:05d}.safetensors" for nth in range(1, total + 1)]
    names = ["model.safetensors"] if total == 1 else names
    return [
        Shard(name, tuple(group), _header(group, metadata)) for name, group in zip(names, groups, strict=True)
    ]


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """model.safetensors.index.json: the file of each tensor."""
    return {
        "metadata": {"total_size": sum(target.num_bytes for shard in shards for target in shard.targets)},
        "weight_map": {target.name: shard.name for shard in shards for target in shard.targets},
    }


def _header(targets: Sequence[Target], metadata: dict[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for target in targets:
        end = place + target.num_bytes
        entries[target.name] = {
            "dtype": target.dtype,
            "shape": list(target.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
