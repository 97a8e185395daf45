"""Runs a cell, a grid of cells (-m) or a whole study (study=NAME): see conf/config.yaml for every key."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Runs one cell and returns its final accuracy; None if it diverged or was only planned."""
    from sweeps.study import Refused, run_study

    mapping = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(mapping, dict)
    try:
        result = run_study([{str(key): value for key, value in mapping.items()}])
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(2)
    if result.exit_code:
        sys.exit(result.exit_code)
    return result.cells[0].final_acc if result.cells else None


if __name__ == "__main__":
    main()
