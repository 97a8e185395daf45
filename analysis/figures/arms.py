"""Ways of growing held against each other along training: loss above, accuracy below."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from analysis.arms import standard_error
from analysis.figures.curves import smooth
from analysis.figures.style import (
    Look,
    flops_scale,
    ink,
    items,
    legend_columns,
    looks,
    new_figure,
    of_trunks,
    page,
)

MAX_COLUMNS = 3
_MAX_POINTS = 250
_CONTROLS = {"continued": ("D", (0, (4, 2))), "scratch": ("*", (0, (1, 1.2)))}
_LABELS = {
    "extra_flops": "extra FLOPs ({}),\ncounted from the growth",
    "extra_tokens": "tokens after the growth\n({})",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One pair of panels: its title, the rows of `curves` with a column `series`, and what runs along x."""

    title: str
    rows: pd.DataFrame
    x: str = "extra_flops"


def compare(
    columns: list[Column], styles: dict[str, Look] | None = None, more: int = 0, width: float | None = None
) -> tuple[pd.DataFrame, Figure, np.ndarray]:
    """The table drawn, the figure, and its panels [2, columns + more]; the last `more` columns are empty.

    Series are means over trunks at equal steps: of the training loss each step (haze) and a running mean
    (line), of accuracy points with one standard error. Controls are drawn in ink. Further growths of a chain
    are dashed verticals in the series' colour.
    """
    table = pd.concat([_averaged(c).assign(panel=c.title, x_is=c.x) for c in columns], ignore_index=True)
    found = dict.fromkeys(pd.concat([column.rows["series"] for column in columns]))
    names = [n for n in styles or found if n in found and n not in _CONTROLS]
    styles = (styles or looks(names)) | _controls()
    inches = width or max(6.4, min(9.2, 1.0 + 2.7 * (len(columns) + more)))
    figure = new_figure(inches, 5.4)
    panels = figure.subplots(2, len(columns) + more, squeeze=False)
    for nth, column in enumerate(columns):
        own = table[(table["panel"] == column.title) & (table["x_is"] == column.x)]
        _column(panels[:, nth], own, {n: styles[n] for n in [*names, *_CONTROLS]}, column)
    _share(panels[:, : len(columns)], table)
    handles, labels = _entries(panels[:, : len(columns)])
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels, inches))
    return table, figure, panels


def series_of(curves: pd.DataFrame, names: dict[str, str] | None = None) -> pd.DataFrame:
    """`curves` with a column `series`: the arm (by another name, if `names` has one), or the control's kind.

    A *continued* cell that serves several arms stands once.
    """
    kinds = {"continued": "continued", "scratch_extra": "scratch", "scratch": "scratch"}
    own = curves[curves["kind"].isin(["branch", *kinds])]
    arms = own["arm"].replace(names or {})
    own = own.assign(series=own["kind"].map(kinds).where(own["kind"] != "branch", arms))
    keys = ["cell_id", "growth_step", "sunk_flops", "trajectory_id", "step", "source"]
    control = own["kind"] != "branch"
    return own[~(control & own.duplicated(keys))]


def at_step(curves: pd.DataFrame, growth_step: float) -> pd.DataFrame:
    """What was grown at one step, with its controls; scratch has no growth step and stands beside each."""
    scratch = curves["kind"].isin(["scratch", "scratch_extra"])
    return curves[scratch | (curves["growth_step"] == growth_step)]


def sunk_words(rows: pd.DataFrame) -> str:
    """How much was sunk into what was grown: "2 F_c sunk"."""
    grown = rows[rows["kind"] == "branch"]
    ratio = (grown["sunk_flops"] / grown["f_c"]).astype(float).mean()
    return f"{ratio:.2g} $F_c$ sunk" if np.isfinite(ratio) else f"step {grown['growth_step'].iloc[0]:g}"


