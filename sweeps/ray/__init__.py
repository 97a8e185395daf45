"""The executor that works in the slots of a Ray cluster. Nothing outside this package imports ray.

Ray's own retries are off: whether a task is tried again is the driver's business. A dead slot is replaced,
and until there is room for another the sweep goes on with those that are left.
"""

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from sweeps.config import LaunchConfig
from sweeps.outcome import Order, Outcome, Result
from sweeps.ray import cluster
from sweeps.ray.slot import Lost, Slot, Unfit
from sweeps.worker import WorkerOptions

START_S = 30.0  # a worker answers in about 5 s (it imports torch); many on few cores, one after another
POLL_S = 0.1


class RayExecutor:
    """As many slots as `launch` asks for, on its cluster, or on this machine's `num_cpus` and `num_gpus`."""

    def __init__(self, launch: LaunchConfig, options: WorkerOptions, *, num_cpus: int = 0, num_gpus: int = 0):
        self._launch = launch
        self._starting: list[Slot] = []
        self._idle: list[Slot] = []
        self._busy: list[Slot] = []
        self._orders = deque[Sequence[Order]]()  # bundles without a slot: theirs died before they began
        self._warnings: list[str] = []
        self._need, self._wanted = cluster.join(launch, num_cpus, num_gpus)
        self._options = replace(options, device=self._need.device)

    @property
    def slots(self) -> int:
        """Bundles that may be out at once; 1 even where all workers are lost, so that this becomes known."""
        return max(1, len(self._idle) + len(self._busy))

    def start(self) -> None:
        """Makes the workers, unless they are there already; each has answered and seen the store.

        With `launch.workers` null, those that found room in time are enough. ValueError if one is not fit.
        """
        if self._idle or self._busy or self._starting:
            return
        self._starting = [self._start_slot() for _ in range(self._wanted)]
        try:
            self._wait_for_room()
        except ValueError:
            for slot in [*self._starting, *self._idle]:
                slot.end()
            self._starting, self._idle = [], []
            raise

    def _wait_for_room(self) -> None:
        last, admitted = time.monotonic(), 0
        while self._starting and time.monotonic() - last < START_S:
            time.sleep(POLL_S)
            if found := self._admit():
                raise ValueError(found[0])
            if len(self._idle) > admitted:
                last, admitted = time.monotonic(), len(self._idle)
        if self._starting and (self._launch.workers is not None or not self._idle):
            raise ValueError(
                f"launch.workers={self._wanted}: {admitted} had room, and no other in {START_S:.0f} s; "
                "wait for other work on the cluster to end, or lower launch.workers"
            )
        if self._starting:
            self._warnings.append(f"there was room for {len(self._idle)} of {self._wanted} workers")

    def submit(self, orders: Sequence[Order]) -> None:
        self._orders.append(orders)
        self._hand_out()

    def wait(self, timeout_s: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout_s
        while self._busy or self._orders:
            self._warnings += self._admit()
            self._hand_out()
            outcomes = self._give_up() + self._collect()
            if outcomes:
                outcomes[0] = replace(outcomes[0], warnings=(*self._warnings, *outcomes[0].warnings))
                self._warnings = []
            if outcomes or time.monotonic() > deadline:
                return outcomes
        return []

    def close(self) -> None:
        ray.shutdown()

    # -- slots come and go -------------------------------------------------------------------------------

    def _start_slot(self, since: float | None = None) -> Slot:
        return Slot.start(self._need, self._options, since)

    def _admit(self) -> list[str]:
        """Moves the slots that have answered to the idle ones; what was wrong with others, in words."""
        faults = []
        for slot in list(self._starting):
            try:
                if not slot.is_ready():
                    continue
                self._starting.remove(slot)
                self._idle.append(slot)
            except Unfit as unfit:
                faults.append(str(unfit))
                slot.end()
                self._starting.remove(slot)
                if time.monotonic() - slot.since < START_S:  # it may have been on its way to a node that died
                    self._starting.append(self._start_slot(slot.since))
        return faults

    def _replace(self, slot: Slot, lost: Lost) -> None:
        """The lost slot's room may be gone with its node: the next one starts when there is any."""
        slot.end()
        for place in (self._idle, self._busy):
            if slot in place:
                place.remove(slot)
        self._starting.append(self._start_slot())
        left = len(self._idle) + len(self._busy)
        self._warnings.append(f"a worker was lost ({lost}); {left} left until another has room")

    # -- orders ------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        while self._orders and self._idle:
            slot = self._idle[-1]
            try:
                slot.give(self._orders[0])
            except Lost as lost:
                self._replace(slot, lost)
                continue
            self._orders.popleft()
            self._idle.remove(slot)
            self._busy.append(slot)

    def _collect(self) -> list[Outcome]:
        calls = [call for slot in self._busy for call in slot.calls]
        if not calls:
            time.sleep(POLL_S)
            return []
        ended, _ = ray.wait(calls, timeout=POLL_S)
        return [outcome for slot in list(self._busy) for outcome in self._outcomes(slot, ended)]

    def _outcomes(self, slot: Slot, ended: list[Any]) -> list[Outcome]:
        try:
            outcomes = slot.outcomes(ended)
        except Lost as lost:
            self._replace(slot, lost)
            return lost.outcomes
        if outcomes:
            self._busy.remove(slot)
            self._idle.append(slot)
        return outcomes

    def _give_up(self) -> list[Outcome]:
        """Orders that wait for a worker are handed back when the sweep is stopped, and fail when all workers
        are lost: a lost cluster must not hang a sweep."""
        if not os.path.exists(self._options.alive):
            return self._hand_back(Result.STOPPED)
        alone = not (self._idle or self._busy)
        if not alone or any(time.monotonic() - slot.since < START_S for slot in self._starting):
            return []
        error = (
            f"no worker is left, and there was no room for another in {START_S:.0f} s; add nodes and rerun"
        )
        return self._hand_back(Result.FAILED, error)

    def _hand_back(self, result: Result, error: str | None = None) -> list[Outcome]:
        orders, self._orders = self._orders, deque()
        return [
            Outcome(task_id=order.task_id, result=result, error=error)
            for bundle in orders
            for order in bundle
        ]
