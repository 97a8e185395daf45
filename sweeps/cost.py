"""What a plan will cost: seconds of each task from measured speeds, wall time by the driver's own scheduling.

Pure: speeds come from sweeps/speed.py. No torch, no Ray.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe.evaluate import Suite
from moe.plain import check, to_plain
from sweeps.config import LimitConfig
from sweeps.execute import execute
from sweeps.outcome import Order, Outcome, Result
from sweeps.plan import Plan, Task
from sweeps.speed import Shape, Speed, shape_of

CALIBRATE = "run python -m sweeps.calibrate with the same overrides"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """`wall_s` from the start of workers to the last task, `work_s` of all tasks one after the other.

    Both are None if the speed of a shape is unknown; `gpu_hours` is None also where no run takes a GPU.
    `leaves_out` names what was never measured and is not in the seconds.
    """

    slots: int
    wall_s: float | None
    work_s: float | None
    gpu_hours: float | None
    unknown: tuple[str, ...] = ()
    leaves_out: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """As plan.json has it."""
        return to_plain(self)


def predict(
    plan: Plan,
    speeds: Mapping[Shape, Speed],
    *,
    slots: int,
    gpus_per_run: float,
    start_s: float | None,
    fuse: int = 1,
) -> Prediction:
    """What the tasks to do will take on `slots` workers that take `start_s` to start."""
    shapes = {id: shape_of(task.trajectory) for id, task in plan.tasks.items()}
    unknown = sorted({str(shape) for shape in shapes.values() if shape not in speeds})
    if unknown:
        return Prediction(slots=slots, wall_s=None, work_s=None, gpu_hours=None, unknown=tuple(unknown))
    seconds = {id: task_seconds(task, speeds[shapes[id]]) for id, task in plan.tasks.items()}
    work_s = sum(seconds.values())
    leaves_out = {"evaluations": any(speeds[shape].item_s is None for shape in shapes.values())}
    leaves_out["the start of workers"] = bool(plan.tasks) and start_s is None
    return Prediction(
        slots=slots,
        wall_s=(start_s or 0.0) * bool(plan.tasks) + schedule(plan, seconds, slots, fuse),
        work_s=work_s,
        gpu_hours=work_s * gpus_per_run / 3600 if gpus_per_run else None,
        leaves_out=tuple(name for name, is_left_out in leaves_out.items() if is_left_out),
    )


def task_seconds(task: Task, speed: Speed) -> float:
    """Training, evaluating and the rest of one task."""
    evaluate_s = (speed.item_s or 0.0) * num_items(task)
    return speed.task_s + task.flops / speed.flops_per_s + evaluate_s


def num_items(task: Task) -> int:
    """Items that a task asks of its states: probes on the way (a rewind asks none), suites at its end."""
    every, probe = task.reading.probe_every, task.reading.probe
    probes = 0 if task.rewind else task.step // every - task.start // every
    probed_at_end = probes > 0 and task.step % every == 0
    suites = [s for s in task.evaluations if not (probed_at_end and s.eval_id == probe.eval_id)]
    return probes * _items(probe) + sum(map(_items, suites))


def _items(suite: Suite) -> int:
    return suite.questions.num_items * len(suite.questions.families)


def schedule(plan: Plan, seconds: Mapping[str, float], slots: int, fuse: int = 1) -> float:
    """Seconds until the last task ends: the driver's own loop, run in imagined time.

    Those of fused tasks are shares: a bundle takes their sum.
    """
    clock = _Clock(seconds, slots)
    execute(
        plan,
        clock,
        max_attempts=1,
        stopping=lambda: False,
        observe=lambda task, status, outcome: None,
        fuse=fuse,
    )
    return clock.now


class _Clock:
    """An executor that does nothing but know when each task would end."""

    def __init__(self, seconds: Mapping[str, float], slots: int):
        self.slots, self.now = slots, 0.0
        self._seconds, self._running = seconds, list[tuple[float, list[str]]]()

    def start(self) -> None:
        pass

    def submit(self, orders: Sequence[Order]) -> None:
        ids = [order.task_id for order in orders]
        heapq.heappush(self._running, (self.now + sum(self._seconds[id] for id in ids), ids))

    def wait(self, timeout_s: float) -> list[Outcome]:
        """What ends next; the time is then."""
        if not self._running:
            return []
        self.now, ids = heapq.heappop(self._running)
        return [Outcome(task_id=id, result=Result.DONE) for id in ids]

    def close(self) -> None:
        pass


def check_limit(limit: LimitConfig, plan: Plan, prediction: Prediction) -> None:
    """ValueError if the plan is above what the budget section allows, or if that cannot be told."""
    work_flops = plan.flops_todo + plan.flops_rewind
    narrow = "narrow the grid, or raise the limit"
    check(
        limit.max_flops is None or work_flops <= limit.max_flops,
        f"the plan trains {work_flops:.4g} FLOPs, above budget.max_flops={limit.max_flops}; {narrow}",
    )
    if limit.max_hours is None:
        return
    check(
        prediction.wall_s is not None,
        f"budget.max_hours={limit.max_hours:g} cannot be held to: no speed is known of "
        f"{'; '.join(prediction.unknown)}; {CALIBRATE}",
    )
    hours = (prediction.wall_s or 0.0) / 3600
    check(
        hours <= limit.max_hours,
        f"the plan is predicted to take {hours:.3g} h, above budget.max_hours={limit.max_hours:g}; {narrow}",
    )
