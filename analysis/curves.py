"""A stored study as learning curves: one row per point, after growth, of the trunk, of a task family.

Of a study whose cells were asked different questions, those of its main evaluation alone.
"""

from typing import Any

import numpy as np
import pandas as pd

from analysis.evaluations import comparable
from analysis.lines import Measures, Metrics
from analysis.table import cells_table, stored_rows
from sweeps.store import Store

ALL_FAMILIES, MEAN = "mean of families", "mean"
_OF_CELL = (
    *("arm", "method", "depth_factor", "width_method", "noise_scale", "growth_step", "sunk_flops"),
    *("replicate", "seed", "f_c", "trunk_activated_params"),
)
_SCORES = ("family", "level", "acc", "se", "n", "chance")


def curves(store: Store, study: str) -> pd.DataFrame:
    """One row per training line and per evaluation of each cell, after growth, in order.

    `extra_flops` counts from the growth; for scratch from its random init; for *continued* from the growth
    of the cell in `pair_id`, once per arm and growth step that it serves; so does `extra_tokens`. `loss` of
    source `train` is the training loss, of `probe` and `full` the held-out loss; `acc` is NaN on training
    lines.
    """
    cells, rows = _comparable(store, study)
    measures, metrics = Measures(store), Metrics(store)
    parts, facts = [], []
    for row in rows:
        for pair in _pairs(cells, row["cell_id"]):
            origin = cells[pair]["sunk_flops"] - _before(row) if row["kind"] == "continued" else None
            part = _curve(row, row["path"], origin, measures, metrics)
            if part is None:
                continue
            shown = cells[pair if row["kind"] == "continued" else row["cell_id"]]
            fact = {"cell_id": row["cell_id"], "kind": row["kind"], "pair_id": pair}
            facts.append(fact | {name: shown[name] for name in _OF_CELL})
            parts.append(part)
    names = ["cell_id", "kind", "pair_id", *_OF_CELL, "trajectory_id", "phase", "step", "extra_flops"]
    names += ["extra_tokens", "source", "loss", "acc", "acc_se", "n"]
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in names})
    of_part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    told = pd.DataFrame(facts).loc[of_part].reset_index(drop=True)
    return pd.concat([pd.concat(parts, ignore_index=True), told], axis=1)[names]


def trunk_curves(store: Store, study: str) -> pd.DataFrame:
    """One row per training line and evaluation of each trunk, from random init: `flops`, learning rate `lr`.

    A trunk reaches as far as some cell's path used it, so that *continued* shows beyond the last growth.
    """
    cells, stored = _comparable(store, study)
    measures, metrics = Measures(store), Metrics(store)
    parts = []
    for row, path in _trunks(stored):
        part = _curve(row, [{**p, "phase": "stable"} for p in path], None, measures, metrics)
        if part is not None:
            part = part.rename(columns={"extra_flops": "flops"}).drop(columns="phase")
            part["flops"] += _before(row)
            replicate = cells[row["cell_id"]]["replicate"]
            parts.append(part.assign(trunk_id=row["trunk_id"], replicate=replicate))
    names = ["trunk_id", "replicate", "trajectory_id", "step", "flops"]
    names += ["source", "loss", "acc", "acc_se", "n", "lr"]
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in names})
    return pd.concat(parts, ignore_index=True)[names]


def family_curves(store: Store, study: str) -> pd.DataFrame:
    """One row per evaluation of each trunk, family and level, with `flops` from random init and as `f_c`.

    Evaluations are of the study's own probe, of its full suite where no trunk has one. The mean over a
    family's levels is level "mean", that over the families `averaged` (names,
    one space between) the family "mean of families"; levels have no `se`, `n`.
    """
    cells, stored = _comparable(store, study)
    measures, trunks = Measures(store), _trunks(stored)
    for source, name in (("probe", "probe_eval_id"), ("full", "eval_id")):
        rows = []
        for row, path in trunks:
            cell, offset = cells[row["cell_id"]], _before(row)
            of_trunk = {key: cell[key] for key in ("trunk_id", "replicate", "seed")} | {"source": source}
            for p in path:
                for line in measures.of_suite(p["trajectory_id"], source, row.get(name)):
                    if p["from_step"] < line["step"] <= p["to_step"]:
                        flops = offset + (line["step"] - p["from_step"]) * p["flops_per_step"]
                        at = {"step": line["step"], "flops": flops, "f_c": flops / cell["f_c"]}
                        rows += [of_trunk | at | score for score in _scores(line)]
                offset += (p["to_step"] - p["from_step"]) * p["flops_per_step"]
        if rows:
            return pd.DataFrame(rows)
    names = ["trunk_id", "replicate", "seed", "source", "step", "flops", "f_c", *_SCORES, "averaged"]
    return pd.DataFrame({name: pd.Series(dtype=object) for name in names})


