"""E of a study's laws: as given, the entropy of the data where cells know it, or left free."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.laws import FLOOR, Law, Points
from analysis.laws.fitting import HUBER, Fit, compare
from moe.plain import check

FREE = "free"
WORSE = 4.0  # of AICc: what a law that is held may lose before it is set free

Asked = float | str | None  # nats per token, "free", or None for what the data says
Question = tuple[Points, tuple[Law, ...]]


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What E is held at in nats per token, None where it is fitted; `why` is "" where nothing is known."""

    held: float | None = None
    why: str = ""

    @property
    def fixed(self) -> dict[str, float] | None:
        """As `analysis.laws.fitting` takes it."""
        return None if self.held is None else {FLOOR: self.held}

    @property
    def asked(self) -> Asked:
        """What asks for the same E again."""
        return FREE if self.held is None else self.held


def floor_asked(value: object) -> Asked:
    """What a user gave as floor; ValueError if it is neither a number nor `free`."""
    if value is None or value == FREE:
        return None if value is None else FREE
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    check(math.isfinite(number), f"floor={value} must be a number of nats per token, or {FREE}")
    return number


def floor_given(asked: Asked) -> Floor:
    """The E that was asked for; for None nothing is known."""
    if asked is None:
        return Floor()
    if isinstance(asked, str):
        return Floor(why="E is left free, as asked.")
    return Floor(held=asked, why=f"E = {asked:.4g} nats per token, as given.")


def floor_of(cells: pd.DataFrame, questions: Iterable[Question], asked: Asked = None) -> Floor:
    """The E that all of `questions` (points of the cells, and the laws fitted to them) are fitted with.

    Unless asked otherwise it is the cells' `entropy_floor`, held if it is below all losses and the laws that
    have an E fit no worse by it: the sum over questions of the least AICc rises by no more than `WORSE`.
    A model whose size stands in the way ends above the entropy of the data, and then E is left free.
    """
    if asked is not None:
        return floor_given(asked)
    done = cells[(cells["status"] == "done") & cells["final_loss"].notna()]
    known = done["entropy_floor"].unique()
    if len(known) != 1:
        several = len(done["entropy_floor"].dropna().unique()) > 1
        return Floor(why="E is left free: the cells' data differ in their entropy." if several else "")
    if np.isnan(known[0]):
        return Floor()
    floor, least = float(known[0]), float(done["final_loss"].min())
    named = f"the entropy of the data, {floor:.4g} nats per token,"
    if floor >= least:
        return Floor(why=f"E is left free: {named} is not below the least loss, {least:.4g}.")
    told = [change for question in questions if (change := _lost(*question, floor)) is not None]
    if (lost := sum(told)) > WORSE:
        return Floor(
            why=f"E is left free: held at {named} the laws fit worse (AICc +{lost:.1f}). Where a model's "
            "size stands in the way, its losses end above that."
        )
    untold = "" if told else ", untested: the points are too few"
    return Floor(held=floor, why=f"E = {floor:.4g} nats per token, the entropy of the data, is held{untold}.")


def _lost(points: Points, laws: tuple[Law, ...], floor: float) -> float | None:
    """By how much the least AICc rises when E is held, at one δ; None where points are too few to tell.

    What a trunk's points have in common is taken out first: it would hide how the curve bends.
    """
    laws = tuple(law for law in laws if FLOOR in [p.name for p in law.parameters])
    options = {"resamples": 0, "left_out": False}
    try:
        rough = compare(points, laws, **options).fits
        points = _without_trunks(points, rough[0])
        laws = tuple(fit.law for fit in rough)
        free = compare(points, laws, **options).fits
        held = compare(points, laws, fixed={FLOOR: floor}, noise=free[0].delta / HUBER, **options).fits
    except ValueError:
        return None
    before, after = free[0].aicc, held[0].aicc  # the best come first
    return None if before is None or after is None else after - before


def _without_trunks(points: Points, fit: Fit) -> Points:
    """Losses less what their trunk is off from a law on average, in logarithms."""
    off = np.log(points.loss / fit.predict(points))
    _, trunk = np.unique(points.trunk, return_inverse=True)
    mean = np.bincount(trunk, off) / np.bincount(trunk)
    return replace(points, loss=points.loss * np.exp(mean.mean() - mean[trunk]))
