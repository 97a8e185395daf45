"""HTML pages that stand alone: templates beside this module, pictures inline, one style for all."""

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
import markupsafe
import numpy as np


def template(name: str) -> jinja2.Template:
    """The template of that file name in this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["subscripts"] = subscripts
    return environment.get_template(name)


def subscripts(text: str) -> markupsafe.Markup:
    """`F_c` and `N_a` as they are written in prose."""
    safe = str(markupsafe.escape(text))
    return markupsafe.Markup(safe.replace("F_c", "F<sub>c</sub>").replace("N_a", "N<sub>a</sub>"))


def inline(data: bytes) -> str:
    return base64.b64encode(data).decode()


def plain(value: float | None, pattern: str = "{:.2f}") -> str:
    """A number for reading, with a true minus sign; a dash for what is missing."""
    return "–" if value is None or not np.isfinite(value) else pattern.format(value).replace("-", "−")


def between(ends: Sequence[float | None] | None, factor: float = 1.0, pattern: str = "{:.2f}") -> str:
    """An interval for reading, its ends times `factor`: "−0.3 to +1.2"; a dash for none."""
    known = [end for end in ends or () if end is not None]
    return " to ".join(plain(factor * end, pattern) for end in known) if len(known) == 2 else "–"