def _scores(line: dict[str, Any]) -> list[dict[str, Any]]:
    """What one evaluation says of the mean of families, of each and of its levels."""
    whole = (ALL_FAMILIES, MEAN, line["acc"], line.get("acc_se"), line.get("n"), line.get("chance"))
    rows = [whole]
    for family, score in (line.get("families") or {}).items():
        chance = score.get("chance")
        rows.append((family, MEAN, score["acc"], score.get("se"), score.get("n"), chance))
        levels = sorted((score.get("levels") or {}).items(), key=lambda pair: int(pair[0]))
        rows += [(family, level, acc, None, None, chance) for level, acc in levels]
    found = [dict(zip(_SCORES, row, strict=True)) for row in rows]
    averaged = " ".join(line.get("averaged") or (line.get("families") or {}))
    return [
        row | {name: _number(row[name]) for name in _SCORES[2:]} | {"averaged": averaged} for row in found
    ]


def _trunks(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of each trunk the cell whose path follows it farthest, and that part of the path."""
    longest: dict[str, tuple[float, dict[str, Any], list[dict[str, Any]]]] = {}
    for row in rows:
        path = [part for part in row["path"] if part["phase"] == "trunk"]
        flops = sum((p["to_step"] - p["from_step"]) * p["flops_per_step"] for p in path)
        if flops > longest.get(row["trunk_id"], (0.0, {}, []))[0]:
            longest[row["trunk_id"]] = (flops, row, path)
    return [(row, path) for _, (_, row, path) in sorted(longest.items())]


def _comparable(store: Store, study: str) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The cells of the study's main evaluation by their id, and as they were stored."""
    records = comparable(cells_table(store, study)).to_dict("records")
    cells = {str(row["cell_id"]): {str(name): value for name, value in row.items()} for row in records}
    return cells, [row for row in stored_rows(store, study) if row["cell_id"] in cells]


def _pairs(cells: dict[str, dict[str, Any]], cell_id: str) -> list[str]:
    """Itself; for a *continued* cell the first cell it serves of each arm at each growth step."""
    if cells[cell_id]["kind"] != "continued":
        return [cell_id]
    first: dict[tuple[str, float], str] = {}
    for pair in cells[cell_id]["control_of"].split():
        if pair not in cells:  # asked other questions
            continue
        first.setdefault((cells[pair]["arm"], cells[pair]["sunk_flops"]), pair)
    return list(first.values())


def _curve(
    row: dict[str, Any],
    path: list[dict[str, Any]],
    origin_flops: float | None,
    measures: Measures,
    metrics: Metrics,
) -> pd.DataFrame | None:
    """The points of one path after its growth, or after `origin_flops` where that is given."""
    offset, parts = 0.0, []
    tokens = 0.0
    if origin_flops is not None:
        offset, tokens = -origin_flops, -_tokens_at(path, origin_flops)
    for p in path:
        trajectory, low, high = p["trajectory_id"], p["from_step"], p["to_step"]
        if origin_flops is not None or p["phase"] != "trunk":
            trained = metrics.within(p)
            lines = [e for e in measures.of_row(trajectory, row) if low <= e["step"] <= high]
            steps = np.concatenate([trained[:, 0], [float(e["step"]) for e in lines]])
            part = {
                "trajectory_id": trajectory,
                "phase": p["phase"],
                "step": steps,
                "extra_flops": offset + (steps - low) * p["flops_per_step"],
                "extra_tokens": tokens + (steps - low) * p["tokens_per_step"],
                "source": ["train"] * len(trained) + [e["suite"] for e in lines],
                "loss": np.concatenate([trained[:, 1], [_number(e["loss"]) for e in lines]]),
            }
            blank = np.full(len(trained), np.nan)
            for name in ("acc", "acc_se", "n"):
                part[name] = np.concatenate([blank, [_number(e[name]) for e in lines]])
            part["lr"] = np.concatenate([trained[:, 2], np.full(len(lines), np.nan)])
            frame = pd.DataFrame(part)
            parts.append(frame[frame["extra_flops"] >= 0])
        if origin_flops is not None or p["phase"] != "trunk":
            offset += (high - low) * p["flops_per_step"]
            tokens += (high - low) * p["tokens_per_step"]
    return pd.concat(parts, ignore_index=True) if parts else None


def _before(row: dict[str, Any]) -> float:
    """FLOPs that went into the checkpoint that a path begins with; 0 for random init."""
    return row.get("source_flops") or 0.0


def _tokens_at(path: list[dict[str, Any]], flops: float) -> float:
    """Tokens read along a path by the time so many FLOPs were spent on it."""
    tokens = 0.0
    for p in path:
        steps = min(p["to_step"] - p["from_step"], max(0.0, flops / p["flops_per_step"]))
        tokens += steps * p["tokens_per_step"]
        flops -= steps * p["flops_per_step"]
    return tokens


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
