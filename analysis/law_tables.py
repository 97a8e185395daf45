"""What the figures of a fitted law are drawn from: the budget map (N1) and recycling efficiencies (N5)."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd

from analysis.arm_laws import ArmLaws, fit_arms
from analysis.budget import decision_map, recycling_efficiency


def law_tables(cells: pd.DataFrame) -> dict[str, Callable[[], pd.DataFrame]]:
    """By the name of the table; laws are fitted when the first is called, once.

    Where no law can be fitted, both raise a `ValueError` that says why.
    """

    @cache
    def laws() -> ArmLaws:
        try:
            return fit_arms(cells)
        except ValueError as refusal:
            raise ValueError(f"No law is fitted: {refusal}.") from refusal

    return {"efficiency": lambda: _efficiency(laws()), "budget_map": lambda: _budget_map(laws(), cells)}


def _efficiency(laws: ArmLaws) -> pd.DataFrame:
    rows = []
    for arm in laws.grown:
        found = recycling_efficiency(laws, arm)
        rows.append({"arm": arm, "phase": "all", "rho": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows, columns=["arm", "phase", "rho", "low", "high"]).astype(
        dict.fromkeys(("rho", "low", "high"), float)
    )


def _budget_map(laws: ArmLaws, cells: pd.DataFrame) -> pd.DataFrame:
    """Of the first way of growing, where its budgets were studied."""
    arm, totals = next(iter(laws.grown)), cells["total_flops"] / cells["f_c"]
    grid = decision_map(laws, arm, np.linspace(0.05, 0.95, 19), np.geomspace(totals.min(), totals.max(), 15))
    known = grid[grid["studied"]]
    if known.empty:
        raise ValueError(
            "Nothing was trained from scratch with a total budget at which something was grown: the law "
            "would be extrapolated. Run fixed_total beside fixed_extra."
        )
    gains = pd.DataFrame(
        {
            "sunk_share": known["sunk_share"],
            "total_flops": known["total_f_c"] * float(cells["f_c"].dropna().iloc[0]),
            "difference": known["gain"],
            "low": known["gain_low"],
            "high": known["gain_high"],
        }
    )
    gains.attrs = {
        "what": f"Loss from scratch less that of {arm}, by the law",
        "label": "scratch − grown (nats)",
    }
    return gains
