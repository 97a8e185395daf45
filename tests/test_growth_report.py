"""What a growth's report says is what happened, and what is logged after it means what it says."""

import dataclasses
import math

import pytest
import tiny
import torch

from moe import flops
from moe import growth_report as growth_report_module
from moe.config import Precision
from moe.diagnostics import co_routing, diagnose, moment_cosines, sample_moments, twin_divergence
from moe.growth import Moments, grow_moments, grow_weights
from moe.growth_report import effective_noise_scale, growth_report
from moe.model import MoETransformer
from moe.operator import Copies, DepthMethod, Operator, OptimizerState, WidthMethod
from moe.train import initial_state, language_loss

TOKENS = torch.randint(0, 400, (4, 17), generator=torch.Generator().manual_seed(1))
WIDE = Operator(width_method=WidthMethod.DUPLICATE, width_factor=2)
BOTH = dataclasses.replace(
    WIDE, method=DepthMethod.STACK, depth_factor=2, noise_scale=0.05, router_noise_scale=0.2, seed=0
)


def report_of(operator, config=None, **more):
    config = config or tiny.model()
    source = initial_state(config, 0).weights
    grown = grow_weights(config, operator, source)
    return growth_report(config, operator, source, grown, TOKENS, **more)


def network_of(config, weights):
    network = MoETransformer(config)
    network.load_state_dict(weights)
    return network


def test_the_parts_of_a_jump_add_up_to_it():
    report = report_of(BOTH)
    assert [part["part"] for part in report["jump"]] == [
        "depth copy", "width copy", "expert noise", "router noise",
    ]  # fmt: skip
    whole = report["loss_after"] - report["loss_before"]
    assert sum(part["loss_change"] for part in report["jump"]) == pytest.approx(whole, abs=1e-5)
    assert report["jump"][1]["max_logit_change"] <= 1e-5  # duplication alone


def test_the_losses_are_those_of_the_two_models():
    config = tiny.model()
    source = initial_state(config, 0).weights
    grown = grow_weights(config, BOTH, source)
    report = growth_report(config, BOTH, source, grown, TOKENS)
    with torch.no_grad():
        before = language_loss(network_of(config, source), TOKENS)[0].item()
        after = language_loss(network_of(BOTH.apply_to(config), grown), TOKENS)[0].item()
    assert (report["loss_before"], report["loss_after"]) == pytest.approx((before, after), abs=1e-5)


def test_equal_weights_are_measured_once_and_changed_ones_again(monkeypatch):
    """The state that several branches grow from, and the parts that their growths share."""
    monkeypatch.setattr(growth_report_module, "_kept", [])
    measured = []
    of = growth_report_module._Measured._of.__func__
    counting = classmethod(lambda cls, *args: measured.append(args[0]) or of(cls, *args))
    monkeypatch.setattr(growth_report_module._Measured, "_of", counting)
    config = tiny.model()
    source = initial_state(config, 0).weights
    grown = grow_weights(config, WIDE, source)
    first = growth_report(config, WIDE, source, grown, TOKENS)
    assert growth_report(config, WIDE, source, grow_weights(config, WIDE, source), TOKENS) == first
    assert len(measured) == 2  # the source and what grew, each once
    source["head.weight"][0, 0] += 1.0
    assert growth_report(config, WIDE, source, grown, TOKENS)["loss_before"] != first["loss_before"]
    assert len(measured) == 3


def test_another_precision_is_measured_anew():
    config = tiny.model()
    source = initial_state(config, 0).weights
    grown = grow_weights(config, WIDE, source)
    losses = {
        growth_report(config, WIDE, source, grown, TOKENS, precision=precision)["loss_before"]
        for precision in (Precision.FP32, Precision.BF16)
    }
    assert len(losses) == 2


def test_what_is_kept_of_growths_has_a_bound(monkeypatch):
    monkeypatch.setattr(growth_report_module, "_kept", [])
    report_of(WIDE)
    size = sum(growth_report_module._num_bytes(*each) for each in growth_report_module._kept)
    monkeypatch.setattr(growth_report_module, "_KEPT_BYTES", 2 * size)
    for seed in range(5):
        report_of(dataclasses.replace(BOTH, seed=seed))
        assert sum(growth_report_module._num_bytes(*e) for e in growth_report_module._kept) <= 2 * size


@pytest.mark.parametrize(("operator", "promise"), [
    (WIDE, "exact"),
    (dataclasses.replace(WIDE, noise_scale=0.1, seed=0), "perturbed"),
    (BOTH, "changed"),
])  # fmt: skip
def test_the_promise_is_told_and_kept(operator, promise):
    report = report_of(operator)
    assert report["exactness"] == promise
    assert (report["max_logit_change"] <= 1e-5) == (promise == "exact")


