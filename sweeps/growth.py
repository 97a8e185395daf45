"""The growth section of a configuration, and the stages, one a growth, that it resolves to. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from moe.operator import Operator, OptimizerState
from moe.operator_config import OperatorConfig
from moe.plain import check
from moe.seeds import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthConfig(OperatorConfig):
    """When (`step` of the trunk) and how a trunk state grows, and how its branch then trains."""

    step: int
    optimizer_state: OptimizerState
    warmup_steps: int
    lr: float | None
    seed: int | None
    then: "ThenConfig | None"

    def __post_init__(self) -> None:
        self.check_operator()
        _check_training("growth", self.warmup_steps, self.lr)
        check(
            self.step >= 0,
            f"growth.step={self.step} must not be negative; 0 is training from scratch, or "
            "trunk.source itself",
        )
        before, then, path = 0.0, self.then, "growth.then"
        while then is not None:
            then.check_operator(path)
            _check_training(path, then.warmup_steps, then.lr)
            after = then.after_extra_flops
            precedes = "growth.step" if before == 0.0 else f"the growth before it, at {before:.6g}"
            check(
                after is None or after > before,
                f"{path}.after_extra_flops={after} precedes {precedes}; it counts the FLOPs after the first "
                f"growth: choose above {before:.6g}, or null",
            )
            before, then, path = after or before, then.then, f"{path}.then"


@dataclass(frozen=True, kw_only=True, slots=True)
class ThenConfig(OperatorConfig):
    """A further growth, once `after_extra_flops` were spent after the first; null is as that one has it.

    Where `after_extra_flops` is null, growths stand evenly between those that have a place.
    """

    after_extra_flops: float | None = None
    optimizer_state: OptimizerState | None = None
    warmup_steps: int | None = None
    lr: float | None = None
    seed: int | None = None
    then: "ThenConfig | None"


def _check_training(path: str, warmup_steps: int | None, lr: float | None) -> None:
    check(
        warmup_steps is None or warmup_steps >= 0,
        f"{path}.warmup_steps={warmup_steps} must not be negative",
    )
    check(lr is None or lr > 0, f"{path}.lr={lr} must be above 0, or null for train.lr")


class Stage(NamedTuple):
    """One growth of a cell and how its branch trains; `after_extra_flops` counts from the first growth, None
    is evenly between its neighbours."""

    operator: Operator
    optimizer_state: OptimizerState
    lr: float
    warmup_steps: int
    after_extra_flops: float | None = None


@lru_cache(maxsize=1024)
def stages_of(growth: GrowthConfig, seed: int, lr: float) -> tuple[Stage, ...]:
    """The growths in their order, each with a stream of its own; `seed` and `lr` are the trunk's."""
    seed = seed if growth.seed is None else growth.seed
    lr = growth.lr or lr
    stages = [Stage(growth.operator(seed), growth.optimizer_state, lr, growth.warmup_steps)]
    then = growth.then
    while then is not None:
        own_seed = derive_seed(seed if then.seed is None else then.seed, "growth", len(stages))
        stages.append(
            Stage(
                operator=then.operator(own_seed),
                optimizer_state=then.optimizer_state or growth.optimizer_state,
                lr=then.lr or lr,
                warmup_steps=growth.warmup_steps if then.warmup_steps is None else then.warmup_steps,
                after_extra_flops=then.after_extra_flops,
            )
        )
        then = then.then
    return tuple(stages)


def places_of(stages: Sequence[Stage], extra_flops: float) -> list[float]:
    """The extra FLOPs at which each growth but the first happens; what was not given stands evenly between
    its neighbours, the first growth and the end of the budget among them."""
    if len(stages) == 1:
        return []
    given = [0.0, *(stage.after_extra_flops for stage in stages[1:]), extra_flops]
    known = [place for place, flops in enumerate(given) if flops is not None]
    places = np.interp(range(len(given)), known, [given[place] for place in known])
    return [float(place) for place in places[1:-1]]
