import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from planted import CHANCE, F_C, JUMPS, LEVELS, Effect, plant, plant_growths

from analysis.curves import ALL_FAMILIES, MEAN, curves, family_curves, trunk_curves
from analysis.figures import (
    accuracy_against_sunk_flops,
    accuracy_by_family,
    clone_divergence,
    function_preservation_waterfall,
    learning_curves_by_family,
    loss_and_accuracy_by_sunk_flops,
    save,
    themed,
    trunk_with_growth_points,
)
from analysis.figures.style import looks
from analysis.growths import growths, twins
from analysis.table import cells_table
from sweeps.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    plant(root, Effect(net=0.02, slope=0.02))
    return Store(plant(root, Effect(name="seeds", seeds=(0, 1, 2), growth_steps=(100, 300))))


def test_the_main_figure_draws_every_final_accuracy_beside_its_controls(store):
    cells = cells_table(store, "planted")
    with themed():
        table, figure = accuracy_against_sunk_flops(cells)
    left = table[table["panel"] == "final accuracy"].set_index(["series", "sunk_flops"])
    for _, cell in cells[cells["kind"] == "branch"].iterrows():
        at = cell["sunk_flops"]
        assert left.loc[(cell["arm"], at), "mean_pct"] == pytest.approx(100 * cell["final_acc"])
        assert left.loc[(cell["arm"], at), "se_pct"] == pytest.approx(100 * cell["final_acc_se"])
        assert left.loc[("continued", at), "mean_pct"] == pytest.approx(100 * cell["continued_acc"])
    assert ("scratch, equal extra", 0.0) in left.index
    assert len(figure.axes) == 2


def test_net_is_drawn_as_final_minus_continued(store):
    cells = cells_table(store, "planted")
    with themed():
        table, _ = accuracy_against_sunk_flops(cells)
    net = table[table["panel"] == "net"].groupby("series")["mean_pct"].mean()
    wanted = cells[cells["kind"] == "branch"].groupby("arm")["net"].mean()
    assert np.allclose(net.sort_index(), 100 * wanted.sort_index())


def test_captions_tell_cells_trunks_and_what_the_bars_are(store):
    with themed():
        one, _ = accuracy_against_sunk_flops(cells_table(store, "planted"))
        three, _ = accuracy_against_sunk_flops(cells_table(store, "seeds"))
    assert "8 grown cells on 5000 items each, 1 trunk (seed 0)" in one.attrs["caption"]
    assert "error of the evaluation" in one.attrs["caption"]
    assert "3 trunks (seeds 0, 1, 2)" in three.attrs["caption"]
    assert "over 3 trunks" in three.attrs["caption"]


