"""What a table of cells says of each claim: one number per independent trunk, positive as claimed.

A measure takes the rows of one study and gives a Finding, or None where the study does not touch the claim.
"""

from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import budget_rule
from analysis.correlation import associate
from analysis.verdict import Finding

TRUNKS_FOR_A_VERDICT = 8
C1_SUNK_F_C = (2.0, 27.0)
C3_SUNK_F_C = (0.25, 8.0)
STABLE_LOSS = 0.1  # nats above the loss before growth at which a branch may end and count as stable
_SETTINGS = (
    *("replicate", "growth_step", "width_method", "noise_scale", "growth_lr", "start_phase", "train_lr"),
    *("norm_placement", "residual_base_layers"),
)


def finished(cells: pd.DataFrame) -> pd.DataFrame:
    """The grown cells that have an end."""
    return cells[(cells["kind"] == "branch") & (cells["status"] == "done") & cells["final_acc"].notna()]


def spans_c3(grown: pd.DataFrame) -> bool:
    low, high = C3_SUNK_F_C
    return bool(grown["sunk_f_c"].min() <= 1.2 * low and grown["sunk_f_c"].max() >= high / 1.2)


# -- depth -----------------------------------------------------------------------------------------------


def rise_with_sunk(cells: pd.DataFrame) -> Finding | None:
    """C1: per trunk and arm the Theil–Sen slope times the range of sunk FLOPs, then averaged over arms."""
    grown = finished(cells)
    if grown.empty or budget_rule(grown)[0] != "extra" or grown["growth_step"].nunique() < 2:
        return None
    span = float(grown["sunk_flops"].max() - grown["sunk_flops"].min())
    rises: dict[str, list[float]] = {}
    for (trunk, _), own in grown.groupby(["replicate", "arm"]):
        slope = associate(own, "final_acc")["theil_sen"]
        if slope:
            rises.setdefault(str(trunk), []).append(slope["slope"] * span / 1e12)
    return Finding(
        per_trunk=tuple(float(np.mean(own)) for own in rises.values()),
        what="Final accuracy changes over the range of sunk FLOPs by",
        covered=bool(grown["sunk_f_c"].max() >= C1_SUNK_F_C[0]),
        needs=f"The claim is about {C1_SUNK_F_C[0]:g} F_c of sunk FLOPs and more.",
        cells=_ids(grown),
        trunks_needed=TRUNKS_FOR_A_VERDICT,
    )


def gain_at_equal_total(cells: pd.DataFrame) -> Finding | None:
    """C2: grown − scratch at equal total FLOPs, per trunk over its growth steps."""
    grown = finished(cells)
    grown = grown[grown["gain_over_scratch_total"].notna()]
    if grown.empty or budget_rule(grown)[0] != "total":
        return None
    return Finding(
        per_trunk=_means(grown, "gain_over_scratch_total"),
        what="Grown minus scratch with equal total FLOPs is",
        covered=bool(grown["sunk_f_c"].max() >= C1_SUNK_F_C[0]),
        needs=f"The claim is about {C1_SUNK_F_C[0]:g} F_c of sunk FLOPs and more.",
        cells=_ids(grown),
        trunks_needed=TRUNKS_FOR_A_VERDICT,
    )


def interposition_over_stack(cells: pd.DataFrame) -> Finding | None:
    """C3: paired by trunk and growth step, beyond 1 F_c."""
    grown = finished(cells)
    if not {"stack", "interposition"} <= set(grown["method"]):
        return None
    late = grown[grown["sunk_f_c"] > 1.0]
    needs = "It takes growth steps log-spaced over 0.25 to 8 F_c and several trunks."
    if late.empty and grown["sunk_f_c"].notna().any():
        needs = f"At most {grown['sunk_f_c'].max():.2g} F_c is sunk here. {needs}"
    return Finding(
        per_trunk=_paired(late, "method", "interposition", "stack", also=("depth_factor",)),
        what="Beyond 1 F_c, interposition minus stack is",
        covered=spans_c3(grown),
        needs=needs,
        cells=_ids(late),
        trunks_needed=TRUNKS_FOR_A_VERDICT,
    )


