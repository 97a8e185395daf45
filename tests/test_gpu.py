"""What only a GPU can show; run with `make gpu`."""

import numpy as np
import pytest
import tiny
import torch

from moe.config import LearningRate, Schedule
from moe.train import Trainer, initial_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]


def losses(device: str, precision: str) -> list[float]:
    def batches(step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, 400, (2, 33))

    rate = LearningRate(schedule=Schedule.CONSTANT, peak=3e-3)
    state = initial_state(tiny.model(), 0)
    trainer = Trainer(tiny.model(), tiny.train(precision=precision), rate, batches, state, device)
    return [line["loss"] for line in trainer.steps(10)]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
def test_a_gpu_trains_as_a_cpu_does(precision, tolerance):
    assert losses("cuda", precision) == pytest.approx(losses("cpu", "fp32"), abs=tolerance)
