"""The products of contiguous segments with a matrix each, as one kernel that reads their bounds on the GPU.

Shape letters: router.py; I inputs, O outputs. A loop of products would have to know the bounds on the CPU:
a wait of every layer, forward, for all that was queued before it.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

Counts = Tensor | list[int]  # of a loop the slots of each expert, else where each one's end: int32 [E]
_ALIGNED = 16  # bytes that every stride must be a multiple of


def may_group(x_ND: Tensor, w_in_EGD: Tensor) -> bool:
    """Whether there is a grouped kernel for these experts: bf16 on a GPU of compute capability 9 or above.

    Older GPUs have torch's fallback, a loop that waits as ours does.
    """
    if x_ND.device.type != "cuda" or x_ND.dtype is not torch.bfloat16:
        return False
    return is_aligned(w_in_EGD, x_ND.dtype) and _has_kernel(x_ND.device)


def is_aligned(w_in_EGD: Tensor, dtype: torch.dtype) -> bool:
    """Rows of all operands are as wide as the model (D), an expert (H) or twice that (G)."""
    _, G, D = w_in_EGD.shape
    return D * dtype.itemsize % _ALIGNED == 0 and G // 2 * dtype.itemsize % _ALIGNED == 0


def ends(counts_E: Tensor) -> Tensor:
    return counts_E.cumsum(0).to(torch.int32)


def segment_mm(x_SI: Tensor, w_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """x[segment e] @ w[e] for every expert, into one output [S, O]."""
    return F.grouped_mm(x_SI, w_EIO, offs=ends_E)


def segment_outer(a_SO: Tensor, b_SI: Tensor, ends_E: Tensor) -> Tensor:
    """a[segment e]ᵀ @ b[segment e] for every expert [E, O, I]; zero for one without a slot."""
    out_EOI = F.grouped_mm(a_SO.T, b_SI, offs=ends_E)
    empty_E = ends_E.diff(prepend=ends_E.new_zeros(1)) == 0
    return out_EOI.masked_fill_(empty_E[:, None, None], 0)  # nothing promises that a product of nothing is 0


@lru_cache(maxsize=64)
def _has_kernel(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
