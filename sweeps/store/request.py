"""The cells that the arguments of `sweep.py` ask for, composed as Hydra would; nothing is run."""

from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[2] / "conf"


def mappings_of(arguments: list[str]) -> list[dict[str, Any]]:
    """One resolved configuration a cell, the grid of a study and of swept values multiplied out.

    ValueError for what Hydra refuses, for a swept `study`, and for values that only a sweeper can choose.
    """
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    words = [word for word in arguments if word not in ("-m", "--multirun")]
    try:
        given = OverridesParser.create().parse_overrides(words)
        if any(override.key_or_group == "study" and override.is_sweep_override() for override in given):
            raise ValueError("study cannot be swept; ask about one study at a time")
        fixed = [str(override.input_line) for override in given if not override.is_sweep_override()]
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            return [_composed(cell) for cell in _grid(words, fixed)]
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _grid(words: list[str], fixed: list[str]) -> list[list[str]]:
    """The overrides of each cell: those of the study's own grid, narrowed by those that are given."""
    from hydra import compose
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = compose("config", overrides=fixed, return_hydra_config=True).hydra.sweeper.params or {}
    grid = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    (cells,) = BasicSweeper.split_arguments([*grid, *OverridesParser.create().parse_overrides(words)], None)
    return cells


def _composed(overrides: list[str]) -> dict[str, Any]:
    from hydra import compose
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(
        compose("config", overrides=overrides), resolve=True, throw_on_missing=True
    )
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
