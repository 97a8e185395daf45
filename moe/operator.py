"""One growth as frozen data: which layers, which experts, and what it promises. No torch here."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from moe.config import Gate, ModelConfig, NormPlacement
from moe.plain import added, check


class DepthMethod(StrEnum):
    """How layers are copied (arXiv 2510.08008 §3.1); `none` leaves the depth alone."""

    STACK = "stack"
    INTERPOSITION = "interposition"
    LAYER_MAP = "layer_map"
    RANDOM = "random"
    NONE = "none"


class Copies(StrEnum):
    """What a copied layer adds to the residual stream: as much as its source, nothing, or a fair share."""

    EXACT = "exact"
    ZEROED = "zeroed"
    SCALED = "scaled"


class WidthMethod(StrEnum):
    """How experts are added (arXiv 2510.08008 §3.2); `none` leaves the width alone."""

    DUPLICATE = "duplicate"
    EXPERTS_ONLY = "experts_only"
    TOP_K_ONLY = "top_k_only"
    SPLIT = "split"
    RANDOM_EXPERTS = "random_experts"
    DROP_UPCYCLE = "drop_upcycle"
    NONE = "none"

    @property
    def adds_experts(self) -> bool:
        return self not in (WidthMethod.TOP_K_ONLY, WidthMethod.NONE)

    @property
    def makes_twins(self) -> bool:
        """Whether whole experts are copied, with or without something of them drawn anew."""
        return self in (WidthMethod.DUPLICATE, WidthMethod.EXPERTS_ONLY, WidthMethod.DROP_UPCYCLE)

    @property
    def takes_noise(self) -> bool:
        """Whether twins would do the same work for ever, were it not for noise."""
        return self in (WidthMethod.DUPLICATE, WidthMethod.EXPERTS_ONLY)

    @property
    def multiplies_top_k(self) -> bool:
        return self not in (WidthMethod.EXPERTS_ONLY, WidthMethod.NONE)

    @property
    def shares_gradient(self) -> bool:
        """Whether each of m copies receives 1/m of its source's gradient; split experts: the rows."""
        return self in (WidthMethod.DUPLICATE, WidthMethod.SPLIT, WidthMethod.DROP_UPCYCLE)


class OptimizerState(StrEnum):
    """What a grown state inherits of AdamW's moments: nothing, copies, or copies divided by m and m²."""

    RESET = "reset"
    COPY = "copy"
    RESCALE = "rescale"


