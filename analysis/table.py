"""A stored study as tidy tables: one row per cell, one row per point of a learning curve."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import add_arms, add_replicates
from moe.flops import chinchilla_flops
from sweeps.store import Store

CONTROLS = ("continued", "scratch_extra", "scratch_total", "sham")
SCRATCH_KINDS = ("scratch", "scratch_extra", "scratch_total")
COLUMNS = (
    *("study", "cell_id", "kind", "requested", "control_of", "status", "trajectory_id", "trunk_id"),
    *("replicate", "arm", "growth_step", "method", "depth_factor", "width_method", "width_factor"),
    *("noise_scale", "optimizer_state", "growth_lr", "seed", "growth_seed"),
    *("growth", "growth_warmup_steps", "keep_first", "keep_last", "layer_map", "copies"),
    *("router_noise_scale", "drop_fraction", "then", "then_after_flops"),
    *("sunk_flops", "extra_flops", "total_flops", "paper_flops", "f_c", "sunk_f_c", "extra_f_c"),
    *("chinchilla_multiple", "base_acc", "start_acc", "stable_acc", "final_acc", "final_acc_se"),
    *("base_acc_se", "n", "chance", "prob_right", "base_loss", "start_loss", "stable_loss", "final_loss"),
    *(
        "loss_spike",
        "damage",
        "net",
        "net_se",
        "gain_over_scratch_extra",
        "gain_over_scratch_total",
        "gain_over_sham",
    ),
    *("continued_acc", "continued_acc_se", "scratch_extra_acc", "scratch_extra_acc_se"),
    *("scratch_total_acc", "scratch_total_acc_se", "sham_acc", "sham_acc_se"),
    *("tokens", "unique_tokens", "epochs", "activated_params", "activated_matmul_params", "total_params"),
    *("trunk_activated_params", "inference_flops_per_token", "data", "at_growth", "decay_fraction"),
    *("eval_id", "wall_s", *(f"{control}_id" for control in CONTROLS)),
)
_SPIKE_STEPS, _STEPS_BEFORE = 50, 20
_TEXT = (
    *("study", "cell_id", "kind", "control_of", "status", "trajectory_id", "trunk_id", "replicate", "arm"),
    *("growth", "then", "method", "width_method", "optimizer_state", "layer_map", "copies"),
    *("data", "at_growth", "eval_id"),
    *(f"{control}_id" for control in CONTROLS),
)


def cells_table(store: Store, study: str) -> pd.DataFrame:
    """One row per cell, columns as `COLUMNS` and then `final_acc_<family>`; what was not measured is NaN.

    Accuracies are fractions. `final_acc` comes from the cell's own full suite on its own end state, never
    from another suite or step; differences are paired through the cell's `controls` alone and their
    standard error takes the two evaluations as independent. An unknown study is a `ValueError`.
    """
    measures, metrics = _Measures(store), _Metrics(store)
    rows = [
        _measured(row, measures) | {"loss_spike": loss_spike(row, metrics)} | _wall(store, row)
        for row in stored_rows(store, study)
    ]
    table = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    table = table.drop_duplicates("cell_id", ignore_index=True)
    families = sorted(
        c for c in table.columns if c.startswith(("final_acc_", "chance_")) and c not in COLUMNS
    )
    table = table.reindex(columns=[*COLUMNS, *families])
    table["study"] = study
    for name in table.columns:
        if name not in _TEXT and name != "requested":
            table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    table[list(_TEXT)] = table[list(_TEXT)].astype(object).where(table[list(_TEXT)].notna(), "")
    _pair(table)
    return add_arms(add_replicates(table))


def stored_rows(store: Store, study: str) -> list[dict[str, Any]]:
    """The rows of the study's cells as they were planned, controls included."""
    return (store.study(study)["cells"] or {}).get("cells", [])


class _Measures:
    """The evaluations of a trajectory by (suite, eval_id, step); each file is read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lines: dict[str, list[dict[str, Any]]] = {}

    def at(self, state: Any, suite: str, eval_id: str | None) -> dict[str, Any]:
        if not state:
            return {}
        trajectory, step = state
        found: dict[str, Any] = {}
        for line in self.of(trajectory):
            same_suite = line["eval_id"] == eval_id if eval_id else line["suite"] == suite
            if line["step"] == step and same_suite:
                found = line
        return found

    def of(self, trajectory: str) -> list[dict[str, Any]]:
        if trajectory not in self.lines:
            self.lines[trajectory] = self.store.evals(trajectory)
        return self.lines[trajectory]


def _wall(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    """Seconds of work on the cell's trajectories after growth, shared ones counted in each cell."""
    own = {part["trajectory_id"] for part in row["path"] if part["phase"] != "trunk"}
    times = [store.wall_s(trajectory) for trajectory in sorted(own)]
    known = [seconds for seconds in times if seconds is not None]
    return {"wall_s": sum(known) if known else None}


