"""How fast shapes of models train and are evaluated: what tasks of the store took, else what was calibrated.

Importing this needs no torch. Nothing is guessed: a shape that was never measured has no speed.
"""

import json
import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from moe.config import ModelConfig, Precision
from moe.files import read_json, read_lines, write_json
from moe.plain import digest, to_plain
from sweeps.config import LaunchConfig
from sweeps.machine import Place
from sweeps.store import Store
from sweeps.trajectory import Trajectory

RECENT = 300  # trajectories of a store that are looked at, the newest: reading one takes about a millisecond
KEPT_START_S = 0.1  # an executor kept from an earlier batch starts in no time


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What decides how long a training step takes, whatever is learnt in it."""

    model: ModelConfig
    batch_size: int
    seq_len: int
    precision: Precision
    source: str  # of the data: batches and items are made as they are read

    def __str__(self) -> str:
        model = self.model
        sizes = f"d{model.hidden_size}-l{model.num_layers}-e{model.num_experts}"
        return f"{sizes} on {self.source}, {self.batch_size} × {self.seq_len} tokens, {self.precision}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Training FLOPs per second, seconds per item evaluated, and seconds of a task besides both.

    `item_s` is None where no evaluation was timed.
    """

    flops_per_s: float
    item_s: float | None
    task_s: float


def shape_of(trajectory: Trajectory) -> Shape:
    train = trajectory.train
    return Shape(
        model=trajectory.model,
        batch_size=train.batch_size,
        seq_len=train.seq_len,
        precision=train.precision,
        source=_source(trajectory.data),
    )


@lru_cache(maxsize=64)
def _source(data: str) -> str:
    return json.loads(data)["source"]


def known_speeds(
    shapes: Iterable[Shape], store: Store, launch: LaunchConfig, place: Place
) -> dict[Shape, Speed]:
    """The speeds known of shapes at a place: of tasks first, they saw everything a task does.

    With `launch.fuse` the seconds of tasks are shares, and their speed that of all together; where none ran
    so, what runs do alone stands for it.
    """
    calibrated, measured = _Calibration(speed_path(launch)), _measured(store, place.machine)
    found = {shape: calibrated.speed(shape, place) for shape in set(shapes)}
    for fuse in sorted({1, launch.fuse}):
        found |= {shape: speed for shape, speed in measured[fuse].items() if shape in found and speed}
    return {shape: speed for shape, speed in found.items() if speed is not None}


def known_start_s(store: Store, launch: LaunchConfig, place: Place) -> float | None:
    """Seconds that workers took to start, in this store's runs or else in calibration; None if unmeasured."""
    times = []
    for name in store.studies():
        summary = store.earlier(name)["summary"]
        for run in summary["runs"] if summary else []:
            if (run.get("executor"), run.get("slots")) == (launch.executor.value, place.slots):
                times.append(run.get("start_s") or 0.0)
    times = [start_s for start_s in times if start_s > KEPT_START_S]
    return median(times) if times else _Calibration(speed_path(launch)).start_s(launch, place)


# --------------------------------------------------------------------------------------------------------
# Of tasks


@dataclass
class _Evidence:
    """The tasks of one shape."""

    trained_flops: float = 0.0
    train_s: float = 0.0  # of tasks that trained, without their evaluations
    trained_tasks: int = 0
    evaluate_s: float = 0.0
    items: float = 0.0
    rest_s: list[float] = field(default_factory=list)  # of tasks that did not train, likewise

    def speed(self, any_rest_s: list[float]) -> Speed | None:
        """None if nothing was trained. What tasks take besides training is told by those without any."""
        if self.trained_flops == 0 or self.train_s <= 0:
            return None
        rest_s = self.rest_s or any_rest_s
        task_s = median(rest_s) if rest_s else 0.0
        if task_s * self.trained_tasks >= self.train_s / 2:  # too short to tell the two apart
            task_s = 0.0
        return Speed(
            flops_per_s=self.trained_flops / (self.train_s - task_s * self.trained_tasks),
            item_s=self.evaluate_s / self.items if self.items else None,
            task_s=task_s,
        )


