"""What travels between driver and worker: options, an order, its outcome. Numbers and names only."""

from dataclasses import dataclass
from enum import StrEnum

from moe.evaluate import Suite


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """HOW, for every task of one run."""

    store: str
    device: str
    threads: int
    keep_every: int
    checkpoint_s: float
    alive: str
    git_commit: str | None
    fuse: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A task as it travels: bring a trajectory to `step` and evaluate it there (see plan.Task)."""

    task_id: str
    trajectory_id: str
    step: int
    evaluations: tuple[Suite, ...]
    reading: "Reading"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The probe that a worker evaluates along the way."""

    probe: Suite
    probe_every: int


class Result(StrEnum):
    """How an attempt ended. BUSY: another process writes the trajectory. STOPPED: the driver asked for it.
    LOST: a state it needs turned out corrupt and was set aside."""

    DONE = "done"
    BUSY = "busy"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """`wall_s` of a task that shared its steps with others is what it did alone and its share of these."""

    task_id: str
    result: Result
    trained_flops: float = 0.0
    wall_s: float = 0.0
    error: str | None = None
    warnings: tuple[str, ...] = ()
