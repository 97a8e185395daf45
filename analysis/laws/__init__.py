"""The forms of loss against sunk and extra FLOPs: S and X in units of F_c, losses in nats per token.

Each is a sum of basis functions with non-negative coefficients, `Σ c_j φ_j(points; θ)`, so that a fit can
solve for the coefficients alone wherever θ is held (variable projection). See docs/laws.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from moe.plain import check

FLOOR = "E"


@dataclass(frozen=True, kw_only=True)
class Points:
    """What is fitted: one row per measured end, checked; arrays of one length.

    `sunk` and `extra` in units of F_c, `loss` in nats per token, `acc` a fraction, `trunk` the independent
    trunk that a row belongs to. Bad values are a `ValueError` that names the column and the row.
    """

    sunk: np.ndarray
    extra: np.ndarray
    loss: np.ndarray
    trunk: np.ndarray
    activated_params: np.ndarray | None = None
    tokens: np.ndarray | None = None
    acc: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("sunk", "extra", "loss", "activated_params", "tokens", "acc"):
            values = getattr(self, name)
            if values is None:
                continue
            object.__setattr__(self, name, np.asarray(values, float))
            self._check(name)
        object.__setattr__(self, "trunk", np.asarray(self.trunk))
        check(len(self.trunk) == len(self), f"trunk has {len(self.trunk)} rows, loss {len(self)}")
        bad = np.flatnonzero(self.sunk + self.extra <= 0)
        check(not len(bad), f"sunk + extra is 0 in row {_first(bad)}; leave out what was not trained")

    def _check(self, name: str) -> None:
        values = getattr(self, name)
        check(
            values.shape == self.loss.shape, f"{name} has {values.shape} values, loss {np.shape(self.loss)}"
        )
        bad = np.flatnonzero(~np.isfinite(values))
        check(not len(bad), f"{name} is no finite number in row {_first(bad)}; leave such rows out")
        strict = name in ("loss", "activated_params", "tokens")
        bad = np.flatnonzero(values <= 0 if strict else values < 0)
        rule = "above 0" if strict else "0 or more"
        if len(bad):
            raise ValueError(f"{name}={values[bad[0]]:g} in row {_first(bad)} must be {rule}")

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, keep: np.ndarray) -> "Points":
        """The rows of a mask or of indices."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return replace(self, **{name: v[keep] for name, v in columns.items() if v is not None})


def _first(bad: np.ndarray) -> int:
    return int(bad[0]) + 1 if len(bad) else 0


def points_at(sunk: ArrayLike, extra: ArrayLike, activated_params: float | None = None) -> Points:
    """Points to predict at, where no loss was measured (it is 1 here and is not read)."""
    sunk, extra = (np.atleast_1d(np.array(a, float)) for a in np.broadcast_arrays(sunk, extra))
    params = None if activated_params is None else np.full(sunk.shape, float(activated_params))
    ones = np.ones(sunk.shape)
    return Points(sunk=sunk, extra=extra, loss=ones, trunk=np.zeros(sunk.shape), activated_params=params)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A number to be fitted, its range, where searches start; `log` where its logarithm is what varies."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...] = ()
    log: bool = True


