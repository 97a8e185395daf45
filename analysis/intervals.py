"""How sure a mean or a slope over independent trunks is, and from how many trunks that can be said at all."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
MIN_TRUNKS = 3
MIN_TRUNKS_MIXED = 6
MIN_TRUNKS_BOOTSTRAP = 8
RESAMPLES = 10_000
_UNDEFINED_SHARE = 0.05  # of resamples; with more, the quantiles of the rest would be of another population
_SEED = 20251008


def t_interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % t interval of the mean of independent values; None for fewer than three."""
    if len(values) < MIN_TRUNKS:
        return None
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def t_test(values: Sequence[float]) -> float | None:
    """Two-sided p of a mean of 0; None for fewer than three values, and for equal ones (no spread known)."""
    if len(values) < MIN_TRUNKS or np.ptp(values) == 0:
        return None
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of a family of claims, adjusted so that the chance of any false one stays below the level.

    Holm's step-down (1979): the k-th smallest of m times m − k + 1, made monotone, at most 1.
    """
    names = sorted(p_values, key=lambda name: p_values[name])
    for name in names:
        if not 0 <= p_values[name] <= 1:
            raise ValueError(
                f"p_values[{name!r}]={p_values[name]} must be a probability; leave out what is unknown"
            )
    sorted_p = np.array([p_values[name] for name in names])
    adjusted = np.maximum.accumulate(sorted_p * np.arange(len(names), 0, -1)).clip(max=1.0)
    by_name = dict(zip(names, adjusted.tolist(), strict=True))
    return {name: by_name[name] for name in p_values}


@lru_cache(maxsize=256)
def _detectable_in_standard_errors(n: int) -> float:
    """The effect, in standard errors of a mean of n, that a two-sided 5 % t test finds with the power."""
    critical = stats.t.ppf((1 + LEVEL) / 2, n - 1)

    def missing(shift: float) -> float:
        return stats.nct.sf(critical, n - 1, shift) - POWER

    # For 2 degrees of freedom the root is 5.5; it falls towards 2.8 with n.
    return float(cast(float, optimize.brentq(missing, 2.0, 8.0)))


def minimum_detectable_over_trunks(values: Sequence[float], n_trunks: int | None = None) -> float | None:
    """The mean effect that a t test over trunks finds with power 80 % (two-sided 5 %), in units of `values`.

    The spread is that of `values`, one per trunk; `n_trunks` (default: as many) asks about another number
    of trunks. None for fewer than three of either.
    """
    n = len(values) if n_trunks is None else n_trunks
    if min(len(values), n) < MIN_TRUNKS:
        return None
    return float(_detectable_in_standard_errors(n) * np.std(values, ddof=1) / np.sqrt(n))


def equivalence(values: Sequence[float], delta: float) -> dict[str, Any]:
    """Whether a mean over trunks is within ±`delta`, by two one-sided t tests at 5 % (Schuirmann 1987).

    `equivalent` is null for fewer than three values or equal ones; not equivalent does not mean different.
    """
    if not delta > 0:
        raise ValueError(f"delta={delta} must be above 0; give the difference that counts as none")
    out: dict[str, Any] = {"n_trunks": len(values), "delta": delta, "p": None, "equivalent": None}
    if len(values) < MIN_TRUNKS or np.ptp(values) == 0:
        return out
    above = stats.ttest_1samp(values, -delta, alternative="greater").pvalue
    below = stats.ttest_1samp(values, delta, alternative="less").pvalue
    p = float(max(above, below))
    return out | {"p": p, "equivalent": p < 1 - LEVEL}


def cluster_bootstrap(x: np.ndarray, y: np.ndarray, trunk: np.ndarray, seed: int = _SEED) -> dict[str, Any]:
    """Percentile intervals by drawing whole trunks: of `mean` (of trunk means), `pearson` (of all
    cells), and `pearson_within` and `slope_within` (each trunk's own level taken away).

    A `ValueError` below 8 trunks: of 3 it covers 74 % at nominal 95 %, of 8 it covers 89 %. A statistic
    that is undefined in more than 5 % of the draws is null.
    """
    _, code = np.unique(np.asarray(trunk, dtype=str), return_inverse=True)
    n = int(code.max(initial=-1)) + 1
    if n < MIN_TRUNKS_BOOTSTRAP:
        raise ValueError(f"{n} trunks: a cluster bootstrap takes {MIN_TRUNKS_BOOTSTRAP}")
    x_unit, y_unit = float(np.ptp(x)) or 1.0, float(np.ptp(y)) or 1.0
    of_trunk = _moments((x - np.mean(x)) / x_unit, (y - np.mean(y)) / y_unit, code, n)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    found = _statistics(draws @ of_trunk)
    found["mean"] = found["mean"] * y_unit + float(np.mean(y))
    found["slope_within"] = found["slope_within"] * y_unit / x_unit
    out: dict[str, Any] = {
        "how": "whole trunks drawn 10,000 times, percentiles",
        "n_trunks": n,
        "level": LEVEL,
    }
    return out | {name: _percentiles(values) for name, values in found.items()}


def _moments(x: np.ndarray, y: np.ndarray, code: np.ndarray, n: int) -> np.ndarray:
    """Of each trunk: 1, mean y, cells, Σx, Σy, Σxx, Σyy, Σxy, and the last three about its own means."""

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(code, weights=values, minlength=n)

    cells = total(np.ones(len(x)))
    own_x, own_y = x - (total(x) / cells)[code], y - (total(y) / cells)[code]
    raw = [cells, total(x), total(y), total(x * x), total(y * y), total(x * y)]
    within = [total(own_x**2), total(own_y**2), total(own_x * own_y)]
    return np.stack([np.ones(n), total(y) / cells, *raw, *within], axis=1)


def _statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
    n, means, cells, x, y, xx, yy, xy, within_xx, within_yy, within_xy = sums.T
    spread_x, spread_y = xx - x * x / cells, yy - y * y / cells
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "mean": means / n,
            "pearson": (xy - x * y / cells) / np.sqrt(spread_x * spread_y),
            "pearson_within": within_xy / np.sqrt(within_xx * within_yy),
            "slope_within": within_xy / within_xx,
        }


def _percentiles(values: np.ndarray) -> list[float] | None:
    defined = values[np.isfinite(values)]
    if len(defined) < (1 - _UNDEFINED_SHARE) * len(values):
        return None
    return np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def mixed_slope(x: np.ndarray, y: np.ndarray, trunk: np.ndarray) -> dict[str, Any]:
    """Slope of y on x with a random intercept and slope per trunk, with its interval (Swamy 1970).

    Each trunk's own least-squares line, weighted by the inverse of what trunks and residuals vary together;
    the error is that of the weighted lines about their mean (t, trunks − 1 degrees of freedom), so that equal
    designs give exactly t over one slope per trunk. `slope_sd` is how much slopes differ between trunks.
    A `ValueError` with fewer than 6 trunks that have 3 cells and 2 values of x.
    """
    x_unit = float(np.ptp(x)) or 1.0
    lines, covariances, squares, freedom = [], [], 0.0, 0
    for name in np.unique(np.asarray(trunk, dtype=str)):
        own = np.asarray(trunk, dtype=str) == name
        if own.sum() < 3 or np.ptp(x[own]) == 0:
            continue
        design = np.stack([np.ones(own.sum()), x[own] / x_unit], axis=1)
        line = np.linalg.lstsq(design, y[own], rcond=None)[0]
        lines.append(line)
        covariances.append(np.linalg.inv(design.T @ design))
        squares += float(((y[own] - design @ line) ** 2).sum())
        freedom += int(own.sum()) - 2
    n = len(lines)
    if n < MIN_TRUNKS_MIXED:
        raise ValueError(f"{n} trunks with 3 cells and 2 values of x: a mixed model takes {MIN_TRUNKS_MIXED}")
    between, mean, error = _weighted_lines(np.array(lines), squares / freedom * np.array(covariances))
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    return {
        "how": "random intercept and slope per trunk (Swamy), t over trunks",
        "n_trunks": n,
        "level": LEVEL,
        "slope": mean / x_unit,
        "slope_interval": [float(mean - half) / x_unit, float(mean + half) / x_unit],
        "slope_sd": between / x_unit,
        "p": float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else None,
    }


def _weighted_lines(lines: np.ndarray, of_residuals: np.ndarray) -> tuple[float, float, float]:
    """The standard deviation of slopes between trunks, their weighted mean and its standard error."""
    n = len(lines)
    values, vectors = np.linalg.eigh(np.cov(lines.T) - of_residuals.mean(axis=0))
    between = (vectors * values.clip(min=0)) @ vectors.T
    variance = between + of_residuals
    # Lines that fit without residuals and do not differ weigh alike; a tiny ridge keeps that defined.
    ridge = 1e-12 * max(float(np.trace(variance.mean(axis=0))), 1e-300)
    weights = np.linalg.inv(variance + ridge * np.eye(2))
    total = np.linalg.inv(weights.sum(axis=0))
    mean = total @ np.einsum("nij,nj->i", weights, lines)
    pulls = np.einsum("nij,nj->ni", weights, lines - mean) @ total
    error = np.sqrt((pulls[:, 1] ** 2).sum() * n / (n - 1))
    return float(np.sqrt(between[1, 1])), float(mean[1]), float(error)
