"""Both algebra tables, row by row: what growth keeps, what it corrects, what it refuses.

A row that must be exact is held to 1e-5 in fp32. Beside it stands what would go wrong without the correction,
so that the test could fail.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import tiny
import torch

from moe import flops
from moe.config import Gate, NormPlacement
from moe.growth import Moments, grow_moments, grow_weights
from moe.model import MoETransformer
from moe.operator import Copies, DepthMethod, Exactness, Operator, OptimizerState, WidthMethod
from moe.router import route
from moe.train import State, Trainer, initial_state, language_loss

TOKENS = torch.randint(0, 400, (4, 17), generator=torch.Generator().manual_seed(1))
DUPLICATE = Operator(width_method=WidthMethod.DUPLICATE, width_factor=2)
SPLIT = Operator(width_method=WidthMethod.SPLIT, width_factor=2)
DEEP = Operator(method=DepthMethod.INTERPOSITION, depth_factor=2)
ZEROED = dataclasses.replace(DEEP, copies=Copies.ZEROED)
SCALED = dataclasses.replace(DEEP, copies=Copies.SCALED)


def model(**fields):
    return tiny.model(**{"num_layers": 3, "num_experts": 8, "top_k": 2, **fields})


def weights_of(config, seed=0):
    """Random weights; selection biases large enough to change who is chosen."""
    weights = initial_state(config, seed).weights
    for name, tensor in weights.items():
        if name.endswith("selection_bias_E"):
            scale = 1.0 if config.gate is Gate.TOPK_SOFTMAX else 0.1
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)) * scale)
    return weights


def logits(config, weights):
    network = MoETransformer(config)
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(TOKENS[:, :-1])


def apart(config, operator, weights=None, **wrong):
    """max |Δlogit| of a growth; `wrong` fields undo a correction of the grown architecture."""
    weights = weights or weights_of(config)
    grown = dataclasses.replace(operator.apply_to(config), **wrong)
    return (
        (logits(grown, grow_weights(config, operator, weights)) - logits(config, weights)).abs().max().item()
    )


ROUTERS = [
    {"gate": gate, "selection_bias_rate": rate, "num_groups": groups, "top_k_groups": min(groups, 2)}
    for gate, rate, groups in itertools.product(Gate, (0.0, 0.01), (1, 4))
]


@pytest.mark.parametrize(
    "router", ROUTERS, ids=lambda r: f"{r['gate']}-{r['selection_bias_rate']}-{r['num_groups']}"
)
def test_duplication_and_splitting_keep_the_function_of_every_router(router):
    config = model(**router, num_shared_experts=1, num_dense_layers=1, dense_hidden_size=12, route_scale=1.5)
    for operator in (DUPLICATE, SPLIT, dataclasses.replace(SPLIT, width_factor=4)):
        assert operator.exactness(config) is Exactness.EXACT
        assert apart(config, operator) <= 1e-5


@pytest.mark.parametrize("gate", Gate)
def test_one_of_two_twins_is_enough_where_one_expert_acts(gate):
    only = dataclasses.replace(DUPLICATE, width_method=WidthMethod.EXPERTS_ONLY)
    assert only.exactness(model(gate=gate, top_k=1)) is Exactness.EXACT
    assert apart(model(gate=gate, top_k=1), only) <= 1e-5
    assert only.exactness(model(gate=gate)) is Exactness.CHANGED
    assert apart(model(gate=gate), only) > 1e-3  # twins take both slots


CORRECTIONS = {  # row: (model, operator, what of the grown architecture would be wrong)
    "raw sigmoid gates are m times too large": ({"gate": "sigmoid"}, DUPLICATE, {"route_scale": 1.0}),
    "parts of split experts are m times too small": ({}, SPLIT, {"route_scale": 1.0}),
    "groups are not multiplied": (
        {"gate": "sigmoid_renormalised", "num_groups": 4, "top_k_groups": 2},
        DUPLICATE,
        {"num_groups": 4, "top_k_groups": 2},
    ),
    "k is forgotten": ({}, DUPLICATE, {"top_k": 2}),
}  # fmt: skip


@pytest.mark.parametrize("row", CORRECTIONS)
def test_without_the_correction_the_function_changes(row):
    fields, operator, wrong = CORRECTIONS[row]
    assert apart(model(**fields), operator) <= 1e-5
    assert apart(model(**fields), operator, **wrong) > 1e-3


def with_biases(config, grown, factor):
    return {n: t * factor if n.endswith("selection_bias_E") else t for n, t in grown.items()}


@pytest.mark.parametrize(("gate", "divided"), [
    ("softmax", True), ("softmax_renormalised", True),
    ("topk_softmax", False), ("sigmoid", False), ("sigmoid_renormalised", False),
])  # fmt: skip
def test_a_selection_bias_is_divided_only_where_copies_share_probability(gate, divided):
    config = model(gate=gate, selection_bias_rate=0.01)
    weights = weights_of(config)
    grown_model, grown = DUPLICATE.apply_to(config), grow_weights(config, DUPLICATE, weights)
    assert grown_model.selection_bias_rate == (0.005 if divided else 0.01)
    other = with_biases(grown_model, grown, 2.0 if divided else 0.5)
    assert (logits(grown_model, other) - logits(config, weights)).abs().max() > 1e-3


def test_interleaved_copies_never_fit_groups_by_their_two_best():
    """Why copies are appended: beside its source, a copy is the group's second best."""
    config = model(gate="sigmoid_renormalised", num_groups=4, top_k_groups=2, top_k=2)
    grown_model = DUPLICATE.apply_to(config)
    grown = grow_weights(config, DUPLICATE, weights_of(config))
    order = torch.arange(16).view(2, 8).T.flatten()  # 0, 8, 1, 9, ...
    mixed = {n: t[order] if ".experts." in n or n.endswith("router.weight") else t for n, t in grown.items()}
    for groups in ({}, {"num_groups": 4, "top_k_groups": 2}):
        other = logits(dataclasses.replace(grown_model, **groups), mixed)
        assert (other - logits(config, weights_of(config))).abs().max() > 1e-3