_Basis = Callable[[Points, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Law:
    """`Σ c_j φ_j(points; θ)`: `theta` are θ, `coefficients` the c_j, `basis` gives φ as [resamples, n, j].

    `basis` takes θ as [resamples, len(theta)]. `target` names what is predicted: the logarithm of `loss`,
    or `acc` itself.
    """

    name: str
    formula: str
    theta: tuple[Parameter, ...]
    coefficients: tuple[Parameter, ...]
    basis: _Basis
    needs: tuple[str, ...] = ("sunk", "extra")
    target: str = "loss"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.theta, *self.coefficients)

    @property
    def log_target(self) -> bool:
        return self.target == "loss"

    def values(self, points: Points, params: np.ndarray) -> np.ndarray:
        """The law at `points` for parameters [resamples, p], θ first: [resamples, n]."""
        split = len(self.theta)
        return np.einsum("rnj,rj->rn", self.basis(points, params[:, :split]), params[:, split:])


def _columns(*columns: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def _useful(points: Points, rho_R: np.ndarray) -> np.ndarray:
    """ρ·S + X, kept above 0 where nothing was spent after growth and ρ is 0: [resamples, n]."""
    return np.maximum(rho_R[:, None] * points.sunk + points.extra, 1e-9)


def _effective(points: Points, theta: np.ndarray) -> np.ndarray:
    rho, a = theta.T
    useful = _useful(points, rho)
    return _columns(np.ones_like(useful), useful ** -a[:, None])


def _interaction(points: Points, theta: np.ndarray) -> np.ndarray:
    s0, a, b, c = (column[:, None] for column in theta.T)
    log_s, log_x = np.log(points.sunk + s0), np.log(np.maximum(points.extra, 1e-9))
    product = np.exp(np.clip(-a * log_s + (-b + c * log_s) * log_x, -60.0, 60.0))
    return _columns(np.ones_like(product), product)


def _logarithmic(points: Points, theta: np.ndarray) -> np.ndarray:
    useful = _useful(points, theta[:, 0])
    return _columns(np.ones_like(useful), -np.log(useful))


def _power(points: Points, theta: np.ndarray) -> np.ndarray:
    spent = (points.sunk + points.extra) ** -theta[:, :1]
    return _columns(np.ones_like(spent), spent)


def _chinchilla(points: Points, theta: np.ndarray) -> np.ndarray:
    assert points.activated_params is not None, "checked by `needs`"
    assert points.tokens is not None, "checked by `needs`"
    by_size, by_data = points.activated_params ** -theta[:, :1], points.tokens ** -theta[:, 1:]
    return _columns(np.ones_like(by_size), by_size, by_data)


def _sigmoid(points: Points, theta: np.ndarray) -> np.ndarray:
    middle, width = (column[:, None] for column in theta.T)
    rise = 1.0 / (1.0 + np.exp(np.clip((points.loss - middle) / width, -60.0, 60.0)))
    return _columns(np.ones_like(rise), rise)


_EXPONENTS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5)
_E = Parameter(name=FLOOR, low=0.0, high=100.0, log=False)
_A = Parameter(name="A", low=1e-12, high=1e12)
_B = Parameter(name="B", low=1e-12, high=1e12)
_RHO = Parameter(name="ρ", low=0.0, high=20.0, starts=(0.05, 0.3, 0.6, 1.0, 1.5, 3.0), log=False)


def _exponent(name: str, starts: tuple[float, ...] = _EXPONENTS) -> Parameter:
    return Parameter(name=name, low=1e-3, high=5.0, starts=starts)


EFFECTIVE = Law(
    name="effective",
    formula="E + A·(ρ·S + X)^(−a)",
    theta=(_RHO, _exponent("a")),
    coefficients=(_E, _A),
    basis=_effective,
)
INTERACTION = Law(  # arXiv 2502.03009's interaction, with S₀ so that S = 0 is admitted
    name="interaction",
    formula="E + A·(S + S₀)^(−a)·X^(−b + c·ln(S + S₀))",
    theta=(
        Parameter(name="S₀", low=1e-3, high=20.0, starts=(0.03, 0.3, 1.0)),
        Parameter(name="a", low=-1.0, high=5.0, starts=(0.05, 0.2, 0.5), log=False),
        _exponent("b", (0.05, 0.2, 0.5)),
        Parameter(name="c", low=-2.0, high=2.0, starts=(-0.05, 0.0, 0.05), log=False),
    ),
    coefficients=(_E, _A),
    basis=_interaction,
)
LOGARITHMIC = Law(
    name="logarithmic",
    formula="A − B·ln(ρ·S + X)",
    theta=(_RHO,),
    coefficients=(replace(_A, log=False, low=0.0), _B),
    basis=_logarithmic,
)
POWER = Law(  # of one architecture trained throughout: every FLOP counts alike
    name="power",
    formula="E + A·(S + X)^(−a)",
    theta=(_exponent("a"),),
    coefficients=(_E, _A),
    basis=_power,
)
CHINCHILLA = Law(  # arXiv 2203.15556, Eq. 2
    name="chinchilla",
    formula="E + A·N^(−a) + B·D^(−b)",
    theta=(_exponent("a", (0.1, 0.2, 0.35, 0.6)), _exponent("b", (0.1, 0.2, 0.35, 0.6))),
    coefficients=(_E, replace(_A, high=1e30), replace(_B, high=1e30)),
    basis=_chinchilla,
    needs=("activated_params", "tokens"),
)
ACCURACY = Law(
    name="accuracy",
    formula="C + R·σ((L₀ − L)/w)",
    theta=(
        Parameter(name="L₀", low=0.0, high=20.0, starts=(0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0), log=False),
        Parameter(name="w", low=1e-3, high=20.0, starts=(0.1, 0.3, 1.0)),
    ),
    coefficients=(
        Parameter(name="C", low=0.0, high=1.0, log=False),
        Parameter(name="R", low=1e-9, high=10.0),
    ),
    basis=_sigmoid,
    needs=("loss",),
    target="acc",
)
SUNK_LAWS = (EFFECTIVE, INTERACTION, LOGARITHMIC)


def sized(law: Law, unit_params: float) -> Law:
    """The law with its falling part times (N/`unit_params`)^(−g): for studies of several sizes N = N_a."""

    def basis(points: Points, theta: np.ndarray) -> np.ndarray:
        assert points.activated_params is not None, "checked by `needs`"
        phi = law.basis(points, theta[:, :-1]).copy()
        phi[..., 1:] *= ((points.activated_params / unit_params) ** -theta[:, -1:])[..., None]
        return phi

    size = Parameter(name="g", low=-1.0, high=2.0, starts=(0.1, 0.4), log=False)
    formula = law.formula.replace("A·", "A·N^(−g)·").replace("B·ln", "B·N^(−g)·ln")
    needs = (*law.needs, "activated_params")
    return replace(law, formula=formula, theta=(*law.theta, size), basis=basis, needs=needs)
