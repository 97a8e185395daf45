"""A slot of a Ray cluster: what does one order at a time. One worker, or one a rank in a placement group."""

import contextlib
import os
import time
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
from sweeps.worker import follow, perform, record_death

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

    def perform(self, order: Order) -> Outcome | None:
        """The outcome if this is the first rank."""
        if self._ranks.leads:
            return perform(order, self._options, self._ranks)
        follow(order, self._options, self._ranks)
        return None


class Unfit(Exception):
    """No run can be done in a slot."""


class Lost(Exception):
    """A slot, or a part of it, is dead. `outcome` is that of its order, if it had one."""

    def __init__(self, why: str, outcome: Outcome | None = None):
        super().__init__((why or "no answer").splitlines()[0])
        self.outcome = outcome


@dataclass(eq=False)
class Slot:
    """Its workers by rank; `checks` are under way until it is ready, `calls` while it has an `order`."""

    workers: list[Any]
    group: PlacementGroup | None
    checks: list[Any]
    since: float
    store: str
    nodes: tuple[str, ...] = ()
    order: Order | None = None
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

    def give(self, order: Order) -> None:
        """Lost, with the order not begun, if a worker has died since its last."""
        try:
            ray.get([worker.ping.remote() for worker in self.workers], timeout=PING_S)
        except RayError as error:
            raise Lost(str(error)) from error
        self.order = order
        self.calls = [worker.perform.remote(order) for worker in self.workers]

    def outcome(self, ended: list[Any]) -> Outcome | None:
        """That of its order, once the first rank is done; Lost if a worker died."""
        first, others = self.calls[0], self.calls[1:]
        for call in self.calls:
            if call in ended and (error := _error(call)):
                raise Lost(error, self._done(first, ended) or self._failed(error))
        if first not in ended:
            self.calls = [first, *(call for call in others if call not in ended)]
            return None
        _, waiting = ray.wait(others, num_returns=len(others), timeout=FOLLOW_S) if others else ([], [])
        error = "its other ranks wait for the first, which has ended" if waiting else None
        if error := error or next(filter(None, map(_error, others)), None):
            raise Lost(error, ray.get(first))
        self.order, self.calls = None, []
        return ray.get(first)

    @staticmethod
    def _done(first: Any, ended: list[Any]) -> Outcome | None:
        return ray.get(first) if first in ended and _error(first) is None else None

    def _failed(self, error: str) -> Outcome:
        assert self.order is not None
        error = f"the worker of {self.order.task_id} died: {error}"
        record_death(self.order, self.store, error)  # all of it; of Ray's paragraphs the first line says it
        return Outcome(task_id=self.order.task_id, result=Result.FAILED, error=error.splitlines()[0])

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
