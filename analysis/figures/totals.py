"""Along total FLOPs, the trunk's own included: one fixed total (F12), and the chain of growths (F13)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.arms import budget_rule
from analysis.figures.arms import mean_and_error, series_of, short_names, sunk_words
from analysis.figures.curves import smooth
from analysis.figures.style import (
    Look,
    by_sunk,
    f_c_axis,
    flops_scale,
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

_MAX_POINTS = 250
_DASHED, _DOTTED = (0, (4, 2)), (0, (1, 1.2))
_ORDER = {"trunk": 0, "continued": 2, "scratch": 3, "growth": 4}  # in the legend; arms are 1
_CONTROLS = {"trunk": ("o", "-"), "continued": ("D", _DASHED), "scratch": ("*", _DOTTED)}


def fixed_total(
    curves: pd.DataFrame, trunks: pd.DataFrame, cells: pd.DataFrame
) -> tuple[pd.DataFrame, Figure]:
    """F12: loss and accuracy along total FLOPs, and final accuracy against the share of them sunk.

    Share 0 is scratch with the same total, share 1 the trunk continued to it (never grown). A `ValueError`
    where the grown cells do not hold one total budget.
    """
    rule, levels = budget_rule(cells)
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    if grown.empty or rule != "total" or levels.nunique() > 1:
        raise ValueError("The grown cells do not share one total budget: this figure is of a fixed total.")
    own = series_of(_in_total(curves[curves["kind"].isin(["branch", "scratch_total", "scratch"])]))
    scratch = curves[curves["kind"].isin(["scratch_total", "scratch"])]
    own = pd.concat([own[own["kind"] == "branch"], _in_total(scratch).assign(series="scratch")])
    table = _means(own, ["series", "sunk_flops"])
    arms = list(dict.fromkeys(own.loc[own["kind"] == "branch", "series"]))
    trunk = _trunk_means(trunks, upto=float(own["sunk_flops"].max()))
    figure = new_figure(9.8, 3.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    whole = _Axis((left, middle), "total", table)
    norm, colours, styles = by_sunk(own["sunk_flops"]), sequential(), looks(arms)
    _draw(whole, trunk, Look(ink(), "", "-", True))
    for (name, _), part in table.groupby(["series", "sunk_flops"], sort=False):
        sunk = float(part["sunk_flops"].iloc[0])
        look = styles.get(str(name), Look("", "*", _DOTTED, True))
        look = Look(colours(norm(sunk)), look.marker, look.line, look.filled)
        _draw(whole, part, look)
    shares = _shares(grown)
    _against_share(right, shares, styles)
    _finish(whole, table, one_f_c(cells))
    sunk_bar(figure, [left, middle], norm, whole.scale, whole.unit)
    handles, labels = right.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: (labels[i] not in arms, labels[i]))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    figure.legend(
        [Line2D([], [], color=ink()), *handles],
        ["trunk", *labels],
        loc="outside lower center",
        ncols=legend_columns(labels) + 1,
    )
    table = pd.concat([trunk.assign(series="trunk"), table, shares.assign(panel="share")], ignore_index=True)
    total = grown["total_flops"].mean()
    table.attrs["caption"] = (
        f"One total budget of about {total:.3g} FLOPs, more or less of it sunk before the growth. "
        f"{len(grown)} grown cells, {of_trunks(grown)}. Haze and line: training loss of each step and its "
        f"running mean; points: accuracy ({_suites(own)}). Ink: the trunk. Right: final accuracy, bars one "
        "standard error " + ("over trunks" if grown["replicate"].nunique() > 1 else "of the evaluation") + "."
    )
    return table, figure


def chain_along_total_flops(curves: pd.DataFrame, trunks: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F13: trunk → first growth → second growth, with *continued* and scratch: along total FLOPs (above), and
    along those after the first growth alone (below), of which scratch has as many.

    At the latest growth step of a chain; growths are triangles. A `ValueError` where there is no chain.
    """
    own = _of_chain(curves)
    table = _means(own, ["series"])
    sunk = float(own.loc[own["kind"] == "branch", "sunk_flops"].mean())
    trunk = _trunk_means(trunks, upto=sunk)
    begins = np.where(table["series"] == "scratch", 0.0, sunk)
    table["extra_flops"] = table["total_flops"] - begins
    figure = new_figure(9.6, 7.4)
    panels = figure.subplots(2, 2)
    whole, after = (_Axis(panels[0], "total", table), _Axis(panels[1], "extra", table))
    names = [n for n in dict.fromkeys(table["series"]) if n not in _CONTROLS]
    styles = looks(names) | {n: Look(ink(), m, line, False) for n, (m, line) in _CONTROLS.items()}
    entries: dict[str, Any] = {}
    for name, part in [("trunk", trunk), *table.groupby("series", sort=False)]:
        look = styles[str(name)]
        for axis in (whole, after) if name != "trunk" else (whole,):
            _draw(axis, part, look)
        face = look.colour if look.filled else page()
        entries[str(name)] = Line2D(
            [], [], color=look.colour, marker=look.marker, linestyle=look.line, markerfacecolor=face
        )
    events = _events(table, sunk)
    events["extra_flops"] = events["total_flops"] - sunk
    for axis in (whole, after):
        _draw_events(axis, pd.concat([trunk, table]), events)
        _finish(axis, table, one_f_c(curves))
    entries["growth"] = Line2D([], [], color="#D55E00", marker="v", linestyle="")
    entries = dict(sorted(entries.items(), key=lambda item: _ORDER.get(item[0], 1)))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3)
    shown = own[own["kind"] == "branch"]
    table = pd.concat(
        [trunk.assign(series="trunk"), table, events.drop(columns="nth").assign(series="growth")],
        ignore_index=True,
    )
    table.attrs["caption"] = (
        f"The chain of growths along all FLOPs spent, and below along those after the first growth, "
        f"{sunk_words(shown).replace('$', '')}. "
        f"{shown['cell_id'].nunique()} grown cells, {of_trunks(shown)}. Haze and line: training loss and its "
        f"running mean; points: accuracy ({_suites(own)}), bars at the ends: one "
        "standard error. Scratch has the final "
        "architecture and the extra FLOPs alone; continued ends at the same total as the arm it serves."
    )
    return table, figure


