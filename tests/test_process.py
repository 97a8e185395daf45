"""What a process sets before its first step."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: what malloc is told holds for good.
FAULTS_OF_FOUR_STEPS = """
import resource
import numpy as np
import tiny
from moe.process import prepare_process
from moe.train import Trainer, initial_state

model = tiny.model(hidden_size=32, expert_hidden_size=64)
train = tiny.train(batch_size=32, seq_len=256)
tokens = np.random.default_rng(0).integers(0, model.vocab_size, (32, 257))
trainer = Trainer(model, train, tiny.constant(1e-3), lambda step: tokens, initial_state(model, 0))

def faults():
    list(trainer.steps(trainer.step + 4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(trainer.steps(trainer.step + 4))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
prepare_process(1)
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is left alone elsewhere")
def test_steps_use_freed_memory_again_without_page_faults():
    command = [sys.executable, "-c", FAULTS_OF_FOUR_STEPS]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    given_back, kept = map(int, run.stdout.split())
    assert 10 * kept < given_back


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
