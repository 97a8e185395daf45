"""What growing did to the function, part by part, and how experts of one origin came apart afterwards."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import (
    empty,
    flops_scale,
    ink,
    is_dark,
    legend_columns,
    looks,
    new_figure,
    of_trunks,
    ordered_looks,
    page,
)
from analysis.growths import JUMPS, distinct, records

MAX_PANELS = 12
_COLUMNS, _MAX_COLUMNS = 3, 5
_RISE, _FALL, _FALL_ON_DARK = "#D55E00", "#0072B2", "#56B4E9"


def function_preservation_waterfall(growths: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """Per growth that differs: the probe loss before, what each part added, and after, in nats per token.

    Bars stand on the loss before, on one scale for all panels; every change is written out, so that one of
    1e-6 can be read beside one of 1. A dash is a part that the operator does not have; a part that none of
    them has is left out.
    """
    whole = distinct(growths[growths["loss_before"].notna() & growths["loss_after"].notna()])
    if whole.empty:
        return empty("No growth was measured on a probe batch: nothing to draw.")
    steps = whole["growth_step"].unique()
    crowded = len(whole) > MAX_PANELS and len(steps) > 1
    shown = (whole[whole["growth_step"] == steps.max()] if crowded else whole)[:MAX_PANELS]
    shown = shown.sort_values(["title", "growth_step"], kind="stable")
    parts = [name for name in JUMPS if shown[name].notna().any()] or list(JUMPS[:1])
    table = pd.concat([_bars(one, parts) for one in records(shown)], ignore_index=True)
    columns = _columns(shown)
    rows = int(np.ceil(len(shown) / columns))
    width = max(2.1, 0.8 + 0.4 * (2 + len(parts)))
    figure = new_figure(max(4.8, width * columns), 0.3 + 2.1 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, one in zip(panels, records(shown), strict=False):
        own = (table["title"] == one["title"]) & (table["growth_step"] == one["growth_step"])
        _waterfall(axes, table[own])
        at = f", step {one['growth_step']:g}" if len(steps) > 1 else ""
        whole_words = ", ".join(
            words.replace(" ", "\N{NO-BREAK SPACE}") for words in f"{one['title']}{at}".split(", ")
        )
        lines = textwrap.wrap(whole_words, int(14.4 * width), break_long_words=False)
        name = "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
        predicted = one["exactness"].replace("_", " ")
        axes.set_title(f"{name}\npredicted: {predicted}", fontsize=8)
        ticks = ["before", *(part.replace("_", "\n") for part in parts), "after"]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
        axes.set_xlim(-0.7, len(ticks) - 0.3)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    low, high = table["bottom"].min(), table["top"].max()
    room = 0.22 * ((high - low) or 1e-6)
    panels[0].set_ylim(low - room, high + room)
    figure.supylabel("probe loss − that before growth\n(nats per token)", fontsize=9)
    table.attrs["caption"] = _waterfall_caption(growths, whole, shown)
    return table, figure


def change(value: float) -> str:
    """A signed change at two digits with a true minus: "+0.097", "−5.5e−6"; 0 is 0, and – is missing."""
    if not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    text = f"{value:+.2g}" if abs(value) >= 1e-3 else f"{value:+.1e}"
    return text.replace("e-0", "e-").replace("-", "−")


def _columns(shown: pd.DataFrame) -> int:
    """A column for each growth step where every way of growing has them all, so that a row is one way."""
    steps, ways = shown["growth_step"].nunique(), shown["title"].nunique()
    if ways > 1 and 1 < steps <= _MAX_COLUMNS and steps * ways == len(shown):
        return steps
    return min(_COLUMNS, len(shown))


def _bars(one: dict[str, Any], parts: list[str]) -> pd.DataFrame:
    """From where to where each bar goes, as loss less the loss before growth."""
    rows, level = [{"bar": "before", "change": 0.0, "bottom": 0.0, "top": 0.0}], 0.0
    for name in parts:
        own = one[name]
        ends = (level, level if np.isnan(own) else level + own)
        rows.append({"bar": name, "change": own, "bottom": min(ends), "top": max(ends)})
        level = ends[1]
    total = one["loss_after"] - one["loss_before"]
    rows.append({"bar": "after", "change": total, "bottom": min(0.0, total), "top": max(0.0, total)})
    table = pd.DataFrame(rows).assign(loss=np.nan, n_trunks=len(one["replicates"]))
    table.loc[table["bar"] == "before", "loss"] = one["loss_before"]
    table.loc[table["bar"] == "after", "loss"] = one["loss_after"]
    for name in ("exactness", "growth_step", "title"):
        table.insert(0, name, one[name])
    return table


def _waterfall(axes: Axes, bars: pd.DataFrame) -> None:
    axes.axhline(0.0, color=ink(), linewidth=0.8)
    level = 0.0
    for x, bar in enumerate(records(bars)):
        own, top, bottom = bar["change"], bar["top"], bar["bottom"]
        end = bar["bar"] in ("before", "after")
        missing = np.isnan(own)
        colour = ink() if end else _RISE if own > 0 else _FALL_ON_DARK if is_dark() else _FALL
        if not missing and own != 0:
            alpha = 0.55 if end else 1.0
            axes.bar(x, top - bottom, bottom=bottom, width=0.62, color=colour, alpha=alpha, zorder=2)
        after = own if bar["bar"] == "after" else level if missing else level + own
        if x:
            axes.plot([x - 1, x], [level, level], color=ink(), linewidth=0.6, alpha=0.6, zorder=1)
        level = after
        text = f"{bar['loss']:.4g}" if end else change(own)
        below = not end and not missing and own < 0
        axes.annotate(
            text,
            (x, bottom if below else top),
            xytext=(0, -2 if below else 2),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=6.5,
            color=ink(),
        )


def _waterfall_caption(growths: pd.DataFrame, whole: pd.DataFrame, shown: pd.DataFrame) -> str:
    tokens = growths["probe_tokens"].dropna()
    batch = f" of {tokens.min():.0f} tokens" if len(tokens) else ""
    own = growths[growths["replicate"].isin({name for names in shown["replicates"] for name in names})]
    means = "Means over " if own["replicate"].nunique() > 1 else ""
    left = len(whole) - len(shown)
    return (
        f"Loss on a held-out probe batch{batch} before growth, what each part of the operator added (one on "
        "top of the other), and after. Bars stand on the loss before; the numbers say what bars are too thin "
        f"to show; –: no such part. {means}{of_trunks(own)}. Arms that grow one state by one operator "
        "share a panel, whatever becomes of the optimizer, and so does the first growth of a chain."
        + (f" {left} more in growths.csv." if left else "")
    )


_ZERO_BELOW = 4.0  # exact zeros stand this factor below the smallest distance that is not zero


def clone_divergence(twins: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """Twin distance (left, log) and co-routing rate (right) against extra FLOPs, one line per arm.

    Means over layers, experts and trunks; the band is the range over trunks. Of several growth steps the
    latest is drawn. A distance of exactly 0 has no place on a log axis: it stands on a line of its own.
    """
    own = twins[twins["twin_distance"].notna()]
    if own.empty:
        return empty("No growth made twins of experts: nothing to draw.")
    steps = own["growth_step"].unique()
    own = own[own["growth_step"] == steps.max()]
    table = _over_trunks(own)
    labels = list(dict.fromkeys(table["arm"]))
    columns = min(3, legend_columns(labels))
    figure = new_figure(9.6, 3.2 + 0.18 * np.ceil(len(labels) / columns))
    left, right = figure.subplots(1, 2)
    scale, unit = flops_scale(table["extra_flops"])
    methods = {label.split(",")[0] for label in labels}
    arms = ordered_looks(labels) if len(methods) == 1 and len(labels) > 2 else looks(labels)
    positive = table.loc[table["twin_distance"] > 0, "twin_distance"]
    floor = positive.min() / _ZERO_BELOW if len(positive) else 1e-9
    for arm, part in table.groupby("arm", sort=False):
        look = arms[str(arm)]
        for axes, name in ((left, "twin_distance"), (right, "co_routing")):
            line = part[[name, f"{name}_low", f"{name}_high"]]
            line = line.clip(lower=floor) if name == "twin_distance" else line
            x = part["extra_flops"] / scale
            axes.plot(
                *(x, line[name]),
                color=look.colour,
                marker=look.marker,
                markersize=5,
                linestyle=look.line,
                linewidth=1.1,
                markerfacecolor=look.colour if look.filled else page(),
                label=arm,
            )
            if (part["n_trunks"] > 1).any():
                axes.fill_between(x, line[f"{name}_low"], line[f"{name}_high"], color=look.colour, alpha=0.2)
            for grown in part.loc[part["nth"] > 1, "grown_at_flops"].unique():
                axes.axvline(grown / scale, color=look.colour, linewidth=0.9, linestyle=(0, (1, 2)))
    _axes_of_twins(left, right, table, floor, unit)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    table.attrs["caption"] = _twins_caption(own, table, several_steps=len(steps) > 1)
    return table, figure


def _axes_of_twins(left: Axes, right: Axes, table: pd.DataFrame, floor: float, unit: str) -> None:
    left.set_yscale("log")
    if (table["twin_distance"] == 0).any():
        left.axhline(floor, color=ink(), linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        left.annotate(
            "exactly 0",
            (1.0, floor),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",  # at the left a line may begin there
            fontsize=7,
        )
        left.set_ylim(bottom=floor / 1.6)
    left.set_ylabel("distance of twins / norm of the source")
    right.set_ylabel("co-routing rate of twins")
    strangers = table["strangers"].dropna().unique()
    right.set_ylim(0.0, 1.04)
    for rate in strangers:
        right.axhline(rate, color=ink(), linewidth=0.9, linestyle=(0, (1, 3)))
        right.annotate(
            "strangers: k/E",
            (0.0, rate),
            xycoords=("axes fraction", "data"),
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=7,
        )
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_xlabel(f"extra FLOPs, counted from the first growth ({unit})")


def _over_trunks(own: pd.DataFrame) -> pd.DataFrame:
    keys = ["arm", "growth_step", "nth", "phase", "step"]
    names = {"twin_distance": "twin_distance", "co_routing": "co_routing"}
    found = {name: (name, "mean") for name in ("extra_flops", "grown_at_flops", "strangers", "twin_cosine")}
    for name in names:
        found |= {name: (name, "mean"), f"{name}_low": (name, "min"), f"{name}_high": (name, "max")}
    found["n_trunks"] = ("replicate", "nunique")
    table = own.groupby(keys, sort=False).agg(**found).reset_index()
    order = {arm: nth for nth, arm in enumerate(dict.fromkeys(own["arm"]))}
    ranks = table["arm"].map(order)
    return table.assign(rank=ranks).sort_values(["rank", "growth_step", "extra_flops"]).drop(columns="rank")


def _twins_caption(own: pd.DataFrame, table: pd.DataFrame, several_steps: bool) -> str:
    several = table["n_trunks"].max() > 1
    later = (table["nth"] > 1).any()
    return (
        "How experts of one origin part after growth: distance d of a copy's weights from its source's, over "
        "the source's norm (their cosine, in twins.csv, is about 1 − d²/2), and the share of slots whose "
        "token also goes to the next copy (1: always together; k/E: about what strangers do). "
        f"Means over layers{' and trunks; band: range over trunks' if several else ''}. {of_trunks(own)}."
        + (" A chain's line begins with its later growth, at the dotted vertical." if later else "")
        + (" The latest growth step alone; all are in twins.csv." if several_steps else "")
    )


__all__ = ["MAX_PANELS", "change", "clone_divergence", "function_preservation_waterfall"]
