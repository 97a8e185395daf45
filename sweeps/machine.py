"""This machine: what a run's speed depends on besides its model, the room there is, and its processes.

No torch here where no GPU can be meant: a plan is printed without it.
"""

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from moe import kernels
from sweeps.config import ExecutorKind, LaunchConfig
from sweeps.room import need, slots, this_machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a plan runs: `slots` tasks at a time, each on `gpus_per_run` GPUs of this `machine`."""

    machine: dict[str, Any]
    slots: int
    gpus_per_run: float


def place_of(launch: LaunchConfig) -> Place:
    """The place that an executor for `launch` would find here; what is missing here is not refused yet."""
    found = num_gpus() if _may_use_gpu(launch) else 0
    try:
        run = need(launch, found)
        here = this_machine(launch, run, os.cpu_count() or 1, found)
        at_once = 1 if launch.executor is ExecutorKind.SERIAL else slots(launch, run, [here])
    except ValueError:  # asked for what this machine has not: a plan may be read where it does not run
        elsewhere = machine("elsewhere", launch.threads)
        gpus_per_run = launch.gpus_per_run or 0.0
        return Place(machine=elsewhere, slots=launch.workers or 1, gpus_per_run=gpus_per_run)
    gpus_per_run = run.gpus * run.ranks if run.device == "cuda" else 0.0
    return Place(machine=machine(run.device, launch.threads), slots=at_once, gpus_per_run=gpus_per_run)


def num_gpus() -> int:
    """The GPUs that torch finds here."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def machine(device: str, threads: int) -> dict[str, Any]:
    """What makes seconds comparable, as it stands beside them: equal machines, equal speeds."""
    return {
        "processor": processor(device),
        "device": device,
        "threads": threads,
        "torch": version("torch"),
        "kernels": "C" if device == "cpu" and kernels.compiler() else "torch",
    }


@lru_cache(maxsize=4)
def processor(device: str) -> str:
    """The name of the processor that does the work."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        lines = []
    names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _may_use_gpu(launch: LaunchConfig) -> bool:
    """False only if torch cannot find a GPU: asking it costs seconds, most of a small plan's time."""
    if launch.device == "cuda" or (launch.gpus_per_run or 0) > 0:
        return True
    if launch.device == "cpu" or version("torch").endswith("+cpu"):
        return False
    if "rocm" in version("torch") or platform.system() != "Linux":
        return True
    try:
        ctypes.CDLL("libcuda.so.1")  # NVIDIA's driver
    except OSError:
        return False
    return True
