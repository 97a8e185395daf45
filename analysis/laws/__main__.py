"""`python -m analysis.laws study=NAME | FILE.csv …`: the laws of a study or of a table. See docs/laws.md.

Exit code 2 and one line if refused.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rich.box
from rich.console import Console
from rich.table import Table

from analysis.arm_laws import arm_points, laws_of
from analysis.laws import ACCURACY, CHINCHILLA, POWER, SUNK_LAWS, Law, Points
from analysis.laws.fitting import RESAMPLES, Comparison, compare
from analysis.table import cells_table
from moe.plain import check
from sweeps.store import Store

_Question = tuple[Points, tuple[Law, ...]]


def main(arguments: list[str] | None = None) -> int:
    """Prints one table of laws for each arm and gives the exit code."""
    given = _parser().parse_intermixed_args(arguments)
    try:
        check(given.resamples >= 40, f"--resamples={given.resamples} must be 40 or more for a 95 % interval")
        found = {name: _answer(question, given) for name, question in _questions(given).items()}
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
        for why in comparison.refused.values():
            console.print(f"{name}: {why}", highlight=False, markup=False, soft_wrap=True)
    if given.json:
        plain = {name: _plain(comparison) for name, comparison in found.items()}
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
    parser.add_argument("--floor", type=float, help="E in nats per token, where it is known")
    parser.add_argument("--noise", type=float, help="standard deviation of log loss at one point")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"bootstrap resamples ({RESAMPLES})")
    parser.add_argument("--json", metavar="OUT", help="write the same as JSON")
    return parser


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
        out: dict[str, _Question] = {files[0]: (points, laws)}
        out |= {"without growth": (points, (CHINCHILLA,))} if given.params and given.tokens else {}
        return out | ({"accuracy": (points, (ACCURACY,))} if given.acc else {})
    return _of_study(cells_table(Store(settings.get("launch.store", "store")), settings["study"]))


def _of_study(cells: pd.DataFrame) -> dict[str, _Question]:
    out: dict[str, _Question] = {}
    for name, points in arm_points(cells, need_continued=False).items():
        sizes = points.activated_params
        assert sizes is not None, "cells have an N_a"
        out[name] = points, laws_of(name, sizes)
    done = cells[(cells["status"] == "done") & cells["final_loss"].notna()]
    whole = done[done["kind"] != "branch"]
    out["without growth"] = _of_cells(whole), (CHINCHILLA,)
    out["accuracy"] = _of_cells(done[done["final_acc"].notna()]), (ACCURACY,)
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
    points, laws = question
    fixed = None if given.floor is None else {"E": given.floor}
    noise = given.noise if laws != (ACCURACY,) else None
    try:
        return compare(points, laws, fixed=fixed, noise=noise, resamples=given.resamples)
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
