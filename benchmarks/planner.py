"""Seconds to plan 10,000 cells, Hydra's composition left out: `python benchmarks/planner.py`."""

import sys
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sweeps.cell import resolve
from sweeps.config import parse_sweep
from sweeps.plan import make_plan
from sweeps.store import Store

ROOT = Path(__file__).parent.parent


def main(count: int = 10_000) -> None:
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        base = OmegaConf.to_container(compose("config"), resolve=True)
    assert isinstance(base, dict)
    mappings = []
    for i in range(count):
        growth = {**base["growth"], "step": 10 * (1 + i % 100), "noise_scale": 1e-5 * (1 + i // 100)}
        mappings.append({**base, "growth": growth})
    begin = time.perf_counter()
    cells = [resolve(parse_sweep(mapping)) for mapping in mappings]
    resolved = time.perf_counter()
    plan = make_plan(cells, Store("a-store-that-is-not-there"))
    end = time.perf_counter()
    print(f"{len(plan.cells)} cells and controls, {len(plan.tasks)} tasks from {count} requests")
    print(
        f"parse and resolve {resolved - begin:.2f} s, plan {end - resolved:.2f} s, {end - begin:.2f} s in all"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