def caption_of(rows: pd.DataFrame, what: str, more: str = "") -> str:
    """What is drawn, cells, trunks, and what haze, lines, points and bars are."""
    grown = rows[rows["kind"] == "branch"]
    several = grown["replicate"].nunique() > 1
    measured = rows[rows["acc"].notna()]
    suites = [f"{name} ({items(part)})" for name, part in measured.groupby("source", sort=False)]
    bars = "over trunks" if several else "of the evaluation"
    more = f" {more}" if more else ""
    if several:
        more = " Claims compare arms within trunks: what the arms of one have in common drops out." + more
    return (
        f"{what} {grown['cell_id'].nunique()} grown cells, {of_trunks(grown)}. Haze: the training loss of "
        f"each step{', mean over trunks' if several else ''}; line: its running mean. Points: accuracy, "
        f"{' and '.join(suites)}, small along the way, large at the end; bars: one standard error {bars}. "
        f"The loss axis cuts off the start of scratch.{more}"
    )


def _averaged(column: Column) -> pd.DataFrame:
    """Means over trunks at equal step of the same part of the path."""
    rows = column.rows.copy()
    first = rows.groupby(["cell_id", "growth_step", "trajectory_id"], dropna=False)["extra_flops"].transform(
        "min"
    )
    rows["begins"] = first
    rows["nth"] = rows.groupby(["cell_id", "growth_step"], dropna=False)["begins"].rank("dense")
    last = rows.groupby(["cell_id", "growth_step"], dropna=False)["extra_flops"].transform("max")
    rows["source"] = rows["source"].where(
        (rows["source"] != "full") | (rows["extra_flops"] == last), "full, earlier"
    )
    keys = ["series", "kind", "source", "nth", "phase", "step"]
    rows["variance"] = rows["acc_se"].astype(float) ** 2
    grouped = rows.groupby(keys, sort=False, dropna=False)
    table = grouped.agg(
        x=(column.x, "mean"),
        begins=("begins", "mean"),
        raw_loss=("loss", "mean"),
        acc=("acc", "mean"),
        spread=("acc", "std"),
        variance=("variance", "mean"),
        n_trunks=("replicate", "nunique"),
    ).reset_index()
    table = table[
        table["n_trunks"] == table.groupby(["series", "nth", "source"])["n_trunks"].transform("max")
    ]
    evaluation = np.sqrt(table.pop("variance").astype(float))
    spread = np.fmax(table.pop("spread").astype(float).fillna(0.0), evaluation)
    table["acc_se"] = spread / np.sqrt(table["n_trunks"])
    table = table.sort_values(["series", "nth", "source", "x"], kind="stable", ignore_index=True)
    parts = []
    for (_, source, *_), part in table.groupby(["series", "source", "nth", "phase"], sort=False):
        train = source == "train"
        part = part.assign(smoothed=smooth(part["raw_loss"]) if train else np.nan)
        parts.append(part.iloc[:: max(1, len(part) // _MAX_POINTS)] if train else part)
    return pd.concat(parts, ignore_index=True)


def _controls() -> dict[str, Look]:
    return {name: Look(ink(), marker, line, False) for name, (marker, line) in _CONTROLS.items()}


def _column(panels: np.ndarray, own: pd.DataFrame, styles: dict[str, Look], column: Column) -> None:
    loss, accuracy = panels
    scale, unit = flops_scale(own["x"])
    if column.x != "extra_flops":
        unit = unit.replace("FLOPs", "tokens")
    shown = [name for name in styles if (own["series"] == name).any()]
    for nth, name in enumerate(shown):
        place = (nth, nth - (len(shown) - 1) / 2)
        _line(loss, accuracy, own[own["series"] == name], styles[name], name, scale, place)
    loss.set_title(column.title)
    accuracy.set_xlabel(_LABELS[column.x].format(unit))
    for axes in panels:
        axes.set_xlim(0, 1.07 * own["x"].max() / scale)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    loss.tick_params(labelbottom=False)


def _line(
    loss: Axes,
    accuracy: Axes,
    part: pd.DataFrame,
    look: Look,
    name: str,
    scale: float,
    place: tuple[int, float],
) -> None:
    """One series; ends, which all stand at one budget, are set apart sideways on paper."""
    train = part[part["source"] == "train"]
    loss.plot(train["x"] / scale, train["raw_loss"], color=look.colour, linewidth=0.5, alpha=0.3)
    loss.plot(
        train["x"] / scale, train["smoothed"], color=look.colour, linestyle=look.line, linewidth=1.3, zorder=3
    )
    common: dict[str, Any] = {"color": look.colour, "marker": look.marker}
    common |= {"markerfacecolor": look.colour if look.filled else page(), "elinewidth": 0.8}
    on_way = part[part["source"].isin(["probe", "full, earlier"])]
    ends = part[part["source"] == "full"]
    for points, size, line in ((on_way, 3, look.line), (ends, 7, "")):
        if points.empty:  # what is nowhere, unclipped, leaves the layout no room
            continue
        container = accuracy.errorbar(
            points["x"] / scale,
            100 * points["acc"],
            yerr=100 * points["acc_se"].fillna(0.0),
            markersize=size,
            linestyle=line,
            linewidth=0.9,
            zorder=3 if size == 7 else 2,
            **common,
        )
        aside = ScaledTranslation(6 * place[1] / 72, 0, accuracy.figure.dpi_scale_trans)
        for artist in container.get_children() if size == 7 else []:
            artist.set_transform(accuracy.transData + aside)
            artist.set_clip_on(False)
    stable = part[(part["kind"] == "branch") & (part["phase"] == "stable")]
    for begins in sorted(stable.loc[stable["nth"] > 1, "begins"].unique()):
        for axes in (loss, accuracy):
            axes.axvline(
                begins / scale, color=look.colour, linewidth=1.2, linestyle=(4 * place[0], (4, 4)), zorder=1
            )
    accuracy.plot([], [], label=name, linestyle=look.line, markersize=6, **_without(common, "elinewidth"))


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def _share(panels: np.ndarray, table: pd.DataFrame) -> None:
    """One scale per row: of the losses that of grown models and their controls, not of random weights."""
    train = table[(table["source"] == "train") & table["smoothed"].notna()]
    grown = train[train["kind"] == "branch"]
    shown = grown if len(grown) else train
    low = train["smoothed"].min()
    high = max(shown["smoothed"].quantile(0.98), train["smoothed"].quantile(0.5))
    limits = [axes.get_ylim() for axes in panels[1]]
    for axes in panels[0]:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))
    for axes in panels[1]:
        axes.set_ylim(min(a for a, _ in limits), max(b for _, b in limits))
    for row in panels:
        for axes in row[1:]:
            axes.tick_params(labelleft=False)
    panels[0][0].set_ylabel("training loss (nats per token)")
    panels[1][0].set_ylabel("accuracy (%)")


def _entries(panels: np.ndarray) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for axes in panels[1]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    ordered = sorted(found, key=lambda label: label in _CONTROLS)
    return [found[label] for label in ordered], ordered


def short_names(arms: list[str]) -> dict[str, str]:
    """The operators of each arm alone, where they tell the arms apart."""
    words = {arm: arm.split(",")[0] for arm in arms}
    return words if len(set(words.values())) == len(arms) else {arm: arm for arm in arms}


def mean_and_error(own: pd.DataFrame, value: str, error: str) -> tuple[float, float, int]:
    """Mean over trunks of a column, its standard error as everywhere, and the number of trunks."""
    per_trunk = own.groupby("replicate")[value].mean().dropna()
    evaluation = float(np.sqrt((own[error].astype(float) ** 2).mean()))
    if per_trunk.empty:
        return float("nan"), float("nan"), 0
    return float(per_trunk.mean()), standard_error(per_trunk, evaluation), len(per_trunk)
