"""Which tasks may be trained as one model (`launch.fuse`), and how ready ones are bundled. Pure; no torch."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sweeps.plan import Plan, Task
from sweeps.speed import Shape, shape_of
from sweeps.trajectory import Trajectory


def fused_shape(task: Task) -> Shape | None:
    """Tasks of one shape may be fused: equal model, batch, precision and data source, whatever their seeds,
    rates and steps. None for a task that goes alone."""
    if task.start == task.step:
        return None  # evaluations, or a growth: no step to share
    if task.rewind:
        return None  # compared bit by bit with what was trained before, mostly alone
    return shape_of(task.trajectory)


def bundles(heads: Sequence[Task], others: Iterable[Task], fuse: int) -> list[list[Task]]:
    """A bundle of at most `fuse` tasks for each head, filled with `others`, which come most urgent first.

    All grow alike, since each has a worker of its own. The nearest in steps left joins first, and none with
    more than twice or less than half as many: a bundle is over when its longest is, and what waits for a
    shorter one waits too.
    """
    waiting: dict[Shape, list[Task]] = defaultdict(list)
    for task in others:
        shape = fused_shape(task)
        if shape is not None:
            waiting[shape].append(task)
    filled = [[head] for head in heads]
    for _ in range(fuse - 1):
        for bundle in filled:
            shape, steps = fused_shape(bundle[0]), _steps(bundle[0])
            if shape is None:
                continue
            alike = [task for task in waiting[shape] if steps <= 2 * _steps(task) <= 4 * steps]
            if alike:
                nearest = min(alike, key=lambda task: abs(_steps(task) - steps))
                waiting[shape].remove(nearest)
                bundle.append(nearest)
    return filled


def most_alike(plan: Plan) -> int:
    """The most trajectories of one shape that are still to be trained; one that starts from a state of
    another of these is not counted, since it follows it."""
    alike: dict[Shape, dict[str, Trajectory]] = defaultdict(dict)
    for task in plan.tasks.values():
        shape = fused_shape(task)
        if shape is not None:
            alike[shape][task.trajectory.id] = task.trajectory
    first = [
        [each for each in group.values() if each.parent is None or each.parent.trajectory.id not in group]
        for group in alike.values()
    ]
    return max(map(len, first), default=0)


def described(plan: Plan, fuse: int, on_gpu: bool) -> str | None:
    """What there is to fuse, in words; None where nobody would ask."""
    alike = most_alike(plan)
    if fuse > 1:
        return f"launch.fuse={fuse}: up to {min(fuse, alike)} of {alike} runs of equal shape at a time"
    if on_gpu and alike > 1:
        return f"launch.fuse=R: up to {alike} runs of equal shape at a time, as one model of a worker"
    return None


def _steps(task: Task) -> int:
    return task.step - task.start
