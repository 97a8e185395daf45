"""What a sweep trains a second, and what it spends beside training and evaluating.

    python benchmarks/overhead.py [STUDY [OVERRIDE ...]]

Runs a study (quickstart) from an empty store. The ideal is a scheduler that costs nothing: the same tasks on
as many workers, each as long as its own training and evaluation were, longest remaining path first.
"""

import contextlib
import heapq
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alone import alone
from configuration import ROOT, cells
from section import Section, table

from moe.files import read_lines
from sweeps.plan import Plan
from sweeps.study import plan_study, run_study

# The quickstart's first growth steps: tasks as long as all of its own, in two fifths of its FLOPs
SHORT = ["growth.step=0,200,400"]
CASES = {
    "1 worker × 1 thread": ["launch.workers=1", "launch.threads=1"],
    "1 worker × 2 threads": ["launch.workers=1", "launch.threads=2"],
    "2 workers × 1 thread": ["launch.workers=2", "launch.threads=1"],
    "1 worker × 1 thread, fused 4": ["launch.workers=1", "launch.threads=1", "launch.fuse=4"],
}
ONE, TWO, FUSED = "1 worker × 1 thread", "2 workers × 1 thread", "1 worker × 1 thread, fused 4"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A study from an empty store; `wall_s` is without `start_s`, in which the executor's workers start."""

    study: str
    tasks: int
    slots: int
    wall_s: float
    start_s: float
    trained_flops: float
    planned_flops: float
    ideal_s: float
    predicted_s: float | None
    spent_s: Mapping[str, float]  # seconds of workers
    report_s: float | None = None

    @property
    def flops_per_s(self) -> float:
        """Useful FLOPs: those of the plan, whatever was trained twice."""
        return self.planned_flops / self.wall_s

    @property
    def overhead(self) -> float:
        """The share of the time that an ideal scheduler would not need."""
        return 1 - self.ideal_s / self.wall_s

    def share(self, what: str) -> float:
        return self.spent_s[what] / (self.slots * self.wall_s)


def run(study: str, overrides: list[str], with_report: bool = False) -> Run:
    """Runs the cells of `study` in a store of their own; what it says on its way goes to stderr."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        mappings = cells([f"study={study}", f"launch.store={folder}/store", *overrides])
        config, store, plan = plan_study(mappings)
        result = run_study(mappings)
        if result.exit_code:
            raise RuntimeError(f"{study} ended with {result.exit_code}: {result.cells}")
        summary = store.study(config.study_name)["summary"]
        lines = [x for p in store.root.glob("trajectories/*/attempts/*/timing.jsonl") for x in read_lines(p)]
        report_s = _report_s(study, folder) if with_report else None
    return Run(
        study=study,
        tasks=len(lines),
        slots=summary["slots"],
        wall_s=summary["wall_s"] - summary["start_s"],
        start_s=summary["start_s"],
        trained_flops=summary["spent_flops"],
        planned_flops=plan.flops_todo,
        ideal_s=makespan(plan, {x["task"]: x["train_s"] + x["evaluate_s"] for x in lines}, summary["slots"]),
        predicted_s=summary["predicted_s"],
        spent_s=_spent(lines, summary["slots"] * (summary["wall_s"] - summary["start_s"])),
        report_s=report_s,
    )


def _spent(lines: list[dict[str, Any]], worker_s: float) -> dict[str, float]:
    spent = {
        "training": sum(line["train_s"] for line in lines),
        "evaluating": sum(line["evaluate_s"] for line in lines),
    }
    spent["the rest of tasks"] = sum(line["wall_s"] for line in lines) - sum(spent.values())
    return spent | {"no task": worker_s - sum(spent.values())}


def _report_s(study: str, folder: str) -> float:
    """Seconds of the whole command that makes the study's page."""
    words = [f"study={study}", f"launch.store={folder}/store", f"report.dir={folder}/report"]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "report.py"), *words], cwd=folder, check=True, stdout=sys.stderr
    )
    return time.perf_counter() - begin


def makespan(plan: Plan, seconds: dict[str, float], slots: int) -> float:
    """When the last task ends if tasks take these seconds and nothing else takes any."""
    waits = {id: {need for need in task.needs if need in plan.tasks} for id, task in plan.tasks.items()}
    ready = [(-plan.remaining_flops[id], id) for id, needs in waits.items() if not needs]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            id = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + seconds[id], id))
        now, ended = heapq.heappop(running)
        for id, needs in waits.items():
            if ended in needs:
                needs.discard(ended)
                if not needs:
                    heapq.heappush(ready, (-plan.remaining_flops[id], id))
    return now


def section(study: str = "quickstart", overrides: list[str] = SHORT) -> Section:
    """The study in each way that this machine's cores allow, each in a process of its own."""
    cases = CASES
    if (os.cpu_count() or 1) < 2:
        cases = {name: words for name, words in cases.items() if "1 worker × 1 thread" in name}
    runs = {
        name: alone(run, study, [*overrides, *words], with_report=name == ONE)
        for name, words in cases.items()
    }
    rows = [
        [
            name,
            f"{each.flops_per_s / 1e9:.1f}",
            f"{each.flops_per_s / runs[ONE].flops_per_s:.2f}×",
            f"{each.wall_s:.0f} + {each.start_s:.0f}",
            *(f"{each.share(what):.1%}" for what in each.spent_s),
            f"{each.overhead:.1%}",
        ]
        for name, each in runs.items()
    ]
    heads = ["", "useful GFLOP/s", "of the first", "s + start", *runs[ONE].spent_s, "overhead"]
    first = runs[ONE]
    words = f"`study={study} {' '.join(overrides)}` from an empty store: {first.tasks} tasks, "
    words += f"{first.planned_flops:.3g} FLOPs, {first.trained_flops / first.planned_flops:.3f} of the plan "
    words += "trained. Shares are of the time of workers; overhead is against a scheduler that costs nothing."
    text = f"{words}\n\n{table(heads, rows)}\nIts report, the whole command: {first.report_s:.1f} s.\n"
    return Section("Sweeps", text, _ratios(runs))


def _ratios(runs: dict[str, Run]) -> dict[str, float]:
    ratios = {"sweep: 1 − overhead, mean": 1 - statistics.mean(each.overhead for each in runs.values())}
    if TWO in runs:
        ratios["sweep: 2 workers ÷ 1 worker"] = runs[TWO].flops_per_s / runs[ONE].flops_per_s
    if FUSED in runs:
        ratios["sweep: fused ÷ 1 worker"] = runs[FUSED].flops_per_s / runs[ONE].flops_per_s
    return ratios


def main(study: str = "quickstart", *overrides: str) -> None:
    r = run(study, list(overrides))
    print(f"\n{study}: {r.tasks} tasks on {r.slots} workers in {r.wall_s:.1f} s", end="")
    print(f" (and {r.start_s:.1f} s to start them), {r.flops_per_s / 1e9:.1f} useful GFLOP/s")
    for name, seconds in r.spent_s.items():
        print(f"{name:18}{seconds:9.1f} s{r.share(name):8.1%} of worker time")
    print(f"an ideal scheduler: {r.ideal_s:.1f} s, so that {r.overhead:.1%} of the time is overhead")
    predicted = f"{r.predicted_s:.0f} s" if r.predicted_s else "nothing"
    print(f"predicted: {predicted}; took {r.wall_s + r.start_s:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
