"""The model's parts on CPU in fp32: products by the BLAS, and one pass of `kernels.c` for what is between.

Each does what model.py, router.py and token_loss.py do by torch's operations, which are its oracle.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from moe.kernels import library

_Result = TypeVar("_Result")
_LEAST_SHARE = 1 << 16  # elements that are worth a thread


def serves(x: Tensor) -> bool:
    """Whether `x` is computed here."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


class RMSNorm(torch.autograd.Function):
    """x / rms(x) · gain [D] over the last axis."""

    @staticmethod
    def forward(ctx: Any, x, gain, eps):
        x = x.contiguous()
        D = x.shape[-1]
        y, inverse = torch.empty_like(x), x.new_empty(x.shape[:-1])
        args = x.data_ptr(), gain.data_ptr(), eps, D
        _share(inverse.numel(), D, lambda a, z: _c().rms_norm(*args, a, z, y.data_ptr(), inverse.data_ptr()))
        ctx.save_for_backward(x, gain, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x, gain, inverse = ctx.saved_tensors
        dy, D = grads[0].contiguous(), x.shape[-1]
        dx = torch.empty_like(x)
        args = x.data_ptr(), gain.data_ptr(), inverse.data_ptr(), dy.data_ptr(), D

        def rows(a: int, z: int) -> Tensor:
            dgain = torch.empty_like(gain)
            _c().rms_norm_back(*args, a, z, dx.data_ptr(), dgain.data_ptr())
            return dgain

        return dx, _total(_share(inverse.numel(), D, rows)), None


class _Heads(ctypes.Structure):
    """`heads` of kernels.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("T", "Q", "K", "C")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("gain_query", "gain_key", "cos", "sin")),
    ]


class CausalAttention(torch.autograd.Function):
    """[B, T, Q·C] of queries, keys and values x [B, T, Q+2K, C]: norms with the gains [C], RoPE with tables
    [T, C], grouped-query attention."""

    @staticmethod
    def forward(ctx: Any, x_BTHC, gain_query_C, gain_key_C, cos_TC, sin_TC, num_heads, eps):
        x_BTHC = x_BTHC.contiguous()
        B, T, H, C = x_BTHC.shape
        ctx.heads = num_heads, (H - num_heads) // 2, eps
        heads = _heads(ctx.heads, x_BTHC, gain_query_C, gain_key_C, cos_TC, sin_TC)
        y_BTX, lse_BQT = x_BTHC.new_empty(B, T, num_heads * C), x_BTHC.new_empty(B, num_heads, T)

        def sequences(a: int, z: int) -> int:
            return _c().attend(
                x_BTHC.data_ptr(), ctypes.byref(heads), a, z, y_BTX.data_ptr(), lse_BQT.data_ptr()
            )

        _check_memory(_share(B, T * H * C, sequences))
        ctx.save_for_backward(x_BTHC, gain_query_C, gain_key_C, cos_TC, sin_TC, y_BTX, lse_BQT)
        return y_BTX

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        *arrays, y_BTX, lse_BQT = ctx.saved_tensors
        x_BTHC, gain_query_C, gain_key_C, _, _ = arrays
        dy_BTX, heads = grads[0].contiguous(), _heads(ctx.heads, *arrays)
        dx_BTHC = torch.empty_like(x_BTHC)
        args = x_BTHC.data_ptr(), ctypes.byref(heads), y_BTX.data_ptr(), lse_BQT.data_ptr(), dy_BTX.data_ptr()

        def sequences(a: int, z: int) -> tuple[int, Tensor, Tensor]:
            dquery_C, dkey_C = torch.empty_like(gain_query_C), torch.empty_like(gain_key_C)
            short = _c().attend_back(*args, a, z, dx_BTHC.data_ptr(), dquery_C.data_ptr(), dkey_C.data_ptr())
            return short, dquery_C, dkey_C

        short, dquery, dkey = zip(*_share(len(x_BTHC), x_BTHC[0].numel(), sequences), strict=True)
        _check_memory(short)
        return dx_BTHC, _total(dquery), _total(dkey), None, None, None, None


def _heads(shape: tuple[int, int, float], x_BTHC, gain_query_C, gain_key_C, cos_TC, sin_TC) -> _Heads:
    num_heads, num_kv_heads, eps = shape
    _, T, _, C = x_BTHC.shape
    tensors = gain_query_C, gain_key_C, cos_TC, sin_TC
    return _Heads(T, num_heads, num_kv_heads, C, eps, *(tensor.data_ptr() for tensor in tensors))


class Router(torch.autograd.Function):
    """Of softmax gates: gates and experts [N, k], mean probabilities and load [E], z-loss and entropy.

    The gradient goes through gates, mean probabilities and z-loss.
    """

    @staticmethod
    def forward(ctx: Any, logits_NE, top_k, renormalise):
        logits_NE = logits_NE.contiguous()
        N, E = logits_NE.shape
        probs_NE, gates_Nk = torch.empty_like(logits_NE), logits_NE.new_empty(N, top_k)
        experts_Nk = torch.empty(N, top_k, dtype=torch.int64)
        whole_N, z_N = logits_NE.new_empty(N), logits_NE.new_empty(N)
        kept = probs_NE, gates_Nk, experts_Nk, whole_N, z_N
        args = logits_NE.data_ptr(), E, top_k, int(renormalise)

        def rows(a: int, z: int) -> Tensor:
            sums = torch.empty(2 * E + 2, dtype=torch.float64)
            _c().route(*args, a, z, *(tensor.data_ptr() for tensor in kept), sums.data_ptr())
            return sums

        means = (_total(_share(N, E, rows)) / N).float()
        ctx.save_for_backward(*kept)
        ctx.renormalise = int(renormalise)
        mean_E, load_E, z_loss, entropy = means[:E], means[E : 2 * E] / top_k, means[-2], means[-1]
        ctx.mark_non_differentiable(experts_Nk, load_E, entropy)
        return gates_Nk, experts_Nk, mean_E, load_E, z_loss, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        dgates_Nk, _, dmean_E, _, dz_loss, _ = grads
        kept = probs_NE, gates_Nk, *_ = ctx.saved_tensors
        (N, E), k, dlogits_NE = probs_NE.shape, gates_Nk.shape[1], torch.empty_like(probs_NE)
        dgates_Nk, dsums_E, dsquares = dgates_Nk.contiguous(), dmean_E / N, dz_loss.item() / N
        before = *(tensor.data_ptr() for tensor in kept), dgates_Nk.data_ptr(), dsums_E.data_ptr(), dsquares
        shape = E, k, ctx.renormalise
        _share(N, E, lambda a, z: _c().route_back(*before, *shape, a, z, dlogits_NE.data_ptr()))
        return dlogits_NE, None, None


class Experts(torch.autograd.Function):
    """Σ_k gate · expert(x) of dropless SwiGLU experts, one expert's slots at a time: they stay in cache.

    A gate multiplies what goes into the expert's last product, so that the gradient of a gate needs no output
    and nothing but the hidden of `w_in` is kept. Outputs are added to their tokens in the order of experts.
    """

    @staticmethod
    def forward(ctx: Any, x_ND, gates_Nk, experts_Nk, w_in_EGD, w_out_EDH, learns):
        x_ND, gates_Nk, experts_Nk = x_ND.contiguous(), gates_Nk.contiguous(), experts_Nk.contiguous()
        (_, D), k, (E, G, _), S = x_ND.shape, experts_Nk.shape[1], w_in_EGD.shape, experts_Nk.numel()
        counts_E, slot_S = torch.empty(E, dtype=torch.int64), torch.empty(S, dtype=torch.int64)
        _c().sort_slots(experts_Nk.data_ptr(), S, E, counts_E.data_ptr(), slot_S.data_ptr())
        counts = counts_E.tolist()
        out_ND, h_SG = torch.zeros_like(x_ND), x_ND.new_empty(S if learns else 0, G)
        kept = h_SG.split(counts) if learns else [None] * E
        x_nD, h_nG, a_nH = (x_ND.new_empty(max(counts), width) for width in (D, G, G // 2))
        for slots, h_kept, w_in_GD, w_out_DH in zip(
            slot_S.split(counts), kept, w_in_EGD.unbind(), w_out_EDH.unbind(), strict=True
        ):
            x, h, a = (buffer[: len(slots)] for buffer in (x_nD, h_nG, a_nH))
            _gather(x_ND, slots, k, x)
            torch.mm(x, w_in_GD.T, out=h)
            _swiglu(h, gates_Nk, slots, a, h_kept)
            torch.mm(a, w_out_DH.T, out=x)
            _scatter_add(x, slots, k, out_ND)
        ctx.save_for_backward(x_ND, gates_Nk, h_SG, slot_S, w_in_EGD, w_out_EDH)
        ctx.counts = counts
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x_ND, gates_Nk, h_SG, slot_S, w_in_EGD, w_out_EDH = ctx.saved_tensors
        dout_ND, counts, k, (_, G, D) = grads[0].contiguous(), ctx.counts, gates_Nk.shape[1], w_in_EGD.shape
        dx_ND, dgates_Nk = torch.zeros_like(x_ND), torch.empty_like(gates_Nk)
        dw_in_EGD, dw_out_EDH = torch.empty_like(w_in_EGD), torch.empty_like(w_out_EDH)
        buffers = [x_ND.new_empty(max(counts), width) for width in (D, G // 2, G // 2, G)]
        for e, (slots, h) in enumerate(zip(slot_S.split(counts), h_SG.split(counts), strict=True)):
            row, da, a, dh = (buffer[: len(slots)] for buffer in buffers)
            _gather(dout_ND, slots, k, row)
            torch.mm(row, w_out_EDH[e], out=da)
            _swiglu_back(h, gates_Nk, slots, da, dh, dgates_Nk, a)
            torch.mm(row.T, a, out=dw_out_EDH[e])
            _gather(x_ND, slots, k, row)
            torch.mm(dh.T, row, out=dw_in_EGD[e])
            torch.mm(dh, w_in_EGD[e], out=row)
            _scatter_add(row, slots, k, dx_ND)
        return dx_ND, dgates_Nk, None, dw_in_EGD, dw_out_EDH, None


def _gather(x_ND: Tensor, slots: Tensor, k: int, out_nD: Tensor) -> None:
    """The rows of the slots' tokens."""
    D = x_ND.shape[1]
    args = x_ND.data_ptr(), slots.data_ptr(), k, D
    _share(len(slots), D, lambda a, z: _c().gather(*args, a, z, out_nD.data_ptr()))


def _scatter_add(y_nD: Tensor, slots: Tensor, k: int, out_ND: Tensor) -> None:
    """Adds the rows to those of the slots' tokens."""
    D = y_nD.shape[1]
    args = y_nD.data_ptr(), slots.data_ptr(), k, D
    _share(len(slots), D, lambda a, z: _c().scatter_add(*args, a, z, out_ND.data_ptr()))


def _swiglu(h_nG: Tensor, gates_Nk: Tensor, slots: Tensor, a_nH: Tensor, kept_nG: Tensor | None) -> None:
    """silu(gate) · up · gate of the slot; and a copy of `h_nG` where one is kept."""
    G = h_nG.shape[1]
    before = h_nG.data_ptr(), gates_Nk.data_ptr(), slots.data_ptr(), G // 2
    after = a_nH.data_ptr(), None if kept_nG is None else kept_nG.data_ptr()
    _share(len(slots), G, lambda a, z: _c().swiglu(*before, a, z, *after))


def _swiglu_back(h_nG, gates_Nk, slots, da_nH, dh_nG, dgates_Nk, a_nH) -> None:
    """The gradients of hidden and gates from `da_nH`, and what `_swiglu` gave."""
    G = h_nG.shape[1]
    before = h_nG.data_ptr(), gates_Nk.data_ptr(), slots.data_ptr(), da_nH.data_ptr(), G // 2
    after = dh_nG.data_ptr(), dgates_Nk.data_ptr(), a_nH.data_ptr()
    _share(len(slots), G, lambda a, z: _c().swiglu_back(*before, a, z, *after))


def cross_entropy_(logits_nV: Tensor, targets_n: Tensor, scale: float) -> Tensor:
    """Next-token cross-entropies [n]; the logits become scale · (softmax − one-hot of the target)."""
    targets_n, losses_n = targets_n.contiguous(), logits_nV.new_empty(targets_n.shape)
    V = logits_nV.shape[-1]
    args = logits_nV.data_ptr(), targets_n.data_ptr(), V, scale
    beyond = _share(losses_n.numel(), V, lambda a, z: _c().cross_entropy(*args, a, z, losses_n.data_ptr()))
    if any(beyond):
        raise IndexError(f"a target is not below the vocabulary's {V}")
    return losses_n


# -- threads -------------------------------------------------------------------------------------------------


def _c() -> ctypes.CDLL:
    found = library()
    assert found is not None, "there is no C compiler"
    return found


def _share(count: int, width: int, part: Callable[[int, int], _Result]) -> list[_Result]:
    """part(begin, end) of 0..count rows of `width`, on torch's number of threads; C runs without the GIL.

    No part goes on after this is over, whatever was raised: it would write to memory that is free by then.
    """
    threads = min(torch.get_num_threads(), max(1, count * width // _LEAST_SHARE), max(1, count))
    if threads == 1:
        return [part(0, count)]
    edges = [count * i // threads for i in range(threads + 1)]
    pool = _pool(os.getpid(), torch.get_num_threads())
    others = [pool.submit(part, *edge) for edge in pairwise(edges[1:])]
    try:
        first = part(0, edges[1])
    finally:
        wait(others)
    return [first, *(other.result() for other in others)]


@lru_cache(maxsize=1)
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """Of this process: threads do not outlive a fork."""
    return ThreadPoolExecutor(threads - 1)


def _total(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


def _check_memory(short: list[int] | tuple[int, ...]) -> None:
    if any(short):
        raise MemoryError("there is no memory for attention; lower train.batch_size or train.seq_len")
