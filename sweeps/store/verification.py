"""Is every byte of a store what was written? Reads all of it, changes nothing. No torch here."""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from moe.data.shards import open_prepared
from moe.files import read_json, read_lines
from moe.plain import digest
from sweeps.store import Store
from sweeps.store.inventory import folders_of

Problem = tuple[str, str]  # path below the store, what is wrong with it
Observer = Callable[[str, int, int], None]  # what is read, how many are done, of how many


def verify(store: Store, observe: Observer = lambda name, done, total: None) -> list[Problem]:
    """Every problem of a store; empty if specs rebuild to their ids, lines parse, and all digests hold.

    What a kill leaves behind (a draft, a state without DONE.json, a last line cut short) does not exist
    for any reader and is no problem. Of a corpus the sizes are compared, and the digests of small files.
    """
    folders = list(folders_of(store).values())
    corpora = [path for path in sorted(Path(store.corpora).glob("*")) if (path / "DONE.json").exists()]
    studies = store.studies()
    parts = [(path, _trajectory) for path in folders] + [(path, _corpus) for path in corpora]
    parts += [(store.root / "studies" / name, _study) for name in studies]
    problems: list[Problem] = []
    for done, (path, check) in enumerate(parts):
        observe(path.name, done, len(parts))
        found = _read(path, lambda check=check, path=path: list(check(store, path)))
        problems += [(str(at.relative_to(store.root)), text) for at, text in found]
    observe("", len(parts), len(parts))
    return problems


Found = Iterator[tuple[Path, str]]


def _read(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; if it cannot, the one problem that it is."""
    try:
        return read()
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError) as error:
        return [(path, f"cannot be read: {type(error).__name__}: {error}")]


def _trajectory(store: Store, folder: Path) -> Found:
    yield from _read(folder / "spec.json", lambda: _spec(store, folder))
    for path in (folder / "diverged.json", folder / "states" / "growth.json"):
        if path.exists():
            yield from _read(path, lambda path=path: read_json(path) and [])
    metrics, evals = folder / "metrics.jsonl", folder / "evals.jsonl"
    faults = [fault for path in (metrics, evals) for fault in _lines(path)]
    yield from faults
    if not faults:
        yield from _read(folder, lambda: list(_order(folder, read_lines(metrics), read_lines(evals))))
    for path in sorted(folder.glob("attempts/*/timing.jsonl")):
        yield from _lines(path)
    for state in sorted(folder.glob("states/step_*")):
        if (state / "DONE.json").exists():
            yield from _read(state / "DONE.json", lambda state=state: list(_state(state)))


def _spec(store: Store, folder: Path) -> list[tuple[Path, str]]:
    trajectory_id = folder.name.rsplit("-", 1)[-1]
    spec = read_json(folder / "spec.json")
    found = [(spec["trajectory_id"], "is what it says it is"), (digest(spec["identity"]), "is its digest")]
    wrong = [f"{id} {what}, not {trajectory_id}" for id, what in found if id != trajectory_id]
    if not wrong:
        store.load(trajectory_id)  # with all its ancestors, by this release's rules
    return [(folder / "spec.json", text) for text in wrong]


def _lines(path: Path) -> Found:
    """The first whole line of a file that does not parse."""
    text = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError as error:
            yield path, f"line {number} does not parse: {error}"
            return


def _order(folder: Path, metrics: list[dict[str, Any]], evals: list[dict[str, Any]]) -> Found:
    """A stored state has all its lines, each once."""
    steps = [line["step"] for line in metrics]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield folder / "metrics.jsonl", "its steps do not rise"
    asked = [(line["step"], line["eval_id"]) for line in evals]
    if len(set(asked)) < len(asked):
        yield folder / "evals.jsonl", "an evaluation is there twice"
    names = [path.parent.name for path in folder.glob("states/step_*/DONE.json")]
    highest = max((int(name.removeprefix("step_")) for name in names), default=0)
    if highest > (steps[-1] if steps else 0):
        yield folder / "metrics.jsonl", f"it ends before the stored step {highest}"


def _state(folder: Path) -> Found:
    sha256 = read_json(folder / "DONE.json")["sha256"]
    for name, expected in sha256.items():
        path = folder / name
        if not path.exists():
            yield path, "is missing"
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    yield path, "is not what was written: its SHA-256 is another"
    step = int(folder.name.removeprefix("step_"))
    if "state.json" in sha256 and (folder / "state.json").exists():
        said = read_json(folder / "state.json")["step"]
        if said != step:
            yield folder, f"is the state of step {said}"


def _corpus(store: Store, folder: Path) -> Found:
    identity = read_json(folder / "corpus.json")["identity"]
    if digest(identity) != folder.name:
        yield folder / "corpus.json", f"its identity has the digest {digest(identity)}"
        return
    open_prepared(Path(store.corpora), identity)


def _study(store: Store, folder: Path) -> Found:
    """Its files parse, and what it calls done is there."""
    yield from ((Path(path), "cannot be read") for path in store.damaged(folder.name))
    for cell in (store.earlier(folder.name)["cells"] or {"cells": []})["cells"]:
        trajectory_id, step = cell["states"]["final"]
        evaluated = store.evaluated(trajectory_id)
        if cell["status"] == "done" and (step, cell["eval_id"]) not in evaluated:
            yield (
                folder / "cells.json",
                f"cell {cell['cell_id']} is done, but {trajectory_id}@{step} has no evaluation "
                f"{cell['eval_id']}",
            )