def test_accuracy_along_the_way_names_its_suite_size_and_seed(store):
    cells = cells_table(store, "planted")
    with themed():
        trunk, _ = trunk_with_growth_points(trunk_curves(store, "planted"), cells)
        after, figure = loss_and_accuracy_by_sunk_flops(curves(store, "planted"))
    assert "1 trunk (seed 0)" in trunk.attrs["caption"]
    assert "probe, a smaller suite (100 items)" in trunk.attrs["caption"]
    assert "1 trunk (seed 0)" in after.attrs["caption"]
    assert "large points: the full suite at the end" in after.attrs["caption"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["probe, 100 items", "full suite, 5000 items", "scratch", "continued, at its end"]
    probes = after[(after["source"] == "probe") & (after["kind"] == "branch")]
    assert (probes["acc_se"] > 0).all()


def test_several_trunks_are_drawn_as_their_mean_and_standard_error(store):
    cells = cells_table(store, "seeds")
    with themed():
        table, _ = accuracy_against_sunk_flops(cells)
    stack = cells[(cells["arm"] == "stack") & (cells["growth_step"] == 100)]["final_acc"]
    point = table[(table["series"] == "stack") & (table["panel"] == "final accuracy")].iloc[0]
    assert point["n_trunks"] == 3
    assert point["se_pct"] == pytest.approx(100 * stack.std(ddof=1) / np.sqrt(3))


def test_learning_curves_hold_loss_lines_and_accuracy_points_for_each_growth_step(store):
    with themed():
        table, _ = loss_and_accuracy_by_sunk_flops(curves(store, "planted"))
    train = table[table["source"] == "train"]
    assert train["smoothed"].notna().all()
    assert train.groupby("arm")["sunk_flops"].nunique().to_dict() == {
        "interposition": 4,
        "scratch": 1,
        "stack": 4,
    }
    ends = table[(table["kind"] == "continued") & (table["source"] == "full")]
    assert ends.groupby("arm")["sunk_flops"].nunique().to_dict() == {"interposition": 4, "stack": 4}


def test_the_trunk_figure_marks_every_growth_step(store):
    cells = cells_table(store, "planted")
    with themed():
        table, _ = trunk_with_growth_points(trunk_curves(store, "planted"), cells)
    marked = table[table["quantity"] == "growth points on training loss"]["flops"]
    assert sorted(marked) == sorted(cells["sunk_flops"].dropna().unique()[1:])


def test_a_full_suite_before_the_end_is_not_said_to_be_at_the_end(store):
    points = curves(store, "planted")
    with themed():
        older, _ = loss_and_accuracy_by_sunk_flops(points.replace({"source": {"probe": "full"}}))
    assert "large points: the full suite. Bars" in older.attrs["caption"]


def test_the_learning_curves_say_which_families_the_mean_leaves_out(store):
    points = family_curves(store, "planted")
    assert set(points["averaged"]) == {"facts hops arithmetic recall grammar"}
    with themed():
        whole, _ = learning_curves_by_family(points)
        part, _ = learning_curves_by_family(points.assign(averaged="facts hops"))
    assert "The mean is of" not in whole.attrs["caption"]
    assert "The mean is of facts, hops. " in part.attrs["caption"]


def test_the_learning_curves_draw_each_probe_of_each_trunk_and_their_mean(store):
    points = family_curves(store, "seeds")
    with themed():
        table, figure = learning_curves_by_family(points)
    assert len(figure.axes) == 1 + 2 * len(LEVELS)
    facts = table[(table["family"] == "facts") & (table["level"] == MEAN)]
    trunks = sorted(points["trunk_id"].unique())
    assert len(trunks) == 3
    for trunk in trunks:
        lines = [line for line in store.evals(trunk) if line["step"] <= points["step"].max()]
        assert facts[trunk].tolist() == pytest.approx(
            [100 * line["families"]["facts"]["acc"] for line in lines]
        )
    assert np.allclose(facts["mean"], facts[trunks].mean(axis=1))
    assert np.allclose(table["f_c"], table["flops"] / F_C)
    assert table["se"].isna().all()


def test_the_learning_curves_of_one_trunk_hold_the_standard_error_of_their_band(store):
    points = family_curves(store, "planted")
    with themed():
        table, figure = learning_curves_by_family(points)
    first = table[(table["family"] == ALL_FAMILIES) & (table["level"] == MEAN)]
    lines = [line for line in store.evals(table.columns[-1]) if line["step"] <= points["step"].max()]
    assert first["mean"].tolist() == pytest.approx([100 * line["acc"] for line in lines])
    assert first["se"].tolist() == pytest.approx([100 * line["acc_se"] for line in lines])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["the trunk", "± one standard error", "chance"]
    assert "probe, a smaller suite (20 items per family) along 1 trunk (seed 0)" in table.attrs["caption"]


def test_the_levels_that_are_drawn_average_to_their_family_beside_chance(store):
    with themed():
        table, figure = learning_curves_by_family(family_curves(store, "seeds"))
    for family, num_levels in LEVELS.items():
        own = table[table["family"] == family].set_index("flops")
        levels = own[own["level"] != MEAN]
        assert list(dict.fromkeys(levels["level"])) == [str(i) for i in range(num_levels)]
        means = levels.groupby("flops")["mean"].mean()
        assert np.allclose(means, own.loc[own["level"] == MEAN, "mean"])
        assert levels["near"].between(levels["mean"].min(), levels["mean"].max()).all()
    assert (table["chance_pct"] == 100 * CHANCE).all()
    keys = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in keys[0].get_texts()] == ["level 0", "to 4"]


def test_the_mean_over_trunks_ends_where_the_first_of_them_ends(store):
    points = family_curves(store, "seeds")
    trunk, half = points["trunk_id"].iloc[0], points["flops"].median()
    with themed():
        table, _ = learning_curves_by_family(points[(points["trunk_id"] != trunk) | (points["flops"] < half)])
    assert (table["mean"].notna() == (table["flops"] < half)).all()
    assert table.drop(columns=["mean", "near", "se", trunk]).notna().all(axis=None)


@pytest.mark.parametrize(("num_levels", "panels"), [(1, 1), (3, 2), (13, 1)])
def test_one_family_is_drawn_once_and_its_levels_where_they_can_be_told_apart(store, num_levels, panels):
    points = family_curves(store, "seeds")
    whole = points[points["family"].isin([ALL_FAMILIES, "facts"]) & (points["level"] == MEAN)]
    one = points[(points["family"] == "facts") & (points["level"] == "0")]
    with themed():
        table, figure = learning_curves_by_family(
            pd.concat([whole, *(one.assign(level=str(i)) for i in range(num_levels))])
        )
    assert set(table["family"]) == {"facts"}
    assert len(figure.axes) == panels
    assert ("Coloured: the levels" in table.attrs["caption"]) == (panels == 2)


