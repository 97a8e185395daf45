"""Continue, grow or start over: what the laws of a study say of one checkpoint and one budget."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.arm_laws import CONTINUED, ArmLaws, fit_arms
from analysis.budget import Estimate, break_even, gain, recycling_efficiency
from analysis.floor import Asked, Floor
from analysis.held_out import HeldOut, largest_held_out
from analysis.laws import ACCURACY, Points
from analysis.laws.fitting import RESAMPLES, Fit, fit, interval
from moe.flops import chinchilla_flops
from moe.plain import check

_LATER = 60  # places between now and the end of the budget at which growing is tried


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to spend the extra FLOPs. Net is against continuing, in nats per token and as accuracy.

    `train_on_f_c` is what is spent before growing; `arm` is empty for continuing.
    """

    what: str
    arm: str
    train_on_f_c: float
    loss: float
    net: float
    net_low: float
    net_high: float
    net_acc: float | None
    net_acc_low: float | None
    net_acc_high: float | None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A quantity of the question beside what was studied; `beyond` is 1 within, else the factor outside."""

    name: str
    value: float
    low: float
    high: float
    beyond: float


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The options by expected loss, best first, and everything that limits what is said of them.

    `decided` is False where the interval of the net contains 0: the study does not tell the two apart.
    """

    sunk_flops: float
    extra_flops: float
    activated_params: float
    f_c: float
    options: tuple[Option, ...]
    decided: bool
    law: str
    interval_from: str
    n_trunks: int
    n_branches: int
    rho: dict[str, Estimate]
    break_even: dict[str, Estimate]
    reach: tuple[Reach, ...]
    floor: Floor
    held_out: HeldOut
    refused: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """JSON-able: the fields, with infinite ends of intervals as null."""
        return _finite(asdict(self))


def advise(
    cells: pd.DataFrame,
    *,
    sunk_flops: float,
    activated_params: float,
    extra_flops: float,
    arm: str | None = None,
    floor: Asked = None,
    resamples: int = RESAMPLES,
) -> Advice:
    """What to do with a checkpoint of N_a activated parameters, at equal ratios sunk/F_c and extra/sunk.

    `arm` narrows growing to one way of it, `floor` is E, or see `floor_of`. Refused with a `ValueError`:
    FLOPs that are not above 0, a study without *continued* or with too few cells, an unknown arm.
    """
    asked = {"sunk_flops": sunk_flops, "activated_params": activated_params, "extra_flops": extra_flops}
    for name, value in asked.items():
        check(np.isfinite(value) and value > 0, f"{name}={value:g} must be above 0")
    laws = fit_arms(cells, floor=floor, resamples=resamples)
    arms = [laws.arm(arm).name] if arm is not None else list(laws.grown)
    f_c = chinchilla_flops(int(activated_params))
    sunk, extra = sunk_flops / f_c, extra_flops / f_c
    accuracy = _accuracy_law(cells)
    options = _options(laws, arms, sunk, extra, activated_params, accuracy)
    law = laws.arm(next(option.arm for option in options if option.arm))
    return Advice(
        **asked,
        f_c=f_c,
        options=tuple(options),
        decided=_decided(options),
        law=law.best.law.name,
        interval_from=law.best.interval_from,
        n_trunks=laws.n_trunks,
        n_branches=sum(one.n_branches for one in laws.grown.values()),
        rho={name: recycling_efficiency(laws, name) for name in arms},
        break_even={name: break_even(laws, name, CONTINUED, sunk, activated_params) for name in arms},
        reach=tuple(_reach(laws, sunk, extra, activated_params)),
        floor=laws.floor,
        held_out=largest_held_out(cells, laws.floor.asked),
        refused=laws.refused,
    )


def _decided(options: list[Option]) -> bool:
    """Whether the first option's lead over continuing, or continuing's over all others, excludes 0."""
    if options[0].what == "continue":
        return all(option.net_high < 0 for option in options[1:])
    return options[0].net_low > 0


