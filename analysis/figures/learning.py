"""How each task family rises along the trunks, and each of its levels."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from analysis.curves import ALL_FAMILIES, MEAN
from analysis.figures.style import (
    HAZE,
    empty,
    f_c_axis,
    ink,
    legend_columns,
    new_figure,
    of_trunks,
    sequential,
)

MAX_LEVELS = 12
_MAX_COLUMNS = 5
_NEAR = 1.2  # levels have few items: their lines are means over FLOPs within this factor
_LEVELS = "levels"
_CHANCE = (0, (1, 3))
_SHORT = 1.5  # decades of FLOPs
_FEW = 10  # so many points or fewer are marked: one alone makes no line


def learning_curves_by_family(families: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """Accuracy of the trunks against their FLOPs, both their mean and each family, below it its levels.

    Dark: the mean over trunks; thin: each trunk, or of a single one a band of ± one standard error of the
    evaluation. Levels are drawn where a family has 2 to `MAX_LEVELS`, lowest to highest in one colour map.
    """
    families = families[families["flops"] > 0]
    if families.empty:
        return empty("No trunk was evaluated along its way: nothing to draw.")
    table = _drawn(families)
    figure, panels = _panels(table)
    for (family, what), axes in panels.items():
        own = table[table["family"] == family]
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axhline(own["chance_pct"].mean(), color=ink(), linewidth=0.9, linestyle=_CHANCE)
        if what == MEAN:
            _draw_trunks(axes, own[own["level"] == MEAN], sorted(families["trunk_id"].unique()))
        else:
            _draw_levels(axes, own[own["level"] != MEAN])
    _whole_decades(next(iter(panels.values())), table["flops"])
    _label(panels, (families["flops"] / families["f_c"]).astype(float))
    entries = _entries(families["trunk_id"].nunique())
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=legend_columns(list(entries))
    )
    table.attrs["caption"] = _caption(families, any(what == _LEVELS for _, what in panels))
    return table, figure


def _drawn(families: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in per cent per family, level and FLOPs: each trunk, and the mean where all have one."""
    alone = families.loc[families["family"] != ALL_FAMILIES, "family"].nunique() == 1
    rows = families[families["family"] != ALL_FAMILIES] if alone else families
    parts, single = [], rows["trunk_id"].nunique() == 1
    for (family, level), own in rows.groupby(["family", "level"], sort=False):
        wide = 100 * own.pivot_table(index="flops", columns="trunk_id", values="acc", aggfunc="last")
        mean, measured = wide.mean(axis=1, skipna=False), own.groupby("flops")
        wide.insert(0, "f_c", measured["f_c"].first())
        wide.insert(1, "mean", mean)
        wide.insert(2, "near", _near(mean) if level != MEAN else np.nan)
        wide.insert(3, "se", 100 * measured["se"].last() if single else np.nan)
        wide.insert(4, "chance_pct", 100 * own["chance"].mean())
        parts.append(wide.reset_index().assign(family=str(family), level=str(level)))
    table = pd.concat(parts, ignore_index=True).rename_axis(None, axis=1)
    return table[["family", "level", *(c for c in table.columns if c not in ("family", "level"))]]


def _near(mean: pd.Series) -> pd.Series:
    """Mean over the points whose FLOPs are within a factor `_NEAR`: as smooth along all of a log axis."""
    known = mean.dropna()
    flops = known.index.to_numpy(float)
    close = np.abs(np.log(flops[:, None] / flops)) <= np.log(_NEAR)
    return pd.Series(close @ known.to_numpy(float) / close.sum(axis=1), known.index).reindex(mean.index)


