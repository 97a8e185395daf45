"""What a sweep spends beside training and evaluating: `python benchmarks/overhead.py [STUDY [OVERRIDE ...]]`.

Runs a study (quickstart) from an empty store. The ideal is a scheduler that costs nothing: the same tasks on
as many workers, each as long as its own training and evaluation were, longest remaining path first.
"""

import heapq
import itertools
import json
import sys
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe.files import read_lines
from sweeps.plan import Plan
from sweeps.study import plan_study, run_study

ROOT = Path(__file__).resolve().parent.parent


def main(study: str = "quickstart", *overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mappings = grid(study, [f"launch.store={folder}/store", *overrides])
        _, store, plan = plan_study(mappings)
        run_study(mappings)
        summary = store.study(study)["summary"]
        lines = [x for p in store.root.glob("trajectories/*/attempts/*/timing.jsonl") for x in read_lines(p)]
    useful = {line["task"]: line["train_s"] + line["evaluate_s"] for line in lines}
    slots, wall_s = summary["slots"], summary["wall_s"] - summary["start_s"]
    ideal_s = makespan(plan, useful, slots)
    spent = {
        "training": sum(line["train_s"] for line in lines),
        "evaluating": sum(line["evaluate_s"] for line in lines),
        "the rest of tasks": sum(line["wall_s"] for line in lines) - sum(useful.values()),
    }
    spent["no task"] = slots * wall_s - sum(spent.values())
    print(f"\n{study}: {len(lines)} tasks on {slots} workers in {wall_s:.1f} s", end="")
    print(f" (and {summary['start_s']:.1f} s to start Ray)")
    for name, seconds in spent.items():
        print(f"{name:18}{seconds:9.1f} s{seconds / (slots * wall_s):8.1%} of worker time")
    print(f"an ideal scheduler: {ideal_s:.1f} s, so that {1 - ideal_s / wall_s:.1%} of the time is overhead")
    predicted = summary["predicted_s"]
    print(f"predicted: {f'{predicted:.0f} s' if predicted else 'nothing'}; took {summary['wall_s']:.0f} s")


def grid(study: str, overrides: list[str]) -> list[dict]:
    """The cells of a study file, composed as Hydra would."""
    words = [f"study={study}", *overrides]
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        whole = compose("config", overrides=words, return_hydra_config=True)
        axes = [[f"{k}={v}" for v in str(vs).split(",")] for k, vs in whole.hydra.sweeper.params.items()]
        cells = [compose("config", overrides=[*words, *values]) for values in itertools.product(*axes)]
    return [json.loads(json.dumps(OmegaConf.to_container(cell, resolve=True))) for cell in cells]


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


if __name__ == "__main__":
    main(*sys.argv[1:])
