"""Seconds to plan 10,000 cells, Hydra's composition left out: `python benchmarks/planner.py`."""

import sys
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sweeps.study import plan_study

ROOT = Path(__file__).resolve().parent.parent


def main(count: int = 10_000) -> None:
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        base = OmegaConf.to_container(compose("config"), resolve=True)
    assert isinstance(base, dict)
    mappings = []
    for i in range(count):
        growth = {**base["growth"], "step": 10 * (1 + i % 100), "noise_scale": 1e-5 * (1 + i // 100)}
        mappings.append({**base, "growth": growth})
    begin = time.perf_counter()
    _, _, plan = plan_study(mappings)
    seconds = time.perf_counter() - begin
    print(f"{len(plan.cells)} cells and controls, {len(plan.tasks)} tasks from {count} requests")
    print(f"{seconds:.2f} s from resolved configurations to the plan")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
