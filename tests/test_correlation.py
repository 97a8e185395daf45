import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import F_C, Effect, plant
from scipy import stats

from analysis.correlation import associate, correlate, monotone_null, pearson, t_interval
from analysis.table import cells_table
from sweeps.store import Store

PAPER = Path(__file__).parents[1] / "analysis" / "paper"


def test_a_random_rising_series_of_twelve_points_correlates_as_science_states():
    null = monotone_null(12)
    assert null["median"] == pytest.approx(0.98, abs=0.005)
    assert null["low"] == pytest.approx(0.92, abs=0.01)
    assert null["high"] == pytest.approx(0.99, abs=0.006)


def test_the_papers_rows_give_one_trunk_and_the_known_correlations():
    rows = pd.read_csv(PAPER / "sunk_fixed_extra.csv").assign(replicate="the 3B trunk")
    report = associate(rows, "end_acc")
    assert report["n_trunks"] == 1
    assert report["n_cells"] == 13
    assert report["interval"] is None
    assert report["pearson"] == pytest.approx(stats.pearsonr(rows.sunk_flops, rows.end_acc).statistic)
    grown = rows[rows.growth_step > 0]
    assert pearson(grown.sunk_flops, grown.end_acc - grown.start_acc) == pytest.approx(-0.91, abs=0.005)


def test_a_planted_slope_is_inside_the_interval_of_five_trunks(tmp_path):
    slope = 0.004  # accuracy per F_c
    effect = Effect(seeds=(0, 1, 2, 3, 4), slope=slope, net=0.02, tokens_per_step=65536)
    report = correlate(cells_table(Store(plant(tmp_path, effect)), "planted"))
    pooled = report["series"]["pooled"]
    assert report["n_trunks"] == 5
    low, high = pooled["without_scratch"]["interval"]["theil_sen_slope"]
    assert low < slope / F_C * 1e12 < high
    assert low > 0
    low, high = pooled["net"]["interval"]["mean"]
    assert low < 0.02 < high


def test_one_trunk_gives_no_interval_and_says_why(tmp_path):
    report = correlate(cells_table(Store(plant(tmp_path, Effect(slope=0.1))), "planted"))
    for series in report["series"].values():
        for part in series.values():
            assert part["interval"] is None
            assert "one trunk" in part["no_interval_because"]


def test_two_trunks_give_no_interval_either():
    assert t_interval([0.1, 0.2]) is None
    low, high = t_interval([0.1, 0.2, 0.3])
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, 0.2, 0.1 / np.sqrt(3)))


@pytest.mark.parametrize(
    ("sunk", "final", "word"),
    [
        ([1, 2], [0.1, 0.2], "at least 3"),
        ([5, 5, 5], [0.1, 0.2, 0.3], "same sunk"),
        ([1, 2, 3], [0.2] * 3, "same value"),
    ],
)
def test_too_few_or_constant_cells_are_refused_with_a_sentence(sunk, final, word):
    cells = pd.DataFrame({"sunk_flops": sunk, "final_acc": final, "replicate": "a"})
    report = associate(cells, "final_acc")
    assert word in report["refused"]
    assert report["pearson"] is None
    assert report["theil_sen"] is None


def test_scratch_joins_at_sunk_zero_and_has_no_logarithm(tmp_path):
    report = correlate(cells_table(Store(plant(tmp_path, Effect())), "planted"))
    series = report["series"]["stack"]
    assert series["without_scratch"]["n_cells"] == 4
    assert series["with_scratch"]["n_cells"] == 5
    assert series["with_scratch"]["pearson_log_sunk"] is None
    assert series["without_scratch"]["pearson_log_sunk"] is not None


def test_a_requested_scratch_cell_serves_as_scratch_too(tmp_path):
    effect = Effect(scratch_requested=True)
    report = correlate(cells_table(Store(plant(tmp_path, effect)), "planted"))
    assert report["series"]["stack"]["with_scratch"]["n_cells"] == 5


