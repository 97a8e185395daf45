"""The files that a page offers beside itself, as relative links."""

from collections.abc import Iterable
from typing import Any

WHAT = {
    "cells.csv": "every cell: settings, budgets, accuracies, losses",
    "correlation.json": "every statistic of this page, and the claims",
    "claims.json": "every claim with its numbers and the cells behind it",
    "claims.tex": "the table of claims for a paper",
    "README.md": "this page for a repository, with figures/*.png beside it",
    "laws.csv": "every parameter of the fitted laws",
    "growths.csv": "each growth of each cell",
    "twins.csv": "twins and moments along training",
    "update_cosines.csv": "what two ways of growing learn from one checkpoint",
}


def downloads(names: Iterable[str], figures: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`files` (name, what it holds) and `figures` (those that have a picture), relative to the page."""
    return {
        "files": [(name, WHAT[name]) for name in names],
        "figures": [figure["file"] for figure in figures if figure["pictures"]],
    }
