"""One self-contained page per study, and beside it the tables and pictures that it is made of."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.cells_section import cell_rows, write_cells
from analysis.claims import judge
from analysis.completeness import missing
from analysis.correlation import correlate
from analysis.curves import curves, family_curves, trunk_curves
from analysis.decision import decision_table
from analysis.downloads import downloads
from analysis.evaluations import comparable
from analysis.figures import (
    accuracy_against_sunk_flops,
    accuracy_by_family,
    clone_divergence,
    function_preservation_waterfall,
    learning_curves_by_family,
    loss_and_accuracy_by_sunk_flops,
    trunk_with_growth_points,
)
from analysis.growth_section import GrowthSection, growth_section
from analysis.laws_section import laws_section
from analysis.opening import opening
from analysis.page import template
from analysis.pictures import Drawing, picture
from analysis.provenance import study_provenance
from analysis.statistics_section import statistics_rows
from analysis.table import cells_table
from sweeps.store import Store

DELTA = 0.01
_FILES = (
    *("cells.csv", "correlation.json", "laws.csv"),
    *("growths.csv", "twins.csv", "update_cosines.csv"),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where the page is, and the sentence that it opens with."""

    page: Path
    opening: str


def write_report(
    store: Store, study: str, directory: str | Path, *, delta: float = DELTA, command: str = ""
) -> Report:
    """Writes index.html, tables as .csv, correlation.json and figures/ into `directory`; needs no network.

    `delta` is the difference of accuracies that counts as none. Unfinished studies get a page that says
    what is missing; of cells that were asked different questions, the main evaluation's alone are held
    against each other. An unknown study is a `ValueError`; then nothing is written.
    """
    stored = store.study(study)
    cells = cells_table(store, study)
    alike = comparable(cells)
    correlation = correlate(alike)
    sentence = opening(alike, correlation)
    claims = judge(alike, correlation, delta)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_cells(cells, directory)
    found = {"study": study, "opening": sentence, "delta": delta, "claims": claims, **correlation}
    (directory / "correlation.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    growth = growth_section(store, study, directory)
    drawings = _drawings(store, study, alike, growth)
    figures = {name: picture(draw, directory / "figures", name) for name, draw in drawings.items()}
    page = template("page.html.jinja").render(
        study=study,
        opening=sentence,
        missing=missing(cells, stored),
        decision=decision_table(alike),
        n_trunks=correlation["n_trunks"],
        figures=figures,
        growth=growth.rows,
        claims=claims,
        delta=100 * delta,
        statistics=statistics_rows(correlation),
        laws=laws_section(alike, directory),
        cells=cell_rows(cells),
        downloads=downloads(_FILES, figures.values()),
        provenance=study_provenance(store, study, cells, command or f"python report.py study={study}"),
    )
    (directory / "index.html").write_text(page, encoding="utf-8")
    return Report(page=directory / "index.html", opening=sentence)


def _drawings(store: Store, study: str, cells: pd.DataFrame, growth: GrowthSection) -> dict[str, Drawing]:
    """The page's figures by the name of their files, each drawn when it is called."""
    after, trunks, families = curves(store, study), trunk_curves(store, study), family_curves(store, study)
    return {
        "accuracy_against_sunk_flops": lambda: accuracy_against_sunk_flops(cells),
        "loss_and_accuracy_by_sunk_flops": lambda: loss_and_accuracy_by_sunk_flops(after),
        "trunk_with_growth_points": lambda: trunk_with_growth_points(trunks, cells),
        "learning_curves_by_family": lambda: learning_curves_by_family(families),
        "accuracy_by_family": lambda: accuracy_by_family(cells),
        "function_preservation_waterfall": lambda: function_preservation_waterfall(growth.growths),
        "clone_divergence": lambda: clone_divergence(growth.twins),
    }
