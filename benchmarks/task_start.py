"""What a task costs in a warm worker: seconds to its first training step, and where the rest of it goes.

    python benchmarks/task_start.py [--model nano] [--threads 1] [--steps 10] [--sequences 8]

Short branches of one trunk are derived by the serial executor, each grown by another operator; the first
warms the process up and is left out. Functions are timed from outside, each without those timed within it;
medians over the other branches. Names that a release no longer has are left out of the table.
"""

import argparse
import contextlib
import functools
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from configuration import cells, load
from section import Section, table

from moe import flops
from sweeps.outcome import Order, Outcome
from sweeps.study import run_study

# stage: where its functions are looked up when they are called
STAGES = {
    "read the trajectory's spec": ["sweeps.store:Store.load"],
    "open the data": ["sweeps.derivation:open_data"],
    "load the state": ["sweeps.derivation:load_state"],
    "grow": ["sweeps.derivation:grow_weights", "sweeps.derivation:grow_moments"],
    "growth report": ["sweeps.derivation:growth_report", "sweeps.derivation:Derivation._report_growth"],
    "moments kept for diagnostics": [
        "sweeps.derivation:sample_moments",
        "sweeps.derivation:save_tensors",
        "sweeps.derivation:load_tensors",
    ],
    "build the trainer": ["sweeps.derivation:make_trainer"],
    "train": ["moe.train:Trainer.advance"],
    "evaluate": ["sweeps.derivation:evaluate"],
    "save the state": ["sweeps.derivation:save_state"],
    "append lines": ["sweeps.derivation:append_lines"],
    "sweep up, cut lines": [
        "sweeps.derivation:Derivation._sweep_up",
        "sweeps.derivation:Derivation._forget_beyond",
        "sweeps.derivation:Derivation._mend_growth",
    ],
    "look at what is stored": [
        "sweeps.store:Store.stored_steps",
        "sweeps.store:Store.evaluated",
        "sweeps.store:Store.metrics",
    ],
    "account of the attempt": [
        "sweeps.worker:_attempt_folder",
        "sweeps.worker:_log",
        "sweeps.worker:append_lines",
        "sweeps.worker:machine",
    ],
}


