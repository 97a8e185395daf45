"""A slot of a Ray cluster: what does one bundle of orders at a time.

One worker, or one a rank in a placement group.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from moe.parallel import ALONE, find_store, join, open_store
from moe.process import prepare_process
from sweeps.outcome import Order, Outcome, Result, WorkerOptions
from sweeps.room import Need
from sweeps.worker import follow, is_done, perform_together, record_death

PING_S = 10.0  # a worker that was idle and does not answer is lost
FOLLOW_S = 10.0  # other ranks end their order with the first, or it left them in the middle of a step


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """One process of a slot, with torch imported once."""

    def __init__(self, options: WorkerOptions):
        # Ray sets OMP_NUM_THREADS=1 in its workers; more threads than cores cost up to 20x.
        prepare_process(options.threads)
        self._options, self._ranks, self._meeting = options, ALONE, None

    def open_store(self) -> tuple[str, int]:
        """Where the other ranks find this one; it is open as long as this process lives."""
        self._meeting = open_store(ray.util.get_node_ip_address())
        return self._meeting.host, self._meeting.port

    def check(self, rank: int, size: int, meeting: tuple[str, int] | None) -> str:
        """The id of this node, once all ranks are there; ValueError if no run can be done here."""
        self._check_node()
        if meeting is not None:
            self._ranks = join(self._meeting or find_store(*meeting), rank, size)
        return ray.get_runtime_context().get_node_id()

    def _check_node(self) -> None:
        import torch

        node = f"node {ray.util.get_node_ip_address()}"
        if not os.path.exists(self._options.alive):  # made by the driver just now: no other disk has it
            raise ValueError(
                f"launch.store={self._options.store} is not visible on {node}; "
                "put it on a file system that all nodes share"
            )
        if self._options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"launch.device=cuda, but torch finds no GPU on {node}, where Ray counts some")

    def ping(self) -> None:
        pass

    def perform(self, orders: Sequence[Order]) -> list[Outcome]:
        """The outcomes if this is the first rank; several ranks have one order."""
        if self._ranks.leads:
            return perform_together(orders, self._options, self._ranks)
        (order,) = orders
        follow(order, self._options, self._ranks)
        return []


class Unfit(Exception):
    """No run can be done in a slot."""


class Lost(Exception):
    """A slot, or a part of it, is dead. `outcomes` are those of its orders, if it had any."""

    def __init__(self, why: str, outcomes: Sequence[Outcome] = ()):
        super().__init__((why or "no answer").splitlines()[0])
        self.outcomes = list(outcomes)


@dataclass(eq=False)
class Slot:
    """Its workers by rank; `checks` are under way until it is ready, `calls` while it has `orders`."""

    workers: list[Any]
    group: PlacementGroup | None
    checks: list[Any]
    since: float
    store: str
    nodes: tuple[str, ...] = ()
    orders: Sequence[Order] = ()
    calls: list[Any] = field(default_factory=list)

    @classmethod
    def start(cls, need: Need, options: WorkerOptions, since: float | None = None) -> "Slot":
        """Asks Ray for a slot; it waits for room as long as it takes, and nobody waits for it."""
        resources: dict[str, Any] = {"num_cpus": need.threads, "num_gpus": need.gpus}
        group = None
        if need.ranks > 1:
            bundle = {"CPU": float(need.threads), "GPU": need.gpus}
            group = placement_group([bundle] * need.ranks, strategy="PACK")
        workers = []
        for rank in range(need.ranks):
            if group is not None:
                resources["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=rank
                )
            workers.append(Worker.options(**resources).remote(options))
        meeting = workers[0].open_store.remote() if len(workers) > 1 else None
        checks = [worker.check.remote(rank, len(workers), meeting) for rank, worker in enumerate(workers)]
        since = since or time.monotonic()
        return cls(workers=workers, group=group, checks=checks, since=since, store=options.store)

    def is_ready(self) -> bool:
        """Whether all workers have answered; Unfit if one says that it can do no run, or died."""
        ended, waiting = ray.wait(self.checks, num_returns=len(self.checks), timeout=0)
        for check in ended:
            if error := _error(check):
                raise Unfit(error)
        if waiting:
            return False
        self.nodes = tuple(ray.get(self.checks))
        return True

    def give(self, orders: Sequence[Order]) -> None:
        """Lost, with the orders not begun, if a worker has died since its last."""
        try:
            ray.get([worker.ping.remote() for worker in self.workers], timeout=PING_S)
        except RayError as error:
            raise Lost(str(error)) from error
        self.orders = orders
        self.calls = [worker.perform.remote(orders) for worker in self.workers]

    def outcomes(self, ended: list[Any]) -> list[Outcome]:
        """Those of its orders, once the first rank is done, before that none; Lost if a worker died."""
        first, others = self.calls[0], self.calls[1:]
        for call in self.calls:
            if call in ended and (error := _error(call)):
                raise Lost(error, self._done(first, ended) or self._failed(error))
        if first not in ended:
            self.calls = [first, *(call for call in others if call not in ended)]
            return []
        _, waiting = ray.wait(others, num_returns=len(others), timeout=FOLLOW_S) if others else ([], [])
        error = "its other ranks wait for the first, which has ended" if waiting else None
        if error := error or next(filter(None, map(_error, others)), None):
            raise Lost(error, ray.get(first))
        self.orders, self.calls = (), []
        return ray.get(first)

    @staticmethod
    def _done(first: Any, ended: list[Any]) -> list[Outcome]:
        return ray.get(first) if first in ended and _error(first) is None else []

    def _failed(self, why: str) -> list[Outcome]:
        outcomes = []
        for order in self.orders:
            if is_done(order, self.store):  # the others of its bundle were not
                outcomes.append(Outcome(task_id=order.task_id, result=Result.DONE))
                continue
            error = f"the worker of {order.task_id} died: {why}"
            record_death(order, self.store, error)  # all of it; of Ray's paragraphs the first line says it
            failed = Outcome(task_id=order.task_id, result=Result.FAILED, error=error.splitlines()[0])
            outcomes.append(failed)
        return outcomes

    def end(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(RayError):
                ray.kill(worker, no_restart=True)
        if self.group is not None:
            remove_placement_group(self.group)


def _error(call: Any) -> str | None:
    """Why a call that has ended failed, or None."""
    try:
        ray.get(call)
    except RayTaskError as error:
        return str(error.cause)
    except RayError as error:
        return str(error) or type(error).__name__
    return None