def _of_chain(curves: pd.DataFrame) -> pd.DataFrame:
    """The chains of the latest growth step, what grew once as they begin, and their controls."""
    grown = curves[curves["kind"] == "branch"]
    chains = grown[grown["arm"].str.contains(" → ", regex=False)]
    if chains.empty:
        raise ValueError("No cell grows twice: there is no chain to draw.")
    step = chains["growth_step"].max()
    chains = chains[chains["growth_step"] == step]
    beginnings = {arm.split(",")[0].split(" → ")[0] for arm in chains["arm"].unique()}
    stages = grown[(grown["growth_step"] == step) & grown["arm"].str.split(",").str[0].isin(beginnings)]
    ids = set(chains["cell_id"]) | set(stages["cell_id"])
    own = curves[curves["cell_id"].isin(ids) | (curves["kind"] != "branch")]
    scratch = own["kind"].isin(["scratch", "scratch_extra"])
    own = own[scratch | (own["growth_step"] == step)]
    arms = list(pd.concat([stages, chains])["arm"].unique())
    return _in_total(series_of(own, short_names(arms)))


def _in_total(curves: pd.DataFrame) -> pd.DataFrame:
    """FLOPs from random init: what a continued trunk had sunk at the growth counts as well."""
    sunk = curves["sunk_flops"].astype(float).where(~curves["kind"].str.startswith("scratch"), 0.0)
    return curves.assign(total_flops=sunk + curves["extra_flops"].astype(float), sunk_flops=sunk)


