"""Ranks: the processes that train one model together, each on its rows of every batch.

What depends on the whole batch is reduced over all of them, so that the mathematics is one process's; sums
are taken in another order, so that the last bits are not. The first rank leads: it alone reads and writes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from moe.checkpoint import State
from moe.growth import Moments, Tensors
from moe.router import Routing

TIMEOUT = timedelta(hours=2)  # the first rank evaluates and saves while the others wait
_BUCKET = 1 << 25  # elements reduced at once: the copy costs this much memory and no more


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among `size`; alone, every method is free and changes nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def rows(self, batch_BT: np.ndarray) -> np.ndarray:
        """This rank's rows, of as many on each: [B / size, T]."""
        assert len(batch_BT) % self.size == 0, f"{len(batch_BT)} rows on {self.size} ranks"
        share = len(batch_BT) // self.size
        return batch_BT[self.rank * share : (self.rank + 1) * share]

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over ranks, in place; the same bits on every rank."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.div_(self.size).split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def whole(self, routings: list[Routing]) -> list[Routing]:
        """The routings as of the whole batch, in its order of tokens, but for `gates_Nk` and the z-loss.

        The load is exactly one process's. Only this rank's tokens carry a gradient: averaged over ranks, that
        of the load-balance loss is the whole batch's, since loads have none and probabilities are a mean.
        """
        if self.size == 1 or not routings:
            return routings
        experts_LNk = self._gather(torch.stack([routing.experts_Nk for routing in routings]))
        entropy_L = torch.stack([routing.entropy for routing in routings])
        self.average_([entropy_L])
        return [
            routing.of_whole_batch(experts_Nk, entropy)
            for routing, experts_Nk, entropy in zip(routings, experts_LNk, entropy_L, strict=True)
        ]

    def _gather(self, tensor_LN: Tensor) -> Tensor:
        """Those of all ranks, one after another along the second axis."""
        parts = [torch.empty_like(tensor_LN) for _ in range(self.size)]
        dist.all_gather(parts, tensor_LN.contiguous())
        return torch.cat(parts, dim=1)

    # -- the first rank leads ----------------------------------------------------------------------------

    def send(self, state: State | None) -> None:
        """Gives the state to start from to the other ranks, or tells them that there is nothing to do."""
        if self.size == 1:
            return
        tensors = {} if state is None else _flat(state)
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        counts = None if state is None else (state.step, state.moments.step)
        dist.broadcast_object_list([counts, shapes], src=0)
        for tensor in tensors.values():
            dist.broadcast(tensor.contiguous(), src=0)

    @staticmethod
    def receive() -> State | None:
        """What the first rank sends."""
        message: list[Any] = [None, None]
        dist.broadcast_object_list(message, src=0)
        counts, shapes = message
        if counts is None or shapes is None:
            return None
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        for tensor in tensors.values():
            dist.broadcast(tensor, src=0)
        step, moments_step = counts
        return _unflat(tensors, step, moments_step)

    @contextlib.contextmanager
    def between_steps(self, is_last: bool) -> Iterator[None]:
        """What the first rank does after a step; the others go on with the next if nothing was raised."""
        goes_on = False
        try:
            yield
            goes_on = True
        finally:
            if self.size > 1 and not is_last:
                dist.broadcast(torch.tensor(int(goes_on)), src=0)

    @staticmethod
    def goes_on() -> bool:
        """What the first rank says between two steps."""
        message = torch.tensor(0)
        dist.broadcast(message, src=0)
        return bool(message.item())


ALONE = Ranks()


def open_store(host: str) -> TCPStore:
    """Where ranks find each other, at a free port of `host`, this machine."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)


def find_store(host: str, port: int) -> TCPStore:
    return TCPStore(host, port, is_master=False, timeout=TIMEOUT)


def join(store: Store, rank: int, size: int) -> Ranks:
    """Waits until all ranks have joined."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return Ranks(rank, size)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, up to _BUCKET elements together, or one tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(other.numel() for other in bucket) + tensor.numel() > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _flat(state: State) -> Tensors:
    parts = {"weights": state.weights, "first": state.moments.first, "second": state.moments.second}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _unflat(tensors: Tensors, step: int, moments_step: int) -> State:
    parts: dict[str, Tensors] = {"weights": {}, "first": {}, "second": {}}
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
        parts[part][name] = tensor
    moments = Moments(step=moments_step, first=parts["first"], second=parts["second"])
    return State(step=step, weights=parts["weights"], moments=moments)
