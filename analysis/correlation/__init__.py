"""How accuracy goes with sunk FLOPs, beside the correlation that any rising series would show."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import budget_rule
from analysis.correlation.coefficients import (
    MIN_CELLS,
    coefficients,
    minimum_detectable,
    monotone_null,
    number,
    pearson,
    residuals,
    theil_sen,
    why_refused,
)
from analysis.intervals import (
    LEVEL,
    MIN_TRUNKS,
    cluster_bootstrap,
    minimum_detectable_over_trunks,
    t_interval,
    t_test,
)
from analysis.mediation import partial_correlation
from analysis.mixed import mixed_slope
from analysis.table import SCRATCH_KINDS

ONE_TRUNK = (
    "All cells grow from one trunk, and points along one training run are not independent of each other: "
    "no interval can be given. Add seeds."
)
FEW_TRUNKS = f"An interval needs at least {MIN_TRUNKS} independent trunks. Add seeds."
MIXED_BUDGETS = "The cells differ in budget as well as in sunk FLOPs; the two cannot be told apart here."
_GAINS = ("gain_over_scratch_extra", "gain_over_scratch_total")


@dataclass(frozen=True, kw_only=True)
class SlopeUnit:
    """What a slope is shown per: `per` units of x, in words in `text`."""

    per: float
    text: str


STUDY_SLOPE = SlopeUnit(per=1e12, text="accuracy (fraction) per 1e12 sunk FLOPs")


def correlate(cells: pd.DataFrame) -> dict[str, Any]:
    """The correlation report of a table of cells as JSON-able data; what cannot be said is null, with why.

    Final accuracy, *net* (final − continued) and the gains over scratch with equal extra and with equal total
    FLOPs, against sunk FLOPs, per arm and pooled; final accuracy also with the scratch cells as sunk = 0, and
    by the trunk's learning-rate phase at growth. End − start is no finding and is not here: it correlates
    negatively with sunk even if all ends are equal.
    """
    rule, _ = budget_rule(cells)
    done = cells[(cells["status"] == "done") & cells["final_acc"].notna()]
    grown = done[done["kind"] == "branch"]
    series: dict[str, Any] = {}
    for arm in [*dict.fromkeys(grown["arm"]), "pooled"]:
        own = grown if arm == "pooled" else grown[grown["arm"] == arm]
        with_scratch = pd.concat([_scratch_of(done, own), own]) if len(own) else own
        series[arm] = {
            "without_scratch": _guarded(own, "final_acc", "final_acc_se", rule),
            "with_scratch": _guarded(with_scratch, "final_acc", "final_acc_se", rule),
            "net": _guarded(own, "net", "net_se", rule),
        }
        for phase in sorted(set(own["start_phase"])) if own["start_phase"].nunique() > 1 else ():
            of_phase = own[own["start_phase"] == phase]
            series[arm][f"start_{phase}"] = _guarded(of_phase, "final_acc", "final_acc_se", rule)
        series[arm] |= {gain: _guarded(own, gain, None, rule) for gain in _GAINS}
    return {
        "budget_rule": rule,
        "n_cells": len(grown),
        "n_trunks": int(grown["replicate"].nunique()),
        "level": LEVEL,
        "series": series,
        "given_the_base": _given_the_base(grown, rule),
        "unit": "accuracy as a fraction; sunk in FLOPs",
    }


def _given_the_base(grown: pd.DataFrame, rule: str) -> dict[str, Any]:
    found = partial_correlation(grown, "sunk_flops", "final_acc", "base_acc", "base_acc_se", "replicate")
    if rule != "mixed" or found["refused"]:
        return found
    kept = ("x", "y", "given", "n_cells", "n_trunks")
    return dict.fromkeys(found) | {name: found[name] for name in kept} | {"refused": MIXED_BUDGETS}


def _scratch_of(done: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Scratch cells with the arm's extra budget: its controls, and those the user asked for in its trunks."""
    paired = done["cell_id"].isin(set(own["scratch_extra_id"]) - {""})
    same_size = done["activated_params"].isin(own["activated_params"])
    same_budget = done["extra_flops"].between(0.9 * own["extra_flops"].min(), 1.1 * own["extra_flops"].max())
    asked = (done["kind"] == "scratch") & done["replicate"].isin(own["replicate"]) & same_size & same_budget
    return done[done["kind"].isin(SCRATCH_KINDS) & (paired | asked)].assign(sunk_flops=0.0)


def _guarded(cells: pd.DataFrame, y: str, se: str | None, rule: str) -> dict[str, Any]:
    report = associate(cells, y, se)
    return _refusal(report, MIXED_BUDGETS) if rule == "mixed" and report["refused"] is None else report


