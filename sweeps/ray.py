"""The executor that works in Ray actors: one long-lived worker a slot, torch imported once in each.

The only module that imports ray. Ray's own retries are off: whether a task is tried again is the driver's
business, and a dead worker is replaced.
"""

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from sweeps.outcome import Order, Outcome, Result
from sweeps.worker import WorkerOptions, perform

START_S = 30.0  # a worker that imports torch answers in about 5 s
PROBE_S = 5.0  # ray.init hangs for minutes on an address where nobody listens


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    def __init__(self, options: WorkerOptions):
        import torch

        # Ray sets OMP_NUM_THREADS=1 in its workers; more threads than cores cost up to 20x.
        torch.set_num_threads(options.threads)
        self._options = options

    def perform(self, order: Order) -> Outcome:
        return perform(order, self._options)

    def sees(self, path: str) -> bool:
        """Whether the store's file system is the driver's."""
        return os.path.exists(path)


class RayExecutor:
    """`slots` workers of `options.threads` CPUs and `gpus_per_run` GPUs each."""

    def __init__(self, options: WorkerOptions, *, slots: int, gpus_per_run: float, address: str):
        self._options, self._gpus_per_run, self.slots = options, gpus_per_run, slots
        self._init_ray(address)
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Order]] = {}

    def start(self) -> None:
        """Makes the workers, unless they are there already, each of which has answered and seen the store."""
        if self._idle or self._running:
            return
        workers = [self._start_worker() for _ in range(self.slots)]
        path = str(Path(self._options.store) / "store.json")
        try:
            seen = ray.get([worker.sees.remote(path) for worker in workers], timeout=START_S)
        except GetTimeoutError:
            raise ValueError(
                f"launch.workers={self.slots}: the cluster had no room for all of them in {START_S:.0f} s; "
                "wait for others to end, or lower launch.workers"
            ) from None
        if not all(seen):
            raise ValueError(
                f"launch.store={self._options.store} is not visible on every node of the cluster; "
                "put it on a file system that all nodes share"
            )
        self._idle = workers

    def submit(self, order: Order) -> None:
        worker = self._idle.pop()
        self._running[worker.perform.remote(order)] = (worker, order)

    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self._running:
            return []
        ended, _ = ray.wait(list(self._running), timeout=timeout_s)
        return [self._collect(reference) for reference in ended]

    def close(self) -> None:
        ray.shutdown()

    def _collect(self, reference: Any) -> Outcome:
        worker, order = self._running.pop(reference)
        try:
            outcome: Any = ray.get(reference)
        except RayError as error:
            self._idle.append(self._start_worker())
            message = f"the worker of {order.task_id} died: {error}"
            return Outcome(task_id=order.task_id, result=Result.FAILED, error=message)
        self._idle.append(worker)
        return outcome

    def _start_worker(self) -> Any:
        options = {"num_cpus": self._options.threads, "num_gpus": self._gpus_per_run}
        return Worker.options(**options).remote(self._options)

    def _init_ray(self, address: str) -> None:
        settings: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        if address == "local":
            settings["num_cpus"] = self.slots * self._options.threads
        elif address != "auto":
            _probe(address)
        # Workers must import what the driver imports, wherever it was started.
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._connect(address, paths, settings)
        finally:
            for name, handler in before.items():  # ray.init takes SIGTERM for itself
                signal.signal(name, handler)
        self._check_resources()

    @staticmethod
    def _connect(address: str, paths: list[str], settings: dict[str, Any]) -> None:
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

    def _check_resources(self) -> None:
        have = ray.cluster_resources()
        for name, each in (("CPU", self._options.threads), ("GPU", self._gpus_per_run)):
            if each * self.slots > have.get(name, 0):
                ray.shutdown()
                raise ValueError(
                    f"launch.workers={self.slots} with {each:g} {name} each need {each * self.slots:g}, "
                    f"and the cluster has {have.get(name, 0):g}; lower launch.workers"
                )


def _probe(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_S):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"launch.address={address}: nobody answers there ({error}); start a Ray head, or use local"
        ) from error
