"""The main figure: final accuracy against sunk FLOPs, with *continued* and scratch beside every method."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from analysis.arms import budget_rule, standard_error
from analysis.figures.style import (
    HAZE,
    Look,
    empty,
    f_c_axis,
    flops_scale,
    ink,
    legend_columns,
    looks,
    new_figure,
    of_trunks,
    one_f_c,
    page,
)

_CONTROLS = {
    "continued": Look("", "o", (0, (4, 2)), False),
    "scratch, equal extra": Look("", "*", (0, (1, 1.5)), False),
    "scratch, equal total": Look("", "d", (0, (1, 1.5)), False),
}


def accuracy_against_sunk_flops(cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """Final accuracy (left) and net = final − continued (right) against sunk FLOPs, one line per arm.

    Points are means over trunks; bars are one standard error: of the evaluation for one trunk, over
    trunks for more. A control stands at the sunk FLOPs of the cells that it serves.
    """
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    if grown.empty:
        return empty("No finished grown cell: nothing to draw.")
    table = drawn(grown)
    n_trunks = int(grown["replicate"].nunique())
    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    scale, unit = flops_scale(table["sunk_flops"])
    arms = looks(list(dict.fromkeys(grown["arm"])))
    styles = {name: Look(ink(), s.marker, s.line, s.filled) for name, s in _CONTROLS.items()} | arms
    for axes, panel in ((left, "final accuracy"), (right, "net")):
        part = table[table["panel"] == panel]
        series = list(dict.fromkeys(part["series"]))
        for nth, name in enumerate(series):
            _draw(axes, part[part["series"] == name], styles[name], name, scale, nth - (len(series) - 1) / 2)
        axes.set_xlabel(f"sunk FLOPs ({unit})")
        axes.set_xlim(-0.04 * table["sunk_flops"].max() / scale, 1.06 * table["sunk_flops"].max() / scale)
        f_c_axis(axes, scale, one_f_c(grown), "sunk / $F_c$")
    chance = grown["chance"].mean()
    if np.isfinite(chance):
        left.axhline(100 * chance, color=ink(), linewidth=0.9, linestyle=(0, (1, 3)), label="chance")
    left.set_ylabel("final accuracy (%)")
    right.axhline(0.0, color=ink(), linewidth=0.9)
    right.set_ylabel("net: final − continued (points)")
    if not (table["panel"] == "net").any():
        right.text(0.5, 0.5, "no continued trunk to compare with", ha="center", transform=right.transAxes)
    handles, labels = left.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "chance")
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        ncols=legend_columns(labels),
    )
    table.attrs["caption"] = _caption(grown, n_trunks)
    return table, figure


def main_effect_with_sunk_area(cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F1: final accuracy against sunk FLOPs at one extra budget, above the area of what was spent on each.

    Beside every arm *continued* and scratch. A `ValueError` where the extra budget is not one and fixed, or
    below two growth steps.
    """
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    rule, levels = budget_rule(cells)
    if grown["growth_step"].nunique() < 2 or rule != "extra" or levels.nunique() > 1:
        raise ValueError("The main effect takes two growth steps or more at one fixed extra budget.")
    table = drawn(grown)
    table = table[table["panel"] == "final accuracy"].drop(columns="panel")
    spent = grown.groupby("sunk_flops")["extra_flops"].mean().reset_index()
    figure = new_figure(7.2, 5.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    scale, unit = flops_scale(grown["total_flops"])
    arms = looks(list(dict.fromkeys(grown["arm"])))
    styles = {name: Look(ink(), s.marker, s.line, s.filled) for name, s in _CONTROLS.items()} | arms
    series = list(dict.fromkeys(table["series"]))
    for nth, name in enumerate(series):
        own = table[table["series"] == name]
        _draw(above, own, styles[name], name, scale, nth - (len(series) - 1) / 2)
    x, sunk, extra = (spent[name] / scale for name in ("sunk_flops", "sunk_flops", "extra_flops"))
    x, sunk, extra = (np.r_[first, values] for first, values in ((0.0, x), (0.0, sunk), (extra[0], extra)))
    below.fill_between(x, 0, sunk, color=HAZE, alpha=0.45, linewidth=0, label="sunk before the growth")
    below.fill_between(
        x, sunk, sunk + extra, color="#E69F00", alpha=0.6, linewidth=0, label="extra, after the growth"
    )
    above.set_ylabel("final accuracy (%)")
    below.set_ylabel(f"FLOPs spent\n({unit})")
    below.set_xlabel(f"sunk FLOPs ({unit})")
    below.set_xlim(-0.03 * x.max(), 1.04 * x.max())
    below.set_ylim(bottom=0)
    f_c_axis(above, scale, one_f_c(grown), "sunk / $F_c$")
    found = [axes.get_legend_handles_labels() for axes in (above, below)]
    handles, labels = ([*a, *b] for a, b in zip(*found, strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, legend_columns(labels)))
    n_trunks = int(grown["replicate"].nunique())
    table["extra_flops"] = table["sunk_flops"].map(spent.set_index("sunk_flops")["extra_flops"])
    table.attrs["caption"] = (
        _caption(grown, n_trunks).replace(
            "Final accuracy against sunk FLOPs, and net = final − continued.",
            f"Final accuracy with {spent['extra_flops'].mean():.3g} extra FLOPs, by what was sunk before.",
        )
        + " Below: the FLOPs that each grown cell has in it; scratch has the upper area alone."
    ).replace("; the two evaluations of a net are taken as independent", "")
    return table, figure


def drawn(grown: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error per panel, series and sunk FLOPs, as accuracies in per cent."""
    parts = []
    for arm, own in grown.groupby("arm", sort=False):
        parts.append(_means(own, "final_acc", "final_acc_se").assign(panel="final accuracy", series=arm))
        net = own[own["net"].notna()]
        if len(net):
            parts.append(_means(net, "net", "net_se").assign(panel="net", series=arm))
    scratch = grown[grown["scratch_extra_acc"].notna()]
    for name, prefix, source in (
        ("continued", "continued", grown[grown["continued_acc"].notna()]),
        ("scratch, equal total", "scratch_total", grown[grown["scratch_total_acc"].notna()]),
        ("scratch, equal extra", "scratch_extra", _scratch_at(scratch)),
    ):
        if len(source):
            own = source.drop_duplicates(["replicate", "sunk_flops", f"{prefix}_id"])
            means = _means(own, f"{prefix}_acc", f"{prefix}_acc_se")
            parts.append(means.assign(panel="final accuracy", series=name))
    table = pd.concat(parts, ignore_index=True)
    return table[["panel", "series", "sunk_flops", "mean_pct", "se_pct", "n_trunks"]]


def _scratch_at(cells: pd.DataFrame) -> pd.DataFrame:
    """Where all cells of a trunk share one scratch control it stands at sunk = 0, else beside each."""
    shared = cells.groupby("replicate")["scratch_extra_id"].nunique().max() == 1 if len(cells) else False
    return cells.assign(sunk_flops=0.0) if shared else cells


def _means(own: pd.DataFrame, value: str, error: str) -> pd.DataFrame:
    rows = []
    for sunk, at in own.groupby("sunk_flops"):
        per_trunk = at.groupby("replicate")[value].mean()
        n = len(per_trunk)
        se = standard_error(per_trunk, float(np.sqrt((at[error] ** 2).mean())))
        rows.append(
            {"sunk_flops": sunk, "mean_pct": 100 * per_trunk.mean(), "se_pct": 100 * se, "n_trunks": n}
        )
    return pd.DataFrame(rows)


def _draw(axes: Axes, part: pd.DataFrame, look: Look, name: str, scale: float, nth: float) -> None:
    """One series; series are set apart sideways by 2.5 points on paper, so that bars do not cover bars."""
    alone = len(part) == 1 and part["sunk_flops"].iloc[0] == 0.0
    shift = ScaledTranslation(0.0 if alone else 2.5 * nth / 72, 0, axes.figure.dpi_scale_trans)
    container = axes.errorbar(
        part["sunk_flops"] / scale,
        part["mean_pct"],
        yerr=part["se_pct"].fillna(0.0),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        markerfacecolor=look.colour if look.filled else page(),
        elinewidth=0.9,
        capsize=2,
        label=name,
    )
    for artist in container.get_children():
        artist.set_transform(axes.transData + shift)


def _caption(grown: pd.DataFrame, n_trunks: int) -> str:
    bars = (
        "one standard error of the evaluation (not of training)"
        if n_trunks == 1
        else f"one standard error over {n_trunks} trunks"
    )
    items = grown["n"].dropna()
    each = f" on {items.min():.0f} items each" if len(items) else ""
    return (
        f"Final accuracy against sunk FLOPs, and net = final − continued. {len(grown)} grown cells{each}, "
        f"{of_trunks(grown)}. Bars: {bars}; the two evaluations of "
        "a net are taken as independent. Scratch with equal extra FLOPs stands at sunk = 0 if shared."
    )
