"""What a grown checkpoint is made of, tensor by tensor, from headers alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from moe.config import ModelConfig
from moe.operator import Copies, DepthMethod, Exactness, Operator, WidthMethod
from moe.plain import check
from moe.recycle.architecture import Architecture, Layout, Place, Role, architecture_of, place_of
from moe.recycle.checkpoint import DTYPES, Checkpoint, Stored
from moe.recycle.configuration import grown_config, shape_of

_MATRICES = (Role.EXPERT_IN, Role.EXPERT_OUT)
_OF_EXPERTS = (*_MATRICES, Role.EXPERT_IN_BIAS, Role.EXPERT_OUT_BIAS)
_OF_ROUTER = (Role.ROUTER, Role.ROUTER_BIAS, Role.SELECTION_BIAS)
_WAY_BACK = (Role.OUTPUT, Role.EXPERT_OUT, Role.EXPERT_OUT_BIAS)
_INITIALIZER_RANGE = 0.02


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a block: the c-th of m parts of its hidden units, with noise of `noise` times its σ, or
    drawn anew, wholly from N(0, new²) or in the `dropped` fraction of its units; all times `scale`.

    `key` names the stream of what is drawn, `units` that of which units are dropped, one for an expert.
    """

    layout: Layout = Layout.ROWS
    scale: float = 1.0
    noise: float = 0.0
    new: float | None = None
    dropped: float = 0.0
    part: tuple[int, int] | None = None
    key: str = ""
    units: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive bytes of a target: `count` slices of `source` from `index` on along its first axis, as they
    are, or one of them changed. The whole tensor where `index` is None."""

    source: Stored
    index: int | None = None
    count: int = 1
    change: Change | None = None

    @property
    def num_bytes(self) -> int:
        whole = self.source.end - self.source.begin
        size = whole if self.index is None else whole // self.source.shape[0] * self.count
        return size // (self.change.part[1] if self.change and self.change.part else 1)


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the grown checkpoint, its pieces in their order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def whole(stored: Stored) -> tuple[Piece, ...]:
    """A tensor as it is."""
    return (Piece(stored),)


@dataclass(frozen=True)
class Size:
    """Numbers of a checkpoint: weights, those that act on a token, bytes, and training FLOPs per token, 6 for
    each weight that multiplies; those of attention's scores are left out."""

    layers: int
    experts: int
    top_k: int
    total_params: int
    activated_params: int
    train_flops_per_token: float
    num_bytes: int


@dataclass(frozen=True)
class Plan:
    """A growth of one checkpoint, resolved: nothing of it depends on threads, shards or memory."""

    source: Checkpoint
    architecture: Architecture
    operator: Operator
    config: dict[str, Any]
    targets: tuple[Target, ...]
    exactness: Exactness
    before: Size
    after: Size


def make_plan(source: Checkpoint, operator: Operator) -> Plan:
    """ValueError, naming what it is about, for a checkpoint or a growth of it that cannot be had."""
    architecture = architecture_of(source.config)
    places = places_of(source, architecture)
    check(operator.grows, "growth.method=none and growth.width_method=none grow nothing; choose one of them")
    num_layers = int(source.config["num_hidden_layers"])
    with_experts = {place.layer for place in places.values() if place.pattern.role is Role.ROUTER}
    dense = frozenset(layer for layer in range(num_layers) if layer not in with_experts)
    check(
        not architecture.dense_prefix or dense == frozenset(range(len(dense))),
        f"source: layers {sorted(dense)} have no router, and in a {architecture.model_type} such layers come "
        "first",
    )
    config, factor = grown_config(architecture, source.config, operator, dense)
    model = shape_of(architecture, source.config, dense)
    grower = _Grower(source, operator, places, model, factor)
    targets = tuple(grower.targets())
    grown = operator.apply_to(model)
    return Plan(
        source=source,
        architecture=architecture,
        operator=operator,
        config=config,
        targets=targets,
        exactness=operator.exactness(model),
        before=_size(
            model, [(t.name, t.shape, t.end - t.begin) for t in source.tensors.values()], architecture
        ),
        after=_size(grown, [(t.name, t.shape, t.num_bytes) for t in targets], architecture),
    )


