"""The whole paper as one page: each claim with its verdict, each figure that the studies of a store allow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.arm_laws import fit_arms
from analysis.budget import decision_map, recycling_efficiency
from analysis.claims import CLAIMS, TEXT, judge_together
from analysis.correlation import correlate
from analysis.figures.catalogue import FIGURES, Entry, StudyTables, draw
from analysis.figures.style import png, save, themed
from analysis.findings import finished
from analysis.opening import opening, regime
from analysis.page import inline, plain, template
from analysis.rates import rate_table
from analysis.table import cells_table
from analysis.verdict import points
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
    """Writes index.html, claims.json, claims.tex, cells.csv and figures/ of the studies that `store` holds.

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
    studies = {name: cells_table(store, name) for name in known}
    more = {name: _fitted(cells) for name, cells in studies.items()}
    if {"growth_lr", "scratch_lr"} <= set(studies):
        rates = [rate_table(studies[name]) for name in ("growth_lr", "scratch_lr")]
        more["growth_lr"] |= {"rates": pd.concat(rates, ignore_index=True)}
    tables = {name: StudyTables(store, name, more[name]) for name in studies}
    claims = judge_together(studies, delta)
    pd.concat(studies.values(), ignore_index=True).to_csv(directory / "cells.csv", index=False)
    (directory / "claims.json").write_text(json.dumps(claims, indent=1, allow_nan=False) + "\n")
    (directory / "claims.tex").write_text(_latex(claims))
    lead = studies[next((name for name in _LEADS if name in studies), known[0])]
    sentence = opening(lead, correlate(lead))
    page = template("paper.html.jinja").render(
        opening=sentence,
        missing=[f"Study {name} has not been run." for name in wanted if name not in known],
        claims=[_shown(row, studies) for row in claims],
        delta=delta,
        figures=[_figure(entry, tables, directory / "figures") for entry in FIGURES.values()],
        studies=[_study(name, cells) for name, cells in studies.items()],
        provenance=_provenance(store, studies, command),
    )
    (directory / "index.html").write_text(page, encoding="utf-8")
    return Paper(page=directory / "index.html", opening=sentence, claims=claims)


def label(row: Mapping[str, Any]) -> str:
    """What a row of the claims table is called: C3, or "C3, tuned rates, text"."""
    more = ["tuned rates"] * (row["rates"] == "tuned") + ["text"] * (row["data"] == "text")
    return ", ".join([row["id"], *more])