def test_each_family_has_its_own_accuracies(store):
    cells = cells_table(store, "planted")
    with themed():
        table, _ = accuracy_by_family(cells)
    assert set(table["family"]) == {"facts", "hops", "arithmetic", "recall", "grammar"}
    facts = table[(table["family"] == "facts") & (table["series"] == "stack")].set_index("sunk_flops")
    for _, cell in cells[cells["arm"] == "stack"].iterrows():
        assert facts.loc[cell["sunk_flops"], "mean_pct"] == pytest.approx(100 * cell["final_acc_facts"])


def test_the_waterfall_adds_up_from_the_loss_before_to_the_loss_after(tmp_path):
    store = Store(plant_growths(plant(tmp_path, Effect(growth_steps=(100,), extra_steps=60))))
    with themed():
        table, figure = function_preservation_waterfall(growths(store, "planted"))
    assert len(figure.axes) == table["title"].nunique() == 3
    for title, bars in table.groupby("title"):
        bars = bars.set_index("bar")
        parts = bars.drop(["before", "after"])["change"]
        assert bars["loss"]["before"] + parts.sum() == pytest.approx(bars["loss"]["after"], abs=1e-12)
        jump = JUMPS[title.split()[0] if "→" not in title else "duplicate"]
        assert parts.dropna().tolist() == pytest.approx(list(jump.values()))


def test_a_change_too_small_for_its_bar_is_written_out(tmp_path):
    store = Store(plant_growths(plant(tmp_path, Effect(growth_steps=(100,), extra_steps=60))))
    with themed():
        _, figure = function_preservation_waterfall(growths(store, "planted"))
    chain = next(axes for axes in figure.axes if "2nd growth" in axes.get_title(loc="left"))
    assert [text.get_text() for text in chain.texts] == ["2.5", "–", "0", "+2.0e−6", "−5.0e−6", "2.5"]
    assert "predicted: perturbed" in chain.get_title(loc="left")


def test_twins_that_never_part_are_drawn_at_exactly_zero(tmp_path):
    store = Store(plant_growths(plant(tmp_path, Effect(growth_steps=(100,), extra_steps=60))))
    parted = twins(store, "planted")
    never = parted.assign(twin_distance=0.0, arm="duplicate, α=0")
    with themed():
        table, figure = clone_divergence(pd.concat([parted, never]))
    assert table.groupby("arm")["twin_distance"].max()["duplicate, α=0"] == 0
    assert [text.get_text() for text in figure.axes[0].texts] == ["exactly 0"]
    assert "1 trunk (seed 0)" in table.attrs["caption"]


def test_without_finished_cells_the_figures_say_so_and_draw_nothing(tmp_path):
    (tmp_path / "studies" / "bare").mkdir(parents=True)
    bare = Store(tmp_path)
    cells = cells_table(bare, "bare")
    with themed():
        drawn = [
            accuracy_against_sunk_flops(cells),
            accuracy_by_family(cells),
            loss_and_accuracy_by_sunk_flops(curves(bare, "bare")),
            trunk_with_growth_points(trunk_curves(bare, "bare"), cells),
            learning_curves_by_family(family_curves(bare, "bare")),
            function_preservation_waterfall(growths(bare, "bare")),
            clone_divergence(twins(bare, "bare")),
        ]
    for table, figure in drawn:
        assert table.empty
        assert "nothing to draw" in table.attrs["caption"]
        assert not figure.axes


def test_a_method_keeps_its_colour_and_marker_whatever_else_is_drawn():
    alone = looks(["stack"])["stack"]
    beside = looks(["interposition", "stack, α=0", "stack, α=0.01"])
    assert beside["stack, α=0"].colour == beside["stack, α=0.01"].colour == alone.colour
    assert beside["stack, α=0"].marker == alone.marker != beside["interposition"].marker
    assert beside["stack, α=0"].line != beside["stack, α=0.01"].line


_DRAW = """
import hashlib, pathlib, sys
from analysis.figures import accuracy_against_sunk_flops, save, themed
from analysis.table import cells_table
from sweeps.store import Store
with themed():
    save(*accuracy_against_sunk_flops(cells_table(Store(sys.argv[1]), "planted")), pathlib.Path(sys.argv[2]))
"""


def test_pictures_of_equal_data_are_equal_in_every_byte(store, tmp_path):
    with themed():
        save(*accuracy_against_sunk_flops(cells_table(store, "planted")), tmp_path / "here")
    environment = {
        "PYTHONHASHSEED": "7",
        "SOURCE_DATE_EPOCH": "86400",
        "MPLBACKEND": "svg",
        "PYTHONPATH": ":".join(sys.path),
    }
    there = str(tmp_path / "there")
    subprocess.run([sys.executable, "-c", _DRAW, str(store.root), there], check=True, env=environment)
    for kind in ("png", "pdf", "csv"):
        assert (tmp_path / f"here.{kind}").read_bytes() == (tmp_path / f"there.{kind}").read_bytes()
