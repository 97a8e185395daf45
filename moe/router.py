"""Top-k routing and the expert layer it feeds.

Shape letters, here and in model.py: B sequences, T tokens (of a sequence, or B·T of them once flattened to
N), D hidden, Q query heads, K key/value heads, C channels of a head, E experts, k experts a token goes to,
S = N·k slots (one per token and chosen expert, sorted by expert), H hidden of an expert, V vocabulary.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Routing(NamedTuple):
    """Where each token goes. The losses are scalars, `load_E` the share of slots of each expert."""

    gates_Nk: Tensor
    experts_Nk: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor
    load_E: Tensor
    entropy: Tensor


def route(logits_NE: Tensor, top_k: int) -> Routing:
    """Softmax over all experts, the k largest, renormalised to sum to one; all in fp32.

    Load-balance loss E·Σ f_e·P_e with f the share of *slots* (the form normalised by k, 1 at balance), and
    z-loss on logsumexp − ln E: both unchanged when every expert and k are multiplied alike.
    """
    logits_NE = logits_NE.float()
    num_tokens, num_experts = logits_NE.shape
    probs_NE = logits_NE.softmax(-1)
    top_Nk, experts_Nk = probs_NE.topk(top_k, dim=-1)
    gates_Nk = top_Nk / top_Nk.sum(-1, keepdim=True)
    load_E = torch.bincount(experts_Nk.reshape(-1), minlength=num_experts) / (num_tokens * top_k)
    mean_probs_E = probs_NE.mean(0)
    z_N = torch.logsumexp(logits_NE, -1) - math.log(num_experts)
    return Routing(
        gates_Nk=gates_Nk,
        experts_Nk=experts_Nk,
        load_balance_loss=num_experts * (load_E * mean_probs_E).sum(),
        z_loss=z_N.square().mean(),
        load_E=load_E,
        entropy=-torch.special.xlogy(probs_NE.detach(), probs_NE.detach()).sum(-1).mean(),
    )


class Experts(nn.Module):
    """SwiGLU experts stored stacked: w_in_EGD holds gate and up (G = 2H), w_out_EDH the way back."""

    def __init__(self, num_experts: int, hidden_size: int, expert_hidden_size: int):
        super().__init__()
        self.w_in_EGD = nn.Parameter(torch.empty(num_experts, 2 * expert_hidden_size, hidden_size))
        self.w_out_EDH = nn.Parameter(torch.empty(num_experts, hidden_size, expert_hidden_size))

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        return _SortedExperts.apply(
            x_ND, routing.gates_Nk.to(x_ND.dtype), routing.experts_Nk, self.w_in_EGD, self.w_out_EDH
        )

    def dense(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Every expert on every token, then masked: slow, obviously right, the oracle of `forward`."""
        G = self.w_in_EGD.shape[1]
        h_ENG = torch.einsum("nd,egd->eng", x_ND, self.w_in_EGD)
        a_ENH = F.silu(h_ENG[..., : G // 2]) * h_ENG[..., G // 2 :]
        y_END = torch.einsum("enh,edh->end", a_ENH, self.w_out_EDH)
        weight_NE = torch.zeros(x_ND.shape[0], self.w_in_EGD.shape[0], dtype=x_ND.dtype)
        weight_NE = weight_NE.scatter(1, routing.experts_Nk, routing.gates_Nk.to(x_ND.dtype))
        return torch.einsum("ne,end->nd", weight_NE, y_END)


class _SortedExperts(torch.autograd.Function):
    """Dropless experts as one GEMM per expert over its contiguous slots.

    Its own backward, because autograd's would undo the sort by `index_add`: slow, and unordered on a GPU.
    A gather by the inverse permutation followed by a sum over k is neither.
    """

    @staticmethod
    def forward(ctx: Any, x_ND, gates_Nk, experts_Nk, w_in_EGD, w_out_EDH):
        top_k, num_experts = experts_Nk.shape[1], w_in_EGD.shape[0]
        order_S = experts_Nk.reshape(-1).argsort(stable=True)
        bounds = torch.bincount(experts_Nk.reshape(-1), minlength=num_experts).cumsum(0).tolist()
        segments = [slice(a, b) for a, b in zip([0, *bounds[:-1]], bounds, strict=True)]
        place_S = torch.empty_like(order_S)
        place_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
        w_in, w_out = w_in_EGD.to(x_ND.dtype), w_out_EDH.to(x_ND.dtype)

        x_SD = x_ND.index_select(0, order_S // top_k)
        h_SG = _segment_mm(x_SD, w_in.transpose(1, 2), segments)
        gate_SH, up_SH = h_SG.chunk(2, dim=1)
        a_SH = F.silu(gate_SH) * up_SH
        y_SD = _segment_mm(a_SH, w_out.transpose(1, 2), segments)
        y_NkD = y_SD.index_select(0, place_S).view(*experts_Nk.shape, -1)
        ctx.save_for_backward(x_SD, h_SG, a_SH, y_SD, gates_Nk, order_S, place_S, w_in, w_out)
        ctx.segments, ctx.weight_dtype = segments, w_in_EGD.dtype
        return y_NkD.mul_(gates_Nk.unsqueeze(-1)).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (dout_ND,) = grads
        x_SD, h_SG, a_SH, y_SD, gates_Nk, order_S, place_S, w_in, w_out = ctx.saved_tensors
        segments, (N, top_k) = ctx.segments, gates_Nk.shape
        dout_SD = dout_ND.index_select(0, order_S // top_k)
        dgates_Nk = (dout_SD * y_SD).sum(1)[place_S].view(N, top_k)
        dy_SD = dout_SD.mul_(gates_Nk.reshape(-1)[order_S].unsqueeze(1))

        dw_out_EDH = torch.stack([dy_SD[s].T @ a_SH[s] for s in segments])
        da_SH = _segment_mm(dy_SD, w_out, segments)
        gate_SH, up_SH = h_SG.chunk(2, dim=1)
        dh_SG = torch.cat(
            [torch.ops.aten.silu_backward(da_SH * up_SH, gate_SH), da_SH * F.silu(gate_SH)], dim=1
        )
        dw_in_EGD = torch.stack([dh_SG[s].T @ x_SD[s] for s in segments])
        dx_SD = _segment_mm(dh_SG, w_in, segments)
        dx_ND = dx_SD.index_select(0, place_S).view(N, top_k, -1).sum(1)
        return dx_ND, dgates_Nk, None, dw_in_EGD.to(ctx.weight_dtype), dw_out_EDH.to(ctx.weight_dtype)


def _segment_mm(x_SI: Tensor, w_EIO: Tensor, segments: list[slice]) -> Tensor:
    """x[segment e] @ w[e] for every expert, into one output [S, O]."""
    out_SO = x_SI.new_empty(x_SI.shape[0], w_EIO.shape[2])
    for segment, w_IO in zip(segments, w_EIO, strict=True):
        torch.mm(x_SI[segment], w_IO, out=out_SO[segment])
    return out_SO