def test_the_effective_noise_scale_is_what_was_asked_for():
    config = tiny.model(hidden_size=64, expert_hidden_size=64)
    small = dataclasses.replace(WIDE, noise_scale=0.003, router_noise_scale=0.2, seed=0)
    found = report_of(small, config)["effective_noise_scale"]
    assert found["experts"] == pytest.approx(0.003, rel=0.02)
    assert found["router"] == pytest.approx(0.2, rel=0.1)
    assert found["unchanged"] < 0.01


@pytest.mark.parametrize(("scale", "unchanged"), [(0.01, 0.17), (0.003, 0.48), (0.001, 0.78)])
def test_in_bf16_small_noise_is_mostly_rounding(scale, unchanged):
    """The shares that were measured apart from this code, for weights that are bf16 numbers themselves."""
    config = tiny.model(hidden_size=64, expert_hidden_size=64)
    source = {n: t.bfloat16().float() for n, t in initial_state(config, 0).weights.items()}
    operator = dataclasses.replace(WIDE, noise_scale=scale, seed=0)
    grown = grow_weights(config, operator, source)
    found = effective_noise_scale(operator, grown, Precision.BF16)
    assert found["unchanged"] == pytest.approx(unchanged, abs=0.03)


def test_zeroed_copies_leave_the_noise_scale_readable():
    config = tiny.model()
    both = dataclasses.replace(BOTH, copies=Copies.ZEROED, noise_scale=0.01, router_noise_scale=None)
    found = report_of(both, config)["effective_noise_scale"]
    assert found["experts"] == pytest.approx(0.01, rel=0.1)
    assert found["unchanged"] < 0.01


def test_sizes_before_and_after_are_those_of_the_two_architectures():
    config, report = tiny.model(), report_of(BOTH)
    for when, shape in (("before", config), ("after", BOTH.apply_to(config))):
        assert report[when]["total_params"] == flops.total_params(shape)
        assert report[when]["train_flops_per_token"] == flops.train_flops_per_token(shape, 16)
    assert len(report["expert_weight_norm"]["after"]) == 2 * len(report["expert_weight_norm"]["before"])


# --------------------------------------------------------------------------------------------------------
# Diagnostics


def grown_network(noise_scale, config=None):
    config = config or tiny.model()
    operator = dataclasses.replace(WIDE, noise_scale=noise_scale, seed=0)
    weights = grow_weights(config, operator, initial_state(config, 0).weights)
    return network_of(operator.apply_to(config), weights)


def test_exact_twins_are_at_distance_zero_and_always_chosen_together():
    network = grown_network(0.0)
    cosine_L, distance_L = twin_divergence(network, 2)
    torch.testing.assert_close(cosine_L, torch.ones(2))
    assert distance_L.tolist() == [0.0, 0.0]
    _, routings = language_loss(network, TOKENS)
    assert [co_routing(routing, 2).item() for routing in routings] == [1.0, 1.0]


def test_twins_with_noise_are_as_far_apart_as_the_noise():
    network = grown_network(0.1, tiny.model(hidden_size=64, expert_hidden_size=64))
    cosine_L, distance_L = twin_divergence(network, 2)
    assert distance_L.tolist() == pytest.approx([0.1, 0.1], rel=0.05)
    assert cosine_L.tolist() == pytest.approx([1 / math.sqrt(1.01)] * 2, abs=1e-3)


def test_strangers_are_chosen_together_by_chance():
    config = tiny.model(num_experts=8, top_k=4)
    _, routings = language_loss(network_of(config, initial_state(config, 0).weights), TOKENS)
    assert all(0.2 < co_routing(routing, 2).item() < 0.7 for routing in routings)  # 3/7 for a fair choice


def test_a_line_has_one_value_per_layer_and_none_where_there_are_no_experts():
    config = tiny.model(num_layers=3, num_dense_layers=1, dense_hidden_size=12)
    network = network_of(config, initial_state(config, 0).weights)
    line = diagnose(network, language_loss(network, TOKENS)[1])
    assert all(len(values) == 3 for values in line.values())
    assert line["router_entropy"][0] is None
    assert line["expert_weight_norm"][0] > 0
    assert sum(line["expert_load"][1]) == pytest.approx(1, abs=1e-3)
    assert "twin_cosine" not in line


@pytest.mark.parametrize("operator", [BOTH, dataclasses.replace(BOTH, width_method=WidthMethod.SPLIT)])
def test_moments_that_were_copied_have_cosine_one_and_unrelated_ones_about_zero(operator):
    config = tiny.model()
    random = {n: torch.randn(t.shape) for n, t in initial_state(config, 0).weights.items()}
    moments = Moments(step=3, first=random, second={n: t.abs() for n, t in random.items()})
    sample = sample_moments(config, operator, moments)
    copied = grow_moments(config, operator, OptimizerState.COPY, moments)
    assert moment_cosines(sample, copied)["first_moment_cosine"] == pytest.approx(1, abs=1e-5)
    other = dataclasses.replace(copied, first={n: torch.randn(t.shape) for n, t in copied.first.items()})
    assert abs(moment_cosines(sample, other)["first_moment_cosine"]) < 0.1
