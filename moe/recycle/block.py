"""One block of a grown checkpoint, as numbers: a source's, cut, with noise, drawn anew, scaled."""

import torch
from torch import Tensor

from moe.growth import draw_normal, matrix_std
from moe.recycle.architecture import Layout
from moe.recycle.plan import Change
from moe.seeds import derive_seed


def changed(block: Tensor, change: Change, seed: int) -> Tensor:
    """`block` (fp32, one expert's or one tensor's) after `change`; ValueError for nothing: plans are checked.

    What is drawn depends on (`seed`, the change's key) alone, not on order, threads or shards.
    """
    if change.scale == 0.0:
        return torch.zeros_like(_part(block, change))
    block = _part(block, change)
    if change.new is not None:
        block = _draw(block, seed, "new", change.key).mul_(change.new)
    if change.noise:
        block = _draw(block, seed, "noise", change.key).mul_(change.noise * _sigma(block, change)).add_(block)
    if change.dropped:
        new = _draw(block, seed, "dropped", change.key).mul_(_sigma(block, change))
        block = torch.where(_dropped(block, change, seed), new, block)
    return block * change.scale if change.scale != 1.0 else block


def _draw(like: Tensor, seed: int, *names: str) -> Tensor:
    return draw_normal(
        torch.empty_like(like, memory_format=torch.contiguous_format), derive_seed(seed, *names)
    )


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


def _sigma(block: Tensor, change: Change) -> Tensor:
    """The standard deviation of each matrix in the block, broadcastable to it."""
    match change.layout:
        case Layout.ROW_HALVES:
            halves = block.unflatten(0, (2, -1))
            return matrix_std(halves).expand(*halves.shape[:-1], 1).flatten(0, 1)
        case Layout.COLUMN_PAIRS:
            pairs = block.unflatten(-1, (-1, 2)).movedim(-1, 0)
            return matrix_std(pairs).flatten().repeat(block.shape[-1] // 2)
        case _:
            return matrix_std(block)


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
    return dropped.unsqueeze(1).expand_as(block) if by_rows else dropped.expand_as(block)
