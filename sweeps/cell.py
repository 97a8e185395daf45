"""From a configuration to cells: the states a question needs, its controls and their FLOPs.

No torch here. A cell is a path from random init to one leaf state; the states marked on the way
(base, start, stable) are evaluated as well.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from moe import flops
from moe.config import EvaluateConfig, LearningRate, ModelConfig, Schedule, TrainConfig
from moe.data import DataConfig, data_identity
from moe.evaluate import eval_id
from moe.operator import DepthMethod, Operator, WidthMethod
from moe.plain import canonical_json, digest
from sweeps.config import Control, GrowthConfig, SweepConfig
from sweeps.outcome import Reading
from sweeps.trajectory import Address, Kind, Trajectory, child

BRANCH = "branch"
SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One final metric: the full suite at `leaf`. `kind` is branch, scratch, or the control it serves as.

    `base` and `start` are the states before and after growth, `stable` the one before the anneal.
    """

    kind: str
    config: SweepConfig
    trunk: Trajectory
    leaf: Address
    base: Address | None = None
    start: Address | None = None
    stable: Address | None = None
    controls: "dict[Control, Cell]" = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Hash of (trajectory, horizon, eval_id, k); k = 1 horizon state is evaluated."""
        return digest([self.leaf.trajectory.id, self.leaf.step, self.eval_id, 1])

    @property
    def eval_id(self) -> str:
        return _eval_id(self.config.evaluate, data_json(self.config.data), "full")

    @property
    def probe_eval_id(self) -> str:
        return _eval_id(self.config.evaluate, data_json(self.config.data), "probe")

    @property
    def reading(self) -> Reading:
        evaluate = self.config.evaluate
        return Reading(
            probe_eval_id=self.probe_eval_id,
            probe_items=evaluate.probe_items,
            probe_every=evaluate.probe_every,
            corpus=self.config.corpus,
        )

    def states(self) -> dict[str, Address]:
        """The evaluated states by role."""
        roles = {"base": self.base, "start": self.start, "stable": self.stable, "final": self.leaf}
        return {role: address for role, address in roles.items() if address is not None}

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
    trunk = _root(Kind.TRUNK, config, config.model, config.trunk.steps)
    operator = operator_of(config.growth, config.seed)
    grown = operator.apply_to(config.model)
    if config.growth.step == 0:
        return _scratch(SCRATCH, config, trunk, grown, _budget(config, sunk_flops=0.0))
    base = _trunk_state(config, trunk)
    cell = _branch(BRANCH, config, trunk, base, operator, _budget(config, sunk_flops=base.flops))
    makers = {
        Control.CONTINUED: lambda: _continued(config, trunk, cell),
        Control.SCRATCH_EXTRA: lambda: _scratch(
            Control.SCRATCH_EXTRA, config, trunk, grown, cell.total_flops - base.flops, _anneal_flops(cell)
        ),
        Control.SCRATCH_TOTAL: lambda: _scratch(
            Control.SCRATCH_TOTAL, config, trunk, grown, cell.total_flops, _anneal_flops(cell)
        ),
        Control.SHAM: lambda: _branch(
            Control.SHAM, config, trunk, base, Operator(), cell.total_flops - base.flops, _anneal_flops(cell)
        ),
    }
    cell.controls.update({name: makers[name]() for name in config.controls})
    return cell


def operator_of(growth: GrowthConfig, seed: int) -> Operator:
    """The growth reduced to what acts, so that equal science has one id."""
    deepens = growth.method is not DepthMethod.NONE
    widens = growth.width_method is not WidthMethod.NONE
    noise_scale = growth.noise_scale if widens else 0.0
    return Operator(
        method=growth.method,
        depth_factor=growth.depth_factor if deepens else 1,
        width_method=growth.width_method,
        width_factor=growth.width_factor if widens else 1,
        noise_scale=noise_scale,
        seed=None if noise_scale == 0 else (growth.seed if growth.seed is not None else seed),
    )


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
    operator: Operator,
    extra_flops: float,
    anneal_flops: float | None = None,
) -> Cell:
    def make(total_steps: int | None) -> Trajectory:
        return child(
            base.trajectory,
            base.step,
            kind=Kind.BRANCH,
            operator=operator,
            learning_rate=_learning_rate(
                config.train.schedule,
                config.growth.lr or config.train.lr,
                config.growth.warmup_steps,
                total_steps,
            ),
            optimizer_state=config.growth.optimizer_state,
            at_growth=config.at_growth,
        )

    branch, stable, leaf = _spend(config, make, extra_flops, anneal_flops, kind)
    return Cell(
        kind=kind, config=config, trunk=trunk, base=base, start=branch.at(0), stable=stable, leaf=leaf
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
        return _root(Kind.TRUNK, config, config.model, total_steps)

    _, stable, leaf = _spend(config, make, cell.total_flops, _anneal_flops(cell), Control.CONTINUED)
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


def _root(kind: Kind, config: SweepConfig, model: ModelConfig, horizon: int | None) -> Trajectory:
    train = config.train
    learning_rate = _learning_rate(train.schedule, train.lr, train.warmup_steps, horizon)
    return _intern_root(kind, model, data_json(config.data), train, config.seed, learning_rate)


def _learning_rate(schedule: Schedule, peak: float, warmup_steps: int, horizon: int | None) -> LearningRate:
    total_steps = horizon if schedule is Schedule.COSINE else None
    return LearningRate(schedule=schedule, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps)


@lru_cache(maxsize=4096)
def _intern_root(
    kind: Kind, model: ModelConfig, data: str, train: TrainConfig, seed: int, learning_rate: LearningRate
) -> Trajectory:
    return Trajectory(kind=kind, model=model, data=data, train=train, seed=seed, learning_rate=learning_rate)


@lru_cache(maxsize=64)
def data_json(data: DataConfig) -> str:
    """The canonical JSON of what is read. A corpus is digested once per process."""
    return canonical_json(data_identity(data))


@lru_cache(maxsize=256)
def _eval_id(evaluate: EvaluateConfig, data: str, suite: str) -> str:
    return eval_id(evaluate, json.loads(data), suite)


# --------------------------------------------------------------------------------------------------------
# Cells as rows


def all_cells(requested: Iterable[Cell]) -> dict[str, Cell]:
    """Requested cells and their controls by id; a cell asked for wins over a control of equal science."""
    requested = list(requested)
    cells = {cell.id: cell for cell in requested}
    for cell in requested:
        for control in cell.controls.values():
            cells.setdefault(control.id, control)
    return cells


def row(cell: Cell, requested: bool) -> dict[str, Any]:
    """What the plan knows of a cell, in the vocabulary's columns; a missing value is None."""
    config, leaf = cell.config, cell.leaf
    grows = cell.kind == BRANCH
    model, trunk_params = leaf.trajectory.model, flops.activated_params(config.model)
    operator = cell.start.trajectory.operator if cell.start else operator_of(config.growth, config.seed)
    in_grown_shape = cell.kind not in (Control.CONTINUED, Control.SHAM)
    path = _path(leaf)
    tokens = sum((part["to_step"] - part["from_step"]) * part["tokens_per_step"] for part in path)
    step = config.growth.step if grows or cell.kind in (SCRATCH, Control.SHAM) else None
    return {
        "cell_id": cell.id,
        "kind": str(cell.kind),
        "requested": requested,
        "controls": {str(name): control.id for name, control in cell.controls.items()},
        "trajectory_id": leaf.trajectory.id,
        "trunk_id": cell.trunk.id,
        "growth_step": step,
        "method": operator.method.value if grows else "none",
        "depth_factor": operator.depth_factor if in_grown_shape else 1,
        "width_method": operator.width_method.value if grows else "none",
        "width_factor": operator.width_factor if in_grown_shape else 1,
        "noise_scale": operator.noise_scale if grows else None,
        "optimizer_state": cell.start.trajectory.optimizer_state.value if cell.start else None,
        "growth_lr": cell.start.trajectory.learning_rate.peak if cell.start else None,
        "growth_seed": operator.seed if grows else None,
        "seed": config.seed,
        "sunk_flops": cell.sunk_flops,
        "extra_flops": cell.extra_flops,
        "total_flops": cell.total_flops,
        "paper_flops": sum(
            flops.paper_flops(flops.activated_params(t.model), n * t.train.tokens_per_step)
            for t, n in leaf.segments()
        ),
        "chinchilla_multiple": _chinchilla_multiple(cell, trunk_params),
        "tokens": tokens,
        "activated_params": flops.activated_params(model),
        "activated_matmul_params": flops.activated_matmul_params(model),
        "total_params": flops.total_params(model),
        "trunk_activated_params": trunk_params,
        "inference_flops_per_token": flops.forward_flops_per_token(model, config.train.seq_len),
        "data": config.data.source,
        "at_growth": config.at_growth.value,
        "decay_fraction": config.budget.decay_fraction,
        "eval_id": cell.eval_id,
        "probe_eval_id": cell.probe_eval_id,
        "path": path,
        "states": {role: list(address.key) for role, address in cell.states().items()},
    }


