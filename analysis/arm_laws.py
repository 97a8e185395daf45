"""A study's laws: one for continuing, one for each way of growing with the scratch runs as its S = 0."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.arms import ways_of_growing
from analysis.floor import Asked, Floor, floor_of
from analysis.laws import EFFECTIVE, POWER, SUNK_LAWS, Law, Points, points_at, sized
from analysis.laws.fitting import RESAMPLES, Fit, bootstrap, compare, fit
from analysis.table import SCRATCH_KINDS
from moe.plain import check

CONTINUED = "continued"


@dataclass(frozen=True, kw_only=True)
class ArmLaw:
    """One way of growing: `best` is the law with the least AICc, `effective` the one that has ρ."""

    name: str
    best: Fit
    effective: Fit
    n_branches: int


@dataclass(frozen=True, kw_only=True)
class ArmLaws:
    """The laws of a study, in units of each size's F_c, and the ranges that its branches cover.

    `unit_params` is the N_a whose size factor is 1; of one size alone there is no factor, and laws hold at
    equal ratios only. `refused` says why a way of growing has no law.
    """

    continued: Fit
    grown: dict[str, ArmLaw]
    refused: dict[str, str]
    n_trunks: int
    sizes: tuple[float, ...]
    unit_params: float
    studied: dict[str, tuple[float, float]]
    floor: Floor

    def arm(self, name: str) -> ArmLaw:
        """The law of one way of growing; an unknown one is a `ValueError` that lists the known."""
        reason = self.refused.get(name)
        check(reason is None, f"arm={name} has no law: {reason}")
        check(name in self.grown, f"arm={name} is not in this study; it has {', '.join(self.grown)}")
        return self.grown[name]

    def at(self, sunk: ArrayLike, extra: ArrayLike, activated_params: float | None = None) -> Points:
        """Where to predict; for a study of one size N_a plays no part."""
        return points_at(sunk, extra, activated_params or self.unit_params)


def fit_arms(cells: pd.DataFrame, *, floor: Asked = None, resamples: int = RESAMPLES) -> ArmLaws:
    """Fits the final losses of a table of cells (`analysis.table`); `floor` is E, or see `floor_of`.

    Resamples are paired: all laws draw the same trunks. Without a *continued* control, or with too few
    cells, a `ValueError` that says what is missing.
    """
    points = arm_points(cells)
    branches = _branches(cells)
    trunks = tuple(np.unique(np.concatenate([p.trunk for p in points.values()])))
    sizes = tuple(sorted(branches["trunk_activated_params"].unique()))
    found_floor = floor_of(cells, [(own, laws_of(name, sizes)) for name, own in points.items()], floor)
    fixed = found_floor.fixed
    grown: dict[str, ArmLaw] = {}
    refused: dict[str, str] = {}
    for i, name in enumerate(name for name in points if name != CONTINUED):
        seed = 0 if len(trunks) > 2 else i + 1  # few trunks: residuals, which no two arms share
        try:
            found = compare(points[name], laws_of(name, sizes), fixed=fixed, resamples=0, left_out=False)
        except ValueError as error:
            refused[name] = str(error)
            continue
        if EFFECTIVE.name in found.refused:
            refused[name] = found.refused[EFFECTIVE.name]
            continue
        best, effective = found.fits[0], next(f for f in found.fits if f.law.name == EFFECTIVE.name)
        if resamples:
            effective = bootstrap(effective, points[name], resamples, trunks, seed)
            alike = best.law.name == EFFECTIVE.name
            best = effective if alike else bootstrap(best, points[name], resamples, trunks, seed)
        n = int((branches["way"] == name).sum())
        grown[name] = ArmLaw(name=name, best=best, effective=effective, n_branches=n)
    check(bool(grown), f"no way of growing has a law: {next(iter(refused.values()), '')}")
    power = laws_of(CONTINUED, sizes)[0]
    continued = fit(power, points[CONTINUED], fixed=fixed, resamples=resamples, trunks=trunks, left_out=False)
    return ArmLaws(
        continued=continued,
        grown=grown,
        refused=refused,
        n_trunks=len(np.unique(branches["replicate"])),
        sizes=sizes,
        unit_params=_middle(np.array(sizes)),
        studied=_studied(branches, points),
        floor=found_floor,
    )


def laws_of(name: str, sizes: Iterable[float]) -> tuple[Law, ...]:
    """The laws that an arm is asked for; of several sizes N_a, with a factor for the size."""
    laws = (POWER,) if name == CONTINUED else SUNK_LAWS
    different = np.unique(np.fromiter(sizes, float))
    return tuple(sized(law, _middle(different)) for law in laws) if len(different) > 1 else laws


def _middle(sizes: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(sizes))))


def arm_points(cells: pd.DataFrame, need_continued: bool = True) -> dict[str, Points]:
    """The measured ends of each way of growing, with its scratch runs as S = 0, and those of *continued*."""
    done = cells[(cells["status"] == "done") & cells["final_loss"].notna()]
    check(len(done) > 0, "the study has no finished cell with a final loss; run it first")
    branches = _branches(cells)
    check(len(branches) > 0, "the study has no finished grown cell; ask for growth steps above 0")
    check(bool(branches["f_c"].notna().all()), "grown cells have no trunk_activated_params, so no F_c")
    continued = done[done["kind"] == "continued"]
    check(
        len(continued) > 0 or not need_continued,
        "the study has no finished continued control, so growing cannot be held against it; run it with "
        "controls=[continued,scratch_total]",
    )
    out = {}
    for name, own in branches.groupby("way", sort=True):
        out[str(name)] = _points(pd.concat([own, _scratch_of(done, own)]))
    if len(continued):
        out[CONTINUED] = _points(continued)
    return out


def _branches(cells: pd.DataFrame) -> pd.DataFrame:
    grown = cells[(cells["status"] == "done") & cells["final_loss"].notna() & (cells["kind"] == "branch")]
    return grown.assign(way=ways_of_growing(grown))


def _scratch_of(done: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Scratch runs of the arm's architectures: its controls, and those asked for."""
    ids = set(own["scratch_extra_id"]) | set(own["scratch_total_id"])
    alike = pd.Series(False, index=done.index)
    for params in set(zip(own["activated_params"], own["total_params"], strict=True)):
        alike |= (done["activated_params"] == params[0]) & (done["total_params"] == params[1])
    paired = done["kind"].isin(SCRATCH_KINDS) & done["cell_id"].isin(ids)
    return done[paired | ((done["kind"] == "scratch") & alike)]


