"""The trunk's own learning curve and learning rate, with the points where it was grown (F11)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.curves import smooth
from analysis.figures.style import (
    HAZE,
    empty,
    f_c_axis,
    flops_scale,
    ink,
    items,
    new_figure,
    of_trunks,
    one_f_c,
    page,
)

_GROWTH = "#D55E00"
_MAX_POINTS = 600


def trunk_with_growth_points(trunks: pd.DataFrame, cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """Training loss, accuracy and learning rate along the trunks; triangles mark the growth points.

    Dark: the mean over trunks, of the loss its running mean. Haze: every trunk; of a single trunk's accuracy
    one standard error of the evaluation.
    """
    grown = cells[(cells["kind"] == "branch") & cells["sunk_flops"].notna()]
    if trunks.empty or grown.empty:
        return empty("No trunk was trained yet: nothing to draw.")
    rates = trunks[trunks["lr"].notna()] if "lr" in trunks else trunks[:0]
    figure = new_figure(10.5 if len(rates) else 9.6, 3.2)
    panels = np.atleast_1d(
        figure.subplots(1, 3 if len(rates) else 2, width_ratios=(1, 1, 0.75)[: 3 if len(rates) else 2])
    )
    scale, unit = flops_scale(trunks["flops"])
    source = "probe" if (trunks["source"] == "probe").any() else "full"
    sunk = np.sort(grown["sunk_flops"].unique())
    ids, parts = sorted(trunks["trunk_id"].unique()), []
    for axes, own, value, factor, name in (
        (panels[0], trunks[trunks["source"] == "train"], "loss", 1.0, "training loss"),
        (panels[1], trunks[trunks["source"] == source], "acc", 100.0, f"accuracy ({source}, %)"),
    ):
        table = _lines(own, value, factor).assign(quantity=name)
        for trunk in set(ids) & set(table.columns):
            axes.plot(table["flops"] / scale, table[trunk], color=HAZE, linewidth=0.6, alpha=0.45)
        axes.plot(table["flops"] / scale, table["mean"], color=ink(), linewidth=1.3)
        marked = np.interp(sunk, table["flops"], table["mean"]) if len(table) else np.full(len(sunk), np.nan)
        axes.plot(
            *(sunk / scale, marked, "v"),
            color=_GROWTH,
            markersize=8,
            markeredgecolor=page(),
            label="grown here",
            clip_on=False,
            zorder=4,
        )
        axes.set_xlabel(f"FLOPs spent on the trunk ({unit})")
        axes.set_xlim(left=0)
        f_c_axis(axes, scale, one_f_c(grown), "trunk FLOPs / $F_c$")
        points = pd.DataFrame({"quantity": f"growth points on {name}", "flops": sunk, "mean": marked})
        parts += [table, points]
    cut = _cut_off_the_start(panels[0], parts[0]["mean"], parts[1]["mean"])
    if len(rates):
        parts.append(_learning_rate(panels[2], rates, sunk, scale))
        panels[2].set_xlabel(f"FLOPs spent on the trunk\n({unit})")
        f_c_axis(panels[2], scale, one_f_c(grown), "trunk FLOPs / $F_c$")
    measured = trunks[trunks["source"] == source]
    if len(ids) == 1:
        at, low, high = (measured["flops"] / scale, *_around(measured))
        panels[1].fill_between(at, low, high, color=HAZE, alpha=0.3, linewidth=0)
    name = "probe" if source == "probe" else "full suite"
    panels[0].set_ylabel("training loss (nats per token)")
    panels[1].set_ylabel(f"accuracy of the {name} (%)")
    panels[0].legend(loc="upper right")
    drawn = pd.concat(parts, ignore_index=True)
    haze = (
        "Line: running mean of the loss, and accuracy; haze: each step, and ± one standard error"
        if len(ids) == 1
        else "Line: the mean over trunks (of the loss, its running mean); haze: each trunk"
    )
    part = (
        f"probe, a smaller suite ({items(measured)})"
        if source == "probe"
        else f"full suite ({items(measured)})"
    )
    drawn.attrs["caption"] = (
        f"{of_trunks(grown)} from random init, as far as continuing needs. {haze}. "
        f"Triangles: states that were grown. Accuracy along the way is that of the {part}.{cut}"
    )
    return drawn[["quantity", "flops", "mean", *ids]], figure


def _cut_off_the_start(axes: Axes, mean: pd.Series, marked: pd.Series) -> str:
    """Leaves the losses of the first steps above the axis; the sentence that says so."""
    low, high = mean.min(), marked.max()
    top = high + 0.6 * (high - low)
    if not high > low or top > mean.max():
        return ""
    axes.set_ylim(low - 0.15 * (high - low), top)
    return " The loss axis cuts off the start."


def _learning_rate(axes: Axes, rates: pd.DataFrame, sunk: np.ndarray, scale: float) -> pd.DataFrame:
    """The mean over trunks of the rate; of one schedule it is that of each."""
    mean = rates.groupby("flops")["lr"].mean().astype(float)
    mean = mean.iloc[:: max(1, len(mean) // _MAX_POINTS)]
    marked = np.interp(sunk, mean.index, mean)
    axes.plot(mean.index / scale, mean, color=ink(), linewidth=1.3)
    axes.plot(
        *(sunk / scale, marked, "v"), color=_GROWTH, markersize=8, markeredgecolor=page(), clip_on=False
    )
    axes.set_ylim(0, 1.15 * mean.max())
    axes.set_xlim(left=0)
    axes.set_ylabel("learning rate")
    line = pd.DataFrame({"quantity": "learning rate", "flops": mean.index, "mean": mean.to_numpy()})
    points = pd.DataFrame({"quantity": "growth points on learning rate", "flops": sunk, "mean": marked})
    return pd.concat([line, points], ignore_index=True)


def _around(measured: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Accuracy in per cent less and plus one standard error."""
    acc, se = 100 * measured["acc"].astype(float), 100 * measured["acc_se"].astype(float)
    return acc - se, acc + se


def _lines(own: pd.DataFrame, value: str, factor: float) -> pd.DataFrame:
    """One column per trunk beside their mean; the training loss thinned and its mean smoothed."""
    wide = (
        own.pivot_table(index="flops", columns="trunk_id", values=value, aggfunc="last").astype(float)
        * factor
    )
    mean = wide.mean(axis=1)
    wide["mean"] = smooth(mean) if value == "loss" else mean
    return wide.iloc[:: max(1, len(wide) // _MAX_POINTS)].reset_index().rename_axis(None, axis=1)
