"""What a store holds and which study needs it: studies, their cells, trajectories. Reads only; no torch."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.store import Store

STATUSES = ("done", "todo", "failed", "blocked", "diverged")


@dataclass(frozen=True, slots=True)
class Needs:
    """What the cells of the stored studies name: their lists, and by trajectory and state who names it."""

    cells: dict[str, list[dict[str, Any]]]
    trajectories: dict[str, set[str]]
    states: dict[tuple[str, int], set[str]]


def needs_of(store: Store) -> Needs:
    """Everything that cells.json of any study names: the states of each cell, and where its path branches."""
    trajectories: dict[str, set[str]] = defaultdict(set)
    states: dict[tuple[str, int], set[str]] = defaultdict(set)
    cells = {name: (store.study(name)["cells"] or {"cells": []})["cells"] for name in store.studies()}
    for study, rows in cells.items():
        for row in rows:
            for trajectory_id, step in states_of(row):
                trajectories[trajectory_id].add(study)
                states[trajectory_id, step].add(study)
    return Needs(cells, dict(trajectories), dict(states))


def states_of(row: dict[str, Any]) -> list[tuple[str, int]]:
    """The states that a cell of cells.json names: those it is measured at, and those it branches from."""
    measured = [(key[0], key[1]) for key in row["states"].values() if key]
    return measured + [(part["trajectory_id"], part["to_step"]) for part in row["path"]]


def folders_of(store: Store) -> dict[str, Path]:
    """The folder of every stored trajectory by id, in the order of their names."""
    try:
        entries = sorted(os.scandir(store.root / "trajectories"), key=lambda entry: entry.name)
    except FileNotFoundError:
        return {}
    whole = [e for e in entries if not e.name.startswith(".") and os.path.exists(f"{e.path}/spec.json")]
    return {entry.name.rsplit("-", 1)[-1]: Path(entry.path) for entry in whole}


def bytes_of(path: Path) -> int:
    """Bytes of all files at or below `path`."""
    if path.is_file():
        return path.stat().st_size
    return sum(
        os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names
    )


def words_of(folder: Path) -> tuple[str, str, str]:
    """(kind, slug, id), as the folder of a trajectory is named."""
    kind, rest = folder.name.split("-", 1)
    slug, trajectory_id = rest.rsplit("-", 1)
    return kind, slug, trajectory_id


def list_studies(store: Store, needs: Needs) -> list[dict[str, Any]]:
    """One row a study: cells (controls included) by status, FLOPs of all its runs, when the last began."""
    rows = []
    for name, cells in needs.cells.items():
        summary = store.study(name)["summary"] or {}
        runs = summary.get("runs", [])
        counts = Counter(cell["status"] for cell in cells)
        rows.append(
            {
                "study": name,
                "cells": len(cells),
                **{status: counts[status] for status in STATUSES},
                "spent_flops": sum(run["spent_flops"] for run in runs),
                "last_run": runs[-1]["started"] if runs else None,
            }
        )
    return rows


def list_trajectories(store: Store, needs: Needs) -> list[dict[str, Any]]:
    """One row a trajectory, with all its bytes and the studies that name it."""
    rows = []
    for trajectory_id, folder in folders_of(store).items():
        kind, slug, _ = words_of(folder)
        rows.append(
            {
                "kind": kind,
                "slug": slug,
                "trajectory_id": trajectory_id,
                "steps": store.stored_steps(trajectory_id),
                "bytes": bytes_of(folder),
                "studies": sorted(needs.trajectories.get(trajectory_id, ())),
            }
        )
    return rows


def list_cells(store: Store, needs: Needs, study: str) -> list[dict[str, Any]]:
    """One row a cell of a study with its final accuracy, None where there is none yet."""
    if study not in needs.cells:
        known = ", ".join(needs.cells) or "none yet"
        raise ValueError(f"study={study} is not in {store.root}; it holds: {known}")
    names = ("cell_id", "kind", "status", "growth_step", "growth", "seed", "sunk_flops", "total_flops")
    return [
        {name: cell.get(name) for name in names}
        | {"leaf": _address(cell["states"]["final"]), "final_acc": _final_acc(store, cell)}
        for cell in needs.cells[study]
    ]


def _final_acc(store: Store, cell: dict[str, Any]) -> float | None:
    trajectory_id, step = cell["states"]["final"]
    lines = store.evals(trajectory_id)
    found = (line["acc"] for line in lines if (line["step"], line["eval_id"]) == (step, cell["eval_id"]))
    return next(found, None)


def _address(key: list[Any]) -> str:
    return f"{key[0]}@{key[1]}"
