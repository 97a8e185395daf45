"""N2: is it the FLOPs sunk that the end follows, or the accuracy that they had already bought?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import (
    Look,
    by_sunk,
    flops_scale,
    ink,
    legend_columns,
    looks,
    new_figure,
    of_trunks,
    page,
    sequential,
    sunk_bar,
)

_ROWS = (
    ("final_acc", "final_acc_se", "final accuracy (%)"),
    ("net", "net_se", "net: final − continued (points)"),
)


def mediation_panel(cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """N2: final accuracy and net of each cell against sunk FLOPs (left) and the base's accuracy (right).

    Bars are one standard error of evaluation, across for the base: measured with that error, it cannot rule
    the FLOPs out. Lines on the right join one trunk. A `ValueError` below three cells with both.
    """
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna() & cells["base_acc"].notna()]
    if len(grown) < 3 or grown["growth_step"].nunique() < 2:
        raise ValueError("Fewer than three cells, or one growth step, have a base and a final accuracy.")
    names = ["cell_id", "arm", "replicate", "growth_step", "sunk_flops", "base_acc", "base_acc_se"]
    table = grown[[*names, "final_acc", "final_acc_se", "net", "net_se"]].reset_index(drop=True)
    accuracies = [name for name in table.columns if "acc" in name or name.startswith("net")]
    table[accuracies] *= 100
    figure = new_figure(9.6, 6.0)
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    scale, unit = flops_scale(table["sunk_flops"])
    norm, colours, styles = (
        by_sunk(table["sunk_flops"]),
        sequential(),
        looks(list(dict.fromkeys(table["arm"]))),
    )
    for row, (value, error, label) in zip(panels, _ROWS, strict=True):
        for axes, x, x_error in ((row[0], "sunk_flops", None), (row[1], "base_acc", "base_acc_se")):
            for (arm, _), own in table.groupby(["arm", "replicate"], sort=False):
                own = own.sort_values("sunk_flops")
                at = own[x] / (scale if x == "sunk_flops" else 1.0)
                across = own[x_error] if x_error else None
                shade = colours(norm(own["sunk_flops"].to_numpy(float)))
                _draw(axes, (at, own[value]), (across, own[error]), shade, styles[str(arm)])
        row[0].set_ylabel(label)
    for axes in panels[1]:
        axes.axhline(0.0, color=ink(), linewidth=0.9)
    panels[1][0].set_xlabel(f"sunk FLOPs ({unit})")
    panels[1][1].set_xlabel("accuracy of the state that was grown (%)")
    sunk_bar(figure, panels, norm, scale, unit)
    handles = [
        figure.axes[0].plot(
            [], [], color=ink(), marker=s.marker, linestyle="", markerfacecolor=ink() if s.filled else page()
        )[0]
        for s in styles.values()
    ]
    figure.legend(handles, list(styles), loc="outside lower center", ncols=legend_columns(list(styles)))
    noise = float(np.sqrt((table["base_acc_se"] ** 2).mean()))
    table.attrs["caption"] = (
        f"The end and the net of {len(table)} grown cells, {of_trunks(grown)}, against what was sunk and "
        "against what the base could do already. Thin lines join one trunk and arm; bars: one standard error "
        f"of the evaluation, {noise:.1f} points for the base. If the base's accuracy carried the effect, "
        "cells of one base accuracy would end alike whatever was sunk; its error alone can hide that."
    )
    return table, figure


def _draw(axes: Axes, at: tuple, errors: tuple, shade: Any, look: Look) -> None:
    """The cells of one trunk and arm: points (x, y) with standard errors, in the colours of `shade`."""
    (x, y), (across, up) = at, errors
    axes.plot(x, y, color=ink(), linewidth=0.5, alpha=0.3, zorder=1)
    axes.errorbar(x, y, yerr=up, xerr=across, fmt="none", ecolor=ink(), elinewidth=0.5, alpha=0.4)
    edge = shade if look.filled else ink()
    axes.scatter(x, y, c=shade, marker=look.marker, s=34, zorder=3, edgecolors=edge, linewidths=0.6)
