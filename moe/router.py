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

from moe import cpu, grouped
from moe.config import Gate, ModelConfig


class Routing(NamedTuple):
    """Where each token goes. The losses are scalars, `load_E` the share of slots of each expert, `probs_E`
    its mean probability."""

    gates_Nk: Tensor
    experts_Nk: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor
    load_E: Tensor
    probs_E: Tensor
    entropy: Tensor

    def of_whole_batch(self, experts_Nk: Tensor, entropy: Tensor) -> "Routing":
        """The same where `experts_Nk` are those of all the batch's tokens, of which ours are a part."""
        load_E = _load(experts_Nk, len(self.load_E))
        return self._replace(
            experts_Nk=experts_Nk,
            load_E=load_E,
            load_balance_loss=_load_balance(load_E, self.probs_E),
            entropy=entropy,
        )


def route(logits_NE: Tensor, config: ModelConfig, bias_E: Tensor | None = None) -> Routing:
    """The k best experts of each token and their gates (`config.gate`), all in fp32.

    `bias_E` moves the selection and no gate. Load-balance loss E·Σ f_e·P_e with f the share of *slots* (the
    form normalised by k, 1 at balance) and P the mean probability, and z-loss on logsumexp − ln E: both
    unchanged when every expert and k are multiplied alike.
    """
    num_experts = logits_NE.shape[1]
    if cpu.serves(logits_NE) and _is_plain(config, bias_E):
        renormalise = config.gate is Gate.SOFTMAX_RENORMALISED
        gates_Nk, experts_Nk, probs_E, load_E, z_loss, entropy = cpu.Router.apply(
            logits_NE, config.top_k, renormalise
        )
        loss = _load_balance(load_E, probs_E)
        return Routing(gates_Nk, experts_Nk, loss, z_loss, load_E, probs_E, entropy)
    gates_Nk, experts_Nk, probs_NE, total_N1 = choose(logits_NE, config, bias_E)
    if config.capacity_factor is not None:
        gates_Nk = gates_Nk * within_capacity(experts_Nk, num_experts, config.capacity_factor)

    load_E, probs_E = _load(experts_Nk, num_experts), probs_NE.mean(0)
    z_N1 = total_N1 - math.log(num_experts)
    return Routing(
        gates_Nk=gates_Nk,
        experts_Nk=experts_Nk,
        load_balance_loss=_load_balance(load_E, probs_E),
        z_loss=z_N1.square().mean(),
        load_E=load_E,
        probs_E=probs_E,
        entropy=-torch.special.xlogy(probs_NE.detach(), probs_NE.detach()).sum(-1).mean(),
    )


