"""The correlation report of any table: every way of reading its rows, and why some of it cannot be said."""

import math
from typing import Any

import pandas as pd

from analysis.correlation import SlopeUnit, associate
from analysis.correlation.coefficients import number, pearson, why_refused
from analysis.correlation.observations import (
    TRUNK,
    Observations,
    Question,
    accuracy_scale,
    observe,
    without_flagged,
)
from analysis.mediation import partial_correlation

NO_FINDING = (
    "{y} − {given} is no finding: even if all {y} were equal it would correlate {if_equal:.3f} with {x}, "
    "since {given} itself goes with {x}."
)
NO_NET = (
    "No column net: what rises with sunk FLOPs may be the trunk's own learning. Final − continued at equal "
    "total FLOPs says which."
)


def table_report(table: pd.DataFrame, question: Question) -> dict[str, Any]:
    """What the rows say of y against x, as JSON-able data; what cannot be said is null, with why.

    `sets` holds one association per way of taking the rows: all, without scratch, by learning-rate phase,
    without flagged ones. `given` holds, for each base column, why end − start is no finding and the partial
    correlation that takes the base's evaluation error into account. A wrong column is a `ValueError`.
    """
    q, seen = question, observe(table, question)
    unit = _slope_unit(seen.rows, q)
    sets = {name: _associate(rows, q.y, "_se", unit) for name, rows in _sets(seen).items()}
    report: dict[str, Any] = {"x": q.x, "y": q.y, "log_x": q.log_x, "cluster": q.cluster}
    report |= {"n_rows": seen.n_rows, "n_cells": len(seen.rows), "n_trunks": int(seen.rows[TRUNK].nunique())}
    report |= {"y_unit": _unit(seen.rows, q.y), "notes": list(seen.notes)}
    report |= {"sets": sets, "net": None, "given": [_given(seen, q, name, unit) for name in q.given]}
    if q.x == "sunk_flops" and q.y != "net":
        if "net" in table:
            net = observe(table, Question(x=q.x, y="net", cluster=q.cluster, log_x=q.log_x))
            report["net"] = _associate(net.rows[~net.scratch], "net", "_se", _slope_unit(net.rows, q))
        else:
            report["notes"].append(NO_NET)
    return report


def _associate(rows: pd.DataFrame, y: str, se: str | None, unit: SlopeUnit) -> dict[str, Any]:
    found = associate(rows, y, se, x="_x", trunk=TRUNK, slope_unit=unit)
    del found["pearson_log_sunk"]
    if found["refused"]:
        found["refused"] = found["refused"].replace("_x", "x")
    return found


def _sets(seen: Observations) -> dict[str, pd.DataFrame]:
    """The ways of taking the rows; a way that leaves out nothing is not shown twice."""
    grown = seen.rows[~seen.scratch]
    out = {"all rows": seen.rows}
    if seen.scratch.any():
        out = {"with scratch": seen.rows, "without scratch": grown}
    if seen.phase:
        for phase, rows in grown.groupby(seen.phase, sort=True):
            out[f"{seen.phase} {phase}"] = rows
    if seen.flag:
        out[f"without {seen.flag}"] = without_flagged(grown, seen.flag)
    return out


def _slope_unit(rows: pd.DataFrame, q: Question) -> SlopeUnit:
    """Per factor of ten with `log_x`, else per the power of ten that is next below the range of x."""
    y = _unit(rows, q.y)
    if q.log_x:
        return SlopeUnit(per=1.0, text=f"{y} per factor of 10 in {q.x}")
    span = float(rows["_x"].max() - rows["_x"].min()) if len(rows) else 0.0
    power = math.floor(math.log10(span)) if span > 0 else 0
    return SlopeUnit(per=10.0**power, text=f"{y} per 1e{power} {q.x}")


def _unit(rows: pd.DataFrame, name: str) -> str:
    return {1.0: "accuracy (fraction)", 100.0: "points"}.get(accuracy_scale(rows, name) or 0.0, name)


def _given(seen: Observations, q: Question, given: str, unit: SlopeUnit) -> dict[str, Any]:
    """What end − start would show of itself, and y on x given the base with its error accounted for."""
    grown = seen.rows[~seen.scratch].dropna(subset=[given])
    x, y, base = (grown[name].to_numpy(float) for name in ("_x", q.y, given))
    out: dict[str, Any] = {"given": given, "n_cells": len(grown), "difference": None}
    if why_refused(x, base) is None:
        if_equal = number(pearson(x, -base))
        why = NO_FINDING.format(y=q.y, given=given, x=q.x, if_equal=if_equal).replace("-", "−")
        out["difference"] = {
            "pearson": number(pearson(x, y - base)),
            "if_all_y_were_equal": if_equal,
            "why": why,
        }
    cells = grown.assign(_x=grown["_x"] / unit.per)
    partial = partial_correlation(cells, "_x", q.y, given, q.given_se, TRUNK)
    if partial["refused"]:
        partial["refused"] = partial["refused"].replace("_x", q.x)
    return out | {"partial": partial | {"x": q.x, "direct_unit": unit.text}}