def gap_by_factor(cells: pd.DataFrame) -> Finding | None:
    """C4: interposition − stack at the largest factor less that at factor 2, per trunk, beyond 1 F_c."""
    grown = finished(cells)
    factors = sorted(set(grown["depth_factor"].dropna()))
    both = {"stack", "interposition"} <= set(grown["method"])
    if not both or 2.0 not in factors or factors[-1] <= 2.0:
        return None
    late = grown[grown["sunk_f_c"] >= 0.95]
    gaps = [
        _gaps(late[late["depth_factor"] == factor], "method", "interposition", "stack", ())
        for factor in (factors[-1], 2.0)
    ]
    widening = (gaps[0] - gaps[1]).dropna().groupby("replicate").mean()
    return Finding(
        per_trunk=tuple(widening),
        what=f"From factor 2 to {factors[-1]:g}, interposition minus stack widens by",
        covered=bool(grown["sunk_f_c"].max() > 1.0) and factors[-1] >= 4.0,
        needs="It takes factors 2 and 4 beyond 1 F_c.",
        cells=_ids(late),
    )


def annealed_gains_less(cells: pd.DataFrame) -> Finding | None:
    """C9: net of stable starts less that of annealed ones, at one rate, per trunk."""
    grown = finished(cells)
    if not {"stable", "annealed"} <= set(grown["start_phase"]):
        return None
    return Finding(
        per_trunk=_paired(grown, "start_phase", "stable", "annealed", value="net"),
        what="Net from stable starts minus net from annealed ones, over rates, is",
        covered=True,
        needs="",
        cells=_ids(grown),
    )


def norms_rise_and_stack_steps(cells: pd.DataFrame) -> Finding | None:
    """C5: per trunk the lesser of two fractions: how much norms rise over its layers, and how much further
    the norm steps at the seam of stack than at the same place of interposition."""
    grown = finished(cells)
    if grown["norm_rise"].isna().all() or not {"stack", "interposition"} <= set(grown["method"]):
        return None
    steps = grown.assign(size=grown["seam_step"].abs())
    cliff = steps.pivot_table(index="replicate", columns="method", values="size")
    rise = grown.groupby("replicate")["norm_rise"].mean()
    least = pd.concat([rise, cliff["stack"] - cliff["interposition"]], axis=1).dropna().min(axis=1)
    decayed = (grown["growth_step"] * grown["train_lr"] * grown["weight_decay"]).max()
    return Finding(
        per_trunk=tuple(float(value) for value in least),
        what="The lesser of norms' rise over layers and of stack's extra step at its seam is",
        covered=bool(grown["trunk_layers"].min() >= 12 and decayed >= 2.9),
        needs="It takes 12 layers and 3 time constants of weight decay.",
        cells=_ids(grown),
        unit="per cent",
    )


# -- width -----------------------------------------------------------------------------------------------


def noise_helps(cells: pd.DataFrame) -> Finding | None:
    """C6: α = 0.01 − α = 0, paired by trunk."""
    grown = finished(cells)
    grown = grown[grown["width_method"] == "duplicate"]
    if not {0.0, 0.01} <= set(grown["noise_scale"]):
        return None
    return Finding(
        per_trunk=_paired(grown, "noise_scale", 0.01, 0.0),
        what="α = 0.01 minus α = 0 is",
        covered=True,
        needs="",
        cells=_ids(grown),
    )


def both_beat_one(cells: pd.DataFrame) -> Finding | None:
    """C7: experts and top-k doubled less the better of one of the two alone, at equal extra FLOPs."""
    grown = finished(cells)
    alone = [name for name in ("experts_only", "top_k_only") if name in set(grown["width_method"])]
    if not alone or "duplicate" not in set(grown["width_method"]):
        return None
    gaps = pd.concat([_gaps(grown, "width_method", "duplicate", name, ()) for name in alone], axis=1)
    return Finding(
        per_trunk=tuple(gaps.min(axis=1).groupby("replicate").mean().dropna()),
        what="At equal extra FLOPs, both doubled minus the better of one doubled alone is",
        covered=len(alone) == 2,
        needs="It takes experts alone and top-k alone.",
        cells=_ids(grown),
    )


# -- chains ----------------------------------------------------------------------------------------------


def order_is_moot(cells: pd.DataFrame) -> Finding | None:
    """C8: depth → width less width → depth, paired by trunk."""
    grown = finished(cells)
    orders = grown["growth"].map(_order)
    if not {"depth first", "width first"} <= set(orders):
        return None
    return Finding(
        per_trunk=_paired(grown.assign(order=orders), "order", "depth first", "width first", alike=False),
        what="Depth then width minus width then depth is",
        covered=True,
        needs="",
        cells=_ids(grown),
        none_claimed=True,
    )


