"""What a study may say: the opening sentence, and a verdict on each claim that it touches."""

from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from analysis.correlation import associate, t_interval

TRUNKS_FOR_A_VERDICT = 8
C1_SUNK_F_C = (2.0, 27.0)
C3_SUNK_F_C = (0.25, 8.0)


class Verdict(StrEnum):
    AGREES = "agrees"
    DISAGREES = "disagrees"
    NO_DIFFERENCE = "no difference within ±δ"
    UNDECIDED = "undecided"
    NOT_COVERED = "regime not covered"


_DATA = {"world": "the synthetic language", "text": "text"}


def opening(cells: pd.DataFrame, correlation: dict[str, Any]) -> str:
    """One sentence: the regime, the trunks, the mean net against continuing, and what stays undecided."""
    grown = _finished(cells)
    if grown.empty:
        return "No grown cell of this study has finished, so it decides nothing."
    net = correlation["series"]["pooled"]["net"]
    n = correlation["n_trunks"]
    regime = (
        f"At N_a = {_count(grown['trunk_activated_params'])} ({_data(grown)}), "
        f"{_range(grown['sunk_f_c'])} F_c sunk and {_range(grown['extra_f_c'])} F_c extra"
    )
    if net["mean"] is None:
        found = (
            f"{len(grown)} cells grown from {_trunks(n)} have no finished control that continues the trunk"
        )
    else:
        found = (
            f"the mean net against continuing is {points(net['mean'])} points ({net['n_cells']} cells from "
            f"{_trunks(n)}, {_interval_words(net)})"
        )
    return f"{regime}, {found}; this study cannot decide {_list(undecidable(cells, correlation))}."


def _interval_words(net: dict[str, Any]) -> str:
    interval = (net["interval"] or {}).get("mean")
    if not interval:
        return "no interval"
    low, high = interval
    return f"95 % interval {points(low)} to {points(high)}"


def undecidable(cells: pd.DataFrame, correlation: dict[str, Any]) -> list[str]:
    """What this study is too small, too early or too incomplete for, as noun phrases."""
    grown, n = _finished(cells), correlation["n_trunks"]
    net = correlation["series"]["pooled"]["net"]
    out = []
    interval = (net["interval"] or {}).get("mean")
    if net["mean"] is None or interval is None or interval[0] <= 0 <= interval[1]:
        out.append("whether growing beats continuing")
    if n < TRUNKS_FOR_A_VERDICT:
        out.append(f"any claim on sunk FLOPs (that takes {TRUNKS_FOR_A_VERDICT} trunks)")
    if n < TRUNKS_FOR_A_VERDICT or not _spans_c3(grown):
        out.append("stack against interposition (that takes 0.25 to 8 F_c sunk)")
    out.append("anything at other sizes, rates or data")
    return out


def judge(cells: pd.DataFrame, correlation: dict[str, Any], delta: float) -> list[dict[str, str]]:
    """Claims that the study's cells touch: id, statement, verdict and why, in plain words.

    `delta` (accuracy as a fraction) is the difference that counts as none. One trunk: all undecided.
    """
    grown = _finished(cells)
    if grown.empty:
        return []
    rule = correlation["budget_rule"]
    out = []
    if rule == "extra" and grown["growth_step"].nunique() > 1:
        effect, interval = _rise(grown)
        covered = grown["sunk_f_c"].max() >= C1_SUNK_F_C[0]
        why = f"Final accuracy changes by {_shown(effect, interval)} over the range of sunk FLOPs."
        statement = "With a fixed extra budget, final accuracy rises with sunk FLOPs."
        out.append(_claim("C1", statement, why, interval, delta, correlation, covered))
    if rule == "total" and grown["gain_over_scratch_total"].notna().any():
        effect, interval = _over_trunks(grown, "gain_over_scratch_total")
        covered = grown["sunk_f_c"].max() >= C1_SUNK_F_C[0]
        why = f"Grown minus scratch with equal total FLOPs is {_shown(effect, interval)}."
        statement = "With a fixed total budget, growing matches or beats scratch."
        out.append(_claim("C2", statement, why, interval, delta, correlation, covered))
    if {"stack", "interposition"} <= set(grown["method"]):
        out.append(_stack_against_interposition(grown, correlation))
    return out


def _claim(
    name: str,
    statement: str,
    why: str,
    interval: list[float] | None,
    delta: float,
    correlation: dict[str, Any],
    covered: bool,
) -> dict[str, str]:
    n = correlation["n_trunks"]
    verdict, reason = Verdict.UNDECIDED, ""
    if n == 1:
        reason = " One trunk decides nothing."
    elif not covered:
        verdict, reason = (
            Verdict.NOT_COVERED,
            f" The claim is about {C1_SUNK_F_C[0]:g} F_c of sunk FLOPs and more.",
        )
    elif n < TRUNKS_FOR_A_VERDICT or interval is None:
        reason = f" {n} trunks; a verdict takes {TRUNKS_FOR_A_VERDICT}."
    else:
        verdict = verdict_of(interval, delta)
    return {"id": name, "statement": statement, "verdict": verdict.value, "why": why + reason}


