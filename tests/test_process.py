"""What a process sets before its first step."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: what malloc is told holds for good.
FAULTS_OF_BLOCKS = """
import resource
import torch
from moe.process import prepare_process

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(6 << 20) for _ in range(4)]  # 96 MiB, as a step takes and frees them
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

prepare_process(1)
faults()
print(max(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is left alone elsewhere")
def test_freed_memory_is_used_again_without_page_faults():
    """Given back, it would be 24,544 faults each time, of 24,576 pages."""
    command = [sys.executable, "-c", FAULTS_OF_BLOCKS]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert int(run.stdout) < 240


HUGE_PAGES = """
import torch
from moe.process import prepare_process

prepare_process(1)
block = torch.ones(4 << 20)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is left alone elsewhere")
@pytest.mark.skipif(not KERNEL.exists() or "[never]" in KERNEL.read_text(), reason="there are none")
def test_blocks_lie_in_huge_pages():
    command = [sys.executable, "-c", HUGE_PAGES]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert int(run.stdout) >= 8 << 10  # KiB, of the 16 MiB that were written
