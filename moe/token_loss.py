"""Next-token cross-entropy through the head, a chunk of tokens at a time, its gradient with it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe import cpu

_CPU_CHUNK, _GPU_CHUNK = 2**17, 2**25  # logits at a time: those of a CPU stay in its cache


def token_loss(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the logits x·headᵀ; never all [N, V] of them at once.

    The softmax is in fp32 (or in the dtype of `x_ND` where that is wider), products in the dtype of autocast.
    With a leading axis of R runs on all three, one mean each: [R].
    """
    return _TokenLoss.apply(x_ND, head_VD, targets_N, torch.is_grad_enabled())


@torch.no_grad()
def token_losses(x_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """The cross-entropy of each token [B, T] in nats, without a gradient; a chunk of logits is in memory."""
    x_ND, targets_N = x_BTD.flatten(0, -2), targets_BT.flatten()
    rows, to_gradient = _rows(x_ND, len(head_VD)), _to_gradient(x_ND)
    chunks = zip(x_ND.split(rows), targets_N.split(rows), strict=True)
    return torch.cat([to_gradient(x @ head_VD.T, targets, 1.0) for x, targets in chunks]).view_as(targets_BT)


class _TokenLoss(torch.autograd.Function):
    """The gradient of each chunk is taken while its probabilities are there: they are computed once."""

    @staticmethod
    def forward(ctx: Any, x_ND, head_VD, targets_N, learns):
        kind = x_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_ND.dtype
        exact = torch.promote_types(dtype, torch.float32)
        (*runs, N, D), V = x_ND.shape, head_VD.shape[-2]
        with torch.autocast(kind, enabled=False):
            x, head = x_ND.to(dtype), head_VD.to(dtype)
            dx_ND = torch.empty(*runs, N, D, dtype=exact, device=x.device) if learns else None
            dhead_DV = torch.zeros(*runs, D, V, dtype=exact, device=x.device) if learns else None
            R = math.prod(runs)
            rows, to_gradient = _rows(x_ND, V * R), _to_gradient(x_ND)
            buffer = torch.empty(R * min(rows, N) * V, dtype=dtype, device=x.device)  # stays in a CPU's cache
            losses = []
            for x_nD, targets_n, first in zip(
                x.split(rows, -2), targets_N.split(rows, -1), range(0, N, rows), strict=True
            ):
                logits_nV = buffer[: x_nD[..., 0].numel() * V].view(*x_nD.shape[:-1], V)
                p_nV = torch.matmul(x_nD, head.mT, out=logits_nV).to(exact)
                losses.append(to_gradient(p_nV, targets_n, 1 / N).sum(-1))
                if dx_ND is not None and dhead_DV is not None:
                    d_nV = p_nV.to(dtype)
                    dx_ND[..., first : first + rows, :] = d_nV @ head
                    dhead_DV += x_nD.mT @ d_nV  # a BLAS does this faster than its transpose
            dhead_VD = None if dhead_DV is None else dhead_DV.mT.contiguous()
        ctx.save_for_backward(dx_ND, dhead_VD)
        ctx.dtypes = x_ND.dtype, head_VD.dtype
        return torch.stack(losses).sum(0) / N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        dx_ND, dhead_VD = ctx.saved_tensors
        x_dtype, head_dtype = ctx.dtypes
        grad_11 = grads[0][..., None, None]
        return (dx_ND * grad_11).to(x_dtype), (dhead_VD * grad_11).to(head_dtype), None, None


def _rows(x: Tensor, logits: int) -> int:
    """Tokens at a time, of so many logits each."""
    return max(64, (_CPU_CHUNK if x.device.type == "cpu" else _GPU_CHUNK) // logits)


def _to_gradient(x: Tensor) -> Callable[[Tensor, Tensor, float], Tensor]:
    return cpu.cross_entropy_ if cpu.serves(x) else _cross_entropy_


def _cross_entropy_(logits_nV: Tensor, targets_n: Tensor, scale: float) -> Tensor:
    """Cross-entropies [n]; the logits become scale · (softmax − one-hot of the target)."""
    logits_nV -= logits_nV.amax(-1, keepdim=True)
    chosen_n1 = logits_nV.gather(-1, targets_n[..., None])
    total_n1 = logits_nV.exp_().sum(-1, keepdim=True)
    losses_n = (total_n1.log() - chosen_n1).squeeze(-1)
    logits_nV *= scale / total_n1
    logits_nV.scatter_add_(-1, targets_n[..., None], logits_nV.new_full(chosen_n1.shape, -scale))
    return losses_n
