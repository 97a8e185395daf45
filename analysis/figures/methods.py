"""One question per figure: stack or interposition, which order, how many of the experts at a time."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.arms import (
    MAX_COLUMNS,
    Column,
    at_step,
    caption_of,
    compare,
    series_of,
    short_names,
    sunk_words,
)
from analysis.figures.style import flops_scale, ink, looks

LARGER_PARAMS = 5e5  # activated: `micro` has a million, and the studies' own size a fifth of that
_WIDTHS = {
    "duplicate": "duplicate: 2E and 2k",
    "experts_only": "experts only: 2E",
    "top_k_only": "top-k only: 2k",
    "split": "split: 2E and 2k, half as wide",
    "random_experts": "random experts: 2E and 2k",
}


def stack_and_interposition(curves: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F3: loss and accuracy after growth by either method, one column per growth step (first, middle, last).

    Of factor 2, or of the smallest that there is. A `ValueError` where no growth step has both methods.
    """
    grown = curves[curves["kind"] == "branch"]
    both = _with_both(grown[grown["depth_factor"] == grown["depth_factor"].min()])
    steps = _spread(sorted(both["growth_step"].unique()))
    if not steps:
        raise ValueError("No growth step was grown by stack and by interposition: there is no pair to draw.")
    others = curves[(curves["kind"] != "branch") | curves["cell_id"].isin(both["cell_id"])]
    own = series_of(others, dict(zip(both["arm"], both["method"], strict=True)))
    parts = [at_step(own, step) for step in steps]
    table, figure, _ = compare([Column(title=sunk_words(part), rows=part) for part in parts])
    left = both["growth_step"].nunique() - len(steps)
    more = f"{left} further growth steps are in cells.csv." if left else ""
    drawn = pd.concat(parts)
    table.attrs["caption"] = caption_of(drawn, "A trunk grown in depth by stack and by interposition.", more)
    return table, figure


def stack_and_interposition_at_the_larger_size(curves: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F14: the same of the largest trunk, which must have `LARGER_PARAMS` activated parameters or more."""
    grown = curves[curves["kind"] == "branch"]
    largest = grown["trunk_activated_params"].max() if len(grown) else 0.0
    if not largest >= LARGER_PARAMS:
        raise ValueError(
            f"The largest trunk here activates {largest:.2g} parameters; the larger size begins at "
            f"{LARGER_PARAMS:.0e}. Run study=timing at model=micro."
        )
    replicates = grown.loc[grown["trunk_activated_params"] == largest, "replicate"]
    f_c = grown.loc[grown["trunk_activated_params"] == largest, "f_c"]
    own = curves[curves["replicate"].isin(replicates) & curves["f_c"].isin(f_c)]
    table, figure = stack_and_interposition(own)
    table.attrs["caption"] = f"At N_a = {largest:.3g}. " + table.attrs["caption"]
    return table, figure


def growth_orders(curves: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F9: depth then width, width then depth, both at once, along extra FLOPs, at the latest growth step.

    A `ValueError` where fewer than two of the orders were grown.
    """
    grown = curves[(curves["kind"] == "branch")]
    words = grown["arm"].str.split(",").str[0]
    both = grown[words.str.contains(" + ", regex=False) | words.str.contains(" → ", regex=False)]
    if both["arm"].nunique() < 2:
        raise ValueError("No trunk was grown in depth and width in two orders: there is nothing to compare.")
    step = _shared_step(both, "arm")
    others = curves[(curves["kind"] != "branch") | curves["cell_id"].isin(both["cell_id"])]
    own = at_step(series_of(others, short_names(list(both["arm"].unique()))), step)
    table, figure, _ = compare([Column(title=sunk_words(own), rows=own)], width=7.2)
    table.attrs["caption"] = caption_of(
        own,
        "Depth and width in either order, and at once.",
        "Dashed verticals, in the colour of its arm: the second growth of a chain.",
    )
    return table, figure


def top_k_variants(curves: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """F8: experts and top-k doubled together or apart, against extra FLOPs (left) and tokens (right).

    The dotted vertical is the largest token count that every arm reaches before its anneal: up to there
    arms compare at equal tokens. A `ValueError` where fewer than two such ways were grown.
    """
    grown = curves[(curves["kind"] == "branch") & (curves["method"] == "none")]
    grown = grown[grown["width_method"].isin(list(_WIDTHS))]
    known = grown[grown["width_method"].isin(["duplicate", "experts_only", "top_k_only", "split"])]
    if known["width_method"].nunique() < 2:
        raise ValueError("Fewer than two ways of widening were grown: top-k variants have no counterpart.")
    step = _shared_step(known, "width_method")
    others = curves[(curves["kind"] != "branch") | curves["cell_id"].isin(known["cell_id"])]
    own = at_step(series_of(others, short_names(list(known["arm"].unique()))), step)
    arms = list(dict.fromkeys(own.loc[own["kind"] == "branch", "series"]))
    names = {arm: _in_words(arm) for arm in arms}
    own = own.assign(series=own["series"].replace(names))
    columns = [Column(title="at equal FLOPs", rows=own)]
    columns.append(Column(title="at equal tokens", rows=own, x="extra_tokens"))
    table, figure, panels = compare(
        columns, styles={names[arm]: look for arm, look in looks(arms).items()}, width=9.6
    )
    stable = own[(own["kind"] == "branch") & (own["phase"] == "stable")]
    shared = float(stable.groupby("series")["extra_tokens"].max().min())
    scale, _ = flops_scale(own["extra_tokens"])
    for axes in panels[:, 1]:
        axes.axvline(shared / scale, color=ink(), linewidth=0.9, linestyle=(0, (1, 3)))
    table["shared_tokens"] = np.where(table["x_is"] == "extra_tokens", shared, np.nan)
    table.attrs["caption"] = caption_of(
        own,
        f"Experts (E) and experts per token (k) doubled, {sunk_words(own).replace('$', '')}.",
        "Every arm spends the same FLOPs, so on the right each ends, annealed, at a token count of its own: "
        f"compare there up to the dotted vertical, {shared:.3g} tokens, before the first anneal.",
    )
    return table, figure


def _in_words(arm: str) -> str:
    """What doubles, in place of the operator's name; further settings of the arm stay."""
    operator, *settings = arm.split(", ")
    return ", ".join([_WIDTHS.get(operator, operator), *settings])


def _with_both(grown: pd.DataFrame) -> pd.DataFrame:
    """What was grown at steps that have both methods, in depth alone, one arm of each method.

    The arm of a method is the first that has both, so that rates and moments are not mixed.
    """
    deep = grown[grown["method"].isin(["stack", "interposition"]) & (grown["width_method"] == "none")]
    first = deep.groupby("method")["arm"].transform("first") if len(deep) else deep["arm"]
    deep = deep[deep["arm"] == first]
    methods = deep.groupby("growth_step")["method"].nunique()
    return deep[deep["growth_step"].isin(methods.index[methods == 2])]


def _shared_step(grown: pd.DataFrame, what: str) -> float:
    """The latest growth step with the most values of a column."""
    counts = grown.groupby("growth_step")[what].nunique()
    return float(counts.index[counts == counts.max()].max())


def _spread(steps: list[float]) -> list[float]:
    """The first, the middle and the last of them."""
    if len(steps) <= MAX_COLUMNS:
        return steps
    return [steps[i] for i in np.linspace(0, len(steps) - 1, MAX_COLUMNS).round().astype(int)]