def _measured(row: dict[str, Any], measures: _Measures) -> dict[str, Any]:
    """The row with its measurements; `base`, `start` and `stable` fall back to the probe, `final` never."""
    states = row.get("states") or {}
    ids = {"full": row.get("eval_id"), "probe": row.get("probe_eval_id")}
    at = {
        (name, suite): measures.at(states.get(name), suite, ids[suite])
        for name in ("base", "start", "stable", "final")
        for suite in ids
    }
    end = at["final", "full"] if row["status"] == "done" else {}
    out = {name: row.get(name) for name in COLUMNS if name in row}
    suite = "full" if at["base", "full"] and at["start", "full"] else "probe"
    if at["base", suite] and at["start", suite]:
        out["damage"] = at["start", suite]["acc"] - at["base", suite]["acc"]
    for name in ("base", "start", "stable"):
        line = at[name, "full"] or at[name, "probe"]
        out |= {f"{name}_acc": line.get("acc"), f"{name}_loss": line.get("loss")}
    out["base_acc_se"] = (at["base", "full"] or at["base", "probe"]).get("acc_se")
    out |= {"final_acc": end.get("acc"), "final_acc_se": end.get("acc_se"), "final_loss": end.get("loss")}
    out |= {name: end.get(name) for name in ("n", "chance", "prob_right")}
    for family, score in (end.get("families") or {}).items():
        out[f"final_acc_{family}"] = score["acc"]
        out[f"final_acc_se_{family}"] = score.get("se")
        out[f"chance_{family}"] = score.get("chance")
    params = row.get("trunk_activated_params")
    if params:
        out["f_c"] = f_c = chinchilla_flops(params)
        for name in ("sunk", "extra"):
            flops = row.get(f"{name}_flops")
            out[f"{name}_f_c"] = None if flops is None else flops / f_c
    for control in CONTROLS:
        out[f"{control}_id"] = (row.get("controls") or {}).get(control)
    return out


def loss_spike(row: dict[str, Any], metrics: "_Metrics") -> float | None:
    """The highest training loss of a branch's first 50 steps less the mean of the 20 steps before growth.

    In nats per token. None for what is no branch, and where either side has no line.
    """
    states, path = row.get("states") or {}, row["path"]
    if row["kind"] != "branch" or not states.get("start"):
        return None
    at = next((i for i, p in enumerate(path) if p["trajectory_id"] == states["start"][0]), None)
    if at is None:
        return None
    before, left = [], _STEPS_BEFORE
    for part in reversed(path[:at]):
        lines = metrics.within(part)
        before.extend(lines[lines[:, 0] > part["to_step"] - left, 1])
        left = max(0, left - part["to_step"])
    after = metrics.within(path[at])
    after = after[after[:, 0] <= _SPIKE_STEPS, 1]
    return float(after.max() - np.mean(before)) if len(before) and len(after) else None


def _pair(table: pd.DataFrame) -> None:
    """Fills control_of, the controls' accuracies and the differences to them."""
    by_id = table.set_index("cell_id")
    serves: dict[str, list[str]] = {}
    for control in CONTROLS:
        ids = table[f"{control}_id"]
        for cell, control_id in zip(table["cell_id"], ids, strict=True):
            if control_id:
                serves.setdefault(control_id, []).append(cell)
        acc = ids.map(by_id["final_acc"]).astype(float)
        table[f"{control}_acc"] = acc
        table[f"{control}_acc_se"] = ids.map(by_id["final_acc_se"]).astype(float)
        column = "net" if control == "continued" else f"gain_over_{control}"
        table[column] = table["final_acc"] - acc
    table["net_se"] = np.hypot(table["final_acc_se"], table["continued_acc_se"])
    table["control_of"] = [" ".join(serves.get(cell, [])) for cell in table["cell_id"]]


def curves(store: Store, study: str) -> pd.DataFrame:
    """One row per training line and per evaluation of each cell, after growth, in order.

    `extra_flops` counts from the growth; for scratch from its random init; for *continued* from the growth
    of the cell in `pair_id`, once per arm and growth step that it serves. `loss` of source `train` is
    the training loss, of `probe` and `full` the held-out loss; `acc` is NaN on training lines.
    """
    cells = _by_id(cells_table(store, study))
    measures, metrics = _Measures(store), _Metrics(store)
    parts = []
    for row in stored_rows(store, study):
        for pair in _pairs(cells, row["cell_id"]):
            origin = cells[pair]["sunk_flops"] if row["kind"] == "continued" else None
            part = _curve(row["path"], origin, measures, metrics)
            if part is None:
                continue
            shown = cells[pair if row["kind"] == "continued" else row["cell_id"]]
            part = part.assign(cell_id=row["cell_id"], kind=row["kind"], pair_id=pair)
            for name in ("arm", "method", "growth_step", "sunk_flops", "replicate", "seed", "f_c"):
                part[name] = shown[name]
            parts.append(part)
    names = ["cell_id", "kind", "pair_id", "arm", "method", "growth_step", "sunk_flops", "replicate", "seed"]
    names += ["f_c", "trajectory_id", "phase", "step", "extra_flops", "source", "loss", "acc", "acc_se", "n"]
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in names})
    return pd.concat(parts, ignore_index=True)[names]


