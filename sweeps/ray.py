"""The executor that works in Ray actors: long-lived workers, torch imported once in each.

The only module that imports ray. Ray's own retries are off: whether a task is tried again is the driver's
business. A slot is what does one order at a time: one worker, or one a rank in a placement group. A dead one
is replaced, and until there is room for another the sweep goes on with those that are left.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sweeps.config import LaunchConfig
from sweeps.outcome import Order, Outcome, Result
from sweeps.room import Need, need, slots, this_machine
from sweeps.worker import WorkerOptions, perform

START_S = 30.0  # a worker answers in about 5 s (it imports torch); many on few cores, one after another
PROBE_S = 5.0  # ray.init hangs for minutes on an address where nobody listens
PING_S = 10.0  # a worker that was idle and does not answer is lost
POLL_S = 0.1


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """One process of a slot."""

    def __init__(self, options: WorkerOptions):
        import torch

        # Ray sets OMP_NUM_THREADS=1 in its workers; more threads than cores cost up to 20x.
        torch.set_num_threads(options.threads)
        self._options = options

    def check(self) -> str:
        """The id of this node; ValueError if no run can be done here."""
        import torch

        node = f"node {ray.util.get_node_ip_address()}"
        if not os.path.exists(self._options.alive):  # made by the driver just now: no other disk has it
            raise ValueError(
                f"launch.store={self._options.store} is not visible on {node}; "
                "put it on a file system that all nodes share"
            )
        if self._options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"launch.device=cuda, but torch finds no GPU on {node}, where Ray counts some")
        return ray.get_runtime_context().get_node_id()

    def ping(self) -> None:
        pass

    def perform(self, order: Order) -> Outcome:
        return perform(order, self._options)


@dataclass(eq=False)
class _Slot:
    """Its workers by rank; `checks` are under way until it is admitted, `ranks` while it has an order."""

    workers: list[Any]
    group: PlacementGroup | None
    checks: list[Any]
    since: float
    nodes: tuple[str, ...] = ()
    order: Order | None = None
    ranks: list[Any] = field(default_factory=list)


class RayExecutor:
    """As many slots as `launch` asks for, on its cluster, or on this machine's `num_cpus` and `num_gpus`."""

    def __init__(self, launch: LaunchConfig, options: WorkerOptions, *, num_cpus: int = 0, num_gpus: int = 0):
        self._launch = launch
        self._starting: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._busy: list[_Slot] = []
        self._orders = deque[Order]()  # without a slot: theirs died before they began
        self._warnings: list[str] = []
        if launch.address == "local":
            self._need = need(launch, num_gpus)
            nodes = [this_machine(launch, self._need, num_cpus, num_gpus)]
            self._wanted = slots(launch, self._need, nodes)
            _connect("local", num_cpus=nodes[0]["CPU"], num_gpus=nodes[0]["GPU"], include_dashboard=False)
        else:
            _probe(launch.address)
            _connect(launch.address)
            try:
                self._need, self._wanted = _on_cluster(launch)
            except ValueError:
                ray.shutdown()
                raise
        self._options = replace(options, device=self._need.device)

    @property
    def slots(self) -> int:
        """Orders that may be out at once; 1 even where all workers are lost, so that this becomes known."""
        return max(1, len(self._idle) + len(self._busy))

    def start(self) -> None:
        """Makes the workers, unless they are there already; each has answered and seen the store.

        With `launch.workers` null, those that found room in time are enough. ValueError if one is not fit.
        """
        if self._idle or self._busy or self._starting:
            return
        self._starting = [self._start_slot() for _ in range(self._wanted)]
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

    def submit(self, order: Order) -> None:
        self._orders.append(order)
        self._hand_out()

    def wait(self, timeout_s: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout_s
        while self._busy or self._orders:
            self._warnings += self._admit()
            self._hand_out()
            outcomes = self._refuse_orders() + self._collect()
            if outcomes:
                outcomes[0] = replace(outcomes[0], warnings=(*self._warnings, *outcomes[0].warnings))
                self._warnings = []
            if outcomes or time.monotonic() > deadline:
                return outcomes
        return []

    def close(self) -> None:
        ray.shutdown()

    # -- slots come and go -------------------------------------------------------------------------------

    def _start_slot(self, since: float | None = None) -> _Slot:
        """Asks Ray for a slot; it waits for room as long as it takes, and nobody waits for it."""
        resources: dict[str, Any] = {"num_cpus": self._need.threads, "num_gpus": self._need.gpus}
        group = None
        if self._need.ranks > 1:
            bundle = {"CPU": float(self._need.threads), "GPU": self._need.gpus}
            group = placement_group([bundle] * self._need.ranks, strategy="PACK")
        workers = []
        for rank in range(self._need.ranks):
            if group is not None:
                resources["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=rank
                )
            workers.append(Worker.options(**resources).remote(self._options))
        checks = [worker.check.remote() for worker in workers]
        return _Slot(workers=workers, group=group, checks=checks, since=since or time.monotonic())

    def _admit(self) -> list[str]:
        """Moves the slots that have answered to the idle ones; what was wrong with others, in words."""
        faults = []
        for slot in list(self._starting):
            ready, waiting = ray.wait(slot.checks, num_returns=len(slot.checks), timeout=0)
            if waiting and not any(_error(check) for check in ready):
                continue
            self._starting.remove(slot)
            found = [fault for check in ready if (fault := _error(check))]
            if not found:
                slot.nodes = tuple(ray.get(slot.checks))
                self._idle.append(slot)
                continue
            _end(slot)
            faults.append(found[0])
            if time.monotonic() - slot.since < START_S:  # it may have been on its way to a node that died
                self._starting.append(self._start_slot(slot.since))
        return faults

    def _replace(self, slot: _Slot, why: str) -> None:
        """The lost slot's room may be gone with its node: the next one starts when there is any."""
        _end(slot)
        for place in (self._idle, self._busy):
            if slot in place:
                place.remove(slot)
        self._starting.append(self._start_slot())
        left = len(self._idle) + len(self._busy)
        self._warnings.append(f"a worker was lost ({why}); {left} left until another has room")

    # -- orders ------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        while self._orders and self._idle:
            slot = self._idle[-1]
            if reason := _silence(slot):
                self._replace(slot, reason)
                continue
            self._idle.remove(slot)
            slot.order = self._orders.popleft()
            slot.ranks = [worker.perform.remote(slot.order) for worker in slot.workers]
            self._busy.append(slot)

    def _collect(self) -> list[Outcome]:
        references = [reference for slot in self._busy for reference in slot.ranks]
        if not references:
            time.sleep(POLL_S)
            return []
        ended, _ = ray.wait(references, timeout=POLL_S)
        return [outcome for slot in list(self._busy) if (outcome := self._outcome(slot, ended))]

    def _outcome(self, slot: _Slot, ended: list[Any]) -> Outcome | None:
        """Of a slot whose order is done, or whose worker died."""
        reference = next((reference for reference in slot.ranks if reference in ended), None)
        if reference is None:
            return None
        order, slot.order, slot.ranks = slot.order, None, []
        assert order is not None
        if error := _error(reference):
            self._replace(slot, error.splitlines()[0])
            message = f"the worker of {order.task_id} died: {error}"
            return Outcome(task_id=order.task_id, result=Result.FAILED, error=message)
        self._busy.remove(slot)
        self._idle.append(slot)
        return ray.get(reference)

    def _refuse_orders(self) -> list[Outcome]:
        """Fails orders that wait for a worker when all are lost: a lost cluster must not hang a sweep."""
        alone = not (self._idle or self._busy)
        if not alone or any(time.monotonic() - slot.since < START_S for slot in self._starting):
            return []
        orders, self._orders = list(self._orders), deque[Order]()
        error = (
            f"no worker is left, and there was no room for another in {START_S:.0f} s; add nodes and rerun"
        )
        return [Outcome(task_id=order.task_id, result=Result.FAILED, error=error) for order in orders]


def _error(reference: Any) -> str | None:
    """Why a call that has ended failed, or None."""
    try:
        ray.get(reference)
    except RayTaskError as error:
        return str(error.cause)
    except RayError as error:
        return str(error) or type(error).__name__
    return None


def _silence(slot: _Slot) -> str | None:
    """Why a slot cannot be given an order, or None: it may have died since its last."""
    try:
        ray.get([worker.ping.remote() for worker in slot.workers], timeout=PING_S)
    except RayError as error:
        return (str(error) or "no answer").splitlines()[0]
    return None


def _end(slot: _Slot) -> None:
    for worker in slot.workers:
        with contextlib.suppress(RayError):
            ray.kill(worker, no_restart=True)
    if slot.group is not None:
        remove_placement_group(slot.group)


# --------------------------------------------------------------------------------------------------------
# Clusters


def _on_cluster(launch: LaunchConfig) -> tuple[Need, int]:
    """What a run takes of the cluster we are connected to, and the number of slots."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = sum(node.get("GPU", 0) for node in nodes)
    each = need(launch, num_gpus, where="the cluster")
    return each, slots(launch, each, nodes)


def _connect(address: str, **settings: Any) -> None:
    # Workers must import what the driver imports, wherever it was started.
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
            **settings,
        )
    except ConnectionError as error:
        raise ValueError(
            f"launch.address={address}: no Ray cluster was found ({error}); start one, or use local"
        ) from error
    finally:
        for name, handler in before.items():  # ray.init takes SIGTERM for itself
            signal.signal(name, handler)


def _probe(address: str) -> None:
    """Refuses an address where nobody listens; `auto` is what RAY_ADDRESS says, if it says anything."""
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if ":" not in named:
        return
    host, _, port = named.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_S):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"launch.address={address}: nobody answers at {named} ({error}); start a Ray head, or use local"
        ) from error
