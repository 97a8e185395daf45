"""What is trained, as frozen dataclasses. No torch here."""

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum

from moe.plain import check, check_positive

# --------------------------------------------------------------------------------------------------------
# Choices


class Schedule(StrEnum):
    CONSTANT = "constant"
    COSINE = "cosine"
    DECAY = "decay"


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"


class AtGrowth(StrEnum):
    """The token stream of a branch: go on, start again, or read tokens nobody else reads."""

    CONTINUE = "continue"
    REPLAY = "replay"
    DISJOINT = "disjoint"


# --------------------------------------------------------------------------------------------------------
# What is trained


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only MoE transformer. Sizes are numbers of units; `top_k` experts act on each token."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    expert_hidden_size: int
    rope_theta: float
    norm_eps: float

    def __post_init__(self) -> None:
        check_positive(self, "model", *(f.name for f in dataclasses.fields(self)))
        check(
            self.top_k <= self.num_experts,
            f"model.top_k={self.top_k} is above model.num_experts={self.num_experts}; "
            f"choose 1..{self.num_experts}",
        )
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        check(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even (RoPE turns pairs)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """AdamW and its schedule. A step reads `batch_size` sequences of `seq_len` tokens."""

    batch_size: int
    seq_len: int
    lr: float
    warmup_steps: int
    schedule: Schedule
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    grad_clip: float
    load_balance_coef: float
    z_loss_coef: float
    precision: Precision

    def __post_init__(self) -> None:
        check_positive(self, "train", "batch_size", "seq_len", "lr", "eps", "grad_clip")
        for name in ("warmup_steps", "weight_decay", "load_balance_coef", "z_loss_coef"):
            check(getattr(self, name) >= 0, f"train.{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"train.{name}={getattr(self, name)} must lie in [0, 1)")
        check(
            self.schedule is not Schedule.DECAY,
            "train.schedule=decay is how an anneal is trained; choose constant or cosine",
        )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRate:
    """The learning rate of one trajectory as a function of its own step.

    Warm-up is linear and then `constant`; `cosine` falls to a tenth of the peak, `decay` linearly to zero,
    both over `total_steps`. A constant rate has no `total_steps`: its prefix is the same for every horizon.
    """

    schedule: Schedule
    peak: float
    warmup_steps: int = 0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        assert (self.total_steps is None) == (self.schedule is Schedule.CONSTANT), self

    def at(self, step: int) -> float:
        """The rate of update number `step` (from 0)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        match self.schedule:
            case Schedule.CONSTANT:
                shape = 1.0
            case Schedule.COSINE:
                assert self.total_steps is not None
                shape = 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / self.total_steps))
            case Schedule.DECAY:
                assert self.total_steps is not None
                shape = 1.0 - step / self.total_steps
        return self.peak * warm * shape


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """The suite at stored states (`items` per family) and the smaller probe along the way."""

    items: int
    probe_items: int
    probe_every: int

    def __post_init__(self) -> None:
        check_positive(self, "evaluate", "items", "probe_items", "probe_every")
        check(
            self.probe_items <= self.items,
            f"evaluate.probe_items={self.probe_items} is above evaluate.items={self.items}; the probe is the "
            f"smaller of the two: choose 1..{self.items}",
        )
