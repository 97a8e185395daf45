"""Studies that lack something: their page is made, says what is missing, and draws nothing false."""

import json
import re

import pandas as pd
import pytest
from planted import Effect, edit_cells, edit_evals, plant

from analysis.completeness import incomplete
from analysis.correlation import correlate
from analysis.curves import curves, family_curves, trunk_curves
from analysis.evaluations import comparable, main_evaluation
from analysis.figures import accuracy_against_sunk_flops, learning_curves_by_family, themed
from analysis.figures.catalogue import FIGURES
from analysis.figures.style import empty
from analysis.laws_section import laws_section
from analysis.paper_report import write_paper
from analysis.report import write_report
from analysis.statistics_section import statistics_rows
from analysis.table import cells_table
from sweeps.store import Store

NOT_DRAWN = (
    *("loss_and_accuracy_by_sunk_flops", "trunk_with_growth_points", "learning_curves_by_family"),
    *("accuracy_by_family", "function_preservation_waterfall", "clone_divergence"),
)
NAME, OTHER = "fixed_extra", "other0000000"
GROWN = [(step, method) for step in (40, 100) for method in ("stack", "interposition")]


def effect(**changes):
    small = {"name": NAME, "growth_steps": (40, 100), "extra_steps": 20, "tokens_per_step": 65536}
    return Effect(**(small | changes))


def not_a_number(line):
    if line["suite"] == "full":
        line["acc"] = line["acc_se"] = line["loss"] = float("nan")


def infinite_loss(line):
    line["loss"] = float("inf")


def ask_others(root):
    """Another evaluation of all interposition cells, and of the scratch that they share with stack."""
    states = []

    def change(row):
        if row["method"] == "interposition" or row["kind"] == "scratch_extra":
            row["eval_id"] = OTHER
            states.append(row["states"]["final"])

    edit_cells(root, change, NAME)
    for trajectory, step in states:
        path = next((root / "trajectories").glob(f"*-{trajectory}")) / "evals.jsonl"
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        renamed = [line | ({"eval_id": OTHER, "acc": 0.9} if line["step"] == step else {}) for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in renamed))


CASES = {
    "no finished cell": (
        effect(status=dict.fromkeys(GROWN, "todo")),
        None,
        ["No grown cell of this study has finished", "4 cells not trained yet", "nothing to choose between"],
    ),
    "one cell": (
        effect(growth_steps=(40,), methods=("stack",)),
        None,
        ["one cell from one trunk, no interval", "Too few measured cells (1)", "No law is fitted"],
    ),
    "one growth step": (
        effect(growth_steps=(40,), seeds=(0, 1, 2)),
        None,
        ["All cells have the same sunk FLOPs: nothing to correlate with", "No law is fitted"],
    ),
    "equal ends": (
        effect(growth_steps=(40, 100, 200), methods=("stack",)),
        lambda root: edit_evals(root, lambda line: line.update(acc=0.5, loss=2.0)),
        ["All cells end at the same value: nothing to correlate"],
    ),
    "no controls": (
        effect(controls=()),
        None,
        ["4 cells without a finished continued control, so no net is shown", "no finished continued control"],
    ),
    "accuracies that are no numbers": (
        effect(),
        lambda root: edit_evals(root, not_a_number),
        ["done but without a final accuracy", "No grown cell of this study has finished"],
    ),
    "losses that are infinite": (
        effect(),
        lambda root: edit_evals(root, infinite_loss),
        ["with a final accuracy but no final loss", "No law is fitted: the study has no finished cell with"],
    ),
    "two evaluations": (
        effect(seeds=(0, 1)),
        ask_others,
        ["evaluated by different suites", f"left out: {OTHER} (6)", "control of the same evaluation"],
    ),
    "a cell that diverged": (effect(status={(40, "stack"): "diverged"}), None, ["1 cell diverged"]),
    "sizes that were not recorded": (
        effect(),
        lambda root: edit_cells(root, lambda row: row.update(trunk_activated_params=None), NAME),
        ["grown cells have no trunk_activated_params"],
    ),
    "an empty list of cells": (
        effect(growth_steps=(40,)),
        lambda root: (root / "studies" / NAME / "cells.json").write_text('{"cells": []}'),
        ["The study holds no cells."],
    ),
}


def planted_case(name, root):
    """A store with one such study, and the sentences that its page must hold."""
    planted, edit, sentences = CASES[name]
    plant(root, planted)
    if edit:
        edit(root)
    return Store(root), sentences


@pytest.fixture
def two_figures(monkeypatch, unrendered):
    """Of each page the figures in which a wrong cell would show; the others are tested by their tables."""

    def drawings(store, study, cells, growth):
        others = dict.fromkeys(NOT_DRAWN, lambda: empty("not drawn here"))
        return others | {"accuracy_against_sunk_flops": lambda: accuracy_against_sunk_flops(cells)}

    monkeypatch.setattr("analysis.report._drawings", drawings)
    monkeypatch.setattr("analysis.paper_report.FIGURES", {key: FIGURES[key] for key in ("F1", "N5")})


