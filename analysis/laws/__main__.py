"""`python -m analysis.laws study=NAME | FILE.csv …`: the laws of a study or of a table. See docs/laws.md.

Exit code 2 and one line if refused.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rich.box
from rich.console import Console
from rich.table import Table

from analysis.arm_laws import arm_points, laws_of
from analysis.floor import Asked, Floor, floor_asked, floor_given, floor_of
from analysis.laws import ACCURACY, CHINCHILLA, POWER, SUNK_LAWS, Law, Points
from analysis.laws.fitting import RESAMPLES, Comparison, compare
from analysis.table import cells_table
from moe.plain import check
from sweeps.store import Store


def main(arguments: list[str] | None = None) -> int:
    """Prints one table of laws for each arm and gives the exit code."""
    given = _parser().parse_intermixed_args(arguments)
    try:
        check(given.resamples >= 40, f"--resamples={given.resamples} must be 40 or more for a 95 % interval")
        asked = _questions(given)
        found = {name: _answer(one, given) for name, one in asked.items()}
        failed = [why for comparison in found.values() for why in comparison.refused.values()]
        fits = [fit for comparison in found.values() for fit in comparison.fits]
        check(bool(fits), next(iter(failed), "there is nothing to fit"))
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    console = Console()
    for name, comparison in found.items():
        if comparison.fits:
            console.print(_table(name, comparison))
        if comparison.fits and asked[name].floor.why:
            console.print(asked[name].floor.why, highlight=False, markup=False, soft_wrap=True)
        for why in comparison.refused.values():
            console.print(f"{name}: {why}", highlight=False, markup=False, soft_wrap=True)
    if given.json:
        plain = {name: _plain(one) | {"floor": asked[name].floor.why} for name, one in found.items()}
        Path(given.json).write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.laws", description="Laws of loss against sunk and extra FLOPs."
    )
    parser.add_argument("words", nargs="+", metavar="study=NAME|launch.store=DIR|FILE.csv")
    for column in ("sunk", "extra", "loss", "trunk", "acc", "params", "tokens"):
        parser.add_argument(f"--{column}", metavar="COLUMN", help=f"the column of {column} in FILE.csv")
    parser.add_argument("--f-c", type=float, default=1.0, help="FLOPs of one F_c (1: the file is in F_c)")
    parser.add_argument("--floor", help="E in nats per token, or free; else what the data says")
    parser.add_argument("--noise", type=float, help="standard deviation of log loss at one point")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"bootstrap resamples ({RESAMPLES})")
    parser.add_argument("--json", metavar="OUT", help="write the same as JSON")
    return parser


@dataclass(frozen=True, kw_only=True)
class _Question:
    points: Points
    laws: tuple[Law, ...]
    floor: Floor


def _questions(given: argparse.Namespace) -> dict[str, _Question]:
    """The points of each arm of a study, or of a file, and the laws that they are asked for."""
    settings = dict(word.split("=", 1) for word in given.words if "=" in word)
    files = [word for word in given.words if "=" not in word]
    unknown = sorted(set(settings) - {"study", "launch.store"})
    check(
        not unknown, f"unknown key {', '.join(unknown)}; give study=NAME and launch.store=DIR, or a FILE.csv"
    )
    check(
        len(files) + ("study" in settings) == 1,
        "give either study=NAME or one FILE.csv with --sunk, --extra and --loss",
    )
    if files:
        points = _of_file(files[0], given)
        laws = SUNK_LAWS if np.ptp(points.sunk) > 0 else (POWER,)
        out = {files[0]: laws}
        out |= {"without growth": (CHINCHILLA,)} if given.params and given.tokens else {}
        out |= {"accuracy": (ACCURACY,)} if given.acc else {}
        floor = floor_given(floor_asked(given.floor))
        return {name: _Question(points=points, laws=laws, floor=floor) for name, laws in out.items()}
    cells = cells_table(Store(settings.get("launch.store", "store")), settings["study"])
    return _of_study(cells, floor_asked(given.floor))


def _of_study(cells: pd.DataFrame, asked: Asked) -> dict[str, _Question]:
    """One E for all arms; that of the runs without growth, whose law has the model's size, is another."""
    arms = {}
    for name, points in arm_points(cells, need_continued=False).items():
        sizes = points.activated_params
        assert sizes is not None, "cells have an N_a"
        arms[name] = points, laws_of(name, sizes)
    done = cells[(cells["status"] == "done") & cells["final_loss"].notna()]
    whole = _of_cells(done[done["kind"] != "branch"]), (CHINCHILLA,)
    scored = _of_cells(done[done["final_acc"].notna()]), (ACCURACY,)
    groups = (arms, {"without growth": whole}, {"accuracy": scored})
    out: dict[str, _Question] = {}
    for group in groups:
        floor = Floor() if "accuracy" in group else floor_of(cells, group.values(), asked)
        out |= {name: _Question(points=p, laws=laws, floor=floor) for name, (p, laws) in group.items()}
    return out


