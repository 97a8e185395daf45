"""How accuracy goes with sunk FLOPs, beside the correlation that any rising series would show."""

from functools import lru_cache
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from analysis.arms import budget_rule
from analysis.table import SCRATCH_KINDS

MIN_CELLS = 3
MIN_TRUNKS = 3
LEVEL = 0.95
SLOPE_UNIT_FLOPS = 1e12
ONE_TRUNK = (
    "All cells grow from one trunk, and points along one training run are not independent of each other: "
    "no interval can be given. Add seeds."
)
FEW_TRUNKS = f"An interval needs at least {MIN_TRUNKS} independent trunks. Add seeds."


def correlate(cells: pd.DataFrame) -> dict[str, Any]:
    """The correlation report of a table of cells as JSON-able data; what cannot be said is null, with why.

    Final accuracy and *net* (final − continued) against sunk FLOPs, per arm and pooled, final accuracy also
    with the scratch cells as sunk = 0. End − start is no finding and is not here: it correlates
    negatively with sunk even if all ends are equal.
    """
    rule, _ = budget_rule(cells)
    done = cells[(cells["status"] == "done") & cells["final_acc"].notna()]
    grown = done[done["kind"] == "branch"]
    series: dict[str, Any] = {}
    for arm in [*dict.fromkeys(grown["arm"]), "pooled"]:
        own = grown if arm == "pooled" else grown[grown["arm"] == arm]
        series[arm] = {
            "without_scratch": _guarded(own, "final_acc", "final_acc_se", rule),
            "with_scratch": _guarded(
                pd.concat([_scratch_of(done, own), own]) if len(own) else own,
                "final_acc",
                "final_acc_se",
                rule,
            ),
            "net": _guarded(own, "net", "net_se", rule),
        }
    return {
        "budget_rule": rule,
        "n_cells": len(grown),
        "n_trunks": int(grown["replicate"].nunique()),
        "level": LEVEL,
        "series": series,
        "unit": "accuracy as a fraction; sunk in FLOPs",
    }