def places_of(source: Checkpoint, architecture: Architecture) -> dict[str, Place]:
    """The place of every tensor; what is quantised or matched by no pattern is refused by name."""
    coded_by = (source.config.get("quantization_config") or {}).get("quant_method")
    check(
        coded_by is None,
        f"source: config.json has quantization_config ({coded_by}): its weights are codes, which cannot be "
        "grown; give the checkpoint in bf16, fp16 or fp32",
    )
    found = {name: place_of(architecture, name) for name in source.tensors}
    unknown = sorted(name for name, place in found.items() if place is None)
    check(
        not unknown,
        f"source: {len(unknown)} tensors are not known in a {architecture.model_type}: "
        f"{', '.join(unknown[:6])}{' …' if len(unknown) > 6 else ''}; nothing is guessed",
    )
    coded = [stored for stored in source.tensors.values() if stored.dtype not in DTYPES]
    check(
        not coded,
        f"source: {coded[0].name} in {coded[0].path.name} is {coded[0].dtype}; weights are grown in "
        f"{', '.join(DTYPES)} alone"
        if coded
        else "",
    )
    return {name: place for name, place in found.items() if place is not None}


class _Grower:
    """Every target tensor of one growth, in the order of the grown layers."""

    def __init__(
        self,
        source: Checkpoint,
        operator: Operator,
        places: dict[str, Place],
        model: ModelConfig,
        factor: float,
    ) -> None:
        self.operator, self.model, self.factor = operator, model, factor
        self.m = operator.width_factor if operator.width_method.adds_experts else 1
        self.init_std = float(source.config.get("initializer_range") or _INITIALIZER_RANGE)
        self.outside = [source.tensors[name] for name, place in places.items() if place.layer is None]
        self.by_layer: dict[int, list[tuple[Place, Stored]]] = {}
        for name, place in places.items():
            if place.layer is not None:
                self.by_layer.setdefault(place.layer, []).append((place, source.tensors[name]))
        for layer, own in self.by_layer.items():
            self._check_layer(layer, own)

    def targets(self) -> Iterator[Target]:
        for stored in self.outside:
            yield Target(stored.name, stored.dtype, stored.shape, whole(stored))
        num_layers = self.model.num_layers
        sources = self.operator.layer_sources(num_layers)
        num_copies, seen = Counter(sources), Counter[int]()
        for new, old in enumerate(sources):
            for place, stored in self.by_layer[old]:
                yield from self._tensor(place, stored, new, seen[old], num_copies[old])
            seen[old] += 1
        for old in sorted(layer for layer in self.by_layer if layer >= num_layers):  # multi-token prediction
            for place, stored in self.by_layer[old]:
                yield from self._tensor(place, stored, len(sources) + old - num_layers, 0, 1)

    def _check_layer(self, layer: int, own: list[tuple[Place, Stored]]) -> None:
        """Every expert is there, once, in each of its matrices."""
        num_experts = self.model.num_experts
        found = Counter(place.pattern.regex for place, _ in own if place.expert is not None)
        counts = {place.expert for place, _ in own if place.expert is not None}
        stacked = {stored.shape[0] for place, stored in own if place.pattern.stacked or _is_router(place)}
        check(
            (
                not counts
                or (counts == set(range(num_experts)) and all(n % num_experts == 0 for n in found.values()))
            )
            and stacked <= {num_experts},
            f"source: layer {layer} does not have the {num_experts} experts that config.json says",
        )

    def _tensor(
        self, place: Place, stored: Stored, layer: int, copy: int, num_copies: int
    ) -> Iterator[Target]:
        """The targets of one source tensor in grown layer `layer`, the `copy`-th of `num_copies` like it."""
        prefix, role = f"model.layers.{layer}.", place.pattern.role
        base = Change(layout=place.pattern.layout, scale=self._branch_factor(role, copy, num_copies))
        if self.operator.method is DepthMethod.RANDOM and copy > 0 and len(stored.shape) > 1:
            base = replace(base, new=self.init_std)
        if role in _OF_EXPERTS:
            yield from self._expert(place, stored, prefix, base)
        elif role in _OF_ROUTER and self.m > 1:
            name = prefix + place.rest
            pieces = tuple(Piece(stored, change=self._of_router(role, base, name, c)) for c in range(self.m))
            shape = (self.m * self.model.num_experts, *stored.shape[1:])
            yield Target(name, stored.dtype, shape, pieces)
        else:
            name = prefix + place.rest
            yield Target(name, stored.dtype, stored.shape, (Piece(stored, change=_acting(base, name)),))

    def _of_router(self, role: Role, base: Change, name: str, c: int) -> Change | None:
        if role is Role.SELECTION_BIAS and self.model.gate.shares_probability:
            base = replace(base, scale=base.scale / self.m)
        if c and role is Role.ROUTER:
            if self.operator.width_method is WidthMethod.RANDOM_EXPERTS:
                base = replace(base, new=self.init_std)
            elif self.operator.width_method.takes_noise:
                base = replace(base, noise=self.operator.router_noise)
        return _acting(base, f"{name}/{c}")

    def _expert(self, place: Place, stored: Stored, prefix: str, base: Change) -> Iterator[Target]:
        role, num_experts = place.pattern.role, self.model.num_experts
        split = self.operator.width_method is WidthMethod.SPLIT
        if role in (Role.EXPERT_OUT, Role.EXPERT_OUT_BIAS):
            base = replace(base, scale=base.scale * self.factor)
        if split and role is Role.EXPERT_OUT_BIAS:
            base = replace(base, scale=base.scale / self.m)  # a part adds its share of it

        def changed(c: int, expert: int, name: str) -> Change | None:
            own = self._copied(role, base, c, f"{prefix}{c}/{expert}") if c else base
            if split and role is not Role.EXPERT_OUT_BIAS:
                own = replace(own, part=(c, self.m))
            return _acting(own, f"{name}/{c}/{expert}")

        if place.expert is not None:
            for c in range(self.m):
                number = c * num_experts + place.expert
                name = prefix + place.rest.replace(f"experts.{place.expert}.", f"experts.{number}.", 1)
                shape = split_shape(stored.shape, place.pattern.layout, self.m) if split else stored.shape
                yield Target(
                    name, stored.dtype, shape, (Piece(stored, change=changed(c, place.expert, name)),)
                )
            return
        name, pieces = prefix + place.rest, []
        for c in range(self.m):
            own = [changed(c, expert, name) for expert in range(num_experts)]
            if all(change is None for change in own):
                pieces.append(Piece(stored, 0, num_experts))
            else:
                pieces += [Piece(stored, expert, change=change) for expert, change in enumerate(own)]
        shape = stored.shape[1:]
        if split and role is not Role.EXPERT_OUT_BIAS:
            shape = split_shape(shape, place.pattern.layout, self.m)
        yield Target(name, stored.dtype, (self.m * num_experts, *shape), tuple(pieces))

    def _copied(self, role: Role, base: Change, c: int, units: str) -> Change:
        """What is done to a copied expert beyond what all of its appearances have."""
        method = self.operator.width_method
        if role not in _MATRICES:
            return base
        match method:
            case WidthMethod.RANDOM_EXPERTS:
                return replace(base, new=self.init_std)
            case WidthMethod.DROP_UPCYCLE:
                return replace(base, dropped=self.operator.drop_fraction, units=units)
            case _ if method.takes_noise:
                return replace(base, noise=self.operator.noise_scale)
        return base

    def _branch_factor(self, role: Role, copy: int, num_copies: int) -> float:
        """What this tensor is multiplied by so that its residual branch adds as `growth.copies` says."""
        if role not in _WAY_BACK or not self.operator.deepens:
            return 1.0
        match self.operator.copies:
            case Copies.SCALED:
                return 1.0 / num_copies
            case Copies.ZEROED:
                return 0.0 if copy else 1.0
        return 1.0


