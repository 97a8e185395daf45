"""From a configuration to cells: the states a question needs, its controls and their FLOPs.

No torch here. A cell is a path from random init, or a given checkpoint, to one leaf state; the states marked
on the way (base, start, stable) are evaluated as well.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from moe import flops
from moe.config import EvaluateConfig, LearningRate, ModelConfig, Schedule, TrainConfig
from moe.data import DataConfig, data_identity
from moe.evaluate import Suite, suite_of
from moe.operator import Operator
from moe.plain import canonical_json, check, digest
from sweeps.config import Control, SweepConfig
from sweeps.growth import Stage, places_of, stages_of
from sweeps.outcome import Reading
from sweeps.source import source_of
from sweeps.trajectory import Address, Kind, Source, Trajectory, child

BRANCH = "branch"
SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One final metric: the full suite at `leaf`. `kind` is branch, scratch, or the control it serves as.

    `growths` are the states before and after each growth, `stable` the one before the anneal.
    """

    kind: str
    config: SweepConfig
    trunk: Trajectory
    leaf: Address
    growths: tuple[tuple[Address, Address], ...] = ()
    stable: Address | None = None
    controls: "dict[Control, Cell]" = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Hash of (trajectory, horizon, eval_id, k); k = 1 horizon state is evaluated."""
        return digest([self.leaf.trajectory.id, self.leaf.step, self.eval_id, 1])

    @property
    def full(self) -> Suite:
        return _suite(self.config.evaluate, data_json(self.config.data), "full", self.config.train.seq_len)

    @property
    def probe(self) -> Suite:
        return _suite(self.config.evaluate, data_json(self.config.data), "probe", self.config.train.seq_len)

    def suite_at(self, role: str) -> Suite:
        """The full suite is asked of the final state, the probe of every other."""
        return self.full if role == "final" else self.probe

    @property
    def eval_id(self) -> str:
        return self.full.eval_id

    @property
    def reading(self) -> Reading:
        return Reading(probe=self.probe, probe_every=self.config.evaluate.probe_every)

    @property
    def base(self) -> Address | None:
        """The state before the first growth."""
        return self.growths[0][0] if self.growths else None

    @property
    def start(self) -> Address | None:
        """The state just after the first growth."""
        return self.growths[0][1] if self.growths else None

    @property
    def growth(self) -> str:
        """Its growths in words and in order: "interposition → duplicate"."""
        return " → ".join(start.trajectory.operator.label for _, start in self.growths)

    def states(self) -> dict[str, Address]:
        """The evaluated states by role; those of a second growth are `base_2` and `start_2`."""
        roles = {}
        for nth, (base, start) in enumerate(self.growths, start=1):
            mark = "" if nth == 1 else f"_{nth}"
            roles |= {f"base{mark}": base, f"start{mark}": start}
        stable = {} if self.stable is None else {"stable": self.stable}
        return {**roles, **stable, "final": self.leaf}

    @property
    def sunk_flops(self) -> float | None:
        """FLOPs before the first growth; none for a control that never grows and is not scratch."""
        if self.base is not None:
            return self.base.flops
        return None if self.kind == Control.CONTINUED else 0.0

    @property
    def total_flops(self) -> float:
        return self.leaf.flops

    @property
    def extra_flops(self) -> float | None:
        return None if self.sunk_flops is None else self.total_flops - self.sunk_flops


def resolve(config: SweepConfig) -> Cell:
    """The cell that a configuration asks for, with its controls; ValueError if its budget buys nothing."""
    trunk = _trunk(config, config.trunk.steps)
    grown = _grown_model(config)
    if config.growth.step == 0 and trunk.source is None:
        return _scratch(SCRATCH, config, trunk, grown, _budget(config, sunk_flops=0.0))
    base = _trunk_state(config, trunk)
    cell = _branch(BRANCH, config, trunk, base, _budget(config, sunk_flops=base.flops))
    makers = {
        Control.CONTINUED: lambda: _continued(config, trunk, cell),
        Control.SCRATCH_EXTRA: lambda: _scratch(
            Control.SCRATCH_EXTRA, config, trunk, grown, cell.total_flops - base.flops, _anneal_flops(cell)
        ),
        Control.SCRATCH_TOTAL: lambda: _scratch(
            Control.SCRATCH_TOTAL, config, trunk, grown, cell.total_flops, _anneal_flops(cell)
        ),
        Control.SHAM: lambda: _branch(
            Control.SHAM, config, trunk, base, cell.total_flops - base.flops, _anneal_flops(cell)
        ),
    }
    cell.controls.update({name: makers[name]() for name in config.controls})
    return cell


def _stages(config: SweepConfig) -> tuple[Stage, ...]:
    return stages_of(config.growth, config.seed, config.train.lr)


def operators_of(config: SweepConfig) -> list[Operator]:
    """Every growth of a configuration, reduced to what acts."""
    return [stage.operator for stage in _stages(config)]


def _grown_model(config: SweepConfig) -> ModelConfig:
    """The final architecture; ValueError if one of the growths does not fit what it grows."""
    model, path = config.model, "growth"
    for operator in operators_of(config):
        try:
            model = operator.apply_to(model)
        except ValueError as error:
            raise ValueError(str(error).replace("growth.", f"{path}.")) from None
        path += ".then"
    return model


def _trunk_state(config: SweepConfig, trunk: Trajectory) -> Address:
    step, decay_from = config.growth.step, config.trunk.decay_from
    if decay_from is None or step <= decay_from:
        return trunk.at(step)
    return _anneal(trunk.at(decay_from), config.trunk.steps - decay_from).at(step - decay_from)


def _branch(
    kind: str,
    config: SweepConfig,
    trunk: Trajectory,
    base: Address,
    extra_flops: float,
    anneal_flops: float | None = None,
) -> Cell:
    """Grows `base` and spends the extra budget, growing again on the way where the cell is a chain."""
    stages = list(_stages(config))
    if kind == Control.SHAM:  # the first growth's optimizer and rate, without its growth
        stages = [stages[0]._replace(operator=Operator())]
    growths, origin, spent, path = [], base, 0.0, "growth"
    for stage, after in zip(stages, places_of(stages, extra_flops), strict=False):
        path += ".then"
        trajectory = _grown(config, origin, stage, None)
        steps = flops.whole_steps(after - spent, trajectory.flops_per_step)
        _check_place(f"{path}.after_extra_flops={after:.6g}", after, extra_flops, steps, trajectory)
        growths.append((origin, trajectory.at(0)))
        origin, spent = trajectory.at(steps), spent + steps * trajectory.flops_per_step
    if len(stages) > 1 and anneal_flops is None:
        anneal_flops = config.budget.decay_fraction * extra_flops

    def make(total_steps: int | None) -> Trajectory:
        return _grown(config, origin, stages[-1], total_steps)

    branch, stable, leaf = _spend(config, make, extra_flops - spent, anneal_flops, kind)
    growths.append((origin, branch.at(0)))
    return Cell(kind=kind, config=config, trunk=trunk, growths=tuple(growths), stable=stable, leaf=leaf)


def _grown(config: SweepConfig, origin: Address, stage: Stage, total_steps: int | None) -> Trajectory:
    rate = _learning_rate(config.train.schedule, stage.lr, stage.warmup_steps, total_steps)
    return child(
        origin.trajectory,
        origin.step,
        kind=Kind.BRANCH,
        operator=stage.operator,
        learning_rate=rate,
        optimizer_state=stage.optimizer_state,
        at_growth=config.at_growth,
    )


def _check_place(
    field: str, after_extra_flops: float, extra_flops: float, steps: int, trajectory: Trajectory
) -> None:
    check(
        after_extra_flops < extra_flops,
        f"{field} is not below the {extra_flops:.6g} FLOPs that the budget leaves after the first growth; "
        "lower it or raise the budget",
    )
    check(
        steps >= 1,
        f"{field} leaves no whole step ({trajectory.flops_per_step:.3g} FLOPs) between two growths; raise "
        "it, or the budget where it is null",
    )


def _scratch(
    kind: str,
    config: SweepConfig,
    trunk: Trajectory,
    model: ModelConfig,
    budget_flops: float,
    anneal_flops: float | None = None,
) -> Cell:
    def make(total_steps: int | None) -> Trajectory:
        return _root(Kind.SCRATCH, config, model, total_steps)

    _, stable, leaf = _spend(config, make, budget_flops, anneal_flops, kind)
    return Cell(kind=kind, config=config, trunk=trunk, stable=stable, leaf=leaf)


def _continued(config: SweepConfig, trunk: Trajectory, cell: Cell) -> Cell:
    """The trunk trained on to the branch's total FLOPs: what the checkpoint gives if nobody grows it."""

    def make(total_steps: int | None) -> Trajectory:
        return _trunk(config, total_steps)

    budget_flops = cell.total_flops - trunk.at(0).flops
    _, stable, leaf = _spend(config, make, budget_flops, _anneal_flops(cell), Control.CONTINUED)
    return Cell(kind=Control.CONTINUED, config=config, trunk=trunk, stable=stable, leaf=leaf)


