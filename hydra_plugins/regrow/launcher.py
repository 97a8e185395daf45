"""The launcher: every cell of a sweep goes to `run_study` at once, so that what they share is trained once.

Hydra imports this module in every program that uses it: nothing heavy at the top.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class CellFailed(Exception):
    """The stored error of a cell; it has been shown already and is not tried again in the driver."""


class RegrowLauncher(Launcher):
    """Runs the cells, then hands Hydra each stored result. Results accumulate over batches of one sweep."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.whole_grid = False  # a sweeper that asks for all cells at once says so
        self._mappings: list[dict[str, Any]] = []
        self._executors: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sweeps.executors import Executors
        from sweeps.study import Refused, run_study

        setup_globals()
        if initial_job_idx == 0:
            self._mappings = []
        self._executors = self._executors or Executors()
        configs = [self._compose(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        self._mappings += [_mapping(config) for config in configs]
        try:
            result = run_study(self._mappings, self._executors, whole_grid=self.whole_grid)
        except Refused as refused:
            print(f"refused: {refused}", file=sys.stderr)
            sys.exit(2)
        if result.exit_code == 130:
            sys.exit(130)
        cells = result.cells[initial_job_idx:] if not result.planned_only else [None] * len(configs)
        return [self._hand_back(config, cell) for config, cell in zip(configs, cells, strict=True)]

    def _compose(self, overrides: Sequence[str], index: int) -> DictConfig:
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = index
            config.hydra.job.num = index
        return config

    def _hand_back(self, config: DictConfig, cell: Any) -> JobReturn:
        def fetch(_: DictConfig) -> float | None:
            if cell is not None and cell.status in ("failed", "blocked"):
                raise CellFailed(cell.message)
            return None if cell is None else cell.final_acc

        assert self.hydra_context is not None
        return run_job(
            hydra_context=self.hydra_context,
            task_function=fetch,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def _mapping(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain data, without Hydra's own part."""
    keys = [str(key) for key in config if key != "hydra"]
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@dataclass
class LauncherConfig:
    _target_: str = "hydra_plugins.regrow.launcher.RegrowLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="regrow", node=LauncherConfig, provider="regrow")
