"""One look for all figures, light or dark, and files whose bytes depend on the data alone."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

# Okabe and Ito's eight colours, told apart with any colour vision; black is left to the controls.
# The marker doubles the colour, so that ways of growing which are seldom compared may share one of the two.
_METHODS = {
    "stack": ("#D55E00", "s"),
    "interposition": ("#0072B2", "o"),
    "layer_map": ("#009E73", "h"),
    "random": ("#CC79A7", "p"),
    "duplicate": ("#009E73", "D"),
    "experts_only": ("#D55E00", "<"),
    "top_k_only": ("#0072B2", ">"),
    "split": ("#E69F00", "H"),
    "random_experts": ("#CC79A7", "8"),
    "drop_upcycle": ("#56B4E9", "p"),
    "interposition + duplicate": ("#CC79A7", "^"),
    "stack + duplicate": ("#E69F00", "v"),
    "duplicate → interposition": ("#56B4E9", "P"),
    "interposition → duplicate": ("#E69F00", "X"),
}
_MORE_COLOURS = ("#56B4E9", "#F0E442", "#E69F00", "#CC79A7", "#009E73")
_MORE_MARKERS = ("P", "X", "<", ">")
_ORDERED_MARKERS = ("D", "o", "s", "^", "v", "P", "X")
_ON_DARK = {"#0072B2": "#56B4E9", "#56B4E9": "#0072B2"}  # the deep blue is hard to see on a dark page
_LINES = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1)))
_DPI = 160  # of pictures
HAZE = "#56B4E9"  # single trunks and bands around their mean
_DARK = {"page": "#16181d", "ink": "#e4e6eb", "grid": "#3a3f4a"}
_LIGHT = {"page": "#ffffff", "ink": "#1f2328", "grid": "#dfe2e6"}


@dataclass(frozen=True)
class Look:
    """How one arm is drawn: colour and marker by method, line and filling by its further settings."""

    colour: Any  # whatever matplotlib takes for one
    marker: str
    line: Any
    filled: bool


def looks(arms: list[str]) -> dict[str, Look]:
    """A look per arm; arms of one method share its colour and marker, the same in every figure."""
    methods = list(dict.fromkeys(_method(arm) for arm in arms))
    unknown = [method for method in methods if method not in _METHODS]
    out: dict[str, Look] = {}
    used: dict[str, int] = {}
    for arm in arms:
        method = _method(arm)
        nth = used.get(method, 0)
        used[method] = nth + 1
        more = unknown.index(method) if method in unknown else 0
        fallback = _MORE_COLOURS[more % len(_MORE_COLOURS)], _MORE_MARKERS[more % len(_MORE_MARKERS)]
        colour, marker = _METHODS.get(method, fallback)
        out[arm] = Look(
            colour=_ON_DARK.get(colour, colour) if is_dark() else colour,
            marker=marker,
            line=_LINES[nth % len(_LINES)],
            filled=(nth + nth // len(_LINES)) % 2 == 0,
        )
    return out


def ordered_looks(arms: list[str]) -> dict[str, Look]:
    """A look per arm of one method in its order, noise scales for example: the sequential map and markers."""
    colours = sequential()(np.linspace(0, 1 if is_dark() else 0.95, len(arms)))
    return {
        arm: Look(tuple(colour), _ORDERED_MARKERS[nth % len(_ORDERED_MARKERS)], "-", True)  # pyright: ignore[reportArgumentType]
        for nth, (arm, colour) in enumerate(zip(arms, colours, strict=True))
    }


def _method(arm: str) -> str:
    return arm.split(",")[0]


@contextmanager
def themed(dark: bool = False) -> Iterator[None]:
    """Settings for all drawing inside; nothing of the user's own matplotlib configuration gets in."""
    tone = _DARK if dark else _LIGHT
    settings: dict[Any, Any] = {
        "figure.facecolor": tone["page"],
        "axes.facecolor": tone["page"],
        "savefig.facecolor": tone["page"],
        "text.color": tone["ink"],
        "axes.labelcolor": tone["ink"],
        "axes.titlecolor": tone["ink"],
        "xtick.color": tone["ink"],
        "ytick.color": tone["ink"],
        "axes.edgecolor": tone["ink"],
        "grid.color": tone["grid"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.linewidth": 0.8,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.4,
        "lines.markersize": 5,
        "pdf.fonttype": 42,
        "figure.dpi": 100,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def ink() -> str:
    return matplotlib.rcParams["text.color"]


def page() -> str:
    return matplotlib.rcParams["figure.facecolor"]


def is_dark() -> bool:
    return page() == _DARK["page"]


def sequential() -> LinearSegmentedColormap:
    """Part of viridis: ordered in lightness, and no colour of it vanishes on the page."""
    low, high = (0.3, 1.0) if is_dark() else (0.0, 0.88)
    colours = matplotlib.colormaps["viridis"](np.linspace(low, high, 256))
    return LinearSegmentedColormap.from_list("sunk", colours)


def by_sunk(sunk_flops: pd.Series) -> Normalize:
    return Normalize(0.0, max(float(sunk_flops.max()), 1.0))


def sunk_bar(figure: Figure, panels: Any, norm: Normalize, scale: float, unit: str) -> Colorbar:
    """The colour bar of `by_sunk` beside the panels, in FLOPs / scale."""
    mappable = ScalarMappable(norm=Normalize(0.0, (norm.vmax or 1.0) / scale), cmap=sequential())
    bar = figure.colorbar(mappable, ax=panels, aspect=30, pad=0.02)
    bar.set_label(f"sunk FLOPs ({unit})")
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    return bar


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def flops_scale(*values: pd.Series) -> tuple[float, str]:
    """A power of 1000 that leaves readable ticks, and its unit: (1e12, "10¹² FLOPs")."""
    top = max([float(v.max()) for v in values if len(v) and np.isfinite(v.max())] or [1.0])
    exponent = 3 * int(np.floor(np.log10(max(top, 1.0)) / 3))
    return 10.0**exponent, "FLOPs" if exponent == 0 else rf"$10^{{{exponent}}}$ FLOPs"


def f_c_axis(axes: Axes, scale: float, f_c: float | None, label: str) -> None:
    """A second x axis on top in units of F_c = 120·N_a² of the trunk, logarithmic if the first one is."""
    if f_c and np.isfinite(f_c):
        top = axes.secondary_xaxis("top", functions=in_f_c(scale, f_c))
        if axes.get_xscale() == "log":
            top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            top.xaxis.set_minor_formatter(NullFormatter())
        else:
            top.xaxis.set_major_locator(MaxNLocator(6))
        top.set_xlabel(label)
        top.spines["top"].set_visible(True)


def in_f_c(scale: float, f_c: float) -> tuple[Callable, Callable]:
    """From FLOPs / scale to units of F_c, and back."""
    ratio = f_c / scale
    return lambda x: np.divide(x, ratio), lambda x: np.multiply(x, ratio)


def one_f_c(cells: pd.DataFrame) -> float | None:
    values = cells["f_c"].dropna().unique()
    return float(values[0]) if len(values) == 1 else None


def legend_columns(labels: list[str], width: float = 9.6) -> int:
    """As many columns as fit below a figure of that width in inches, so that few entries stand in one row."""
    room = int(190 * width / 9.6)
    return min(len(labels), max(2, room // (max(map(len, labels), default=0) + 8)))


def of_trunks(rows: pd.DataFrame) -> str:
    """How many independent trunks, and of which seeds: "1 trunk (seed 0)"."""
    n, seeds = rows["replicate"].nunique(), sorted(rows["seed"].dropna().unique())
    numbers = ", ".join(f"{seed:g}" for seed in seeds)
    return f"{n} trunk{'s' if n > 1 else ''} (seed{'s' if len(seeds) > 1 else ''} {numbers})"


def items(rows: pd.DataFrame) -> str:
    """The size of the evaluations in `rows`, as far as it is recorded: "1000 items"."""
    n = rows["n"].dropna()
    return f"{n.min():.0f} items" if len(n) else "an unknown number of items"


def empty(message: str) -> tuple[pd.DataFrame, Figure]:
    """A picture that says why nothing is drawn."""
    figure = new_figure(6.4, 1.2)
    figure.text(0.5, 0.5, message, ha="center", va="center")
    table = pd.DataFrame()
    table.attrs["caption"] = message
    return table, figure


def png(figure: Figure, caption: str = "") -> bytes:
    """PNG bytes at 160 dots per inch without date or version."""
    _lay_out(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None, "Description": caption})
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Places the parts of a figure for good: savefig does it anew for each file, at twice a file's cost."""
    engine = figure.get_layout_engine()
    if engine is not None and figure.axes:
        figure.set_dpi(_DPI)
        engine.execute(figure)
    figure.set_layout_engine(None)


def save(table: pd.DataFrame, figure: Figure, path: Path) -> bytes:
    """Writes `path`.png, .pdf and .csv (what is drawn) and returns the PNG; equal data gives equal bytes.

    The caption, `table.attrs["caption"]`, travels in the files' metadata.
    """
    caption = str(table.attrs.get("caption", ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.10g")
    metadata = {"CreationDate": None, "Producer": None, "Creator": None, "Subject": caption}
    picture = png(figure, caption)
    path.with_suffix(".png").write_bytes(picture)
    figure.savefig(path.with_suffix(".pdf"), format="pdf", metadata=metadata)
    return picture
