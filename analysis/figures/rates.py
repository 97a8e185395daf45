"""N8: final loss and accuracy by learning rate, for growing, continuing and starting over."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.figures.style import Look, ink, legend_columns, looks, new_figure, page

_CONTROLS = {"continued": "P", "scratch": "D"}
_QUANTITIES = {
    "final_loss": ("final held-out loss (nats)", 1.0),
    "final_acc": ("final accuracy (%)", 100.0),
}


def learning_rates(rates: pd.DataFrame) -> tuple[pd.DataFrame, Figure]:
    """N8: each arm over its grid of rates, as of `analysis.rates.rate_table`; rings are the best of the grid.

    At the latest growth step of each arm; means over trunks, bars one standard error. A `ValueError` for no
    row.
    """
    if rates.empty:
        raise ValueError("No arm was trained at several rates: there is none to choose.")
    last = rates.groupby(["arm", "start_phase"])["growth_step"].transform("max")
    table = rates[rates["growth_step"] == last].reset_index(drop=True)
    several = table["start_phase"].replace("", pd.NA).nunique() > 1
    series = table["arm"] + (", " + table["start_phase"] + " start" if several else "")
    table = table.assign(series=series.str.removesuffix(",  start"))
    styles = _styles(list(dict.fromkeys(table["series"])))
    figure = new_figure(9.6, 3.8)
    for axes, (name, (label, scale)) in zip(figure.subplots(1, 2), _QUANTITIES.items(), strict=True):
        for series, own in table.groupby("series", sort=False):
            _draw(axes, own, name, scale, styles[str(series)])
        axes.set_xlabel("peak learning rate")
        axes.set_ylabel(label)
        _rate_axis(axes, sorted(table["rate"].unique()))
    labels = list(styles)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=legend_columns(labels))
    spent = table.loc[~table["best"], "flops"].sum()
    edge = sorted(set(table.loc[table["at_edge"], "series"]))
    gone = int(table["diverged"].sum())
    table.attrs["caption"] = (
        f"One grid of rates for all; means over {table['n_trunks'].max():g} trunks, bars: one standard "
        "error. Rings: the lowest mean loss. "
        + (f"At an end of the grid, so perhaps beyond it: {'; '.join(edge)}. " if edge else "")
        + (f"{gone} runs diverged and are left out of their means. " if gone else "")
        + f"{spent:.2g} FLOPs went into rates that were not the best."
    )
    return table, figure


def _styles(series: list[str]) -> dict[str, Look]:
    grown = looks([name for name in series if name.split(",")[0] not in _CONTROLS])
    lines = ("-", "--")
    controls = [name for name in series if name not in grown]
    drawn = {
        name: Look(ink(), _CONTROLS[name.split(",")[0]], lines["annealed" in name], "annealed" not in name)
        for name in controls
    }
    return grown | drawn


def _draw(axes: Axes, own: pd.DataFrame, name: str, scale: float, look: Look) -> None:
    own = own.sort_values("rate")
    axes.errorbar(
        own["rate"],
        own[name] * scale,
        yerr=own[f"{name}_se"] * scale,
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        markerfacecolor=look.colour if look.filled else page(),
        elinewidth=1.0,
        label=str(own["series"].iloc[0]),
    )
    best = own[own["best"]]
    axes.plot(best["rate"], best[name] * scale, "o", markersize=11, markerfacecolor="none", color=look.colour)


def _rate_axis(axes: Axes, rates: list[float]) -> None:
    """Logarithmic, a tick for each rate of the grid."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
