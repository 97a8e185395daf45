"""The sentence that a page opens with: regime, trunks, net against continuing, what stays undecided."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.findings import TRUNKS_FOR_A_VERDICT, finished, spans_c3
from analysis.verdict import points

_DATA = {"world": "the synthetic language", "text": "text"}


def opening(cells: pd.DataFrame, correlation: dict[str, Any]) -> str:
    """One sentence: the regime, the trunks, the mean net against continuing, and what stays undecided."""
    grown = finished(cells)
    if grown.empty:
        return "No grown cell of this study has finished, so it decides nothing."
    net = correlation["series"]["pooled"]["net"]
    n = correlation["n_trunks"]
    at = f"At {regime(grown)}"
    if net["mean"] is None:
        found = (
            f"no control that continues the trunk has finished ({_cells(len(grown))} grown from {_trunks(n)})"
        )
    else:
        found = (
            f"the mean net against continuing is {points(net['mean'])} points ({_cells(net['n_cells'])} from "
            f"{_trunks(n)}, {_interval_words(net)})"
        )
    return f"{at}, {found}; this study cannot decide {_list(undecidable(cells, correlation))}."


def regime(grown: pd.DataFrame) -> str:
    """What was run, in the ratios that a claim is about."""
    size = f"N_a = {_count(grown['trunk_activated_params'])} ({_data(grown)})"
    return f"{size}, {_range(grown['sunk_f_c'])} F_c sunk and {_range(grown['extra_f_c'])} F_c extra"


def _interval_words(net: dict[str, Any]) -> str:
    interval = (net["interval"] or {}).get("mean")
    if not interval:
        return "no interval"
    low, high = interval
    return f"95 % interval {points(low)} to {points(high)}"


def undecidable(cells: pd.DataFrame, correlation: dict[str, Any]) -> list[str]:
    """What this study is too small, too early or too incomplete for, as noun phrases."""
    grown, n = finished(cells), correlation["n_trunks"]
    net = correlation["series"]["pooled"]["net"]
    out = []
    interval = (net["interval"] or {}).get("mean")
    if net["mean"] is None or interval is None or interval[0] <= 0 <= interval[1]:
        out.append("whether growing beats continuing")
    if n < TRUNKS_FOR_A_VERDICT:
        out.append(f"any claim on sunk FLOPs (that takes {TRUNKS_FOR_A_VERDICT} trunks)")
    if n < TRUNKS_FOR_A_VERDICT or not spans_c3(grown):
        out.append("stack against interposition (that takes 0.25 to 8 F_c sunk)")
    out.append("anything at other sizes, rates or data")
    return out


def _cells(n: int) -> str:
    return "one cell" if n == 1 else f"{n} cells"


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
