"""What is trained, as frozen dataclasses. No torch here."""

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum

from moe.plain import added, check, check_positive

# --------------------------------------------------------------------------------------------------------
# Choices


class Gate(StrEnum):
    """How router logits become the gates of the k chosen experts.

    The first two take the softmax over all experts, `topk_softmax` that over the chosen ones; `renormalised`
    divides by the sum over the chosen. Sigmoid scores are per expert (arXiv 2412.19437 §2.1.2).
    """

    SOFTMAX = "softmax"
    SOFTMAX_RENORMALISED = "softmax_renormalised"
    TOPK_SOFTMAX = "topk_softmax"
    SIGMOID = "sigmoid"
    SIGMOID_RENORMALISED = "sigmoid_renormalised"

    @property
    def shares_probability(self) -> bool:
        """Whether the scores that select are a softmax over all experts, so that copies share them out."""
        return self in (Gate.SOFTMAX, Gate.SOFTMAX_RENORMALISED)


class NormPlacement(StrEnum):
    """x + f(norm(x)), norm(x + f(x)), or x + norm(f(x))."""

    PRE = "pre"
    POST = "post"
    OUTPUT = "output"


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
    """A decoder-only MoE transformer. Sizes are numbers of units; `top_k` routed experts act on each token.

    The first `num_dense_layers` have one dense feed-forward of `dense_hidden_size` instead of experts. Shared
    experts act on every token. `selection_bias_rate` above 0 adds a bias to selection alone and moves it by
    load (arXiv 2408.15664). With `num_groups` G, only experts of the best `top_k_groups` groups are chosen
    (arXiv 2405.04434). `capacity_factor` c drops what exceeds c·k·N/E tokens of an expert; null never drops.
    `residual_base_layers` L₀ multiplies every residual branch by L₀/L (CompleteP at α = 1, arXiv 2505.01618);
    0 leaves it out.
    """

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
    gate: Gate = added(Gate.SOFTMAX_RENORMALISED)
    route_scale: float = added(1.0)
    selection_bias_rate: float = added(0.0)
    num_groups: int = added(1)
    top_k_groups: int = added(1)
    capacity_factor: float | None = added(None)
    num_shared_experts: int = added(0)
    num_dense_layers: int = added(0)
    dense_hidden_size: int = added(0)
    norm_placement: NormPlacement = added(NormPlacement.PRE)
    residual_base_layers: int = added(0)

    def __post_init__(self) -> None:
        may_be_zero = ("num_shared_experts", "num_dense_layers", "dense_hidden_size", "residual_base_layers")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in (*may_be_zero, "selection_bias_rate"):
                check(value >= 0, f"model.{f.name}={value} must not be negative")
            elif isinstance(value, int | float):
                check(value > 0, f"model.{f.name}={value} must be above 0")
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
        self._check_groups()
        check(
            self.num_dense_layers <= self.num_layers,
            f"model.num_dense_layers={self.num_dense_layers} is above model.num_layers={self.num_layers}; "
            f"choose 0..{self.num_layers}",
        )
        check(
            (self.num_dense_layers == 0) == (self.dense_hidden_size == 0),
            f"model.dense_hidden_size={self.dense_hidden_size} with model.num_dense_layers="
            f"{self.num_dense_layers}: a dense layer needs its size, and no dense layer has none; "
            "set both above 0 or both to 0",
        )

    def _check_groups(self) -> None:
        check(
            self.num_experts % self.num_groups == 0,
            f"model.num_groups={self.num_groups} must divide model.num_experts={self.num_experts}",
        )
        size = self.num_experts // self.num_groups
        check(
            self.num_groups == 1 or size > 1,
            f"model.num_groups={self.num_groups} leaves one expert a group; choose fewer groups, or 1",
        )
        check(
            self.top_k_groups <= self.num_groups and self.top_k <= self.top_k_groups * size,
            f"model.top_k_groups={self.top_k_groups} of model.num_groups={self.num_groups} groups of {size} "
            f"must hold model.top_k={self.top_k} experts; choose {-(-self.top_k // size)}..{self.num_groups}",
        )

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    @property
    def residual_multiplier(self) -> float:
        """What every residual branch is multiplied by."""
        return self.residual_base_layers / self.num_layers if self.residual_base_layers else 1.0


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
    """The suite at final states (`items` per family) and the smaller probe at all others.

    All families are asked; `families` are those whose mean is the accuracy, None the data's own choice
    (`moe.data.averaged_of`). Of a corpus, `context_length` tokens are shown and `continuation_length` are to
    be chosen.
    """

    items: int
    probe_items: int
    probe_every: int
    families: tuple[str, ...] | None
    context_length: int
    continuation_length: int

    def __post_init__(self) -> None:
        positive = (f.name for f in dataclasses.fields(self) if f.name != "families")
        check_positive(self, "evaluate", *positive)
        check(
            self.families is None or 0 < len(self.families) == len(set(self.families)),
            f"evaluate.families={list(self.families or ())} must name each family once, and at least one; "
            "or be null",
        )
        check(
            self.probe_items <= self.items,
            f"evaluate.probe_items={self.probe_items} is above evaluate.items={self.items}; the probe is the "
            f"smaller of the two: choose 1..{self.items}",
        )
