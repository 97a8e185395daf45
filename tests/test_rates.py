"""Rates are chosen per arm on other trunks than those they are reported for."""

import itertools

import numpy as np
import pandas as pd
import pytest
from test_claims import PLAIN

from analysis.claims import CLAIMS, judge_together
from analysis.figures.catalogue import FIGURES, draw
from analysis.rates import at_tuned_rates, rate_table

RATES = [0.001, 0.002, 0.004, 0.008]


def study(best: dict[str, float], gain: dict[str, float], trunks: int = 4, noise=0.0) -> pd.DataFrame:
    """A grid of rates for stack and interposition, with sham: each arm's loss is a bowl in the log of its
    rate with its floor at `best`, its accuracy .5 + `gain` − loss."""
    rng, rows = np.random.default_rng(3), []
    for seed, method, rate in itertools.product(range(trunks), ("stack", "interposition"), RATES):
        row = {**PLAIN, "seed": float(seed), "replicate": f"seed {seed}", "growth": method, "method": method}
        row |= {"growth_lr": rate, "sunk_f_c": 2.0, "growth_step": 2000.0, "extra_flops": 5e11}
        row |= {"sunk_flops": 2e12, "total_flops": 2.5e12, "sham_id": f"sham {seed} {rate}"}
        row |= {"cell_id": f"{method} {seed} {rate}", "continued_id": f"continued {seed}"}
        rows.append(row | ended(best[method], gain[method], rate, rng, noise))
    for seed, rate in itertools.product(range(trunks), RATES):
        row = {"kind": "sham", "seed": seed, "cell_id": f"sham {seed} {rate}", "growth_lr": rate}
        rows.append(row | ended(best["continued"], gain["continued"], rate, rng, noise))
    for seed in range(trunks):
        row = {"kind": "continued", "seed": seed, "cell_id": f"continued {seed}", "train_lr": 0.004}
        rows.append(row | ended(best["continued"], gain["continued"], 0.004, rng, noise))
    table = pd.DataFrame(rows).assign(status="done", arm="", eval_id="e")
    own = table["continued_id"].map(table.set_index("cell_id")["final_acc"])
    return table.assign(continued_acc=own, net=table["final_acc"] - own)


def ended(best: float, gain: float, rate: float, rng: np.random.Generator, noise: float) -> dict[str, float]:
    loss = 2 + 0.05 * np.log2(rate / best) ** 2 + noise * rng.normal()
    return {"final_loss": loss, "final_acc": 2.5 + gain - loss}


BEST = {"stack": 0.008, "interposition": 0.002, "continued": 0.001}
GAIN = {"stack": 0.0, "interposition": 0.02, "continued": 0.05}


def test_each_arm_is_taken_at_its_own_best_rate_and_so_is_continuing():
    tuned = at_tuned_rates(study(BEST, GAIN))
    assert len(tuned) == 8  # two methods, four trunks
    assert set(tuned["final_loss"].round(9)) == {2.0}
    by_arm = tuned.groupby("method")[["net", "continued_acc"]].mean()
    assert by_arm["net"].to_dict() == pytest.approx({"interposition": -0.03, "stack": -0.05})
    assert by_arm["continued_acc"].to_numpy() == pytest.approx(0.55)


def test_a_trunk_has_no_say_in_its_own_rate():
    cells = study(BEST, GAIN)
    odd = (cells["cell_id"] == "stack 0 0.001") & (cells["kind"] == "branch")
    cells.loc[odd, ["final_loss", "final_acc"]] = [0.5, 9.0]  # as if lucky at a rate that suits no other
    tuned = at_tuned_rates(cells).set_index("cell_id")
    assert "stack 0 0.001" not in tuned.index
    assert "stack 0 0.008" in tuned.index


def test_chance_is_no_gain_where_rates_make_no_difference():
    """A choice with its own trunk in it takes the luckiest of four ends; one without is unbiased."""
    gains, lucky = [], []
    for trunks in (200, 201):
        cells = study(dict.fromkeys(BEST, 0.002), dict.fromkeys(GAIN, 0.0), trunks, noise=0.0)
        luck = np.random.default_rng(trunks).normal(scale=0.01, size=len(cells))
        cells = cells.assign(final_loss=2 + luck, final_acc=0.5 - luck)
        tuned = at_tuned_rates(cells)
        gains.append(tuned["final_acc"].mean() - 0.5)
        grown = cells[cells["kind"] == "branch"]
        lucky.append(grown.groupby(["replicate", "method"])["final_acc"].max().mean() - 0.5)
    assert np.abs(gains).max() < 0.002  # standard error .01 / √400
    assert min(lucky) > 0.008  # the mean largest of four: 1.03 σ


