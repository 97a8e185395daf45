"""Intervals over trunks: closed forms, scipy, and coverage counted over seeded studies."""

import numpy as np
import pytest
from scipy import stats

from analysis.intervals import (
    cluster_bootstrap,
    equivalence,
    holm,
    minimum_detectable_over_trunks,
    t_interval,
    t_test,
)
from analysis.mixed import mixed_slope


@pytest.mark.parametrize("n_trunks", [3, 8])
def test_t_over_trunks_covers_as_it_says(n_trunks):
    studies = np.random.default_rng(n_trunks).normal(0.02, 0.01, (2000, n_trunks))
    intervals = np.array([t_interval(list(study)) for study in studies])
    covered = np.mean((intervals[:, 0] < 0.02) & (intervals[:, 1] > 0.02))
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("n_trunks", "states"), [(3, 0.74), (8, 0.89)])
def test_drawing_few_trunks_covers_less_than_it_says_which_is_why_it_is_refused(n_trunks, states):
    random = np.random.default_rng(1)
    studies = random.normal(size=(1500, n_trunks))
    draws = random.multinomial(n_trunks, np.full(n_trunks, 1 / n_trunks), size=1000) / n_trunks
    low, high = np.quantile(studies @ draws.T, [0.025, 0.975], axis=1)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(states, abs=0.025)


def test_a_bootstrap_of_fewer_than_eight_trunks_is_refused():
    x, trunk = np.tile(np.arange(3.0), 7), np.repeat(np.arange(7), 3)
    with pytest.raises(ValueError, match="takes 8; here are 7"):
        cluster_bootstrap(x, x, trunk)


def test_the_bootstrap_draws_whole_trunks():
    random = np.random.default_rng(5)
    trunk, x = np.repeat(np.arange(8), 6), np.tile(np.arange(6.0), 8)
    y = random.normal(size=8)[trunk] + x * (1 + 0.2 * random.normal(size=8))[trunk]
    found = cluster_bootstrap(1e18 * x, y, trunk)
    one_by_one = []
    for draw in random.integers(0, 8, (1500, 8)):
        rows = (6 * draw[:, None] + np.arange(6)).ravel()
        own = y[rows] - np.repeat(y.reshape(8, 6).mean(axis=1)[draw], 6)
        far = x[rows] - 2.5
        one_by_one.append(
            (np.corrcoef(x[rows], y[rows])[0, 1], far @ own / (far @ far) / 1e18, y[rows].mean())
        )
    for name, values in zip(("pearson", "slope_within", "mean"), zip(*one_by_one, strict=True), strict=True):
        expected = np.quantile(values, [0.025, 0.975])
        assert found[name] == pytest.approx(expected, abs=0.08 * np.ptp(expected))
    assert found == cluster_bootstrap(1e18 * x, y, trunk)


def test_a_statistic_without_a_value_is_null():
    trunk = np.repeat(np.arange(8), 2)
    found = cluster_bootstrap(np.ones(16), np.arange(16.0), trunk)
    assert found["pearson"] is None
    assert found["slope_within"] is None
    assert found["mean"][0] < 7.5 < found["mean"][1]


def test_with_equal_designs_the_mixed_model_is_t_over_one_slope_per_trunk():
    random = np.random.default_rng(2)
    x, trunk = np.tile(np.arange(5.0), 6), np.repeat(np.arange(6), 5)
    y = random.normal(size=6)[trunk] + x * (1 + random.normal(size=6))[trunk] + random.normal(size=30)
    slopes = [stats.linregress(x[trunk == t], y[trunk == t]).slope for t in range(6)]
    found = mixed_slope(3e20 * x, y, trunk)
    assert np.array(found["slope_interval"]) * 3e20 == pytest.approx(t_interval(slopes))
    assert found["p"] == pytest.approx(t_test(slopes))


def test_with_unequal_designs_the_mixed_model_covers_as_it_says():
    random, covered = np.random.default_rng(4), []
    sizes = (3, 4, 5, 6, 8, 12, 5, 4)
    trunk = np.repeat(np.arange(8), sizes)
    for _ in range(400):
        x = random.uniform(0, 1 + trunk % 3)
        y = random.normal(size=8)[trunk] + x * (1 + 0.5 * random.normal(size=8))[trunk]
        low, high = mixed_slope(x, y + 0.5 * random.normal(size=len(x)), trunk)["slope_interval"]
        covered.append(low < 1 < high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_the_mixed_model_recovers_how_much_slopes_differ_and_takes_six_trunks():
    random = np.random.default_rng(8)
    x, trunk = np.tile(np.arange(8.0), 300), np.repeat(np.arange(300), 8)
    y = x * (1 + 0.3 * random.normal(size=300))[trunk] + random.normal(size=2400)
    assert mixed_slope(x, y, trunk)["slope_sd"] == pytest.approx(0.3, abs=0.04)
    few = trunk < 5
    with pytest.raises(ValueError, match="takes 6 trunks with 3 cells and 2 values of x; here are 5"):
        mixed_slope(x[few], y[few], trunk[few])


def test_lines_without_residuals_give_their_common_slope():
    x, trunk = np.tile(np.arange(4.0), 6), np.repeat(np.arange(6), 4)
    found = mixed_slope(x, 2 * x + trunk, trunk)
    assert found["slope"] == pytest.approx(2)
    assert found["slope_interval"] == pytest.approx([2, 2])


def test_holm_steps_down_through_the_family():
    assert holm({"C1": 0.01, "C2": 0.04, "C3": 0.03, "C4": 0.2, "C5": 0.001}) == pytest.approx(
        {"C1": 0.04, "C2": 0.09, "C3": 0.09, "C4": 0.2, "C5": 0.005}
    )
    assert holm({"C1": 0.6, "C2": 0.7}) == {"C1": 1.0, "C2": 1.0}
    assert holm({}) == {}
    with pytest.raises(ValueError, match=r"C2.*must be a probability"):
        holm({"C1": 0.5, "C2": float("nan")})


@pytest.mark.parametrize("n_trunks", [3, 8])
def test_the_minimum_detectable_effect_is_found_four_times_in_five(n_trunks):
    random = np.random.default_rng(n_trunks)
    spread = 0.01
    pilot = stats.zscore(random.normal(size=12), ddof=1) * spread
    effect = minimum_detectable_over_trunks(list(pilot), n_trunks)
    studies = random.normal(effect, spread, (20_000, n_trunks))
    assert np.mean(stats.ttest_1samp(studies, 0, axis=1)[1] < 0.05) == pytest.approx(0.8, abs=0.01)
    assert minimum_detectable_over_trunks([0.1, 0.2]) is None


def test_equivalence_is_two_one_sided_tests():
    values = [0.001, -0.002, 0.003, 0.0, -0.001]
    found = equivalence(values, 0.005)
    above = stats.ttest_1samp(values, -0.005, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.005, alternative="less").pvalue
    assert found["p"] == pytest.approx(max(above, below))
    assert found["equivalent"] is True
    assert equivalence(values, 0.001)["equivalent"] is False
    assert equivalence(values[:2], 0.005)["equivalent"] is None
    with pytest.raises(ValueError, match="delta=0 must be above 0"):
        equivalence(values, 0)


def test_equal_values_have_no_known_spread_so_no_p():
    assert t_test([0.1, 0.1, 0.1]) is None
    assert equivalence([0.0, 0.0, 0.0], 0.01)["equivalent"] is None
