"""What the laws of a study say of a budget: recycling efficiency, break-even points, when to grow.

Budgets are in units of F_c or as extra/sunk; a gain is a loss less that of the grown model, in nats per
token: above 0 growing is better. Intervals are of resamples, 95 %.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.arm_laws import CONTINUED, ArmLaws
from analysis.laws.fitting import Fit, interval
from moe.plain import check

AGAINST = (CONTINUED, "scratch_extra", "scratch_total")
RATIOS = np.geomspace(0.01, 100.0, 401)  # extra / sunk
_ALIKE = 1.1  # budgets this much apart count as one
_LEAST_EXTRA = 0.05  # of a total budget: less is no training after growth


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval; `value` None and `note` why, where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


def recycling_efficiency(laws: ArmLaws, arm: str) -> Estimate:
    """ρ: how many FLOPs after growth one sunk FLOP was worth."""
    found = laws.arm(arm).effective
    ends = found.intervals()["ρ"] or (None, None)
    return Estimate(value=found.named["ρ"], low=ends[0], high=ends[1], note=found.interval_from)


def gain(
    laws: ArmLaws,
    arm: str,
    against: str,
    sunk: ArrayLike,
    extra: ArrayLike,
    activated_params: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The expected gain [n] and that of each resample [R, n] at budgets in F_c, held against one control.

    `scratch_extra` and `scratch_total` are the arm's own law at S = 0.
    """
    check(against in AGAINST, f"against={against} is not a choice; choose one of {', '.join(AGAINST)}")
    sunk, extra = (np.atleast_1d(np.array(a, float)) for a in np.broadcast_arrays(sunk, extra))
    check(bool((sunk >= 0).all() and (extra > 0).all()), "sunk must be 0 or more and extra above 0 FLOPs")
    grown = laws.arm(arm).best
    other = laws.continued if against == CONTINUED else grown
    budget = extra if against == "scratch_extra" else sunk + extra
    theirs = laws.at(np.zeros_like(budget), budget, activated_params)
    ours = laws.at(sunk, extra, activated_params)
    value = other.predict(theirs) - grown.predict(ours)
    return value, other.predict_samples(theirs) - grown.predict_samples(ours)


def break_even(
    laws: ArmLaws, arm: str, against: str, sunk_f_c: float, activated_params: float | None = None
) -> Estimate:
    """The extra/sunk at which growing and `against` end alike; `note` says on which side growing leads.

    Sought from 0.01 to 100; a resample without a crossing counts as 0 or as infinitely far.
    """
    check(sunk_f_c > 0, f"sunk_f_c={sunk_f_c} must be above 0")
    values = gain(laws, arm, against, sunk_f_c, sunk_f_c * RATIOS, activated_params)
    return _crossing(RATIOS, *values, laws.arm(arm).best.stretch)


def best_growth_step(
    laws: ArmLaws, arm: str, total_f_c: float, activated_params: float | None = None
) -> Estimate:
    """The sunk/F_c at which to grow, so that a total budget ends lowest; 0 is to start over.

    Sought among starts no later than the study's latest, with at least 5 % of the total left.
    """
    check(total_f_c > 0, f"total_f_c={total_f_c} must be above 0")
    latest = min((1 - _LEAST_EXTRA) * total_f_c, laws.studied["sunk / F_c"][1])
    starts = np.linspace(0.0, latest, 201)
    where = laws.at(starts, total_f_c - starts, activated_params)
    fitted = laws.arm(arm).best
    value = float(starts[np.argmin(fitted.predict(where))])
    found = starts[np.argmin(fitted.predict_samples(where), axis=1)]
    low, high = _ends(value, found, fitted)
    edge = {0.0: "at the start: growing gains nothing", float(latest): "the latest start that was studied"}
    if latest < laws.studied["sunk / F_c"][1]:
        edge[float(latest)] = "as late as 5 % of the budget allows"
    return Estimate(value=value, low=max(0.0, low), high=min(latest, high), note=edge.get(value, ""))


def _ends(value: float, samples: np.ndarray, fitted: Fit) -> tuple[float, float]:
    return interval(value, samples, fitted.stretch) if len(samples) else (np.nan, np.nan)


