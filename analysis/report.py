"""One self-contained page per study, and beside it the tables and pictures that it is made of."""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.arms import standard_error
from analysis.claims import judge
from analysis.correlation import correlate
from analysis.curves import curves, family_curves, trunk_curves
from analysis.figures import (
    accuracy_against_sunk_flops,
    accuracy_by_family,
    clone_divergence,
    function_preservation_waterfall,
    learning_curves_by_family,
    loss_and_accuracy_by_sunk_flops,
    save,
    themed,
    trunk_with_growth_points,
)
from analysis.figures.spots import spots
from analysis.figures.style import png
from analysis.growth_section import GrowthSection, growth_section
from analysis.opening import opening
from analysis.page import inline, plain, template
from analysis.table import cells_table
from analysis.verdict import points
from sweeps.store import Store

DELTA = 0.01
_WHOLE = (
    *("growth_step", "depth_factor", "width_factor", "seed", "growth_seed", "n", "tokens", "unique_tokens"),
    *("growth_warmup_steps", "keep_first", "keep_last"),
    *("activated_params", "activated_matmul_params", "total_params", "trunk_activated_params"),
)
_Drawing = Callable[[], tuple[pd.DataFrame, Figure]]
_SERIES = {"net": "net", "without_scratch": "final accuracy", "with_scratch": "… with scratch"}


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
    what is missing. An unknown study is a `ValueError`; then nothing is written.
    """
    stored = store.study(study)
    cells = cells_table(store, study)
    correlation = correlate(cells)
    sentence = opening(cells, correlation)
    claims = judge(cells, correlation, delta)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _for_csv(cells).to_csv(directory / "cells.csv", index=False)
    found = {"study": study, "opening": sentence, "delta": delta, "claims": claims, **correlation}
    (directory / "correlation.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    growth = growth_section(store, study, directory)
    figures = _figures(_drawings(store, study, cells, growth), directory / "figures")
    page = template("page.html.jinja").render(
        study=study,
        opening=sentence,
        missing=missing(cells, stored),
        decision=decision_table(cells),
        n_trunks=correlation["n_trunks"],
        figures=figures,
        growth=growth.rows,
        claims=claims,
        delta=100 * delta,
        correlations=_condensed(_correlation_rows(correlation)),
        reason=_reason(correlation),
        cells=_cell_rows(cells),
        provenance=_provenance(stored, cells, command or f"python report.py study={study}"),
    )
    (directory / "index.html").write_text(page, encoding="utf-8")
    return Report(page=directory / "index.html", opening=sentence)


def missing(cells: pd.DataFrame, stored: dict[str, Any]) -> list[str]:
    """Sentences that say what the study lacks; none if it is whole."""
    out = []
    if stored["cells"] is None:
        out.append("The study has no cells.json: it was not run yet.")
    if stored["summary"] is None:
        out.append("The study has no summary: its run has not ended, or was killed.")
    for status in ("diverged", "failed", "blocked", "todo"):
        ids = cells.loc[cells["status"] == status, "cell_id"].tolist()
        if ids:
            word = "not trained yet" if status == "todo" else status
            out.append(f"{_cells(len(ids))} {word}: {_some(ids)}.")
    done = cells[cells["status"] == "done"]
    unmeasured = done.loc[done["final_acc"].isna(), "cell_id"].tolist()
    if unmeasured:
        out.append(f"{_cells(len(unmeasured))} done but without a final evaluation: {_some(unmeasured)}.")
    grown = done[done["kind"] == "branch"]
    for control in ("continued", "scratch_extra", "scratch_total", "sham"):
        wanted = grown if control == "continued" else grown[grown[f"{control}_id"] != ""]
        none = wanted.loc[wanted[f"{control}_acc"].isna(), "cell_id"].tolist()
        if none:
            what = "no net is shown" if control == "continued" else "no gain over it is shown"
            out.append(f"{_cells(len(none))} without a finished {control} control, so {what}: {_some(none)}.")
    return out + [f"Warning of the run: {text}" for text in (stored["summary"] or {}).get("warnings", [])]


def _cells(n: int) -> str:
    return f"{n} cell{'s' if n != 1 else ''}"


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:6]) + (f" and {len(ids) - 6} more" if len(ids) > 6 else "")


def decision_table(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Per growth step and arm: base, grown, *continued*, both scratch, as "mean ± standard error" in %.

    Means are over trunks; the standard error is of the evaluation for one trunk, over trunks for more.
    """
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    rows = []
    for (step, arm), own in grown.groupby(["growth_step", "arm"], sort=True):
        row = {"growth_step": f"{step:g}", "arm": arm, "sunk": plain(own["sunk_f_c"].mean(), "{:.2g} F_c")}
        for name in ("base", "final", "continued", "scratch_extra", "scratch_total", "sham"):
            row[name] = _mean_and_error(own, f"{name}_acc", f"{name}_acc_se")
        row["net"] = _mean_and_error(own, "net", "net_se", sign=True)
        rows.append(row)
    return _started_over(cells) + rows