def verdict_of(interval: list[float], delta: float) -> Verdict:
    """The verdict on a claimed positive effect."""
    low, high = interval
    if -delta <= low and high <= delta:
        return Verdict.NO_DIFFERENCE
    if low > 0:
        return Verdict.AGREES
    return Verdict.DISAGREES if high < 0 else Verdict.UNDECIDED


def _stack_against_interposition(grown: pd.DataFrame, correlation: dict[str, Any]) -> dict[str, str]:
    statement = "Interposition beats stack once more than about 1 F_c is sunk, and not before."
    high = grown["sunk_f_c"].max()
    late = grown[grown["sunk_f_c"] > 1.0]
    keys = ["replicate", "growth_step", "width_method", "noise_scale", "depth_factor", "extra_flops"]
    wide = late.pivot_table(index=keys, columns="method", values="final_acc", aggfunc="mean")
    needs = "It takes growth steps log-spaced over 0.25 to 8 F_c, tuned rates and several trunks."
    if not high > 1.0:
        why = f"Nothing is claimed: at most {high:.2g} F_c is sunk here. {needs}"
        one = Verdict.UNDECIDED if correlation["n_trunks"] == 1 else Verdict.NOT_COVERED
        return {"id": "C3", "statement": statement, "verdict": one.value, "why": why}
    why = ""
    if {"stack", "interposition"} <= set(wide.columns):
        paired = (wide["interposition"] - wide["stack"]).dropna().rename("gap").reset_index()
        effect, interval = _over_trunks(paired, "gap")
        if effect is not None:
            why = f"Beyond 1 F_c, interposition minus stack is {_shown(effect, interval)}. "
    verdict = Verdict.UNDECIDED
    if correlation["n_trunks"] > 1 and not _spans_c3(grown):
        verdict = Verdict.NOT_COVERED
    tuned = (
        "" if verdict is Verdict.NOT_COVERED else " Whether the rates were tuned per method is not recorded."
    )
    return {"id": "C3", "statement": statement, "verdict": verdict.value, "why": why + needs + tuned}


def _spans_c3(grown: pd.DataFrame) -> bool:
    low, high = C3_SUNK_F_C
    return bool(grown["sunk_f_c"].min() <= 1.2 * low and grown["sunk_f_c"].max() >= high / 1.2)


def _rise(grown: pd.DataFrame) -> tuple[float | None, list[float] | None]:
    """Per trunk the Theil–Sen slope times the range of sunk FLOPs, averaged over arms; then over trunks."""
    span = float(grown["sunk_flops"].max() - grown["sunk_flops"].min())
    rows = []
    for (trunk, _), own in grown.groupby(["replicate", "arm"]):
        slope = associate(own, "final_acc")["theil_sen"]
        if slope:
            rows.append({"replicate": trunk, "rise": slope["slope"] * span / 1e12})
    return _over_trunks(pd.DataFrame(rows, columns=["replicate", "rise"]), "rise")


def _over_trunks(table: pd.DataFrame, column: str) -> tuple[float | None, list[float] | None]:
    values = table.groupby("replicate")[column].mean().dropna()
    return (float(values.mean()), t_interval(list(values))) if len(values) else (None, None)


def _finished(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[(cells["kind"] == "branch") & (cells["status"] == "done") & cells["final_acc"].notna()]


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points with its sign."""
    shown = f"{100 * fraction:+.1f}"
    return "0.0" if shown in ("-0.0", "+0.0") else shown.replace("-", "−")


def _shown(effect: float | None, interval: list[float] | None) -> str:
    if effect is None:
        return "an unknown number of points"
    if interval is None:
        return f"{points(effect)} points (no interval)"
    return f"{points(effect)} points (95 % interval {points(interval[0])} to {points(interval[1])})"


def _trunks(n: int) -> str:
    return "one trunk" if n == 1 else f"{n} trunks"


def _data(cells: pd.DataFrame) -> str:
    names = sorted({str(name) for name in cells["data"]} - {""})
    return " and ".join(_DATA.get(name, name) for name in names) or "data not recorded"


def _count(params: pd.Series) -> str:
    values = params.dropna()
    if values.empty:
        return "unknown"
    low, high = values.min(), values.max()
    return _short(low) if low == high else f"{_short(low)}–{_short(high)}"


def _short(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def _range(values: pd.Series) -> str:
    values = values.dropna()
    if values.empty:
        return "an unknown number of"
    low, high = f"{values.min():.2g}", f"{values.max():.2g}"
    return low if low == high or np.isclose(values.min(), values.max(), rtol=0.1) else f"{low}–{high}"


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", or " + parts[-1]


__all__ = ["Verdict", "judge", "opening", "points", "undecidable", "verdict_of"]
