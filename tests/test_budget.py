from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import Effect, plant
from scipy import optimize

from analysis.arm_laws import CONTINUED, arm_points, fit_arms
from analysis.budget import (
    AGAINST,
    best_growth_step,
    break_even,
    decision_map,
    gain,
    recycling_efficiency,
    zero_contour,
)
from analysis.held_out import largest_held_out
from analysis.laws import INTERACTION
from analysis.table import cells_table
from sweeps.store import Store

RHO = {"stack": 0.5, "interposition": 0.7, "scratch": 0.0}
FLOOR, GROWN_FLOOR = 1.6, 1.45
STUDY = Effect(
    seeds=(0, 1, 2),
    growth_steps=(15, 30, 60, 120, 240),
    tokens_per_step=81920,
    items=2_000_000,
    seed_spread=0.002,
)


def continued_loss(total):
    return FLOOR + 0.5 * total**-0.35


def grown_loss(rho, sunk, extra):
    return GROWN_FLOOR + 0.6 * (rho * sunk + extra) ** -0.35


def loss(arm, sunk, extra):
    return continued_loss(extra) if arm == "continued" else grown_loss(RHO[arm], sunk, extra)


def study(folder, *effects):
    """The cells of several effects as one study."""
    tables = [
        cells_table(Store(plant(folder / str(i), effect)), effect.name) for i, effect in enumerate(effects)
    ]
    return pd.concat(tables).drop_duplicates("cell_id", ignore_index=True)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    effect = replace(STUDY, loss=loss)
    return study(
        tmp_path_factory.mktemp("laws"), replace(effect, extra_steps=20), replace(effect, extra_steps=60)
    )


@pytest.fixture(scope="module")
def laws(cells):
    return fit_arms(cells, resamples=60)


def test_an_arm_has_its_branches_of_every_budget_and_scratch_as_no_sunk_flops(cells):
    points = arm_points(cells)
    assert set(points) == {"stack", "interposition", CONTINUED}
    own = points["stack"]
    branches = cells[(cells["kind"] == "branch") & (cells["method"] == "stack")]
    scratch = cells[cells["kind"].isin(["scratch_extra", "scratch_total"])]
    assert len(own) == len(branches) + len(scratch)
    assert sorted(own.sunk[own.sunk > 0]) == pytest.approx(sorted(branches["sunk_f_c"]))
    assert sorted(own.extra[own.sunk == 0]) == pytest.approx(sorted(scratch["total_flops"] / scratch["f_c"]))
    assert (points[CONTINUED].sunk == 0).all()


def test_the_planted_recycling_efficiency_is_found_for_each_arm(laws):
    for arm in ("stack", "interposition"):
        found = recycling_efficiency(laws, arm)
        assert found.value == pytest.approx(RHO[arm], abs=0.02)
        assert found.low < found.value < found.high < found.value + 0.1
        assert "over 3 trunks" in found.note


def test_the_break_even_with_continuing_is_where_the_planted_losses_cross(laws):
    sunk = 2.0
    truth = optimize.brentq(
        lambda x: continued_loss(sunk + x) - grown_loss(RHO["stack"], sunk, x), 0.02 * sunk, 50 * sunk
    )
    found = break_even(laws, "stack", CONTINUED, sunk)
    assert found.value == pytest.approx(truth / sunk, rel=0.1)
    assert found.low < found.value < found.high
    assert found.note == "growing leads above"


def test_growing_leads_over_starting_over_with_the_same_extra_and_not_with_the_same_total(laws):
    extra, total = (break_even(laws, "stack", f"scratch_{budget}", 2.0) for budget in ("extra", "total"))
    assert (extra.value, total.value) == (None, None)
    assert extra.note.startswith("growing leads everywhere")
    assert total.note.startswith("growing leads nowhere")


def test_gains_are_differences_of_the_planted_losses(laws):
    sunk, extra = np.array([1.0, 4.0]), np.array([1.0, 2.0])
    theirs = {
        CONTINUED: continued_loss(sunk + extra),
        "scratch_extra": grown_loss(0.0, 0.0, extra),
        "scratch_total": grown_loss(0.0, 0.0, sunk + extra),
    }
    assert set(theirs) == set(AGAINST)
    for against, loss_of_it in theirs.items():
        value, samples = gain(laws, "interposition", against, sunk, extra)
        assert value == pytest.approx(loss_of_it - grown_loss(0.7, sunk, extra), abs=0.004)
        assert samples.shape == (60, 2)


def test_where_a_sunk_flop_is_worth_less_than_one_the_best_growth_step_is_the_start(laws):
    found = best_growth_step(laws, "stack", 4.0)
    assert (found.value, found.low) == (0.0, 0.0)
    assert "gains nothing" in found.note


def test_the_best_growth_step_inside_is_that_of_the_planted_interaction(cells):
    params = np.array([[0.5, 0.3, 0.35, 0.0, 1.4, 0.9]])  # (S + .5)^−.3 · X^−.35
    grown = (cells["kind"] == "branch") | cells["kind"].str.startswith("scratch")
    places = arm_points(cells)["stack"]
    own = cells[grown & (cells["method"] != "interposition")].copy()
    assert len(own) == len(places)
    at = replace(
        places,
        sunk=own["sunk_f_c"].fillna(0.0).to_numpy(),
        extra=(own["extra_flops"] / own["f_c"]).to_numpy(),
        trunk=own["replicate"].to_numpy(str),
    )
    noise = np.random.default_rng(0).normal(0, 0.0005, len(own))
    own["final_loss"] = INTERACTION.values(at, params)[0] * np.exp(noise)
    rest = cells[cells["kind"] == "continued"]
    laws = fit_arms(pd.concat([own, rest], ignore_index=True), resamples=40)
    assert laws.arm("stack").best.law.name == "interaction"
    found = best_growth_step(laws, "stack", 6.0)
    truth = (0.3 * 6.0 - 0.35 * 0.5) / 0.65  # where d/dS of the product is 0
    assert found.value == pytest.approx(truth, rel=0.05)
    assert found.low <= found.value <= found.high


