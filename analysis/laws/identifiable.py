"""What a law needs before it can be fitted: enough points, at enough different places."""

import numpy as np

from analysis.laws import FLOOR, Law, Points
from moe.plain import check

SAME = 0.01  # two budgets closer than this are meant to be equal


def check_points(law: Law, points: Points, fixed: dict[str, float] | None = None) -> None:
    """Refuses what a law cannot be fitted to, with a line that says what is missing."""
    fixed = fixed or {}
    for name in (*law.needs, law.target):
        check(getattr(points, name) is not None, f"the {law.name} law needs {name}; these points have none")
    names = [p.name for p in law.parameters]
    free = len(names) - len(fixed)
    check(
        len(points) >= free + 2,
        f"the {law.name} law has {free} free parameters and needs at least {free + 2} points; these are "
        f"{len(points)}: add growth steps, budgets or seeds",
    )
    known = FLOOR in fixed
    check_floor(points, fixed if law.target == "loss" else {})
    if "ρ" in names or "S₀" in names:
        check(
            np.ptp(points.sunk) > SAME * points.sunk.max(),
            f"sunk FLOPs are the same in all {len(points)} points; the {law.name} law needs several growth "
            "steps",
        )
    if law.name == "chinchilla" and points.activated_params is not None:
        least, sizes = (2 if known else 3), len(np.unique(points.activated_params))
        check(
            sizes >= least,
            f"the chinchilla law needs {least} sizes N{'' if known else ' (2 if E is known)'}, not {sizes}",
        )
    places = _num_places(law, points)
    check(
        places >= free,
        f"the {law.name} law has {free} free parameters and these points only {places} different places; add "
        "growth steps or budgets",
    )


def _num_places(law: Law, points: Points) -> int:
    columns = [np.asarray(getattr(points, name), float) for name in law.needs]
    columns = [points.sunk + points.extra] if law.name == "power" else columns
    return len(np.unique(np.stack([rounded(column) for column in columns]), axis=1).T)


def rounded(values: np.ndarray) -> np.ndarray:
    """Values within about 1 % of each other become one."""
    return np.round(np.log(np.maximum(values, 1e-12)) / np.log1p(SAME))


def check_floor(points: Points, fixed: dict[str, float]) -> None:
    """Refuses a known E that measured losses are not above."""
    floor = fixed.get(FLOOR, 0.0)
    check(
        floor < points.loss.min(),
        f"E={floor:g} must be below the least loss, {points.loss.min():.4g}; no law falls below E",
    )
