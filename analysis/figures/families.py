"""Final accuracy per task family against sunk FLOPs."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.arms import standard_error
from analysis.figures.style import empty, flops_scale, ink, looks, new_figure, of_trunks, page

_MAX_COLUMNS = 5


def accuracy_by_family(cells: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """One small panel per family: final accuracy of each arm and of *continued*, with the chance line.

    Points are means over trunks; the bar is one standard error, of the evaluation for one trunk, over trunks
    for more.
    """
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    names = [c.removeprefix("chance_") for c in cells.columns if c.startswith("chance_")]
    names = [name for name in names if grown[f"final_acc_{name}"].notna().any()]
    if not names:
        return empty("No finished grown cell with task families: nothing to draw.")
    if len(names) == 1:
        return empty(f"{names[0]} is the only family: the first figure shows it.")
    continued = _continued(cells, grown, names)
    arms = list(dict.fromkeys(grown["arm"]))
    parts = [_means(grown[grown["arm"] == arm], name, arm) for name in names for arm in arms]
    parts += [_means(continued, name, "continued") for name in names if len(continued)]
    table = pd.concat(parts, ignore_index=True)
    rows = int(np.ceil(len(names) / _MAX_COLUMNS))
    columns = int(np.ceil(len(names) / rows))
    figure = new_figure(max(4.8, 1.92 * columns), 0.7 + 2.3 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    scale, unit = flops_scale(table["sunk_flops"])
    styles = looks(arms)
    for axes, name in zip(panels, names, strict=False):
        for series, part in table[table["family"] == name].groupby("series", sort=False):
            look = styles.get(str(series))
            colour = look.colour if look else ink()
            axes.errorbar(
                part["sunk_flops"] / scale,
                part["mean_pct"],
                yerr=part["se_pct"].fillna(0.0),
                color=colour,
                marker=look.marker if look else "o",
                linestyle=look.line if look else (0, (4, 2)),
                markerfacecolor=colour if look and look.filled else page(),
                markersize=4,
                elinewidth=0.8,
                label=series,
            )
        axes.axhline(100 * grown[f"chance_{name}"].mean(), color=ink(), linewidth=0.9, linestyle=(0, (1, 3)))
        axes.set_title(name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel(f"sunk FLOPs ({unit})", fontsize=9)
    figure.supylabel("final accuracy (%)", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    n_trunks = int(grown["replicate"].nunique())
    bars = "the evaluation" if n_trunks == 1 else f"{n_trunks} trunks"
    table.attrs["caption"] = (
        f"Final accuracy per task family; dotted: chance. {len(grown)} grown cells, "
        f"{of_trunks(grown)}; bars: one standard error over {bars}."
    ).replace("over the evaluation", "of the evaluation")
    return table, figure


def _continued(cells: pd.DataFrame, grown: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The *continued* cells, each at the sunk FLOPs of the cells that it serves."""
    columns = [f"{prefix}_{name}" for name in names for prefix in ("final_acc", "final_acc_se")]
    served = grown[["continued_id", "sunk_flops", "replicate"]].drop_duplicates()
    controls = cells[cells["kind"] == "continued"][["cell_id", *columns]]
    return served.merge(controls, left_on="continued_id", right_on="cell_id")


def _means(own: pd.DataFrame, family: str, series: str) -> pd.DataFrame:
    rows = []
    own = own[own[f"final_acc_{family}"].notna()]
    for sunk, at in own.groupby("sunk_flops"):
        per_trunk = at.groupby("replicate")[f"final_acc_{family}"].mean()
        n = len(per_trunk)
        evaluation = float(np.sqrt((at[f"final_acc_se_{family}"] ** 2).mean()))
        se = standard_error(per_trunk, evaluation)
        rows.append(
            {"sunk_flops": sunk, "mean_pct": 100 * per_trunk.mean(), "se_pct": 100 * se, "n_trunks": n}
        )
    table = pd.DataFrame(rows, columns=["sunk_flops", "mean_pct", "se_pct", "n_trunks"])
    return table.assign(family=family, series=series)
