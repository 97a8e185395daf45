"""Two arms or studies side by side: planted gaps come back, with their pairs, by trunk and by item."""

import json

import numpy as np
import pytest
from planted import Effect, plant

from analysis.comparison import compare, text, write_comparison
from analysis.table import cells_table
from sweeps.store import Store

SEEDS = tuple(range(6))


def answer(store, rate):
    """Plants answers of 40 items to each family in every evaluation; a share of `rate(arm)` is right."""
    cells = cells_table(store, "first")
    arm_of = dict(zip(cells["trajectory_id"], cells["arm"], strict=True))
    for path in sorted(store.root.glob("trajectories/*/evals.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["averaged"] = list(line["families"])
            for place, family in enumerate(line["families"].values()):
                luck = np.random.default_rng([place, line["step"]]).random(40)  # the same items are hard
                family["n"], right = 40, luck < rate(arm_of.get(path.parent.name[-12:], ""))
                family["right"] = np.packbits(right).tobytes().hex()
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("two") / "store"
    plant(root, Effect(name="first", seeds=SEEDS, method_gain=0.04, seed_spread=0.02))
    return Store(root)


def arms(store):
    cells = cells_table(store, "first")
    return sorted(set(cells.loc[cells["kind"] == "branch", "arm"]))


def test_a_planted_gap_between_two_arms_comes_back_paired_by_trunk(store):
    interposition, stack = (next(a for a in arms(store) if name in a) for name in ("interposition", "stack"))
    found = compare(store, f"first:{interposition}", f"first:{stack}", delta=0.01)
    low, high = found["by_trunk"]["interval"]
    assert found["by_trunk"]["n_trunks"] == len(SEEDS)
    assert found["by_trunk"]["n_pairs"] == len(SEEDS) * 4
    assert low < 0.04 < high or low < -0.04 < high
    assert high - low < 0.02  # trunks differ by .02, pairs do not
    assert not found["equivalence"]["equivalent"]


def test_an_arm_is_equal_to_itself_and_that_is_shown(store, tmp_path):
    arm = arms(store)[0]
    answer(store, lambda arm: 0.5)
    words = write_comparison(store, f"first:{arm}", f"first:{arm}", tmp_path, delta=0.01)
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["by_trunk"]["mean"] == 0
    assert found["by_item"]["difference"] == 0
    assert found["by_item"]["n_items"] == 40 * 4 * len(SEEDS) * 5
    assert "0.0 points" in words


def test_answers_to_the_same_items_are_paired(store):
    interposition, stack = (next(a for a in arms(store) if name in a) for name in ("interposition", "stack"))
    answer(store, lambda arm: 0.7 if "interposition" in arm else 0.6)
    item = compare(store, f"first:{interposition}", f"first:{stack}", delta=0.01)["by_item"]
    assert item["only_second"] == 0  # what is easy for one is easy for the other
    assert item["difference"] == pytest.approx(0.1, abs=0.03)
    assert item["se"] < item["unpaired_se"]


@pytest.mark.parametrize(("first", "second", "words"), [
    ("nope", "first", "study=nope is not in"),
    ("first:nope", "first", "arm nope is not in study first; it has: "),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(store, tmp_path, first, second, words):
    with pytest.raises(ValueError, match=words):
        write_comparison(store, first, second, tmp_path / "out", delta=0.01)
    assert not (tmp_path / "out").exists()


def test_the_words_name_both_sides(store):
    arm = arms(store)[0]
    said = text(compare(store, f"first:{arm}", f"first:{arm}", delta=0.01))
    assert said.startswith(f"first:{arm} minus first:{arm}: ")
