"""The sweeper: Hydra's basic one, less its second composition of every cell (ours are all checked anyway)."""

import sys
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


class RegrowSweeper(BasicSweeper):
    """The product of all swept values, as `-m` and `hydra.sweeper.params` ask for it."""

    def sweep(self, arguments: list[str]) -> Any:
        from hydra_plugins.regrow.launcher import CellFailed, RegrowLauncher

        if isinstance(self.launcher, RegrowLauncher):
            self.launcher.whole_grid = self.max_batch_size is None
        for override in OverridesParser.create().parse_overrides(arguments):
            if override.key_or_group == "study" and override.is_sweep_override():
                print("refused: study cannot be swept; run one study at a time", file=sys.stderr)
                sys.exit(2)
        try:
            return super().sweep(arguments)
        except CellFailed:
            sys.exit(1)  # the table of what failed stands above

    def validate_batch_is_legal(self, batch: Any) -> None:
        pass


@dataclass
class SweeperConfig(BasicSweeperConf):
    _target_: str = "hydra_plugins.regrow.sweeper.RegrowSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="regrow", node=SweeperConfig, provider="regrow")
