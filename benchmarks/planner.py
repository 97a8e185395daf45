"""Seconds to plan 10,000 cells, Hydra's composition left out: `python benchmarks/planner.py`."""

import sys

from configuration import cells
from timing import measure

from sweeps.study import plan_study


def seconds(count: int = 10_000) -> float:
    """From resolved configurations to the plan."""
    (base,) = cells([])
    mappings = []
    for i in range(count):
        growth = {**base["growth"], "step": 10 * (1 + i % 100), "noise_scale": 1e-5 * (1 + i // 100)}
        mappings.append({**base, "growth": growth})
    return measure(lambda: plan_study(mappings))


def main(count: int = 10_000) -> None:
    print(f"{count} requests: {seconds(count):.2f} s from resolved configurations to the plan")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
