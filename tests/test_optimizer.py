"""AdamW: torch's own class is the oracle, to the bit."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import tiny
import torch

from moe.growth import Moments
from moe.model import MoETransformer
from moe.optimizer import AdamW

MODEL = tiny.model(num_layers=2, residual_base_layers=1)
TRAIN = tiny.train(weight_decay=0.1, eps=1e-6)


def network() -> MoETransformer:
    return MoETransformer(MODEL).initialise(0)


def with_gradients(model: MoETransformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def theirs(model: MoETransformer) -> torch.optim.AdamW:
    groups = [
        {
            "params": [parameter],
            "weight_decay": 0.1 if parameter.ndim >= 2 else 0.0,
            "eps": 1e-6 * (0.5 if name.startswith("layers.") else 1.0),
        }
        for name, parameter in model.named_parameters()
    ]
    return torch.optim.AdamW(groups, betas=(TRAIN.beta1, TRAIN.beta2), fused=True)


def test_ten_steps_are_those_of_torch_to_the_bit():
    one, other = network(), network()
    ours, oracle = AdamW(dict(one.named_parameters()), MODEL, TRAIN), theirs(other)
    for step in range(10):
        rate = 1e-2 / (1 + step)
        with_gradients(one, step)
        with_gradients(other, step)
        ours.step(rate)
        for group in oracle.param_groups:
            group["lr"] = rate
        oracle.step()
    assert ours.moments.step == 10
    for name, parameter in one.named_parameters():
        twin = dict(other.named_parameters())[name]
        assert torch.equal(parameter, twin)
        assert torch.equal(ours.moments.first[name], oracle.state[twin]["exp_avg"])
        assert torch.equal(ours.moments.second[name], oracle.state[twin]["exp_avg_sq"])
        assert parameter.grad is None


def test_loaded_moments_go_on_and_are_copies():
    one, other = network(), network()
    ours = AdamW(dict(one.named_parameters()), MODEL, TRAIN)
    for step in range(3):
        with_gradients(one, step)
        ours.step(1e-2)
    kept = dataclasses.replace(
        ours.moments,
        first={name: tensor.clone() for name, tensor in ours.moments.first.items()},
        second={name: tensor.clone() for name, tensor in ours.moments.second.items()},
    )
    other.load_state_dict(one.state_dict())
    again = AdamW(dict(other.named_parameters()), MODEL, TRAIN)
    again.load(kept)
    for model, optimizer in ((one, ours), (other, again)):
        with_gradients(model, 3)
        optimizer.step(1e-2)
    for tensor, twin in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(tensor, twin)
    assert again.moments.step == 4
    assert kept.step == 3
    assert any(not torch.equal(kept.first[name], again.moments.first[name]) for name in kept.first)


def test_a_start_without_moments_has_none_until_its_first_step():
    model = network()
    optimizer = AdamW(dict(model.named_parameters()), MODEL, TRAIN)
    optimizer.load(Moments(step=0, first={}, second={}))
    assert optimizer.moments == Moments(step=0, first={}, second={})
    with_gradients(model, 0)
    optimizer.step(0.0)
    assert set(optimizer.moments.first) == dict(model.named_parameters()).keys()


def test_a_group_that_is_frozen_whole_stays_as_it_is():
    model = network()
    with_gradients(model, 0)
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    for gain in gains:
        gain.grad = None
    AdamW(dict(model.named_parameters()), MODEL, TRAIN).step(1e-2)
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains)


def test_training_never_imports_the_compiler():
    code = (
        "import sys, numpy, tiny\n"
        "from moe.train import Trainer, initial_state\n"
        "tokens = numpy.zeros((2, 33), dtype=int)\n"
        "model, rate = tiny.model(), tiny.constant(1e-3)\n"
        "list(Trainer(model, tiny.train(), rate, lambda step: tokens, initial_state(model, 0)).steps(2))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