def decision_map(
    laws: ArmLaws,
    arm: str,
    sunk_shares: np.ndarray,
    totals_f_c: np.ndarray,
    against: str = "scratch_total",
    activated_params: float | None = None,
) -> pd.DataFrame:
    """The gain with its interval over a grid: a row per total (F_c) and sunk share (above 0, below 1).

    `studied` says whether the point lies within the sunk/F_c and extra/sunk of the study's branches and,
    against scratch, within the budgets that were trained from scratch.
    """
    shares, totals = np.asarray(sunk_shares, float), np.asarray(totals_f_c, float)
    check(bool(((shares > 0) & (shares < 1)).all()), "sunk_shares must be above 0 and below 1")
    check(bool((totals > 0).all()), "totals_f_c must be above 0")
    total, share = (grid.ravel() for grid in np.meshgrid(totals, shares, indexing="ij"))
    sunk, extra = share * total, (1 - share) * total
    value, samples = gain(laws, arm, against, sunk, extra, activated_params)
    fitted = laws.arm(arm).best
    ends = np.array([_ends(v, s, fitted) for v, s in zip(value, samples.T, strict=True)])
    (low_s, high_s), (low_r, high_r) = laws.studied["sunk / F_c"], laws.studied["extra / sunk"]
    ratio = extra / sunk
    inside = (sunk >= low_s) & (sunk <= high_s) & (ratio >= low_r) & (ratio <= high_r)
    if against != CONTINUED:
        low, high = laws.studied.get("scratch / F_c", (np.inf, -np.inf))
        budget = extra if against == "scratch_extra" else total
        inside &= (budget >= low / _ALIKE) & (budget <= high * _ALIKE)
    return pd.DataFrame(
        {
            "arm": arm,
            "against": against,
            "total_f_c": total,
            "sunk_share": share,
            "gain": value,
            "gain_low": ends[:, 0],
            "gain_high": ends[:, 1],
            "studied": inside,
        }
    )


def zero_contour(
    laws: ArmLaws,
    arm: str,
    totals_f_c: np.ndarray,
    against: str = "scratch_total",
    activated_params: float | None = None,
) -> pd.DataFrame:
    """The sunk share at which the gain is 0, per total (F_c), with its interval; NaN and a note if none."""
    shares = np.linspace(0.01, 1 - _LEAST_EXTRA, 189)
    rows = []
    for total in np.asarray(totals_f_c, float):
        check(bool(total > 0), f"totals_f_c={total} must be above 0")
        values = gain(laws, arm, against, shares * total, (1 - shares) * total, activated_params)
        found = _crossing(shares, *values, laws.arm(arm).best.stretch)
        ends = {"sunk_share": found.value, "low": found.low, "high": found.high}
        rows.append({"total_f_c": total, **ends, "note": found.note})
    table = pd.DataFrame(rows)
    numbers = ["total_f_c", "sunk_share", "low", "high"]
    return table.astype(dict.fromkeys(numbers, float))


def _crossing(x: np.ndarray, value: np.ndarray, samples: np.ndarray, stretch: float) -> Estimate:
    """Where `value` first changes its sign along x, with the interval of the resamples' crossings."""
    (at,), (rises,) = _first_crossings(x, value[None], rising=None)
    if not np.isfinite(at):
        side = "everywhere" if value[0] > 0 else "nowhere"
        agree = (
            np.mean((samples > 0).all(1) if value[0] > 0 else (samples <= 0).all(1)) if len(samples) else 0
        )
        share = f" ({100 * agree:.0f} % of resamples agree)" if len(samples) else ""
        return Estimate(value=None, note=f"growing leads {side} between {x[0]:g} and {x[-1]:g}{share}")
    note = f"growing leads {'above' if rises else 'below'}"
    if not len(samples):
        return Estimate(value=float(at), note=note)
    found, _ = _first_crossings(x, samples, rising=bool(rises))
    low, high = interval(float(at), found, stretch)
    return Estimate(value=float(at), low=max(0.0, low), high=high, note=note)


def _first_crossings(x: np.ndarray, values: np.ndarray, rising: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """Per row the x of the first change of sign (in the wanted direction), and whether it rises.

    Without one: infinity where the side that leads at large x is never reached, else 0.
    """
    positive = values > 0
    change = positive[:, 1:] != positive[:, :-1]
    if rising is not None:
        change &= positive[:, 1:] == rising
    first = np.argmax(change, axis=1)
    rows = np.arange(len(values))
    before, after = values[rows, first], values[rows, first + 1]
    share = before / np.where(before == after, 1.0, before - after)
    at = x[first] + np.clip(share, 0.0, 1.0) * (x[first + 1] - x[first])
    none = ~change.any(axis=1)
    reached = positive[:, 0] == bool(rising) if rising is not None else np.zeros(len(values), bool)
    return np.where(none, np.where(reached, 0.0, np.inf), at), positive[rows, first + 1]
