"""The residual multiplier L₀/L lets one learning rate serve any depth (CompleteP, arXiv 2505.01618)."""

import numpy as np
import pytest
import tiny

from moe.model import MoETransformer
from moe.operator import DepthMethod, Operator
from moe.optimizer import AdamW
from moe.train import Trainer, initial_state

RATES = [2.0**-k for k in (8, 7, 6, 5, 4, 3)]
HIGH = 2.0**-4
SIZES = {"hidden_size": 32, "head_dim": 16, "expert_hidden_size": 32}


def loss_after_20_steps(num_layers: int, base_layers: int, lr: float) -> float:
    """Of learning one batch by heart, mean of two seeds: few steps and an optimum sharp in the rate."""
    config = tiny.model(num_layers=num_layers, residual_base_layers=base_layers, **SIZES)
    train, ends = tiny.train(weight_decay=0.0), []
    for seed in (0, 1):
        tokens = np.random.default_rng(seed).integers(0, 400, (4, 33))
        state = initial_state(config, seed)
        trainer = Trainer(config, train, tiny.constant(lr), lambda step, batch=tokens: batch, state)
        ends.append([line["loss"] for line in trainer.steps(20)][-1])
    return float(np.mean(ends))


@pytest.mark.slow
def test_the_best_rate_stays_within_one_grid_point_at_two_and_four_times_the_depth():
    losses = {layers: [loss_after_20_steps(layers, 2, lr) for lr in RATES] for layers in (2, 4, 8)}
    best = {layers: int(np.argmin(values)) for layers, values in losses.items()}
    assert 0 < best[2] < len(RATES) - 1, "the optimum lies inside the grid"
    assert abs(best[4] - best[2]) <= 1
    assert abs(best[8] - best[2]) <= 1


def test_without_it_a_rate_that_suits_two_layers_is_too_high_for_eight():
    with_it, without = (loss_after_20_steps(8, base, HIGH) for base in (2, 0))
    assert without > 4 * with_it
    assert without > 4 * loss_after_20_steps(2, 0, HIGH)


def test_growing_in_depth_divides_the_multiplier_and_adams_epsilon_with_it():
    config = tiny.model(num_layers=2, residual_base_layers=2)
    grown = Operator(method=DepthMethod.STACK, depth_factor=4).apply_to(config)
    assert (config.residual_multiplier, grown.residual_multiplier) == (1.0, 0.25)
    parameters = dict(MoETransformer(grown).named_parameters())
    groups = AdamW(parameters, grown, tiny.train(eps=1e-8)).groups()
    scale = {name: eps for (_, eps), names in groups.items() for name in names}
    assert len(scale) == len(parameters)
    assert all(eps == (0.25e-8 if name.startswith("layers.") else 1e-8) for name, eps in scale.items())
