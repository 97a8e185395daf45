"""Shared by all tests: one thread, no network, tiny studies."""

import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import commands
import pytest
import torch

from moe import cpu

torch.set_num_threads(1)


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made as ever, but no picture of them: rendering is what takes long."""
    commands.unrender(monkeypatch.setattr)


@pytest.fixture
def torch_alone(monkeypatch):
    """As on a machine without a C compiler: torch's operations, which are the kernels' oracle."""
    monkeypatch.setattr(cpu, "library", lambda: None)


@pytest.fixture
def store_root(tmp_path):
    return str(tmp_path / "store")
