"""What the benchmarks say of a run is right, where it can be told without a clock."""

import sys

import pytest
import tiny

from moe import flops
from sweeps.study import run_study

sys.path.append(str(tiny.ROOT / "benchmarks"))  # last: a benchmark and a command share a name
import measurements
import ratios
import replay
import task_start
from section import Section

PAGE = "# Measurements\n\nDated.\n\n## 2026-01-01: something else\n\nText.\n"


def written(page, date="2026-02-02", machine="a Zen", **texts):
    sections = [Section(title, text) for title, text in texts.items()]
    return measurements.written(page, date, machine, f"{machine}, 2 cores", sections)


@pytest.mark.parametrize(
    "fields", [{}, {"num_shared_experts": 1}, {"num_dense_layers": 1, "dense_hidden_size": 24}]
)
def test_the_products_of_a_step_are_those_that_flops_count(fields):
    model, train = tiny.model(vocab_size=512, **fields), tiny.train()
    counted = flops.train_flops_per_token(model, train.seq_len) * train.tokens_per_step
    assert sum(product.flops for product in replay.step_products(model, train)) == counted


def test_a_replay_does_every_product():
    model, train = tiny.model(vocab_size=512), tiny.train()
    products = replay.step_products(model, train)
    recorder = replay.Recorder(model, train)
    recorder._of_attention = set()
    with recorder:
        replay.replay(products)()
    assert recorder.products == products


def test_a_machine_has_one_part_of_the_page_and_the_newest_is_first():
    page = written(written(PAGE, Speed="1", Sweeps="2"), machine="a Xeon", Speed="3")
    places = [page.index(text) for text in ("# Measurements", "on a Xeon", "on a Zen", "something else")]
    assert places == sorted(places)
    again = written(page, "2026-03-03", Speed="4")
    assert again.count("on a Zen") == page.count("on a Zen")
    assert "### Speed (2026-03-03)\n\n4\n\n### Sweeps (2026-02-02)\n\n2\n" in again
    assert again.endswith(PAGE.removeprefix("# Measurements\n\nDated.\n\n"))


def test_writing_the_same_twice_changes_nothing():
    page = written(PAGE, Speed="1", Sweeps="2")
    assert written(page, Speed="1", Sweeps="2") == page


@pytest.mark.parametrize(("today", "code"), [
    ({"a": 1.81, "sweep: 1 − overhead, mean": 0.95}, 0),
    ({"a": 1.79, "sweep: 1 − overhead, mean": 0.97}, 1),
    ({"a": 2.5, "sweep: 1 − overhead, mean": 0.93}, 1),
    ({"a": 2.0, "new": 0.1}, 0),
])  # fmt: skip
def test_a_ratio_may_fall_by_a_tenth(tmp_path, monkeypatch, capsys, today, code):
    monkeypatch.setattr(ratios, "PATH", tmp_path / "ratios.json")
    ratios.keep("a Zen", {"a": 2.0, "sweep: 1 − overhead, mean": 0.97})
    assert ratios.compare("a Zen", today) == code
    assert ("fell too far: " in capsys.readouterr().out) == (code == 1)


def test_ratios_of_another_machine_are_not_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ratios, "PATH", tmp_path / "ratios.json")
    ratios.keep("a Zen", {"a": 2.0})
    assert ratios.compare("a Xeon", {"a": 2.0}) == 2
    assert "no ratios are kept of a Xeon" in capsys.readouterr().out


def test_every_stage_of_a_task_is_timed(store_root):
    """Names of a release before are left out of the table, and nobody would miss them."""
    with task_start.watched() as clock:
        assert run_study([tiny.mapping(growth__step=2, launch__store=store_root)]).exit_code == 0
    assert task_start.STAGES.keys() <= {stage for spent in clock.tasks.values() for stage in spent}
    trained = [spent for spent in clock.tasks.values() if spent["train"]]
    assert trained
    assert all(0 < spent["start"] < spent["whole"] - spent["train"] for spent in trained)
