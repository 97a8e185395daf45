"""One growth as frozen data. No torch here."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from moe.config import ModelConfig


class DepthMethod(StrEnum):
    """How layers are copied (arXiv 2510.08008 §3.1); `none` leaves the depth alone."""

    STACK = "stack"
    INTERPOSITION = "interposition"
    NONE = "none"


class WidthMethod(StrEnum):
    """How experts are added (arXiv 2510.08008 §3.2); `none` leaves the width alone."""

    DUPLICATE = "duplicate"
    NONE = "none"


class OptimizerState(StrEnum):
    """What a grown state inherits of AdamW's moments: nothing, copies, or copies divided by m and m²."""

    RESET = "reset"
    COPY = "copy"
    RESCALE = "rescale"


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """One growth, reduced to what acts: a field without effect holds the value that says so."""

    method: DepthMethod = DepthMethod.NONE
    depth_factor: int = 1
    width_method: WidthMethod = WidthMethod.NONE
    width_factor: int = 1
    noise_scale: float = 0.0
    seed: int | None = None

    @property
    def grows(self) -> bool:
        return self.depth_factor > 1 or self.width_factor > 1

    def apply_to(self, model: ModelConfig) -> ModelConfig:
        """The grown architecture: layers × depth_factor, experts and top_k × width_factor."""
        return _grown(model, self.depth_factor, self.width_factor)


@lru_cache(maxsize=256)
def _grown(model: ModelConfig, depth_factor: int, width_factor: int) -> ModelConfig:
    return dataclasses.replace(
        model,
        num_layers=model.num_layers * depth_factor,
        num_experts=model.num_experts * width_factor,
        top_k=model.top_k * width_factor,
    )
