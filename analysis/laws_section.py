"""The page's section on the laws of a study, as rows ready to be printed (docs/laws.md)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.arm_laws import CONTINUED, ArmLaws, arm_points, fit_arms
from analysis.held_out import largest_held_out
from analysis.laws import EFFECTIVE, Parameter, Points
from analysis.laws.fitting import Fit, fit
from analysis.page import between, plain

RESAMPLES = 200
COLUMNS = (
    *("arm", "law", "formula", "best", "parameter", "value", "low", "high", "interval_from"),
    *("n_points", "n_trunks", "error", "left_out_error"),
)


@dataclass(frozen=True, kw_only=True)
class LawsSection:
    """`rows` of the page's table, and `notes` in sentences; without a law, no rows and `refused` says why."""

    rows: list[dict[str, str]]
    notes: list[str]
    refused: str


def laws_section(cells: pd.DataFrame, directory: Path, resamples: int = RESAMPLES) -> LawsSection:
    """Fits each way of growing; writes every parameter with its 95 % interval to laws.csv in `directory`.

    `cells` share one evaluation. Errors are of log loss: 0.01 is 1 % of the loss.
    """
    try:
        laws, points = fit_arms(cells, resamples=resamples), arm_points(cells)
    except ValueError as refusal:
        pd.DataFrame(columns=list(COLUMNS)).to_csv(directory / "laws.csv", index=False)
        return LawsSection(rows=[], notes=[], refused=str(refusal))
    fits = [(name, found, best, _left_out(found, points[name])) for name, found, best in _fits(laws)]
    parameters = [row for one in fits for row in _parameters(*one)]
    pd.DataFrame(parameters, columns=list(COLUMNS)).to_csv(directory / "laws.csv", index=False)
    notes = [f"No law for {arm}: {reason}." for arm, reason in laws.refused.items()]
    if len(laws.sizes) > 1:
        notes.append(_largest(cells))
    return LawsSection(rows=[_row(*one) for one in fits], notes=notes, refused="")


def _fits(laws: ArmLaws) -> list[tuple[str, Fit, bool]]:
    """(way of growing, fit, whether it is the best by AICc); where another law is best, the one of ρ too."""
    out = []
    for name, arm in laws.grown.items():
        out.append((name, arm.best, True))
        if arm.best.law.name != EFFECTIVE.name:
            out.append((name, arm.effective, False))
    return [*out, (CONTINUED, laws.continued, True)]


def _left_out(found: Fit, points: Points) -> tuple[float | None, str]:
    """The error at the latest start (of *continued* the largest total) by a fit without it, or why none."""
    fixed = {name: found.named[name] for name in found.fixed}
    again = fit(found.law, points, fixed=fixed, noise=found.delta / 1.345, resamples=0)
    return again.left_out_error, again.left_out_because


def _row(name: str, found: Fit, best: bool, left_out: tuple[float | None, str]) -> dict[str, str]:
    shown = {p.name: _estimate(found, p) for p in found.law.parameters}
    rho = shown.pop("ρ", "–")
    error, because = left_out
    return {
        "arm": name,
        "law": found.law.formula + ("" if best else " (for ρ; not the best)"),
        "n": f"{found.n_points} ({found.n_trunks})",
        "rho": rho,
        "parameters": "; ".join(f"{p} = {text}" for p, text in shown.items()),
        "error": plain(100 * found.error, "{:.2f} %"),
        "left_out": "–" if error is None else plain(100 * error, "{:.2f} %"),
        "because": because,
        "interval_from": found.interval_from,
    }


def _estimate(found: Fit, parameter: Parameter) -> str:
    """The value with its interval. A search that ends at a limit of its range measured nothing there."""
    value, ends = found.named[parameter.name], found.intervals()[parameter.name]
    text = plain(value, "{:.3g}")
    if parameter.name not in found.fixed and any(
        np.isclose(value, e) for e in (parameter.low, parameter.high)
    ):
        return f"{text}, the limit of its range"
    return f"{text} ({between(ends, 1, '{:.3g}')})" if ends else text


def _parameters(name: str, found: Fit, best: bool, left_out: tuple[float | None, str]) -> list[dict]:
    about = {"arm": name, "law": found.law.name, "formula": found.law.formula, "best": best}
    about |= {"interval_from": found.interval_from, "n_points": found.n_points, "n_trunks": found.n_trunks}
    about |= {"error": found.error, "left_out_error": left_out[0]}
    rows = []
    for parameter, ends in found.intervals().items():
        low, high = ends or (None, None)
        value = found.named[parameter]
        rows.append(about | {"parameter": parameter, "value": value, "low": low, "high": high})
    return rows


def _largest(cells: pd.DataFrame) -> str:
    """What the smaller sizes say of the largest, in a sentence."""
    held = largest_held_out(cells)
    if held.net_error is None:
        return f"The largest size was not held out: {held.because}."
    loss = "" if held.loss_error is None else f", loss to {100 * held.loss_error:.2g} %"
    return (
        f"Laws of the smaller sizes foretell net at N_a = {held.activated_params:.3g} to "
        f"{held.net_error:.2g} nats (RMS of {held.n_branches} branches{loss}); its sign in "
        f"{held.same_sign} of {held.n_branches}."
    )