@pytest.mark.parametrize("gate", Gate)
def test_router_losses_are_the_same_after_duplication(gate):
    """E·Σf·P with f over slots, divided by k; z on logsumexp − ln E."""
    config, logits_NE = model(gate=gate), torch.randn(64, 8)
    before, after = route(logits_NE, config), route(logits_NE.repeat(1, 2), DUPLICATE.apply_to(config))
    torch.testing.assert_close(after.load_balance_loss, before.load_balance_loss)
    torch.testing.assert_close(after.z_loss, before.z_loss)


def test_a_full_expert_drops_the_last_tokens_and_width_growth_refuses_it():
    config = model(top_k=1, capacity_factor=1.0)
    routing = route(torch.tensor([[5.0, *[0.0] * 7]]).repeat(16, 1), config)
    assert routing.gates_Nk[:2].sum() == 2
    assert routing.gates_Nk[2:].sum() == 0  # 16 slots over 8 experts: two each
    with pytest.raises(ValueError, match=r"capacity_factor=1.0.*set model.capacity_factor=null"):
        DUPLICATE.apply_to(config)
    assert DEEP.apply_to(config).num_layers == 6


# --------------------------------------------------------------------------------------------------------
# Depth


@pytest.mark.parametrize("method", [DepthMethod.STACK, DepthMethod.INTERPOSITION, DepthMethod.RANDOM])
@pytest.mark.parametrize("placement", [NormPlacement.PRE, NormPlacement.OUTPUT])
@pytest.mark.parametrize("base", [0, 2])
def test_zeroed_copies_preserve_the_function(method, placement, base):
    operator = dataclasses.replace(ZEROED, method=method, seed=3 if method is DepthMethod.RANDOM else None)
    config = model(norm_placement=placement, num_shared_experts=1, residual_base_layers=base)
    assert operator.exactness(config) is Exactness.EXACT
    assert apart(config, operator) <= 1e-5
    assert apart(config, dataclasses.replace(operator, copies=Copies.EXACT)) > 1e-3


