"""A law fitted to points: its parameters and their intervals, AICc, leave-latest-start-out error."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis.laws import SUNK_LAWS, Law, Points
from analysis.laws.descent import Problem, descend, huber, search
from analysis.laws.identifiable import SAME, check_floor, check_points, rounded
from moe.plain import check

LEVEL = 0.95
RESAMPLES = 400
MIN_TRUNKS = 3
HUBER = 1.345  # δ in standard deviations: 95 % efficient under normal noise
_LEAST_DELTA = 1e-4  # nats of log loss: below it no loss is measured
_LEAST_ERROR = 1e-6  # AICc takes no fit for better than this


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law. `samples` are the parameters of the resamples [R, P]; errors are of log loss."""

    law: Law
    params: np.ndarray
    samples: np.ndarray
    stretch: float
    interval_from: str
    fixed: tuple[str, ...]
    n_points: int
    n_trunks: int
    delta: float
    error: float
    aicc: float | None
    left_out_error: float | None = None
    left_out_because: str = ""

    @property
    def named(self) -> dict[str, float]:
        return {p.name: float(v) for p, v in zip(self.law.parameters, self.params, strict=True)}

    def predict(self, points: Points) -> np.ndarray:
        """The fitted value at each point: [n]."""
        return self.law.values(points, self.params[None])[0]

    def predict_samples(self, points: Points) -> np.ndarray:
        """The values of every resample at each point: [R, n]."""
        return self.law.values(points, self.samples)

    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """The 95 % interval of each parameter; None where it was held fixed or nothing was resampled."""
        out: dict[str, tuple[float, float] | None] = {}
        for i, parameter in enumerate(self.law.parameters):
            if parameter.name in self.fixed or not len(self.samples):
                out[parameter.name] = None
                continue
            value, samples = self.params[i], self.samples[:, i]
            if parameter.log:
                low, high = np.exp(interval(np.log(value), np.log(samples), self.stretch))
            else:
                low, high = interval(value, samples, self.stretch)
            out[parameter.name] = max(float(low), parameter.low), min(float(high), parameter.high)
        return out


def interval(value: float, samples: np.ndarray, stretch: float) -> tuple[float, float]:
    """The 95 % range of the resamples, each side stretched about `value`.

    Percentiles over few trunks are too narrow: a resample of G varies by √((G−1)/G) of what it should, and
    the normal's quantile stands where Student's belongs. `stretch` mends both (Hesterberg, arXiv 1411.5279).
    Infinite resamples ("never") stay infinite.
    """
    low, high = (
        float(np.quantile(samples, q, method="closest_observation"))
        for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    )
    if not np.isfinite(value):
        return low, high
    return min(value, value + stretch * (low - value)), max(value, value + stretch * (high - value))


def fit(
    law: Law,
    points: Points,
    *,
    fixed: dict[str, float] | None = None,
    noise: float | None = None,
    resamples: int = RESAMPLES,
    trunks: tuple = (),
    seed: int = 0,
    left_out: bool = True,
) -> Fit:
    """The law with the least *summed* Huber loss, and intervals over trunks (over residuals, if below 3).

    `noise` is the standard deviation of log loss at one point (measured from repeats if None, else from the
    residuals); δ = 1.345·noise. `fixed` holds parameters, such as a known E. `trunks` names the trunks to
    draw from, so that fits with one `seed` draw the same ones. Too few or too uniform points: `ValueError`.
    """
    check_points(law, points, fixed := _known(law, fixed))
    delta = _delta(law, points, fixed, noise)
    problem = Problem(law=law, points=points, delta=delta, fixed=fixed)
    params = search(problem)
    residuals = problem.residuals(params[None], problem.observed[None])[0]
    found = Fit(
        law=law,
        params=params,
        samples=np.empty((0, len(params))),
        stretch=1.0,
        interval_from="no resamples",
        fixed=tuple(fixed),
        n_points=len(points),
        n_trunks=len(np.unique(points.trunk)),
        delta=delta,
        error=float(np.sqrt(np.mean(residuals**2))),
        aicc=_aicc(residuals, delta, len(problem.free)),
    )
    found = bootstrap(found, points, resamples, trunks, seed) if resamples else found
    if not left_out:
        return found
    error, reason = _left_out(law, points, fixed, delta)
    return replace(found, left_out_error=error, left_out_because=reason)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Fits by AICc, the best first, and why other laws were refused."""

    fits: tuple[Fit, ...]
    refused: dict[str, str]


def compare(points: Points, laws: tuple[Law, ...] = SUNK_LAWS, **options) -> Comparison:
    """Every law on the same points with the same δ (that of the best residuals); options are those of `fit`.

    All refused is a `ValueError` with the first reason.
    """
    known = options.pop("fixed", None) or {}
    check_floor(points, known)
    fixed = {law.name: {k: v for k, v in known.items() if k in _names(law)} for law in laws}
    noise = options.pop("noise", None) or repeat_noise(points)
    refused: dict[str, str] = {}
    for law in laws:
        try:
            check_points(law, points, fixed[law.name])
        except ValueError as error:
            refused[law.name] = str(error)
    able = [law for law in laws if law.name not in refused]
    check(bool(able), next(iter(refused.values()), "no law was given"))
    if noise is None:
        noise = min(_delta(law, points, fixed[law.name], None) for law in able) / HUBER
    fits = [fit(law, points, fixed=fixed[law.name], noise=noise, **options) for law in able]
    fits.sort(key=lambda f: np.inf if f.aicc is None else f.aicc)
    return Comparison(fits=tuple(fits), refused=refused)


def _names(law: Law) -> list[str]:
    return [p.name for p in law.parameters]


def _known(law: Law, fixed: dict[str, float] | None) -> dict[str, float]:
    fixed = {name: float(value) for name, value in (fixed or {}).items() if value is not None}
    for name, value in fixed.items():
        check(
            name in _names(law),
            f"{name} is no parameter of the {law.name} law; it has {', '.join(_names(law))}",
        )
        check(np.isfinite(value) and value >= 0, f"{name}={value} must be a number of 0 or more")
    return fixed


def repeat_noise(points: Points) -> float | None:
    """The standard deviation of log loss between trunks at one point, pooled; None below 3 repeats."""
    columns = [points.sunk, points.extra]
    columns += [] if points.activated_params is None else [points.activated_params]
    _, place = np.unique(np.stack([rounded(c) for c in columns]), axis=1, return_inverse=True)
    log_loss, place = np.log(points.loss), place.ravel()
    counts = np.bincount(place)
    means = np.bincount(place, log_loss) / counts
    freedom = len(points) - len(counts)
    if freedom < MIN_TRUNKS:
        return None
    return float(np.sqrt(((log_loss - means[place]) ** 2).sum() / freedom))


def _delta(law: Law, points: Points, fixed: dict[str, float], noise: float | None) -> float:
    """Huber's δ: 1.345 times the noise given, measured from repeats, or left over by least squares."""
    check(noise is None or noise > 0, f"noise={noise} must be above 0")
    if noise is None and law.log_target:
        noise = repeat_noise(points)
    if noise is None:
        problem = Problem(law=law, points=points, delta=1e9, fixed=fixed)
        residuals = problem.residuals(search(problem)[None], problem.observed[None])[0]
        freedom = len(points) / (len(points) - len(problem.free))
        noise = float(1.4826 * stats.median_abs_deviation(residuals) * np.sqrt(freedom))
    return max(HUBER * noise, _LEAST_DELTA)


