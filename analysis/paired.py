"""Two arms compared where they share what varies: the trunk both grew from, the items both were asked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.intervals import MIN_TRUNKS, minimum_detectable_over_trunks, t_interval, t_test


def paired_by_trunk(
    table: pd.DataFrame,
    arms: tuple[str, str],
    y: str,
    *,
    arm: str = "arm",
    trunk: str = "replicate",
    match: Sequence[str] = ("growth_step",),
    se: str | None = None,
) -> dict[str, Any]:
    """Mean of `y` of the first arm − the second over trunks, each trunk one difference, with its t interval.

    Within a trunk only cells that agree in every column of `match` are subtracted; cells without a partner
    are left out and counted. `evaluation_se` is the error that the column `se` leaves in the mean, as if the
    evaluations were independent. Below three trunks there is no interval, and `no_interval_because` says so.
    """
    first, second = arms
    named = table[table[arm].isin(arms) & table[y].notna()]
    keys = [trunk, *match]
    wide = named.pivot_table(index=keys, columns=arm, values=y, aggfunc="mean").reindex(columns=list(arms))
    pairs = wide.dropna()
    gaps = (pairs[first] - pairs[second]).groupby(level=trunk).mean()
    values = gaps.tolist()
    out: dict[str, Any] = {"arms": list(arms), "y": y, "n_pairs": len(pairs), "n_trunks": len(values)}
    out |= {"unpaired": len(wide) - len(pairs), "per_trunk": {str(k): float(v) for k, v in gaps.items()}}
    out |= {"mean": float(np.mean(values)) if values else None, "interval": t_interval(values)}
    out |= {"p": t_test(values), "minimum_detectable": minimum_detectable_over_trunks(values)}
    out["evaluation_se"] = _error_of_mean(named, pairs, keys, trunk, arm, se) if se and values else None
    few = f"{len(values)} trunks have both arms; an interval takes {MIN_TRUNKS}. Add seeds."
    return out | {"no_interval_because": few if len(values) < MIN_TRUNKS else None}


def _error_of_mean(
    named: pd.DataFrame, pairs: pd.DataFrame, keys: list[str], trunk: str, arm: str, se: str
) -> float | None:
    """Cells of one arm at one key are averaged, pairs within a trunk, then trunks."""
    errors = named.assign(square=named[se] ** 2).pivot_table(
        index=keys, columns=arm, values="square", aggfunc=lambda own: own.sum(skipna=False) / len(own) ** 2
    )
    of_pair = errors.reindex(pairs.index).sum(axis=1, skipna=False)
    of_trunk = of_pair.groupby(level=trunk).agg(lambda own: own.sum(skipna=False) / len(own) ** 2)
    error = float(np.sqrt(of_trunk.sum(skipna=False))) / len(of_trunk)
    return error if np.isfinite(error) else None


def paired_by_item(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """Difference of two accuracies on the same items, its paired standard error, and McNemar's exact p.

    Only items that one side alone gets right count; `unpaired_se` is what two independent evaluations would
    give. It says whether two *states* differ, not whether two arms would on other trunks.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            f"first has {a.shape} items, second {b.shape}; give one answer per item, in one order"
        )
    for name, given in (("first", a), ("second", b)):
        if not np.isin(given, (0, 1)).all():
            raise ValueError(f"{name} must hold right (1) or wrong (0) for each item; nothing between")
    a, b = a.astype(bool), b.astype(bool)
    n, only_first, only_second = len(a), int((a & ~b).sum()), int((~a & b).sum())
    differ = only_first + only_second
    spread = differ - (only_first - only_second) ** 2 / n
    return {
        "n_items": n,
        "difference": (only_first - only_second) / n,
        "se": float(np.sqrt(max(spread, 0.0)) / n),
        "unpaired_se": difference_se(binomial_se(a.mean(), n), binomial_se(b.mean(), n)),
        "only_first": only_first,
        "only_second": only_second,
        "p": float(stats.binomtest(only_first, differ).pvalue) if differ else 1.0,
    }


def binomial_se(acc: float, n: float) -> float:
    """The standard error of an accuracy (a fraction) over n items."""
    if not (0 <= acc <= 1 and n >= 1):
        raise ValueError(f"acc={acc} of n={n} items must be a fraction of at least one item")
    return float(np.sqrt(acc * (1 - acc) / n))


def difference_se(first: float, second: float) -> float:
    """The standard error of a difference of two independent evaluations, from theirs."""
    return float(np.hypot(first, second))
