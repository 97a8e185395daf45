"""What the figures were measured on: the processor, and the fp32 GEMM peak that shares are of."""

import os
import platform
import statistics
from pathlib import Path

import torch
from timing import measure

from sweeps.machine import processor

_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "sha_ni": "SHA instructions"}


def describe() -> str:
    """One line: processor, memory, software, and the GEMM peak on one thread and on all cores."""
    flags = _of("/proc/cpuinfo", "flags").split()
    named = ", ".join(text for flag, text in _FLAGS.items() if flag in flags) or platform.machine()
    memory = _of("/proc/meminfo", "MemTotal").split()
    room = f", {int(memory[0]) / 2**20:.0f} GiB" if memory else ""
    cores = os.cpu_count() or 1
    peaks = [f"{peak_on(threads) / 1e9:.0f} on {threads}" for threads in sorted({1, cores})]
    return (
        f"{processor('cpu')} ({named}){room}, {platform.system()}; Python {platform.python_version()}, "
        f"torch {torch.__version__}; fp32 GEMM peak in GFLOP/s: {', '.join(peaks)} threads"
    )


def name() -> str:
    """Which machine it is: ratios of other machines are not compared with these."""
    return processor("cpu")


def gemm_peak_flops(size: int = 1536) -> float:
    """FLOP/s of a large fp32 matrix product with torch's threads: the machine's practical ceiling."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(measure(lambda: a @ b) for _ in range(8))


def peak_on(threads: int) -> float:
    """The median of three measurements."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return statistics.median(gemm_peak_flops() for _ in range(3))
    finally:
        torch.set_num_threads(before)


def _of(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
