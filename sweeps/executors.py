"""The executor of a process: made when first needed, kept between studies, closed at the end.

Its workers look at `drivers/<run>.alive` each step: when that file is gone they save and return.
"""

import atexit
import os
import socket
import time
from pathlib import Path
from typing import Any

from sweeps.config import ExecutorKind, LaunchConfig, SweepConfig
from sweeps.execute import Executor
from sweeps.provenance import git_commit


class Executors:
    """Gives the one executor that fits a configuration, making another only when the way to run changes."""

    def __init__(self) -> None:
        self._key: Any = None
        self._executor: Executor | None = None
        self._alive: Path | None = None
        atexit.register(self.close)

    def get(self, config: SweepConfig, probe: tuple[str, int, int]) -> Executor:
        from sweeps.worker import WorkerOptions

        launch = config.launch
        key = (launch, probe, config.corpus)
        if self._executor is not None and key == self._key:
            return self._executor
        self.close()
        device, gpus_per_run = _device(launch)
        name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}.alive"
        self._alive = Path(launch.store).resolve() / "drivers" / name
        self._alive.touch()
        options = WorkerOptions(
            store=str(Path(launch.store).resolve()),
            device=device,
            threads=launch.threads,
            keep_every=launch.keep_every,
            checkpoint_s=launch.checkpoint_s,
            probe=probe,
            alive=str(self._alive),
            corpus=config.corpus,
            git_commit=git_commit(),
        )
        self._key = key
        if launch.executor is ExecutorKind.SERIAL:
            from sweeps.serial import SerialExecutor

            self._executor = SerialExecutor(options)
        else:
            from sweeps.ray import RayExecutor

            slots = launch.workers or _slots(launch, gpus_per_run)
            self._executor = RayExecutor(
                options, slots=slots, gpus_per_run=gpus_per_run, address=launch.address
            )
        return self._executor

    def stop(self) -> None:
        """Asks the workers to save and return."""
        if self._alive is not None:
            self._alive.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        if self._executor is not None:
            self._executor.close()
        self._executor, self._alive, self._key = None, None, None


def _device(launch: LaunchConfig) -> tuple[str, float]:
    """The device of a run and the GPUs it takes."""
    import torch

    found = torch.cuda.is_available()
    if launch.device == "cuda" and not found:
        raise ValueError("launch.device=cuda, but torch finds no GPU; choose auto or cpu")
    use = found and launch.device != "cpu"
    gpus_per_run = launch.gpus_per_run if launch.gpus_per_run is not None else (1.0 if use else 0.0)
    if gpus_per_run > 0 and not use:
        raise ValueError(
            f"launch.gpus_per_run={gpus_per_run:g}, but runs go to the CPU here; set it to 0 or null"
        )
    return ("cuda" if use else "cpu"), gpus_per_run


def _slots(launch: LaunchConfig, gpus_per_run: float) -> int:
    """As many workers as the machine has room for: by GPUs if runs use them, else by cores."""
    if gpus_per_run > 0:
        import torch

        return max(1, int(torch.cuda.device_count() / gpus_per_run))
    return max(1, (os.cpu_count() or 1) // launch.threads)
