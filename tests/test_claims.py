"""Each claim measured on tables with a planted effect: as claimed, the other way, absent, and not touched."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.claims import CLAIMS, judge_together
from analysis.verdict import Finding, Verdict, judged, verdict_of

PLAIN = {
    "norm_rise": np.nan,
    "seam_step": np.nan,
    "weight_decay": 0.1,
    "kind": "branch",
    "status": "done",
    "growth": "interposition",
    "method": "interposition",
    "depth_factor": 2.0,
    "width_method": "none",
    "width_factor": 1.0,
    "noise_scale": 0.0,
    "growth_lr": 0.004,
    "start_phase": "stable",
    "train_lr": 0.004,
    "norm_placement": "pre",
    "residual_base_layers": 0.0,
    "trunk_layers": 4.0,
    "extra_flops": 5e11,
    "final_loss": 2.0,
    "base_loss": 2.0,
    "continued_acc": 0.5,
}


def table(axes: dict[str, list], accuracy, seeds=range(8), **fixed) -> pd.DataFrame:
    """A row for each seed and combination of `axes`, of the accuracy that `accuracy(row)` says, nearly."""
    rows = []
    for seed, values in itertools.product(seeds, itertools.product(*axes.values())):
        row = {**PLAIN, "seed": float(seed), "replicate": f"seed {seed}", "sunk_f_c": 2.0, **fixed}
        row |= dict(zip(axes, values, strict=True))
        row |= {"growth_step": 1000 * row["sunk_f_c"], "sunk_flops": 1e12 * row["sunk_f_c"]}
        row.setdefault("total_flops", row["sunk_flops"] + row["extra_flops"])
        row["extra_flops"] = row["total_flops"] - row["sunk_flops"]
        noise = np.random.default_rng([seed, len(rows)]).normal(scale=0.001)
        row["final_acc"] = accuracy(row) + 0.003 * seed + noise
        row["net"] = row["final_acc"] - row["continued_acc"] - 0.003 * seed
        row["gain_over_scratch_total"] = row["gain_over_scratch_extra"] = row["net"]
        row |= {"cell_id": f"c{len(rows)}", "arm": f"{row['growth']} {row['method']} {row['depth_factor']}"}
        rows.append(row)
    return pd.DataFrame(rows)


SUNK = [0.25, 1.0, 2.0, 4.0, 8.0]


def later(row):
    return row["sunk_f_c"] > 1


# claim → (axes, the accuracy of a row when the effect is `e`, what is fixed)
PLANTED = {
    "C1": ({"sunk_f_c": SUNK}, lambda row, e: 0.5 + e * row["sunk_f_c"] / 8, {}),
    "C2": ({"sunk_f_c": [1.0, 2.0]}, lambda row, e: 0.5 + e, {"total_flops": 4e12}),
    "C3": (
        {"sunk_f_c": SUNK, "method": ["stack", "interposition"]},
        lambda row, e: 0.5 + e * (later(row) and row["method"] == "interposition"),
        {},
    ),
    "C4": (
        {"sunk_f_c": [1.0, 4.0], "method": ["stack", "interposition"], "depth_factor": [2.0, 4.0]},
        lambda row, e: 0.5 + e * (row["method"] == "interposition" and row["depth_factor"] == 4),
        {},
    ),
    "C6": (
        {"noise_scale": [0.0, 1e-6, 0.01]},
        lambda row, e: 0.5 + e * (row["noise_scale"] == 0.01),
        {"method": "none", "width_method": "duplicate"},
    ),
    "C7": (
        {"width_method": ["duplicate", "experts_only", "top_k_only", "split"]},
        lambda row, e: 0.5 + e * (row["width_method"] == "duplicate"),
        {"method": "none"},
    ),
    "C9": (
        {"start_phase": ["stable", "annealed"], "growth_lr": [0.004, 0.001]},
        lambda row, e: 0.5 + e * (row["start_phase"] == "stable"),
        {},
    ),
    "C10": (
        {"growth": ["interposition", "interposition → duplicate"]},
        lambda row, e: 0.5 + e * ("→" in row["growth"]),
        {},
    ),
}


def measured(name: str, cells: pd.DataFrame) -> Finding | None:
    return next(claim for claim in CLAIMS if claim.id == name).measure(cells)


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize(
    ("effect", "verdict"),
    [(0.04, Verdict.AGREES), (-0.04, Verdict.DISAGREES), (0.0, Verdict.NO_DIFFERENCE)],
)
def test_a_planted_effect_gets_its_verdict(name, effect, verdict):
    axes, accuracy, fixed = PLANTED[name]
    finding = measured(name, table(axes, lambda row: accuracy(row, effect), **fixed))
    assert len(finding.per_trunk) == 8
    assert finding.effect == pytest.approx(effect, abs=0.003)
    assert finding.interval[0] - 0.001 < effect < finding.interval[1] + 0.001
    assert judged(finding, 0.01, 8)[0] is verdict


@pytest.mark.parametrize("name", PLANTED)
def test_a_study_that_does_not_touch_a_claim_has_no_finding(name):
    alone = table({"sunk_f_c": [2.0]}, lambda row: 0.5, method="random", width_method="drop_upcycle")
    finding = measured(name, alone)
    assert finding is None or not finding.covered


@pytest.mark.parametrize(("gap", "verdict"), [
    (0.0, Verdict.AGREES), (0.04, Verdict.DISAGREES), (-0.04, Verdict.DISAGREES), (0.0095, Verdict.UNDECIDED),
])  # fmt: skip
def test_that_orders_end_alike_is_a_claim_of_no_difference(gap, verdict):
    orders = {"growth": ["interposition → duplicate", "duplicate → interposition"]}
    seeds = range(3) if verdict is Verdict.UNDECIDED else range(8)
    cells = table(orders, lambda row: 0.5 + gap * row["growth"].startswith("inter"), seeds=seeds)
    assert judged(measured("C8", cells), 0.01, 8)[0] is verdict


@pytest.mark.parametrize(("rise", "cliff", "verdict"), [
    (0.1, -0.09, Verdict.AGREES), (-0.05, -0.09, Verdict.DISAGREES), (0.1, 0.001, Verdict.NO_DIFFERENCE),
])  # fmt: skip
def test_norms_must_rise_and_stack_must_step(rise, cliff, verdict):
    cells = table({"method": ["stack", "interposition"]}, lambda row: 0.5, trunk_layers=12.0)
    cells["growth_step"] = 7500.0
    cells["norm_rise"] = rise + 0.001 * cells["seed"]
    cells["seam_step"] = np.where(cells["method"] == "stack", cliff, 0.0)
    assert judged(measured("C5", cells), 0.01, 8)[0] is verdict
    assert not measured("C5", cells.assign(trunk_layers=4.0)).covered


def test_stability_is_judged_by_the_less_stable_placement_of_norms():
    cells = with_continued(table({"norm_placement": ["pre", "post"]}, lambda row: 0.5, trunk_layers=24.0))
    assert judged(measured("C11", cells), 0.01, 8)[0] is Verdict.AGREES
    post = (cells["norm_placement"] == "post") & (cells["kind"] == "branch")
    cells.loc[post, ["status", "final_loss"]] = ["diverged", np.nan]
    finding = measured("C11", cells)
    assert finding.effect == -1.0
    assert judged(finding, 0.01, 8)[0] is Verdict.DISAGREES


@pytest.mark.parametrize("continued_loss", [5.3, np.nan])
def test_growing_is_not_blamed_for_a_rate_at_which_continuing_is_not_stable(continued_loss):
    axes = {"norm_placement": ["pre", "post"], "growth_lr": [0.002, 0.008]}
    cells = with_continued(table(axes, lambda row: 0.5, trunk_layers=24.0))
    high = (cells["norm_placement"] == "post") & (cells["growth_lr"] == 0.008)
    cells.loc[high, "final_loss"] = 5.3
    cells.loc[high & (cells["kind"] == "continued"), "final_loss"] = continued_loss
    assert judged(measured("C11", cells), 0.01, 8)[0] is Verdict.AGREES
    cells.loc[high & (cells["kind"] == "continued"), "final_loss"] = 1.9
    assert measured("C11", cells).effect == -0.5


def with_continued(grown: pd.DataFrame) -> pd.DataFrame:
    """The same with a control for each cell, which ends at a loss of 1.9."""
    controls = grown.assign(kind="continued", cell_id="k" + grown["cell_id"], final_loss=1.9)
    return pd.concat([grown.assign(continued_id=controls["cell_id"]), controls], ignore_index=True)


def test_settings_that_a_store_does_not_have_part_no_pair():
    axes, accuracy, _ = PLANTED["C3"]
    cells = table(axes, lambda row: accuracy(row, 0.04)).assign(growth_lr=np.nan, norm_placement="")
    assert len(measured("C3", cells).per_trunk) == 8


def test_few_trunks_or_another_regime_give_no_verdict():
    axes, accuracy, _ = PLANTED["C1"]
    five = measured("C1", table(axes, lambda row: accuracy(row, 0.04), seeds=range(5)))
    assert judged(five, 0.01, 5)[0] is Verdict.UNDECIDED
    early = measured("C1", table({"sunk_f_c": [0.1, 0.5]}, lambda row: 0.5))
    verdict, why = judged(early, 0.01, 8)
    assert verdict is Verdict.NOT_COVERED
    assert "The claim is about 2 F_c" in why


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ([-0.004, 0.006], Verdict.AGREES),
        ([0.02, 0.03], Verdict.DISAGREES),
        ([-0.02, 0.02], Verdict.UNDECIDED),
    ],
)
def test_a_claim_of_no_difference_is_judged_by_delta(interval, verdict):
    assert verdict_of(interval, 0.01, none_claimed=True) is verdict


@pytest.mark.parametrize(
    ("on_text", "verdicts"),
    [
        (0.04, ("agrees", "agrees")),
        (-0.04, ("mixed", "mixed")),
        (0.0, ("mixed", "mixed")),
        (None, ("agrees",)),
    ],
)
def test_a_claim_that_text_decides_otherwise_is_mixed(on_text, verdicts):
    axes, accuracy, _ = PLANTED["C6"]
    fixed = {"method": "none", "width_method": "duplicate"}
    studies = {"noise": table(axes, lambda row: accuracy(row, 0.04), **fixed)}
    studies["noise_text"] = table(axes, lambda row: accuracy(row, on_text or 0.0), **fixed)
    if on_text is None:
        studies["noise_text"] = studies["noise_text"].query("noise_scale == 0.5")
    rows = {row["data"]: row for row in judge_together(studies, 0.01) if row["id"] == "C6"}
    assert rows["synthetic"]["verdict"] == verdicts[0]
    if on_text is None:
        assert "text" not in rows
    else:
        assert rows["text"]["verdict"] == verdicts[1]
        assert rows["text"]["study"] == "noise_text"