def bootstrap(found: Fit, points: Points, resamples: int, trunks: tuple = (), seed: int = 0) -> Fit:
    """The fit with resamples: of the trunks its points come from, or of residuals if below three."""
    fixed = {name: found.named[name] for name in found.fixed}
    problem = Problem(law=found.law, points=points, delta=found.delta, fixed=fixed)
    own = np.unique(points.trunk)
    resample = _over_trunks if len(own) >= MIN_TRUNKS else _over_residuals
    starts = np.tile(found.params, (resamples, 1))
    observed, weights, stretch = resample(problem, starts, trunks or tuple(own), np.random.default_rng(seed))
    few = "one trunk" if len(own) == 1 else f"{len(own)} trunks"
    what = f"bootstrap over residuals ({few}: nothing is said of other trunks)"
    what = f"bootstrap over {len(own)} trunks" if resample is _over_trunks else what
    samples = descend(problem, starts, observed, weights)
    return replace(found, samples=samples, stretch=float(stretch), interval_from=what)


_Drawn = tuple[np.ndarray, np.ndarray, float]  # observed [R or 1, N], weights [R or 1, N], stretch


def _over_trunks(
    problem: Problem, params_RP: np.ndarray, trunks: tuple, random: np.random.Generator
) -> _Drawn:
    own, index = np.unique(problem.points.trunk, return_inverse=True)
    check(set(own) <= set(trunks), f"trunks={trunks} leaves out a trunk of the points")
    drawn = random.multinomial(len(trunks), np.full(len(trunks), 1 / len(trunks)), size=len(params_RP))
    weights_RN = drawn[:, [trunks.index(name) for name in own]][:, index].astype(float)
    G = len(own)
    return problem.observed[None], weights_RN, _students(G - 1) * np.sqrt(G / (G - 1))


def _over_residuals(problem: Problem, params_RP: np.ndarray, _: tuple, random: np.random.Generator) -> _Drawn:
    n, freedom = len(problem.points), len(problem.points) - len(problem.free)
    residuals_N = problem.residuals(params_RP[:1], problem.observed[None])[0]
    spread_N = (residuals_N - residuals_N.mean()) * np.sqrt(n / freedom)
    shifts_RN = spread_N[random.integers(0, n, size=(len(params_RP), n))]
    fitted_N = problem.law.values(problem.points, params_RP[:1])
    observed_RN = fitted_N * np.exp(-shifts_RN) if problem.law.log_target else fitted_N - shifts_RN
    return observed_RN, np.ones((1, n)), _students(freedom)


def _students(freedom: int) -> float:
    """Student's quantile over the normal one."""
    level = (1 + LEVEL) / 2
    return float(stats.t.ppf(level, freedom) / stats.norm.ppf(level))


def _aicc(residuals: np.ndarray, delta: float, free: int) -> float | None:
    """AICc with the scale as one more parameter and n = points; None where n leaves no correction."""
    n, k = len(residuals), free + 1
    if n - k - 1 <= 0:
        return None
    mean = max(2 * huber(residuals, delta).mean(), _LEAST_ERROR**2)
    return float(n * np.log(mean) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _left_out(law: Law, points: Points, fixed: dict[str, float], delta: float) -> tuple[float | None, str]:
    """RMS error of log loss at the latest start (for `power`: the largest total) by a fit without it."""
    reach = points.sunk if law.name not in ("power", "chinchilla") else points.sunk + points.extra
    reach = points.tokens if law.name == "chinchilla" and points.tokens is not None else reach
    late = reach > (1 - SAME) * reach.max()
    try:
        kept = points.where(~late)
        check_points(law, kept, fixed)
    except ValueError as error:
        return None, str(error)
    params = search(Problem(law=law, points=kept, delta=delta, fixed=fixed))
    held_out = Problem(law=law, points=points.where(late), delta=delta, fixed=fixed)
    errors = held_out.residuals(params[None], held_out.observed[None])
    return float(np.sqrt(np.mean(errors**2))), ""