def _acting(change: Change, key: str) -> Change | None:
    """None for a change that changes nothing; a stream's name for one that draws."""
    if change == Change(layout=change.layout):
        return None
    return replace(change, key=key if change.noise or change.new is not None or change.dropped else "")


def _is_router(place: Place) -> bool:
    return place.pattern.role in _OF_ROUTER


def split_shape(shape: tuple[int, ...], layout: Layout, m: int) -> tuple[int, ...]:
    """Of one expert's block, for one of m parts of its hidden units."""
    axis = {Layout.ROWS: 0, Layout.ROW_HALVES: 0}.get(layout, len(shape) - 1)
    return tuple(size // m if nth == axis else size for nth, size in enumerate(shape))


def _size(model: ModelConfig, tensors: list[tuple[str, tuple[int, ...], int]], known: Architecture) -> Size:
    """Counted from shapes. A model without a head of its own multiplies by its embedding."""
    counts: Counter[str] = Counter()
    for name, shape, _ in tensors:
        place = place_of(known, name)
        of_experts = place is not None and place.pattern.role in _OF_EXPERTS
        behind = place is not None and place.layer is not None and place.layer >= model.num_layers
        counts["behind" if behind else "experts" if of_experts else "others"] += prod(shape)
    shapes = {name: prod(shape) for name, shape, _ in tensors}
    embedding, head = shapes.get("model.embed_tokens.weight", 0), shapes.get("lm_head.weight", 0)
    chosen = counts["experts"] * model.top_k // model.num_experts
    activated = counts["others"] + chosen
    return Size(
        layers=model.num_layers,
        experts=model.num_experts,
        top_k=model.top_k,
        total_params=counts["others"] + counts["experts"] + counts["behind"],
        activated_params=activated,
        train_flops_per_token=6.0 * (activated - (embedding if head else 0)),
        num_bytes=sum(num_bytes for _, _, num_bytes in tensors),
    )