class _Spent(NamedTuple):
    trajectory: Trajectory
    stable: Address | None
    leaf: Address


def _spend(
    config: SweepConfig,
    make: Callable[[int | None], Trajectory],
    budget_flops: float,
    anneal_flops: float | None,
    kind: str,
) -> _Spent:
    """Splits a budget into whole steps at the trajectory's rate and whole steps of its anneal.

    `make(total_steps)` gives the trajectory for a horizon, which only a cosine schedule looks at. A control
    spends the `anneal_flops` its branch spent, floored to whole steps but at least one.
    """
    cosine = config.train.schedule is Schedule.COSINE
    per_step = make(1 if cosine else None).flops_per_step
    steps = flops.whole_steps(budget_flops, per_step)
    if steps < 1:
        raise ValueError(
            f"{_budget_field(config)} leaves {max(budget_flops, 0):.3g} FLOPs for {kind} at "
            f"growth.step={config.growth.step}, less than one step ({per_step:.3g}); raise the budget"
        )
    trajectory = make(steps if cosine else None)
    if anneal_flops is None:
        anneal_flops = config.budget.decay_fraction * steps * per_step
    if anneal_flops == 0 or steps == 1:
        return _Spent(trajectory, None, trajectory.at(steps))
    annealed = min(max(flops.whole_steps(anneal_flops, per_step), 1), steps - 1)
    stable = trajectory.at(steps - annealed)
    return _Spent(trajectory, stable, _anneal(stable, annealed).at(annealed))


