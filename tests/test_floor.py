"""E is the entropy of the data where that is known and fits, or what was given; and it is said which."""

import json
from dataclasses import replace

import pytest
from planted import F_C, TRUNK_PARAMS, plant
from test_budget import STUDY

from analysis.advice import advise
from analysis.advice_text import text
from analysis.arm_laws import CONTINUED, fit_arms
from analysis.floor import floor_asked
from analysis.laws.__main__ import main as print_laws
from analysis.table import cells_table
from sweeps.store import Store

E = 1.5
RHO = {"interposition": 0.7, "scratch": 0.0}


def planted(folder, above=0.0):
    """A study whose losses fall to E, or to `above` nats more, as where a model is too small."""

    def loss(arm, sunk, extra):
        if arm == "continued":
            return E + above + 0.5 * extra**-0.35
        return E + above + 0.6 * (RHO[arm] * sunk + extra) ** -0.35

    return plant(folder, replace(STUDY, loss=loss, methods=("interposition",), extra_steps=60))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("floor"))


@pytest.fixture(scope="module")
def cells(root):
    return cells_table(Store(root), "planted")


def fitted(cells, **options):
    return fit_arms(cells, resamples=0, **options)


def test_a_study_stored_before_its_entropy_was_known_leaves_e_free_and_says_nothing(cells):
    assert cells["entropy_floor"].isna().all()
    laws = fitted(cells)
    assert (laws.floor.held, laws.floor.why) == (None, "")
    assert laws.continued.fixed == ()


def test_the_entropy_of_the_data_is_held_in_all_laws(cells):
    laws = fitted(cells.assign(entropy_floor=E))
    assert laws.floor.held == E
    assert laws.floor.why == "E = 1.5 nats per token, the entropy of the data, is held."
    for fit in (laws.continued, laws.arm("interposition").effective):
        assert fit.named["E"] == E
        assert fit.named["a"] == pytest.approx(0.35, abs=0.02)


def test_where_size_stands_in_the_way_e_is_left_free(tmp_path):
    cells = cells_table(Store(planted(tmp_path, above=0.3)), "planted").assign(entropy_floor=E)
    laws = fitted(cells)
    assert laws.floor.held is None
    assert "the laws fit worse (AICc +" in laws.floor.why
    assert laws.continued.named["E"] == pytest.approx(E + 0.3, abs=0.05)
    assert fitted(cells, floor=E).continued.named["E"] == E  # who asks for it, gets it


def test_an_entropy_that_losses_are_not_above_is_not_held(cells):
    laws = fitted(cells.assign(entropy_floor=cells["final_loss"].min()))
    assert laws.floor.held is None
    assert "is not below the least loss" in laws.floor.why


def test_with_too_few_points_to_tell_the_entropy_is_held_and_called_untested(cells):
    few = (cells["replicate"] == cells["replicate"].iloc[0]) & (cells["kind"] != "scratch_total")
    one = cells[few].assign(entropy_floor=E)
    assert fitted(one).floor.why.endswith("is held, untested: the points are too few.")


def test_cells_of_several_entropies_leave_e_free(cells):
    mixed = cells.assign(entropy_floor=E)
    mixed.loc[mixed["kind"] == CONTINUED, "entropy_floor"] = 1.4
    assert "differ in their entropy" in fitted(mixed).floor.why


@pytest.mark.parametrize(
    ("asked", "held", "why"),
    [(1.4, 1.4, "E = 1.4 nats per token, as given."), ("free", None, "E is left free, as asked.")],
)
def test_what_is_given_goes_before_the_data(cells, asked, held, why):
    laws = fitted(cells.assign(entropy_floor=E), floor=asked)
    assert (laws.floor.held, laws.floor.why) == (held, why)
    assert laws.floor.asked == asked


@pytest.mark.parametrize("value", ["some", True, "nan", [1]])
def test_a_floor_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"floor=.* must be a number of nats per token, or free"):
        floor_asked(value)


def test_a_floor_is_a_number_free_or_what_the_data_says():
    assert [floor_asked(value) for value in (1, "1.5", "free", None)] == [1.0, 1.5, "free", None]


def test_advice_says_where_its_e_comes_from(cells):
    numbers = {"sunk_flops": 2 * F_C, "extra_flops": 1 * F_C, "activated_params": TRUNK_PARAMS}
    found = advise(cells.assign(entropy_floor=E), **numbers, floor=None)
    lines = text(found, "planted").splitlines()
    assert lines[lines.index(found.floor.why) - 1].startswith("From: study planted")
    assert found.plain()["floor"]["held"] == E


def test_the_laws_command_holds_the_entropy_that_rows_know(tmp_path, capsys):
    root, out = planted(tmp_path / "store"), tmp_path / "laws.json"
    study = Store(root).study("planted")["cells"]
    rows = [row | {"entropy_floor": E} for row in study["cells"]]
    Store(root).write_study("planted", cells=study | {"cells": rows})
    words = ["study=planted", f"launch.store={root}", "--resamples", "40", "--json", str(out)]
    assert print_laws(words) == 0
    found = json.loads(out.read_text())
    said = "E = 1.5 nats per token, the entropy of the data, is held."
    assert said in capsys.readouterr().out
    assert found["continued"]["floor"] == found["interposition"]["floor"] == said
    assert found["continued"]["laws"][0]["parameters"]["E"] == E
    assert found["accuracy"]["floor"] == ""
    assert print_laws([*words, "--floor", "some"]) == 2
    assert "floor=some must be a number" in capsys.readouterr().err
