"""The least summed Huber loss of a law: searched from many starts, and for many resamples at once."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize

from analysis.laws import Law, Parameter, Points

_KEPT_STARTS = 3
_SEARCH_STEPS = 12  # the descent that follows goes on from there in all parameters
_STEPS = 200
_PATIENCE = 8  # steps without progress: enough for the damping to grow 4·10⁵-fold
_PROGRESS = 1e-9
_DIFFERENCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A law, the points it is fitted to, Huber's δ in the target's unit, and parameters held fixed."""

    law: Law
    points: Points
    delta: float
    fixed: dict[str, float]

    @property
    def free(self) -> list[int]:
        return [i for i, p in enumerate(self.law.parameters) if p.name not in self.fixed]

    @property
    def observed(self) -> np.ndarray:
        return np.asarray(getattr(self.points, self.law.target), float)

    def residuals(self, params_RP: np.ndarray, observed_RN: np.ndarray) -> np.ndarray:
        """Of log loss (or of accuracy) for natural parameters: [R, N]."""
        return self._residuals_of(self.law.values(self.points, params_RP), observed_RN)

    def _residuals_of(self, values_RN: np.ndarray, observed_RN: np.ndarray) -> np.ndarray:
        if not self.law.log_target:
            return values_RN - observed_RN
        return np.log(np.maximum(values_RN, 1e-12)) - np.log(observed_RN)

    def jacobian(self, inner_RP: np.ndarray) -> np.ndarray:
        """Central differences of the target by the inner parameters: [R, N, P]."""
        R, P = inner_RP.shape
        shifts = np.concatenate([np.eye(P), -np.eye(P)])[:, None, :] * _DIFFERENCE
        shifted = (inner_RP + shifts).reshape(-1, P)
        values = self.law.values(self.points, outer(self.law, shifted))
        if self.law.log_target:
            values = np.log(np.maximum(values, 1e-12))
        values = values.reshape(2, P, R, -1)
        return np.moveaxis((values[0] - values[1]) / (2 * _DIFFERENCE), 0, -1)


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r²/2 up to δ and δ·(|r| − δ/2) beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2))


def inner(law: Law, params: np.ndarray) -> np.ndarray:
    """What varies: the logarithm of parameters that are `log`, the others as they are."""
    return _mapped(law.parameters, params, np.log)


def outer(law: Law, varied: np.ndarray) -> np.ndarray:
    """The parameters of what varies."""
    return _mapped(law.parameters, varied, np.exp)


def _mapped(parameters: tuple[Parameter, ...], values: np.ndarray, change) -> np.ndarray:
    log = np.array([p.log for p in parameters])
    out = np.array(values, float)
    out[..., log] = change(out[..., log])
    return out


