"""The whole configuration of a sweep as one frozen dataclass: WHAT is asked for (WHAT to train, which taps)
and HOW it is run. Only WHAT reaches an identity."""

import json
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from moe.config import AtGrowth, EvaluateConfig, ModelConfig, Schedule, TrainConfig
from moe.data import DataConfig, TextConfig, parse_data
from moe.operator import Copies, DepthMethod, Operator, OptimizerState, WidthMethod
from moe.plain import check, check_positive, parse


class Control(StrEnum):
    """What a grown cell is held against, at the FLOPs it really spent."""

    CONTINUED = "continued"
    SCRATCH_EXTRA = "scratch_extra"
    SCRATCH_TOTAL = "scratch_total"
    SHAM = "sham"


class ExecutorKind(StrEnum):
    RAY = "ray"
    SERIAL = "serial"


class TrackingKind(StrEnum):
    NONE = "none"
    WANDB = "wandb"


class TrackingMode(StrEnum):
    OFFLINE = "offline"
    ONLINE = "online"


class PlanMode(StrEnum):
    ONLY = "only"


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorConfig:
    """How a state grows (`moe/operator.py`), and the growth that follows it, if any.

    `router_noise_scale` null is `noise_scale`. What a choice does not read has no effect.
    """

    method: DepthMethod
    depth_factor: int
    keep_first: int
    keep_last: int
    layer_map: tuple[int, ...] | None
    copies: Copies
    width_method: WidthMethod
    width_factor: int
    noise_scale: float
    router_noise_scale: float | None
    drop_fraction: float
    then: "ThenConfig | None"

    def check_operator(self, path: str) -> None:
        deepens, widens = self.method is not DepthMethod.NONE, self.width_method is not WidthMethod.NONE
        check(
            deepens or widens,
            f"{path}.method=none and {path}.width_method=none grow nothing; "
            "choose one of them, or ask for controls: [sham]",
        )
        by_map = self.method is DepthMethod.LAYER_MAP
        check(
            not deepens or by_map or self.depth_factor >= 2,
            f"{path}.depth_factor={self.depth_factor} must be at least 2, or set {path}.method=none",
        )
        check(
            not widens or self.width_factor >= 2,
            f"{path}.width_factor={self.width_factor} must be at least 2, or set {path}.width_method=none",
        )
        check(
            by_map == (self.layer_map is not None),
            f"{path}.layer_map={list(self.layer_map) if self.layer_map else 'null'} with {path}.method="
            f"{self.method}: method layer_map reads it and no other does; set both or neither",
        )
        for name in ("keep_first", "keep_last", "noise_scale", "router_noise_scale"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"{path}.{name}={value} must not be negative")
        drops = self.width_method is WidthMethod.DROP_UPCYCLE
        check(
            not drops or 0 < self.drop_fraction <= 1,
            f"{path}.drop_fraction={self.drop_fraction} must lie above 0 and at most at 1 for "
            f"{path}.width_method=drop_upcycle; for 0 choose duplicate",
        )

    def operator(self, seed: int) -> Operator:
        """The growth reduced to what acts, so that equal science has one id; `seed` is of what is drawn."""
        deepens, by_map = self.method is not DepthMethod.NONE, self.method is DepthMethod.LAYER_MAP
        widens, by_factor = self.width_method is not WidthMethod.NONE, deepens and not by_map
        noise_scale = self.noise_scale if self.width_method.copies_experts else 0.0
        router_noise = self.router_noise_scale if self.width_method.copies_experts else None
        drops = self.width_method is WidthMethod.DROP_UPCYCLE
        draws = (
            noise_scale > 0
            or (router_noise or 0.0) > 0
            or drops
            or self.method is DepthMethod.RANDOM
            or self.width_method is WidthMethod.RANDOM_EXPERTS
        )
        return Operator(
            method=self.method,
            depth_factor=self.depth_factor if by_factor else 1,
            width_method=self.width_method,
            width_factor=self.width_factor if widens else 1,
            noise_scale=noise_scale,
            seed=seed if draws else None,
            keep_first=self.keep_first if by_factor else 0,
            keep_last=self.keep_last if by_factor else 0,
            layer_map=self.layer_map,
            copies=self.copies if deepens else Copies.EXACT,
            router_noise_scale=None if router_noise == noise_scale else router_noise,
            drop_fraction=self.drop_fraction if drops else 0.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthConfig(OperatorConfig):
    """When (`step` of the trunk) and how a trunk state grows, and how its branch then trains."""

    step: int
    optimizer_state: OptimizerState
    warmup_steps: int
    lr: float | None
    seed: int | None

    def __post_init__(self) -> None:
        self.check_operator("growth")
        check(self.step >= 0, f"growth.step={self.step} must not be negative; 0 is training from scratch")
        _check_training("growth", self.warmup_steps, self.lr)
        before, then, path = 0.0, self.then, "growth.then"
        while then is not None:
            precedes = "growth.step" if before == 0.0 else f"the growth before it, at {before:.6g}"
            check(
                then.after_extra_flops > before,
                f"{path}.after_extra_flops={then.after_extra_flops:.6g} precedes {precedes}; it counts the "
                f"FLOPs after the first growth: choose above {before:.6g}",
            )
            before, then, path = then.after_extra_flops, then.then, f"{path}.then"


@dataclass(frozen=True, kw_only=True, slots=True)
class ThenConfig(OperatorConfig):
    """A further growth, once `after_extra_flops` were spent after the first; null is as that one has it."""

    after_extra_flops: float
    optimizer_state: OptimizerState | None = None
    warmup_steps: int | None = None
    lr: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self.check_operator("growth.then")
        _check_training("growth.then", self.warmup_steps, self.lr)


def _check_training(path: str, warmup_steps: int | None, lr: float | None) -> None:
    check(
        warmup_steps is None or warmup_steps >= 0, f"{path}.warmup_steps={warmup_steps} must not be negative"
    )
    check(lr is None or lr > 0, f"{path}.lr={lr} must be above 0, or null for train.lr")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkConfig:
    """`steps` bounds `growth.step`; steps beyond `decay_from` are an anneal of the trunk's state there."""

    steps: int
    decay_from: int | None

    def __post_init__(self) -> None:
        check_positive(self, "trunk", "steps")
        check(
            self.decay_from is None or 0 < self.decay_from < self.steps,
            f"trunk.decay_from={self.decay_from} must lie in 1..{self.steps - 1}, below trunk.steps, "
            "or be null",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """FLOPs after growth, or in all; the last `decay_fraction` of the extra FLOPs is an anneal."""

    extra_flops: float | None
    total_flops: float | None
    decay_fraction: float

    def __post_init__(self) -> None:
        given = [name for name in ("extra_flops", "total_flops") if getattr(self, name) is not None]
        check(
            len(given) == 1,
            f"budget has {' and '.join(given) or 'neither extra_flops nor total_flops'}; "
            "give exactly one of extra_flops and total_flops (the other null)",
        )
        check_positive(self, "budget", *given)
        check(
            0 <= self.decay_fraction < 1,
            f"budget.decay_fraction={self.decay_fraction} must lie in [0, 1); 0 leaves out the anneal",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """HOW: where and with what; none of it is part of any identity."""

    executor: ExecutorKind
    store: str
    workers: int | None
    threads: int
    device: str
    gpus_per_run: float | None
    address: str
    max_attempts: int
    keep_every: int
    checkpoint_s: float

    def __post_init__(self) -> None:
        check_positive(self, "launch", "threads", "max_attempts", "keep_every", "checkpoint_s")
        check(
            self.workers is None or self.workers > 0,
            f"launch.workers={self.workers} must be above 0, or null",
        )
        check(
            self.gpus_per_run is None or 0 <= self.gpus_per_run <= 1,
            f"launch.gpus_per_run={self.gpus_per_run} must lie in 0..1 (one GPU or a share of it), "
            "or be null",
        )
        check(
            self.device in ("auto", "cpu", "cuda"), f"launch.device={self.device}; choose auto, cpu or cuda"
        )
        check(
            self.address == "local" or self.address == "auto" or ":" in self.address,
            f"launch.address={self.address}; choose local, auto or HOST:PORT",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    name: TrackingKind
    mode: TrackingMode
    project: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """One requested cell: everything `sweep.py` was told, checked."""

    study_name: str
    model: ModelConfig
    data: DataConfig
    at_growth: AtGrowth
    train: TrainConfig
    trunk: TrunkConfig
    growth: GrowthConfig
    budget: BudgetConfig
    evaluate: EvaluateConfig
    controls: tuple[Control, ...]
    seed: int
    launch: LaunchConfig
    tracking: TrackingConfig
    plan: PlanMode | None = None

    @property
    def corpus(self) -> str | None:
        """The absolute folder of a corpus: HOW to reach it, never part of an identity."""
        if isinstance(self.data, TextConfig) and self.data.path is not None:
            return os.path.abspath(self.data.path)
        return None

    def __post_init__(self) -> None:
        check(
            self.growth.step <= self.trunk.steps,
            f"growth.step={self.growth.step} is beyond trunk.steps={self.trunk.steps}; "
            f"choose 0..{self.trunk.steps} or raise trunk.steps",
        )
        check(
            self.train.schedule is Schedule.CONSTANT or self.budget.decay_fraction == 0,
            f"budget.decay_fraction={self.budget.decay_fraction} anneals a constant rate; with "
            f"train.schedule={self.train.schedule} the rate falls by itself: set budget.decay_fraction=0",
        )
        check(
            self.train.schedule is Schedule.CONSTANT or self.trunk.decay_from is None,
            f"trunk.decay_from={self.trunk.decay_from} needs train.schedule=constant",
        )
        check(
            self.train.schedule is Schedule.CONSTANT or self.growth.then is None,
            f"growth.then needs train.schedule=constant; with {self.train.schedule} a growth half-way has no "
            "horizon of its own: set train.schedule=constant or growth.then=null",
        )
        check(
            self.at_growth is not AtGrowth.DISJOINT or self.data.source == "world",
            f"data.at_growth=disjoint needs tokens that nobody else reads; data={self.data.source} is "
            "finite: choose continue or replay",
        )
        check(self.seed >= 0, f"seed={self.seed} must not be negative")
        check(
            self.model.vocab_size >= self.data.vocab_size,
            f"model.vocab_size={self.model.vocab_size} is below data.vocab_size={self.data.vocab_size}; "
            f"choose at least {self.data.vocab_size}",
        )
        check(
            re.fullmatch(r"\w[\w.-]*", self.study_name) is not None,
            f"study_name={self.study_name!r} must be letters, digits, '_', '-' and '.'",
        )


_SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "trunk": TrunkConfig,
    "growth": GrowthConfig,
    "budget": BudgetConfig,
    "evaluate": EvaluateConfig,
    "launch": LaunchConfig,
    "tracking": TrackingConfig,
}
_PLAIN: dict[str, Any] = {
    "study_name": str,
    "controls": tuple[Control, ...],
    "seed": int,
    "plan": PlanMode | None,
}


def parse_sweep(mapping: dict[str, Any]) -> SweepConfig:
    """Makes a SweepConfig of a resolved configuration; every fault is a ValueError with the field's path."""
    known = {*_SECTIONS, *_PLAIN, "data"}
    unknown = sorted(set(mapping) - known)
    check(not unknown, f"unknown key {', '.join(unknown)}; the top level has: {', '.join(sorted(known))}")
    missing = sorted(known - {"plan"} - set(mapping))
    check(not missing, f"missing key {', '.join(missing)}")
    sections = {name: _parse_section(name, _text(mapping[name])) for name in _SECTIONS}
    data, at_growth = _parse_data_section(_text(mapping["data"]))
    plain = {name: parse(cls, mapping[name], name) for name, cls in _PLAIN.items() if name in mapping}
    return SweepConfig(**sections, **plain, data=data, at_growth=at_growth)


# Most sections are the same in all cells of a grid: each distinct text of one is parsed once.
_text = json.JSONEncoder().encode


@lru_cache(maxsize=4096)
def _parse_section(name: str, text: str) -> Any:
    return parse(_SECTIONS[name], json.loads(text), name)


@lru_cache(maxsize=64)
def _parse_data_section(text: str) -> tuple[DataConfig, AtGrowth]:
    section = json.loads(text)
    check(isinstance(section, dict), f"data={section!r} must be a group of keys")
    at_growth = parse(AtGrowth, section.pop("at_growth", None), "data.at_growth")
    return parse_data(section), at_growth