def _panels(table: pd.DataFrame) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """The axes of (family, mean or levels): their mean on the left, as high as all others together."""
    names = [name for name in dict.fromkeys(table["family"]) if name != ALL_FAMILIES]
    counts = table[table["near"].notna()].groupby("family")["level"].nunique()
    graded = [name for name in names if 2 <= counts.get(name, 0) <= MAX_LEVELS]
    if not names:
        figure = new_figure(4.8, 3.2)
        return figure, {(ALL_FAMILIES, MEAN): figure.subplots()}
    if len(names) == 1:
        figure = new_figure(4.8 * (1 + len(graded)), 3.2)
        axes = np.atleast_1d(figure.subplots(1, 1 + len(graded), sharex=True, sharey=True))
        return figure, dict(zip([(names[0], MEAN), (names[0], _LEVELS)], axes, strict=False))
    blocks = int(np.ceil(len(names) / _MAX_COLUMNS))
    columns, height = int(np.ceil(len(names) / blocks)), 2 if graded else 1
    figure = new_figure(9.6, 0.9 + 1.9 * max(1.4, blocks * height))
    grid = figure.add_gridspec(blocks * height, 1 + columns, width_ratios=[1.5] + [1] * columns)
    first = figure.add_subplot(grid[:, 0])
    panels = {(ALL_FAMILIES, MEAN): first}
    for i, name in enumerate(names):
        row, column = height * (i // columns), 1 + i % columns
        for below, what in enumerate([MEAN] + [_LEVELS] * (name in graded)):
            axes = figure.add_subplot(grid[row + below, column], sharex=first, sharey=first)
            axes.tick_params(labelleft=column == 1, labelbottom=below == (name in graded))
            panels[name, what] = axes
    return figure, panels


def _whole_decades(axes: Axes, flops: pd.Series) -> None:
    """Widens a short axis to powers of ten, so that both its scales have a number on it."""
    low, high = np.log10(flops.min()), np.log10(flops.max())
    if high - low < _SHORT:
        axes.set_xlim(10 ** np.floor(low), 10 ** (np.floor(high) + 1))


def _label(panels: dict[tuple[str, str], Axes], f_c: pd.Series) -> None:
    """Names of axes once, at the first panel; on its line the families and, if all trunks share it, F_c."""
    first = next(iter(panels.values()))
    first.set_ylabel("accuracy (%)")
    first.set_xlabel("FLOPs spent on the trunk")
    shared = f_c.iloc[0] if np.allclose(f_c, f_c.iloc[0]) else None
    for (family, what), axes in panels.items():
        if what == MEAN:
            place = axes.get_subplotspec()
            top = shared is not None and place is not None and place.rowspan.start == 0
            axes.set_title(
                "mean" if family == ALL_FAMILIES else family, **({"y": 1.0, "pad": 20} if top else {})
            )
            if top:
                f_c_axis(axes, 1.0, shared, "FLOPs / $F_c$" if axes is first else "")
                axes.child_axes[0].xaxis.get_label().set(horizontalalignment="right", x=1.0)


def _draw_trunks(axes: Axes, own: pd.DataFrame, trunks: list[str]) -> None:
    if len(trunks) == 1:
        low, high = own["mean"] - own["se"], own["mean"] + own["se"]
        axes.fill_between(own["flops"], low, high, color=HAZE, alpha=0.3, linewidth=0)
    else:
        for trunk in trunks:
            line = own[own[trunk].notna()]
            axes.plot(line["flops"], line[trunk], color=HAZE, linewidth=0.7, alpha=0.8, **_marked(line))
    axes.plot(own["flops"], own["mean"], color=ink(), linewidth=1.3, **_marked(own))


def _draw_levels(axes: Axes, own: pd.DataFrame) -> None:
    """One line per level; above the panel the colours of the lowest and of the highest."""
    levels = list(dict.fromkeys(own["level"]))
    colours = sequential()(np.linspace(0, 1, len(levels)))
    for level, colour in zip(levels, colours, strict=True):
        line = own[own["level"] == level]
        axes.plot(line["flops"], line["near"], color=colour, linewidth=1.1, **_marked(line))
    ends = [Line2D([], [], color=colours[i], linewidth=2) for i in (0, -1)]
    tight: dict[str, Any] = {"handlelength": 1.0, "handletextpad": 0.5, "columnspacing": 1.0}
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0.97), "ncols": 2}
    tight |= {"borderpad": 0.2, "borderaxespad": 0.0}
    axes.legend(ends, [f"level {levels[0]}", f"to {levels[-1]}"], **above, **tight)


def _marked(line: pd.DataFrame) -> dict[str, Any]:
    return {"marker": "o", "markersize": 2.5} if len(line) <= _FEW else {}


def _entries(n_trunks: int) -> dict[str, Line2D | Patch]:
    dark = Line2D([], [], color=ink())
    chance = Line2D([], [], color=ink(), linewidth=0.9, linestyle=_CHANCE)
    if n_trunks == 1:
        band = Patch(color=HAZE, alpha=0.3, linewidth=0)
        return {"the trunk": dark, "± one standard error": band, "chance": chance}
    return {"mean over trunks": dark, "each trunk": Line2D([], [], color=HAZE), "chance": chance}


def _caption(families: pd.DataFrame, graded: bool) -> str:
    each = families[(families["family"] != ALL_FAMILIES) & families["n"].notna()]["n"]
    few, many = (f"{each.min():.0f}", f"{each.max():.0f}") if len(each) else ("an unknown number of",) * 2
    items = f"{few if few == many else f'{few} to {many}'} items per family"
    suite = "probe, a smaller suite" if (families["source"] == "probe").any() else "full suite"
    one = families["trunk_id"].nunique() == 1
    lines = (
        "Line: the trunk; band: ± one standard error of the evaluation (not of training)"
        if one
        else "Dark: the mean over trunks, as far as all of them went; thin: each trunk"
    )
    levels = (
        f" Coloured: the levels that the data grades a family by, not always from easy to hard; their lines "
        f"are means over {'' if one else 'trunks and over '}FLOPs within a factor of {_NEAR:g}."
    )
    return (
        f"Accuracy of the {suite} ({items}) along {of_trunks(families)} from random init, per task family. "
        f"{_averaged(families)}{lines}; dotted: chance.{levels if graded else ''}"
    )


def _averaged(families: pd.DataFrame) -> str:
    """Which families the mean is of, where it leaves one out."""
    lists = [names.split() for names in families["averaged"].unique()]
    every = set(families["family"]) - {ALL_FAMILIES}
    if len(lists) != 1 or set(lists[0]) == every:
        return ""
    return f"The mean is of {', '.join(lists[0])}. "