def _started_over(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells asked for at step 0 that are nobody's control, so that no column shows them."""
    alone = (cells["kind"] == "scratch") & (cells["control_of"] == "") & cells["final_acc"].notna()
    if not alone.any():
        return []
    names = ("base", "continued", "scratch_extra", "scratch_total", "sham", "net")
    final = _mean_and_error(cells[alone], "final_acc", "final_acc_se")
    return [
        {"growth_step": "0", "arm": "start over", "sunk": "0", "final": final, **dict.fromkeys(names, "–")}
    ]


def _mean_and_error(own: pd.DataFrame, value: str, error: str, sign: bool = False) -> str:
    own = own[own[value].notna()]
    if own.empty:
        return "–"
    per_trunk = own.groupby("replicate")[value].mean()
    se = standard_error(per_trunk, float(np.sqrt((own[error] ** 2).mean())))
    mean = points(per_trunk.mean()) if sign else f"{100 * per_trunk.mean():.1f}"
    return f"{mean} ± {100 * se:.1f}" if np.isfinite(se) else mean


def _drawings(store: Store, study: str, cells: pd.DataFrame, growth: GrowthSection) -> dict[str, _Drawing]:
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


def _figures(drawings: dict[str, _Drawing], directory: Path) -> dict[str, dict[str, Any]]:
    """Draws each figure light (saved) and dark (page only) and returns it ready for the page."""
    out = {}
    for name, draw in drawings.items():
        with themed():
            table, figure = draw()
            light = save(table, figure, directory / name)
            points_of = spots(figure)
        with themed(dark=True):
            dark = png(draw()[1])
        caption = table.attrs["caption"]
        pictures = {"light": inline(light), "dark": inline(dark)} if len(table) else {}
        out[name] = {"pictures": pictures, "caption": caption, "file": f"figures/{name}", "spots": points_of}
    return out


def _correlation_rows(correlation: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for y, label in _SERIES.items():
        for arm, parts in correlation["series"].items():
            part = parts[y]
            null, slope = part["monotone_null"], part["theil_sen"]
            interval = part["interval"] or {}
            ends = interval.get("theil_sen_slope")
            least = part["minimum_detectable"] or {}
            rows.append(
                {
                    "y": label,
                    "arm": arm,
                    "n": f"{part['n_cells']} ({part['n_trunks']})",
                    "refused": part["refused"] or "",
                    "null": f"{null['median']:.2f} ({null['low']:.2f} to {null['high']:.2f})" if null else "",
                    "pearson": plain(part["pearson"]),
                    "pearson_log": plain(part["pearson_log_sunk"]),
                    "ranks": f"{plain(part['spearman'])} / {plain(part['kendall'])}",
                    "slope": plain(100 * slope["slope"], "{:+.3g}") if slope else "–",
                    "interval": f"{plain(100 * ends[0], '{:+.3g}')} to {plain(100 * ends[1], '{:+.3g}')}"
                    if ends
                    else "none",
                    "least": plain(_times(least.get("over_the_range"), 100), "{:.1f}"),
                }
            )
    return rows


def _condensed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Arms that are refused for the same reason in one row, so that many small arms are not many rows."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        alone = row["arm"] if not row["refused"] or row["arm"] == "pooled" else ""
        groups.setdefault((row["y"], row["refused"], alone), []).append(row)
    return [
        own[0] if len(own) == 1 else {**own[0], "arm": f"each of {len(own)} ways of growing"}
        for own in groups.values()
    ]


def _reason(correlation: dict[str, Any]) -> str:
    return correlation["series"]["pooled"]["net"]["no_interval_because"] or ""


def _cell_rows(cells: pd.DataFrame) -> list[dict[str, str]]:
    order = cells.sort_values(["seed", "kind", "growth_step", "arm"], kind="stable")
    rows = []
    for cell in order.to_dict("records"):
        row = {name: str(cell[name]) for name in ("cell_id", "kind", "arm", "status")}
        row |= {name: plain(cell[name], "{:g}") for name in ("growth_step", "seed")}
        row |= {name: plain(cell[name], "{:.3g}") for name in ("sunk_f_c", "extra_f_c", "total_flops")}
        for name in ("base_acc", "start_acc", "stable_acc"):
            row[name] = plain(_times(cell[name], 100), "{:.1f}")
        se = plain(_times(cell["final_acc_se"], 100), " ± {:.1f}")
        row["final_acc"] = plain(_times(cell["final_acc"], 100), "{:.1f}") + se.replace("–", "")
        for name in ("net", "gain_over_scratch_extra", "gain_over_scratch_total"):
            row[name] = "–" if pd.isna(cell[name]) else points(cell[name])
        rows.append(row)
    return rows


def _for_csv(cells: pd.DataFrame) -> pd.DataFrame:
    whole = {name: cells[name].round().astype("Int64") for name in _WHOLE}
    return cells.assign(**whole)


def _provenance(stored: dict[str, Any], cells: pd.DataFrame, command: str) -> dict[str, Any]:
    plan, summary = stored["plan"] or {}, stored["summary"] or {}
    naive, shared = plan.get("flops_naive"), plan.get("flops_shared")
    facts = {
        "cells asked for": plan.get("cells"),
        "controls added": plan.get("controls"),
        "trajectories": plan.get("trajectories"),
        "FLOPs if each cell trained alone": plain(naive, "{:.3g}"),
        "FLOPs with what cells share trained once": plain(shared, "{:.3g}"),
        "ratio": plain(naive / shared, "{:.2f}×") if naive and shared else "–",
        "FLOPs to derive states again (rewind)": plain(plan.get("flops_rewind"), "{:.3g}"),
        "FLOPs spent by the last run": plain(summary.get("spent_flops"), "{:.3g}"),
        "seconds of the last run": plain(summary.get("wall_s"), "{:.0f}"),
        "cells of the last run: done / cached / failed / blocked / diverged": " / ".join(
            str(summary.get(name, "–")) for name in ("done", "cached", "failed", "blocked", "diverged")
        ),
        "git commit of the run": summary.get("git_commit"),
        "versions of the run": ", ".join(
            f"{k} {v}" for k, v in sorted((summary.get("versions") or {}).items())
        ),
        "versions of the report": ", ".join(f"{k} {v}" for k, v in _versions().items()),
        "command": command,
    }
    trunks = sorted(set(cells.loc[cells["kind"] == "branch", "trunk_id"]))
    ends = sorted(set(cells["trajectory_id"]) - {""})
    shown = {name: "–" if value in (None, "") else str(value) for name, value in facts.items()}
    return {"facts": shown, "trunks": trunks, "ends": ends}


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in ("regrow", "numpy", "pandas", "scipy", "matplotlib"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed as a package"
    return out


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
