"""Loss and accuracy after growth, coloured by sunk FLOPs (Fig. 10 of arXiv 2510.08008)."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from analysis.figures.style import (
    Look,
    by_sunk,
    empty,
    flops_scale,
    in_f_c,
    ink,
    items,
    legend_columns,
    looks,
    new_figure,
    of_trunks,
    one_f_c,
    page,
    sequential,
    sunk_bar,
)

MAX_ARMS = 4
_MAX_POINTS = 250
_SMALL, _LARGE = 3, 6  # markers of the probe, along the way, and of the full suite, at the end


def loss_and_accuracy_by_sunk_flops(curves: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """Per arm: training loss (haze and running mean) and accuracy points against extra FLOPs.

    Lines and points are means over trunks at equal steps. Small points are the probe, large ones the full
    suite, both with one standard error of evaluation; open diamonds, set aside, are *continued* at its end.
    """
    usable = curves[curves["kind"].isin(["branch", "scratch", "scratch_extra", "continued"])]
    arms = list(dict.fromkeys(usable.loc[usable["kind"] == "branch", "arm"])) if len(usable) else []
    if not arms:
        return empty("No grown cell was trained yet: nothing to draw.")
    shown = arms[:MAX_ARMS]
    table = _averaged(usable, shown)
    figure = new_figure(9.6, 0.9 + 2.7 * len(shown))
    panels = figure.subplots(len(shown), 2, sharex=True, sharey="col", squeeze=False)
    norm, colours, styles = by_sunk(table["sunk_flops"]), sequential(), looks(shown)
    scale, unit = flops_scale(table["extra_flops"], table["sunk_flops"])
    for (left, right), arm in zip(panels, shown, strict=True):
        rows = table[table["arm"].isin([arm, "scratch"])]
        for _, part in rows.groupby(["kind", "sunk_flops"]):
            colour = colours(norm(float(part["sunk_flops"].iloc[0])))
            _draw_line(left, right, part, colour, styles[arm], scale)
        left.set_ylabel("training loss (nats per token)")
        right.set_ylabel("accuracy (%)")
        left.set_title(arm)
        right.set_xlim(right=1.09 * table["extra_flops"].max() / scale)
    for axes in panels[-1]:
        axes.set_xlabel(f"extra FLOPs, counted from the growth ({unit})")
    losses = table.loc[(table["source"] == "train") & (table["kind"] == "branch"), "smoothed"]
    if losses.notna().any():
        low, high = losses.min(), losses.quantile(0.99)
        panels[0][0].set_ylim(low - 0.15 * (high - low), high + 0.5 * (high - low))
    bar, f_c = sunk_bar(figure, panels, norm, scale, unit), one_f_c(usable)
    if f_c:
        top = bar.ax.secondary_yaxis("left", functions=in_f_c(scale, f_c))
        top.set_ylabel("sunk / $F_c$")
    entries = _legend([styles[arm] for arm in shown], usable)
    figure.legend(
        *(list(entries.values()), list(entries)),
        **{"loc": "outside lower center", "ncols": legend_columns(list(entries))},
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )
    table.attrs["caption"] = _caption(usable, omitted=len(arms) - len(shown))
    return table, figure


def _caption(usable: pd.DataFrame, omitted: int) -> str:
    grown = usable[usable["kind"] == "branch"]
    means = "Means over " if grown["replicate"].nunique() > 1 else ""
    return (
        "After growth: training loss (haze: each step; line: running mean) and accuracy. Colour: sunk "
        f"FLOPs, 0 is scratch. {means}{of_trunks(grown)}. Small points: the probe, a smaller suite, along "
        f"the way; large points: the full suite{' at the end' if _full_at_the_end_alone(usable) else ''}. "
        "Bars: one standard error of the evaluation. The loss axis cuts off the start of scratch."
        + (f" {omitted} further arms are in cells.csv." if omitted else "")
    )


def _full_at_the_end_alone(usable: pd.DataFrame) -> bool:
    """Stores made before the probe was asked of every state have the full suite elsewhere too."""
    ends = usable.groupby(["cell_id", "pair_id"])["extra_flops"].transform("max")
    own = usable["kind"] != "continued"  # drawn at its end only
    return bool((usable["extra_flops"] == ends)[own & (usable["source"] == "full")].all())


def smooth(values: pd.Series) -> np.ndarray:
    """A centred running mean over a fortieth of the series."""
    window = max(3, len(values) // 40)
    return values.astype(float).rolling(window, center=True, min_periods=1).mean().to_numpy()


def _averaged(curves: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Means over trunks at equal step, thinned to what a picture can show."""
    own = curves[curves["arm"].isin([*arms, "scratch"])].copy()
    continued = own["kind"] == "continued"
    last = own.groupby(["cell_id", "pair_id"], observed=True)["extra_flops"].transform("max")
    own = own[~continued | ((own["source"] == "full") & (own["extra_flops"] == last))]
    own["kind"] = own["kind"].replace({"scratch_extra": "scratch"})
    # The trunks of one growth step, and only those, have equal sunk FLOPs.
    keys = ["kind", "arm", "sunk_flops", "source", "phase", "step", "extra_flops"]
    own["variance"] = own["acc_se"].astype(float) ** 2
    grouped = own.groupby(keys, observed=True, dropna=False)
    means = {"raw_loss": ("loss", "mean"), "acc": ("acc", "mean"), "variance": ("variance", "mean")}
    table = grouped.agg(**means, n_trunks=("replicate", "nunique")).reset_index()
    table["acc_se"] = np.sqrt(table.pop("variance") / table["n_trunks"])
    table = table.sort_values(["kind", "arm", "sunk_flops", "source", "extra_flops"], ignore_index=True)
    parts = []
    for _, part in table.groupby(["kind", "arm", "sunk_flops", "source"], sort=False):
        train = part["source"].iloc[0] == "train"
        part = part.assign(smoothed=_smooth_by_phase(part) if train else np.nan)
        parts.append(part.iloc[:: max(1, len(part) // _MAX_POINTS)] if train else part)
    return pd.concat(parts, ignore_index=True)


def _smooth_by_phase(part: pd.DataFrame) -> np.ndarray:
    """The anneal falls steeply: a mean across its beginning would bend the line before it starts."""
    return np.concatenate([smooth(phase["raw_loss"]) for _, phase in part.groupby("phase", sort=False)])


def _draw_line(left: Axes, right: Axes, part: pd.DataFrame, colour, look: Look, scale: float) -> None:
    kind = str(part["kind"].iloc[0])
    train = part[part["source"] == "train"]
    line = look.line if kind == "branch" else (0, (1, 1))
    left.plot(train["extra_flops"] / scale, train["raw_loss"], color=colour, linewidth=0.5, alpha=0.35)
    left.plot(train["extra_flops"] / scale, train["smoothed"], color=colour, linestyle=line, linewidth=1.3)
    probe = part[part["source"] == "probe"]
    marker = {"branch": look.marker, "continued": "D"}.get(kind, "*")
    right.errorbar(
        probe["extra_flops"] / scale,
        100 * probe["acc"],
        yerr=100 * probe["acc_se"].fillna(0.0),
        color=colour,
        marker=marker,
        markersize=_SMALL,
        linestyle=line,
        linewidth=0.6,
        elinewidth=0.5,
        alpha=0.6,
    )
    full = part[part["source"] == "full"]
    container = right.errorbar(
        full["extra_flops"] / scale,
        100 * full["acc"],
        yerr=100 * full["acc_se"].fillna(0.0),
        color=colour,
        marker=marker,
        markersize=_LARGE + 1 if kind == "continued" else _LARGE,
        markerfacecolor=page() if kind == "continued" else colour,
        linestyle="",
        elinewidth=0.9,
        zorder=3,
    )
    if kind == "continued":  # beside the grown cells that it stands for, not on top of them
        for artist in container.get_children():
            artist.set_transform(
                right.transData + ScaledTranslation(11 / 72, 0, right.figure.dpi_scale_trans)
            )


def _legend(styles: list[Look], usable: pd.DataFrame) -> dict[str, Any]:
    """What the sizes and the controls' markers mean; the arms themselves are the panels' titles."""
    measured = usable[usable["acc"].notna()]
    entries: dict[str, Any] = {}  # a tuple of lines is one entry, which matplotlib does not annotate
    for source, label, size in (("probe", "probe", _SMALL), ("full", "full suite", _LARGE)):
        own = measured[measured["source"] == source]
        if len(own):
            entries[f"{label}, {items(own)}"] = tuple(
                Line2D([], [], color=ink(), marker=marker, markersize=size, linestyle="")
                for marker in dict.fromkeys(look.marker for look in styles)
            )
    if usable["kind"].isin(["scratch", "scratch_extra"]).any():
        entries["scratch"] = (Line2D([], [], color=ink(), marker="*", linestyle=(0, (1, 1))),)
    if (usable["kind"] == "continued").any():
        end = Line2D([], [], color=ink(), marker="D", linestyle="", markerfacecolor=page())
        entries["continued, at its end"] = (end,)
    return entries
