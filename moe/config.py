"""What is trained, as frozen dataclasses, and the one strict parser that makes them. No torch here."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

# --------------------------------------------------------------------------------------------------------
# Choices


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


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_positive(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        check(value > 0, f"{section}.{name}={value} must be above 0")


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


# --------------------------------------------------------------------------------------------------------
# Strict parsing


def parse(cls: Any, value: Any, path: str = "") -> Any:
    """Makes a `cls` of plain YAML data; an unknown or missing key or a wrong type is an error with its path.

    An int widens to a float field; a float never narrows to an int, nor a bool to either.
    """
    where = path or "the configuration"
    if type(value) is cls and cls in (int, str, bool):
        return value
    if dataclasses.is_dataclass(cls):
        return _parse_dataclass(cls, value, path)
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        assert len(options) == 1, f"{where}: only optional fields are unions here, not {cls}"
        return parse(options[0], value, path)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}={value!r} must be a list")
        return tuple(parse(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(cls, type) and issubclass(cls, StrEnum):
        try:
            return cls(value)
        except ValueError:
            choices = ", ".join(member.value for member in cls)
            message = f"{where}={value} is not a choice; choose one of {choices}"
            raise ValueError(message) from None
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not cls:
        raise ValueError(f"{where}={value!r} is {_kind(value)}; it must be {_KINDS[cls]}")
    if cls is float and not math.isfinite(value):
        raise ValueError(f"{where}={value} must be a finite number")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _kind(value: Any) -> str:
    return _KINDS.get(
        type(value), {type(None): "missing (null)", dict: "a group of keys"}.get(type(value), "a list")
    )


def _parse_dataclass(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{path or 'the configuration'}={value!r} must be a group of keys")
    hints, required = _hints(cls)
    names = list(hints)
    unknown = [key for key in value if key not in names]
    if unknown:
        dotted = ", ".join(f"{path}.{key}".lstrip(".") for key in unknown)
        raise ValueError(f"unknown key {dotted}; {path or 'the top level'} has: {', '.join(names)}")
    missing = [name for name in required if name not in value]
    if missing:
        raise ValueError(f"missing key {', '.join(f'{path}.{name}'.lstrip('.') for name in missing)}")
    return cls(**{key: parse(hints[key], item, f"{path}.{key}".lstrip(".")) for key, item in value.items()})


@lru_cache(maxsize=64)
def _hints(cls: Any) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass's fields in their order, and the names of those without a default."""
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    required = [f.name for f in fields if f.default is dataclasses.MISSING]
    return {f.name: hints[f.name] for f in fields}, required


# --------------------------------------------------------------------------------------------------------
# Identity


def to_plain(value: Any) -> Any:
    """Dataclasses and enums as plain JSON data.

    A field added after a release declares `metadata={"absent": old_behaviour}` and is left out while it
    equals that constant, so that ids made before it existed stay what they were.
    """
    if value is None or type(value) in _KINDS:
        return value
    if isinstance(value, StrEnum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for name, absent in _identity_fields(type(value)):
            item = getattr(value, name)
            if absent is dataclasses.MISSING or item != absent:
                plain[name] = to_plain(item)
        return plain
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


@lru_cache(maxsize=64)
def _identity_fields(cls: Any) -> list[tuple[str, Any]]:
    fields = dataclasses.fields(cls)
    return [(f.name, f.metadata.get("absent", dataclasses.MISSING)) for f in fields]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and floats by `repr`; NaN and anything that is not plain data are refused."""
    return _ENCODER.encode(value)


def _plain_dataclass(value: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} has no canonical form: it is {type(value).__name__}, not plain data")
    return to_plain(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain_dataclass)


def digest(value: Any) -> str:
    """The first 12 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]
