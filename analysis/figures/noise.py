"""F7: does the noise on duplicated experts matter, and how much of it; random new experts beside it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.arms import (
    Column,
    at_step,
    caption_of,
    compare,
    mean_and_error,
    series_of,
    sunk_words,
)
from analysis.figures.style import Look, ink, looks, ordered_looks, page

_RANDOM = "random experts"


def noise_scales(curves: pd.DataFrame, cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F7: loss and accuracy after duplication by noise scale α, and their ends against α.

    At the latest growth step with the most scales; α = 0 stands left of the logarithmic axis. Random experts
    and *continued* are lines with a band of one standard error. A `ValueError` below two scales.
    """
    grown = curves[(curves["kind"] == "branch") & (curves["width_method"] == "duplicate")]
    grown = grown[grown["method"] == "none"]
    if grown["noise_scale"].nunique() < 2:
        raise ValueError("Duplication was grown with fewer than two noise scales: there is none to compare.")
    counts = grown.groupby("growth_step")["noise_scale"].nunique()
    step = float(counts.index[counts == counts.max()].max())
    widths = ("duplicate", "random_experts")
    own = curves[(curves["kind"] != "branch") | curves["width_method"].isin(widths)]
    own = at_step(series_of(own), step)
    names = _names(own)
    own = own.assign(series=names)
    scales = sorted(grown["noise_scale"].unique())
    styles = _styles(scales)
    column = Column(title=f"duplicated experts, {sunk_words(own)}", rows=own)
    table, figure, panels = compare([column], styles=styles, more=1, width=9.6)
    ends = _ends(cells[cells["growth_step"] == step], cells)
    for axes, (value, label) in zip(
        panels[:, 1],
        (("final_loss", "final held-out loss (nats)"), ("final_acc", "final accuracy (%)")),
        strict=True,
    ):
        _against_alpha(axes, ends[ends["quantity"] == value], styles)
        axes.set_ylabel(label)
    panels[0, 1].set_title("the end, annealed")
    panels[1, 1].set_xlabel("noise scale α")
    table = pd.concat([table, ends.assign(panel="end")], ignore_index=True)
    table.attrs["caption"] = caption_of(
        own,
        "Experts duplicated with noise of standard deviation α times that of the copied tensor.",
        "Right: means over trunks and one standard error; horizontal: random experts and continued. "
        "α = 0 has no place on a logarithmic axis: it stands left of it.",
    )
    return table, figure


def _name(scale: float) -> str:
    return f"α = {scale:g}".replace("e-0", "e−")  # the NaN of what has no noise is named by others


def _names(own: pd.DataFrame) -> pd.Series:
    alpha = own["noise_scale"].astype(float).map(_name)
    names = alpha.where(own["width_method"] == "duplicate", _RANDOM)
    return names.where(own["kind"] == "branch", own["series"])


def _styles(scales: list[float]) -> dict[str, Look]:
    """Scales are ordered, so they take the sequential map; random experts their method's own colour."""
    styles = ordered_looks([_name(scale) for scale in scales])
    random = looks(["random_experts"])["random_experts"]
    return styles | {_RANDOM: Look(random.colour, random.marker, (0, (5, 1.5)), True)}


def _ends(at: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error of the final loss and accuracy by α, of random experts, and of *continued*."""
    grown = at[(at["kind"] == "branch") & at["final_acc"].notna() & (at["method"] == "none")]
    grown = grown.assign(final_loss_se=np.nan)
    duplicated = grown[grown["width_method"] == "duplicate"]
    groups = [(_name(float(str(scale))), scale, own) for scale, own in duplicated.groupby("noise_scale")]
    random = grown[grown["width_method"] == "random_experts"]
    ids = set(grown["continued_id"]) - {""}
    continued = cells[cells["cell_id"].isin(ids)].assign(final_loss_se=np.nan)
    groups += [(_RANDOM, np.nan, random), ("continued", np.nan, continued)]
    rows = []
    for value, error in (("final_loss", "final_loss_se"), ("final_acc", "final_acc_se")):
        factor = 100.0 if value == "final_acc" else 1.0
        for series, scale, own in groups:
            if len(own):
                mean, se, n = mean_and_error(own, value, error)
                rows.append({"series": series, "noise_scale": scale, "quantity": value})
                rows[-1] |= {"mean": factor * mean, "se": factor * se, "n_trunks": n}
    return pd.DataFrame(rows)


def _against_alpha(axes: Axes, ends: pd.DataFrame, styles: dict[str, Look]) -> None:
    scales = ends[ends["noise_scale"].notna()].sort_values("noise_scale")
    positive = scales.loc[scales["noise_scale"] > 0, "noise_scale"]
    least = float(positive.min()) if len(positive) else 1e-3
    zero = least / 10
    x = scales["noise_scale"].clip(lower=zero)
    axes.plot(x, scales["mean"], color=ink(), linewidth=0.8, alpha=0.5, zorder=1)
    for at, (_, row) in zip(x, scales.iterrows(), strict=True):
        look = styles[str(row["series"])]
        se = row["se"] if np.isfinite(row["se"]) else 0.0
        axes.errorbar(
            at, row["mean"], yerr=se, color=look.colour, marker=look.marker, markersize=7, capsize=2, zorder=3
        )
    for _, row in ends[ends["noise_scale"].isna()].iterrows():
        look = styles.get(str(row["series"]), Look(ink(), "D", (0, (4, 2)), False))
        axes.axhline(row["mean"], color=look.colour, linestyle=look.line, linewidth=1.2, zorder=2)
        if np.isfinite(row["se"]):
            axes.axhspan(
                row["mean"] - row["se"], row["mean"] + row["se"], color=look.colour, alpha=0.15, linewidth=0
            )
    axes.set_xscale("log")
    ticks = [zero, *positive] if (scales["noise_scale"] == 0).any() else list(positive)
    axes.set_xticks(ticks, ["0" if t == zero else _name(t)[4:] for t in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_facecolor(page())
