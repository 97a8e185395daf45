"""One trajectory or state: what it is, the path that led to it and its FLOPs, what is stored of it."""

import re
from pathlib import Path
from typing import Any

from moe.files import read_json, read_lines
from sweeps.store import Store
from sweeps.store.inventory import Needs, bytes_of, folders_of, states_of
from sweeps.trajectory import Trajectory


def find(store: Store, needs: Needs, text: str) -> tuple[str, int | None]:
    """(trajectory_id, step) of an id, an address ID@STEP or a cell's id; a prefix that fits one is enough.

    A cell is its final state. ValueError if nothing or more than one thing fits, or the step is not known.
    """
    match = re.fullmatch(r"([0-9a-f]{1,12})(?:@(\d+))?", text)
    if match is None:
        raise ValueError(
            f"{text!r} is no id; give 1 to 12 hex digits, or an address such as 0123456789ab@400"
        )
    prefix, step = match[1], None if match[2] is None else int(match[2])
    fitting: dict[str, tuple[str, int | None]] = {
        id: (id, step) for id in folders_of(store) if id.startswith(prefix)
    }
    if step is None:
        cells = {cell["cell_id"]: cell for rows in needs.cells.values() for cell in rows}
        fitting |= {id: tuple(c["states"]["final"]) for id, c in cells.items() if id.startswith(prefix)}
    if not fitting:
        raise ValueError(f"{store.root} holds nothing whose id begins with {prefix}; ls lists what it holds")
    if len(fitting) > 1:
        shown = ", ".join(sorted(fitting)[:5]) + (" …" if len(fitting) > 5 else "")
        raise ValueError(f"{prefix} is the beginning of {len(fitting)} ids: {shown}; give more of it")
    return next(iter(fitting.values()))


def describe(store: Store, needs: Needs, text: str) -> dict[str, Any]:
    """Everything that is stored of one trajectory, up to the step that an address names.

    `ledger` is its path from random init: steps, tokens and FLOPs of each part, and their running sum.
    """
    trajectory_id, step = find(store, needs, text)
    trajectory, folder = store.load(trajectory_id), store.folder(trajectory_id)
    assert folder is not None
    reached = _reached(store, trajectory_id)
    if step is not None and step > reached:
        raise ValueError(f"{trajectory_id}@{step} is not stored: the trajectory has come to step {reached}")
    spec = store.spec(trajectory_id)
    return {
        "trajectory_id": trajectory_id,
        "step": step,
        "kind": spec["kind"],
        "folder": str(folder),
        "created": spec["created"],
        "identity": spec["identity"],
        "ledger": ledger(trajectory, reached if step is None else step),
        "states": _states(store, trajectory_id, step),
        "evaluations": [
            {key: line.get(key) for key in ("step", "suite", "eval_id", "acc", "acc_se", "n", "loss")}
            for line in store.evals(trajectory_id)
            if step is None or line["step"] == step
        ],
        "diverged": store.diverged(trajectory_id),
        "attempts": _attempts(folder),
        "wall_s": store.wall_s(trajectory_id),
        "studies": _studies(needs, trajectory_id, step),
    }


def ledger(trajectory: Trajectory, step: int) -> list[dict[str, Any]]:
    """The parts of the path from its start to a step, each with the operator that it begins with; what a
    checkpoint cost is in the running sum."""
    rows, spent = [], trajectory.root.at(0).flops
    for part, steps in trajectory.at(step).segments():
        flops = steps * part.flops_per_step
        spent += flops
        rows.append(
            {
                "operator": part.operator.label if part.parent else "source" if part.source else "init",
                "kind": part.kind.value,
                "slug": part.slug,
                "trajectory_id": part.id,
                "steps": steps,
                "tokens": steps * part.train.tokens_per_step,
                "flops": flops,
                "cumulative_flops": spent,
            }
        )
    return rows


def _reached(store: Store, trajectory_id: str) -> int:
    """The last step that anything is stored of."""
    line = store.last_metric(trajectory_id)
    return max([*store.stored_steps(trajectory_id), line["step"] if line else 0], default=0)


def _states(store: Store, trajectory_id: str, step: int | None) -> list[dict[str, Any]]:
    rows = []
    for stored in store.stored_steps(trajectory_id):
        if step in (None, stored):
            folder = store.state_folder(trajectory_id, stored)
            done = read_json(folder / "DONE.json")
            rows.append(
                {
                    "step": stored,
                    "bytes": bytes_of(folder),
                    "transient": done.get("transient", False),
                    "git_commit": done.get("git_commit"),
                }
            )
    return rows


def _attempts(folder: Path) -> list[dict[str, Any]]:
    """Each attempt: seconds and trained steps of its tasks, and the last line of the error that ended it."""
    rows = []
    for attempt in sorted(folder.glob("attempts/*")):
        timing, error = read_lines(attempt / "timing.jsonl"), attempt / "error.txt"
        rows.append(
            {
                "attempt": attempt.name,
                "tasks": len(timing),
                "steps": sum(line["steps"] for line in timing),
                "wall_s": sum(line["wall_s"] for line in timing),
                "error": error.read_text().strip().splitlines()[-1] if error.exists() else None,
            }
        )
    return rows


def _studies(needs: Needs, trajectory_id: str, step: int | None) -> dict[str, int]:
    """Cells of each study whose path goes through the trajectory, or that name the state."""
    counts = {}
    for study, rows in needs.cells.items():
        named = [any(id == trajectory_id and step in (None, at) for id, at in states_of(row)) for row in rows]
        if any(named):
            counts[study] = sum(named)
    return counts