class Exactness(StrEnum):
    """What a growth does to the function, from best to worst.

    `exact`: unchanged up to rounding. `perturbed`: exact but for noise. `first_order`: equal to first order
    in the size of a layer's contribution. `changed`: no promise.
    """

    EXACT = "exact"
    PERTURBED = "perturbed"
    FIRST_ORDER = "first_order"
    CHANGED = "changed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """One growth, reduced to what acts: a field without effect holds the value that says so.

    `layer_map` is the list of source layers of method `layer_map` alone. `router_noise_scale` is None where
    router rows get the experts' `noise_scale`. `seed` is None where nothing is drawn.
    """

    method: DepthMethod = DepthMethod.NONE
    depth_factor: int = 1
    width_method: WidthMethod = WidthMethod.NONE
    width_factor: int = 1
    noise_scale: float = 0.0
    seed: int | None = None
    keep_first: int = added(0)
    keep_last: int = added(0)
    layer_map: tuple[int, ...] | None = added(None)
    copies: Copies = added(Copies.EXACT)
    router_noise_scale: float | None = added(None)
    drop_fraction: float = added(0.0)

    def __post_init__(self) -> None:
        by_map = self.method is DepthMethod.LAYER_MAP
        _check_factor("depth_factor", self.depth_factor, "method", self.method, by_map)
        _check_factor("width_factor", self.width_factor, "width_method", self.width_method, False)
        check(
            by_map == (self.layer_map is not None),
            f"growth.layer_map={list(self.layer_map) if self.layer_map else 'null'} with growth.method="
            f"{self.method}: method layer_map reads it and no other does; set both or neither",
        )
        check(
            not by_map or self.keep_first == self.keep_last == 0,
            f"growth.keep_first={self.keep_first} and growth.keep_last={self.keep_last} with growth.method="
            "layer_map: the map says it all; set them to 0",
        )
        for name in ("keep_first", "keep_last", "noise_scale", "router_noise_scale"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"growth.{name}={value} must not be negative")
        drops = self.width_method is WidthMethod.DROP_UPCYCLE
        check(
            0 < self.drop_fraction <= 1 if drops else self.drop_fraction == 0,
            f"growth.drop_fraction={self.drop_fraction} must lie above 0 and at most at 1 for "
            "growth.width_method=drop_upcycle, and be 0 for others; for 0 choose duplicate",
        )
        check(
            self.seed is not None or not self.draws,
            "growth.seed=None, and this growth draws random numbers; give a seed",
        )

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn."""
        noisy = self.width_method.takes_noise and max(self.noise_scale, self.router_noise) > 0
        new = self.width_method in (WidthMethod.RANDOM_EXPERTS, WidthMethod.DROP_UPCYCLE)
        return noisy or new or self.method is DepthMethod.RANDOM

    @property
    def deepens(self) -> bool:
        return self.method is not DepthMethod.NONE

    @property
    def widens(self) -> bool:
        return self.width_method is not WidthMethod.NONE

    @property
    def grows(self) -> bool:
        return self.deepens or self.widens

    @property
    def router_noise(self) -> float:
        """α of the router rows."""
        return self.noise_scale if self.router_noise_scale is None else self.router_noise_scale

    @property
    def label(self) -> str:
        """The operators in words: "interposition + duplicate"; "none" if it does not grow."""
        parts = [self.method.value] * self.deepens + [self.width_method.value] * self.widens
        return " + ".join(parts) or "none"

    def without_width(self) -> "Operator":
        """The growth in depth alone."""
        return dataclasses.replace(
            self,
            width_method=WidthMethod.NONE,
            width_factor=1,
            noise_scale=0.0,
            router_noise_scale=None,
            drop_fraction=0.0,
        )

    def layer_sources(self, num_layers: int) -> list[int]:
        """The source of each grown layer: i mod L for `stack`, ⌊i/g⌋ for `interposition` (Eq. 1 and 2).

        The first `keep_first` and last `keep_last` layers stay single: gL − (g−1)(a+b) layers. `random`
        puts new layers where `interposition` puts copies. ValueError if the layers at hand do not allow it.
        """
        if self.method is DepthMethod.LAYER_MAP:
            return self._mapped(num_layers)
        first, last, factor = self.keep_first, self.keep_last, self.depth_factor
        check(
            not self.deepens or first + last < num_layers,
            f"growth.keep_first={first} and growth.keep_last={last} keep all of model.num_layers="
            f"{num_layers} layers single; together they must stay below {num_layers}",
        )
        middle = range(first, num_layers - last)
        match self.method:
            case DepthMethod.STACK:
                copied = list(middle) * factor
            case DepthMethod.INTERPOSITION | DepthMethod.RANDOM:
                copied = [layer for layer in middle for _ in range(factor)]
            case _:
                copied = list(middle)
        return [*range(first), *copied, *range(num_layers - last, num_layers)]

    def _mapped(self, num_layers: int) -> list[int]:
        assert self.layer_map is not None, "method layer_map without a map"
        sources = list(self.layer_map)
        outside = [source for source in sources if not 0 <= source < num_layers]
        check(
            not outside,
            f"growth.layer_map holds {', '.join(map(str, outside))}, but the model has layers "
            f"0..{num_layers - 1}; name those alone",
        )
        check(
            len(sources) > num_layers,
            f"growth.layer_map has {len(sources)} entries for a model of {num_layers} layers; it lists the "
            f"source of every grown layer: give at least {num_layers + 1}",
        )
        return sources

    def apply_to(self, model: ModelConfig) -> ModelConfig:
        """The grown architecture, with what keeps its function: route scale, bias rate and group counts.

        ValueError, naming field, value, rule and remedy, for a growth that `model` does not allow.
        """
        return _grown(model, self)

    def exactness(self, model: ModelConfig) -> Exactness:
        """What this growth of `model` does to its function, predicted from the algebra alone."""
        order = list(Exactness)
        return max(self._depth_exactness(model), self._width_exactness(model), key=order.index)

    def _depth_exactness(self, model: ModelConfig) -> Exactness:
        if not self.deepens:
            return Exactness.EXACT
        sources = self.layer_sources(model.num_layers)
        in_place = sources == sorted(sources) and set(sources) == set(range(model.num_layers))
        first_in_order = list(dict.fromkeys(sources)) == list(range(model.num_layers))
        if self.copies is Copies.ZEROED and first_in_order:
            return Exactness.EXACT
        evenly = len({sources.count(source) for source in sources}) == 1
        shares = self.copies is Copies.SCALED or (model.residual_base_layers > 0 and evenly)
        averages = shares and model.norm_placement is not NormPlacement.POST
        if in_place and averages and self.method is not DepthMethod.RANDOM:
            return Exactness.FIRST_ORDER
        return Exactness.CHANGED

    def _width_exactness(self, model: ModelConfig) -> Exactness:
        match self.width_method:
            case WidthMethod.NONE:
                return Exactness.EXACT
            case WidthMethod.DUPLICATE | WidthMethod.SPLIT:
                exact = True
            case WidthMethod.EXPERTS_ONLY:
                exact = model.top_k == 1 and model.num_groups == 1
            case _:
                exact = False
        if not exact:
            return Exactness.CHANGED
        noisy = self.width_method.takes_noise and max(self.noise_scale, self.router_noise) > 0
        return Exactness.PERTURBED if noisy else Exactness.EXACT