def _chinchilla_multiple(cell: Cell, trunk_params: int) -> float | None:
    """Tokens the trunk had seen at growth, in units of 20·N_a."""
    if cell.base is None:
        return None
    tokens = sum(t.train.tokens_per_step * n for t, n in cell.base.segments())
    return tokens / (20.0 * trunk_params)


def _path(leaf: Address) -> list[dict[str, Any]]:
    phases = {Kind.TRUNK: "trunk", Kind.SCRATCH: "stable", Kind.BRANCH: "stable", Kind.ANNEAL: "anneal"}
    return [
        {
            "trajectory_id": trajectory.id,
            "from_step": 0,
            "to_step": steps,
            "phase": phases[trajectory.kind],
            "flops_per_step": trajectory.flops_per_step,
            "tokens_per_step": trajectory.train.tokens_per_step,
            "data_start": trajectory.data_start,
            "stream": trajectory.stream,
        }
        for trajectory, steps in leaf.segments()
    ]


def unique_tokens(path: list[dict[str, Any]], corpus_tokens: int | None) -> int:
    """Distinct tokens read along a path: stream positions read once, and no more than the corpus holds."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for part in path:
        span = (part["data_start"], part["data_start"] + part["to_step"] - part["from_step"])
        spans.setdefault(part["stream"], []).append(span)
    steps = 0
    for parts in spans.values():
        end = 0
        for first, last in sorted(parts):
            steps += max(0, last - max(first, end))
            end = max(end, last)
    tokens = steps * path[0]["tokens_per_step"]
    return tokens if corpus_tokens is None else min(tokens, corpus_tokens)
