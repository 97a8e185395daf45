"""A trajectory is one line of training from one start; its id is the hash of the science that makes it.

No torch here. A child (branch or anneal) hashes its parent's address, the operator, its own learning-rate
function and optimizer-state rule, and inherits the rest through its parent without restating it.
"""

import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from moe import flops
from moe.config import AtGrowth, LearningRate, ModelConfig, TrainConfig
from moe.operator import Operator, OptimizerState
from moe.plain import canonical_json, digest, parse, to_plain

# Raised when the numerics of a kind change: states made before then have other ids.
INIT_VERSION = 1
CHILD_VERSION = 2  # 2: noise is drawn in chunks with a stream each
SOURCE_VERSION = 1  # of how a checkpoint becomes the first state of a trunk


class Kind(StrEnum):
    TRUNK = "trunk"
    SCRATCH = "scratch"
    BRANCH = "branch"
    ANNEAL = "anneal"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The checkpoint that a trunk starts from. What it cost and where it lay are labels, no part of an id.

    `sha256` is of what it holds; `data_start` is the step of the token stream that the trunk begins with.
    """

    sha256: str
    has_moments: bool
    data_start: int
    sunk_flops: float
    path: str
    version: int = SOURCE_VERSION

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "sha256": self.sha256,
            "has_moments": self.has_moments,
            "data_start": self.data_start,
        }

    @property
    def labels(self) -> dict[str, Any]:
        return {"sunk_flops": self.sunk_flops, "path": self.path}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """One line of training. `kind` is a label: equal science has one id, whatever it is called.

    `data` is the canonical JSON of the data identity. `parent` is None for a start from random init, or from
    the checkpoint `source`.
    """

    kind: Kind
    model: ModelConfig
    data: str
    train: TrainConfig
    seed: int
    learning_rate: LearningRate
    parent: "Address | None" = None
    operator: Operator = field(default_factory=Operator)
    optimizer_state: OptimizerState = OptimizerState.RESET
    at_growth: AtGrowth = AtGrowth.CONTINUE
    version: int | None = None  # of its numerics; None: those of this release
    source: Source | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What is hashed. Every field of it can change the numbers; nothing else can."""
        if self.parent is None:
            return {
                "version": self.version or INIT_VERSION,
                "model": to_plain(self.model),
                "data": json.loads(self.data),
                "train": to_plain(self.train),
                "learning_rate": to_plain(self.learning_rate),
                "seed": self.seed,
                **({"source": self.source.identity} if self.source else {}),
            }
        return {
            "version": self.version or CHILD_VERSION,
            "parent": str(self.parent),
            "operator": to_plain(self.operator),
            "learning_rate": to_plain(self.learning_rate),
            "optimizer_state": self.optimizer_state.value,
            "at_growth": self.at_growth.value,
        }

    @cached_property
    def id(self) -> str:
        return digest(self.identity)

    @cached_property
    def flops_per_step(self) -> float:
        """Training FLOPs of one step (convention of moe/flops.py)."""
        return self.train.tokens_per_step * flops.train_flops_per_token(self.model, self.train.seq_len)

    @cached_property
    def root(self) -> "Trajectory":
        return self if self.parent is None else self.parent.trajectory.root

    @cached_property
    def stream(self) -> str:
        """The name of the token stream that is read."""
        if self.parent is None:
            return "train"
        return "disjoint" if self.at_growth is AtGrowth.DISJOINT else self.parent.trajectory.stream

    @cached_property
    def data_start(self) -> int:
        """The data step of this trajectory's step 0."""
        if self.parent is None:
            return self.source.data_start if self.source else 0
        if self.at_growth is AtGrowth.REPLAY:
            return 0
        return self.parent.trajectory.data_start + self.parent.step

    @cached_property
    def num_copies(self) -> int:
        """How many experts have one origin since the last growth in width; 1 if none have."""
        if self.operator.widens:
            return self.operator.width_factor if self.operator.width_method.makes_twins else 1
        return 1 if self.parent is None else self.parent.trajectory.num_copies

    @property
    def slug(self) -> str:
        """A few readable words for the folder's name; no part of the identity."""
        words = [f"d{self.model.hidden_size}", f"l{self.model.num_layers}", f"e{self.model.num_experts}"]
        if self.parent is None:
            words += [f"s{self.seed}", *([f"from{self.source.sha256[:6]}"] if self.source else [])]
        else:
            words.insert(0, f"at{self.parent.step}")
            if self.operator.grows:
                method, width = self.operator.method, self.operator.width_method
                words.insert(1, (method if self.operator.deepens else width).value)
        return "-".join(words)

    def at(self, step: int) -> "Address":
        return Address(self, step)


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """The address of a state: a trajectory and a step of it."""

    trajectory: Trajectory
    step: int

    def __str__(self) -> str:
        return f"{self.trajectory.id}@{self.step}"

    @property
    def key(self) -> tuple[str, int]:
        return self.trajectory.id, self.step

    def segments(self) -> "list[tuple[Trajectory, int]]":
        """(trajectory, steps of it) from the trunk's start, random init or a checkpoint, to this state."""
        before = self.trajectory.parent.segments() if self.trajectory.parent else []
        return [*before, (self.trajectory, self.step)]

    @property
    def trained_flops(self) -> float:
        """Training FLOPs from the trunk's start to this state."""
        return sum(trajectory.flops_per_step * steps for trajectory, steps in self.segments())

    @property
    def flops(self) -> float:
        """All training FLOPs from random init to this state, those sunk in a checkpoint included."""
        source = self.trajectory.root.source
        return self.trained_flops + (source.sunk_flops if source else 0.0)


