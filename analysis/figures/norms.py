"""The weight norms of experts over the layers: profiles (F2), along training (F6), at the seam (T2)."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.figures.arms import short_names
from analysis.figures.style import (
    Look,
    flops_scale,
    ink,
    legend_columns,
    looks,
    new_figure,
    of_trunks,
    page,
    sequential,
)

_PAPER = Path(__file__).parents[1] / "paper" / "seam_norms.csv"
_LINES = 9  # of one profile's way along training
_NORM = "expert weight norm\n(Frobenius / √numel)"
_WHEN = ("before growth", "just after growth", "at the end")


def norm_profiles(norms: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F2: norm over relative depth of the trunk as it is grown, just after growth, and at the end.

    Means over trunks; bands are the range over trunks. At the latest growth step. A `ValueError` without a
    grown depth whose norms are stored.
    """
    table = _profiles(norms)
    arms = [arm for arm in dict.fromkeys(table["series"]) if arm != "trunk"]
    styles = looks(arms) | {"trunk": Look(ink(), "o", (0, (4, 2)), False)}
    figure = new_figure(9.6, 3.7)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, when in zip(panels, _WHEN, strict=True):
        for name, part in table[table["when"] == when].groupby("series", sort=False):
            _profile(axes, part, styles[str(name)], str(name))
        axes.set_title(when)
        axes.set_xlabel("layer / number of layers")
        axes.set_xlim(-0.03, 1.03)
    panels[0].set_ylabel(_NORM)
    handles = {
        label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=legend_columns(list(handles))
    )
    layers = norms.loc[norms["part"] == "trunk", "num_layers"].max()
    table.attrs["caption"] = (
        f"Weight norm of each layer's experts, a trunk of {layers:g} layers and what grew of it. "
        f"{_counted(norms)} Lines: means over trunks; bands: range over trunks. Layers stand at their place "
        "in the model, so that depths compare; dotted vertical: the seam of stack."
    )
    if any("stack" in arm for arm in arms):
        for axes in panels[1:]:
            axes.axvline(0.5, color=ink(), linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
    return table, figure


def norms_over_training(norms: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F6: norm over layers at up to nine times, coloured by FLOPs: along the trunk, and along each arm.

    Means over trunks at equal steps. A `ValueError` without such lines.
    """
    own = _latest(norms)
    parts = [("trunk", own[own["part"] == "trunk"])]
    parts += [(arm, rows) for arm, rows in own[own["part"] == "branch"].groupby("arm", sort=False)]
    names = short_names([str(arm) for arm, _ in parts])
    found = []
    for arm, rows in parts:
        means = rows.groupby(["step", "flops", "layer"])["norm"].agg(["mean", "count"]).reset_index()
        steps = np.sort(means["step"].unique())
        if len(steps) == 0:
            continue
        chosen = steps[np.unique(np.linspace(0, len(steps) - 1, _LINES).round().astype(int))]
        means = means[means["step"].isin(chosen)].rename(columns={"mean": "norm", "count": "n_trunks"})
        since = means["flops"] - (0.0 if arm == "trunk" else means["flops"].min())
        found.append(means.assign(series=names[str(arm)], since_flops=since))
    if len(found) < 2:
        raise ValueError("The trunk or its branches left no lines with norms: there is no way to draw.")
    table = pd.concat(found, ignore_index=True)
    figure = new_figure(min(11.0, 1.6 + 3.0 * len(found)), 3.6)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, rows in zip(panels, found, strict=True):
        _along(figure, axes, rows)
    panels[0].set_ylabel(_NORM)
    table.attrs["caption"] = (
        f"Weight norm of each layer's experts along training, light to dark in time. {_counted(norms)} Means "
        "over trunks. A branch's first line is the state just after growth; its colours count from there, at "
        "the constant rate."
    ).replace("light to dark in time", "coloured by FLOPs")
    return table, figure


def seam_norms_beside_the_paper(norms: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """T2: norms at the first, middle and last layer of either half, at growth and later, beside the paper's.

    The paper's are `analysis/paper/seam_norms.csv` (arXiv 2510.08008 §3.1). Of growth in depth ×2 alone; a
    `ValueError` without it.
    """
    profiles = _profiles(norms)
    doubled = profiles[
        profiles["num_layers"] == 2 * profiles.loc[profiles["series"] == "trunk", "num_layers"].max()
    ]
    ours = doubled[doubled["series"].isin(["stack", "interposition"])]
    if ours.empty:
        raise ValueError("No trunk was grown ×2 in depth with its norms stored: no seam to compare.")
    table = pd.concat([_at_seam(profiles, ours).assign(source="ours"), _published()], ignore_index=True)
    figure = new_figure(9.6, 4.2)
    panels = figure.subplots(1, 2)
    styles = looks(["stack", "interposition"])
    places = list(dict.fromkeys(table["place"]))
    for axes, source in zip(panels, ("ours", "the paper"), strict=True):
        own = table[table["source"] == source]
        for (series, when), part in own.groupby(["series", "when"], sort=False):
            look = styles.get(str(series), Look(ink(), "*", "", False))
            late = when == "at the end"
            x = [places.index(p) for p in part["place"]]
            for half in (slice(0, 3), slice(3, 6)):  # the lines break at the seam
                inside = [i for i, at in enumerate(x) if half.start <= at < half.stop]
                axes.plot(
                    [x[i] for i in inside],
                    part["norm"].iloc[inside],
                    color=look.colour,
                    marker=look.marker,
                    linestyle="" if when == "before" else "-" if late else (0, (1, 1.2)),
                    markersize=11 if when == "before" else 5,
                    markerfacecolor=look.colour if late else page() if when != "before" else "none",
                    zorder=4 if when == "before" else 3,
                    label=f"{series}, {when}" if half.start == 0 else None,
                )
        axes.axvline(2.5, color=ink(), linewidth=0.8, linestyle=(0, (1, 3)))
        axes.set_xticks(range(6), places, fontsize=7.5)
        axes.set_title({"ours": _ours_title(norms), "the paper": "the paper: 3B trunk, 20 layers"}[source])
    panels[0].set_ylabel(_NORM)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    table.attrs["caption"] = (
        "Norms at the seam (dotted), where stack puts the last layer before the first. Left: this study, "
        f"{_counted(norms)} Means over trunks. Right: arXiv 2510.08008 §3.1, one trunk, its end 16k steps "
        "after growth."
    )
    return table, figure


def _latest(norms: pd.DataFrame) -> pd.DataFrame:
    """The trunk as far as it was grown, and what was grown in depth at the latest step."""
    deep = norms[(norms["part"] != "trunk") & ~norms["method"].isin(["none", ""])]
    deep = deep[~deep["arm"].str.contains(" → ", regex=False)]
    if deep.empty or not (norms["part"] == "trunk").any():
        raise ValueError("No growth in depth with stored weight norms: there is no profile to draw.")
    step = deep["growth_step"].max()
    trunk = norms[(norms["part"] == "trunk") & (norms["step"] <= step)]
    return pd.concat([trunk, deep[deep["growth_step"] == step]])


def _profiles(norms: pd.DataFrame) -> pd.DataFrame:
    own = _latest(norms)
    trunk, branch = own[own["part"] == "trunk"], own[own["part"] == "branch"]
    last = own[own["part"] != "trunk"].groupby(["arm", "replicate"])["flops"].transform("max")
    end = own[own["part"] != "trunk"]
    pieces = [
        (_WHEN[0], "trunk", trunk[trunk["step"] == trunk.groupby("replicate")["step"].transform("max")]),
        (_WHEN[1], "", branch[branch["step"] == 0]),
        (_WHEN[2], "", end[end["flops"] == last]),
    ]
    rows = []
    names = short_names(list(own.loc[own["part"] != "trunk", "arm"].unique()))
    for when, series, part in pieces:
        for (arm, _), at in part.groupby(["arm", "layer"], sort=False):
            layer = int(at["layer"].iloc[0])
            found = {"when": when, "series": series or names[str(arm)], "layer": layer}
            count = at["num_layers"].iloc[0]
            found |= {"num_layers": count, "depth": (layer + 0.5) / count, "norm": at["norm"].mean()}
            rows.append(found | {"low": at["norm"].min(), "high": at["norm"].max(), "n_trunks": len(at)})
    table = pd.DataFrame(rows)
    return table.sort_values(["when", "series", "layer"], key=_in_time, kind="stable", ignore_index=True)


def _in_time(values: pd.Series) -> pd.Series:
    return values.map({when: i for i, when in enumerate(_WHEN)}) if values.name == "when" else values


def _profile(axes: Axes, part: pd.DataFrame, look: Look, name: str) -> None:
    face = look.colour if look.filled else page()
    axes.plot(
        *(part["depth"], part["norm"]),
        color=look.colour,
        marker=look.marker,
        markersize=3.5,
        markerfacecolor=face,
        linestyle=look.line,
        label=name,
    )
    if (part["n_trunks"] > 1).any():
        axes.fill_between(
            part["depth"], part["low"], part["high"], color=look.colour, alpha=0.18, linewidth=0
        )


def _along(figure: Figure, axes: Axes, rows: pd.DataFrame) -> None:
    scale, unit = flops_scale(rows["since_flops"])
    norm, colours = Normalize(0.0, max(rows["since_flops"].max() / scale, 1e-9)), sequential()
    for _, line in rows.groupby("since_flops"):
        at = float(line["since_flops"].iloc[0])
        axes.plot(
            line["layer"],
            line["norm"],
            color=colours(norm(at / scale)),
            marker="o",
            markersize=2.5,
            linewidth=1.1,
        )
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap=colours), ax=axes, location="bottom", aspect=28, pad=0.02
    )
    bar.set_label(
        f"FLOPs {'from random init' if rows['series'].iloc[0] == 'trunk' else 'after growth'} ({unit})"
    )
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    axes.set_title(rows["series"].iloc[0])
    axes.set_xlabel("layer")


def _at_seam(profiles: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Our profiles at the places of the paper's table."""
    base = profiles[profiles["series"] == "trunk"].set_index("layer")["norm"]
    num = len(base)
    layers = dict(zip(_places(), (0, num // 2, num - 1, num, num + num // 2, 2 * num - 1), strict=True))
    rows = [
        {"place": place, "layer": layer, "series": "base", "when": "before", "norm": base[layer]}
        for place, layer in layers.items()
        if layer < num
    ]
    for (series, when), part in ours.groupby(["series", "when"], sort=False):
        at = part.set_index("layer")["norm"]
        rows += [
            {"place": place, "layer": layer, "series": series, "when": when, "norm": at[layer]}
            for place, layer in layers.items()
        ]
    return pd.DataFrame(rows)


def _published() -> pd.DataFrame:
    wide = pd.read_csv(_PAPER).sort_values("layer").assign(place=_places())
    names = {"base": ("base", "before")}
    for method in ("stack", "interposition"):
        names |= {f"{method}_at_growth": (method, _WHEN[1]), f"{method}_after_16k": (method, _WHEN[2])}
    parts = [
        wide[["place", "layer"]].assign(series=series, when=when, norm=wide[column])
        for column, (series, when) in names.items()
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset="norm").assign(source="the paper")


def _places() -> list[str]:
    return [
        "first",
        "middle\nof 1st half",
        "last\nof 1st half",
        "first\nof 2nd half",
        "middle\nof 2nd half",
        "last",
    ]


def _ours_title(norms: pd.DataFrame) -> str:
    return f"ours: trunk of {norms.loc[norms['part'] == 'trunk', 'num_layers'].max():g} layers"


def _counted(norms: pd.DataFrame) -> str:
    own = _latest(norms)
    grown = own[own["part"] != "trunk"]
    cells = grown.groupby(["arm", "replicate"]).ngroups
    return f"{cells} grown cells, {of_trunks(grown)}."
