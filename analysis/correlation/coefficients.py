"""Coefficients of one series on another, the null beside them, and what their residuals remember."""

from functools import lru_cache
from typing import Any, cast

import numpy as np
from scipy import stats

MIN_CELLS = 3
_NULL_POINTS, _NULL_SERIES = 200, 20_000  # beyond 200 points the null's quantiles move by less than .002


def why_refused(x: np.ndarray, y: np.ndarray, x_name: str = "sunk FLOPs") -> str | None:
    """The reason why no coefficient of these two can be given, or None."""
    if len(x) < MIN_CELLS:
        return f"Too few measured cells ({len(x)}): a correlation needs at least {MIN_CELLS}."
    if np.ptp(x) == 0:
        return f"All cells have the same {x_name}: nothing to correlate with."
    if np.ptp(y) == 0:
        return "All cells end at the same value: nothing to correlate."
    return None


def coefficients(x: np.ndarray, y: np.ndarray) -> dict[str, float | None]:
    """Pearson (raw and log x), Spearman, Kendall; log is null with an x of 0 or below."""
    return {
        "pearson": number(pearson(x, y)),
        "pearson_log_x": number(pearson(np.log(x), y)) if x.min() > 0 else None,
        "spearman": number(stats.spearmanr(x, y)[0]),
        "kendall": number(stats.kendalltau(x, y)[0]),
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r, NaN where either side is constant."""
    x, y = np.asarray(x, float) - np.mean(x), np.asarray(y, float) - np.mean(y)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def theil_sen(x: np.ndarray, y: np.ndarray) -> float:
    """The median of the slopes between all pairs, in units of y per unit of x."""
    return cast(float, stats.theilslopes(y, x)[0])


@lru_cache(maxsize=64)
def _null(n_points: int) -> np.ndarray:
    """Sorted r of random rising series."""
    steps = np.random.default_rng(_SEED).exponential(size=(_NULL_SERIES, n_points))
    series = steps.cumsum(axis=1)
    series -= series.mean(axis=1, keepdims=True)
    index = np.arange(n_points) - (n_points - 1) / 2
    r = series @ index / np.sqrt((series**2).sum(axis=1) * (index @ index))
    return np.sort(r)


_SEED = 20251008


def monotone_null(n_points: int, r: float | None = None) -> dict[str, Any] | None:
    """Median and 95 % range of Pearson's r of a random rising series (exponential steps) with its index.

    `share_above` is the share of such series that correlate at least as strongly as `r` does, either way.
    None for fewer than three points.
    """
    if n_points < MIN_CELLS:
        return None
    null = _null(min(n_points, _NULL_POINTS))
    low, median, high = (float(q) for q in np.quantile(null, [0.025, 0.5, 0.975]))
    out: dict[str, Any] = {"n_points": n_points, "median": median, "low": low, "high": high}
    return out | {"share_above": None if r is None else float(np.mean(null >= abs(r)))}


def minimum_detectable(x: np.ndarray, errors: np.ndarray) -> dict[str, Any] | None:
    """The effects that evaluation noise alone lets one see (two-sided 5 %, power 80 %), in units of y.

    `between_two_cells`, and `over_the_range`: the change of a straight line from the least to the greatest
    x. Differences between trunks add to both.
    """
    errors = errors[np.isfinite(errors)]
    if not len(errors):
        return None
    error = float(np.sqrt(np.mean(errors**2)))
    factor = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    spread = float(np.sqrt(((x - x.mean()) ** 2).sum()))
    return {
        "between_two_cells": factor * np.sqrt(2.0) * error,
        "over_the_range": factor * error * float(np.ptp(x)) / spread if spread > 0 and len(x) > 2 else None,
        "evaluation_se": error,
    }


def residuals(groups: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float | None]:
    """Durbin–Watson and lag-1 autocorrelation of straight-line residuals, in order of x within each trunk."""
    jumps = products = squares = 0.0
    for x, y in groups:
        if np.ptp(x) == 0:
            continue
        scale = np.abs(x).max()
        slope, level = np.polyfit(x / scale, y, 1)
        rest = y - slope * x / scale - level
        jumps += float((np.diff(rest) ** 2).sum())
        products += float(rest[1:] @ rest[:-1])
        squares += float(rest @ rest)
    if squares <= 1e-24:
        return {"durbin_watson": None, "lag1": None}
    return {"durbin_watson": jumps / squares, "lag1": products / squares}


def number(value: Any) -> float | None:
    """The value as a float; None for what is not finite, since JSON has no word for it."""
    return float(value) if np.isfinite(value) else None
