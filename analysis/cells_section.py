"""The page's table of all cells, and the file of them."""

from pathlib import Path

import pandas as pd

from analysis.page import plain
from analysis.verdict import points

_WHOLE = (
    *("growth_step", "depth_factor", "width_factor", "seed", "growth_seed", "n", "tokens", "unique_tokens"),
    *("growth_warmup_steps", "keep_first", "keep_last"),
    *("activated_params", "activated_matmul_params", "total_params", "trunk_activated_params"),
)


def write_cells(cells: pd.DataFrame, directory: Path) -> None:
    """Writes cells.csv; counts are whole numbers, what was not measured is an empty field."""
    whole = {name: cells[name].round().astype("Int64") for name in _WHOLE}
    cells.assign(**whole).to_csv(directory / "cells.csv", index=False)


def cell_rows(cells: pd.DataFrame) -> list[dict[str, str]]:
    """A row per cell, accuracies in per cent, differences in points."""
    order = cells.sort_values(["seed", "kind", "growth_step", "arm"], kind="stable")
    rows = []
    for cell in order.to_dict("records"):
        row = {name: str(cell[name]) for name in ("cell_id", "kind", "arm", "status")}
        row |= {name: plain(cell[name], "{:g}") for name in ("growth_step", "seed")}
        row |= {name: plain(cell[name], "{:.3g}") for name in ("sunk_f_c", "extra_f_c", "total_flops")}
        for name in ("base_acc", "start_acc", "stable_acc"):
            row[name] = plain(100 * cell[name], "{:.1f}")
        se = plain(100 * cell["final_acc_se"], " ± {:.1f}")
        row["final_acc"] = plain(100 * cell["final_acc"], "{:.1f}") + se.replace("–", "")
        for name in ("net", "gain_over_scratch_extra", "gain_over_scratch_total"):
            row[name] = "–" if pd.isna(cell[name]) else points(cell[name])
        rows.append(row)
    return rows
