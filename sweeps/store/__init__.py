"""The store: the only truth about what was trained. Nothing is read that was not written whole.

Layout: trajectories/<kind>-<slug>-<id>/{spec.json, metrics.jsonl, evals.jsonl, states/, attempts/},
studies/<name>/{cells,plan,summary}.json, corpora/<id>/ (see moe.data.shards), drivers/<run>.alive.
Importing this needs no torch.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moe.files import last_line, read_json, read_lines, read_whole_json, write_json
from sweeps.trajectory import Kind, Trajectory, from_identity, parse_address

VERSION = 1
LOCK_S = 20.0  # the locks of whole folders are held for moments


class Busy(Exception):
    """Another process is writing the trajectory."""


class Store:
    """Reads and writes one store folder. Making a Store writes nothing; `prepare` does."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.corpora = str(self.root / "corpora")
        self._trajectories_path = str(self.root / "trajectories")
        self._scanned = 0
        self._folders: dict[str, Path] = {}
        self._whole: set[str] = set()  # trajectories whose spec.json was looked at
        self._trajectories: dict[str, Trajectory] = {}
        self._evals: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
        self._check()

    def _check(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"launch.store={self.root} is a file; choose a folder")
        path = self.root / "store.json"
        if not path.exists():
            return
        try:
            version = int(read_json(path)["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"launch.store={self.root}: {path.name} is not a store's: {error}") from error
        if version > VERSION:
            raise ValueError(
                f"launch.store={self.root} has store version {version}, newer than the {VERSION} that this "
                "release reads; update Regrow, or choose another store"
            )

    def prepare(self) -> None:
        """Makes the folders; ValueError if the place cannot be written."""
        try:
            for name in ("trajectories", "studies", "drivers"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
                probe = self.root / name / f".{socket.gethostname()}-{os.getpid()}.probe"
                probe.touch()
                probe.unlink(missing_ok=True)
            with self._alone("trajectories"):
                _sweep_up(self.root)
                for left in self.root.glob("*/.*.probe"):
                    left.unlink(missing_ok=True)
                if not (self.root / "store.json").exists():
                    write_json(self.root / "store.json", {"version": VERSION})
        except OSError as error:
            raise ValueError(f"launch.store={self.root} cannot be written: {error.strerror}") from error

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Holds the lock of a folder, which its writers hold for moments; ValueError after LOCK_S."""
        lock = FileLock(self.root / name / ".lock")
        try:
            lock.acquire(timeout=LOCK_S)
        except Timeout:
            raise ValueError(
                f"launch.store={self.root} is locked: another process has held {name}/.lock for "
                f"{LOCK_S:.0f} s; wait for that run or end it, or choose another store"
            ) from None
        try:
            yield
        finally:
            lock.release()

    # -- trajectories ------------------------------------------------------------------------------------

    def folder(self, trajectory_id: str) -> Path | None:
        """The folder of a trajectory, whatever it was called when made; None if there is none."""
        if trajectory_id not in self._folders:
            self._scan_if_changed()
        return self._folders.get(trajectory_id)

    def add(self, *trajectories: Trajectory) -> None:
        """Records trajectories and their ancestors; what is recorded already stays as it is."""
        with self._alone("trajectories"):
            self._scan()
            for trajectory in trajectories:
                self._add(trajectory)

    def _add(self, trajectory: Trajectory) -> None:
        if trajectory.parent is not None:
            self._add(trajectory.parent.trajectory)
        if trajectory.id in self._whole:
            return
        self._whole.add(trajectory.id)
        known = self._folders.get(trajectory.id)
        stored = None if known is None else read_whole_json(known / "spec.json")
        labels = {"source": trajectory.source.labels} if trajectory.source else {}
        if stored is not None and stored.items() >= labels.items():
            return  # one that a disk damaged is written again, and what was said of a checkpoint anew
        name = f"{trajectory.kind}-{trajectory.slug}-{trajectory.id}"
        folder = known or self.root / "trajectories" / name
        (folder / "states").mkdir(parents=True, exist_ok=True)
        spec = {
            "trajectory_id": trajectory.id,
            "kind": trajectory.kind.value,
            "identity": trajectory.identity,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **labels,
        }
        write_json(folder / "spec.json", spec)
        self._folders[trajectory.id] = folder

    def _scan_if_changed(self) -> None:
        """Planning asks for thousands of trajectories that are not there: one stat each, not one listing."""
        try:
            changed = os.stat(self._trajectories_path).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return
        if changed != self._scanned:
            self._scan()
            self._scanned = changed

    def _scan(self) -> None:
        entries = list(os.scandir(self._trajectories_path))
        for entry in entries:
            trajectory_id = entry.name.rsplit("-", 1)[-1]
            if trajectory_id not in self._folders and os.path.exists(f"{entry.path}/spec.json"):
                self._folders[trajectory_id] = Path(entry.path)

    def _existing(self, trajectory_id: str) -> Path:
        folder = self.folder(trajectory_id)
        if folder is None:
            raise ValueError(f"{self.root} holds no trajectory {trajectory_id}")
        return folder

    def spec(self, trajectory_id: str) -> dict[str, Any]:
        path = self._existing(trajectory_id) / "spec.json"
        spec = read_whole_json(path)
        if spec is None:
            raise ValueError(f"{path} is damaged; run a study of it again, which writes it anew")
        return spec

    def load(self, trajectory_id: str) -> Trajectory:
        """The trajectory rebuilt from its stored identity and that of its ancestors."""
        if trajectory_id not in self._trajectories:
            spec = self.spec(trajectory_id)
            parent = spec["identity"].get("parent")
            ancestor = self.load(parse_address(parent)[0]) if parent else None
            trajectory = from_identity(spec["identity"], Kind(spec["kind"]), ancestor, spec.get("source"))
            assert trajectory.id == trajectory_id, f"{trajectory_id} rebuilt as {trajectory.id}"
            self._trajectories[trajectory_id] = trajectory
        return self._trajectories[trajectory_id]

    @contextmanager
    def writing(self, trajectory_id: str) -> Iterator[Path]:
        """Holds the trajectory's OS lock for the block, giving its folder; raises Busy, never waits."""
        folder = self._existing(trajectory_id)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(trajectory_id) from None
        try:
            yield folder
        finally:
            lock.release()

    # -- states ------------------------------------------------------------------------------------------

    def state_folder(self, trajectory_id: str, step: int) -> Path:
        return self._existing(trajectory_id) / "states" / f"step_{step:08d}"

    def stored_steps(self, trajectory_id: str) -> list[int]:
        """Steps of the trajectory whose state is stored whole, ascending."""
        folder = self.folder(trajectory_id)
        if folder is None:
            return []
        names = [entry.name for entry in os.scandir(folder / "states") if entry.name.startswith("step_")]
        whole = [name for name in names if (folder / "states" / name / "DONE.json").exists()]
        return sorted(int(name.removeprefix("step_")) for name in whole)

    def kept_steps(self, trajectory_id: str) -> list[int]:
        """Those of `stored_steps` that stay: the last may be a checkpoint, which the next state replaces."""
        steps = self.stored_steps(trajectory_id)
        if steps:
            done = read_whole_json(self.state_folder(trajectory_id, steps[-1]) / "DONE.json")
            if done is None or done.get("transient"):
                steps.pop()
        return steps

    def growth(self, trajectory_id: str) -> dict[str, Any] | None:
        """What was recorded when the trajectory's first state was grown; None for what never was."""
        folder = self.folder(trajectory_id)
        return read_whole_json(folder / "states" / "growth.json") if folder else None

    def wanted_folder(self, trajectory_id: str) -> Path:
        """Holds a file named after each step that somebody waits for while another writes the trajectory."""
        return self._existing(trajectory_id) / "wanted"

    def want(self, trajectory_id: str, step: int) -> None:
        folder = self.wanted_folder(trajectory_id)
        folder.mkdir(exist_ok=True)
        (folder / str(step)).touch()

    # -- lines -------------------------------------------------------------------------------------------

    def metrics(self, trajectory_id: str) -> list[dict[str, Any]]:
        return self._lines(trajectory_id, "metrics.jsonl")

    def last_metric(self, trajectory_id: str) -> dict[str, Any] | None:
        """The newest line of metrics, read from the end of the file."""
        folder = self.folder(trajectory_id)
        return last_line(folder / "metrics.jsonl") if folder else None

    def evals(self, trajectory_id: str) -> list[dict[str, Any]]:
        """Every evaluation. Parsed again only when the file has changed: a study asks for each many times."""
        seen = self.stamp(trajectory_id, "evals.jsonl")
        if seen is None:
            return []
        if self._evals.get(trajectory_id, (None, []))[0] != seen:
            self._evals[trajectory_id] = (seen, self._lines(trajectory_id, "evals.jsonl"))
        return self._evals[trajectory_id][1]

    def stamp(self, trajectory_id: str, name: str) -> tuple[int, int, int] | None:
        """What differs once a trajectory's file has changed; None if it is not there."""
        folder = self.folder(trajectory_id)
        if folder is None:
            return None
        try:
            stat = os.stat(f"{folder}/{name}")
        except FileNotFoundError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def evaluated(self, trajectory_id: str) -> set[tuple[int, str]]:
        """(step, eval_id) of every evaluation that is stored."""
        return {(line["step"], line["eval_id"]) for line in self.evals(trajectory_id)}

    def diverged(self, trajectory_id: str) -> int | None:
        """The step at which training diverged, if it did."""
        folder = self.folder(trajectory_id)
        return (read_whole_json(folder / "diverged.json") or {}).get("step") if folder else None

    def wall_s(self, trajectory_id: str) -> float | None:
        """Seconds of work spent on a trajectory by all its attempts."""
        times = self.timings(trajectory_id)
        return None if times is None else sum(line["wall_s"] for line in times)

    def timings(self, trajectory_id: str) -> list[dict[str, Any]] | None:
        """A line per task of all attempts: seconds, and the machine that it ran on; None where none is."""
        folder = self.folder(trajectory_id)
        paths = sorted(folder.glob("attempts/*/timing.jsonl")) if folder else []
        return [line for path in paths for line in read_lines(path)] if paths else None

    def _lines(self, trajectory_id: str, name: str) -> list[dict[str, Any]]:
        folder = self.folder(trajectory_id)
        return read_lines(folder / name) if folder else []

    # -- studies -----------------------------------------------------------------------------------------

    def studies(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root / "studies") if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def study(self, name: str) -> dict[str, Any]:
        """{"cells", "plan", "summary"} of a study, None where a file is missing; ValueError if the study is
        unknown or a file of it is damaged."""
        if name not in self.studies():
            known = ", ".join(self.studies()) or "none yet"
            raise ValueError(f"study={name} is not in {self.root}; it holds: {known}")
        for path in self.damaged(name):
            raise ValueError(f"study={name}: {path} is damaged; run the study again, which writes it anew")
        return self.earlier(name)

    def earlier(self, name: str) -> dict[str, Any]:
        """`study` as a run of it looks at it, that writes all of it anew: what is damaged is missing."""
        return {key: read_whole_json(path) for key, path in self._study_paths(name).items()}

    def damaged(self, name: str) -> list[str]:
        """The files of a study that are there and cannot be read."""
        paths = self._study_paths(name).values()
        return [str(path) for path in paths if path.exists() and read_whole_json(path) is None]

    def _study_paths(self, name: str) -> dict[str, Path]:
        folder = self.root / "studies" / name
        return {key: folder / f"{key}.json" for key in ("cells", "plan", "summary")}

    def write_study(self, name: str, **files: Any) -> None:
        """Replaces the named files (`cells`, `plan`, `summary`, `workspace`) of a study."""
        folder = self.root / "studies" / name
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone("studies"):
            _sweep_up(folder)
            for key, value in files.items():
                write_json(folder / f"{key}.json", value)


def _sweep_up(folder: Path) -> None:
    """Under the lock of its writers a draft is a dead process's."""
    for draft in folder.glob(".*.draft"):
        draft.unlink()
