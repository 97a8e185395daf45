"""Interposition less stack, paired per trunk: by growth timing (F5) and by factor (F4)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.correlation import t_interval
from analysis.figures.arms import Column, at_step, caption_of, compare, series_of, sunk_words
from analysis.figures.style import HAZE, by_sunk, ink, new_figure, of_trunks, page, sequential

_QUANTITIES = {
    "accuracy": ("final_acc", 100.0, "interposition − stack\n(points of final accuracy)"),
    "loss": ("final_loss", 1.0, "interposition − stack\n(nats of final held-out loss)"),
}
_PAIR = [
    *("replicate", "growth_step", "depth_factor", "width_method", "width_factor", "noise_scale"),
    *("optimizer_state", "growth_lr", "extra_level", "keep_first", "keep_last", "at_growth"),
]


def method_gaps(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per trunk and setting with both methods: interposition − stack of final accuracy and loss."""
    grown = cells[(cells["kind"] == "branch") & (cells["status"] == "done") & cells["final_acc"].notna()]
    grown = grown[grown["method"].isin(["stack", "interposition"])]
    extra = grown["extra_flops"].astype(float)
    level = (np.log(extra) / np.log1p(0.1)).round() if len(grown) else extra
    grown = grown.assign(extra_level=level)
    rows = []
    for key, own in grown.groupby(_PAIR, dropna=False):
        by = dict(iter(own.groupby("method")))
        if len(by) == 2:
            row = dict(zip(_PAIR, key if isinstance(key, tuple) else (key,), strict=True))
            row |= {"sunk_flops": own["sunk_flops"].mean(), "sunk_f_c": own["sunk_f_c"].mean()}
            row |= {"seed": own["seed"].iloc[0]}
            for name, (column, factor, _) in _QUANTITIES.items():
                means = {method: part[column].mean() for method, part in by.items()}
                row[f"{name}_gap"] = factor * (means["interposition"] - means["stack"])
            rows.append(row)
    return pd.DataFrame(
        rows, columns=[*_PAIR, "seed", "sunk_flops", "sunk_f_c", *(f"{q}_gap" for q in _QUANTITIES)]
    )