def test_a_rate_at_which_a_trunk_diverged_is_not_chosen():
    cells = study(BEST, GAIN)
    gone = cells["cell_id"] == "stack 3 0.008"
    cells.loc[gone, "status"] = "diverged"
    cells.loc[gone, ["final_loss", "final_acc"]] = np.nan
    chosen = at_tuned_rates(cells).query("method == 'stack'").set_index("replicate")
    assert chosen.loc["seed 0", "cell_id"] == "stack 0 0.004"
    assert np.isnan(chosen.loc["seed 3", "final_acc"])  # the others' best is where it diverged
    table = rate_table(cells).query("arm == 'stack'").set_index("rate")
    assert table.loc[0.008, "diverged"] == 1
    assert not table.loc[0.008, "best"]


def test_one_trunk_or_one_rate_has_nothing_to_choose_from():
    assert at_tuned_rates(study(BEST, GAIN, trunks=1)).empty
    one = study(BEST, GAIN)
    assert at_tuned_rates(one[one["growth_lr"].isin([0.004, np.nan])]).empty
    assert at_tuned_rates(one[one["kind"] == "nothing"]).empty


def test_the_table_of_rates_says_where_the_optimum_is_and_what_the_grid_cost():
    table = rate_table(study(BEST, GAIN)).set_index(["arm", "rate"])
    best = table[table["best"]].reset_index().set_index("arm")
    assert best["rate"].to_dict() == {"continued": 0.001, "interposition": 0.002, "stack": 0.008}
    assert best["at_edge"].to_dict() == {"continued": True, "interposition": False, "stack": True}
    assert table.loc[("stack", 0.004), "flops"] == 4 * 5e11
    assert set(table["n_trunks"]) == {4}


def test_the_rate_of_starting_over_has_a_table_too():
    rows = [
        {
            "kind": "scratch",
            "cell_id": f"s{seed}{rate}",
            "replicate": seed,
            "train_lr": rate,
            "growth_step": 0.0,
        }
        | {"extra_flops": 5e11, "total_flops": 5e11, "status": "done"}
        | {"final_loss": 2 + abs(rate - 0.004), "final_acc": 0.5}
        for seed in range(3)
        for rate in RATES
    ]
    columns = study(BEST, GAIN).columns
    table = rate_table(pd.DataFrame(rows).reindex(columns=columns))
    assert table.loc[table["best"], "rate"].tolist() == [0.004]
    assert set(table["arm"]) == {"scratch"}


def test_claims_about_rates_are_judged_a_second_time_at_tuned_ones():
    """Interposition leads at its own rate; at the one rate of the paper stack does."""
    cells = study({"stack": 0.004, "interposition": 0.001, "continued": 0.001}, GAIN, trunks=8, noise=0.001)
    rows = judge_together({"timing": cells[cells["growth_lr"] != 0.001], "growth_lr": cells}, 0.01)
    c3 = {row["rates"]: row for row in rows if row["id"] == "C3"}
    assert c3["tuned"]["effect"] == pytest.approx(0.02, abs=0.003)
    assert c3["fixed"]["effect"] < -0.01
    assert c3["tuned"]["study"] == "growth_lr"
    assert {row["id"] for row in rows if row["rates"] == "tuned"} == {c.id for c in CLAIMS if c.tuned}


def test_the_figure_rings_the_best_rate_of_each_arm_and_says_which_lie_at_an_edge():
    table, figure = draw(FIGURES["N8"], {"rates": rate_table(study(BEST, GAIN))})
    rings = [line for line in figure.axes[0].lines if line.get_markersize() == 11]
    assert sorted(float(line.get_xdata()[0]) for line in rings) == sorted(BEST.values())
    assert "perhaps beyond it: continued; stack." in table.attrs["caption"]
    assert f"{3 * 3 * 4 * 5e11:.2g} FLOPs went into" in table.attrs["caption"]


def test_rates_that_were_not_varied_have_no_figure():
    one = study(BEST, GAIN)
    with pytest.raises(ValueError, match="none to choose"):
        draw(FIGURES["N8"], {"rates": rate_table(one[one["growth_lr"].isin([0.004, np.nan])])})
