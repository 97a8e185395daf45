"""The growth section of a configuration, and the stages, one a growth, that it resolves to. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from moe.operator import Copies, DepthMethod, Operator, OptimizerState, WidthMethod
from moe.plain import check
from moe.seeds import derive_seed


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

    def check_operator(self, path: str, warmup_steps: int | None, lr: float | None) -> None:
        """ValueError naming `path`, the place of this growth in a configuration."""
        check(
            self.method is not DepthMethod.NONE or self.width_method is not WidthMethod.NONE,
            f"{path}.method=none and {path}.width_method=none grow nothing; "
            "choose one of them, or ask for controls: [sham]",
        )
        for name in ("keep_first", "keep_last", "noise_scale", "router_noise_scale", "drop_fraction"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"{path}.{name}={value} must not be negative")
        try:
            self.operator(seed=0)
        except ValueError as error:
            raise ValueError(str(error).replace("growth.", f"{path}.")) from None
        check(
            warmup_steps is None or warmup_steps >= 0,
            f"{path}.warmup_steps={warmup_steps} must not be negative",
        )
        check(lr is None or lr > 0, f"{path}.lr={lr} must be above 0, or null for train.lr")

    def operator(self, seed: int) -> Operator:
        """The growth reduced to what acts, so that equal science has one id; `seed` is of what is drawn."""
        deepens, by_map = self.method is not DepthMethod.NONE, self.method is DepthMethod.LAYER_MAP
        widens, noisy = self.width_method is not WidthMethod.NONE, self.width_method.takes_noise
        drops, router_noise = self.width_method is WidthMethod.DROP_UPCYCLE, self.router_noise_scale
        operator = Operator(
            method=self.method,
            depth_factor=self.depth_factor if deepens and not by_map else 1,
            width_method=self.width_method,
            width_factor=self.width_factor if widens else 1,
            noise_scale=self.noise_scale if noisy else 0.0,
            seed=seed,
            keep_first=self.keep_first if deepens else 0,
            keep_last=self.keep_last if deepens else 0,
            layer_map=self.layer_map,
            copies=self.copies if deepens else Copies.EXACT,
            router_noise_scale=router_noise if noisy and router_noise != self.noise_scale else None,
            drop_fraction=self.drop_fraction if drops else 0.0,
        )
        return operator if operator.draws else replace(operator, seed=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthConfig(OperatorConfig):
    """When (`step` of the trunk) and how a trunk state grows, and how its branch then trains."""

    step: int
    optimizer_state: OptimizerState
    warmup_steps: int
    lr: float | None
    seed: int | None

    def __post_init__(self) -> None:
        self.check_operator("growth", self.warmup_steps, self.lr)
        check(self.step >= 0, f"growth.step={self.step} must not be negative; 0 is training from scratch")
        before, then, path = 0.0, self.then, "growth.then"
        while then is not None:
            then.check_operator(path, then.warmup_steps, then.lr)
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
