"""What only a GPU can show; run with `make gpu`."""

import numpy as np
import pytest
import test_bank
import test_grouped
import tiny
import torch

from moe.bank import Bank
from moe.config import LearningRate, Schedule
from moe.router import route
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


# --------------------------------------------------------------------------------------------------------
# Grouped products


def has_grouped_kernel() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


needs_kernel = pytest.mark.skipif(not has_grouped_kernel(), reason="a grouped kernel needs capability 9")


@needs_kernel
def test_grouped_products_are_the_loop_on_a_gpu_too(monkeypatch):
    """With an expert that gets no token; both round to bf16, whose 2⁻⁸ is a percent over a few sums."""
    grouped = test_grouped.learnt(torch.bfloat16, "cuda")
    monkeypatch.setattr("moe.grouped.may_group", lambda x_ND, w_in_EGD: False)
    for ours, theirs in zip(grouped, test_grouped.learnt(torch.bfloat16, "cuda"), strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm()
    assert not grouped[3][2].any()


@needs_kernel
def test_routing_and_experts_never_wait_for_the_gpu():
    """Forward and backward; the second time, since a first call may compile and measure."""
    layer = test_grouped.experts().cuda()
    model = tiny.model(num_experts=test_grouped.E)
    x_ND = torch.randn(64, test_grouped.D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    logits_NE = torch.randn(64, test_grouped.E, device="cuda", requires_grad=True)
    dy_ND = torch.randn_like(x_ND)

    def step() -> None:
        layer(x_ND, route(logits_NE, model)).backward(dy_ND)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --------------------------------------------------------------------------------------------------------
# Fused runs


@pytest.mark.parametrize("case", test_bank.MODELS)
def test_fused_runs_learn_what_separate_ones_do_on_a_gpu(case):
    model = tiny.model(**test_bank.MODELS[case])
    separate, fused = test_bank.three(model, "cuda"), test_bank.three(model, "cuda")
    test_bank.assert_learns_alike(separate, fused, rel=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
def test_fused_curves_are_those_of_separate_runs_on_a_gpu(precision, tolerance):
    separate = test_bank.three(tiny.model(), "cuda", precision=precision)
    fused = test_bank.three(tiny.model(), "cuda", precision=precision)
    bank = Bank(fused)
    together = [bank.advance([run.read() for run in fused]) for _ in range(20)]
    for run, lines in zip(separate, zip(*together, strict=True), strict=True):
        alone = [line["loss"] for line in run.steps(20)]
        assert [line["loss"] for line in lines] == pytest.approx(alone, abs=tolerance)
