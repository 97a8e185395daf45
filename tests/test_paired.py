import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.paired import binomial_se, difference_se, paired_by_item, paired_by_trunk


def cells(gaps: dict[str, list[float]]) -> pd.DataFrame:
    """Per trunk, interposition above stack by each gap, on levels that differ widely between trunks."""
    rows = []
    for level, (trunk, values) in enumerate(gaps.items()):
        for step, gap in enumerate(values):
            here = {"replicate": trunk, "growth_step": step, "se": 0.01}
            rows.append(here | {"arm": "stack", "acc": 0.1 * level})
            rows.append(here | {"arm": "interposition", "acc": 0.1 * level + gap})
    return pd.DataFrame(rows)


def test_arms_are_compared_within_a_trunk_and_trunks_are_the_sample():
    gaps = {"a": [0.01, 0.03], "b": [0.03], "c": [0.01, 0.0, 0.02]}
    found = paired_by_trunk(cells(gaps), ("interposition", "stack"), "acc", se="se")
    per_trunk = [0.02, 0.03, 0.01]
    assert list(found["per_trunk"].values()) == pytest.approx(per_trunk)
    expected = stats.ttest_1samp(per_trunk, 0)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found["evaluation_se"] == pytest.approx(np.sqrt(2e-4 * (1 / 2 + 1 + 1 / 3)) / 3)


def test_cells_without_a_partner_are_left_out_and_counted():
    table = cells({"a": [0.01, 0.03], "b": [0.02]}).drop(index=[0])
    found = paired_by_trunk(table, ("interposition", "stack"), "acc")
    assert (found["n_pairs"], found["unpaired"], found["n_trunks"]) == (2, 1, 2)
    assert found["interval"] is None
    assert "2 trunks have both arms" in found["no_interval_because"]


def test_arms_that_are_not_there_give_no_pairs_and_no_numbers():
    found = paired_by_trunk(cells({"a": [0.01]}), ("interposition", "split"), "acc", se="se")
    assert (found["n_pairs"], found["mean"], found["evaluation_se"]) == (0, None, None)


def test_a_missing_error_of_one_cell_leaves_the_evaluation_error_unknown():
    table = cells({"a": [0.01], "b": [0.02], "c": [0.02]})
    table.loc[0, "se"] = np.nan
    assert paired_by_trunk(table, ("interposition", "stack"), "acc", se="se")["evaluation_se"] is None


def test_the_paired_error_is_that_of_the_differences_of_items():
    random = np.random.default_rng(0)
    hard = random.random(2000)
    a, b = hard + 0.1 * random.random(2000) < 0.6, hard + 0.1 * random.random(2000) < 0.58
    found = paired_by_item(a, b)
    gaps = a.astype(float) - b.astype(float)
    assert found["difference"] == pytest.approx(gaps.mean())
    assert found["se"] == pytest.approx(gaps.std() / np.sqrt(2000))
    assert found["se"] < 0.5 * found["unpaired_se"]
    assert found["p"] == pytest.approx(stats.binomtest(int((a & ~b).sum()), int((a != b).sum())).pvalue)


def test_equal_answers_give_no_difference_and_no_evidence():
    found = paired_by_item([1, 0, 1], [1, 0, 1])
    assert (found["difference"], found["se"], found["p"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("a", "b", "rule"),
    [
        ([1, 0], [1], "one answer per item"),
        ([], [], "one answer per item"),
        ([1, 2], [0, 1], "first must hold"),
    ],
)
def test_answers_that_do_not_pair_are_refused(a, b, rule):
    with pytest.raises(ValueError, match=rule):
        paired_by_item(a, b)


def test_without_items_the_errors_are_binomial_and_independent():
    assert binomial_se(0.5, 100) == pytest.approx(0.05)
    assert difference_se(0.03, 0.04) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="acc=50"):
        binomial_se(50, 100)
