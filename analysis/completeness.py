"""What a study lacks, in sentences for people."""

from typing import Any

import pandas as pd

from analysis.evaluations import comparable, mixture


def missing(cells: pd.DataFrame, stored: dict[str, Any]) -> list[str]:
    """Sentences that say what the study lacks; none if it is whole. `stored` is what `Store.study` gives."""
    out = []
    if stored["cells"] is None:
        out.append("The study has no cells.json: it was not run yet.")
    if stored["summary"] is None:
        out.append("The study has no summary: its run has not ended, or was killed.")
    out += incomplete(cells)
    return out + [f"Warning of the run: {text}" for text in (stored["summary"] or {}).get("warnings", [])]


def incomplete(cells: pd.DataFrame) -> list[str]:
    """The part of `missing` that the table of cells shows."""
    out = []
    for status in ("diverged", "failed", "blocked", "todo"):
        ids = cells.loc[cells["status"] == status, "cell_id"].tolist()
        if ids:
            word = "not trained yet" if status == "todo" else status
            out.append(f"{_cells(len(ids))} {word}: {_some(ids)}.")
    done = cells[cells["status"] == "done"]
    unmeasured = done.loc[done["final_acc"].isna(), "cell_id"].tolist()
    if unmeasured:
        out.append(f"{_cells(len(unmeasured))} done but without a final accuracy: {_some(unmeasured)}.")
    lossless = done.loc[done["final_acc"].notna() & done["final_loss"].isna(), "cell_id"].tolist()
    if lossless:
        out.append(f"{_cells(len(lossless))} with a final accuracy but no final loss: {_some(lossless)}.")
    if sentence := mixture(cells):
        out.append(sentence)
    return out + _without_controls(comparable(cells), mixed=mixture(cells) is not None)


def _without_controls(cells: pd.DataFrame, mixed: bool) -> list[str]:
    out = []
    grown = cells[(cells["kind"] == "branch") & (cells["status"] == "done")]
    for control in ("continued", "scratch_extra", "scratch_total", "sham"):
        wanted = grown if control == "continued" else grown[grown[f"{control}_id"] != ""]
        none = wanted.loc[wanted[f"{control}_acc"].isna(), "cell_id"].tolist()
        if none:
            asked = " of the same evaluation" if mixed else ""
            what = "no net is shown" if control == "continued" else "no gain over it is shown"
            out.append(
                f"{_cells(len(none))} without a finished {control} control{asked}, so {what}: {_some(none)}."
            )
    return out


def _cells(n: int) -> str:
    return f"{n} cell{'s' if n != 1 else ''}"


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:6]) + (f" and {len(ids) - 6} more" if len(ids) > 6 else "")
