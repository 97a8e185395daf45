"""Where growing pays: the budget map (N1), and how much of the sunk FLOPs a growth recycles (N5)."""

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import Look, ink, looks, new_figure, page

_DIVERGING = ("#D55E00", "#0072B2")  # scratch ahead, growing ahead
_PHASES = ("o", "s", "D", "^")


def budget_map(gains: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """N1: grown − scratch (points) over the share of a total that is sunk, with the contours of zero.

    Columns `sunk_share` (0 to 1), `total_flops`, `difference`, `low`, `high`: a grid; what is NaN stays
    blank. The solid contour is the best estimate of break-even, the dotted ones where an end of the interval
    is zero. A `ValueError` below two values on either axis.
    """
    table = _checked(gains, ["sunk_share", "total_flops", "difference", "low", "high"])
    if table["sunk_share"].nunique() < 2 or table["total_flops"].nunique() < 2:
        raise ValueError("A map needs two sunk shares and two totals at the least: there are fewer.")
    figure = new_figure(6.8, 4.6)
    axes = figure.subplots()
    grids = {
        name: table.pivot_table(index="total_flops", columns="sunk_share", values=name).to_numpy(float)
        for name in ("difference", "low", "high")
    }
    x = 100 * np.sort(table["sunk_share"].unique())
    y = np.sort(table["total_flops"].unique())
    values = np.ma.masked_invalid(grids["difference"])
    most = float(np.abs(values).max()) or 1.0
    middle = page()
    colours = LinearSegmentedColormap.from_list("gain", [_DIVERGING[0], middle, _DIVERGING[1]])
    mesh = axes.pcolormesh(
        x, y, values, cmap=colours, norm=TwoSlopeNorm(0.0, -most, most), shading="nearest", rasterized=True
    )
    axes.set_yscale("log")
    entries = {}
    for name, style, label in (
        ("difference", "solid", "grown = scratch"),
        ("low", "dotted", "95 % interval of that"),
        ("high", "dotted", ""),
    ):
        grid = np.ma.masked_invalid(grids[name])
        if grid.count() and grid.min() < 0 < grid.max():
            axes.contour(x, y, grid, levels=[0.0], colors=ink(), linestyles=style, linewidths=1.6)
            if label:
                entries[label] = Line2D([], [], color=ink(), linestyle="-" if style == "solid" else ":")
    bar = figure.colorbar(mesh, ax=axes, aspect=28, pad=0.02)
    bar.set_label(gains.attrs.get("label", "grown − scratch (points of accuracy)"))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.grid(False)
    axes.grid(False)
    axes.set_xlabel("share of the total that was sunk (%)")
    axes.set_ylabel("total FLOPs")
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=2)
    share = 100 * float((table["difference"] > 0).mean())
    decided = 100 * float(((table["low"] > 0) | (table["high"] < 0)).mean())
    table.attrs["caption"] = (
        f"{gains.attrs.get('what', 'Final accuracy grown less that from scratch')} at equal total FLOPs, on "
        f"{len(table)} budgets. Blue: "
        f"growing is ahead ({share:.0f} % of the map); the interval excludes zero on {decided:.0f} % of it. "
        "Solid: no difference; dotted: where one end of the 95 % interval is zero, so between them nothing "
        "is decided. " + str(gains.attrs.get("caption", ""))
    ).strip()
    return table, figure


def recycling_efficiency(efficiency: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """N5: ρ, the FLOPs from scratch that one sunk FLOP is worth, by arm and phase, with its interval.

    Columns `arm`, `phase`, `rho`, `low`, `high`; a row without an interval is drawn without one. A
    `ValueError` for no row.
    """
    table = _checked(efficiency, ["arm", "phase", "rho", "low", "high"])
    arms, phases = list(dict.fromkeys(table["arm"])), list(dict.fromkeys(table["phase"]))
    styles = looks(arms) | {"continued": Look(ink(), "D", "-", False)}
    figure = new_figure(7.2, 1.3 + 0.42 * len(arms) * max(1.0, 0.6 * len(phases)))
    axes = figure.subplots()
    for _, row in table.iterrows():
        nth = phases.index(row["phase"])
        y = arms.index(row["arm"]) + 0.5 * ((nth + 0.5) / len(phases) - 0.5)
        colour = styles[row["arm"]].colour
        if np.isfinite(row["low"]) and np.isfinite(row["high"]):
            axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(
            row["rho"],
            y,
            _PHASES[nth % 4],
            color=colour,
            markersize=7,
            markerfacecolor=page() if nth else colour,
        )
    for value, label, side in ((0.0, "sunk FLOPs lost", "right"), (1.0, "as good as new ones", "left")):
        axes.axvline(value, color=ink(), linewidth=0.9, linestyle=(0, (1, 2)))
        axes.annotate(
            label,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2 if side == "left" else -2, 3),
            textcoords="offset points",
            fontsize=7.5,
            ha=side,
        )
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    low, high = (float(np.nanmin(table[["rho", "low"]])), float(np.nanmax(table[["rho", "high"]])))
    low, high = min(low, 0.0), max(high, 1.0)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.28 * (high - low))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("recycling efficiency ρ")
    if len(phases) > 1:
        entries = [
            Line2D(
                [],
                [],
                color=ink(),
                marker=_PHASES[i % 4],
                linestyle="",
                markerfacecolor=page() if i else ink(),
            )
            for i in range(len(phases))
        ]
        figure.legend(entries, phases, loc="outside lower center", ncols=len(phases))
    without = int(table["low"].isna().sum())
    fits, ways = (
        f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((len(table), "fit"), (len(arms), "arm"))
    )
    table.attrs["caption"] = (
        "Recycling efficiency ρ of E + A·(ρ·S + X)^(−a): what one sunk FLOP is worth in FLOPs spent on the "
        f"grown model. {fits} of {ways}; lines: 95 % "
        "intervals"
        + (f", {without} without one. " if without else ". ")
        + str(efficiency.attrs.get("caption", ""))
    ).strip()
    return table, figure


def _checked(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(f"The table lacks {', '.join(missing)}; its columns are {', '.join(frame.columns)}.")
    value = "difference" if "difference" in columns else "rho"
    table = frame[frame[value].notna()][columns].reset_index(drop=True)
    if table.empty:
        raise ValueError(f"No row of the table has a {value}: there is nothing to draw.")
    return table