def test_coefficients_agree_with_scipy_and_the_report_is_plain_json():
    random = np.random.default_rng(3)
    x, y = random.exponential(size=20), random.normal(size=20)
    cells = pd.DataFrame({"sunk_flops": x, "final_acc": y, "replicate": "a"})
    report = associate(cells, "final_acc")
    assert report["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert report["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
    assert report["pearson_log_sunk"] == pytest.approx(stats.pearsonr(np.log(x), y).statistic)
    json.dumps(report, allow_nan=False)


def test_alternating_residuals_show_in_durbin_watson():
    cells = pd.DataFrame({"sunk_flops": np.arange(1, 11), "replicate": "a"})
    cells["final_acc"] = 0.01 * cells["sunk_flops"] + 0.1 * (-1.0) ** cells["sunk_flops"]
    report = associate(cells, "final_acc")
    assert report["durbin_watson"] > 3
    assert report["lag1"] < -0.7


def test_the_minimum_detectable_effect_shrinks_with_the_evaluation_error():
    cells = pd.DataFrame({"sunk_flops": [1.0, 2, 3], "final_acc": [0.1, 0.3, 0.2], "replicate": "a"})
    small = associate(cells.assign(se=0.01), "final_acc", "se")["minimum_detectable"]
    large = associate(cells.assign(se=0.02), "final_acc", "se")["minimum_detectable"]
    assert small["between_two_cells"] == pytest.approx(2.8016 * np.sqrt(2) * 0.01, rel=1e-4)
    assert large["over_the_range"] == pytest.approx(2 * small["over_the_range"])


def test_cells_of_differing_budgets_are_not_correlated_with_sunk(tmp_path):
    cells = cells_table(Store(plant(tmp_path, Effect(methods=("stack",)))), "planted")
    cells["extra_flops"] *= np.linspace(1, 3, len(cells))
    report = correlate(cells)
    assert report["budget_rule"] == "mixed"
    assert "differ in budget" in report["series"]["stack"]["without_scratch"]["refused"]


def test_gains_over_both_scratch_controls_stand_side_by_side(tmp_path):
    effect = Effect(seeds=(0, 1, 2), controls=("continued", "scratch_extra", "scratch_total"), slope=0.01)
    cells = cells_table(Store(plant(tmp_path, effect)), "planted")
    pooled = correlate(cells)["series"]["pooled"]
    grown = cells[cells["kind"] == "branch"]
    for gain in ("gain_over_scratch_extra", "gain_over_scratch_total"):
        assert pooled[gain]["mean"] == pytest.approx(grown[gain].mean())
        assert pooled[gain]["n_trunks"] == 3


def test_starts_from_an_annealed_trunk_are_correlated_apart(tmp_path):
    cells = cells_table(Store(plant(tmp_path, Effect(methods=("stack",)))), "planted")
    assert set(cells.loc[cells["kind"] == "branch", "start_phase"]) == {"stable"}
    assert "start_stable" not in correlate(cells)["series"]["stack"]
    late = cells["growth_step"] == cells["growth_step"].max()
    cells.loc[late, "start_phase"] = "annealed"
    series = correlate(cells)["series"]["stack"]
    assert series["start_stable"]["n_cells"] == series["without_scratch"]["n_cells"] - 1
    assert "at least 3" in series["start_annealed"]["refused"]


def test_cells_of_two_suites_are_not_correlated(tmp_path):
    cells = cells_table(Store(plant(tmp_path, Effect(methods=("stack",)))), "planted")
    cells.loc[cells["growth_step"] == cells["growth_step"].min(), "eval_id"] = "other0000000"
    pooled = correlate(cells)["series"]["pooled"]["without_scratch"]
    assert "different suites" in pooled["refused"]
    assert pooled["mixed_model"] is None


def test_the_base_is_accounted_for_only_with_enough_trunks(tmp_path):
    found = correlate(cells_table(Store(plant(tmp_path, Effect())), "planted"))["given_the_base"]
    assert found["n_trunks"] == 1
    assert "one trunk" in found["refused"]
