"""Verdicts: what one estimate per independent trunk says of a claimed effect, δ fixed beforehand."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from analysis.intervals import minimum_detectable_over_trunks, t_interval, t_test


class Verdict(StrEnum):
    AGREES = "agrees"
    DISAGREES = "disagrees"
    NO_DIFFERENCE = "no difference within ±δ"
    UNDECIDED = "undecided"
    NOT_COVERED = "regime not covered"
    MIXED = "mixed"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a study says of a claim: the claimed effect in each trunk, positive where it is as claimed.

    `covered` is whether the regime of the claim was run, `needs` what that takes. `none_claimed`: the claim
    is that there is no effect.
    """

    per_trunk: tuple[float, ...]
    what: str
    covered: bool
    needs: str
    cells: tuple[str, ...] = ()
    trunks_needed: int = 3
    none_claimed: bool = False
    unit: str = "points"

    @property
    def effect(self) -> float | None:
        return float(np.mean(self.per_trunk)) if self.per_trunk else None

    @property
    def interval(self) -> list[float] | None:
        """The 95 % t interval over trunks; None for fewer than three."""
        return t_interval(self.per_trunk)

    @property
    def p_value(self) -> float | None:
        """Two-sided, of no effect; None where there is no interval or no spread."""
        return t_test(self.per_trunk)

    @property
    def minimum_detectable(self) -> float | None:
        """The effect that this many trunks of this spread show with a power of 80 % at 5 %."""
        return minimum_detectable_over_trunks(self.per_trunk)


def verdict_of(interval: list[float], delta: float, *, none_claimed: bool = False) -> Verdict:
    """The verdict on a claimed positive effect, or on the claim that there is none."""
    low, high = interval
    if -delta <= low and high <= delta:
        return Verdict.AGREES if none_claimed else Verdict.NO_DIFFERENCE
    if none_claimed:
        return Verdict.DISAGREES if low > delta or high < -delta else Verdict.UNDECIDED
    if low > 0:
        return Verdict.AGREES
    return Verdict.DISAGREES if high < 0 else Verdict.UNDECIDED


def judged(finding: Finding, delta: float, trunks_run: int) -> tuple[Verdict, str]:
    """The verdict, and why in a sentence. One trunk decides nothing, whatever its regime."""
    n, interval = len(finding.per_trunk), finding.interval
    what = f"{finding.what} {shown(finding.effect, interval, finding.unit)}." if n else "Nothing is claimed."
    if trunks_run == 1:
        return Verdict.UNDECIDED, f"{what} One trunk decides nothing. {finding.needs}".strip()
    if not finding.covered or not n:
        return Verdict.NOT_COVERED, f"{what} {finding.needs}".strip()
    if n < finding.trunks_needed or interval is None:
        return Verdict.UNDECIDED, f"{what} {n} trunks; a verdict takes {finding.trunks_needed}."
    return verdict_of(interval, delta, none_claimed=finding.none_claimed), what


def numbers(finding: Finding) -> dict[str, Any]:
    """What a claims table and its JSON say of a finding, as fractions."""
    return {
        "effect": finding.effect,
        "interval": finding.interval,
        "n_trunks": len(finding.per_trunk),
        "minimum_detectable": finding.minimum_detectable,
        "p_value": finding.p_value,
        "unit": finding.unit,
        "none_claimed": finding.none_claimed,
        "cells": list(finding.cells),
    }


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points with its sign."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text.replace("-", "−")


def shown(effect: float | None, interval: list[float] | None, unit: str = "points") -> str:
    """An effect with its interval, in words."""
    if effect is None:
        return f"an unknown number of {unit}"
    if interval is None:
        return f"{points(effect)} {unit} (no interval)"
    return f"{points(effect)} {unit} (95 % interval {points(interval[0])} to {points(interval[1])})"
