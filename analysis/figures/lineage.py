"""N7: the tree of a study's trajectories, drawn along total FLOPs."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import f_c_axis, flops_scale, ink, looks, new_figure, one_f_c, page

MAX_ROWS = 48
_SAME = 0.02  # FLOPs within this factor are one place: whole steps differ
_CONTROLS = {"continued": (0, (4, 2)), "scratch": (0, (1, 1.2)), "sham": (0, (3, 1, 1, 1))}


def lineage_tree(nodes: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """N7: trunks, branches and anneals as a tree, as of `analysis.lineage`; x is total FLOPs.

    Trees of several seeds that are alike are drawn once; of more than `MAX_ROWS` rows, arms that leave a
    trunk at one place share one. `folded` says how many trajectories a row stands for.
    """
    if nodes.empty:
        raise ValueError("The study has no trajectories: there is no tree to draw.")
    table, how = _fold(nodes)
    table = _placed(table)
    rows = int(table["row"].max()) + 1
    figure = new_figure(9.6, 1.4 + 0.2 * max(rows, 4))
    axes = figure.subplots()
    scale, unit = flops_scale(table["to_flops"])
    arms = [a for a in dict.fromkeys(table["arm"]) if a and a not in _CONTROLS and " arms" not in a]
    styles = looks(arms)
    by_node = {row["node"]: row for row in _records(table)}
    for row in by_node.values():
        _draw(axes, row, by_node.get(row["parent"]), _stroke(row, styles), scale)
    longest = max(len(_label(row)) for row in by_node.values() if row["leaf"])
    axes.set_xlim(0, table["to_flops"].max() / scale * (1 + 0.0115 * longest))
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"total FLOPs ({unit})")
    f_c_axis(axes, scale, one_f_c(nodes), "total / $F_c$ of the trunk")
    entries = {
        "trunk": Line2D([], [], color=ink(), linewidth=2.6),
        "growth": Line2D([], [], color=ink(), marker="v", linestyle=""),
        "end of an anneal": Line2D([], [], color=ink(), marker="|", markersize=8, linestyle=""),
    }
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3)
    table.attrs["caption"] = (
        f"The study's {len(nodes)} trajectories, each trained once, from {nodes['seed'].nunique()} "
        f"seed{'s' if nodes['seed'].nunique() != 1 else ''}; a row is one{how}. Thick: the trunk; dashed: "
        "continued; dotted: scratch."
    )
    drawn = table[
        ["row", "node", "parent", "kind", "arm", "growth_step", "from_flops", "to_flops", "cells", "folded"]
    ]
    drawn.attrs = dict(table.attrs)
    return drawn, figure


def _draw(
    axes: Axes, row: dict[str, Any], parent: dict[str, Any] | None, stroke: tuple[Any, Any], scale: float
) -> None:
    """One trajectory, the drop from its parent's row, its growth or the end of its anneal, and its name."""
    colour, line = stroke
    x = (row["from_flops"] / scale, row["to_flops"] / scale)
    width = {"trunk": 2.6, "anneal": 1.2}.get(row["kind"], 1.6)
    axes.plot(x, [row["row"]] * 2, color=colour, linewidth=width, linestyle=line, solid_capstyle="butt")
    if parent is not None and parent["row"] != row["row"]:
        axes.plot([x[0]] * 2, [parent["row"], row["row"]], color=ink(), linewidth=0.6, alpha=0.45, zorder=1)
    if row["kind"] == "branch":
        axes.plot(x[0], row["row"], "v", color=colour, markersize=5, zorder=4)
    if row["kind"] == "anneal":
        axes.plot(x[1], row["row"], "|", color=colour, markersize=6)
    if row["leaf"]:
        axes.annotate(
            _label(row),
            (x[1], row["row"]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            bbox={"facecolor": page(), "edgecolor": "none", "pad": 0.6},
        )


def _fold(nodes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """First alike seeds, then arms that leave one place, until there are few enough rows."""
    table = nodes.assign(folded=1, node=nodes["trajectory_id"], key="")
    how = ""
    merged = _merged(table, by_arm=True)
    if len(merged) < len(table):
        table, how = merged, ", alike in every seed (×)"
    if _leaves(table) > MAX_ROWS:
        table, how = _merged(table, by_arm=False), how + ", arms of one growth step together"
    if _leaves(table) > MAX_ROWS:
        kept = table[table["kind"].isin(["trunk", "scratch"])]
        first = table[~table["kind"].isin(["trunk", "scratch"])].head(MAX_ROWS)
        how += f", {len(table) - len(kept) - len(first)} later rows left out"
        table = pd.concat([kept, first])
    return table.reset_index(drop=True), how


def _merged(table: pd.DataFrame, by_arm: bool) -> pd.DataFrame:
    """One node for all that have the same kind, arm, place and parent."""
    names: dict[str, str] = {"": ""}
    groups: dict[str, dict[str, Any]] = {}
    places: dict[str, list[float]] = {}
    for row in _records(table):
        parent = names.get(row["parent"], "")
        arm = row["arm"] if by_arm or row["arm"] in _CONTROLS or not row["arm"] else "*"
        size = "" if row["kind"] == "trunk" else _place(row["from_flops"], places.setdefault("from", []))
        end = (
            ""
            if row["kind"] == "trunk" or arm == "*"
            else _place(row["to_flops"], places.setdefault("to", []))
        )
        key = "|".join([row["kind"], arm, parent, size, end])
        names[row["node"]] = key
        one = groups.setdefault(
            key, row | {"node": key, "parent": parent, "folded": 0, "cells": 0, "arms": set()}
        )
        one["folded"] += row["folded"]
        one["cells"] += row["cells"]
        one["to_flops"] = max(one["to_flops"], row["to_flops"])
        one["arms"].add(row["arm"])
    for one in groups.values():
        arms = one.pop("arms")
        one["arm"] = one["arm"] if len(arms) == 1 else f"{len(arms)} arms"
    return pd.DataFrame(list(groups.values()))


def _place(flops: float, known: list[float]) -> str:
    """A name for a number of FLOPs that all within `_SAME` of it share."""
    for nth, other in enumerate(known):
        if abs(flops - other) <= _SAME * max(flops, other):
            return str(nth)
    known.append(flops)
    return str(len(known) - 1)


def _leaves(table: pd.DataFrame) -> int:
    return int((~table["node"].isin(table["parent"])).sum())


def _placed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows from above: a trunk goes straight on, and what leaves it stands below in order of FLOPs.

    A child that goes on where its parent ends shares the row if it is the only one there.
    """
    children: dict[str, list[dict[str, Any]]] = {}
    for row in _records(table):
        known = row["parent"] if row["parent"] in set(table["node"]) else ""
        children.setdefault(known, []).append(row)
    order: dict[str, int] = {}
    free = 0

    def place(row: dict[str, Any], at: int) -> None:
        nonlocal free
        order[row["node"]] = at
        free = max(free, at + 1)
        own = sorted(children.get(row["node"], []), key=lambda c: (c["from_flops"], c["kind"], c["arm"]))
        straight = [
            c
            for c in own
            if c["kind"] == "anneal" and abs(c["from_flops"] - row["to_flops"]) <= 1e-6 * row["to_flops"]
        ]
        for child in own:
            place(child, at if row["kind"] != "trunk" and child in straight[:1] else free)

    for root in sorted(
        children.get("", []), key=lambda c: (c["kind"] != "trunk", c["from_flops"], c["seed"])
    ):
        place(root, free)
    parents = set(table["parent"])
    leaf = [
        node not in parents or kind == "trunk"
        for node, kind in zip(table["node"], table["kind"], strict=True)
    ]
    return table.assign(row=table["node"].map(order), leaf=leaf)


def _stroke(row: dict[str, Any], styles: dict[str, Any]) -> tuple[str, Any]:
    if row["arm"] in styles:
        return styles[row["arm"]].colour, "-"
    return ink(), _CONTROLS.get(row["arm"], "-")


def _label(row: dict[str, Any]) -> str:
    words = row["arm"] or row["kind"]
    return f"{words}  ×{row['folded']}" if row["folded"] > 1 else words


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