def _budget(config: SweepConfig, sunk_flops: float) -> float:
    if config.budget.extra_flops is not None:
        return config.budget.extra_flops
    assert config.budget.total_flops is not None
    return config.budget.total_flops - sunk_flops


def _budget_field(config: SweepConfig) -> str:
    name = "extra_flops" if config.budget.extra_flops is not None else "total_flops"
    return f"budget.{name}={getattr(config.budget, name):.6g}"


def _anneal_flops(cell: Cell) -> float:
    return 0.0 if cell.stable is None else cell.leaf.flops - cell.stable.flops


def _anneal(stable: Address, steps: int) -> Trajectory:
    """Linear decay to zero from the rate at the stable state; `steps` is part of its identity."""
    trajectory = stable.trajectory
    peak = trajectory.learning_rate.at(stable.step)
    decay = LearningRate(schedule=Schedule.DECAY, peak=peak, total_steps=steps)
    return child(trajectory, stable.step, kind=Kind.ANNEAL, learning_rate=decay)


def _trunk(config: SweepConfig, horizon: int | None) -> Trajectory:
    source = source_of(config, data_json(config.data)) if config.trunk.source else None
    return _root(Kind.TRUNK, config, config.model, horizon, source)


def _root(
    kind: Kind, config: SweepConfig, model: ModelConfig, horizon: int | None, source: Source | None = None
) -> Trajectory:
    train = config.train
    learning_rate = _learning_rate(train.schedule, train.lr, train.warmup_steps, horizon)
    return _intern_root(kind, model, data_json(config.data), train, config.seed, learning_rate, source)


def _learning_rate(schedule: Schedule, peak: float, warmup_steps: int, horizon: int | None) -> LearningRate:
    total_steps = horizon if schedule is Schedule.COSINE else None
    return LearningRate(schedule=schedule, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps)


@lru_cache(maxsize=4096)
def _intern_root(
    kind: Kind,
    model: ModelConfig,
    data: str,
    train: TrainConfig,
    seed: int,
    learning_rate: LearningRate,
    source: Source | None,
) -> Trajectory:
    return Trajectory(
        kind=kind,
        model=model,
        data=data,
        train=train,
        seed=seed,
        learning_rate=learning_rate,
        source=source,
    )


@lru_cache(maxsize=64)
def data_json(data: DataConfig) -> str:
    """The canonical JSON of what is read. A corpus is digested once per process."""
    return canonical_json(data_identity(data))


@lru_cache(maxsize=256)
def _suite(evaluate: EvaluateConfig, data: str, name: str, seq_len: int) -> Suite:
    return suite_of(evaluate, json.loads(data), name, seq_len=seq_len)


def all_cells(requested: Iterable[Cell]) -> dict[str, Cell]:
    """Requested cells and their controls by id; a cell asked for wins over a control of equal science."""
    requested = list(requested)
    cells = {cell.id: cell for cell in requested}
    for cell in requested:
        for control in cell.controls.values():
            cells.setdefault(control.id, control)
    return cells
