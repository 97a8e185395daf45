"""The launcher: every cell of a sweep goes to `run_study` at once, so that what they share is trained once.

Hydra imports this module in every program that uses it: nothing heavy at the top.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.regrow.compose import Composer


class CellFailed(Exception):
    """The stored error of a cell; it has been shown already and is not tried again in the driver."""


class RegrowLauncher(Launcher):
    """Runs the cells, then hands Hydra each stored result. Results accumulate over batches of one sweep."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.whole_grid = False  # a sweeper that asks for all cells at once says so
        self._composer: Composer | None = None
        self._mappings: list[dict[str, Any]] = []
        self._executors: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sweeps.executors import Executors
        from sweeps.study import Refused, run_study

        assert self.hydra_context is not None
        assert self.config is not None
        setup_globals()
        if initial_job_idx == 0:
            self._mappings = []
        self._executors = self._executors or Executors()
        if self._composer is None or initial_job_idx == 0:
            self._composer = Composer(self.hydra_context.config_loader, self.config)
        self._mappings += [self._composer.mapping(overrides) for overrides in job_overrides]
        try:
            result = run_study(self._mappings, self._executors, whole_grid=self.whole_grid)
        except Refused as refused:
            print(f"refused: {refused}", file=sys.stderr)
            sys.exit(2)
        if result.exit_code == 130:
            sys.exit(130)
        cells = result.cells[initial_job_idx:] if not result.planned_only else [None] * len(job_overrides)
        returns = enumerate(zip(job_overrides, cells, strict=True), start=initial_job_idx)
        return [self._hand_back(list(overrides), index, cell) for index, (overrides, cell) in returns]

    def _hand_back(self, overrides: list[str], index: int, cell: Any) -> JobReturn:
        """A cell's result, as Hydra's `run_job` returns it; by way of `run_job` where that leaves a trace."""

        def fetch(_: DictConfig | None = None) -> float | None:
            if cell is not None and cell.status in ("failed", "blocked"):
                raise CellFailed(cell.message)
            return None if cell is None else cell.final_acc

        assert self.hydra_context is not None
        assert self._composer is not None
        assert self.config is not None
        compose = partial(self._composer.config, overrides, index)
        if _leaves_no_trace(self.config, self.hydra_context):
            return StoredReturn(compose, overrides, fetch)
        return run_job(
            hydra_context=self.hydra_context,
            task_function=fetch,
            config=compose(),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


class StoredReturn(JobReturn):
    """What `run_job` returns for a fetched result; the configurations are composed when somebody asks."""

    def __init__(self, compose: Callable[[], DictConfig], overrides: list[str], fetch: Callable[[], Any]):
        super().__init__(overrides=overrides, working_dir=os.getcwd(), task_name=JobRuntime().get("name"))
        self._compose = compose
        try:
            self.return_value = fetch()
            self.status = JobStatus.COMPLETED
        except Exception as failed:  # as run_job has it: raised when somebody reads the value
            self.return_value = failed
            self.status = JobStatus.FAILED

    def __getattribute__(self, name: str) -> Any:
        if name in ("cfg", "hydra_cfg") and super().__getattribute__(name) is None:
            whole = self._compose()
            folder = os.path.join(whole.hydra.sweep.dir, whole.hydra.sweep.subdir)
            with open_dict(whole.hydra.runtime):
                whole.hydra.runtime.output_dir = os.path.abspath(folder)
            self.hydra_cfg = OmegaConf.masked_copy(whole, ["hydra"])
            self.cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        return super().__getattribute__(name)


def _leaves_no_trace(config: DictConfig, context: HydraContext) -> bool:
    """Whether `run_job` would tell nobody, write nothing and change nothing in this process."""
    hydra = config.hydra
    return (
        not context.callbacks.callbacks
        and hydra.output_subdir is None
        and not hydra.job.chdir
        and not hydra.job.env_set
        and hydra.sweep._get_node("subdir")._value() == "."  # unresolved: it may speak of a single cell
        and not OmegaConf.select(hydra, "job_logging.handlers")
    )


@dataclass
class LauncherConfig:
    _target_: str = "hydra_plugins.regrow.launcher.RegrowLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="regrow", node=LauncherConfig, provider="regrow")