def choose(
    logits_NE: Tensor, config: ModelConfig, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What depends on each token alone: gates and experts [N, k], probabilities [N, E], logsumexp [N, 1]."""
    logits_NE = logits_NE.float()
    total_N1 = logits_NE.logsumexp(-1, keepdim=True)
    match config.gate:
        case Gate.SOFTMAX | Gate.SOFTMAX_RENORMALISED:
            scores_NE = probs_NE = (logits_NE - total_N1).exp()
        case Gate.TOPK_SOFTMAX:
            scores_NE, probs_NE = logits_NE, (logits_NE - total_N1).exp()
        case Gate.SIGMOID | Gate.SIGMOID_RENORMALISED:
            scores_NE = logits_NE.sigmoid()
            probs_NE = scores_NE / scores_NE.sum(-1, keepdim=True)

    chosen_by_NE = scores_NE if bias_E is None else scores_NE.detach() + bias_E
    if config.num_groups > 1:
        chosen_by_NE = _best_groups_only(chosen_by_NE.detach(), config)
    top_Nk, experts_Nk = chosen_by_NE.topk(config.top_k, dim=-1)
    if chosen_by_NE is not scores_NE:
        top_Nk = scores_NE.gather(1, experts_Nk)

    match config.gate:
        case Gate.SOFTMAX | Gate.SIGMOID:
            gates_Nk = top_Nk
        case Gate.SOFTMAX_RENORMALISED | Gate.SIGMOID_RENORMALISED:
            gates_Nk = top_Nk / top_Nk.sum(-1, keepdim=True)
        case Gate.TOPK_SOFTMAX:
            gates_Nk = top_Nk.softmax(-1)
    if config.route_scale != 1.0:
        gates_Nk = gates_Nk * config.route_scale
    return gates_Nk, experts_Nk, probs_NE, total_N1


def _is_plain(config: ModelConfig, bias_E: Tensor | None) -> bool:
    """Softmax gates of a token's best experts, with nothing that moves or cuts them."""
    is_softmax = config.gate in (Gate.SOFTMAX, Gate.SOFTMAX_RENORMALISED)
    moved = bias_E is not None or config.num_groups > 1 or config.route_scale != 1.0
    return is_softmax and not moved and config.capacity_factor is None


def _load(experts_Nk: Tensor, num_experts: int) -> Tensor:
    return counts_of(experts_Nk.reshape(-1), num_experts) / experts_Nk.numel()


def counts_of(experts_S: Tensor, num_experts: int) -> Tensor:
    """The slots of each expert: [E]. On a GPU `bincount` would wait for its largest value."""
    if experts_S.device.type == "cpu":
        return torch.bincount(experts_S, minlength=num_experts)
    return experts_S.new_zeros(num_experts).scatter_add_(0, experts_S, torch.ones_like(experts_S))


def _load_balance(load_E: Tensor, probs_E: Tensor) -> Tensor:
    return len(load_E) * (load_E * probs_E).sum()


def _best_groups_only(scores_NE: Tensor, config: ModelConfig) -> Tensor:
    """−∞ outside each token's best groups: by their best expert, for sigmoid by the sum of their best two."""
    scores_NGX = scores_NE.unflatten(1, (config.num_groups, -1))
    if config.gate in (Gate.SIGMOID, Gate.SIGMOID_RENORMALISED):
        group_NG = scores_NGX.topk(2, dim=-1).values.sum(-1)
    else:
        group_NG = scores_NGX.amax(-1)
    best_Ng = group_NG.topk(config.top_k_groups, dim=-1).indices
    shut_NG = torch.ones_like(group_NG, dtype=torch.bool).scatter_(1, best_Ng, False)
    return scores_NGX.masked_fill(shut_NG.unsqueeze(-1), -math.inf).flatten(1)


def within_capacity(experts_Nk: Tensor, num_experts: int, factor: float) -> Tensor:
    """1 for the first c·k·N/E slots of each expert in token order, 0 for those it must drop: [N, k]."""
    experts_S = experts_Nk.reshape(-1)
    order_S = experts_S.argsort(stable=True)
    first_E = counts_of(experts_S, num_experts).cumsum(0).roll(1)
    first_E[0] = 0
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(order_S.numel(), device=order_S.device) - first_E[experts_S[order_S]]
    capacity = math.ceil(factor * experts_S.numel() / num_experts)
    return (place_S < capacity).view_as(experts_Nk).float()


class Experts(nn.Module):
    """SwiGLU experts stored stacked: w_in_EGD holds gate and up (G = 2H), w_out_EDH the way back."""

    def __init__(self, num_experts: int, hidden_size: int, expert_hidden_size: int):
        super().__init__()
        self.w_in_EGD = nn.Parameter(torch.empty(num_experts, 2 * expert_hidden_size, hidden_size))
        self.w_out_EDH = nn.Parameter(torch.empty(num_experts, hidden_size, expert_hidden_size))

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        return sorted_experts(x_ND, routing.gates_Nk, routing.experts_Nk, self.w_in_EGD, self.w_out_EDH)

    def dense(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Every expert on every token, then masked: slow, obviously right, the oracle of `forward`."""
        G = self.w_in_EGD.shape[1]
        h_ENG = torch.einsum("nd,egd->eng", x_ND, self.w_in_EGD)
        a_ENH = F.silu(h_ENG[..., : G // 2]) * h_ENG[..., G // 2 :]
        y_END = torch.einsum("enh,edh->end", a_ENH, self.w_out_EDH)
        weight_NE = torch.zeros(x_ND.shape[0], self.w_in_EGD.shape[0], dtype=x_ND.dtype)
        weight_NE = weight_NE.scatter(1, routing.experts_Nk, routing.gates_Nk.to(x_ND.dtype))
        return torch.einsum("ne,end->nd", weight_NE, y_END)


def sorted_experts(
    x_ND: Tensor, gates_Nk: Tensor, experts_Nk: Tensor, w_in_EGD: Tensor, w_out_EDH: Tensor
) -> Tensor:
    """Σ_k gate · expert(x) of each token: [N, D]."""
    if cpu.serves(x_ND):
        return cpu.Experts.apply(x_ND, gates_Nk, experts_Nk, w_in_EGD, w_out_EDH, torch.is_grad_enabled())
    return _SortedExperts.apply(x_ND, gates_Nk.to(x_ND.dtype), experts_Nk, w_in_EGD, w_out_EDH)


class _SortedExperts(torch.autograd.Function):
    """Dropless experts as one GEMM per expert over its contiguous slots.

    Its own backward, because autograd's would undo the sort by `index_add`: slow, and unordered on a GPU.
    A gather by the inverse permutation followed by a sum over k is neither.
    """

    @staticmethod
    def forward(ctx: Any, x_ND, gates_Nk, experts_Nk, w_in_EGD, w_out_EDH):
        top_k, num_experts = experts_Nk.shape[1], w_in_EGD.shape[0]
        order_S = experts_Nk.reshape(-1).argsort(stable=True)
        counts: grouped.Counts = counts_of(experts_Nk.reshape(-1), num_experts)
        counts = grouped.ends(counts) if grouped.may_group(x_ND, w_in_EGD) else counts.tolist()
        place_S = torch.empty_like(order_S)
        place_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
        w_in, w_out = w_in_EGD.to(x_ND.dtype), w_out_EDH.to(x_ND.dtype)

        token_S = order_S // top_k
        x_SD = x_ND.index_select(0, token_S)
        h_SG = _segment_mm(x_SD, w_in.transpose(1, 2), counts)
        gate_SH, up_SH = h_SG.chunk(2, dim=1)
        y_SD = _segment_mm(F.silu(gate_SH).mul_(up_SH), w_out.transpose(1, 2), counts)
        ctx.save_for_backward(x_SD, h_SG, y_SD, gates_Nk, order_S, token_S, place_S, w_in, w_out)
        ctx.counts, ctx.weight_dtype = counts, w_in_EGD.dtype
        y_NkD = y_SD.index_select(0, place_S).view(*experts_Nk.shape, -1)
        return _sum_over_k(y_NkD, gates_Nk)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (dout_ND,) = grads
        x_SD, h_SG, y_SD, gates_Nk, order_S, token_S, place_S, w_in, w_out = ctx.saved_tensors
        counts, (N, top_k) = ctx.counts, gates_Nk.shape
        dout_SD = dout_ND.index_select(0, token_S)
        dgates_Nk = torch.linalg.vecdot(dout_SD, y_SD)[place_S].view(N, top_k)
        dy_SD = dout_SD.mul_(gates_Nk.reshape(-1)[order_S].unsqueeze(1))

        gate_SH, up_SH = h_SG.chunk(2, dim=1)
        silu_SH = F.silu(gate_SH)
        da_SH = _segment_mm(dy_SD, w_out, counts)
        dw_out_EDH = _segment_outer(dy_SD, silu_SH * up_SH, counts, w_out)
        dh_SG = torch.empty_like(h_SG)
        dgate_SH, dup_SH = dh_SG.chunk(2, dim=1)
        torch.mul(da_SH, silu_SH, out=dup_SH)
        torch.ops.aten.silu_backward.grad_input(da_SH.mul_(up_SH), gate_SH, grad_input=dgate_SH)
        dw_in_EGD = _segment_outer(dh_SG, x_SD, counts, w_in)
        dx_SD = _segment_mm(dh_SG, w_in, counts)
        dx_ND = _sum_over_k(dx_SD.index_select(0, place_S).view(N, top_k, -1))
        return dx_ND, dgates_Nk, None, dw_in_EGD.to(ctx.weight_dtype), dw_out_EDH.to(ctx.weight_dtype)


def _segment_mm(x_SI: Tensor, w_EIO: Tensor, counts: grouped.Counts) -> Tensor:
    """x[segment e] @ w[e] for every expert, into one output [S, O]."""
    if isinstance(counts, Tensor):
        return grouped.segment_mm(x_SI, w_EIO, counts)
    out_SO = x_SI.new_empty(x_SI.shape[0], w_EIO.shape[2])
    for x, w_IO, out in zip(x_SI.split(counts), w_EIO.unbind(), out_SO.split(counts), strict=True):
        torch.mm(x, w_IO, out=out)
    return out_SO


def _segment_outer(a_SO: Tensor, b_SI: Tensor, counts: grouped.Counts, like_EOI: Tensor) -> Tensor:
    """a[segment e]ᵀ @ b[segment e] for every expert: the gradient of its weights [E, O, I]."""
    if isinstance(counts, Tensor):
        return grouped.segment_outer(a_SO, b_SI, counts)
    out_EOI = torch.empty_like(like_EOI)
    for a, b, out in zip(a_SO.split(counts), b_SI.split(counts), out_EOI.unbind(), strict=True):
        torch.mm(a.T, b, out=out)
    return out_EOI


def _sum_over_k(y_NkD: Tensor, gates_Nk: Tensor | None = None) -> Tensor:
    """Σ_k g·y in the order of k, whatever the hardware; passes over [N, D] beat a reduction of length k."""
    total_ND = y_NkD[:, 0] * (1.0 if gates_Nk is None else gates_Nk[:, :1])
    for nth in range(1, y_NkD.shape[1]):
        if gates_Nk is None:
            total_ND += y_NkD[:, nth]
        else:
            total_ND.addcmul_(y_NkD[:, nth], gates_Nk[:, nth : nth + 1])
    return total_ND