def trunk_curves(store: Store, study: str) -> pd.DataFrame:
    """One row per training line and evaluation of each trunk, from random init, with `flops` along it.

    A trunk reaches as far as some cell's path used it, so that *continued* shows beyond the last growth.
    """
    cells = _by_id(cells_table(store, study))
    measures, metrics = _Measures(store), _Metrics(store)
    longest: dict[str, tuple[float, list[dict[str, Any]], str]] = {}
    for row in stored_rows(store, study):
        path = [part for part in row["path"] if part["phase"] == "trunk"]
        flops = sum((p["to_step"] - p["from_step"]) * p["flops_per_step"] for p in path)
        if path and flops > longest.get(row["trunk_id"], (0.0, [], ""))[0]:
            longest[row["trunk_id"]] = (flops, path, row["cell_id"])
    parts = []
    for trunk, (_, path, cell) in sorted(longest.items()):
        part = _curve([{**p, "phase": "stable"} for p in path], None, measures, metrics)
        if part is not None:
            part = part.rename(columns={"extra_flops": "flops"}).drop(columns="phase")
            parts.append(part.assign(trunk_id=trunk, replicate=cells[cell]["replicate"]))
    names = ["trunk_id", "replicate", "trajectory_id", "step", "flops"]
    names += ["source", "loss", "acc", "acc_se", "n"]
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in names})
    return pd.concat(parts, ignore_index=True)[names]


class _Metrics:
    """(step, loss) of each trajectory as arrays; each file is read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.arrays: dict[str, np.ndarray] = {}

    def of(self, trajectory: str) -> np.ndarray:
        if trajectory not in self.arrays:
            lines = self.store.metrics(trajectory)
            pairs = [(line["step"], line["loss"]) for line in lines]
            self.arrays[trajectory] = np.array(pairs, dtype=float).reshape(len(pairs), 2)
        return self.arrays[trajectory]

    def within(self, part: dict[str, Any]) -> np.ndarray:
        """Those of one part of a path."""
        lines = self.of(part["trajectory_id"])
        return lines[(lines[:, 0] > part["from_step"]) & (lines[:, 0] <= part["to_step"])]


def _by_id(cells: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(row["cell_id"]): {str(k): v for k, v in row.items()} for row in cells.to_dict("records")}


def _pairs(cells: dict[str, dict[str, Any]], cell_id: str) -> list[str]:
    """Itself; for a *continued* cell the first cell it serves of each arm at each growth step."""
    if cells[cell_id]["kind"] != "continued":
        return [cell_id]
    first: dict[tuple[str, float], str] = {}
    for pair in cells[cell_id]["control_of"].split():
        first.setdefault((cells[pair]["arm"], cells[pair]["sunk_flops"]), pair)
    return list(first.values())


def _curve(
    path: list[dict[str, Any]], origin_flops: float | None, measures: _Measures, metrics: _Metrics
) -> pd.DataFrame | None:
    """The points of one path after its growth, or after `origin_flops` where that is given."""
    offset, parts = 0.0, []
    if origin_flops is not None:
        offset = -origin_flops
    for p in path:
        trajectory, low, high = p["trajectory_id"], p["from_step"], p["to_step"]
        if origin_flops is not None or p["phase"] != "trunk":
            trained = metrics.within(p)
            lines = [e for e in measures.of(trajectory) if low <= e["step"] <= high]
            steps = np.concatenate([trained[:, 0], [float(e["step"]) for e in lines]])
            part = {
                "trajectory_id": trajectory,
                "phase": p["phase"],
                "step": steps,
                "extra_flops": offset + (steps - low) * p["flops_per_step"],
                "source": ["train"] * len(trained) + [e["suite"] for e in lines],
                "loss": np.concatenate([trained[:, 1], [_number(e["loss"]) for e in lines]]),
            }
            blank = np.full(len(trained), np.nan)
            for name in ("acc", "acc_se", "n"):
                part[name] = np.concatenate([blank, [_number(e[name]) for e in lines]])
            frame = pd.DataFrame(part)
            parts.append(frame[frame["extra_flops"] >= 0])
        if origin_flops is not None or p["phase"] != "trunk":
            offset += (high - low) * p["flops_per_step"]
    return pd.concat(parts, ignore_index=True) if parts else None


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


__all__ = ["COLUMNS", "CONTROLS", "SCRATCH_KINDS", "cells_table", "curves", "stored_rows", "trunk_curves"]
