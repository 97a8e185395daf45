"""One block of a grown checkpoint, as numbers: a source's, cut, with noise, drawn anew, scaled.

Work is done in fp32 on some numbers at a time, which stay in the processor's cache, in memory that a thread
keeps: a block takes the memory of itself and, unless its place is taken, of what becomes of it.
"""

import math
from collections.abc import Iterator
from functools import cache
from threading import local

import numpy as np
import torch
from torch import Tensor

from moe.recycle.architecture import Layout
from moe.recycle.plan import Change
from moe.seeds import derive_seed

_CHUNK = 1 << 17  # numbers, a multiple of 4: a draw has 64 bits
CHUNK_BYTES = 32 * _CHUNK  # what a thread needs beside its blocks: numbers, draws, their indices


class _Space(local):
    """What a thread works in, made once: fresh memory costs as much as the work on it."""

    def __init__(self) -> None:
        self.numbers, self.drawn = torch.empty(_CHUNK), torch.empty(_CHUNK)
        self.indices = np.empty(_CHUNK, np.int32)


_SPACE = _Space()


def changed(block: Tensor, change: Change, seed: int, *, in_place: bool = False) -> Tensor:
    """`block` (one expert's or one tensor's) after `change`, in its own type.

    It stays as it was, or is where the result is kept if `in_place`. What is drawn depends on (`seed`, the
    change's key) alone, not on order, threads, shards or machine.
    """
    block = _part(block, change)
    if change.scale == 0.0:
        return block.zero_() if in_place else torch.zeros_like(block)
    out = block if in_place else torch.empty_like(block, memory_format=torch.contiguous_format)
    source, target = block.reshape(-1), out.view(-1)
    if change.new is not None:
        new, drawn = _Normals(seed, "new", change.key), torch.empty(len(source))
        for _, begin, end in _chunks(block, change):
            drawn[begin:end] = new.draw(end - begin).mul_(change.new)
        source = drawn
    sigma = _sigma(source, block, change) if change.noise or change.dropped else {}
    dropped = _dropped(block, change, seed) if change.dropped else None
    noise, instead = (_Normals(seed, name, change.key) for name in ("noise", "dropped"))
    for half, begin, end in _chunks(block, change):
        numbers = _SPACE.numbers[: end - begin].copy_(source[begin:end])
        if change.noise:
            numbers += _times(noise.draw(end - begin), change.noise, sigma[half])
        if dropped is not None:
            others = _times(instead.draw(end - begin), 1.0, sigma[half])
            numbers = torch.where(dropped[begin:end], others, numbers)
        target[begin:end] = numbers.mul_(change.scale) if change.scale != 1.0 else numbers
    return out


def _chunks(block: Tensor, change: Change) -> Iterator[tuple[int, int, int]]:
    """(half, begin, end): none reaches over the border where up lies behind gate."""
    num_halves = 2 if change.layout is Layout.ROW_HALVES else 1
    size = block.numel() // num_halves
    for half in range(num_halves):
        for begin in range(half * size, (half + 1) * size, _CHUNK):
            yield half, begin, min(begin + _CHUNK, (half + 1) * size)


@cache
def _quantiles() -> Tensor:
    """N(0, 1) as 2¹⁶ numbers that are equally likely, of variance 1; the largest is 4.2."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    normal = torch.special.ndtri(middles)
    return (normal / normal.square().mean().sqrt()).float()


class _Normals:
    """A stream of N(0, 1), from a table by 16 random bits each: the noise of a bf16 weight has fewer.

    Less than half the time of torch's; and SFC64 gives the same bits on every machine and in every release,
    which torch's normal numbers do not.
    """

    def __init__(self, seed: int, *names: str) -> None:
        self._bits = np.random.SFC64(derive_seed(seed, *names))

    def draw(self, count: int) -> Tensor:
        """At most `_CHUNK` numbers; they hold until this thread draws again."""
        bits = self._bits.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
        indices, out = _SPACE.indices[:count], _SPACE.drawn[:count]
        np.copyto(indices, bits)
        return torch.index_select(_quantiles(), 0, torch.from_numpy(indices), out=out)


def _times(numbers: Tensor, factor: float, sigmas: list[float]) -> Tensor:
    """In place, by `factor` times the σ of each matrix: one, or two that take turns."""
    if len(sigmas) == 1:
        return numbers.mul_(factor * sigmas[0])
    numbers.view(-1, len(sigmas)).mul_(torch.tensor(sigmas).mul_(factor))
    return numbers


def _part(block: Tensor, change: Change) -> Tensor:
    """The hidden units of one of m parts."""
    if change.part is None:
        return block
    c, m = change.part
    match change.layout:
        case Layout.ROWS:
            return block.unflatten(0, (m, -1))[c]
        case Layout.ROW_HALVES:
            return block.unflatten(0, (2, m, -1))[:, c].flatten(0, 1)
        case Layout.COLUMNS | Layout.COLUMN_PAIRS:  # pairs stand side by side
            return block.unflatten(-1, (m, -1))[..., c, :].contiguous()


def _sigma(flat: Tensor, block: Tensor, change: Change) -> dict[int, list[float]]:
    """The standard deviation of each matrix in the block, by halves: one, or two that take turns.

    Moments of chunks are merged (Chan et al.), so that a mean far from 0 costs no digits.
    """
    num_turns = 2 if change.layout is Layout.COLUMN_PAIRS else 1
    moments: dict[tuple[int, int], tuple[int, float, float]] = {}
    for half, begin, end in _chunks(block, change):
        for turn in range(num_turns):
            own = flat[begin + turn : end : num_turns]
            numbers = _SPACE.numbers[: len(own)].copy_(own)
            mean, before = float(numbers.mean()), moments.get((half, turn), (0, 0.0, 0.0))
            numbers.sub_(mean)
            total, apart = before[0] + len(numbers), mean - before[1]
            squares = float(torch.dot(numbers, numbers)) + apart**2 * before[0] * len(numbers) / total
            moments[half, turn] = (
                total,
                before[1] + apart * len(numbers) / total,
                before[2] + squares,
            )
    out: dict[int, list[float]] = {}
    for (half, _), (count, _, squares) in moments.items():
        out.setdefault(half, []).append(math.sqrt(squares / max(count - 1, 1)))
    return out


def _dropped(block: Tensor, change: Change, seed: int) -> Tensor:
    """Which numbers belong to a hidden unit that is drawn anew, the same in all matrices of an expert."""
    by_rows = change.layout in (Layout.ROWS, Layout.ROW_HALVES)
    doubled = change.layout in (Layout.ROW_HALVES, Layout.COLUMN_PAIRS)
    num_units = block.shape[0 if by_rows else -1] // (2 if doubled else 1)
    generator = torch.Generator().manual_seed(derive_seed(seed, "dropped units", change.units))
    rank = torch.rand(num_units, generator=generator).argsort().argsort()
    dropped = rank < round(change.dropped * num_units)
    if change.layout is Layout.ROW_HALVES:
        dropped = dropped.repeat(2)
    if change.layout is Layout.COLUMN_PAIRS:
        dropped = dropped.repeat_interleave(2)
    return (dropped.unsqueeze(1).expand_as(block) if by_rows else dropped.expand_as(block)).reshape(-1)