def _of_cells(cells: pd.DataFrame) -> Points:
    """Cells whose place is no budget: what size and tokens, or loss and accuracy, are fitted to."""
    names = {"loss": "final_loss", "acc": "final_acc", "activated_params": "activated_params"}
    columns = {name: cells[column].to_numpy(float) for name, column in (names | {"tokens": "tokens"}).items()}
    ones = np.ones(len(cells))
    return Points(sunk=ones, extra=ones, trunk=cells["replicate"].to_numpy(str), **columns)


def _of_file(path: str, given: argparse.Namespace) -> Points:
    table = pd.read_csv(path)
    check(bool(given.f_c > 0), f"--f-c={given.f_c:g} must be above 0")
    for name in ("sunk", "extra", "loss"):
        check(getattr(given, name) is not None, f"--{name} is missing; {path} has {', '.join(table.columns)}")

    def column(name: str) -> np.ndarray | None:
        wanted = getattr(given, name)
        if wanted is None:
            return None
        check(wanted in table, f"--{name}={wanted} is no column of {path}; it has {', '.join(table.columns)}")
        if name == "trunk":
            return table[wanted].to_numpy(str)
        return pd.to_numeric(table[wanted], errors="coerce").to_numpy(float)

    sunk, extra, loss, trunk = (column(name) for name in ("sunk", "extra", "loss", "trunk"))
    assert sunk is not None and extra is not None and loss is not None, "checked above"  # noqa: PT018
    return Points(
        sunk=sunk / given.f_c,
        extra=extra / given.f_c,
        loss=loss,
        trunk=np.zeros(len(table)) if trunk is None else trunk,
        activated_params=column("params"),
        tokens=column("tokens"),
        acc=column("acc"),
    )


def _answer(question: _Question, given: argparse.Namespace) -> Comparison:
    laws, fixed = question.laws, question.floor.fixed
    noise = given.noise if laws != (ACCURACY,) else None
    try:
        return compare(question.points, laws, fixed=fixed, noise=noise, resamples=given.resamples)
    except ValueError as error:
        return Comparison(fits=(), refused={" ".join(law.name for law in laws): str(error)})


def _table(name: str, comparison: Comparison) -> Table:
    fits = comparison.fits
    said = f"{fits[0].n_points} points, 95 % intervals: {fits[0].interval_from}"
    table = Table(title=f"{name}: {said}", title_justify="left", box=rich.box.SIMPLE_HEAD)
    for heading in ("law", "parameters", "AICc", "latest start left out", "error of the fit"):
        table.add_column(heading, no_wrap=heading == "parameters")
    for fit in fits:
        unit = "%" if fit.law.log_target else " points"
        ends = fit.intervals()
        params = [_parameter(name, value, ends[name]) for name, value in fit.named.items()]
        left = "–" if fit.left_out_error is None else f"{100 * fit.left_out_error:.2f}{unit}"
        aicc = "–" if fit.aicc is None else f"{fit.aicc:.1f}"
        law = f"{fit.law.name}\n{fit.law.formula}"
        table.add_row(law, "\n".join(params), aicc, left, f"{100 * fit.error:.2f}{unit}")
    return table


def _parameter(name: str, value: float, ends: tuple[float, float] | None) -> str:
    return f"{name} = {value:.4g}" + (f" ({ends[0]:.4g} to {ends[1]:.4g})" if ends else " (held)")


def _plain(comparison: Comparison) -> dict[str, Any]:
    laws = [
        {
            "law": fit.law.name,
            "formula": fit.law.formula,
            "parameters": fit.named,
            "intervals": fit.intervals(),
            "interval_from": fit.interval_from,
            "aicc": fit.aicc,
            "left_out_error": fit.left_out_error,
            "left_out_because": fit.left_out_because,
            "error": fit.error,
            "delta": fit.delta,
            "n_points": fit.n_points,
            "n_trunks": fit.n_trunks,
        }
        for fit in comparison.fits
    ]
    return {"laws": laws, "refused": comparison.refused}


if __name__ == "__main__":
    sys.exit(main())