def _scratch_of(done: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Scratch cells with the arm's extra budget: its controls, and those the user asked for in its trunks."""
    paired = done["cell_id"].isin(set(own["scratch_extra_id"]) - {""})
    same_size = done["activated_params"].isin(own["activated_params"])
    same_budget = done["extra_flops"].between(0.9 * own["extra_flops"].min(), 1.1 * own["extra_flops"].max())
    asked = (done["kind"] == "scratch") & done["replicate"].isin(own["replicate"]) & same_size & same_budget
    return done[done["kind"].isin(SCRATCH_KINDS) & (paired | asked)].assign(sunk_flops=0.0)


def _guarded(cells: pd.DataFrame, y: str, se: str, rule: str) -> dict[str, Any]:
    report = associate(cells, y, se)
    if rule == "mixed" and report["refused"] is None:
        reason = "The cells differ in budget as well as in sunk FLOPs; the two cannot be told apart here."
        return _refusal(report, reason)
    return report


def associate(cells: pd.DataFrame, y: str, se: str | None = None) -> dict[str, Any]:
    """Column `y` against `sunk_flops`: coefficients, slope, null, residuals, and intervals over `replicate`.

    Refused with a sentence, all numbers null, for fewer than three cells or a constant x or y.
    """
    points = cells.dropna(subset=["sunk_flops", y]).sort_values("sunk_flops", kind="stable")
    x, values = points["sunk_flops"].to_numpy(float), points[y].to_numpy(float)
    errors = points[se].to_numpy(float) if se else np.full(len(x), np.nan)
    n_trunks = int(points["replicate"].nunique())
    report: dict[str, Any] = {"y": y, "n_cells": len(x), "n_trunks": n_trunks, "refused": None}
    report["mean"] = _number(values.mean()) if len(x) else None
    per_trunk = [_of_trunk(name, group, y) for name, group in points.groupby("replicate", sort=True)]
    report["per_trunk"] = per_trunk
    report["interval"], report["no_interval_because"] = _intervals(per_trunk)
    report["minimum_detectable"] = minimum_detectable(x, errors)
    reason = _why_refused(x, values)
    if reason:
        return _refusal(report, reason)
    report |= coefficients(x, values)
    report["monotone_null"] = monotone_null(len(np.unique(x)))
    report |= _residuals(
        [(g["sunk_flops"].to_numpy(float), g[y].to_numpy(float)) for _, g in _trunks(points)]
    )
    return report


_REFUSED_FIELDS = (
    *("pearson", "pearson_log_sunk", "spearman", "kendall", "theil_sen", "monotone_null"),
    *("durbin_watson", "lag1"),
)


def _refusal(report: dict[str, Any], reason: str) -> dict[str, Any]:
    refused: dict[str, Any] = report | dict.fromkeys(_REFUSED_FIELDS) | {"refused": reason}
    if refused["interval"]:
        refused["interval"] = {**refused["interval"], "pearson": None, "theil_sen_slope": None}
    return refused


def _why_refused(x: np.ndarray, y: np.ndarray) -> str | None:
    if len(x) < MIN_CELLS:
        return f"Too few measured cells ({len(x)}): a correlation needs at least {MIN_CELLS}."
    if np.ptp(x) == 0:
        return "All cells have the same sunk FLOPs: nothing to correlate with."
    if np.ptp(y) == 0:
        return "All cells end at the same value: nothing to correlate."
    return None


def coefficients(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Pearson (raw and log x), Spearman, Kendall, Theil–Sen slope of y on x; log is null with an x of 0."""
    slope = cast(float, stats.theilslopes(y, x)[0])
    spearman, _ = stats.spearmanr(x, y)
    kendall, _ = stats.kendalltau(x, y)
    return {
        "pearson": _number(pearson(x, y)),
        "pearson_log_sunk": _number(pearson(np.log(x), y)) if x.min() > 0 else None,
        "spearman": _number(spearman),
        "kendall": _number(kendall),
        "theil_sen": {
            "slope": _number(slope * SLOPE_UNIT_FLOPS),
            "unit": "accuracy (fraction) per 1e12 sunk FLOPs",
        },
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r, NaN where either side is constant."""
    x, y = np.asarray(x, float) - np.mean(x), np.asarray(y, float) - np.mean(y)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def _of_trunk(name: Any, group: pd.DataFrame, y: str) -> dict[str, Any]:
    x, values = group["sunk_flops"].to_numpy(float), group[y].to_numpy(float)
    one: dict[str, Any] = {"replicate": str(name), "n_cells": len(x), "mean": _number(values.mean())}
    one |= {"pearson": None, "theil_sen_slope": None}
    if _why_refused(x, values) is None:
        found = coefficients(x, values)
        one |= {"pearson": found["pearson"], "theil_sen_slope": found["theil_sen"]["slope"]}
    return one


def _intervals(per_trunk: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, str | None]:
    """t intervals over trunks, one estimate each.

    With 3 trunks at nominal 95 %, t covers 94–95 % and a cluster bootstrap 74 %.
    """
    if len(per_trunk) < MIN_TRUNKS:
        return None, ONE_TRUNK if len(per_trunk) <= 1 else FEW_TRUNKS
    out: dict[str, Any] = {"level": LEVEL, "how": "t over one estimate per trunk", "n_trunks": len(per_trunk)}
    for name in ("mean", "pearson", "theil_sen_slope"):
        values = [one[name] for one in per_trunk if one[name] is not None]
        out[name] = t_interval(values)
    if out["pearson"]:
        out["pearson"] = [max(-1.0, out["pearson"][0]), min(1.0, out["pearson"][1])]
    return out, None


def t_interval(values: list[float]) -> list[float] | None:
    """The 95 % t interval of the mean of independent values; None for fewer than three."""
    if len(values) < MIN_TRUNKS:
        return None
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


@lru_cache(maxsize=64)
def _null(n_points: int) -> tuple[float, float, float]:
    steps = np.random.default_rng(20251008).exponential(size=(20_000, n_points))
    series = steps.cumsum(axis=1)
    series -= series.mean(axis=1, keepdims=True)
    index = np.arange(n_points) - (n_points - 1) / 2
    r = series @ index / np.sqrt((series**2).sum(axis=1) * (index @ index))
    low, median, high = np.quantile(r, [0.025, 0.5, 0.975])
    return float(median), float(low), float(high)


def monotone_null(n_points: int) -> dict[str, Any] | None:
    """Median and 95 % range of Pearson's r of a random rising series (exponential steps) with its index."""
    if n_points < MIN_CELLS:
        return None
    median, low, high = _null(min(n_points, 200))
    return {"n_points": n_points, "median": median, "low": low, "high": high}


def minimum_detectable(x: np.ndarray, errors: np.ndarray) -> dict[str, Any] | None:
    """The effects that evaluation noise alone lets one see (two-sided 5 %, power 80 %), as accuracy.

    `between_two_cells`, and `over_the_range`: the change of a straight line from the least to the most sunk
    cell. Differences between trunks add to both.
    """
    errors = errors[np.isfinite(errors)]
    if not len(errors):
        return None
    error = float(np.sqrt(np.mean(errors**2)))
    factor = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    spread = float(np.sqrt(((x - x.mean()) ** 2).sum()))
    return {
        "between_two_cells": factor * np.sqrt(2.0) * error,
        "over_the_range": factor * error * float(np.ptp(x)) / spread if spread > 0 and len(x) > 2 else None,
        "evaluation_se": error,
    }


def _trunks(points: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    return [
        (name, group) for name, group in points.groupby("replicate", sort=True) if len(group) >= MIN_CELLS
    ]


def _residuals(groups: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Durbin–Watson and lag-1 autocorrelation of straight-line residuals, in order of sunk per trunk."""
    jumps = products = squares = 0.0
    for x, y in groups:
        if np.ptp(x) == 0:
            continue
        slope, level = np.polyfit(x / x.max(), y, 1)
        rest = y - slope * x / x.max() - level
        jumps += float((np.diff(rest) ** 2).sum())
        products += float(rest[1:] @ rest[:-1])
        squares += float(rest @ rest)
    if squares <= 1e-24:
        return {"durbin_watson": None, "lag1": None}
    return {"durbin_watson": jumps / squares, "lag1": products / squares}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
