"""A stored study as a tidy table: one row per cell."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import add_arms, add_replicates
from analysis.lines import Measures, Metrics
from moe.flops import chinchilla_flops
from sweeps.store import Store

CONTROLS = ("continued", "scratch_extra", "scratch_total", "sham")
SCRATCH_KINDS = ("scratch", "scratch_extra", "scratch_total")
COLUMNS = (
    *("study", "cell_id", "kind", "requested", "control_of", "status", "trajectory_id", "trunk_id"),
    *("replicate", "arm", "growth_step", "method", "depth_factor", "width_method", "width_factor"),
    *("noise_scale", "optimizer_state", "growth_lr", "seed", "growth_seed"),
    *("norm_rise", "seam_step", "weight_decay"),
    *("train_lr", "norm_placement", "residual_base_layers", "trunk_layers"),
    *("growth", "growth_warmup_steps", "keep_first", "keep_last", "layer_map", "copies"),
    *("router_noise_scale", "drop_fraction", "then", "then_after_flops", "start_phase"),
    *("sunk_flops", "extra_flops", "total_flops", "paper_flops", "f_c", "sunk_f_c", "extra_f_c"),
    *("chinchilla_multiple", "base_acc", "start_acc", "stable_acc", "final_acc", "final_acc_se"),
    *(
        "final_acc_above_chance",
        "base_acc_se",
        "n",
        "chance",
        "prob_right",
        "base_loss",
        "start_loss",
        "stable_loss",
        "final_loss",
    ),
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
    *("eval_id", "entropy_floor", "wall_s", *(f"{control}_id" for control in CONTROLS)),
)
_SPIKE_STEPS, _STEPS_BEFORE = 50, 20
_TEXT = (
    *("study", "cell_id", "kind", "control_of", "status", "trajectory_id", "trunk_id", "replicate", "arm"),
    *("growth", "then", "method", "width_method", "optimizer_state", "layer_map", "copies"),
    *("data", "at_growth", "eval_id", "start_phase", "norm_placement"),
    *(f"{control}_id" for control in CONTROLS),
)


def cells_table(store: Store, study: str) -> pd.DataFrame:
    """One row per cell, columns as `COLUMNS` and then `final_acc_<family>`; what was not measured is NaN.

    Accuracies are fractions. `final_acc` comes from the cell's own full suite on its own end state, never
    from another suite or step; differences are paired through the cell's `controls` alone, where both were
    asked the same, and their standard error takes the two evaluations as independent. A cell that was `todo`
    when its run began is done once that suite was asked of its end. An unknown study is a `ValueError`.
    """
    measures, metrics = Measures(store), Metrics(store)
    rows = [
        _measured(row, measures)
        | {"loss_spike": loss_spike(row, metrics)}
        | _norms(store, row)
        | _wall(store, row)
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
            number = pd.to_numeric(table[name], errors="coerce").astype(float)
            table[name] = number.where(np.isfinite(number))
    table[list(_TEXT)] = table[list(_TEXT)].astype(object).where(table[list(_TEXT)].notna(), "")
    _pair(table)
    return add_arms(add_replicates(table))


def stored_rows(store: Store, study: str) -> list[dict[str, Any]]:
    """The rows of the study's cells as they were planned, controls included."""
    return (store.study(study)["cells"] or {}).get("cells", [])


def _wall(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    """Seconds of work on the cell's trajectories after growth, shared ones counted in each cell."""
    own = {part["trajectory_id"] for part in row["path"] if part["phase"] != "trunk"}
    times = [store.wall_s(trajectory) for trajectory in sorted(own)]
    known = [seconds for seconds in times if seconds is not None]
    return {"wall_s": sum(known) if known else None}


def _norms(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    """Of expert weight norms at growth, as fractions: `norm_rise` of the checkpoint, its last third of layers
    over the first; `seam_step` of the grown layers, from the checkpoint's depth over the layer before."""
    start = (row.get("states") or {}).get("start")
    norms = ((store.growth(start[0]) or {}).get("expert_weight_norm") or {}) if start else {}
    before, after = norms.get("before") or [], norms.get("after") or []
    third, depth = len(before) // 3, len(before)
    out: dict[str, Any] = {}
    if third:
        out["norm_rise"] = float(np.mean(before[-third:]) / np.mean(before[:third]) - 1)
    if depth and len(after) > depth:
        out["seam_step"] = after[depth] / after[depth - 1] - 1
    return out


def _measured(row: dict[str, Any], measures: Measures) -> dict[str, Any]:
    """The row with its measurements; `base`, `start` and `stable` fall back to the probe, `final` never."""
    states = row.get("states") or {}
    ids = {"full": row.get("eval_id"), "probe": row.get("probe_eval_id")}
    at = {
        (name, suite): measures.at(states.get(name), suite, ids[suite])
        for name in ("base", "start", "stable", "final")
        for suite in ids
    }
    done = row["status"] == "done" or (row["status"] == "todo" and bool(at["final", "full"]))
    end = at["final", "full"] if done else {}
    out = {name: row.get(name) for name in COLUMNS if name in row}
    out["status"] = "done" if done else row["status"]
    suite = "full" if at["base", "full"] and at["start", "full"] else "probe"
    if at["base", suite] and at["start", suite]:
        out["damage"] = at["start", suite]["acc"] - at["base", suite]["acc"]
    for name in ("base", "start", "stable"):
        line = at[name, "full"] or at[name, "probe"]
        out |= {f"{name}_acc": line.get("acc"), f"{name}_loss": line.get("loss")}
    if row["kind"] == "branch" and states.get("base"):
        out["start_phase"] = "stable" if states["base"][0] == row["trunk_id"] else "annealed"
    out["base_acc_se"] = (at["base", "full"] or at["base", "probe"]).get("acc_se")
    out |= {"final_acc": end.get("acc"), "final_acc_se": end.get("acc_se"), "final_loss": end.get("loss")}
    out["final_acc_above_chance"] = end.get("acc_above_chance")
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


def loss_spike(row: dict[str, Any], metrics: Metrics) -> float | None:
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
        alike = ids.map(by_id["eval_id"]) == table["eval_id"]
        acc = ids.map(by_id["final_acc"]).astype(float).where(alike)
        table[f"{control}_acc"] = acc
        table[f"{control}_acc_se"] = ids.map(by_id["final_acc_se"]).astype(float).where(alike)
        column = "net" if control == "continued" else f"gain_over_{control}"
        table[column] = table["final_acc"] - acc
    table["net_se"] = np.hypot(table["final_acc_se"], table["continued_acc_se"])
    table["control_of"] = [" ".join(serves.get(cell, [])) for cell in table["cell_id"]]


__all__ = ["COLUMNS", "CONTROLS", "SCRATCH_KINDS", "cells_table", "loss_spike", "stored_rows"]
