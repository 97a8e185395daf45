"""What a page shows when a pointer is over a point of a picture: the point's series and values."""

import re
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MOST = 400  # in one picture; more are no longer points that anybody aims at


@dataclass(frozen=True)
class Spot:
    """A marked point: its place in per cent of the picture from the left and the top, and what it says."""

    left: float
    top: float
    text: str


def spots(figure: Figure) -> list[Spot]:
    """Every marker of a named series in a figure that was drawn (so that it is laid out); [] of too many."""
    found = [spot for axes in figure.axes for spot in _of_axes(axes)]
    return found if len(found) <= MOST else []


def _of_axes(axes: Axes) -> list[Spot]:
    lines = {x: (str(x.get_label()), np.full(np.size(x.get_xdata()), np.nan)) for x in axes.lines}
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer) and isinstance(container.lines[0], Line2D):
            lines[container.lines[0]] = (str(container.get_label()), _half_lengths(container))
    out = []
    for line, (label, errors) in lines.items():
        if line.get_marker() in ("None", "", " ", None) or label.startswith("_"):
            continue
        out += _of_line(axes, line, label, errors)
    return out


def _of_line(axes: Axes, line: Line2D, label: str, errors: np.ndarray) -> list[Spot]:
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    figure, title = axes.get_figure(), _plain(axes.get_title() or axes.get_title(loc="left"))
    assert isinstance(figure, Figure)
    at = figure.transFigure.inverted().transform(line.get_transform().transform(np.column_stack([x, y])))
    names = [
        _plain(axes.get_xlabel() or figure.get_supxlabel() or "x"),
        _plain(axes.get_ylabel() or figure.get_supylabel() or "y"),
    ]
    label = ", ".join(filter(None, [label, title]))
    return [
        Spot(
            round(100 * float(left), 2),
            round(100 * (1 - float(bottom)), 2),
            "\n".join([label, f"{names[0]}: {a:.4g}", f"{names[1]}: {b:.4g}{_error(error)}"]),
        )
        for (left, bottom), a, b, error in zip(at, x, y, errors, strict=True)
        if np.isfinite([left, bottom]).all()
    ]


def _half_lengths(container: ErrorbarContainer) -> np.ndarray:
    """Of the vertical bars; NaN where a point has none."""
    segments = [bar.get_segments() for bar in container.lines[2]]
    if not segments:
        return np.full(np.size(container.lines[0].get_xdata()), np.nan)
    return np.array([abs(s[1][1] - s[0][1]) / 2 if len(s) == 2 else np.nan for s in segments[-1]])


def _error(error: float) -> str:
    return f" ± {error:.2g}" if np.isfinite(error) and error > 0 else ""


def _plain(text: str) -> str:
    """An axis label without mathematics: `$10^{12}$` as 10^12."""
    return re.sub(r"[${}\\]", "", text).replace("\n", " ")