@pytest.mark.parametrize("placement", [NormPlacement.PRE, NormPlacement.OUTPUT])
def test_zeroed_copies_do_not_blow_up_the_first_gradient(placement):
    """A projection zeroed before a norm would: its gradient is divided by the square root of ε."""
    config = model(norm_placement=placement)
    weights = weights_of(config)
    grown = gradients(ZEROED.apply_to(config), grow_weights(config, ZEROED, weights))
    before = gradients(config, weights)
    norms = [
        torch.stack([g.norm() for g in grads.values() if g is not None]).norm() for grads in (before, grown)
    ]
    assert norms[1] < 1.6 * norms[0]


@pytest.mark.parametrize(("operator", "fields", "match"), [
    (ZEROED, {"norm_placement": "post"}, r"copies=zeroed.*norm_placement=post.*choose exact or scaled"),
    (SCALED, {"residual_base_layers": 2}, r"divide twice.*choose exact or zeroed"),
])  # fmt: skip
def test_copies_that_would_break_their_promise_are_refused(operator, fields, match):
    with pytest.raises(ValueError, match=match):
        operator.apply_to(model(**fields))


def shrunk(config, weights, factor):
    """Every layer's contribution to the stream, made small, wherever its norm stands."""
    out = ("attention.output.weight", "experts.w_out_EDH", "attention_norm.weight", "moe_norm.weight")
    if config.norm_placement is NormPlacement.OUTPUT:
        return {n: t * factor if n.endswith(out[2:]) else t for n, t in weights.items()}
    return {n: t * factor if n.endswith(out[:2]) else t for n, t in weights.items()}


