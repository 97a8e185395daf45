"""Laws of the growth operators (arXiv 2510.08008 §3)."""

import dataclasses
import hashlib

import numpy as np
import pytest
import tiny
import torch

from moe.growth import Moments, draw_normal, grow_moments, grow_weights
from moe.model import MoETransformer
from moe.operator import DepthMethod, Operator, OptimizerState, WidthMethod
from moe.seeds import derive_seed
from moe.train import initial_state, language_loss

STACK, INTERPOSITION = DepthMethod.STACK, DepthMethod.INTERPOSITION


def wide(noise_scale=0.0, seed=None, factor=2, **depth) -> Operator:
    return Operator(
        width_method=WidthMethod.DUPLICATE, width_factor=factor, noise_scale=noise_scale, seed=seed, **depth
    )


def run(config, weights, tokens_BT):
    network = MoETransformer(config)
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(tokens_BT)


@pytest.fixture
def source():
    config = tiny.model(num_layers=3)
    return config, initial_state(config, 0).weights


TOKENS = torch.randint(0, 400, (4, 16), generator=torch.Generator().manual_seed(1))


def test_interposition_repeats_each_layer_in_place():
    assert Operator(method=INTERPOSITION, depth_factor=2).layer_sources(3) == [0, 0, 1, 1, 2, 2]
    assert Operator(method=INTERPOSITION, depth_factor=3).layer_sources(2) == [0, 0, 0, 1, 1, 1]


def test_stack_repeats_the_whole_block():
    assert Operator(method=STACK, depth_factor=2).layer_sources(3) == [0, 1, 2, 0, 1, 2]
    assert Operator(method=STACK, depth_factor=3).layer_sources(2) == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("method", [STACK, INTERPOSITION])
def test_grown_layers_hold_the_bytes_of_their_sources(source, method, factor):
    config, weights = source
    operator = Operator(method=method, depth_factor=factor)
    grown = grow_weights(config, operator, weights)
    assert set(grown) == set(MoETransformer(operator.apply_to(config)).state_dict())
    # An independent derivation: numpy's own repeat and tile of the layers' indices.
    orders = {INTERPOSITION: np.repeat(np.arange(3), factor), STACK: np.tile(np.arange(3), factor)}
    for new, old in enumerate(orders[method]):
        name = "moe.experts.w_in_EGD"
        assert torch.equal(grown[f"layers.{new}.{name}"], weights[f"layers.{old}.{name}"])


def test_growth_leaves_every_source_tensor_unchanged(source):
    config, weights = source
    before = {name: tensor.clone() for name, tensor in weights.items()}
    grown = grow_weights(config, wide(0.1, seed=0, method=STACK, depth_factor=2), weights)
    for tensor in grown.values():
        tensor.add_(1.0)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("factor", [2, 3])
def test_duplication_without_noise_preserves_the_function(source, factor):
    config, weights = source
    operator = wide(factor=factor)
    grown = run(operator.apply_to(config), grow_weights(config, operator, weights), TOKENS)
    torch.testing.assert_close(grown, run(config, weights, TOKENS), atol=1e-5, rtol=1e-5)


def test_experts_without_more_top_k_would_not_preserve_it(source):
    """The oracle can fail: 2E with the old k lets twins take both slots."""
    config, weights = source
    grown = grow_weights(config, wide(), weights)
    narrow = tiny.model(num_layers=3, num_experts=8, top_k=2)
    assert (run(narrow, grown, TOKENS) - run(config, weights, TOKENS)).abs().max() > 1e-3


def test_noise_touches_only_the_copies(source):
    config, weights = source
    grown = grow_weights(config, wide(0.5, seed=7), weights)
    for name, tensor in weights.items():
        if name.endswith(("w_in_EGD", "w_out_EDH", "router.weight")):
            assert torch.equal(grown[name][:4], tensor)
            assert not torch.equal(grown[name][4:], tensor)
        else:
            assert torch.equal(grown[name], tensor)


def test_noise_is_what_its_law_says(source):
    """By hand: a stream is the SHA-256 of seed/noise/name, then of the chunk; copy = source + α·σ·N(0, 1)."""
    config, weights = source
    name = "layers.1.moe.experts.w_out_EDH"
    grown = grow_weights(config, wide(0.25, seed=11, factor=3), weights)[name]

    def stream(*names) -> int:
        text = "/".join(str(part) for part in names).encode()
        return int(hashlib.sha256(text).hexdigest()[:16], 16) >> 1

    seed = stream(stream(11, "noise", name), 0)
    numbers = torch.randn(2 * 4 * 16 * 8, generator=torch.Generator().manual_seed(seed)).numpy()
    old = weights[name].numpy().astype(np.float64)
    sigma = old.reshape(4, -1).std(axis=1, ddof=1)[None, :, None, None]
    expected = old + 0.25 * sigma * numbers.reshape(2, 4, 16, 8)
    np.testing.assert_allclose(grown[4:].numpy().reshape(expected.shape), expected, rtol=1e-5, atol=1e-7)


def test_chunks_of_noise_are_independent():
    numbers = draw_normal(torch.empty(1 << 18), 5)
    assert numbers.std().item() == pytest.approx(1.0, abs=0.01)
    first, second = numbers.split(1 << 17)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0, abs=0.02)