def _points(cells: pd.DataFrame) -> Points:
    grown = cells["kind"] == "branch"
    sunk = cells["sunk_flops"].where(grown, 0.0).to_numpy(float)
    extra = cells["extra_flops"].where(grown, cells["total_flops"]).to_numpy(float)
    f_c = cells["f_c"].to_numpy(float)
    return Points(
        sunk=sunk / f_c,
        extra=extra / f_c,
        loss=cells["final_loss"].to_numpy(float),
        trunk=cells["replicate"].to_numpy(str),
        activated_params=cells["trunk_activated_params"].to_numpy(float),
    )


def _studied(branches: pd.DataFrame, points: Mapping[str, Points]) -> dict[str, tuple[float, float]]:
    """Ranges of what was trained; "scratch / F_c" is there where something was trained from scratch."""
    over = [own.extra[own.sunk == 0] for name, own in points.items() if name != CONTINUED]
    columns = {
        "sunk / F_c": branches["sunk_f_c"],
        "extra / sunk": branches["extra_f_c"] / branches["sunk_f_c"],
        "N_a": branches["trunk_activated_params"],
    }
    if any(len(budgets) for budgets in over):
        columns["scratch / F_c"] = pd.Series(np.concatenate(over))
    return {name: (float(values.min()), float(values.max())) for name, values in columns.items()}