@pytest.mark.parametrize(("operator", "fields", "order"), [
    (SCALED, {}, 2),
    (SCALED, {"norm_placement": "output"}, 2),
    (DEEP, {"residual_base_layers": 3}, 2),
    (DEEP, {"residual_base_layers": 3, "norm_placement": "output"}, 2),
    (DEEP, {}, 1),
])  # fmt: skip
def test_shared_copies_are_right_to_first_order(operator, fields, order):
    """Halving every layer's contribution divides the error by 4, and by 2 where the first order is wrong."""
    config = model(**fields, top_k=8)  # all experts: no choice flips
    assert (operator.exactness(config) is Exactness.FIRST_ORDER) == (order == 2)
    errors = [apart(config, operator, shrunk(config, weights_of(config), s)) for s in (0.004, 0.002)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize(("first", "last"), [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("factor", [2, 3])
def test_kept_layers_stay_single(first, last, factor):
    operator = dataclasses.replace(DEEP, depth_factor=factor, keep_first=first, keep_last=last)
    sources = operator.layer_sources(5)
    assert len(sources) == factor * 5 - (factor - 1) * (first + last)
    assert sources[:first] == list(range(first))
    assert sources[len(sources) - last :] == list(range(5 - last, 5))
    assert sorted(set(sources)) == list(range(5))
    stacked = dataclasses.replace(operator, method=DepthMethod.STACK).layer_sources(5)
    middle = list(range(first, 5 - last))
    assert stacked == [*range(first), *middle * factor, *range(5 - last, 5)]


def test_a_layer_map_is_followed_to_the_letter():
    """Depth up-scaling that drops the seam (arXiv 2312.15166): the last and first layers meet once."""
    operator = Operator(method=DepthMethod.LAYER_MAP, layer_map=(0, 1, 1, 2))
    config = model()
    weights = weights_of(config)
    grown = grow_weights(config, operator, weights)
    assert operator.apply_to(config).num_layers == 4
    for new, old in enumerate((0, 1, 1, 2)):
        assert torch.equal(
            grown[f"layers.{new}.attention.key.weight"], weights[f"layers.{old}.attention.key.weight"]
        )


@pytest.mark.parametrize(("layers", "match"), [
    ((0, 1, 3, 2), r"layer_map holds 3, but the model has layers 0..2"),
    ((0, 1, -1, 2), r"layer_map holds -1"),
    ((0, 1, 2), r"layer_map has 3 entries for a model of 3 layers.*give at least 4"),
])  # fmt: skip
def test_a_wrong_layer_map_is_refused(layers, match):
    with pytest.raises(ValueError, match=match):
        Operator(method=DepthMethod.LAYER_MAP, layer_map=layers).apply_to(model())


def test_dense_first_layers_stay_first():
    config = model(num_dense_layers=1, dense_hidden_size=12)
    assert DEEP.apply_to(config).num_dense_layers == 2
    stack = dataclasses.replace(DEEP, method=DepthMethod.STACK)
    with pytest.raises(
        ValueError, match=r"dense layers behind a layer with experts; set growth.keep_first=1"
    ):
        stack.apply_to(config)
    assert dataclasses.replace(stack, keep_first=1).apply_to(config).num_dense_layers == 1


@pytest.mark.parametrize(("operator", "fields", "match"), [
    (dataclasses.replace(DEEP, keep_first=2, keep_last=1), {}, r"keep_first=2.*keep_last=1.*stay below 3"),
    (DUPLICATE, {"num_dense_layers": 3, "dense_hidden_size": 8}, r"needs layers with experts"),
    (dataclasses.replace(SPLIT, width_factor=3), {}, r"width_factor=3 must divide model.expert_hidden"),
    (dataclasses.replace(DUPLICATE, width_method=WidthMethod.TOP_K_ONLY, width_factor=5), {},
     r"top_k=10 of 8 experts.*at most 4"),
])  # fmt: skip
def test_a_growth_that_does_not_fit_is_refused(operator, fields, match):
    with pytest.raises(ValueError, match=match):
        operator.apply_to(model(**fields))


def test_random_layers_are_new_and_their_neighbours_are_not():
    config, operator = model(), dataclasses.replace(DEEP, method=DepthMethod.RANDOM, seed=1)
    weights = weights_of(config)
    grown = grow_weights(config, operator, weights)
    name = "attention.query.weight"
    old = {f"layers.{i}.{name}": weights[f"layers.{i // 2}.{name}"] for i in (0, 2, 4)}
    assert all(torch.equal(grown[n], t) for n, t in old.items())
    new = torch.stack([grown[f"layers.{i}.{name}"] for i in (1, 3, 5)])
    assert new.std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert len({float(t.sum()) for t in [*new, *old.values()]}) == 6


# --------------------------------------------------------------------------------------------------------
# Width controls


def test_top_k_only_changes_no_weight():
    operator = dataclasses.replace(DUPLICATE, width_method=WidthMethod.TOP_K_ONLY)
    config, weights = model(), weights_of(model())
    grown = grow_weights(config, operator, weights)
    assert (operator.apply_to(config).top_k, operator.apply_to(config).num_experts) == (4, 8)
    assert all(torch.equal(grown[name], weights[name]) for name in weights)


def test_random_experts_join_the_old_ones():
    operator = Operator(width_method=WidthMethod.RANDOM_EXPERTS, width_factor=2, seed=0)
    config, weights = model(), weights_of(model())
    grown = grow_weights(config, operator, weights)
    for name in ("layers.1.moe.experts.w_in_EGD", "layers.1.moe.router.weight"):
        assert torch.equal(grown[name][:8], weights[name])
        assert grown[name][8:].std() == pytest.approx(weights[name].std().item(), rel=0.15)
        assert not torch.equal(grown[name][8:], weights[name])


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_drop_upcycle_draws_the_same_units_anew_in_gate_up_and_down(fraction):
    operator = Operator(width_method=WidthMethod.DROP_UPCYCLE, width_factor=3, drop_fraction=fraction, seed=0)
    config, weights = model(), weights_of(model())
    grown = grow_weights(config, operator, weights)
    w_in, w_out = (f"layers.0.moe.experts.{n}" for n in ("w_in_EGD", "w_out_EDH"))
    assert torch.equal(grown[w_in][:8], weights[w_in])
    gate, up = (grown[w_in][8:] != weights[w_in].repeat(2, 1, 1)).all(-1).chunk(2, dim=1)  # [16, H]
    down = (grown[w_out][8:] != weights[w_out].repeat(2, 1, 1)).all(1)
    assert torch.equal(gate, up)
    assert torch.equal(gate, down)
    assert (gate.sum(1) == round(fraction * 8)).all()
    assert len({tuple(row.tolist()) for row in gate}) > 1  # each copy has its own


# --------------------------------------------------------------------------------------------------------
# Gradients and moments


def gradients(config, weights):
    network = MoETransformer(config)
    network.load_state_dict(weights)
    language_loss(network, TOKENS)[0].backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("factor", [2, 3])
def test_gradients_of_exact_copies_are_one_mth_for_every_gate(gate, factor):
    config, operator = model(gate=gate), dataclasses.replace(DUPLICATE, width_factor=factor)
    weights = weights_of(config)
    before = gradients(config, weights)
    after = gradients(operator.apply_to(config), grow_weights(config, operator, weights))
    for name in ("layers.1.moe.experts.w_out_EDH", "layers.1.moe.router.weight"):
        expected = before[name].repeat(factor, *[1] * (before[name].ndim - 1)) / factor
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=1e-4)


def one_step(config, state):
    train = tiny.train(grad_clip=1e9, eps=1e-30, weight_decay=0.0)
    rate = tiny.constant(1e-3)
    trainer = Trainer(config, train, rate, lambda step: TOKENS.numpy(), state)
    list(trainer.steps(state.step + 1))
    return trainer.state()


@pytest.mark.parametrize("gate", Gate)
def test_with_rescaled_moments_growing_and_stepping_commute(gate):
    """Grow then train a step = train a step then grow, while clipping is inactive; copied moments do not."""
    config = model(gate=gate, num_layers=1)
    state = State(step=0, weights=weights_of(config), moments=Moments(step=0, first={}, second={}))
    for _ in range(3):
        state = one_step(config, state)
    later = one_step(
        config, State(state.step, {n: t.clone() for n, t in state.weights.items()}, state.moments)
    )
    expected = grow_weights(config, DUPLICATE, later.weights)

    def grown_then_trained(rule):
        weights = grow_weights(config, DUPLICATE, state.weights)
        moments = grow_moments(config, DUPLICATE, rule, state.moments)
        return one_step(DUPLICATE.apply_to(config), State(state.step, weights, moments)).weights

    name = "layers.0.moe.experts.w_in_EGD"
    rescaled, copied = grown_then_trained(OptimizerState.RESCALE), grown_then_trained(OptimizerState.COPY)
    moved = (expected[name] - grow_weights(config, DUPLICATE, state.weights)[name]).abs().mean()
    assert (rescaled[name] - expected[name]).abs().mean() < 0.01 * moved
    assert (copied[name] - expected[name]).abs().mean() > 0.05 * moved


def test_moments_of_split_experts_move_with_their_units():
    config = model()
    weights = weights_of(config)
    moments = Moments(step=4, first=weights, second={n: t**2 for n, t in weights.items()})
    grown = grow_moments(config, SPLIT, OptimizerState.RESCALE, moments)
    expected = grow_weights(config, SPLIT, weights)
    for name in ("layers.0.moe.experts.w_in_EGD", "layers.0.moe.experts.w_out_EDH"):
        assert torch.equal(grown.first[name], expected[name])
    router = "layers.0.moe.router.weight"
    assert torch.equal(grown.first[router], expected[router] / 2)


@pytest.mark.parametrize("operator", [
    Operator(method=DepthMethod.RANDOM, depth_factor=2, seed=0),
    Operator(width_method=WidthMethod.RANDOM_EXPERTS, width_factor=2, seed=0),
    Operator(width_method=WidthMethod.DROP_UPCYCLE, width_factor=2, drop_fraction=0.5, seed=0),
])  # fmt: skip
def test_what_is_new_starts_with_its_sources_mean_second_moment(operator):
    """Zeros at an old step counter would miss their bias correction: a first update 3.2 times too large."""
    config, source = model(), weights_of(model())
    second = {n: t.square() + 0.1 for n, t in source.items()}
    moments = Moments(step=90, first=source, second=second)
    grown = grow_moments(config, operator, OptimizerState.COPY, moments)
    shapes = {n: t.shape for n, t in grow_weights(config, operator, source).items()}
    assert grown.step == 90
    assert {n: t.shape for n, t in grown.first.items()} == shapes
    for name in ("layers.1.moe.experts.w_in_EGD", "layers.1.moe.experts.w_out_EDH"):
        new = grown.first[name] == 0
        old = name.replace("layers.1", "layers.0") if operator.deepens else name
        assert new.float().mean().item() == pytest.approx(share(operator), abs=0.01)
        torch.testing.assert_close(grown.second[name][new], second[old].mean().expand(int(new.sum())))


def share(operator):
    """What is new of a new layer, or of a stacked tensor of twice the experts."""
    if operator.deepens:
        return 1.0
    return 0.25 if operator.width_method is WidthMethod.DROP_UPCYCLE else 0.5


def test_rescaled_moments_of_dropped_units_are_rescaled_too():
    operator = Operator(width_method=WidthMethod.DROP_UPCYCLE, width_factor=2, drop_fraction=0.5, seed=0)
    config, source = model(), weights_of(model())
    moments = Moments(step=9, first=source, second={n: t.square() for n, t in source.items()})
    rules = (OptimizerState.COPY, OptimizerState.RESCALE)
    copied, rescaled = (grow_moments(config, operator, rule, moments) for rule in rules)
    name = "layers.0.moe.experts.w_in_EGD"
    torch.testing.assert_close(rescaled.first[name], copied.first[name] / 2)
    torch.testing.assert_close(rescaled.second[name], copied.second[name] / 4)


# --------------------------------------------------------------------------------------------------------
# Any model, any operator


def drawn(draw):
    """A random legal pair of model and operator; None where the draw is refused."""
    pick = draw.choice
    dense = int(pick([0, 0, 1]))
    groups = int(pick([1, 1, 2, 4]))
    config = model(
        gate=str(pick(list(Gate))),
        top_k=int(pick([1, 2, 4])) if groups < 4 else 2,
        selection_bias_rate=float(pick([0, 0.01])),
        num_groups=groups,
        top_k_groups=min(groups, 2) if groups > 1 else 1,
        num_shared_experts=int(pick([0, 1])),
        num_dense_layers=dense,
        dense_hidden_size=12 * dense,
        norm_placement=str(pick(list(NormPlacement))),
        residual_base_layers=int(pick([0, 0, 2])),
        route_scale=float(pick([1.0, 1.5])),
    )
    depth = DepthMethod(str(pick(["none", "stack", "interposition", "random", "layer_map"])))
    width = WidthMethod(str(pick(list(WidthMethod))))
    deep = depth not in (DepthMethod.NONE, DepthMethod.LAYER_MAP)
    noise = float(pick([0, 0, 0.1])) if width.takes_noise else 0.0
    try:
        operator = Operator(
            method=depth,
            depth_factor=int(pick([2, 3])) if deep else 1,
            keep_first=int(pick([0, 1])) if deep else 0,
            keep_last=int(pick([0, 1])) if deep else 0,
            layer_map=tuple(sorted(draw.integers(0, 3, 5).tolist())) if depth == "layer_map" else None,
            copies=Copies(str(pick(list(Copies)))) if depth != "none" else Copies.EXACT,
            width_method=width,
            width_factor=int(pick([2, 4])) if width != "none" else 1,
            noise_scale=noise,
            router_noise_scale=float(pick([0, 0.2])) if width.takes_noise else None,
            drop_fraction=0.5 if width == "drop_upcycle" else 0.0,
            seed=3,
        )
        operator.apply_to(config)
    except ValueError:
        return None
    return (config, operator) if operator.grows else None


@pytest.mark.parametrize("seed", range(8))
def test_any_growth_of_any_model_keeps_its_promise(seed):
    """Exact is exact; what is promised to change does; parameters and moments have the grown shapes."""
    draw = np.random.default_rng(seed)
    pairs = list(itertools.islice(filter(None, (drawn(draw) for _ in range(400))), 20))
    assert len(pairs) == 20
    for config, operator in pairs:
        weights = weights_of(config, seed)
        grown_model, grown = operator.apply_to(config), grow_weights(config, operator, weights)
        moved = apart(config, operator, weights)
        exactness = operator.exactness(config)
        assert (moved <= 1e-5) == (exactness is Exactness.EXACT) or may_promise_too_little(config, operator)
        network = MoETransformer(grown_model)
        parameters = {n: p.shape for n, p in network.named_parameters()}
        moments = Moments(0, weights, weights)
        first = grow_moments(config, operator, OptimizerState.RESCALE, moments).first
        assert {n: t.shape for n, t in first.items() if n in parameters} == parameters
        assert flops.total_params(grown_model) == sum(shape.numel() for shape in parameters.values())
        assert grown.keys() == network.state_dict().keys()


def may_promise_too_little(config, operator):
    """Twins in groups: with one group in reach, or all, a token may well find the same experts."""
    return operator.width_method is WidthMethod.EXPERTS_ONLY and config.num_groups > 1


# --------------------------------------------------------------------------------------------------------
# Small print


def test_a_multiplier_shares_evenly_only_what_is_copied_evenly():
    config = model(residual_base_layers=3)
    assert DEEP.exactness(config) is Exactness.FIRST_ORDER
    assert dataclasses.replace(DEEP, keep_first=1).exactness(config) is Exactness.CHANGED


def test_more_experts_for_the_same_k_are_more_groups_of_the_same_size():
    config = model(num_groups=4, top_k_groups=2)
    grown = dataclasses.replace(DUPLICATE, width_method=WidthMethod.EXPERTS_ONLY).apply_to(config)
    assert (grown.num_experts, grown.num_groups, grown.top_k_groups, grown.top_k) == (16, 8, 2, 2)


def test_random_layers_are_not_those_the_trunk_began_with():
    """Growth and trunk may have one seed; a new layer must not be the trunk's own layer of that index."""
    operator = dataclasses.replace(DEEP, method=DepthMethod.RANDOM, seed=0)
    config = model()
    grown, beginning = grow_weights(config, operator, weights_of(config)), initial_state(config, 0).weights
    name = "layers.1.attention.query.weight"
    assert not torch.allclose(grown[name], beginning[name])


def test_with_a_residual_multiplier_initial_projections_do_not_depend_on_depth():
    def std(num_layers, base):
        weights = initial_state(tiny.model(num_layers=num_layers, residual_base_layers=base), 0).weights
        return weights["layers.0.moe.experts.w_out_EDH"].std().item()

    assert std(8, 2) == std(2, 2) == std(2, 0)
    assert std(8, 0) == pytest.approx(std(2, 0) / 2)
