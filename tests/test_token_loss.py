"""The loss in chunks is torch's cross-entropy of the head's logits, and so are its gradients."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from moe import token_loss as module
from moe.token_loss import token_loss, token_losses


def drawn(n: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(n)
    x_ND = (scale * torch.randn(n, 16, generator=generator)).to(dtype).requires_grad_()
    head_VD = torch.randn(40, 16, generator=generator).to(dtype).requires_grad_()
    return x_ND, head_VD, torch.randint(0, 40, (n,), generator=generator)


@pytest.mark.parametrize("n", [1, 64, 65, 200])  # chunks of 64, some with a rest
def test_loss_and_gradients_are_those_of_torch(monkeypatch, n):
    monkeypatch.setattr(module, "_CPU_CHUNK", 64 * 40)
    x_ND, head_VD, targets_N = drawn(n)
    loss = token_loss(x_ND, head_VD, targets_N)
    ours = torch.autograd.grad(3 * loss, (x_ND, head_VD))
    expected = F.cross_entropy(x_ND @ head_VD.T, targets_N)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, torch.autograd.grad(3 * expected, (x_ND, head_VD)))


def test_gradients_are_finite_differences():
    x_ND, head_VD, targets_N = drawn(5, torch.float64)
    assert torch.autograd.gradcheck(lambda x, head: token_loss(x, head, targets_N), (x_ND, head_VD))


def test_logits_far_apart_neither_overflow_nor_vanish():
    x_ND, head_VD, targets_N = drawn(7, scale=200.0)
    loss = token_loss(x_ND, head_VD, targets_N)
    torch.testing.assert_close(loss, F.cross_entropy(x_ND @ head_VD.T, targets_N))
    loss.backward()
    assert torch.isfinite(x_ND.grad).all()


def test_products_are_in_the_dtype_of_autocast_and_the_softmax_is_not():
    x_ND, head_VD, targets_N = drawn(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_loss(x_ND, head_VD, targets_N)
        expected = F.cross_entropy(F.linear(x_ND, head_VD).float(), targets_N)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, head_VD)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-4)  # 2⁻⁸ of bf16


def test_nothing_is_kept_where_nothing_learns():
    x_ND, head_VD, targets_N = drawn(10)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert not token_loss(x_ND, head_VD, targets_N).requires_grad
    assert counter.get_total_flops() == 2 * 10 * 16 * 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_losses_of_tokens_are_those_of_torch(monkeypatch, dtype):
    monkeypatch.setattr(module, "_CPU_CHUNK", 64 * 40)
    x_ND, head_VD, targets_N = drawn(200, dtype)
    losses_BT = token_losses(x_ND.view(4, 50, -1), head_VD, targets_N.view(4, 50))
    expected_N = F.cross_entropy(x_ND @ head_VD.T, targets_N, reduction="none")
    torch.testing.assert_close(losses_BT, expected_N.view(4, 50))
    assert not losses_BT.requires_grad