def _shown(row: dict[str, Any], studies: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """A row of the claims table in words."""
    interval = row["interval"]
    ours = "–" if row["effect"] is None else points(row["effect"])
    ours += f" ({points(interval[0])} to {points(interval[1])})" if interval else ""
    least = row["minimum_detectable"]
    grown = finished(studies[row["study"]]) if row["study"] else pd.DataFrame()
    return {
        **row,
        "name": label(row),
        "ours": ours,
        "least": plain(None if least is None else 100 * least, "{:.1f}"),
        "regime": f"{regime(grown)}." if len(grown) else "",
        "figures": _DRAWN_IN.get(row["id"], "").split(),
    }


def _figure(entry: Entry, tables: Mapping[str, StudyTables], directory: Path) -> dict[str, Any]:
    """Draws a figure from the first of its studies, light (saved) and dark; or says why it is left out."""
    study = next((name for name in entry.studies if name in tables), None)
    known = {"id": entry.id, "title": entry.title, "study": study, "file": f"figures/{entry.name}"}
    if study is None:
        return known | {"pictures": {}, "caption": f"Study {' or '.join(entry.studies)} has not been run."}
    try:
        with themed():
            table, figure = draw(entry, tables[study])
            light = save(table, figure, directory / entry.name)
        with themed(dark=True):
            dark = png(draw(entry, tables[study])[1])
    except ValueError as missing:
        return known | {"pictures": {}, "caption": str(missing)}
    pictures = {"light": inline(light), "dark": inline(dark)}
    return known | {"pictures": pictures, "caption": str(table.attrs["caption"])}


def _fitted(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of N1 (of the first way of growing) and N5; {} where no law can be fitted."""
    try:
        laws = fit_arms(cells)
    except ValueError:
        return {}
    rows = []
    for arm in laws.grown:
        found = recycling_efficiency(laws, arm)
        rows.append({"arm": arm, "phase": "all", "rho": found.value, "low": found.low, "high": found.high})
    tables = {"efficiency": pd.DataFrame(rows, columns=["arm", "phase", "rho", "low", "high"])}
    if laws.grown:
        arm, totals = next(iter(laws.grown)), cells["total_flops"] / cells["f_c"]
        grid = decision_map(
            laws, arm, np.linspace(0.05, 0.95, 19), np.geomspace(totals.min(), totals.max(), 15)
        )
        known = grid[grid["studied"]]
        gains = pd.DataFrame(
            {
                "sunk_share": known["sunk_share"],
                "total_flops": known["total_f_c"] * float(cells["f_c"].dropna().iloc[0]),
                "difference": known["gain"],
                "low": known["gain_low"],
                "high": known["gain_high"],
            }
        )
        gains.attrs = {
            "what": f"Loss from scratch less that of {arm}, by the law",
            "label": "scratch − grown (nats)",
        }
        tables["budget_map"] = gains
    return tables


def _study(name: str, cells: pd.DataFrame) -> dict[str, Any]:
    grown = cells[cells["kind"] == "branch"]
    ends = {"sunk": grown["sunk_f_c"], "extra": grown["extra_f_c"]}
    spans = {key: f"{plain(v.min())} to {plain(v.max())}" if len(v) else "–" for key, v in ends.items()}
    params = sorted(set(cells["trunk_activated_params"].dropna()))
    return {
        "name": name,
        "cells": len(cells),
        "done": int((cells["status"] == "done").sum()),
        "trunks": grown["replicate"].nunique(),
        "params": ", ".join(f"{value:.3g}" for value in params),
        **spans,
    }


def _provenance(store: Store, studies: Mapping[str, pd.DataFrame], command: str) -> dict[str, str]:
    summaries = [store.study(name)["summary"] or {} for name in studies]
    commits = sorted({str(summary.get("git_commit") or "–") for summary in summaries})
    versions = sorted({f"{k} {v}" for s in summaries for k, v in (s.get("versions") or {}).items()})
    runs = [run for summary in summaries for run in summary.get("runs", [])]
    return {
        "FLOPs trained by all runs": f"{sum(run.get('spent_flops') or 0.0 for run in runs):.3g}",
        "hours of all runs": f"{sum(run.get('wall_s') or 0.0 for run in runs) / 3600:.2g}",
        "seeds": ", ".join(f"{seed:g}" for seed in sorted({s for c in studies.values() for s in c["seed"]})),
        "git commits of the runs": ", ".join(commits),
        "versions of the runs": ", ".join(versions),
        "command": command,
    }


def _latex(claims: list[dict[str, Any]]) -> str:
    """The claims table for a paper: booktabs, one row a claim."""
    lines = [r"\begin{tabular}{llrrl}", r"\toprule"]
    lines += [r"claim & verdict & effect (95\,\% interval), points & trunks & the paper \\", r"\midrule"]
    for row in claims:
        low, high = (f"{100 * end:+.1f}" for end in row["interval"]) if row["interval"] else ("", "")
        effect = "--" if row["effect"] is None else f"{100 * row['effect']:+.1f}"
        number = f"${effect}$ (${low}$ to ${high}$)" if low else effect
        paper = row["paper"].replace("%", r"\%").replace("→", r"$\to$")
        verdict = row["verdict"].replace("±δ", r"$\pm\delta$")
        lines.append(rf"{label(row)} & {verdict} & {number} & {row['n_trunks']} & {paper} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