def _measured(store: Store, machine: dict[str, Any]) -> dict[int, dict[Shape, Speed | None]]:
    """By `launch.fuse`, speeds of what the store's newest trajectories trained on such a machine."""
    evidence: dict[int, dict[Shape, _Evidence]] = defaultdict(lambda: defaultdict(_Evidence))
    for trajectory_id, lines in _timings(store):
        alike: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for line in lines:
            if machine.items() <= line.items():
                alike[line.get("fuse", 1)].append(line)
        trajectory = _load(store, trajectory_id) if alike else None
        if trajectory is not None:
            items = _num_items(store.evals(trajectory_id))
            evaluate_s = {fuse: sum(line["evaluate_s"] for line in own) for fuse, own in alike.items()}
            whole_s = sum(evaluate_s.values())
            for fuse, own in alike.items():  # an item does not say whose it was
                share = evaluate_s[fuse] / whole_s if whole_s else 1 / len(alike)
                _collect(evidence[fuse][shape_of(trajectory)], trajectory, own, share * items)
    speeds: dict[int, dict[Shape, Speed | None]] = defaultdict(dict)
    for fuse, by_shape in evidence.items():
        any_rest_s = [rest_s for each in by_shape.values() for rest_s in each.rest_s]
        speeds[fuse] = {shape: each.speed(any_rest_s) for shape, each in by_shape.items()}
    return speeds


def _num_items(evals: list[dict[str, Any]]) -> int:
    return sum(family["n"] for line in evals for family in line.get("families", {}).values())


def _collect(evidence: _Evidence, trajectory: Trajectory, lines: list[dict[str, Any]], items: float) -> None:
    for line in lines:
        without_s = line["wall_s"] - line["evaluate_s"]
        if line["steps"]:
            evidence.trained_flops += line["steps"] * trajectory.flops_per_step
            evidence.train_s += without_s
            evidence.trained_tasks += 1
        else:
            evidence.rest_s.append(without_s)
        evidence.evaluate_s += line["evaluate_s"]
    evidence.items += items


def _timings(store: Store) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(trajectory_id, its lines of time) of the newest trajectories."""
    try:
        entries = [entry for entry in os.scandir(store.root / "trajectories") if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in sorted(entries, key=lambda e: e.stat().st_mtime_ns, reverse=True)[:RECENT]:
        paths = Path(entry.path).glob("attempts/*/timing.jsonl")
        yield entry.name.rsplit("-", 1)[-1], [line for path in paths for line in read_lines(path)]


def _load(store: Store, trajectory_id: str) -> Trajectory | None:
    """None for what this release cannot rebuild: that is no evidence, and no reason not to plan."""
    try:
        return store.load(trajectory_id)
    except (AssertionError, ValueError, KeyError, OSError):
        return None


# --------------------------------------------------------------------------------------------------------
# Calibrated


def speed_path(launch: LaunchConfig) -> Path:
    """`launch.speed_file`, else regrow/speed.json in $XDG_CACHE_HOME, by default ~/.cache."""
    if launch.speed_file is not None:
        return Path(launch.speed_file)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "regrow" / "speed.json"


def keep_speed(path: Path, shape: Shape, place: Place, speed: Speed) -> None:
    """Writes a calibrated speed beside those already in the file, in place of an older one of its kind."""
    _keep(path, _key(shape, place), {**_where(place), "shape": to_plain(shape), **to_plain(speed)})


def keep_start(path: Path, launch: LaunchConfig, place: Place, start_s: float) -> None:
    entry = {**_where(place), "executor": launch.executor.value, "start_s": start_s}
    _keep(path, _key(launch.executor.value, place), entry)


def _keep(path: Path, key: str, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**_Calibration(path).entries, key: entry})


def _where(place: Place) -> dict[str, Any]:
    """Several workers share a machine's memory: a speed holds for their number."""
    return {"host": socket.gethostname(), **place.machine, "workers": place.slots}


def _key(what: Shape | str, place: Place) -> str:
    return digest([to_plain(what), _where(place)])


class _Calibration:
    """The entries of a speed file; a file that is not there has none."""

    def __init__(self, path: Path):
        try:
            self.entries: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            self.entries = {}
        except ValueError as error:
            raise ValueError(f"{path} is not a file of speeds ({error}); delete it and calibrate") from error

    def speed(self, shape: Shape, place: Place) -> Speed | None:
        entry = self.entries.get(_key(shape, place))
        return entry and Speed(**{name: entry[name] for name in ("flops_per_s", "item_s", "task_s")})

    def start_s(self, launch: LaunchConfig, place: Place) -> float | None:
        entry = self.entries.get(_key(launch.executor.value, place))
        return entry and entry["start_s"]