def limits(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest values of what varies."""
    return tuple(  # pyright: ignore[reportReturnType]
        inner(law, np.array([getattr(p, end) for p in law.parameters])) for end in ("low", "high")
    )


def search(problem: Problem) -> np.ndarray:
    """The parameters with the least summed Huber loss that L-BFGS-B reaches from many starts: [P].

    Only θ is searched: for each θ the coefficients are solved for (non-negative least squares on relative
    errors). The best few are then brought to the bottom in all parameters together.
    """
    law = problem.law
    starts = np.array(list(product(*(_starts(p, problem.fixed) for p in law.theta))), float)
    scores = [_projected(problem, start)[0] for start in starts]
    best = starts[np.argsort(scores, kind="stable")[:_KEPT_STARTS]]
    free = [i for i in problem.free if i < len(law.theta)]
    low, high = (end[free] for end in limits(law))
    found = []
    for start in best:
        at = _mapped(law.theta, start, np.log)

        def score(varied: np.ndarray, at: np.ndarray = at) -> float:
            at[free] = varied
            return 1e6 * _projected(problem, _mapped(law.theta, at, np.exp))[0]

        if free:
            bounds, options = list(zip(low, high, strict=True)), {"maxiter": _SEARCH_STEPS}
            at[free] = optimize.minimize(score, at[free], method="L-BFGS-B", bounds=bounds, options=options).x
        theta = _mapped(law.theta, at, np.exp)
        found.append(np.concatenate([theta, _projected(problem, theta)[1]]))
    observed, weights = problem.observed[None], np.ones((1, len(problem.points)))
    params = descend(problem, np.array(found), observed, weights)
    lost = huber(problem.residuals(params, observed), problem.delta).sum(axis=1)
    return params[int(np.argmin(lost))]


def _starts(parameter: Parameter, fixed: dict[str, float]) -> tuple[float, ...]:
    return (fixed[parameter.name],) if parameter.name in fixed else parameter.starts


def _projected(problem: Problem, theta: np.ndarray) -> tuple[float, np.ndarray]:
    """The summed Huber loss at θ with the best coefficients, and these."""
    law, observed = problem.law, problem.observed
    phi = law.basis(problem.points, theta[None])[0]
    scale = observed if law.log_target else np.ones_like(observed)
    known = np.array([problem.fixed.get(p.name, 0.0) for p in law.coefficients])
    free = np.array([p.name not in problem.fixed for p in law.coefficients])
    coefficients = known.copy()
    columns = phi[:, free] / scale[:, None]
    norms = np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    if free.any():
        solved, _ = optimize.nnls(columns / norms, (observed - phi @ known) / scale)
        coefficients[free] = solved / norms
    lows, highs = (np.array([getattr(p, end) for p in law.coefficients]) for end in ("low", "high"))
    coefficients = np.where(free, np.clip(coefficients, lows, highs), coefficients)
    params = np.concatenate([theta, coefficients])[None]
    return float(huber(problem.residuals(params, observed[None]), problem.delta).sum()), coefficients


def descend(
    problem: Problem, starts_RP: np.ndarray, observed_RN: np.ndarray, weights_RN: np.ndarray
) -> np.ndarray:
    """Parameters [R, P] at the bottom of Σ weight·huber from each start, all resamples in one go.

    Levenberg–Marquardt on Huber's weights, inside the limits of the parameters; a step that does not lower
    the sum is not taken, so that no resample ends above where it started.
    """
    law, free = problem.law, problem.free
    bounds = tuple(end[free] for end in limits(law))
    at = inner(law, np.clip(starts_RP, *(_ends(law, problem))))
    observed_RN, weights_RN = (np.broadcast_to(a, (len(at), a.shape[1])) for a in (observed_RN, weights_RN))
    damping, idle, sums = np.full(len(at), 1e-3), np.zeros(len(at), int), np.full(len(at), np.inf)
    for _ in range(_STEPS):
        live = np.flatnonzero(idle < _PATIENCE)
        if not len(live):
            break
        now, observed, weights = at[live], observed_RN[live], weights_RN[live]
        if np.isinf(sums[live]).any():
            sums[live] = _sums(problem, now, observed, weights)
        tried = now.copy()
        tried[:, free] += _step(problem, now, observed, weights, damping[live], bounds)
        tried[:, free] = np.clip(tried[:, free], *bounds)
        new, old = _sums(problem, tried, observed, weights), sums[live]
        better = new < old
        idle[live] = np.where(old - new > _PROGRESS * old, 0, idle[live] + 1)
        at[live], sums[live] = np.where(better[:, None], tried, now), np.where(better, new, old)
        damping[live] = np.clip(damping[live] * np.where(better, 0.25, 5.0), 1e-12, 1e12)
    return outer(law, at)


def _sums(problem: Problem, varied_RP: np.ndarray, observed_RN: np.ndarray, weights_RN: np.ndarray):
    """Σ weight·huber of each resample: [R]."""
    residuals_RN = problem.residuals(outer(problem.law, varied_RP), observed_RN)
    return (weights_RN * huber(residuals_RN, problem.delta)).sum(axis=1)


def _ends(law: Law, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The limits of the parameters themselves; a fixed one may stand anywhere."""
    lows = [p.low if p.name not in problem.fixed else -np.inf for p in law.parameters]
    highs = [p.high if p.name not in problem.fixed else np.inf for p in law.parameters]
    return np.array(lows), np.array(highs)


def _step(
    problem: Problem,
    at_RP: np.ndarray,
    observed_RN: np.ndarray,
    weights_RN: np.ndarray,
    damping_R: np.ndarray,
    bounds: tuple[np.ndarray, ...],
) -> np.ndarray:
    """One damped Gauss–Newton step of the free parameters; none out of a limit that is reached already."""
    free, (low, high) = problem.free, bounds
    r_RN = problem.residuals(outer(problem.law, at_RP), observed_RN)
    w_RN = weights_RN * problem.delta / np.maximum(np.abs(r_RN), problem.delta)
    J_RNF = problem.jacobian(at_RP)[..., free]
    slope_RF = np.einsum("rnf,rn->rf", J_RNF, w_RN * r_RN)
    stuck_RF = ((at_RP[:, free] <= low) & (slope_RF > 0)) | ((at_RP[:, free] >= high) & (slope_RF < 0))
    J_RNF = np.where(stuck_RF[:, None, :], 0.0, J_RNF)
    slope_RF = np.where(stuck_RF, 0.0, slope_RF)
    H_RFF = np.einsum("rnf,rn,rng->rfg", J_RNF, w_RN, J_RNF)
    diagonal_RF = np.einsum("rff->rf", H_RFF)
    ridge_RF = damping_R[:, None] * diagonal_RF + 1e-14 + stuck_RF
    H_RFF = H_RFF + ridge_RF[..., None] * np.eye(len(free))
    return -np.linalg.solve(H_RFF, slope_RF[..., None])[..., 0]
