"""Parameters and FLOPs against torch's own counter and the paper's published sizes (arXiv 2510.08008 §5)."""

import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe import flops
from moe.config import ModelConfig
from moe.model import MoETransformer
from moe.operator import DepthMethod, Operator, WidthMethod
from moe.plain import parse
from moe.train import language_loss

DEPTH = Operator(method=DepthMethod.INTERPOSITION, depth_factor=2)
BOTH = Operator(
    method=DepthMethod.INTERPOSITION, depth_factor=2, width_method=WidthMethod.DUPLICATE, width_factor=2
)


def preset(name: str) -> ModelConfig:
    return parse(ModelConfig, tiny.composed(f"model={name}")["model"], "model")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("operator", [Operator(), DEPTH, BOTH])
def test_flops_match_the_torch_flop_counter(training, operator, torch_alone):
    config = operator.apply_to(preset("pico"))
    network, tokens = MoETransformer(config).initialise(0), torch.randint(0, 256, (2, 65))
    # On CPU the fused kernels are not counted; the math backend counts the full square of attention.
    learns = torch.set_grad_enabled(training)  # the head's gradient is taken with the loss
    with learns, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = language_loss(network, tokens)
        if training:
            loss.backward()
    passes = 3 if training else 1
    attention_square = passes * 128 * config.num_layers * 4 * config.num_heads * config.head_dim * 64
    ours = passes * 128 * flops.forward_flops_per_token(config, 64)
    assert counter.get_total_flops() == ours + attention_square / 2


def test_parameter_counts_are_those_of_the_module():
    for name in ("pico", "nano", "micro"):
        config = preset(name)
        with torch.device("meta"):
            network = MoETransformer(config)
        assert flops.total_params(config) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("operator", "total", "activated"),
    [(Operator(), 18.0e9, 2.1e9), (DEPTH, 35.2e9, 3.5e9), (BOTH, 69.0e9, 5.6e9)],
)
def test_moe_17b_has_the_published_sizes(operator, total, activated):
    config = operator.apply_to(preset("moe_17b"))
    assert flops.total_params(config) == pytest.approx(total, rel=0.02)
    assert flops.activated_params(config) == pytest.approx(activated, rel=0.02)


@pytest.mark.parametrize("name", ["moe_3b", "moe_17b"])
def test_paper_models_can_be_built_without_memory(name):
    with torch.device("meta"):
        network = MoETransformer(preset(name))
    assert sum(p.numel() for p in network.parameters()) == flops.total_params(preset(name))


@pytest.mark.parametrize(
    ("name", "activated"), [("pico", 0.1e6), ("nano", 0.2e6), ("micro", 1e6), ("small", 5e6)]
)
def test_presets_are_as_large_as_their_names_say(name, activated):
    assert flops.activated_params(preset(name)) == pytest.approx(activated, rel=0.15)


def test_a_budget_buys_whole_steps_and_is_never_overspent():
    assert flops.whole_steps(10.0, 3.0) == 3
    assert flops.whole_steps(9.0, 3.0) == 3
    assert flops.whole_steps(2.9, 3.0) == 0


def test_f_c_is_120_times_the_square_of_the_activated_parameters():
    assert flops.chinchilla_flops(700_000_000) == pytest.approx(5.88e19)
    assert flops.paper_flops(10, 20 * 10) == flops.chinchilla_flops(10)
