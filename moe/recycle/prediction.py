"""How long a growth will write, from headers and three speeds of this machine; no tensor is read."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moe.recycle.block import changed
from moe.recycle.plan import Change, Plan

_TRIED_BYTES = 8 << 20
_TRIED_NUMBERS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds of one core: for a byte of the source to be hashed, for a byte of the target to be written into
    the page cache, for a number that noise is added to."""

    hash_s: float
    write_s: float
    change_s: float


def measured_speeds() -> Speeds:
    """Of this machine, in about 50 ms of processor time, whatever else it is doing; writes no file."""
    content = bytes(_TRIED_BYTES)
    block = torch.zeros(1, _TRIED_NUMBERS, dtype=torch.bfloat16)
    noise = Change(noise=1.0, key="speed")
    changed(block, noise, seed=0)  # makes the table of normal numbers
    return Speeds(
        hash_s=_seconds(lambda: hashlib.sha256(content)) / _TRIED_BYTES,
        write_s=_seconds(lambda: _write(content)) / _TRIED_BYTES,
        change_s=_seconds(lambda: changed(block, noise, seed=0)) / _TRIED_NUMBERS,
    )


def predicted_seconds(plan: Plan, speeds: Speeds, threads: int) -> float:
    """Until the last byte is written, with `threads` cores and a disk that keeps up."""
    itemsizes = ((piece, piece.source.itemsize) for target in plan.targets for piece in target.pieces)
    numbers = sum(piece.num_bytes // size for piece, size in itemsizes if piece.change is not None)
    source_bytes = sum(path.stat().st_size for path in plan.source.files)
    work = speeds.hash_s * source_bytes + speeds.write_s * plan.after.num_bytes + speeds.change_s * numbers
    return work / threads


def _seconds(work: Callable[[], object]) -> float:
    """Of the processor, whoever else has it."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _write(content: bytes) -> None:
    """To a file that is in memory alone."""
    file = os.memfd_create("speed")
    try:
        os.pwrite(file, content, 0)
    finally:
        os.close(file)
