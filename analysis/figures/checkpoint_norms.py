"""The weight norms of one checkpoint over its layers: experts, their matrices, routers."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import ink, new_figure

_PANELS = {"experts": ("expert",), "their matrices": ("gate_up", "down"), "routers": ("router",)}
_LOOKS = {
    "expert": ("#0072B2", "o"),
    "gate_up": ("#009E73", "^"),
    "down": ("#D55E00", "v"),
    "router": ("#CC79A7", "s"),
}


def checkpoint_norms(norms: pd.DataFrame, seams: list[int]) -> tuple[pd.DataFrame, Figure]:
    """Norm of each part over the layers, with the range over experts; dotted before each layer of `seams`.

    `norms` has the columns of `moe.recycle.norms`: layer, part, norm, min, max, num_experts. Layers without
    experts have no point. A ValueError without any.
    """
    if norms.empty:
        raise ValueError("source: no layer has experts: there are no norms to draw")
    figure = new_figure(9.6, 3.2)
    panels = figure.subplots(1, len(_PANELS))
    for axes, (title, parts) in zip(panels, _PANELS.items(), strict=True):
        for part in parts:
            _line(axes, norms[norms["part"] == part], part)
        for layer in seams:
            axes.axvline(layer - 0.5, color=ink(), linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        axes.set_title(title)
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=len(_LOOKS))
    panels[0].set_ylabel("weight norm\n(Frobenius / √numel)")
    where = f"; dotted: the seam before layer {', '.join(map(str, seams))}" if seams else ""
    norms.attrs["caption"] = (
        f"Weight norm of each layer's experts ({norms['num_experts'].max():g} a layer), of gate and up and "
        f"of down alone, and of its router's rows. Lines: over all experts; bands: range over experts{where}."
    )
    return norms, figure


def _line(axes: Axes, rows: pd.DataFrame, part: str) -> None:
    colour, marker = _LOOKS[part]
    rows = rows.set_index("layer").reindex(range(int(rows["layer"].max()) + 1))  # no line over a gap
    axes.plot(rows.index, rows["norm"], color=colour, marker=marker, markersize=3, label=part)
    low, high = (rows[end].to_numpy(float) for end in ("min", "max"))
    axes.fill_between(rows.index.to_numpy(), low, high, color=colour, alpha=0.18, linewidth=0)
