"""A bank of runs is the runs one by one: losses, every gradient, curves; and runs come, go and diverge."""

import numpy as np
import pytest
import tiny
import torch

from moe.bank import Bank
from moe.config import LearningRate, Schedule
from moe.train import Trainer, initial_state

RUNS = 3
# A case a choice of ModelConfig that the fused forward has to follow.
MODELS = {
    "default": {},
    "softmax": {"gate": "softmax", "route_scale": 2.0},
    "topk_softmax": {"gate": "topk_softmax", "norm_placement": "post"},
    "sigmoid": {"gate": "sigmoid", "selection_bias_rate": 0.01, "norm_placement": "output"},
    "groups": {"gate": "sigmoid_renormalised", "num_experts": 8, "num_groups": 4, "top_k_groups": 2},
    "shared and dense": {"num_shared_experts": 1, "num_dense_layers": 1, "dense_hidden_size": 24},
    "dense alone": {"num_dense_layers": 2, "dense_hidden_size": 24},
    "capacity": {"capacity_factor": 0.75},
    "residual": {"residual_base_layers": 1, "num_kv_heads": 2},
}


def batches_of(seed: int):
    return lambda step: np.random.default_rng([seed, step]).integers(0, 400, (2, 33))


def trainer(model, seed: int, lr: float = 3e-3, device: str = "cpu", **train) -> Trainer:
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=lr, warmup_steps=2)
    given = {"load_balance_coef": 0.1, "z_loss_coef": 0.01, **train}
    state = initial_state(model, seed)
    for name, bias_E in state.weights.items():
        if name.endswith("selection_bias_E"):  # as after some steps: of one size, else it chooses nothing
            bias_E.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.1)
    return Trainer(model, tiny.train(**given), rate, batches_of(seed), state, device)


def three(model, device: str = "cpu", **train) -> list[Trainer]:
    return [trainer(model, seed, device=device, **train) for seed in range(RUNS)]


def gradients(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}


def assert_learns_alike(separate: list[Trainer], fused: list[Trainer], rel: float) -> None:
    """Losses and, over its norm, each gradient."""
    together = Bank(fused)._learn([run.read() for run in fused])
    for ours, theirs, learnt in zip(fused, separate, together, strict=True):
        alone = theirs._learn(theirs.read())
        for a, b in zip(learnt[:3], alone[:3], strict=True):
            torch.testing.assert_close(a, b, rtol=rel, atol=1e-7)
        for a, b in zip(learnt.routings, alone.routings, strict=True):
            assert torch.equal(a.experts_Nk, b.experts_Nk)
            assert torch.equal(a.load_E, b.load_E)
            torch.testing.assert_close(a.entropy, b.entropy, rtol=rel, atol=1e-7)
        own, other = gradients(ours), gradients(theirs)
        assert own.keys() == other.keys() == dict(theirs.model.named_parameters()).keys()
        for name, gradient in own.items():
            error = (gradient - other[name]).norm() / other[name].norm()
            assert error < rel, f"{name}: {error}"


@pytest.mark.parametrize("case", MODELS)
def test_losses_and_every_gradient_are_those_of_separate_runs(case):
    model = tiny.model(**MODELS[case])
    assert_learns_alike(three(model), three(model), rel=1e-5)


def test_in_bf16_too():
    """Both round to 8 bits, in other places: a hundredth, and the same experts on these seeds."""
    model = tiny.model()
    assert_learns_alike(three(model, precision="bf16"), three(model, precision="bf16"), rel=1e-2)