def words(page):
    """The page's text without its scripts, style and tags, spaces made single."""
    text = re.sub(r"<(script|style)>.*?</\1>|<[^>]*>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


def drawn(folder):
    """What the main figure of a page shows, or None if it was not drawn."""
    path = folder / "figures" / "accuracy_against_sunk_flops.csv"
    return pd.read_csv(path) if path.is_file() else None


@pytest.mark.parametrize("name", CASES)
def test_the_page_of_such_a_study_says_so_and_shows_no_number_that_is_none(name, two_figures, tmp_path):
    store, sentences = planted_case(name, tmp_path / "store")
    page = write_report(store, NAME, tmp_path / "page").page
    said = words(page)
    for sentence in sentences:
        assert sentence in said, sentence
    assert not re.search(r"\b(nan|inf|None)\b", said)
    table, cells = drawn(page.parent), comparable(cells_table(store, NAME))
    finished = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    assert (table is None) == finished.empty
    if table is not None:
        final = table[table["panel"] == "final accuracy"]
        assert set(final["series"]) - {"continued", "scratch, equal total", "scratch, equal extra"} == set(
            finished["arm"]
        )
        assert table["mean_pct"].notna().all()
    for target in re.findall(r'href="([^"#]+)"', page.read_text()):
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize(
    "name", ["no finished cell", "no controls", "accuracies that are no numbers", "two evaluations"]
)
def test_the_papers_page_names_what_each_study_lacks(name, two_figures, tmp_path):
    store, _ = planted_case(name, tmp_path / "store")
    paper = write_paper(store, tmp_path / "paper", delta=0.01, command="")
    said = words(paper.page)
    assert not re.search(r"\b(nan|inf|None)\b", said)
    for sentence in incomplete(cells_table(store, NAME)):
        assert sentence in said, sentence
    assert all(claim["verdict"] in ("undecided", "regime not covered") for claim in paper.claims)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    root = plant(tmp_path_factory.mktemp("mixed"), effect(seeds=(0, 1)))
    ask_others(root)
    return Store(root)


def test_the_main_evaluation_is_that_of_the_most_finished_cells():
    rows = [("a", "done"), ("b", "todo"), ("b", "todo"), ("b", "todo"), ("", "done"), ("", "done")]
    cells = pd.DataFrame(rows, columns=["eval_id", "status"])
    assert main_evaluation(cells) == "a"
    assert list(comparable(cells)["eval_id"]) == ["a", "", ""]
    assert main_evaluation(cells.head(0)) == ""


def test_no_difference_is_taken_between_two_evaluations(mixed):
    cells = cells_table(mixed, NAME).set_index("cell_id")
    grown = cells[cells["kind"] == "branch"]
    assert set(grown["eval_id"]) == {"full00000000", OTHER}
    for control in ("continued", "scratch_extra"):
        same = grown["eval_id"] == grown[f"{control}_id"].map(cells["eval_id"])
        assert grown[f"{control}_acc"].notna().equals(same)
    assert grown.loc[grown["method"] == "interposition", "net"].isna().all()
    assert grown.loc[grown["method"] == "stack", "net"].notna().all()


def test_curves_and_statistics_are_of_one_evaluation(mixed):
    found = correlate(comparable(cells_table(mixed, NAME)))
    assert found["n_cells"] == 4
    assert found["series"]["pooled"]["net"]["n_cells"] == 4
    after = curves(mixed, NAME)
    assert set(after.loc[after["kind"] == "branch", "method"]) == {"stack"}
    assert after.loc[after["source"] == "full", "acc"].max() < 0.9
    assert len(trunk_curves(mixed, NAME)["trunk_id"].unique()) == 2


def test_evaluations_without_families_are_drawn_as_their_mean(tmp_path):
    root = plant(tmp_path, effect())
    edit_evals(root, lambda line: line.pop("families"))
    with themed():
        table, figure = learning_curves_by_family(family_curves(Store(root), NAME))
    assert list(table["family"].unique()) == ["mean of families"]
    assert len([axes for axes in figure.axes if axes.lines]) == 1


def test_a_running_study_counts_the_cells_whose_end_was_evaluated(tmp_path):
    root = plant(tmp_path, effect(status={(40, "stack"): "todo"}))
    edit_cells(root, lambda row: row.update(status="todo"), NAME)
    cells = cells_table(Store(root), NAME)
    todo = cells[cells["status"] == "todo"]
    assert list(zip(todo["growth_step"], todo["method"], strict=True)) == [(40, "stack")]
    assert cells.loc[cells["status"] == "done", "final_acc"].notna().all()


def test_refused_statistics_are_one_sentence_each(tmp_path):
    cells = cells_table(Store(plant(tmp_path, effect(growth_steps=(40, 100, 200)))), NAME)
    rows = statistics_rows(correlate(cells))
    assert rows["why"] == [
        "All cells grow from one trunk, and points along one training run are not independent of each other: "
        "no interval can be given. Add seeds."
    ]
    assert rows["base"]["refused"].startswith("Refused for one trunk")
    assert {row["mixed"] for row in rows["slopes"]} == {"–"}
    assert laws_section(cells, tmp_path).refused
