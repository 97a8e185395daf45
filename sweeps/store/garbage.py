"""What no study needs, and its removal. A dry run is the rule; no torch here.

Needed is what a study names (its cells' states and where their paths branch), the highest state of every
trajectory that it goes through, all lines of these, their ancestors, and the corpora they read.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moe.files import read_json
from moe.plain import digest
from sweeps.machine import is_running
from sweeps.store import Busy, Store
from sweeps.store.inventory import Needs, bytes_of, folders_of, needs_of
from sweeps.trajectory import parse_address


@dataclass(frozen=True, slots=True)
class Garbage:
    """One file or folder that may go; `trajectory_id` is whose lock guards it, if any's."""

    path: Path
    reason: str
    bytes: int
    trajectory_id: str | None = None


def garbage_of(store: Store, needs: Needs, *, keep_between: bool) -> list[Garbage]:
    """Everything that may go. `keep_between` keeps all states of every trunk and scratch that is needed."""
    folders = folders_of(store)
    needed = _with_ancestors(folders, needs)
    found = []
    for trajectory_id, folder in folders.items():
        if trajectory_id not in needed:
            reason = "trajectory that no study names"
            found.append(Garbage(folder, reason, bytes_of(folder), trajectory_id))
            continue
        found += _half_written(folder, trajectory_id)
        is_root = "parent" not in _identity(folder)
        if not (keep_between and is_root):
            found += _states(store, trajectory_id, needed[trajectory_id])
    read = {digest(_identity(folders[id])["data"]) for id in needed if "data" in _identity(folders[id])}
    return found + _half_trajectories(store) + _corpora(store, read)


def _with_ancestors(folders: dict[str, Path], needs: Needs) -> dict[str, set[int]]:
    """Steps whose state is needed, by trajectory: those that studies name, and those these start from."""
    needed: dict[str, set[int]] = {id: set() for id in needs.trajectories if id in folders}
    for trajectory_id, step in needs.states:
        if trajectory_id in needed:
            needed[trajectory_id].add(step)
    queue = list(needed)
    while queue:
        address = _identity(folders[queue.pop()]).get("parent")
        if address:
            parent, step = parse_address(address)
            if parent in folders and parent not in needed:
                queue.append(parent)
            if parent in folders:
                needed.setdefault(parent, set()).add(step)
    return needed


def _identity(folder: Path) -> dict[str, Any]:
    return read_json(folder / "spec.json")["identity"]


def _states(store: Store, trajectory_id: str, needed: set[int]) -> Iterator[Garbage]:
    """The highest state stays, whatever it is for: lines beyond it would be cut when training goes on."""
    for step in store.stored_steps(trajectory_id)[:-1]:
        if step not in needed:
            folder = store.state_folder(trajectory_id, step)
            yield Garbage(folder, "state that no study names", bytes_of(folder), trajectory_id)


def _half_written(folder: Path, trajectory_id: str) -> Iterator[Garbage]:
    for path in sorted([*folder.glob(".*.draft"), *(folder / "states").glob("*")]):
        name = path.name
        if name.startswith(".corrupt-"):
            yield Garbage(path, "corrupt state, set aside", bytes_of(path), trajectory_id)
        elif name.endswith(".draft") or (name.startswith("step_") and not (path / "DONE.json").exists()):
            yield Garbage(path, "half-written", bytes_of(path), trajectory_id)


def _half_trajectories(store: Store) -> list[Garbage]:
    """Folders of a trajectory without spec.json, which is written first, and what a removal left behind."""
    paths = sorted((store.root / "trajectories").glob("*"))
    half = [path for path in paths if path.name.endswith(".draft") or not (path / "spec.json").exists()]
    return [Garbage(path, "half-written", bytes_of(path)) for path in half if path.is_dir()]


def _corpora(store: Store, read: set[str]) -> list[Garbage]:
    found = []
    for path in sorted(path for path in Path(store.corpora).glob("*") if path.is_dir()):
        if path.name.endswith(".draft") or not (path / "DONE.json").exists():
            found.append(Garbage(path, "half-written", bytes_of(path)))
        elif path.name not in read:
            found.append(Garbage(path, "corpus that no needed trajectory reads", bytes_of(path)))
    return found


# --------------------------------------------------------------------------------------------------------
# Removal


def collect(store: Store, *, keep_between: bool) -> tuple[list[Garbage], list[Garbage]]:
    """Removes all garbage; gives what is gone and what stayed because a process holds its lock.

    No trajectory is added meanwhile. ValueError, with nothing removed, if a driver is at work or may be.
    """
    try:
        with FileLock(store.root / "trajectories" / ".lock"):
            check_no_driver(store)
            garbage = garbage_of(store, needs_of(store), keep_between=keep_between)
            held = [item for item in garbage if not _remove(store, item)]
    except OSError as error:
        raise ValueError(f"{store.root} cannot be written: {error.strerror}") from error
    return [item for item in garbage if item not in held], held


def check_no_driver(store: Store) -> None:
    """ValueError if a run uses the store: a living process here, or any that another host began."""
    for path in sorted((store.root / "drivers").glob("*.alive")):
        host, pid = path.stem.rsplit("-", 1)
        if host != socket.gethostname():
            raise ValueError(
                f"drivers/{path.name} is of a run on {host}, which cannot be asked from here; wait for it, "
                f"or remove {path} if it has ended"
            )
        if is_running(int(pid)):
            raise ValueError(f"process {pid} runs a study in {store.root}; wait until it has ended")


def _remove(store: Store, item: Garbage) -> bool:
    """Whether it is gone: renamed first, so that no reader sees half of it; False if its lock is held."""
    try:
        with _guarding(store, item):
            draft = item.path
            if not item.path.name.endswith(".draft"):
                draft = item.path.with_name(f".{item.path.name.lstrip('.')}.{os.getpid()}.draft")
                os.rename(item.path, draft)
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
    except (Busy, Timeout):
        return False
    return True


@contextlib.contextmanager
def _guarding(store: Store, item: Garbage) -> Iterator[None]:
    if item.trajectory_id is not None:
        with store.writing(item.trajectory_id):
            yield
    elif item.path.parent == Path(store.corpora):
        name = item.path.name.lstrip(".").split(".")[0]
        with FileLock(item.path.with_name(f".{name}.lock"), timeout=0):  # as `moe.data.preparation` holds it
            yield
    else:
        yield
