"""The trunk's own learning curve, with the points where it was grown."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.curves import smooth
from analysis.figures.style import empty, f_c_axis, flops_scale, ink, new_figure, one_f_c, page

_HAZE = "#56B4E9"
_GROWTH = "#D55E00"
_MAX_POINTS = 600


def trunk_with_growth_points(trunks: pd.DataFrame, cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """Training loss and accuracy along the trunks against their FLOPs; triangles mark the growth points.

    Haze: every trunk; dark: the mean over trunks, of the loss its running mean.
    """
    grown = cells[(cells["kind"] == "branch") & cells["sunk_flops"].notna()]
    if trunks.empty or grown.empty:
        return empty("No trunk was trained yet: nothing to draw.")
    figure = new_figure(9.6, 3.2)
    panels = figure.subplots(1, 2)
    scale, unit = flops_scale(trunks["flops"])
    source = "probe" if (trunks["source"] == "probe").any() else "full"
    sunk = np.sort(grown["sunk_flops"].unique())
    parts = []
    for axes, own, value, factor, name in (
        (panels[0], trunks[trunks["source"] == "train"], "loss", 1.0, "training loss"),
        (panels[1], trunks[trunks["source"] == source], "acc", 100.0, f"accuracy ({source}, %)"),
    ):
        table = _lines(own, value, factor).assign(quantity=name)
        for trunk in sorted(trunks["trunk_id"].unique()):
            axes.plot(table["flops"] / scale, table[trunk], color=_HAZE, linewidth=0.6, alpha=0.45)
        axes.plot(table["flops"] / scale, table["mean"], color=ink(), linewidth=1.3)
        marked = np.interp(sunk, table["flops"], table["mean"]) if len(table) else np.full(len(sunk), np.nan)
        look = {"color": _GROWTH, "marker": "v", "linestyle": "", "markersize": 8, "markeredgecolor": page()}
        axes.plot(sunk / scale, marked, **look, label="grown here", clip_on=False, zorder=4)
        axes.set_xlabel(f"FLOPs spent on the trunk ({unit})")
        axes.set_xlim(left=0)
        f_c_axis(axes, scale, one_f_c(grown), "trunk FLOPs / $F_c$")
        points = pd.DataFrame({"quantity": f"growth points on {name}", "flops": sunk, "mean": marked})
        parts += [table, points]
    panels[0].set_ylabel("training loss (nats per token)")
    panels[1].set_ylabel("accuracy along the way (%)")
    panels[0].legend(loc="upper right")
    drawn = pd.concat(parts, ignore_index=True)
    n = trunks["trunk_id"].nunique()
    drawn.attrs["caption"] = (
        f"{n} trunk{'s' if n > 1 else ''} from random init, as far as continuing it needs. Haze: each trunk; "
        "line: the mean over trunks (of the loss, its running mean). Triangles: states that were grown. "
        f"The accuracy is that of the {'probe, a small part of the' if source == 'probe' else 'full'} suite."
    )
    return drawn[["quantity", "flops", "mean", *sorted(trunks["trunk_id"].unique())]], figure


def _lines(own: pd.DataFrame, value: str, factor: float) -> pd.DataFrame:
    """One column per trunk beside their mean; the training loss thinned and its mean smoothed."""
    wide = (
        own.pivot_table(index="flops", columns="trunk_id", values=value, aggfunc="last").astype(float)
        * factor
    )
    mean = wide.mean(axis=1)
    wide["mean"] = smooth(mean) if value == "loss" else mean
    return wide.iloc[:: max(1, len(wide) // _MAX_POINTS)].reset_index().rename_axis(None, axis=1)
