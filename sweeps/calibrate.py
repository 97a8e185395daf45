"""Measures this machine's speed for the shapes of a configuration: `python -m sweeps.calibrate model=nano`.

Takes the overrides of sweep.py. Each shape trains and is evaluated for a few seconds, in as many processes at
once and with as many threads as the plan would have; the speeds go to `launch.speed_file`, and planning reads
them. The start of Ray's workers is timed too. Nothing is written under the store.
"""

import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from moe.checkpoint import Description, load_state, save_state
from moe.config import LearningRate, Schedule
from moe.data import open_data
from moe.evaluate import Suite, evaluate
from moe.process import prepare_process
from moe.train import Trainer, initial_state
from sweeps.cell import all_cells, resolve
from sweeps.config import ExecutorKind, LaunchConfig, SweepConfig, parse_sweep
from sweeps.executors import Executors
from sweeps.machine import Place, place_of
from sweeps.speed import Shape, Speed, keep_speed, keep_start, shape_of, speed_path
from sweeps.store import Store
from sweeps.trajectory import Trajectory

SECONDS = 3.0  # of training steps; half of it of evaluations
WARM_UP_STEPS = 3
CONF = Path(__file__).resolve().parent.parent / "conf"


def calibrate(config: SweepConfig, *, seconds: float = SECONDS, say: Callable[[str], None] = print) -> Path:
    """Measures every shape that a configuration trains, and keeps the speeds; returns their file.

    ValueError if the device is not here or a shape cannot be trained.
    """
    place, path = place_of(config.launch), speed_path(config.launch)
    say(f"{place.machine['processor']}, {place.slots} workers of {config.launch.threads} threads")
    for shape, (trajectory, suite) in _shapes(config).items():
        speed = _together(place, trajectory, suite, seconds)
        keep_speed(path, shape, place, speed)
        item = "evaluations not measured" if speed.item_s is None else f"{1 / speed.item_s:.3g} items/s"
        tokens = speed.flops_per_s / trajectory.flops_per_step * trajectory.train.tokens_per_step
        say(f"{shape}: {speed.flops_per_s:.3g} FLOPs/s, {tokens:.3g} tokens/s, {item}")
    if config.launch.executor is ExecutorKind.RAY and config.launch.address == "local":
        try:
            start_s = _time_start(config.launch)
        except Exception as error:  # Ray raises anything; the speeds are kept
            say(f"the start of workers could not be measured: {error}")
        else:
            keep_start(path, config.launch, place, start_s)
            say(f"{place.slots} workers start in {start_s:.1f} s")
    return path


def _shapes(config: SweepConfig) -> dict[Shape, tuple[Trajectory, Suite]]:
    """Every shape on the way to a cell or one of its controls, with a trajectory that has it and a suite."""
    found: dict[Shape, tuple[Trajectory, Suite]] = {}
    for cell in all_cells([resolve(config)]).values():
        for address in cell.states().values():
            for trajectory, _ in address.segments():
                found.setdefault(shape_of(trajectory), (trajectory, cell.probe))
    return found


def _together(place: Place, trajectory: Trajectory, suite: Suite, seconds: float) -> Speed:
    """The mean speed of as many processes as there are workers, all measuring at the same time."""
    task = (trajectory.kind, trajectory.model, trajectory.data, trajectory.train)
    given = (task, suite, place.machine["device"], place.machine["threads"], seconds)
    if place.slots == 1:
        return _measure(0, *given)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(place.slots)
    with ProcessPoolExecutor(place.slots, context, initializer=_meet_at, initargs=(barrier,)) as pool:
        futures = [pool.submit(_measure, index, *given) for index in range(place.slots)]
        return _mean([future.result() for future in futures])


def _mean(speeds: list[Speed]) -> Speed:
    items = [speed.item_s for speed in speeds if speed.item_s is not None]
    return Speed(
        flops_per_s=mean(speed.flops_per_s for speed in speeds),
        item_s=mean(items) if items else None,
        task_s=mean(speed.task_s for speed in speeds),
    )


# --------------------------------------------------------------------------------------------------------
# One process

_barrier: Any = None


def _meet_at(barrier: Any) -> None:
    global _barrier  # noqa: PLW0603  a process of the pool is told before its first call
    _barrier = barrier


def _measure(
    index: int, task: tuple[Any, ...], suite: Suite, device: str, threads: int, seconds: float
) -> Speed:
    """Trains from random weights, evaluates, stores and reads; corpora are not read, but drawn at random."""
    prepare_process(threads)
    if device == "cuda":
        torch.cuda.set_device(index % torch.cuda.device_count())
    kind, model, data_text, train = task
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=train.lr)
    trajectory = Trajectory(
        kind=kind, model=model, data=data_text, train=train, seed=index, learning_rate=rate
    )
    identity = trajectory.identity["data"]
    data = open_data(identity, "") if identity["source"] == "world" else None
    random = np.random.default_rng(index)

    def batches(step: int) -> np.ndarray:
        if data is not None:
            return data.batch(index, step, train.batch_size, train.seq_len)
        return random.integers(0, model.vocab_size, (train.batch_size, train.seq_len + 1))

    trainer = Trainer(model, train, rate, batches, initial_state(model, index), device)
    for _ in trainer.steps(WARM_UP_STEPS):
        pass
    if _barrier is not None:
        _barrier.wait()
    begin = time.perf_counter()
    while (taken_s := time.perf_counter() - begin) < seconds:
        for _ in trainer.steps(trainer.step + 1):
            pass
    trained_flops = (trainer.step - WARM_UP_STEPS) * trajectory.flops_per_step
    return Speed(
        flops_per_s=trained_flops / taken_s,
        item_s=None if data is None else _time_item(trainer, data, suite, seconds / 2, device),
        task_s=_time_state(trainer, trajectory),
    )


def _time_item(trainer: Trainer, data: Any, suite: Suite, seconds: float, device: str) -> float:
    """Seconds per item. The first evaluation makes the items and is not counted: a worker makes them once."""

    def once() -> int:
        scores = evaluate(trainer.model, data, suite.questions, seq_len=trainer.train.seq_len, device=device)
        return sum(family["n"] for family in scores["families"].values())

    once()
    begin, items = time.perf_counter(), 0
    while (taken_s := time.perf_counter() - begin) < seconds:
        items += once()
    return taken_s / items


def _time_state(trainer: Trainer, trajectory: Trajectory) -> float:
    """Seconds to store a state and read it back: what every task does once each."""
    description = Description(trajectory.model, trajectory.identity["data"], trajectory.train.seq_len)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        save_state(
            Path(folder) / "state",
            trainer.state(),
            description,
            transient=False,
            flops=0.0,
            torch=torch.__version__,
            git_commit=None,
        )
        load_state(Path(folder) / "state")
        return time.perf_counter() - begin


def _time_start(launch: LaunchConfig) -> float:
    """Seconds until Ray and its workers answer, in a store made for this alone."""
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).prepare()
        executors = Executors()
        begin = time.perf_counter()
        try:
            executors.get(dataclasses.replace(launch, store=folder))
            executors.start()
            return time.perf_counter() - begin
        finally:
            executors.close()


# --------------------------------------------------------------------------------------------------------


def _configuration(overrides: Iterable[str]) -> SweepConfig:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    mapping = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(mapping, dict)
    return parse_sweep({str(key): value for key, value in mapping.items()})


def main(overrides: list[str]) -> None:
    from hydra.errors import HydraException

    try:
        path = calibrate(_configuration(overrides))
    except (HydraException, ValueError) as error:
        print(f"refused: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"kept in {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