def gap_by_growth_timing(cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F5: interposition − stack of final accuracy and held-out loss against sunk FLOPs in units of F_c.

    Points are trunks, paired; the line is their mean and its band the 95 % t interval over trunks. Of the
    smallest depth factor. A `ValueError` below two growth steps.
    """
    gaps = method_gaps(cells)
    gaps = gaps[gaps["sunk_f_c"].notna() & (gaps["depth_factor"] == gaps["depth_factor"].min())]
    if gaps["growth_step"].nunique() < 2:
        raise ValueError("Fewer than two growth steps were grown by both methods: no timing to draw.")
    figure = new_figure(9.6, 3.9)
    panels, parts = figure.subplots(1, 2), []
    for axes, (name, (_, _, label)) in zip(panels, _QUANTITIES.items(), strict=True):
        parts.append(_gap_panel(axes, gaps, name, "sunk_f_c", "growth_step"))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        marks = np.sort(gaps.groupby("growth_step")["sunk_f_c"].mean().to_numpy())
        axes.set_xticks(marks, [f"{mark:.2g}" for mark in marks])
        axes.set_xlabel("sunk / $F_c$ at growth")
        axes.set_ylabel(label)
    table = pd.concat(parts, ignore_index=True)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=2.4
    )
    table.attrs["caption"] = (
        "Interposition less stack at the end, annealed, by how much was sunk at growth; above 0 on the left, "
        f"below 0 on the right, interposition is better. {len(gaps)} pairs of grown cells, "
        f"{of_trunks(gaps)}, paired per trunk. {_interval_words(gaps)}"
    )
    return table, figure


def gap_by_depth_factor(curves: pd.DataFrame, cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F4: loss and accuracy after growth by each factor, and interposition − stack against the factor.

    Curves are those of the latest growth step that has all factors; gaps those of every growth step. A
    `ValueError` below two factors with both methods.
    """
    gaps = method_gaps(cells[cells["width_method"].isin(["none", ""])])
    factors = sorted(gaps["depth_factor"].unique())[:3]
    if len(factors) < 2:
        raise ValueError("Fewer than two depth factors were grown by both methods: no factor to compare.")
    counts = gaps.groupby("growth_step")["depth_factor"].nunique()
    step = float(counts.index[counts == counts.max()].max())
    at = at_step(series_of(curves), step)
    grown = at["kind"] == "branch"
    deep = at["method"].isin(["stack", "interposition"]) & (at["width_method"] == "none")
    first = at.groupby(["method", "depth_factor"])["arm"].transform("first")  # rates are not mixed
    at = at[~grown | (deep & (at["arm"] == first))]
    grown = at["kind"] == "branch"
    at = at.assign(series=at["method"].where(grown, at["series"]))
    columns, shown = [], []
    for factor in factors:
        own = at[~grown | (at["depth_factor"] == factor)]
        scratch = own["series"] == "scratch"
        own = own[~scratch | (own["depth_factor"] == factor)]
        columns.append(Column(title=f"depth ×{factor:g}, {sunk_words(own)}", rows=own))
        shown.append(own)
    table, figure, panels = compare(columns, more=1, width=min(10.4, 2.7 * (len(factors) + 1)))
    parts = [table]
    steps = sorted(gaps["growth_step"].unique())
    for axes, name in zip(panels[:, -1], ("loss", "accuracy"), strict=True):
        parts.append(_gaps_by_factor(axes, gaps, name, steps))
        axes.set_ylabel(_QUANTITIES[name][2])
        axes.set_xticks(factors, [f"×{factor:g}" for factor in factors])
        axes.set_xlim(min(factors) - 0.4, max(factors) + 0.4)
    panels[0, -1].set_title("the gap by factor")
    panels[1, -1].set_xlabel("depth factor")
    if len(steps) > 1:
        low, high = panels[1, -1].get_ylim()
        panels[1, -1].set_ylim(low, high + 0.3 * (high - low))
        panels[1, -1].legend(loc="upper center", ncols=2, title="sunk", title_fontsize=8)
    table = pd.concat(parts, ignore_index=True)
    table.attrs["caption"] = caption_of(
        pd.concat(shown),
        "A trunk grown in depth by several factors.",
        f"Right: interposition less stack at the end, {len(gaps)} pairs, paired per trunk. "
        + _interval_words(gaps),
    )
    return table, figure


def _gaps_by_factor(axes: Axes, gaps: pd.DataFrame, name: str, steps: list[float]) -> pd.DataFrame:
    """A line per growth step; of several, set apart sideways and coloured by sunk FLOPs."""
    norm, colours, parts = by_sunk(gaps["sunk_flops"]), sequential(), []
    for nth, step in enumerate(steps):
        own = gaps[gaps["growth_step"] == step].copy()
        own["at"] = own["depth_factor"] + 0.12 * (nth - (len(steps) - 1) / 2)
        sunk = own["sunk_f_c"].mean()
        colour = colours(norm(own["sunk_flops"].mean())) if len(steps) > 1 else ink()
        parts.append(
            _gap_panel(axes, own, name, "at", "depth_factor", colour, f"{sunk:.2g} $F_c$", "os^D"[nth % 4])
        )
    return pd.concat(parts, ignore_index=True)


def _gap_panel(
    axes: Axes,
    gaps: pd.DataFrame,
    name: str,
    x: str,
    group: str,
    colour: str | tuple | None = None,
    label: str = "mean over trunks",
    marker: str = "o",
) -> pd.DataFrame:
    """Draws and returns each trunk's gap, their mean and its interval (NaN below three trunks)."""
    column, single = f"{name}_gap", gaps["replicate"].nunique() == 1
    # Settings of one trunk are not independent of each other: they count as their mean.
    gaps = gaps.groupby([group, "replicate"], as_index=False)[list({x, column} - {group})].mean()
    rows = []
    for value, own in gaps.groupby(group):
        ends = t_interval(own[column].tolist()) or (np.nan, np.nan)
        rows.append({group: value, x: own[x].mean(), "mean_gap": own[column].mean()})
        rows[-1] |= {"low": ends[0], "high": ends[1], "n_trunks": own["replicate"].nunique()}
    means = pd.DataFrame(rows).sort_values(x)
    own_colour = colour if colour is not None else ink()
    axes.axhline(0.0, color=ink(), linewidth=0.9)
    if colour is None:
        if not single:
            axes.plot(gaps[x], gaps[column], "o", color=HAZE, markersize=3, alpha=0.7, label="one trunk")
        axes.fill_between(
            means[x],
            means["low"],
            means["high"],
            color=HAZE,
            alpha=0.25,
            label="95 % t interval",
            linewidth=0,
        ) if means["low"].notna().any() else None
    else:
        ends = (means["mean_gap"] - means["low"], means["high"] - means["mean_gap"])
        axes.errorbar(
            means[x], means["mean_gap"], yerr=ends, color=own_colour, fmt="none", elinewidth=1, capsize=2
        )
    axes.plot(
        means[x],
        means["mean_gap"],
        marker=marker,
        color=own_colour,
        markerfacecolor=own_colour if colour is not None else page(),
        label="the trunk" if single and colour is None else label,
        zorder=3,
    )
    each = gaps[[x, group, "replicate", column]].rename(columns={column: "gap"})
    return pd.concat([each, means], ignore_index=True).assign(panel=f"{name} gap")


def _interval_words(gaps: pd.DataFrame) -> str:
    n = gaps["replicate"].nunique()
    if n < 3:
        return "No interval: it takes three trunks."
    return f"Intervals: 95 %, t over {n} trunks."
