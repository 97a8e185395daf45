"""Seconds from the command line to the printed plan of a grid: `python benchmarks/plan_command.py`.

Each grid is planned by `sweep.py -m … +plan=only` in a process of its own, Hydra and Python's start included.
"""

import re
import subprocess
import sys
import tempfile
import time

from configuration import ROOT
from section import Section, table

GRIDS = {10: (10, 1), 100: (50, 2), 1000: (200, 5)}  # cells: growth steps × noise scales


def section(planned: int = 10_000) -> Section:
    import planner

    rows = [[f"{count:,} cells, the whole command", f"{seconds(count):.2f}"] for count in GRIDS]
    rows.append([f"{planned:,} resolved configurations to a plan", f"{planner.seconds(planned):.2f}"])
    return Section("Planning", table(["", "s"], rows))


def seconds(count: int) -> float:
    steps, scales = GRIDS[count]
    axes = [
        "growth.step=" + ",".join(str(10 * (1 + i)) for i in range(steps)),
        "growth.noise_scale=" + ",".join(f"{0.01 * (1 + i):g}" for i in range(scales)),
    ]
    taken, asked = _plan(axes)
    assert asked == count, f"{asked} cells were planned, not {count}"
    return taken


def main(*counts: int) -> None:
    for count in counts or GRIDS:
        print(f"{count} cells: {seconds(count):.2f} s from the command line to the plan")


def _plan(axes: list[str]) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "sweep.py"), "-m", *axes, "+plan=only"]
        command += [f"launch.store={folder}/store", f"hydra.sweep.dir={folder}"]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begin
    found = re.search(r"(\d+) requested", done.stdout)
    assert found, f"no plan was printed:\n{done.stdout}{done.stderr}"
    return seconds, int(found[1])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
