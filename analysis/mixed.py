"""A mixed model in closed form: one line, from which each trunk departs at random in level and slope."""

from typing import Any

import numpy as np
from scipy import stats

from analysis.intervals import LEVEL

MIN_TRUNKS = 6
_MIN_CELLS, _MIN_X = 3, 2


def mixed_slope(x: np.ndarray, y: np.ndarray, trunk: np.ndarray) -> dict[str, Any]:
    """Slope of y on x with a random intercept and slope per trunk, with its interval.

    Each trunk's least-squares line, weighted by the inverse of what trunks and residuals vary together
    (Swamy 1970); the error is clustered by trunk with the CR2 correction and Satterthwaite's degrees of
    freedom (Bell & McCaffrey 2002). With equal designs it is exactly t over one slope per trunk; with
    unequal ones it covers 94 to 97 % (measured), where trunks − 1 degrees of freedom cover 93 %. `slope_sd`
    is how much slopes differ between trunks. Below 6 trunks of 3 cells and 2 values of x: a `ValueError`.
    """
    x_unit = float(np.ptp(x)) or 1.0
    lines, of_residuals = _own_lines(np.asarray(x, float) / x_unit, y, np.asarray(trunk, dtype=str))
    n = len(lines)
    if n < MIN_TRUNKS:
        raise ValueError(
            f"a mixed model takes {MIN_TRUNKS} trunks with {_MIN_CELLS} cells and {_MIN_X} values of x; "
            f"here are {n}"
        )
    values, vectors = np.linalg.eigh(np.cov(lines.T) - of_residuals.mean(axis=0))
    between = (vectors * values.clip(min=0)) @ vectors.T
    # Lines without residuals that do not differ have no variance; a ridge lets them weigh alike.
    ridge = 1e-12 * (float(np.abs(lines).max()) ** 2 or 1.0)
    slope, error, freedom = _weighted(lines, between + of_residuals + ridge * np.eye(2))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return {
        "how": "random intercept and slope per trunk (Swamy), CR2 errors",
        "n_trunks": n,
        "level": LEVEL,
        "degrees_of_freedom": freedom,
        "slope": slope / x_unit,
        "slope_interval": [(slope - half) / x_unit, (slope + half) / x_unit],
        "slope_sd": float(np.sqrt(between[1, 1])) / x_unit,
        "p": float(2 * stats.t.sf(abs(slope) / error, freedom)) if error > 0 else None,
    }


def _own_lines(x: np.ndarray, y: np.ndarray, trunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each trunk's (intercept, slope), and their covariances under one residual variance for all trunks."""
    lines, designs, squares, freedom = [], [], 0.0, 0
    for name in np.unique(trunk):
        own = trunk == name
        if own.sum() < _MIN_CELLS or len(np.unique(x[own])) < _MIN_X:
            continue
        design = np.stack([np.ones(own.sum()), x[own]], axis=1)
        line = np.linalg.lstsq(design, y[own], rcond=None)[0]
        lines.append(line)
        designs.append(np.linalg.inv(design.T @ design))
        squares += float(((y[own] - design @ line) ** 2).sum())
        freedom += int(own.sum()) - 2
    return np.array(lines), squares / max(freedom, 1) * np.array(designs)


def _weighted(lines: np.ndarray, variance: np.ndarray) -> tuple[float, float, float]:
    """The weighted mean slope of lines (n×2) with variances (n×2×2), its CR2 error, degrees of freedom."""
    n = len(lines)
    weights = np.linalg.inv(variance)
    total = np.linalg.inv(weights.sum(axis=0))
    mean = total @ np.einsum("nij,nj->i", weights, lines)
    # A line's departure from the mean varies by variance − total, not variance: CR2 makes up for it.
    root = np.linalg.cholesky(variance)
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse @ (variance - total) @ inverse.transpose(0, 2, 1))
    scale = (vectors / np.sqrt(values.clip(min=1e-9))[:, None, :]) @ vectors.transpose(0, 2, 1)
    pull = np.einsum("j,njk,nkl->nl", total[1], weights, root @ scale @ inverse)
    error = np.sqrt((np.einsum("ni,ni->n", pull, lines - mean) ** 2).sum())
    # Covariance of the pulled departures under the model; Satterthwaite matches its two moments.
    together = -pull @ total @ pull.T
    together[np.diag_indices(n)] += np.einsum("ni,nij,nj->n", pull, variance, pull)
    return float(mean[1]), float(error), float(np.trace(together) ** 2 / (together**2).sum())
