"""Grouped products are the loop of products: values and gradients, of experts without a token too."""

import pytest
import tiny
import torch

from moe import grouped
from moe.router import Experts, route

N, E, D, H = 24, 6, 16, 8


def experts() -> Experts:
    layer, generator = Experts(E, D, H), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(generator=generator).mul_(0.3)
    return layer


def learnt(dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Output, and gradients of input, gates and weights; expert 2 gets no token."""
    generator = torch.Generator().manual_seed(1)
    layer = experts().to(device)
    x_ND = torch.randn(N, D, generator=generator).to(device, dtype).requires_grad_()
    logits_NE = torch.randn(N, E, generator=generator)
    logits_NE[:, 2] = -100.0
    routing = route(logits_NE.to(device), tiny.model(num_experts=E))
    gates_Nk = routing.gates_Nk.detach().requires_grad_()
    y_ND = layer(x_ND, routing._replace(gates_Nk=gates_Nk))
    dy_ND = torch.randn(N, D, generator=generator).to(device, dtype)
    return y_ND, *torch.autograd.grad(y_ND, (x_ND, gates_Nk, *layer.parameters()), dy_ND)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_grouped_products_are_the_loop(monkeypatch, dtype, rtol):
    loop = learnt(dtype)
    monkeypatch.setattr("moe.grouped.may_group", lambda x_ND, w_in_EGD: True)
    for ours, theirs in zip(learnt(dtype), loop, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= rtol * theirs.norm()
    assert not loop[3][2].any()


def test_an_expert_without_a_token_has_a_gradient_of_zero(monkeypatch):
    """Whatever the kernel leaves in a product over no slot."""
    monkeypatch.setattr(
        "torch.nn.functional.grouped_mm",
        lambda a, b, offs: torch.full((len(offs), a.shape[0], b.shape[1]), torch.nan),
    )
    ends_E = grouped.ends(torch.tensor([2, 0, 1]))
    out_EOI = grouped.segment_outer(torch.ones(3, 4), torch.ones(3, 5), ends_E)
    assert out_EOI.isnan().flatten(1).all(1).tolist() == [True, False, True]
    assert not out_EOI[1].any()


@pytest.mark.parametrize(("D", "H", "fits"), [(16, 8, True), (12, 8, False), (16, 12, False)])
def test_rows_that_are_no_multiple_of_sixteen_bytes_go_the_other_way(D, H, fits):
    assert grouped.is_aligned(torch.empty(2, 2 * H, D), torch.bfloat16) is fits


def test_a_cpu_and_fp32_have_the_loop():
    assert not grouped.may_group(torch.empty(3, 16, dtype=torch.bfloat16), torch.empty(2, 16, 16))