def test_long_noise_keeps_its_bytes():
    """Stored branches hold them: chunks and streams change with CHILD_VERSION alone."""
    numbers = draw_normal(torch.empty(3 * (1 << 17) + 5), 5)
    expected = [
        torch.randn(n, generator=torch.Generator().manual_seed(derive_seed(5, chunk)))
        for chunk, n in enumerate((1 << 17, 1 << 17, 1 << 17, 5))
    ]
    assert torch.equal(numbers, torch.cat(expected))


def test_experts_and_router_have_a_noise_each(source):
    config, weights = source
    router, experts = "layers.0.moe.router.weight", "layers.0.moe.experts.w_in_EGD"
    for scales, moved in (((0.1, 0.0), (True, False)), ((0.0, 0.1), (False, True))):
        operator = dataclasses.replace(wide(scales[0], seed=0), router_noise_scale=scales[1])
        grown = grow_weights(config, operator, weights)
        assert tuple(not torch.equal(grown[n][4:], weights[n]) for n in (experts, router)) == moved


def test_noise_has_the_stated_scale():
    config = tiny.model(hidden_size=64, expert_hidden_size=64)
    weights = initial_state(config, 0).weights
    name = "layers.0.moe.experts.w_in_EGD"
    grown = grow_weights(config, wide(0.01, seed=0), weights)
    noise = grown[name][4:] - weights[name]
    assert noise.std().item() == pytest.approx(0.01 * weights[name].std().item(), rel=0.02)


def test_sigma_is_that_of_the_matrix_that_is_copied(source):
    """An expert ten times as large gets ten times the noise; so does a gate beside its up projection."""
    config, weights = source
    name = "layers.0.moe.experts.w_in_EGD"
    weights[name][1] *= 10
    weights[name][2, :8] *= 10  # the gate half
    noise = grow_weights(config, wide(0.01, seed=0), weights)[name][4:] - weights[name]
    assert noise[1].std() / noise[0].std() == pytest.approx(10, rel=0.3)
    assert noise[2, :8].std() / noise[2, 8:].std() == pytest.approx(10, rel=0.3)


def test_noise_is_the_same_for_the_same_seed_and_tensor(source):
    config, weights = source
    backwards = dict(reversed(weights.items()))
    a, b = (
        grow_weights(config, wide(0.1, seed=1), weights),
        grow_weights(config, wide(0.1, seed=1), backwards),
    )
    c = grow_weights(config, wide(0.1, seed=2), weights)
    name = "layers.0.moe.experts.w_out_EDH"
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a[name], c[name])


def test_depth_and_width_commute_exactly_when_noise_is_zero(source):
    config, weights = source
    depth, width = Operator(method=STACK, depth_factor=2), wide()
    both = grow_weights(config, wide(method=STACK, depth_factor=2), weights)
    a = grow_weights(depth.apply_to(config), width, grow_weights(config, depth, weights))
    b = grow_weights(width.apply_to(config), depth, grow_weights(config, width, weights))
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], both[name]) for name in both)


def test_gradients_of_exact_copies_are_one_mth(source):
    config, weights = source
    operator = wide(factor=2)

    def gradient(shape, tensors):
        network = MoETransformer(shape)
        network.load_state_dict(tensors)
        language_loss(network, TOKENS)[0].backward()
        return {name: p.grad for name, p in network.named_parameters()}

    before = gradient(config, weights)
    after = gradient(operator.apply_to(config), grow_weights(config, operator, weights))
    for name in ("layers.1.moe.experts.w_in_EGD", "layers.1.moe.router.weight"):
        torch.testing.assert_close(after[name], before[name].repeat(2, *[1] * (before[name].ndim - 1)) / 2)


def moments_of(weights) -> Moments:
    return Moments(
        step=9, first={n: t * 2 for n, t in weights.items()}, second={n: t**2 for n, t in weights.items()}
    )


def test_reset_forgets_the_moments_and_their_step(source):
    config, weights = source
    assert grow_moments(config, wide(), OptimizerState.RESET, moments_of(weights)) == Moments(0, {}, {})


def test_copied_moments_go_with_their_layers_and_experts(source):
    config, weights = source
    operator = wide(method=INTERPOSITION, depth_factor=2)
    grown = grow_moments(config, operator, OptimizerState.COPY, moments_of(weights))
    assert grown.step == 9
    expected = grow_weights(config, operator, {n: t * 2 for n, t in weights.items()})
    assert all(torch.equal(grown.first[name], expected[name]) for name in expected)


def test_rescaled_moments_of_copies_are_divided_by_m_and_m_squared(source):
    config, weights = source
    moments = moments_of(weights)
    grown = grow_moments(config, wide(factor=2), OptimizerState.RESCALE, moments)
    name, other = "layers.0.moe.router.weight", "layers.0.attention.query.weight"
    assert torch.equal(grown.first[name][4:], moments.first[name] / 2)
    assert torch.equal(grown.second[name][:4], moments.second[name] / 4)
    assert torch.equal(grown.first[other], moments.first[other])
