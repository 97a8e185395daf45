"""The plan: all states that a set of cells needs, merged into one tree of tasks. Pure; no torch, no Ray.

A task advances one trajectory to its next tap. It needs the tap before it, or the state its trajectory
starts from. What is stored is not planned again.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from moe import flops
from moe.config import Schedule
from moe.evaluate import Suite
from sweeps.cell import Cell, all_cells, resolve
from sweeps.outcome import Reading
from sweeps.trajectory import Address, Trajectory

StateKey = tuple[str, int]
BYTES_PER_PARAM = 12  # fp32 weights and two moments


class Stored(Protocol):
    """What the planner asks of a store."""

    def stored_steps(self, trajectory_id: str) -> list[int]: ...
    def kept_steps(self, trajectory_id: str) -> list[int]: ...
    def evaluated(self, trajectory_id: str) -> set[tuple[int, str]]: ...
    def diverged(self, trajectory_id: str) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Task:
    """Brings `trajectory` to `step`, stores that state and evaluates it with each suite of `evaluations`.

    A rewind re-derives a state below the last one stored and writes nothing else. `start` is the step that
    training begins from (equal to `step` if only evaluations are missing).
    """

    trajectory: Trajectory
    step: int
    start: int
    needs: tuple[str, ...]
    evaluations: tuple[Suite, ...]
    rewind: bool
    reading: Reading

    @property
    def id(self) -> str:
        return f"{self.trajectory.id}@{self.step}"

    @property
    def flops(self) -> float:
        return (self.step - self.start) * self.trajectory.flops_per_step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`remaining_flops` of a task is the longest path of work that waits for it, itself included."""

    requested: list[Cell]
    cells: dict[str, Cell]
    trajectories: dict[str, Trajectory]
    tasks: dict[str, Task]
    cached_tasks: int
    diverged: set[StateKey]
    flops_naive: float
    flops_shared: float
    flops_lost_to_cosine: float
    remaining_flops: dict[str, float] = field(default_factory=dict)

    @property
    def flops_rewind(self) -> float:
        return sum(task.flops for task in self.tasks.values() if task.rewind)

    @property
    def flops_todo(self) -> float:
        return sum(task.flops for task in self.tasks.values() if not task.rewind)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the states that are still to be written at taps."""
        written = [
            task.trajectory for task in self.tasks.values() if task.start != task.step or task.step == 0
        ]
        return sum(BYTES_PER_PARAM * flops.total_params(trajectory.model) for trajectory in written)

    def summary(self) -> dict[str, Any]:
        """The numbers of plan.json."""
        requested = {cell.id for cell in self.requested}
        return {
            "requested": len(self.requested),
            "cells": len(requested),
            "controls": len(self.cells) - len(requested),
            "trajectories": len(self.trajectories),
            "tasks": len(self.tasks) + self.cached_tasks,
            "todo_tasks": len(self.tasks),
            "cached_tasks": self.cached_tasks,
            "flops_naive": self.flops_naive,
            "flops_shared": self.flops_shared,
            "flops_rewind": self.flops_rewind,
            "flops_todo": self.flops_todo,
            "disk_bytes": self.disk_bytes,
        }


def make_plan(requested: Iterable[Cell], store: Stored) -> Plan:
    """Merges cells into the fewest tasks that give every metric not yet stored."""
    requested = list(requested)
    cells = all_cells(requested)
    taps, trajectories, readings = _taps(cells.values())
    planner = _Planner(store, taps, trajectories, readings)
    planner.plan()
    plan = Plan(
        requested=requested,
        cells=cells,
        trajectories=trajectories,
        tasks=planner.tasks,
        cached_tasks=planner.cached,
        diverged=planner.diverged,
        flops_naive=sum(cell.leaf.trained_flops for cell in cells.values()),
        flops_shared=_shared_flops(taps, trajectories),
        flops_lost_to_cosine=_lost_to_cosine(requested, _shared_flops(taps, trajectories)),
    )
    order = {trajectory_id: place for place, trajectory_id in enumerate(trajectories)}
    plan.remaining_flops.update(_remaining(planner.tasks, order))
    return plan


def _shared_flops(taps: "Taps", trajectories: dict[str, Trajectory]) -> float:
    """FLOPs from an empty store: every trajectory once, up to its last tap."""
    return sum(trajectories[id].flops_per_step * max(steps) for id, steps in taps.items())


def _lost_to_cosine(requested: list[Cell], shared_flops: float) -> float:
    """What the same cells would save with a constant rate: a cosine's horizon is part of its identity."""
    if all(cell.config.train.schedule is not Schedule.COSINE for cell in requested):
        return 0.0
    constant = []
    for cell in requested:
        train = replace(cell.config.train, schedule=Schedule.CONSTANT)
        constant.append(resolve(replace(cell.config, train=train)))
    taps, trajectories, _ = _taps(all_cells(constant).values())
    return shared_flops - _shared_flops(taps, trajectories)