def _options(
    laws: ArmLaws, arms: list[str], sunk: float, extra: float, params: float, accuracy: Fit | None
) -> list[Option]:
    whole = laws.at(np.zeros(1), np.array([sunk + extra]), params)
    base = laws.continued.predict(whole), laws.continued.predict_samples(whole)
    found = [_option("continue", "", 0.0, base, base, 1.0, accuracy)]
    restart: list[Option] = []
    for name in arms:
        fitted = laws.arm(name).best

        def spent(start: float, fitted: Fit = fitted) -> tuple[np.ndarray, np.ndarray]:
            where = laws.at(np.array([start]), np.array([extra - max(0.0, start - sunk)]), params)
            return fitted.predict(where), fitted.predict_samples(where)

        found.append(_option("grow", name, 0.0, spent(sunk), base, fitted.stretch, accuracy))
        later = _later(laws, name, sunk, extra, params)
        if later > sunk:
            found.append(
                _option("grow later", name, later - sunk, spent(later), base, fitted.stretch, accuracy)
            )
        restart.append(_option("start over", name, 0.0, spent(0.0), base, fitted.stretch, accuracy))
    found.append(min(restart, key=lambda option: option.loss))
    return sorted(found, key=lambda option: option.loss)


def _later(laws: ArmLaws, arm: str, sunk: float, extra: float, params: float) -> float:
    """The start after now that ends lowest, if its lead over growing now excludes 0; else now.

    Only starts and ratios that the study covers are tried.
    """
    starts = np.linspace(sunk, min(sunk + extra, laws.studied["sunk / F_c"][1]), _LATER)[1:]
    left = sunk + extra - starts
    covered = (starts > sunk) & (left / starts >= laws.studied["extra / sunk"][0])
    if not covered.any():
        return sunk
    starts, left = starts[covered], left[covered]
    now, now_samples = gain(laws, arm, CONTINUED, sunk, extra, params)
    then, then_samples = gain(laws, arm, CONTINUED, starts, left, params)
    best = int(np.argmax(then))
    lead, leads = float(then[best] - now[0]), then_samples[:, best] - now_samples.ravel()
    low, _ = interval(lead, leads, laws.arm(arm).best.stretch)
    return float(starts[best]) if low > 0 else sunk


_Losses = tuple[np.ndarray, np.ndarray]  # expected [1], and of each resample [R, 1]


def _option(
    what: str, arm: str, train_on: float, spent: _Losses, base: _Losses, stretch: float, accuracy: Fit | None
) -> Option:
    (loss, losses), (reference, references) = spent, base
    net, nets = float((reference - loss)[0]), (references - losses)[:, 0]
    low, high = interval(net, nets, stretch)
    acc: float | None = None
    acc_ends: tuple[float | None, float | None] = (None, None)
    if accuracy is not None:
        acc = float((_accuracy(accuracy, loss) - _accuracy(accuracy, reference))[0])
        samples = _accuracy(accuracy, losses[:, 0]) - _accuracy(accuracy, references[:, 0])
        acc_ends = interval(acc, samples, stretch)
    return Option(
        what=what,
        arm=arm,
        train_on_f_c=train_on,
        loss=float(loss[0]),
        net=net,
        net_low=low,
        net_high=high,
        net_acc=acc,
        net_acc_low=acc_ends[0],
        net_acc_high=acc_ends[1],
    )


def _accuracy_law(cells: pd.DataFrame) -> Fit | None:
    """Accuracy as a sigmoid of loss over all finished cells; None where it cannot be fitted."""
    done = cells[(cells["status"] == "done") & cells["final_acc"].notna() & cells["final_loss"].notna()]
    zero, names = np.zeros(len(done)), np.zeros(len(done))
    points = Points(
        sunk=zero,
        extra=zero + 1.0,
        loss=done["final_loss"].to_numpy(float),
        acc=done["final_acc"].to_numpy(float),
        trunk=names,
    )
    try:
        return fit(ACCURACY, points, resamples=0, left_out=False)
    except ValueError:
        return None


def _accuracy(law: Fit, losses: np.ndarray) -> np.ndarray:
    losses = np.maximum(losses, 1e-6)
    ones = np.ones_like(losses)
    return law.predict(Points(sunk=ones, extra=ones, loss=losses, trunk=ones))


def _reach(laws: ArmLaws, sunk: float, extra: float, params: float) -> list[Reach]:
    values = {"sunk / F_c": sunk, "extra / sunk": extra / sunk, "N_a": params}
    if "scratch / F_c" in laws.studied:
        values["scratch / F_c"] = extra  # what starting over would have
    out = []
    for name, value in values.items():
        low, high = laws.studied[name]
        beyond = max(1.0, value / high, low / value)
        out.append(Reach(name=name, value=value, low=low, high=high, beyond=beyond))
    return out


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
