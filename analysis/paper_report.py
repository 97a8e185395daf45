"""The whole paper as one page: each claim with its verdict, each figure that the studies of a store allow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells_section import write_cells
from analysis.claims import CLAIMS, TEXT, judge_together
from analysis.claims_table import label, latex, least, markdown, ours
from analysis.completeness import missing
from analysis.correlation import correlate
from analysis.downloads import downloads
from analysis.evaluations import comparable
from analysis.figures.catalogue import FIGURES, Entry, StudyTables, draw
from analysis.findings import finished
from analysis.law_tables import law_tables
from analysis.opening import opening, regime
from analysis.page import plain, template
from analysis.pictures import picture
from analysis.provenance import paper_provenance
from analysis.rates import rate_table
from analysis.table import cells_table
from moe.plain import check
from sweeps.store import Store

_DRAWN_IN = {
    **{"C1": "F1 F10 N2", "C2": "F12 N1", "C3": "F3 F5 N8", "C4": "F4", "C5": "F2 F6 T2", "C6": "F7 N4"},
    **{"C7": "F8", "C8": "F9 T1", "C9": "F11 N5 N8", "C10": "F13", "C11": ""},
}
_LEADS = ("fixed_extra", "timing")  # whose sentence opens the page


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where the page is, the sentence that it opens with, and the claims as they were judged."""

    page: Path
    opening: str
    claims: list[dict[str, Any]]


def write_paper(store: Store, directory: str | Path, *, delta: float, command: str) -> Paper:
    """Writes index.html, README.md, claims.json, claims.tex, cells.csv and figures/ of what `store` holds.

    `delta` is the difference of accuracies (a fraction) that counts as none. ValueError if no study of the
    paper is there; a claim or figure without its study says so.
    """
    wanted = dict.fromkeys(name for entry in FIGURES.values() for name in entry.studies)
    wanted |= dict.fromkeys(name for claim in CLAIMS for name in claim.studies)
    named = (f"{name}{end}" for name in wanted for end in ("", TEXT))
    known = [name for name in named if name in store.studies()]
    check(bool(known), f"{store.root} holds none of the paper's studies; run make paper first")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    whole = {name: cells_table(store, name) for name in known}
    studies = {name: comparable(cells) for name, cells in whole.items()}
    more = {name: law_tables(cells) for name, cells in studies.items()}
    both = [studies[name] for name in ("fixed_total", "fixed_extra") if name in studies]
    if len(both) == 2:  # scratch at two budgets, and growth between them
        joint = pd.concat(both, ignore_index=True).drop_duplicates("cell_id", ignore_index=True)
        more["fixed_total"] = law_tables(joint)
    if {"growth_lr", "scratch_lr"} <= set(studies):
        more["growth_lr"] = more["growth_lr"] | {"rates": lambda: _rates(studies)}
    tables = {name: StudyTables(store, name, more[name]) for name in studies}
    claims = judge_together(studies, delta)
    write_cells(pd.concat(whole.values(), ignore_index=True), directory)
    (directory / "claims.json").write_text(json.dumps(claims, indent=1, allow_nan=False) + "\n")
    (directory / "claims.tex").write_text(latex(claims))
    lead = next((name for name in _LEADS if name in studies), known[0])
    sentence = opening(studies[lead], correlate(studies[lead]))
    figures = [_figure(entry, tables, directory / "figures") for entry in FIGURES.values()]
    said = {
        "opening": sentence,
        "lead": lead,
        "not_run": [name for name in wanted if name not in known],
        "missing": {
            name: lacks for name, cells in whole.items() if (lacks := missing(cells, store.study(name)))
        },
        "delta": delta,
        "figures": figures,
        "studies": [_study(name, cells) for name, cells in whole.items()],
        "provenance": paper_provenance(store, whole, command),
    }
    page = template("paper.html.jinja").render(
        claims=[_shown(row, studies) for row in claims],
        downloads=downloads(("cells.csv", "claims.json", "claims.tex", "README.md"), figures),
        **said,
    )
    (directory / "index.html").write_text(page, encoding="utf-8")
    text = template("paper.md.jinja").render(claims=markdown(claims), **said)
    (directory / "README.md").write_text(text, encoding="utf-8")
    return Paper(page=directory / "index.html", opening=sentence, claims=claims)


def _rates(studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Of growing and continuing, and of starting over."""
    return pd.concat([rate_table(studies[name]) for name in ("growth_lr", "scratch_lr")], ignore_index=True)


def _shown(row: dict[str, Any], studies: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """A row of the claims table in words."""
    grown = finished(studies[row["study"]]) if row["study"] else pd.DataFrame()
    return {
        **row,
        "name": label(row),
        "ours": ours(row),
        "least": least(row),
        "regime": f"{regime(grown)}." if len(grown) else "",
        "figures": _DRAWN_IN.get(row["id"], "").split(),
    }


def _figure(entry: Entry, tables: Mapping[str, StudyTables], directory: Path) -> dict[str, Any]:
    """A figure drawn from the first of its studies that allows it; or why it is left out."""
    out: dict[str, Any] = {"id": entry.id, "title": entry.title, "study": None}
    out |= {"pictures": {}, "caption": f"Study {' or '.join(entry.studies)} has not been run."}
    for study in entry.studies:
        if study in tables:
            drawn = picture(lambda own=tables[study]: draw(entry, own), directory, entry.name)
            if drawn["pictures"] or out["study"] is None:
                out |= drawn | {"study": study}
            if drawn["pictures"]:
                break
    return out


def _study(name: str, cells: pd.DataFrame) -> dict[str, Any]:
    grown = cells[cells["kind"] == "branch"]
    spans = {name: _span(grown[f"{name}_f_c"].dropna()) for name in ("sunk", "extra")}
    params = sorted(set(cells["trunk_activated_params"].dropna()))
    return {
        "name": name,
        "cells": len(cells),
        "done": int((cells["status"] == "done").sum()),
        "trunks": grown["replicate"].nunique(),
        "params": ", ".join(f"{value:.3g}" for value in params),
        **spans,
    }


def _span(values: pd.Series) -> str:
    ends = dict.fromkeys(plain(end) for end in (values.min(), values.max()))
    return " to ".join(ends)