Taps = dict[str, dict[int, dict[str, Suite]]]


def _taps(cells: Iterable[Cell]) -> tuple[Taps, dict[str, Trajectory], dict[str, Reading]]:
    """{trajectory_id: {step: {eval_id: suite}}} of all cells; the trajectories, parents first; and what
    each is probed with and read from, as the first cell that needs it says."""
    taps: Taps = defaultdict(dict)
    trajectories: dict[str, Trajectory] = {}
    readings: dict[str, Reading] = {}

    def visit(trajectory: Trajectory) -> None:
        if trajectory.id in trajectories:
            return
        if trajectory.parent is not None:
            visit(trajectory.parent.trajectory)
        trajectories[trajectory.id] = trajectory
        readings[trajectory.id] = cell.reading

    for cell in cells:
        for role, address in cell.states().items():
            visit(address.trajectory)
            suites = taps[address.trajectory.id].setdefault(address.step, {})
            suite = cell.suite_at(role)
            suites[suite.eval_id] = suite
        _tap_parents(cell.leaf, taps)
    return taps, trajectories, readings


def _tap_parents(address: Address, taps: Taps) -> None:
    parent = address.trajectory.parent
    if parent is not None:
        taps[parent.trajectory.id].setdefault(parent.step, {})
        _tap_parents(parent, taps)


class _Planner:
    """Walks trajectories children first, so that a parent knows which of its states are still needed."""

    def __init__(
        self, store: Stored, taps: Taps, trajectories: dict[str, Trajectory], readings: dict[str, Reading]
    ):
        self.store, self.taps, self.trajectories, self.readings = store, taps, trajectories, readings
        self.tasks: dict[str, Task] = {}
        self.cached = 0
        self.diverged: set[StateKey] = set()
        self.wanted: dict[str, set[int]] = defaultdict(set)  # states that children start from

    def plan(self) -> None:
        for trajectory in self.trajectories.values():
            self._mark_diverged(trajectory)
        for trajectory in reversed(self.trajectories.values()):
            self._plan_trajectory(trajectory)

    def _mark_diverged(self, trajectory: Trajectory) -> None:
        parent, at = trajectory.parent, self.store.diverged(trajectory.id)
        orphan = parent is not None and parent.key in self.diverged
        for step in self.taps[trajectory.id]:
            if orphan or (at is not None and step >= at):
                self.diverged.add((trajectory.id, step))

    def _plan_trajectory(self, trajectory: Trajectory) -> None:
        stored, kept = self.store.stored_steps(trajectory.id), self.store.kept_steps(trajectory.id)
        evaluated = self.store.evaluated(trajectory.id)
        taps, wanted = self.taps[trajectory.id], self.wanted[trajectory.id]
        previous: Task | None = None
        for step in sorted(taps):
            if (trajectory.id, step) in self.diverged:
                continue
            missing = tuple(suite for id, suite in taps[step].items() if (step, id) not in evaluated)
            if not missing and (step in kept or step not in wanted):
                if taps[step] or step in kept:
                    self.cached += 1
                continue
            start, needs = self._start(trajectory, step, stored, previous)
            rewind = step not in stored and bool(stored) and step < stored[-1]
            reading = self.readings[trajectory.id]
            previous = Task(trajectory, step, start, needs, missing, rewind, reading)
            self.tasks[previous.id] = previous

    def _start(
        self, trajectory: Trajectory, step: int, stored: list[int], previous: Task | None
    ) -> tuple[int, tuple[str, ...]]:
        """Where training begins and what must be done before: one process at a time writes a trajectory, so
        its tasks form a chain, the evaluations of what is stored included."""
        start = max([s for s in stored if s <= step] + ([previous.step] if previous else []), default=None)
        if previous is not None:
            assert start is not None
            return start, (previous.id,)
        if start is not None:
            return start, ()
        parent = trajectory.parent
        if parent is None or parent.step in self.store.kept_steps(parent.trajectory.id):
            return 0, ()
        self.wanted[parent.trajectory.id].add(parent.step)
        return 0, (str(parent),)


def _remaining(tasks: dict[str, Task], order: dict[str, int]) -> dict[str, float]:
    """FLOPs of the longest path that begins with each task; `order` puts parents before children."""
    remaining = {task.id: task.flops for task in tasks.values()}
    for task in sorted(tasks.values(), key=lambda t: (order[t.trajectory.id], t.step), reverse=True):
        for need in task.needs:
            if need in tasks:
                remaining[need] = max(remaining[need], tasks[need].flops + remaining[task.id])
    return remaining
