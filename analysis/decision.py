"""What each choice gave: continue, grow or start over, a row per growth step and way of growing."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import standard_error
from analysis.page import plain
from analysis.verdict import points


def decision_table(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Per growth step and arm: base, grown, *continued*, both scratch, as "mean ± standard error" in %.

    Means are over trunks; the standard error is of the evaluation for one trunk, over trunks for more.
    """
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    rows = []
    for (step, arm), own in grown.groupby(["growth_step", "arm"], sort=True):
        row = {"growth_step": f"{step:g}", "arm": arm, "sunk": plain(own["sunk_f_c"].mean(), "{:.2g} F_c")}
        for name in ("base", "final", "continued", "scratch_extra", "scratch_total", "sham"):
            row[name] = _mean_and_error(own, f"{name}_acc", f"{name}_acc_se")
        row["net"] = _mean_and_error(own, "net", "net_se", sign=True)
        rows.append(row)
    return _started_over(cells) + rows


def _started_over(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells asked for at step 0 that are nobody's control, so that no column shows them."""
    alone = (cells["kind"] == "scratch") & (cells["control_of"] == "") & cells["final_acc"].notna()
    if not alone.any():
        return []
    names = ("base", "continued", "scratch_extra", "scratch_total", "sham", "net")
    final = _mean_and_error(cells[alone], "final_acc", "final_acc_se")
    return [
        {"growth_step": "0", "arm": "start over", "sunk": "0", "final": final, **dict.fromkeys(names, "–")}
    ]


def _mean_and_error(own: pd.DataFrame, value: str, error: str, sign: bool = False) -> str:
    own = own[own[value].notna()]
    if own.empty:
        return "–"
    per_trunk = own.groupby("replicate")[value].mean()
    se = standard_error(per_trunk, float(np.sqrt((own[error] ** 2).mean())))
    mean = points(per_trunk.mean()) if sign else f"{100 * per_trunk.mean():.1f}"
    return f"{mean} ± {100 * se:.1f}" if np.isfinite(se) else mean
