"""N6: what a growth costs before the training loss is back at what it was."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, Transform

from analysis.figures.style import (
    Look,
    f_c_axis,
    flops_scale,
    legend_columns,
    looks,
    new_figure,
    of_trunks,
    one_f_c,
    page,
)


def recovery_cost(recoveries: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """N6: FLOPs after growth until the loss is back, against sunk FLOPs, as of `analysis.recovery`.

    Points are medians over trunks, of which one that never regained it counts as infinite; bars are the
    range of those that did. An infinite median stands open at the FLOPs that were watched. How many never did
    is written above. A `ValueError` for no cell.
    """
    if recoveries.empty:
        raise ValueError("No growth has 20 steps of loss on either side: there is no recovery to draw.")
    table = _drawn(recoveries)
    arms = list(dict.fromkeys(table["arm"]))
    styles = looks(arms)
    figure = new_figure(6.8, 4.2)
    axes = figure.subplots()
    scale, unit = flops_scale(table["sunk_flops"])
    cost, cost_unit = flops_scale(table["recovery_flops"], table["seen_flops"])
    for nth, arm in enumerate(arms):
        look, own = styles[arm], table[table["arm"] == arm]
        aside = ScaledTranslation(4 * (nth - (len(arms) - 1) / 2) / 72, 0, figure.dpi_scale_trans)
        place = axes.transData + aside
        _draw(axes, own, look, (scale, cost), place, nth)
    axes.set_xlabel(f"sunk FLOPs ({unit})")
    axes.set_ylabel(f"FLOPs until the loss is back\n({cost_unit})")
    axes.set_xlim(0, 1.08 * table["sunk_flops"].max() / scale)
    tops = [table["highest"].max(), table.loc[table["never"] > 0, "seen_flops"].max()]
    axes.set_ylim(0, 1.22 * np.nanmax(np.array(tops, dtype=float)) / cost)
    f_c_axis(axes, scale, one_f_c(recoveries), "sunk / $F_c$")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns(arms))
    never = int((~recoveries["regained"]).sum())
    table.attrs["caption"] = (
        "FLOPs after the growth until a running mean of the training loss (20 steps) is back at the mean of "
        f"the 20 steps before it. {len(recoveries)} grown cells, {of_trunks(recoveries)}; medians, "
        "bars: range over trunks. Watched at the constant rate, up to the anneal: "
        f"{never} cell{'s' if never != 1 else ''} "
        "never regained it there"
        + (
            ", which counts as infinite (open, at the FLOPs watched, where it is the median)."
            if never
            else "."
        )
    )
    return table, figure


def _draw(
    axes: Axes, own: pd.DataFrame, look: Look, scales: tuple[float, float], place: Transform, nth: int
) -> None:
    """One arm; what it never regained is written above, one arm over the other."""
    scale, cost = scales
    never = own[own["never"] > 0]
    axes.plot(
        own["sunk_flops"] / scale,
        own["recovery_flops"] / cost,  # a NaN, an infinite median, breaks the line
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        markerfacecolor=look.colour if look.filled else page(),
        label=own["arm"].iloc[0],
        transform=place,
    )
    axes.vlines(
        *(own["sunk_flops"] / scale, own["lowest"] / cost, own["highest"] / cost),
        color=look.colour,
        linewidth=1.0,
        transform=place,
    )
    for _, row in never.iterrows():
        at = (row["sunk_flops"] / scale, row["seen_flops"] / cost)
        if np.isnan(row["recovery_flops"]):
            axes.plot(*at, color=look.colour, marker=look.marker, markerfacecolor=page(), transform=place)
        text = f"↑ {row['never']:.0f} of {row['n_trunks']:.0f} never"
        axes.annotate(
            text,
            at,
            xycoords=place,
            xytext=(0, 7 + 10 * nth),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=look.colour,
        )


def _median(costs: pd.Series) -> float:
    """Of trunks, one that never regained its loss counting as infinite; NaN where that is the median."""
    middle = float(costs.fillna(np.inf).median())
    return middle if np.isfinite(middle) else float("nan")


def _drawn(recoveries: pd.DataFrame) -> pd.DataFrame:
    table = recoveries.groupby(["arm", "growth_step"], sort=False).agg(
        sunk_flops=("sunk_flops", "mean"),
        recovery_flops=("recovery_flops", _median),
        lowest=("recovery_flops", "min"),
        highest=("recovery_flops", "max"),
        seen_flops=("seen_flops", "mean"),
        n_trunks=("replicate", "nunique"),
        never=("regained", lambda own: int((~own.astype(bool)).sum())),
    )
    return table.reset_index().sort_values(["arm", "growth_step"], kind="stable", ignore_index=True)
