"""Why a cell is not cached: what is missing, and how its identity differs from the nearest one stored.

Nothing is written. No torch here.
"""

import json
from collections.abc import Iterator
from typing import Any

from moe.files import read_json
from sweeps.cell import Cell
from sweeps.plan import Plan
from sweeps.store import Store
from sweeps.store.inventory import folders_of
from sweeps.trajectory import Address, Trajectory, parse_address

Fields = dict[str, Any]


def explain(store: Store, plan: Plan) -> dict[str, Any]:
    """`cells`, the requested ones first, with what each lacks; `new`, trajectories that are not stored."""
    requested = {cell.id for cell in plan.requested}
    cells = sorted(plan.cells.values(), key=lambda cell: cell.id not in requested)
    stored = _Stored(store)
    new = [trajectory for trajectory in plan.trajectories.values() if trajectory.id not in stored.folders]
    return {
        "cells": [_cell(store, plan, cell, cell.id in requested) for cell in cells],
        "new": [_new(stored, trajectory) for trajectory in new],
    }


def _cell(store: Store, plan: Plan, cell: Cell, requested: bool) -> dict[str, Any]:
    missing = [lack for role, address in cell.states().items() for lack in _lack(store, cell, role, address)]
    return {
        "cell_id": cell.id,
        "kind": str(cell.kind),
        "requested": requested,
        "growth_step": cell.config.growth.step,
        "growth": cell.growth or None,
        "seed": cell.config.seed,
        "status": "cached" if not missing else "diverged" if _diverged(plan, cell) else "to do",
        "missing": missing,
    }


def _diverged(plan: Plan, cell: Cell) -> bool:
    return any(address.key in plan.diverged for address in cell.states().values())


def _lack(store: Store, cell: Cell, role: str, address: Address) -> Iterator[dict[str, Any]]:
    """What a cell lacks of one of its states: the evaluation that it is there for, and the state itself.

    An evaluation that is stored needs no state any more.
    """
    trajectory_id, step = address.key
    suite = cell.suite_at(role)
    lines = [line for line in store.evals(trajectory_id) if line["step"] == step]
    if any(line["eval_id"] == suite.eval_id for line in lines):
        return
    stored = step in store.stored_steps(trajectory_id)
    others = sorted({f"{line['suite']} {line['eval_id']}, {line['n']} items" for line in lines})
    yield {
        "role": role,
        "address": str(address),
        "lacks": "evaluation" if stored else "state and evaluation",
        "suite": suite.name,
        "eval_id": suite.eval_id,
        "evaluated_by": others,
    }


class _Stored:
    """The identities of what has a state stored, as flat fields; read once."""

    def __init__(self, store: Store):
        self._identities: dict[str, dict[str, Any]] = {}
        self._fields: dict[str, Fields] = {}
        self.by_kind: dict[str, list[str]] = {}
        self.folders = folders_of(store)
        for trajectory_id, folder in self.folders.items():
            spec = read_json(folder / "spec.json")
            self._identities[trajectory_id] = spec["identity"]
            if store.stored_steps(trajectory_id):
                self.by_kind.setdefault(spec["kind"], []).append(trajectory_id)

    def fields(self, trajectory_id: str) -> Fields:
        if trajectory_id not in self._fields:
            identity = self._identities[trajectory_id]
            parent = identity.get("parent")
            before = parse_address(parent) if parent else None
            known = before is not None and before[0] in self._identities
            above = self.fields(before[0]) if before is not None and known else {}
            self._fields[trajectory_id] = _fields(identity, before[1] if before else None, above)
        return self._fields[trajectory_id]


def _wanted(trajectory: Trajectory) -> Fields:
    parent = trajectory.parent
    if parent is None:
        return _fields(trajectory.identity, None, {})
    return _fields(trajectory.identity, parent.step, _wanted(parent.trajectory))


def _fields(identity: dict[str, Any], parent_step: int | None, above: Fields) -> Fields:
    """An identity as {dotted name: value}; a parent's address becomes `parent.step` and its own fields."""
    own = dict(_flat({name: value for name, value in identity.items() if name != "parent"}))
    if parent_step is None:
        return own
    return own | {"parent.step": parent_step} | {f"parent.{name}": value for name, value in above.items()}


def _flat(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{path}{name}.")
        else:
            yield f"{path}{name}", item


def _new(stored: _Stored, trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory that is not stored, and where it differs from the nearest stored one of its kind.

    Where its own start is not stored either, that one's entry says why; here its fields are left out.
    """
    wanted, parent = _wanted(trajectory), trajectory.parent
    nearest, diff = _nearest(stored, trajectory.kind.value, wanted)
    new_parent = parent is not None and parent.trajectory.id not in stored.folders
    if new_parent:
        diff = [
            row for row in diff if not row["field"].startswith("parent.") or row["field"] == "parent.step"
        ]
    return {
        "trajectory_id": trajectory.id,
        "kind": trajectory.kind.value,
        "slug": trajectory.slug,
        "parent": str(parent) if parent else None,
        "parent_is_new": new_parent,
        "nearest": stored.folders[nearest].name if nearest else None,
        "diff": diff,
    }


def _nearest(stored: _Stored, kind: str, wanted: Fields) -> tuple[str | None, list[dict[str, Any]]]:
    """The stored trajectory of a kind with the fewest other fields, and these."""
    best: tuple[str | None, list[dict[str, Any]]] = (None, [])
    for trajectory_id in stored.by_kind.get(kind, []):
        found = stored.fields(trajectory_id)
        names = [name for name in {**wanted, **found} if _text(wanted, name) != _text(found, name)]
        if best[0] is None or len(names) < len(best[1]):
            diff = [
                {"field": name, "wanted": _text(wanted, name), "stored": _text(found, name)} for name in names
            ]
            best = (trajectory_id, diff)
    return best


def _text(fields: Fields, name: str) -> str:
    """A value as JSON, in which 1 and 1.0 differ as they do in a digest; a dash for a field left out."""
    return json.dumps(fields[name]) if name in fields else "–"