class Clock:
    """Seconds of each stage of a task, none counted twice, and of what is within them by another cut."""

    def __init__(self) -> None:
        self.tasks: dict[str, defaultdict[str, float]] = {}
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._begin = 0.0

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            if stage == "train" and not self.spent["train"]:
                self.spent["start"] = begin - self._begin
            self._inner.append(0.0)
            try:
                return work(*args, **kwargs)
            finally:
                whole = time.perf_counter() - begin
                self.spent[stage] += whole - self._inner.pop()
                self._inner[-1] += whole

        return call

    def within(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Of whatever stage it is called in: counted beside the stages."""

        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.spent[name] += time.perf_counter() - begin
                self.spent[f"number of {name}"] += 1

        return call

    def task(self, perform: Callable[..., list[Outcome]]) -> Callable[..., list[Outcome]]:
        """Of bundles of one order, as they are without `launch.fuse`."""

        def call(orders: Sequence[Order], *args: Any, **kwargs: Any) -> list[Outcome]:
            (order,) = orders
            self.spent, self._inner, self._begin = defaultdict(float), [0.0], time.perf_counter()
            outcomes = perform(orders, *args, **kwargs)
            self.spent["whole"] = time.perf_counter() - self._begin
            self.spent["rest"] = self.spent["whole"] - self._inner[0]
            self.tasks[order.task_id] = self.spent
            return outcomes

        return call


@contextlib.contextmanager
def watched() -> Iterator[Clock]:
    """Everything of STAGES is timed in this block."""
    clock, undo = Clock(), []

    def replace(owner: Any, name: str, value: Any) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for stage, places in STAGES.items():
        for place in places:
            module, _, path = place.partition(":")
            owner = importlib.import_module(module)
            *outer, name = path.split(".")
            for each in outer:
                owner = getattr(owner, each)
            replace(owner, name, clock.timed(stage, getattr(owner, name)))
    replace(os, "fsync", clock.within("fsync", os.fsync))
    serial = importlib.import_module("sweeps.serial")
    replace(serial, "perform_together", clock.task(serial.perform_together))
    try:
        yield clock
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


KINDS = {"growth": "growth report", "training": "train"}  # of task, by what only it does


def measure(
    model: str = "nano", threads: int = 1, steps: int = 10, sequences: int = 8
) -> dict[str, dict[str, float]]:
    """The median seconds of each stage of the two tasks of a branch, in a warm worker."""
    common = [
        f"model={model}",
        "launch=serial",
        f"launch.threads={threads}",
        f"train.batch_size={sequences}",
        f"trunk.steps={steps}",
        f"growth.step={steps}",
        f"budget.extra_flops={_flops(model, steps, sequences):g}",
        "budget.decay_fraction=0",
        "evaluate.probe_every=1000000",
        "controls=[]",
        "study_name=task_start",
    ]
    grids = [
        ["growth=depth", "growth.method=stack"],
        ["growth=depth", "growth.method=interposition"],
        *(["growth=width", f"growth.noise_scale={scale}"] for scale in (0.01, 0.02, 0.04)),
        ["growth=width", "growth.width_method=split"],
        ["growth=depth", "growth.method=stack", "growth.optimizer_state=copy"],
        ["growth=depth", "growth.method=interposition", "growth.optimizer_state=copy"],
    ]
    with tempfile.TemporaryDirectory() as folder, watched() as clock:
        words = [*common, f"launch.store={folder}/store"]
        mappings = [cell for growth in grids for cell in cells([*words, *growth])]
        with contextlib.redirect_stdout(sys.stderr):
            run_study(mappings)
    branches = [spent for task, spent in clock.tasks.items() if not task.startswith(_trunk(clock))]
    kinds = {kind: [spent for spent in branches if spent.get(mark)] for kind, mark in KINDS.items()}
    return {kind: _medians(tasks[1:]) for kind, tasks in kinds.items()}


def _trunk(clock: Clock) -> str:
    """The trajectory of the first task: what all branches start from."""
    return next(iter(clock.tasks)).partition("@")[0]


def _medians(tasks: list[defaultdict[str, float]]) -> dict[str, float]:
    names = {name for spent in tasks for name in spent}
    return {name: statistics.median(spent[name] for spent in tasks) for name in names}


def _flops(model: str, steps: int, sequences: int) -> float:
    """Enough for about `steps` steps of a grown model."""
    config, train = load(model)
    return 2.2 * steps * sequences * train.seq_len * flops.train_flops_per_token(config, train.seq_len)


def section(model: str = "nano", threads: int = 1, steps: int = 10, sequences: int = 8) -> Section:
    seconds = measure(model, threads, steps, sequences)
    shown = {"whole": "the whole task", "start": "to its first training step"}
    shown |= {stage: stage for stage in [*STAGES, "rest"]} | {"fsync": "fsync, within these"}
    rows = [
        [text, *(f"{1e3 * each[name]:.1f}" if name in each else "" for each in seconds.values())]
        for name, text in shown.items()
        if any(name in each for each in seconds.values())
    ]
    times = [f"{each['number of fsync']:.0f}" for each in seconds.values()]
    rows.append(["number of fsync, within these", *times])
    words = f"The two tasks of a branch in a warm worker, `{model}`, {steps} steps of the trunk, {sequences} "
    words += f"sequences a step, {threads} thread: the first grows and asks the probe, the second trains and "
    words += "asks the full suite. Medians, ms.\n\n"
    return Section("A task", words + table(["", *seconds], rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--sequences", type=int, default=8)
    args = parser.parse_args()
    print(section(args.model, args.threads, args.steps, args.sequences).text)


if __name__ == "__main__":
    main()
