"""The page's section on what each growth did, as rows ready to be printed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.growth import change
from analysis.growths import JUMPS, distinct, growths, records, seam_norms, twins
from analysis.updates import GROUPS, update_cosines
from sweeps.store import Store


@dataclass(frozen=True, kw_only=True)
class GrowthSection:
    """The tables that the figures are drawn from, and `rows`, what the page prints of each."""

    growths: pd.DataFrame
    twins: pd.DataFrame
    rows: dict[str, list[Any]]


def growth_section(store: Store, study: str, directory: Path) -> GrowthSection:
    """Also writes each table whole into `directory`: growths.csv, twins.csv and update_cosines.csv."""
    grown, parted, updates = growths(store, study), twins(store, study), update_cosines(store, study)
    grown.to_csv(directory / "growths.csv", index=False)
    parted.to_csv(directory / "twins.csv", index=False)
    updates.to_csv(directory / "update_cosines.csv", index=False)
    rows: dict[str, list[Any]] = {
        "growths": growth_rows(grown),
        "seams": seam_rows(seam_norms(store, grown)),
        "moments": moment_rows(parted),
        "updates": update_rows(updates),
        "left_out": updates.attrs["left_out"],
    }
    return GrowthSection(growths=grown, twins=parted, rows=rows)


def growth_rows(grown: pd.DataFrame) -> list[dict[str, str]]:
    """One row per growth that differs from all others, means over trunks."""
    rows = []
    for one in records(distinct(grown)):
        row = {"title": one["title"], "step": f"{one['growth_step']:g}"}
        row |= {"exactness": one["exactness"].replace("_", " "), "trunks": str(len(one["replicates"]))}
        row |= {"max_logit_change": _number(one["max_logit_change"], "{:.2g}")}
        row |= {"loss": _from_to(one, "loss", "{:.4f}".format)}
        row |= {name: change(one[name]) for name in JUMPS}
        alphas = [_number(one[f"effective_alpha_{name}"], "{:.2g}") for name in ("experts", "router")]
        row |= {"alphas": "–" if alphas == ["–", "–"] else " / ".join(alphas)}
        for name in ("activated_params", "total_params", "train_flops_per_token"):
            row[name] = _from_to(one, name, count)
        rows.append(row)
    return rows


def seam_rows(seams: pd.DataFrame) -> list[dict[str, str]]:
    rows = []
    for one in records(seams[seams["above"].notna()]):
        norms = {name: _number(one[name], "{:.4f}") for name in ("base_first", "base_last")}
        for when, mark in (("growth", ""), ("end", "end_")):
            above, below = one[f"{mark}above"], one[f"{mark}below"]
            norms[when] = f"{_number(above, '{:.4f}')} | {_number(below, '{:.4f}')}"
            norms[f"{when}_step"] = _number(100 * (below / above - 1), "{:+.1f} %")
        rows.append(norms | _named(one) | {"layers": f"{one['seam'] - 1:g} | {one['seam']:g}"})
        rows[-1]["end_at"] = _number(one["end_step"], "{:g}")
    return rows


def moment_rows(parted: pd.DataFrame) -> list[dict[str, str]]:
    """The cosine of AdamW's moments with those before growth, on the first and last diagnosed lines."""
    measured = parted[parted["first_moment_cosine"].notna()]
    rows = []
    names = ["first_moment_cosine", "second_moment_cosine"]
    for _, own in measured.groupby(["arm", "growth_step", "nth"], sort=False):
        row = _named(records(own)[0])
        for when, step in (("first", own["step"].min()), ("last", own["step"].max())):
            means = own.loc[own["step"] == step, names].astype(float).mean()
            row |= {f"{when}_step": f"{step:g}"}
            row |= {f"{when}_{name}": _cosine(means[name]) for name in names}
        rows.append(row)
    return rows


def update_rows(updates: pd.DataFrame) -> list[dict[str, str]]:
    """One row per pair of arms, the groups side by side."""
    rows = []
    keys = ["trajectory_a", "trajectory_b", "step_a", "step_b"]
    for _, pair in updates.groupby(keys, sort=False):
        one = records(pair)[0]
        cosines = dict(zip(pair["group"], pair["cosine"], strict=True))
        row = {"a": one["arm_a"], "b": one["arm_b"], "at": f"{one['growth_step']:g}", "tap": one["tap"]}
        row |= {"seed": f"{one['seed']:g}", "steps": f"{one['step_a']} / {one['step_b']}"}
        rows.append(row | {group: _cosine(cosines[group]) for group in GROUPS})
    return rows


def count(value: float) -> str:
    """A count at three digits: "216k", "1.75M"."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _named(one: dict[str, Any]) -> dict[str, str]:
    chained = " → " in str(one["arm"])
    return {
        "arm": str(one["arm"]),
        "at": f"{one['growth_step']:g}",
        "nth": f"{one['nth']:g}" if chained else "",
    }


def _from_to(one: dict[str, Any], name: str, shown: Callable[[float], str]) -> str:
    before, after = one[f"{name}_before"], one[f"{name}_after"]
    return " → ".join(shown(value) if np.isfinite(value) else "–" for value in (before, after))


def _cosine(value: float) -> str:
    return _number(round(value, 3) + 0.0, "{:.3f}")  # without the sign of a zero


def _number(value: float, pattern: str) -> str:
    return pattern.format(value).replace("-", "−") if np.isfinite(value) else "–"


__all__ = [
    "GrowthSection",
    "count",
    "growth_rows",
    "growth_section",
    "moment_rows",
    "seam_rows",
    "update_rows",
]
