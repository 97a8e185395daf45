"""The executor of a process: made when first needed, kept between studies, closed at the end.

Its workers look at `drivers/<run>.alive` each step: when that file is gone they save and return.
"""

import atexit
import os
import socket
from dataclasses import replace
from pathlib import Path

from sweeps.config import ExecutorKind, LaunchConfig
from sweeps.execute import Executor
from sweeps.machine import is_running, num_gpus
from sweeps.outcome import WorkerOptions
from sweeps.provenance import git_commit
from sweeps.room import need


class Executors:
    """Gives the one executor that fits a configuration, making another only when the way to run changes."""

    def __init__(self) -> None:
        self._launch: LaunchConfig | None = None
        self._executor: Executor | None = None
        self._alive: Path | None = None
        atexit.register(self.close)

    def get(self, launch: LaunchConfig) -> Executor:
        """An executor with room for its workers, which start with the first order; writes nothing.

        ValueError if the device, the address or the cluster is not what `launch` asks for.
        """
        if self._executor is not None and launch == self._launch:
            return self._executor
        self.close()
        self._executor = _make(launch, alive=_alive_path(launch))
        self._launch = launch
        return self._executor

    def start(self) -> None:
        """From here on workers run: makes the alive file, removes those of dead drivers, starts workers."""
        assert self._launch is not None, "there is no executor to start"
        self._alive = _alive_path(self._launch)
        for path in self._alive.parent.glob(f"{socket.gethostname()}-*.alive"):
            if not is_running(int(path.stem.rsplit("-", 1)[1])):
                path.unlink(missing_ok=True)
        self._alive.touch()
        assert self._executor is not None
        self._executor.start()

    def stop(self) -> None:
        """Asks the workers to save and return."""
        if self._alive is not None:
            self._alive.unlink(missing_ok=True)
            self._alive = None

    def close(self) -> None:
        self.stop()
        if self._executor is not None:
            self._executor.close()
        self._executor, self._launch = None, None


def _alive_path(launch: LaunchConfig) -> Path:
    return Path(launch.store).resolve() / "drivers" / f"{socket.gethostname()}-{os.getpid()}.alive"


def _make(launch: LaunchConfig, alive: Path) -> Executor:
    options = WorkerOptions(
        store=str(Path(launch.store).resolve()),
        device=launch.device,
        threads=launch.threads,
        keep_every=launch.keep_every,
        checkpoint_s=launch.checkpoint_s,
        alive=str(alive),
        git_commit=git_commit(),
        fuse=launch.fuse,
    )
    if launch.executor is ExecutorKind.SERIAL:
        from sweeps.serial import SerialExecutor

        return SerialExecutor(replace(options, device=need(launch, num_gpus()).device))
    from sweeps.ray import RayExecutor

    if launch.address == "local":
        return RayExecutor(launch, options, num_cpus=os.cpu_count() or 1, num_gpus=num_gpus())
    return RayExecutor(launch, options)