def associate(
    cells: pd.DataFrame,
    y: str,
    se: str | None = None,
    *,
    x: str = "sunk_flops",
    trunk: str = "replicate",
    slope_unit: SlopeUnit = STUDY_SLOPE,
) -> dict[str, Any]:
    """Column `y` against `x`: coefficients, slope, null, residuals, and intervals over the trunks in `trunk`.

    Refused with a sentence, all numbers null, for fewer than three cells, a constant x or y, or cells that
    were evaluated by different suites (`eval_id`). `se` names the column of y's evaluation errors.
    """
    points = cells.dropna(subset=[x, y]).sort_values(x, kind="stable")
    xs, values, names = points[x].to_numpy(float), points[y].to_numpy(float), points[trunk].astype(str)
    errors = points[se].to_numpy(float) if se else np.full(len(xs), np.nan)
    groups = [(name, xs[names == name], values[names == name]) for name in sorted(set(names))]
    report: dict[str, Any] = {"y": y, "n_cells": len(xs), "n_trunks": len(groups), "refused": None}
    report["mean"] = number(values.mean()) if len(xs) else None
    per_trunk = [_of_trunk(name, own_x, own_y, slope_unit) for name, own_x, own_y in groups]
    report["per_trunk"] = per_trunk
    report["interval"], report["no_interval_because"] = _intervals(per_trunk)
    report["minimum_detectable"] = minimum_detectable(xs, errors)
    reason = _mixed_suites(points) or why_refused(xs, values, "sunk FLOPs" if x == "sunk_flops" else x)
    if reason:
        return _refusal(report, reason)
    report |= coefficients(xs, values)
    report["pearson_log_sunk"] = report["pearson_log_x"]
    report["theil_sen"] = {
        "slope": number(theil_sen(xs, values) * slope_unit.per),
        "per": slope_unit.per,
        "unit": slope_unit.text,
    }
    report["monotone_null"] = monotone_null(len(np.unique(xs)), report["pearson"])
    report |= residuals([(own_x, own_y) for _, own_x, own_y in groups if len(own_x) >= MIN_CELLS])
    return report | _models(xs, values, names.to_numpy(), slope_unit)


_REFUSED_FIELDS = (
    *("pearson", "pearson_log_x", "pearson_log_sunk", "spearman", "kendall", "theil_sen", "monotone_null"),
    *("durbin_watson", "lag1", "cluster_bootstrap", "mixed_model"),
)


def _refusal(report: dict[str, Any], reason: str) -> dict[str, Any]:
    refused: dict[str, Any] = report | dict.fromkeys(_REFUSED_FIELDS) | {"refused": reason}
    refused |= {f"no_{name}_because": reason for name in ("cluster_bootstrap", "mixed_model")}
    if refused["interval"]:
        refused["interval"] = {**refused["interval"], "pearson": None, "theil_sen_slope": None}
    return refused


def _mixed_suites(points: pd.DataFrame) -> str | None:
    suites = sorted(set(points["eval_id"].dropna().astype(str)) - {""}) if "eval_id" in points else []
    if len(suites) < 2:
        return None
    return f"The cells were evaluated by different suites (eval_id {', '.join(suites)}): keep one of them."


def _of_trunk(name: str, x: np.ndarray, y: np.ndarray, unit: SlopeUnit) -> dict[str, Any]:
    one: dict[str, Any] = {"replicate": name, "n_cells": len(x), "mean": number(y.mean())}
    if why_refused(x, y) is None:
        return one | {"pearson": number(pearson(x, y)), "theil_sen_slope": number(theil_sen(x, y) * unit.per)}
    return one | {"pearson": None, "theil_sen_slope": None}


def _intervals(per_trunk: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, str | None]:
    """t intervals over trunks, one estimate each, with p against 0 and the least effect to be seen.

    With 3 trunks at nominal 95 %, t covers 94–95 % and a cluster bootstrap 74 %.
    """
    if len(per_trunk) < MIN_TRUNKS:
        return None, ONE_TRUNK if len(per_trunk) <= 1 else FEW_TRUNKS
    out: dict[str, Any] = {"level": LEVEL, "how": "t over one estimate per trunk", "n_trunks": len(per_trunk)}
    estimates = {
        name: [one[name] for one in per_trunk if one[name] is not None]
        for name in ("mean", "pearson", "theil_sen_slope")
    }
    out |= {name: t_interval(values) for name, values in estimates.items()}
    if out["pearson"]:
        out["pearson"] = [max(-1.0, out["pearson"][0]), min(1.0, out["pearson"][1])]
    tested = {name: estimates[name] for name in ("mean", "theil_sen_slope")}
    out["p"] = {name: t_test(values) for name, values in tested.items()}
    least = {name: minimum_detectable_over_trunks(values) for name, values in tested.items()}
    return out | {"minimum_detectable": least}, None


def _models(x: np.ndarray, y: np.ndarray, trunk: np.ndarray, unit: SlopeUnit) -> dict[str, Any]:
    """The cluster bootstrap and the mixed model, each null with a reason where there are too few trunks."""
    out: dict[str, Any] = {}
    for name, model in (("cluster_bootstrap", cluster_bootstrap), ("mixed_model", mixed_slope)):
        try:
            found: dict[str, Any] | None = model(x, y, trunk)
            reason = None
        except ValueError as error:
            found, reason = None, f"No interval by it: {error}."
        out |= {name: found and _in_unit(found, unit), f"no_{name}_because": reason}
    return out


def _in_unit(found: dict[str, Any], unit: SlopeUnit) -> dict[str, Any]:
    def scaled(value: Any) -> Any:
        return [v * unit.per for v in value] if isinstance(value, list) else value and value * unit.per

    return {name: scaled(value) if name.startswith("slope") else value for name, value in found.items()}