def from_identity(
    identity: dict[str, Any], kind: Kind, parent: Trajectory | None, labels: dict[str, Any] | None = None
) -> Trajectory:
    """The trajectory of a stored identity; `parent` is the one its address names, already rebuilt, `labels`
    those of the checkpoint that it starts from."""
    learning_rate = parse(LearningRate, identity["learning_rate"], "learning_rate")
    if parent is None:
        return Trajectory(
            kind=kind,
            model=parse(ModelConfig, identity["model"], "model"),
            data=canonical_json(identity["data"]),
            train=parse(TrainConfig, identity["train"], "train"),
            seed=identity["seed"],
            learning_rate=learning_rate,
            version=identity["version"],
            source=Source(**identity["source"], **(labels or {})) if "source" in identity else None,
        )
    parent_id, step = parse_address(identity["parent"])
    assert parent.id == parent_id, f"{parent.id} is not the parent {parent_id}"
    operator = parse(Operator, identity["operator"], "operator")
    return child(
        parent,
        step,
        kind=kind,
        learning_rate=learning_rate,
        operator=operator,
        optimizer_state=OptimizerState(identity["optimizer_state"]),
        at_growth=AtGrowth(identity["at_growth"]),
        version=identity["version"],
    )


@lru_cache(maxsize=1 << 16)
def child(
    source: Trajectory,
    step: int,
    *,
    kind: Kind,
    learning_rate: LearningRate,
    operator: Operator | None = None,
    optimizer_state: OptimizerState = OptimizerState.COPY,
    at_growth: AtGrowth = AtGrowth.CONTINUE,
    version: int | None = None,
) -> Trajectory:
    """The trajectory that starts from a state of `source`; without an operator it just goes on from it.

    Equal arguments give the same object, so that an id is hashed once however many cells share it.
    """
    operator = operator or Operator()
    if optimizer_state is OptimizerState.RESCALE and not operator.width_method.shares_gradient:
        optimizer_state = OptimizerState.COPY  # no copies share a gradient, so nothing is rescaled
    if step == 0 and source.source is not None and not source.source.has_moments:
        optimizer_state = OptimizerState.RESET  # there is nothing to copy
    return Trajectory(
        kind=kind,
        model=operator.apply_to(source.model) if operator.grows else source.model,
        data=source.data,
        train=source.train,
        seed=source.seed,
        learning_rate=learning_rate,
        parent=source.at(step),
        operator=operator,
        optimizer_state=optimizer_state,
        at_growth=at_growth,
        version=version,
    )


def parse_address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([0-9a-f]{12})@(\d+)", text)
    assert match, f"{text!r} is not the address of a state"
    return match[1], int(match[2])
