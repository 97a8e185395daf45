"""The whole configuration of a sweep as one frozen dataclass: WHAT is asked for (WHAT to train, which taps)
and HOW it is run. Only WHAT reaches an identity."""

import dataclasses
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from moe.config import AtGrowth, EvaluateConfig, ModelConfig, Schedule, TrainConfig
from moe.data import DataConfig, parse_data
from moe.plain import added, check, check_positive, parse
from sweeps.growth import GrowthConfig
from sweeps.units import counts_in_f_c, resolve_f_c


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
class TrunkConfig:
    """`steps` bounds `growth.step`; steps beyond `decay_from` are an anneal of the trunk's state there.

    With `source`, the folder of a checkpoint that cost `sunk_flops`, steps count from it, and step 0 is it.
    """

    steps: int
    decay_from: int | None
    source: str | None = None
    sunk_flops: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "trunk", "steps")
        sunk = self.sunk_flops
        check(
            sunk is None or sunk > 0,
            f"trunk.sunk_flops={sunk} must be above 0: what trunk.source cost; or null",
        )
        check(
            sunk is None or self.source is not None,
            f"trunk.sunk_flops={sunk} is what trunk.source cost, and there is none; give trunk.source=DIR, "
            "or set trunk.sunk_flops=null",
        )
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
class LimitConfig:
    """HOW: what a plan may cost before it is refused; it stands in the budget section, and in no identity.

    Work of this plan alone counts (to do and rewind), not what is stored; null is no limit.
    """

    max_flops: float | None
    max_hours: float | None

    def __post_init__(self) -> None:
        for name in ("max_flops", "max_hours"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"budget.{name}={value} must not be negative")


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
    speed_file: str | None
    fuse: int

    def __post_init__(self) -> None:
        check_positive(self, "launch", "threads", "max_attempts", "keep_every", "checkpoint_s", "fuse")
        check(
            self.workers is None or self.workers > 0,
            f"launch.workers={self.workers} must be above 0, or null",
        )
        given = self.gpus_per_run
        check(
            given is None or 0 <= given <= 1 or (given > 1 and given == int(given)),
            f"launch.gpus_per_run={given} must be a share of one GPU (0..1), a whole number of them, or null",
        )
        check(
            self.ranks == 1 or self.executor is ExecutorKind.RAY,
            f"launch.gpus_per_run={given} makes {self.ranks} processes of a run, and launch=serial has one; "
            "choose launch=ray, or at most 1",
        )
        check(
            self.fuse == 1 or self.ranks == 1,
            f"launch.fuse={self.fuse} with launch.gpus_per_run={given}: several runs of one process, and "
            "several processes of one run; set launch.fuse=1, or launch.gpus_per_run to at most 1",
        )
        check(
            self.device in ("auto", "cpu", "cuda"), f"launch.device={self.device}; choose auto, cpu or cuda"
        )
        check(
            self.address == "local" or self.address == "auto" or ":" in self.address,
            f"launch.address={self.address}; choose local, auto or HOST:PORT",
        )

    @property
    def ranks(self) -> int:
        """Processes that share each batch of a run: one, or one a GPU when a run has several."""
        return max(1, int(self.gpus_per_run or 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    name: TrackingKind
    mode: TrackingMode
    project: str
    entity: str | None = added(None)  # who owns the project in W&B; None: the account's default


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
    limit: LimitConfig
    evaluate: EvaluateConfig
    controls: tuple[Control, ...]
    seed: int
    launch: LaunchConfig
    tracking: TrackingConfig
    plan: PlanMode | None = None

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
        self._check_ranks()
        check(
            self.model.vocab_size >= self.data.vocab_size,
            f"model.vocab_size={self.model.vocab_size} is below data.vocab_size={self.data.vocab_size}; "
            f"choose at least {self.data.vocab_size}",
        )
        check(
            re.fullmatch(r"\w[\w.-]*", self.study_name) is not None,
            f"study_name={self.study_name!r} must be letters, digits, '_', '-' and '.'",
        )

    def _check_ranks(self) -> None:
        """How a run is split must not change what is trained."""
        ranks, batch_size = self.launch.ranks, self.train.batch_size
        check(
            batch_size % ranks == 0,
            f"launch.gpus_per_run={ranks} does not divide train.batch_size={batch_size}: each GPU takes "
            "as many sequences of a batch; choose a divisor of it",
        )
        check(
            ranks == 1 or self.model.capacity_factor is None,
            f"launch.gpus_per_run={ranks} with model.capacity_factor={self.model.capacity_factor}: which "
            "slots are dropped depends on the whole batch; choose at most 1, or model.capacity_factor=null",
        )


_SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "trunk": TrunkConfig,
    "growth": GrowthConfig,
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
    known = {*_SECTIONS, *_PLAIN, "budget", "data"}
    unknown = sorted(set(mapping) - known)
    check(not unknown, f"unknown key {', '.join(unknown)}; the top level has: {', '.join(sorted(known))}")
    missing = sorted(known - {"plan"} - set(mapping))
    check(not missing, f"missing key {', '.join(missing)}")
    if counts_in_f_c(mapping):
        model = _parse_section("model", _text(mapping["model"]))
        train = _parse_section("train", _text(mapping["train"]))
        mapping = resolve_f_c(mapping, model, train.batch_size * train.seq_len, train.seq_len)
    sections = {name: _parse_section(name, _text(mapping[name])) for name in _SECTIONS}
    budget, limit = _parse_budget_section(_text(mapping["budget"]))
    data, at_growth = _parse_data_section(_text(mapping["data"]))
    plain = {name: parse(cls, mapping[name], name) for name, cls in _PLAIN.items() if name in mapping}
    return SweepConfig(**sections, **plain, budget=budget, limit=limit, data=data, at_growth=at_growth)


# Most sections are the same in all cells of a grid: each distinct text of one is parsed once.
_text = json.JSONEncoder().encode


@lru_cache(maxsize=4096)
def _parse_section(name: str, text: str) -> Any:
    return parse(_SECTIONS[name], json.loads(text), name)


@lru_cache(maxsize=4096)
def _parse_budget_section(text: str) -> tuple[BudgetConfig, LimitConfig]:
    section = json.loads(text)
    check(isinstance(section, dict), f"budget={section!r} must be a group of keys")
    names = [f.name for f in dataclasses.fields(LimitConfig)]
    limit = {name: section.pop(name) for name in names if name in section}
    return parse(BudgetConfig, section, "budget"), parse(LimitConfig, limit, "budget")


@lru_cache(maxsize=64)
def _parse_data_section(text: str) -> tuple[DataConfig, AtGrowth]:
    section = json.loads(text)
    check(isinstance(section, dict), f"data={section!r} must be a group of keys")
    at_growth = parse(AtGrowth, section.pop("at_growth", None), "data.at_growth")
    return parse_data(section), at_growth