def _check_factor(name: str, factor: int, key: str, method: StrEnum, by_map: bool) -> None:
    needed = method != "none" and not by_map
    check(
        factor >= 2 if needed else factor == 1,
        f"growth.{name}={factor} must be at least 2, or set growth.{key}=none"
        if needed
        else f"growth.{name}={factor} acts on nothing with growth.{key}={method}; leave it at 1",
    )


@lru_cache(maxsize=256)
def _grown(model: ModelConfig, operator: Operator) -> ModelConfig:
    sources = operator.layer_sources(model.num_layers)
    _check_depth(model, operator, sources)
    deep = dataclasses.replace(
        model,
        num_layers=len(sources),
        num_dense_layers=sum(source < model.num_dense_layers for source in sources),
    )
    return _widened(deep, operator) if operator.widens else deep


def _check_depth(model: ModelConfig, operator: Operator, sources: list[int]) -> None:
    dense = [source < model.num_dense_layers for source in sources]
    check(
        dense == sorted(dense, reverse=True),
        f"growth.method={operator.method} would put one of the model.num_dense_layers="
        f"{model.num_dense_layers} dense layers behind a layer with experts; "
        f"set growth.keep_first={model.num_dense_layers}, or choose interposition",
    )
    check(
        model.num_dense_layers == 0 or any(dense),
        "growth.layer_map leaves out every dense layer; keep at least one",
    )
    if operator.copies is Copies.EXACT:
        return
    check(
        operator.copies is Copies.SCALED or model.norm_placement is not NormPlacement.POST,
        "growth.copies=zeroed keeps the function only where a layer adds to the stream; with "
        "model.norm_placement=post each norm acts on the sum: choose exact or scaled",
    )
    check(
        operator.copies is Copies.ZEROED or operator.method is not DepthMethod.RANDOM,
        "growth.copies=scaled shares a layer's part among its copies, and growth.method=random makes none; "
        "choose exact or zeroed",
    )
    check(
        operator.copies is Copies.ZEROED or model.residual_base_layers == 0,
        f"growth.copies=scaled would divide twice: model.residual_base_layers={model.residual_base_layers} "
        "divides by the number of layers already; choose exact or zeroed",
    )