def _means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means over trunks at equal steps of one part of the path, smoothed part by part and thinned."""
    begins = rows.groupby(["cell_id", "trajectory_id"])["total_flops"].transform("min")
    rows = rows.assign(begins=begins)
    rows["nth"] = rows.groupby("cell_id")["begins"].rank("dense")
    end = rows.groupby("cell_id")["total_flops"].transform("max")
    rows = rows[(rows["source"] != "full") | (rows["total_flops"] == end)]
    rows["variance"] = rows["acc_se"].astype(float) ** 2
    every = [*keys, "kind", "source", "nth", "phase", "step"]
    table = rows.groupby(every, sort=False, dropna=False).agg(
        total_flops=("total_flops", "mean"),
        raw_loss=("loss", "mean"),
        acc=("acc", "mean"),
        spread=("acc", "std"),
        variance=("variance", "mean"),
        n_trunks=("replicate", "nunique"),
    )
    table = table.reset_index()
    error = np.fmax(
        table.pop("spread").astype(float).fillna(0.0), np.sqrt(table.pop("variance").astype(float))
    )
    table["acc_se"] = error / np.sqrt(table["n_trunks"])
    table = table.sort_values([*keys, "nth", "source", "total_flops"], kind="stable", ignore_index=True)
    parts = []
    for _, part in table.groupby([*keys, "nth", "source", "phase"], sort=False):
        train = part["source"].iloc[0] == "train"
        part = part.assign(smoothed=smooth(part["raw_loss"]) if train else np.nan)
        parts.append(part.iloc[:: max(1, len(part) // _MAX_POINTS)] if train else part)
    return pd.concat(parts, ignore_index=True)


def _trunk_means(trunks: pd.DataFrame, upto: float) -> pd.DataFrame:
    """The trunk as far as it was sunk, in the columns of `_means`."""
    own = trunks[(trunks["flops"] <= 1.001 * upto) & (trunks["source"] != "full")]
    own = own.rename(columns={"flops": "total_flops"}).assign(
        cell_id=own["trunk_id"], kind="trunk", phase="trunk", series="trunk"
    )
    return _means(own, ["series"]) if len(own) else own.assign(raw_loss=[], smoothed=[])


class _Axis:
    """A panel of loss and one of accuracy along the same FLOPs: "total" or "extra"."""

    def __init__(self, panels: Sequence[Axes], flops: str, table: pd.DataFrame):
        self.loss, self.accuracy = panels
        self.name, self.x = flops, f"{flops}_flops"
        self.end = float(table[self.x].max())
        self.scale, self.unit = flops_scale(table[self.x])


def _draw(axis: _Axis, part: pd.DataFrame, look: Look) -> None:
    train, x = part[part["source"] == "train"], axis.x
    axis.loss.plot(train[x] / axis.scale, train["raw_loss"], color=look.colour, linewidth=0.5, alpha=0.3)
    axis.loss.plot(
        train[x] / axis.scale,
        train["smoothed"],
        color=look.colour,
        linestyle=look.line,
        linewidth=1.3,
        zorder=3,
    )
    for source, size, line in (("probe", 3, look.line), ("full", 7, "")):
        own = part[part["source"] == source]
        axis.accuracy.errorbar(
            own[x] / axis.scale,
            100 * own["acc"],
            yerr=100 * own["acc_se"].fillna(0.0) if source == "full" else None,
            color=look.colour,
            marker=look.marker if source == "full" or look.marker else "",
            markersize=size,
            markerfacecolor=look.colour if look.filled else page(),
            linestyle=line,
            linewidth=0.9,
            elinewidth=0.7,
            zorder=4 if size == 7 else 2,
        )


def _finish(axis: _Axis, table: pd.DataFrame, f_c: float | None) -> None:
    axis.loss.set_ylabel("training loss (nats per token)")
    axis.accuracy.set_ylabel("accuracy (%)")
    grown = table.loc[(table["kind"] == "branch") & table["smoothed"].notna(), "smoothed"]
    low, high = grown.min(), grown.quantile(0.98)
    axis.loss.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))
    for axes in (axis.loss, axis.accuracy):
        axes.set_xlabel(f"{axis.name} FLOPs ({axis.unit})")
        axes.set_xlim(0, 1.04 * axis.end / axis.scale)
        f_c_axis(axes, axis.scale, f_c, f"{axis.name} / $F_c$ of the trunk")


def _shares(grown: pd.DataFrame) -> pd.DataFrame:
    """Final accuracy against sunk / total, of each arm, of scratch (0) and of continued (1)."""
    rows = []

    def add(series: str, share: float, own: pd.DataFrame, value: str) -> None:
        mean, se, n = mean_and_error(own, value, f"{value}_se")
        if n:
            rows.append({"series": series, "sunk_share": share, "mean_pct": 100 * mean, "se_pct": 100 * se})
            rows[-1]["n_trunks"] = n

    for (arm, _), own in grown.groupby(["arm", "growth_step"], sort=False):
        add(str(arm), float((own["sunk_flops"] / own["total_flops"]).mean()), own, "final_acc")
    once = grown.drop_duplicates("scratch_total_id")
    add("scratch, equal total", 0.0, once, "scratch_total_acc")
    add("continued, never grown", 1.0, grown.drop_duplicates("continued_id"), "continued_acc")
    table = pd.DataFrame(rows)
    return table.sort_values(["series", "sunk_share"], kind="stable", ignore_index=True)


def _against_share(axes: Axes, shares: pd.DataFrame, styles: dict[str, Look]) -> None:
    for name, part in shares.groupby("series", sort=False):
        marker = "*" if "scratch" in str(name) else "D"
        look = styles.get(str(name), Look(ink(), marker, "", False))
        axes.errorbar(
            100 * part["sunk_share"],
            part["mean_pct"],
            yerr=part["se_pct"].fillna(0.0),
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            markersize=7,
            markerfacecolor=look.colour if look.filled else page(),
            capsize=2,
            elinewidth=0.9,
            label=name,
        )
    scratch = shares[shares["series"] == "scratch, equal total"]
    if len(scratch):
        axes.axhline(scratch["mean_pct"].iloc[0], color=ink(), linewidth=0.8, linestyle=_DOTTED)
    axes.set_xlabel("share of the total that was sunk (%)")
    axes.set_ylabel("final accuracy (%)")
    axes.set_xlim(-6, 106)


def _events(table: pd.DataFrame, sunk: float) -> pd.DataFrame:
    """The first growth, and every later one of a chain."""
    later = table[(table["kind"] == "branch") & (table["phase"] == "stable") & (table["nth"] > 1)]
    found = later.groupby(["series", "nth"])["total_flops"].min().reset_index()
    first = pd.DataFrame({"series": ["trunk"], "nth": [1.0], "total_flops": [sunk]})
    return pd.concat([first, found], ignore_index=True).rename(columns={"series": "grown"})


def _draw_events(axis: _Axis, rows: pd.DataFrame, events: pd.DataFrame) -> None:
    for axes, value, factor in ((axis.loss, "smoothed", 1.0), (axis.accuracy, "acc", 100.0)):
        axes.plot(
            events[axis.x] / axis.scale,
            [factor * _before(rows, value, event) for event in events.itertuples()],
            "v",
            color="#D55E00",
            markersize=9,
            zorder=5,
            clip_on=False,
            markeredgecolor=page(),
        )


def _before(rows: pd.DataFrame, value: str, event: Any) -> float:
    """The last value of the trunk or of the arm that is grown there: where the triangle stands."""
    own = rows[(rows["series"] == event.grown) & rows[value].notna()]
    own = own[own["nth"] < event.nth] if event.grown != "trunk" else own
    own = own[own["total_flops"] <= 1.001 * event.total_flops]
    return float(own.sort_values("total_flops")[value].iloc[-1]) if len(own) else float("nan")


def _suites(own: pd.DataFrame) -> str:
    measured = own[own["acc"].notna()]
    return " and ".join(f"{name}, {items(part)}" for name, part in measured.groupby("source", sort=False))