def chain_beats_both(cells: pd.DataFrame) -> Finding | None:
    """C10: the chain less the better of continuing (equal total) and scratch (equal extra), per trunk."""
    grown = finished(cells)
    grown = grown[grown["growth"].map(_order) == "depth first"]
    if grown.empty or grown[["net", "gain_over_scratch_extra"]].isna().all().any():
        return None
    least = grown.assign(least=grown[["net", "gain_over_scratch_extra"]].min(axis=1))
    return Finding(
        per_trunk=_means(least, "least"),
        what="The chain minus the better of continuing and starting over is",
        covered=bool(grown["sunk_f_c"].max() >= C1_SUNK_F_C[0] / 1.05),
        needs="It takes about 2 F_c of sunk FLOPs.",
        cells=_ids(grown),
    )


def _order(growth: Any) -> str:
    """Which of depth and width a chain of growths begins with; "" for what is no chain of the two."""
    stages = [stage.strip() for stage in str(growth).split("→")]
    deep = [any(name in stage for name in ("stack", "interposition")) for stage in stages]
    return {"10": "depth first", "01": "width first"}.get("".join(str(int(d)) for d in deep), "")


# -- stability -------------------------------------------------------------------------------------------


def stable_under_both_norms(cells: pd.DataFrame) -> Finding | None:
    """C11: per trunk, over rates at which continuing is stable, the share of grown runs that are not, with
    its sign turned; the least favourable placement of norms counts."""
    grown = cells[cells["kind"] == "branch"]
    if grown["norm_placement"].nunique() < 2:
        return None
    ends = cells.drop_duplicates("cell_id").set_index("cell_id")["final_loss"]
    continues = grown["continued_id"].map(ends) <= grown["base_loss"] + STABLE_LOSS
    usable = grown[continues & grown["status"].isin(["done", "diverged"])]
    stable = (usable["status"] == "done") & (usable["final_loss"] <= usable["base_loss"] + STABLE_LOSS)
    shares = stable.astype(float).groupby([usable["replicate"], usable["norm_placement"]]).mean()
    worst = shares.groupby(level=0).min() - 1.0
    return Finding(
        per_trunk=tuple(worst),
        what="With the less stable placement of norms the share of stable grown runs differs from 1 by",
        covered=bool(grown["trunk_layers"].min() >= 24),
        needs="It takes 24 layers or more.",
        cells=_ids(usable),
        none_claimed=True,
    )


# -- pairing ---------------------------------------------------------------------------------------------


def _gaps(
    grown: pd.DataFrame, column: str, first: Any, second: Any, also: tuple[str, ...], value: str = "final_acc"
) -> pd.Series:
    """`value` of `first` less that of `second` wherever all other settings are the same."""
    keys = [name for name in (*_SETTINGS, *also) if name != column]
    table = grown.assign(**{key: [str(value) for value in grown[key]] for key in keys})  # missing ones too
    wide = table.pivot_table(index=keys, columns=column, values=value, aggfunc="mean", observed=True)
    if not {first, second} <= set(wide.columns):
        return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[]], names=["replicate"]))
    return (wide[first] - wide[second]).dropna()


def _paired(
    grown: pd.DataFrame,
    column: str,
    first: Any,
    second: Any,
    *,
    value: str = "final_acc",
    also: tuple[str, ...] = (),
    alike: bool = True,
) -> tuple[float, ...]:
    """The mean gap of each trunk. Without `alike`, settings other than trunk and growth step may differ."""
    if not alike:
        wide = grown.pivot_table(index=["replicate", "growth_step"], columns=column, values=value)
        gaps = (wide[first] - wide[second]).dropna()
    else:
        gaps = _gaps(grown, column, first, second, also, value)
    return tuple(float(gap) for gap in gaps.groupby("replicate").mean())


def _means(grown: pd.DataFrame, column: str) -> tuple[float, ...]:
    return tuple(float(mean) for mean in grown.groupby("replicate")[column].mean().dropna())


def _ids(cells: pd.DataFrame) -> tuple[str, ...]:
    return tuple(cells["cell_id"])
