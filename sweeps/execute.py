"""The driver's loop: hands ready tasks to an executor until nothing more can be done."""

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from sweeps.fusion import bundles
from sweeps.outcome import Order, Outcome, Result
from sweeps.plan import Plan, Task

BUSY_RETRY_S = 1.0  # a killed driver's worker may hold a trajectory's lock for another second


class Executor(Protocol):
    """Runs orders somewhere, a bundle in each of its `slots`, its orders together. `start` makes its workers
    ready or raises ValueError; `wait` returns what ended, after at most `timeout_s` if nothing did."""

    @property
    def slots(self) -> int: ...
    def start(self) -> None: ...
    def submit(self, orders: Sequence[Order]) -> None: ...
    def wait(self, timeout_s: float) -> list[Outcome]: ...
    def close(self) -> None: ...


class Status(StrEnum):
    TODO = "todo"
    RUNNING = "running"
    WAITING = "waiting"  # another process writes the trajectory
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    DIVERGED = "diverged"
    LOST = "lost"


@dataclass
class Execution:
    """What became of each task of a plan."""

    status: dict[str, Status]
    errors: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    spent_flops: float = 0.0
    work_s: float = 0.0
    stopped: bool = False


def execute(
    plan: Plan,
    executor: Executor,
    *,
    max_attempts: int,
    stopping: Callable[[], bool],
    observe: Callable[[Task, Status, Outcome | None], None],
    fuse: int = 1,
) -> Execution:
    """Runs every task whose needs are met, longest remaining path first; siblings of a failure go on.

    A slot is given up to `fuse` tasks that may be trained together, once no other slot is idle.
    """
    return _Driver(plan, executor, max_attempts, stopping, observe, fuse).run()


class _Driver:
    def __init__(self, plan: Plan, executor: Executor, max_attempts: int, stopping, observe, fuse: int):
        self.plan, self.executor, self.max_attempts = plan, executor, max_attempts
        self.stopping, self.observe, self.fuse = stopping, observe, fuse
        self.tasks = plan.tasks
        self.execution = Execution(status=dict.fromkeys(plan.tasks, Status.TODO))
        self.waiting_for = {
            task.id: {need for need in task.needs if need in plan.tasks} for task in plan.tasks.values()
        }
        self.dependants: dict[str, list[str]] = defaultdict(list)
        for task_id, needs in self.waiting_for.items():
            for need in needs:
                self.dependants[need].append(task_id)
        self.attempts: dict[str, int] = defaultdict(int)
        self.running: dict[str, set[str]] = {}  # each task that is out, and those of its bundle that are
        self.busy = 0  # slots that have a bundle
        self.ready: list[tuple[float, str]] = []
        self.later: list[tuple[float, str]] = []  # (not before, task)
        for task_id, needs in self.waiting_for.items():
            if not needs:
                self._push(task_id)

    def run(self) -> Execution:
        while True:
            self._submit_ready()
            if not self.running and (self.stopping() or not (self.ready or self.later)):
                break
            if not self.running:
                time.sleep(min(0.2, BUSY_RETRY_S))  # all that is left is being written by another process
            for outcome in self.executor.wait(timeout_s=0.2):
                bundle = self.running.pop(outcome.task_id)
                bundle.discard(outcome.task_id)
                self.busy -= not bundle
                self.execution.spent_flops += outcome.trained_flops
                self.execution.work_s += outcome.wall_s
                self.execution.warnings.extend(outcome.warnings)
                self._settle(outcome)
        self.execution.stopped = self.stopping()
        return self.execution

    def _submit_ready(self) -> None:
        if self.stopping():
            return
        now = time.monotonic()
        for entry in [e for e in self.later if e[0] <= now]:
            self.later.remove(entry)
            self._push(entry[1])
        heads = []
        while self.ready and self.busy + len(heads) < self.executor.slots:
            heads.append(self.tasks[heapq.heappop(self.ready)[1]])
        for bundle in self._bundles(heads):
            self.busy += 1
            out = {task.id for task in bundle}
            for task in bundle:
                self.running[task.id] = out
                self._set(task.id, Status.RUNNING)
            self.executor.submit([_order(task) for task in bundle])

    def _bundles(self, heads: list[Task]) -> list[list[Task]]:
        """What has failed is tried again alone: what is wrong may be that it was not."""
        if self.fuse == 1 or not heads or not self.ready:
            return [[head] for head in heads]
        alone = [head for head in heads if self.attempts[head.id]]
        ready = [self.tasks[id] for _, id in sorted(self.ready)]
        filled = bundles(
            [head for head in heads if not self.attempts[head.id]],
            [task for task in ready if not self.attempts[task.id]],
            self.fuse,
        )
        taken = {task.id for bundle in filled for task in bundle}
        self.ready = [entry for entry in self.ready if entry[1] not in taken]
        heapq.heapify(self.ready)
        return [[head] for head in alone] + filled

    def _settle(self, outcome: Outcome) -> None:
        task_id = outcome.task_id
        match outcome.result:
            case Result.DONE:
                self._set(task_id, Status.DONE, outcome)
                for other in self.dependants[task_id]:
                    self.waiting_for[other].discard(task_id)
                    if not self.waiting_for[other] and self.execution.status[other] is Status.TODO:
                        self._push(other)
            case Result.BUSY:
                self._set(task_id, Status.WAITING)
                self.later.append((time.monotonic() + BUSY_RETRY_S, task_id))
            case Result.STOPPED:
                self._set(task_id, Status.TODO)
            case Result.DIVERGED:
                self._end(task_id, Status.DIVERGED, Status.DIVERGED, outcome)
            case Result.LOST:
                self._end(task_id, Status.LOST, Status.LOST, outcome)
            case Result.FAILED:
                self.attempts[task_id] += 1
                self.execution.errors[task_id] = outcome.error or ""
                if self.attempts[task_id] < self.max_attempts:
                    self._warn_of_retry(task_id)
                    self._set(task_id, Status.TODO, outcome)
                    self._push(task_id)
                else:
                    self._end(task_id, Status.FAILED, Status.BLOCKED, outcome)

    def _warn_of_retry(self, task_id: str) -> None:
        error = (self.execution.errors[task_id].strip().splitlines() or ["no error was given"])[-1]
        attempt = f"attempt {self.attempts[task_id]} of {self.max_attempts}"
        self.execution.warnings.append(f"{task_id}: {attempt} failed ({error}); it is tried again")

    def _end(self, task_id: str, status: Status, of_dependants: Status, outcome: Outcome | None) -> None:
        self._set(task_id, status, outcome)
        for other in self.dependants[task_id]:
            if self.execution.status[other] is Status.TODO:
                self._end(other, of_dependants, of_dependants, None)

    def _set(self, task_id: str, status: Status, outcome: Outcome | None = None) -> None:
        self.execution.status[task_id] = status
        self.observe(self.tasks[task_id], status, outcome)

    def _push(self, task_id: str) -> None:
        heapq.heappush(self.ready, (-self.plan.remaining_flops[task_id], task_id))


def _order(task: Task) -> Order:
    return Order(
        task_id=task.id,
        trajectory_id=task.trajectory.id,
        step=task.step,
        evaluations=task.evaluations,
        reading=task.reading,
    )
