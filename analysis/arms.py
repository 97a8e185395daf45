"""What is compared with what: arms (one way of growing), replicates (independent trunks), budget rules."""

from typing import Any

import numpy as np
import pandas as pd

# Settings that every growth has: named wherever they differ.
_SHARED = {
    "optimizer_state": "moments {}",
    "growth_lr": "rate {:g}",
    "growth_warmup_steps": "warm-up {:g}",
    "at_growth": "data {}",
    "trunk_activated_params": "N_a {:.4g}",
    "eval_id": "evaluation {}",
    "decay_fraction": "decay {:g}",
    "start_phase": "{} start",
    "train_lr": "trunk rate {:g}",
    "norm_placement": "{}-norm",
    "residual_base_layers": "residual base {:g}",
    "trunk_layers": "{:g} layers",
}
# Settings that only some operators have: named where they differ between growths by the same operators.
_OWN = {
    "depth_factor": "depth ×{:g}",
    "width_factor": "width ×{:g}",
    "keep_first": "first {:g} kept",
    "keep_last": "last {:g} kept",
    "layer_map": "layers {}",
    "copies": "copies {}",
    "noise_scale": "α={:g}",
    "router_noise_scale": "router α={:g}",
    "drop_fraction": "drop {:g}",
    "then": "then {}",
    "then_after_flops": "then after {:.2g} FLOPs",
}
_BUDGET_TOLERANCE = 0.10  # whole steps: two budgets meant to be equal may differ by a step of the dearer one


