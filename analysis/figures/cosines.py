"""T1: what is left of the moments and of the direction of updates, ours beside the paper's tables."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import ink, legend_columns, looks, new_figure, of_trunks, page

_PAPER = Path(__file__).parents[1] / "paper"
_GROUPS = ("overall", "expert_ffn", "attention", "embedding")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BETA1 = 0.9


def moment_and_update_cosines(twins: pd.DataFrame, updates: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """T1: AdamW's first moments against those before growth, and summed updates of two arms, over steps.

    `twins` as of `analysis.growths.twins`, `updates` as of `analysis.updates.update_cosines`. The line β₁ⁿ is
    what is left of a first moment after n steps. A `ValueError` where neither was stored.
    """
    moments, pairs = _of_moments(twins), _of_updates(updates)
    if moments.empty and pairs.empty:
        raise ValueError("Neither moments nor weights at a tap are stored: there is no cosine to draw.")
    published = _published()
    table = pd.concat([moments, pairs, published], ignore_index=True)
    figure = new_figure(9.6, 4.4)
    left, right = figure.subplots(1, 2)
    _draw_moments(left, table[table["panel"] == "moments"])
    _draw_updates(right, table[table["panel"] == "updates"])
    for axes in (left, right):
        axes.axhline(0.0, color=ink(), linewidth=0.9)
        axes.set_ylim(-0.15, 1.05)
    count = pairs["pair"].nunique() if len(pairs) else 0
    rows = pd.concat([frame[["replicate", "seed"]] for frame in (twins, updates) if len(frame)])
    table.attrs["caption"] = (
        "Left: cosine of AdamW's first moment with that of the state before growth, and β₁ⁿ, what n steps "
        "leave of it whatever happens. Right: cosine of the summed updates of two arms grown from one state, "
        f"{count} pair{'s' if count != 1 else ''} at their taps. {of_trunks(rows)}, means over trunks. Open, "
        "grey: arXiv 2510.08008 §3.3, one trunk of 3B."
    )
    return table, figure


def _of_moments(twins: pd.DataFrame) -> pd.DataFrame:
    own = twins[twins["first_moment_cosine"].notna()] if len(twins) else twins
    if own.empty:
        return pd.DataFrame()
    own = own[own["growth_step"] == own["growth_step"].max()]
    own = own[own["nth"] == 1]
    grouped = own.groupby(["arm", "step"], sort=False)
    means = grouped.agg(cosine=("first_moment_cosine", "mean"), n_trunks=("replicate", "nunique"))
    means = means.reset_index().rename(columns={"arm": "series", "step": "steps_after_growth"})
    return means.assign(panel="moments", source="ours")


def _of_updates(updates: pd.DataFrame) -> pd.DataFrame:
    own = updates[updates["cosine"].notna()] if len(updates) else updates
    if own.empty:
        return pd.DataFrame()
    a, b = (own[f"arm_{side}"].str.split(",").str[0] for side in "ab")
    own = own.assign(
        pair=a + " | " + b, steps_after_growth=own[["step_a", "step_b"]].astype(float).mean(axis=1)
    )
    keys = ["pair", "growth_step", "tap", "group"]
    grouped = own.groupby(keys, sort=False)
    table = grouped.agg(
        cosine=("cosine", "mean"),
        steps_after_growth=("steps_after_growth", "mean"),
        n_trunks=("replicate", "nunique"),
    ).reset_index()
    shown = table.groupby(["pair", "growth_step", "tap"], sort=False).ngroup() < len(_COLOURS)
    return table[shown].rename(columns={"group": "series"}).assign(panel="updates", source="ours")


def _published() -> pd.DataFrame:
    adam = pd.read_csv(_PAPER / "adam_cosines.csv").melt(
        "steps_after_growth", var_name="series", value_name="cosine"
    )
    adam["series"] = adam["series"].map({"base_vs_depth": "depth", "base_vs_width": "width"})
    update = pd.read_csv(_PAPER / "update_cosines.csv").melt(
        "steps_after_growth", var_name="series", value_name="cosine"
    )
    ends = (update["steps_after_growth"].min(), update["steps_after_growth"].max())
    update = update[update["steps_after_growth"].isin(ends)]
    return pd.concat(
        [adam.assign(panel="moments"), update.assign(panel="updates", pair="depth | width")]
    ).assign(source="the paper")


def _draw_moments(axes: Axes, rows: pd.DataFrame) -> None:
    ours = rows[rows["source"] == "ours"]
    styles = looks(list(dict.fromkeys(ours["series"])))
    for name, part in ours.groupby("series", sort=False):
        look = styles[str(name)]
        axes.plot(
            part["steps_after_growth"].clip(lower=1),
            part["cosine"],
            color=look.colour,
            marker=look.marker,
            markersize=4,
            linestyle=look.line,
            markerfacecolor=look.colour if look.filled else page(),
            label=name,
        )
    for (name, part), marker in zip(
        rows[rows["source"] == "the paper"].groupby("series"), ("s", "o"), strict=False
    ):
        axes.plot(
            part["steps_after_growth"],
            part["cosine"],
            color="#8a8f98",
            marker=marker,
            linestyle="",
            markerfacecolor=page(),
            label=f"the paper, {name}",
        )
    steps = np.geomspace(1, 60, 60)
    axes.plot(steps, _BETA1**steps, color=ink(), linewidth=0.9, linestyle=(0, (1, 2)), label="β₁ⁿ = 0.9ⁿ")
    axes.set_xscale("log")
    axes.set_xlabel("steps n after growth")
    axes.set_ylabel("cosine of first moments, before growth | now")
    axes.legend(loc="upper right")


def _draw_updates(axes: Axes, rows: pd.DataFrame) -> None:
    """Groups of parameters side by side; what a marker is stands in the legend, with its steps."""
    places = {group: i for i, group in enumerate(_GROUPS)}
    series = list(rows[rows["source"] == "ours"].groupby(["pair", "growth_step", "tap"], sort=False))
    theirs = list(rows[rows["source"] == "the paper"].groupby("steps_after_growth"))
    total = len(series) + len(theirs)
    for nth, ((pair, *_), part) in enumerate(series):
        x = [places[group] + 0.7 * ((nth + 0.5) / total - 0.5) for group in part["series"]]
        label = f"{pair}, {part['steps_after_growth'].mean():.0f} steps"
        axes.plot(x, part["cosine"], "osD^vP"[nth], color=_COLOURS[nth], label=label)
    for nth, (steps, part) in enumerate(theirs, start=total - len(theirs)):
        x = [places[group] + 0.7 * ((nth + 0.5) / total - 0.5) for group in part["series"]]
        marker = "<>"[nth - total + len(theirs)]
        axes.plot(
            x,
            part["cosine"],
            marker,
            color="#8a8f98",
            markerfacecolor=page(),
            label=f"the paper, {steps:.0f} steps",
        )
    axes.set_xticks(range(len(_GROUPS)), ["all", "experts", "attention", "embedding"])
    axes.set_xlim(-0.5, len(_GROUPS) - 0.5)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("cosine of summed updates of two arms")
    labels = axes.get_legend_handles_labels()[1]
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=legend_columns(labels) if total < 3 else 2,
        fontsize=7,
    )
