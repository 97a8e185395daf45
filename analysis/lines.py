"""The lines that trajectories left in the store; a file is parsed again only when it has changed."""

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from sweeps.store import Store


class Measures:
    """The evaluations of a trajectory by (suite, eval_id, step)."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lines: dict[str, list[dict[str, Any]]] = {}

    def at(self, state: Any, suite: str, eval_id: str | None) -> dict[str, Any]:
        """The last one asked of a state; {} if there is none."""
        if not state:
            return {}
        trajectory, step = state
        found = [line for line in self.of_suite(trajectory, suite, eval_id) if line["step"] == step]
        return found[-1] if found else {}

    def of_suite(self, trajectory: str, suite: str, eval_id: str | None) -> list[dict[str, Any]]:
        """Those of just these questions; of rows without an id, of the suite of that name."""
        key, value = ("eval_id", eval_id) if eval_id else ("suite", suite)
        return [line for line in self.of(trajectory) if line[key] == value]

    def of_row(self, trajectory: str, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Those of the probe and the full suite that this row asks, in the order they were stored."""
        asked = {suite: row.get(name) for suite, name in (("probe", "probe_eval_id"), ("full", "eval_id"))}
        return [
            line
            for line in self.of(trajectory)
            if line["suite"] in asked and line["eval_id"] == (asked[line["suite"]] or line["eval_id"])
        ]

    def of(self, trajectory: str) -> list[dict[str, Any]]:
        if trajectory not in self.lines:
            self.lines[trajectory] = self.store.evals(trajectory)
        return self.lines[trajectory]


class Metrics:
    """(step, loss, learning rate) of each trajectory's lines as arrays; a rate that was not logged is NaN.

    Arrays outlive the reader: a page makes many tables of one store, and parsing is most of their cost.
    """

    _of_store: ClassVar[WeakKeyDictionary[Store, dict[str, tuple[Any, np.ndarray]]]] = WeakKeyDictionary()

    def __init__(self, store: Store) -> None:
        self.store = store
        self.arrays = self._of_store.setdefault(store, {})

    def of(self, trajectory: str) -> np.ndarray:
        stamp = self.store.stamp(trajectory, "metrics.jsonl")
        known, array = self.arrays.get(trajectory, (None, np.empty((0, 3))))
        if stamp is not None and stamp != known:
            lines = self.store.metrics(trajectory)
            rows = [(line["step"], line["loss"], line.get("lr", np.nan)) for line in lines]
            array = np.array(rows, dtype=float).reshape(len(rows), 3)
            self.arrays[trajectory] = stamp, array
        return array

    def within(self, part: dict[str, Any]) -> np.ndarray:
        """Those of one part of a path."""
        lines = self.of(part["trajectory_id"])
        return lines[(lines[:, 0] > part["from_step"]) & (lines[:, 0] <= part["to_step"])]