def test_the_decision_map_holds_the_gain_of_each_point_and_where_it_was_studied(laws):
    table = decision_map(laws, "stack", np.array([0.2, 0.5, 0.8]), np.array([2.0, 4.0, 40.0]), CONTINUED)
    assert len(table) == 9
    sunk, extra = table["sunk_share"] * table["total_f_c"], (1 - table["sunk_share"]) * table["total_f_c"]
    assert table["gain"].to_numpy() == pytest.approx(gain(laws, "stack", CONTINUED, sunk, extra)[0])
    assert (table["gain_low"] <= table["gain"]).all()
    assert (table["gain"] <= table["gain_high"]).all()
    assert not table.loc[table["total_f_c"] == 40.0, "studied"].all()
    assert table.loc[(table["total_f_c"] == 4.0) & (table["sunk_share"] == 0.5), "studied"].all()


def test_against_scratch_the_map_knows_only_budgets_that_were_trained_from_scratch(laws):
    low, high = laws.studied["scratch / F_c"]
    totals = np.array([0.5 * low, low, high, 2 * high])
    table = decision_map(laws, "stack", np.array([0.5]), totals, "scratch_total").set_index("total_f_c")
    ungrown = decision_map(laws, "stack", np.array([0.5]), totals, CONTINUED).set_index("total_f_c")
    assert not table["studied"].to_numpy()[[0, 3]].any()
    assert (table["studied"] <= ungrown["studied"]).all()
    assert table["studied"].equals(
        ungrown["studied"] & (table.index >= low / 1.1) & (table.index <= high * 1.1)
    )


def test_the_zero_contour_runs_where_the_map_changes_sign(laws):
    contour = zero_contour(laws, "stack", np.array([1.0, 2.0, 300.0]), CONTINUED)
    for total, share in contour[["total_f_c", "sunk_share"]].dropna().to_numpy():
        value, _ = gain(laws, "stack", CONTINUED, share * total, (1 - share) * total)
        assert value == pytest.approx(0.0, abs=1e-3)
    assert (contour["low"].dropna() <= contour["sunk_share"].dropna()).all()
    assert contour["sunk_share"].notna().tolist() == [True, True, False]
    assert "everywhere" in contour["note"].iloc[-1]


def unscratched(c):
    return ~c["kind"].str.startswith("scratch")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda c: c["status"] == "todo", "no finished cell"),
        (lambda c: c["kind"] != "branch", "no finished grown cell"),
        (lambda c: c["kind"] != "continued", "no finished continued control"),
        (
            lambda c: unscratched(c) & (c["growth_step"].isna() | (c["growth_step"] == 30)),
            "sunk FLOPs are the same",
        ),
        (
            lambda c: (
                (c["seed"] == 0) & unscratched(c) & (c["growth_step"].isna() | (c["growth_step"] <= 30))
            ),
            "needs at least 6 points; these are 4",
        ),
    ],
)
def test_a_study_that_cannot_tell_is_refused_with_what_it_lacks(cells, keep, message):
    with pytest.raises(ValueError, match=message) as refused:
        fit_arms(cells[keep(cells)], resamples=0)
    assert "\n" not in str(refused.value)


def test_questions_that_make_no_sense_are_refused(laws):
    with pytest.raises(ValueError, match="arm=up is not in this study; it has interposition, stack"):
        recycling_efficiency(laws, "up")
    with pytest.raises(ValueError, match="against=base is not a choice"):
        gain(laws, "stack", "base", 1.0, 1.0)
    with pytest.raises(ValueError, match="sunk must be 0 or more and extra above 0"):
        gain(laws, "stack", CONTINUED, 1.0, 0.0)
    with pytest.raises(ValueError, match="total_f_c=-1"):
        best_growth_step(laws, "stack", -1.0)
    with pytest.raises(ValueError, match="sunk_shares must be above 0 and below 1"):
        decision_map(laws, "stack", np.array([1.0]), np.array([1.0]))


def ladder(folder, params):
    effects = []
    for size in params:
        factor = (size / 1e5) ** -0.2

        def sized_loss(arm, sunk, extra, factor=factor):
            floor = FLOOR if arm == "continued" else GROWN_FLOOR
            return floor + factor * (loss(arm, sunk, extra) - floor)

        tokens = round(81920 * size / STUDY.trunk_params)  # the same ratios at every size
        effects.append(
            replace(STUDY, name=f"n{size}", trunk_params=size, tokens_per_step=tokens, loss=sized_loss)
        )
    return study(folder, *(replace(effect, methods=("stack",), extra_steps=40) for effect in effects))


def test_the_largest_size_of_a_ladder_is_held_out_and_foretold(tmp_path):
    cells = ladder(tmp_path, (60_000, 120_000, 240_000))
    held = largest_held_out(cells)
    assert held.activated_params == 240_000
    assert held.n_branches == 15
    assert held.same_sign >= 14
    assert held.net_error < 0.006
    assert held.loss_error < 0.004
    wrong = cells.copy()
    largest = (wrong["trunk_activated_params"] == 240_000) & (wrong["kind"] == "branch")
    wrong.loc[largest, "final_loss"] += 0.2
    assert largest_held_out(wrong).net_error == pytest.approx(0.2, abs=0.01)
    assert largest_held_out(wrong).same_sign <= 5


def test_of_one_size_none_is_held_out(cells):
    held = largest_held_out(cells)
    assert held.net_error is None
    assert "one size" in held.because