def _widened(model: ModelConfig, operator: Operator) -> ModelConfig:
    method, m = operator.width_method, operator.width_factor
    _check_width(model, operator)
    shares_probability = model.gate.shares_probability and method.adds_experts
    num_groups = model.num_groups * m if method.adds_experts and model.num_groups > 1 else model.num_groups
    more_groups = num_groups > 1 and method.multiplies_top_k and method.adds_experts
    split = method is WidthMethod.SPLIT
    return dataclasses.replace(
        model,
        num_experts=model.num_experts * (m if method.adds_experts else 1),
        top_k=model.top_k * (m if method.multiplies_top_k else 1),
        expert_hidden_size=model.expert_hidden_size // m if split else model.expert_hidden_size,
        num_shared_experts=model.num_shared_experts * (m if split else 1),
        route_scale=model.route_scale * _route_scale(model, method, m),
        selection_bias_rate=model.selection_bias_rate / (m if shares_probability else 1),
        num_groups=num_groups,
        top_k_groups=model.top_k_groups * m if more_groups else model.top_k_groups,
    )


def _check_width(model: ModelConfig, operator: Operator) -> None:
    method, m = operator.width_method, operator.width_factor
    check(
        model.num_moe_layers > 0,
        f"growth.width_method={method} needs layers with experts, and model.num_dense_layers="
        f"{model.num_dense_layers} leaves none; set growth.width_method=none or lower the number",
    )
    check(
        model.capacity_factor is None,
        f"growth.width_method={method} keeps no promise with model.capacity_factor="
        f"{model.capacity_factor}: copies fill up and drop other tokens than their source; "
        "set model.capacity_factor=null",
    )
    check(
        method is not WidthMethod.SPLIT or model.expert_hidden_size % m == 0,
        f"growth.width_factor={m} must divide model.expert_hidden_size={model.expert_hidden_size} "
        "for growth.width_method=split",
    )
    dropped = round(operator.drop_fraction * model.expert_hidden_size)
    check(
        method is not WidthMethod.DROP_UPCYCLE or dropped > 0,
        f"growth.drop_fraction={operator.drop_fraction} of model.expert_hidden_size="
        f"{model.expert_hidden_size} units drops none; raise it, or choose growth.width_method=duplicate",
    )
    most = model.top_k_groups * model.num_experts // model.num_groups
    check(
        method is not WidthMethod.TOP_K_ONLY or model.top_k * m <= most,
        f"growth.width_factor={m} asks for top_k={model.top_k * m} of {most} experts that a token can reach; "
        + (
            f"with growth.width_method=top_k_only choose at most {most // model.top_k}"
            if most >= 2 * model.top_k
            else "there is no room for growth.width_method=top_k_only"
        ),
    )


def _route_scale(model: ModelConfig, method: WidthMethod, m: int) -> float:
    """What the gates must be multiplied by so that m copies of an expert together weigh what it weighed."""
    gates_are_shared = model.gate is not Gate.SIGMOID  # m chosen copies split their source's gate
    match method:
        case WidthMethod.SPLIT:
            return float(m) if gates_are_shared else 1.0
        case WidthMethod.DUPLICATE | WidthMethod.DROP_UPCYCLE | WidthMethod.RANDOM_EXPERTS:
            return 1.0 if gates_are_shared else 1.0 / m
        case WidthMethod.EXPERTS_ONLY:
            return float(m) if model.gate is Gate.SOFTMAX and model.top_k == 1 else 1.0
        case _:
            return 1.0
