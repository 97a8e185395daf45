"""A tiny study to do harm to, and what must be the same afterwards."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import injection
import tiny

from moe.files import read_lines
from moe.train import Trainer, initial_state
from sweeps.study import run_study

SMALL = {"evaluate__items": 4, "evaluate__probe_items": 4, "growth__step": 4, "controls": []}


def study(root: Path, *methods: str, **fields):
    """The cells of one small study in the store at `root`."""
    fields = {**SMALL, "launch__store": str(root), **fields}
    return [tiny.mapping(growth__method=method, **fields) for method in methods or ("stack",)]


@functools.lru_cache(maxsize=1)
def warm() -> None:
    """Imports here, once, what torch imports when first used; nothing is trained before the fork."""
    model, train = tiny.model(), tiny.train()
    Trainer(model, train, tiny.constant(1e-3), lambda step: None, initial_state(model, 0), "cpu")


def run(mappings, fault: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Exit status and output of a forked child that runs the study after `fault` was planted in it."""
    warm()

    def work() -> int:
        fault()
        return run_study(mappings).exit_code

    return injection.in_child(work)


def watched(root: Path, decide: injection.Decide) -> Callable[[], None]:
    return lambda: injection.watch(root, decide)


def science(root: Path) -> dict[str, bytes]:
    """The files whose bytes must not depend on how a run went: all but times and what no study asked for,
    which is checkpoints and what was set aside."""
    kinds = (".safetensors", "metrics.jsonl", "evals.jsonl", "state.json")
    passing = {done.parent for done in _whole(root) if json.loads(done.read_text())["transient"]}
    paths = [
        p for p in root.glob("trajectories/*/**/*") if p.name.endswith(kinds) and p.parent not in passing
    ]
    paths = [p for p in paths if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def _whole(root: Path) -> list[Path]:
    return list(root.glob("trajectories/*/states/step_*/DONE.json"))


def stored(root: Path) -> dict[str, tuple[int, int]]:
    """Each state that is stored whole and stays, known by its file: written again, it would be another."""
    whole = {}
    for done in _whole(root):
        model = done.with_name("model.safetensors")
        if not json.loads(done.read_text())["transient"]:
            whole[str(model.relative_to(root))] = (model.stat().st_ino, model.stat().st_mtime_ns)
    return whole


def evaluated(root: Path) -> set[tuple[str, int, str]]:
    return {
        (path.parent.name, line["step"], line["eval_id"])
        for path in root.glob("trajectories/*/evals.jsonl")
        for line in read_lines(path)
    }


def litter(root: Path) -> list[Path]:
    """What only an unfinished write leaves behind."""
    half = [p for p in root.glob("trajectories/*/states/step_*") if not (p / "DONE.json").exists()]
    return [*root.glob("**/*.draft"), *root.glob("**/*.probe"), *half]


def half_states(root: Path) -> list[str]:
    """States that count as whole and whose bytes are not those that were written."""
    harmed = []
    for done in _whole(root):
        for name, digest in json.loads(done.read_text())["sha256"].items():
            if hashlib.sha256((done.parent / name).read_bytes()).hexdigest() != digest:
                harmed.append(str(done.parent / name))
    return harmed


def differing(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """The names of the files that only one holds, or both with other bytes."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