def add_arms(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `arm`: a branch's operators and whichever other growth settings vary; a control's kind.

    With several extra budgets (or several totals) in one study the budget is part of the arm, so that an
    arm never mixes two.
    """
    table = table.copy()
    branch = table["kind"] == "branch"
    grown = table[branch]
    names = _names(grown)
    rule, level_of = budget_rule(table)
    if rule != "mixed" and level_of.nunique() > 1:
        names = [
            f"{name}, {rule} {level:.2g} FLOPs"
            for name, level in zip(names, level_of.loc[grown.index], strict=True)
        ]
    kinds = table["kind"].replace({"scratch_extra": "scratch", "scratch_total": "scratch"})
    table["arm"] = kinds.where(~branch, "")
    table.loc[branch, "arm"] = names
    return table


def ways_of_growing(grown: pd.DataFrame) -> pd.Series:
    """The arm of each branch whatever its budget and the size of its trunk: what a law is fitted to."""
    return pd.Series(_names(grown, but="trunk_activated_params"), grown.index, dtype=object)


def arms_at_any_rate(grown: pd.DataFrame) -> pd.Series:
    """The arm of each branch whatever its rate after growth: what has a rate to be chosen."""
    return pd.Series(_names(grown, but="growth_lr"), grown.index, dtype=object)


def _names(grown: pd.DataFrame, but: str = "") -> list[str]:
    """The operators of each branch, and in which settings it differs from others."""
    growth = _growths(grown)
    names = list(growth)
    for column, pattern in (_OWN | _SHARED).items():
        if column == but or column not in grown:  # planned rows have nothing that was measured
            continue
        values = _comparable(grown[column], growth)
        varies = _varies(grown.assign(**{column: values}), column, growth)
        shown = [_shown(value, column, pattern) if v else "" for value, v in zip(values, varies, strict=True)]
        names = [f"{name}, {extra}" if extra else name for name, extra in zip(names, shown, strict=True)]
    return names


def _growths(grown: pd.DataFrame) -> pd.Series:
    """The operators in words: "interposition + duplicate", or "duplicate → interposition" for a chain."""
    names = []
    for growth, depth, width in zip(grown["growth"], grown["method"], grown["width_method"], strict=True):
        parts = [part for part in (depth, width) if part not in ("none", "")]
        names.append(growth or " + ".join(parts) or "none")
    return pd.Series(names, index=grown.index, dtype=object)


def _comparable(values: pd.Series, growth: pd.Series) -> pd.Series:
    """What of a column can tell two arms apart: budgets by their cluster, further growths by the words in
    which they differ from others of the same operators."""
    if values.name == "then_after_flops":
        return levels(values)
    if values.name != "then":
        return values
    words = values.str.split().map(frozenset)
    common = words.groupby(growth).transform(lambda own: [frozenset.intersection(*own)] * len(own))
    told = zip(values, common, strict=True)
    return pd.Series([" ".join(w for w in text.split() if w not in c) for text, c in told], values.index)


def _varies(grown: pd.DataFrame, column: str, growth: pd.Series) -> pd.Series:
    """For each branch, whether its arm must say `column`.

    A growth in depth that was asked to rescale moments only copies them: no setting was changed by that.
    """
    values = grown[column]
    if column == "router_noise_scale":  # by default that of the experts, which is named already
        values = values.where(~_equal_by_group(values, grown["noise_scale"], growth), 0.0)
    within = values.groupby(growth).transform("nunique", dropna=False) > 1
    if column not in _SHARED:
        return within
    alike = values.replace({"rescale": "copy"}) if column == "optimizer_state" else values
    return within | (alike.nunique(dropna=False) > 1)


def _equal_by_group(a: pd.Series, b: pd.Series, group: pd.Series) -> pd.Series:
    """For each row, whether `a` equals `b` in all rows of its group."""
    return ((a == b) | (a.isna() & b.isna())).groupby(group).transform("all")


def _shown(value: Any, column: str, pattern: str) -> str:
    if pd.isna(value) or value == "":
        return "rate of the trunk" if column == "growth_lr" else ""
    return pattern.format(value)


def standard_error(per_trunk: pd.Series, evaluation: float) -> float:
    """Of a mean over trunks: their spread, but no less than what the `evaluation` error of one leaves.

    Two trunks may agree by chance; that does not make either of them better measured.
    """
    n = len(per_trunk)
    if n == 1:
        return evaluation
    spread = float(per_trunk.std(ddof=1))
    return max(spread, evaluation if np.isfinite(evaluation) else 0.0) / np.sqrt(n)


def add_replicates(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `replicate`, the independent trunk a cell belongs to; a control takes that of the cell it serves.

    Trunks count as independent only if their seeds differ, and seeds only if their trunks do.
    """
    table = table.copy()
    grown = table[table["kind"] == "branch"]
    by_seed = grown["seed"].nunique() < grown["trunk_id"].nunique()
    own = ("seed " + table["seed"].map("{:g}".format)) if by_seed else table["trunk_id"]
    replicate = dict(zip(table["cell_id"], own, strict=True))
    of_seed: dict[float, str] = {}
    for seed, trunk in zip(grown["seed"], own.loc[grown.index], strict=True):
        of_seed.setdefault(seed, trunk)
    for cell, kind, seed, serves in zip(
        table["cell_id"], table["kind"], table["seed"], table["control_of"], strict=True
    ):
        if kind != "branch":
            served = serves.split()
            replicate[cell] = replicate[served[0]] if served else of_seed.get(seed, replicate[cell])
    table["replicate"] = table["cell_id"].map(replicate)
    return table


def budget_rule(table: pd.DataFrame) -> tuple[str, pd.Series]:
    """What the branches hold equal, "extra", "total" or "mixed", and each branch's level of it in FLOPs."""
    grown = table[table["kind"] == "branch"]
    for rule in ("extra", "total"):
        flops = grown[f"{rule}_flops"].astype(float)
        level = levels(flops)
        if level.nunique() <= 1:
            return rule, level
    for rule in ("extra", "total"):
        level = levels(grown[f"{rule}_flops"].astype(float))
        crossed = grown.assign(level=level).groupby("level")["growth_step"].nunique()
        if crossed.min() >= 2:
            return rule, level
    return "mixed", grown["extra_flops"].astype(float)


def levels(flops: pd.Series) -> pd.Series:
    """Each value's cluster, named by the cluster's largest value; a gap above 10 % separates two."""
    ordered = flops.dropna().sort_values()
    if ordered.empty:
        return flops
    new = np.diff(np.log(ordered.clip(lower=1.0)), prepend=np.log(max(ordered.iloc[0], 1.0)))
    cluster = pd.Series((new > np.log1p(_BUDGET_TOLERANCE)).cumsum(), index=ordered.index)
    return ordered.groupby(cluster).transform("max").reindex(flops.index)
