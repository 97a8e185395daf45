"""Figures ready for a page: saved, drawn light and dark, inline, with the values of their points."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.spots import spots
from analysis.figures.style import png, save, themed
from analysis.page import inline

_PIXELS_PER_INCH = 117  # the widest figures, of 9.6 inches, fill the page; text is as large in all of them
Drawing = Callable[[], tuple[pd.DataFrame, Figure]]


def picture(draw: Drawing, directory: Path, name: str) -> dict[str, Any]:
    """Draws light (saved under `directory` as `name`) and dark (page only), for `figure.html.jinja`.

    A figure with nothing to draw, or that refuses (`ValueError`), is its sentence alone, and writes no file.
    """
    out: dict[str, Any] = {"pictures": {}, "file": f"{directory.name}/{name}", "spots": [], "width": 0}
    try:
        with themed():
            table, figure = draw()
            caption = str(table.attrs["caption"])
            if table.empty:
                return out | {"caption": caption}
            light = save(table, figure, directory / name)
            points = spots(figure)
        with themed(dark=True):
            dark = png(draw()[1])
    except ValueError as refusal:
        return out | {"caption": str(refusal)}
    return out | {
        "pictures": {"light": inline(light), "dark": inline(dark)},
        "caption": caption,
        "spots": points,
        "width": round(_PIXELS_PER_INCH * figure.get_figwidth()),
    }
