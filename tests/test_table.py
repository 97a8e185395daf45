import numpy as np
import pandas as pd
import pytest
from planted import CHANCE, F_C, LEVELS, Effect, edit_cells, edit_evals, plant

from analysis.arms import budget_rule, standard_error
from analysis.curves import ALL_FAMILIES, MEAN, curves, family_curves, trunk_curves
from analysis.table import cells_table
from sweeps.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(plant(tmp_path, Effect(net=0.03)))


def test_there_is_one_row_per_cell_with_its_final_full_evaluation(store):
    table = cells_table(store, "planted").set_index("cell_id")
    rows = store.study("planted")["cells"]["cells"]
    assert list(table.index) == [row["cell_id"] for row in rows]
    for row in rows:
        trajectory, step = row["states"]["final"]
        lines = [e for e in store.evals(trajectory) if e["step"] == step and e["suite"] == "full"]
        assert table.loc[row["cell_id"], "final_acc"] == lines[0]["acc"]
        assert table.loc[row["cell_id"], "final_acc_facts"] == lines[0]["families"]["facts"]["acc"]


def test_the_full_suite_is_read_at_the_end_and_the_probe_of_every_state_before(store):
    table = cells_table(store, "planted").set_index("cell_id")
    for row in store.study("planted")["cells"]["cells"]:
        for name in ("base", "start", "stable", "final"):
            if row["states"][name]:
                trajectory, step = row["states"][name]
                (line,) = [e for e in store.evals(trajectory) if e["step"] == step]
                assert line["suite"] == ("full" if name == "final" else "probe")
                assert table.loc[row["cell_id"], f"{name}_acc"] == line["acc"]


def test_accuracy_above_chance_is_that_of_the_final_line(store):
    table = cells_table(store, "planted")
    assert np.allclose(table["final_acc_above_chance"], (table["final_acc"] - CHANCE) / (1 - CHANCE))


def test_lines_from_before_accuracy_above_chance_leave_it_missing(tmp_path):
    root = plant(tmp_path, Effect(growth_steps=(100,)))
    edit_evals(root, lambda line: line.pop("acc_above_chance"))
    table = cells_table(Store(root), "planted")
    assert table["final_acc_above_chance"].isna().all()
    assert table["final_acc"].notna().all()


def test_total_flops_is_sunk_plus_extra(store):
    table = cells_table(store, "planted")
    grown = table[table["kind"] == "branch"]
    assert np.allclose(grown["total_flops"], grown["sunk_flops"] + grown["extra_flops"])
    assert np.allclose(grown["sunk_f_c"], grown["sunk_flops"] / F_C)


def test_net_and_gains_are_differences_to_the_cells_own_controls(store):
    table = cells_table(store, "planted").set_index("cell_id", drop=False)
    for _, cell in table[table["kind"] == "branch"].iterrows():
        assert cell["net"] == cell["final_acc"] - table.loc[cell["continued_id"], "final_acc"]
        assert (
            cell["gain_over_scratch_total"]
            == cell["final_acc"] - table.loc[cell["scratch_total_id"], "final_acc"]
        )
        assert cell["cell_id"] in table.loc[cell["continued_id"], "control_of"].split()
        assert cell["damage"] == cell["start_acc"] - cell["base_acc"]


def test_a_missing_measurement_is_missing_and_never_zero(tmp_path):
    effect = Effect(controls=(), status={(100, "stack"): "todo", (200, "stack"): "diverged"})
    table = cells_table(Store(plant(tmp_path, effect)), "planted")
    undone = table[table["status"] != "done"]
    assert len(undone) == 2
    assert undone[["final_acc", "final_acc_se", "net", "final_acc_facts"]].isna().all(axis=None)
    assert table[["net", "gain_over_scratch_extra", "gain_over_sham"]].isna().all(axis=None)
    assert not (table.select_dtypes("float")[["final_acc", "base_acc", "net"]] == 0).any(axis=None)


def test_another_suite_is_not_taken_for_the_cells_own(tmp_path):
    root = plant(tmp_path, Effect())
    edit_cells(root, lambda row: row.update(eval_id="newer0000000"))
    assert cells_table(Store(root), "planted")["final_acc"].isna().all()
    for points in (curves(Store(root), "planted"), trunk_curves(Store(root), "planted")):
        assert set(points["source"]) == {"train", "probe"}
    edit_cells(root, lambda row: row.update(probe_eval_id="newer0000000"))
    assert set(curves(Store(root), "planted")["source"]) == {"train"}


def test_a_study_without_cells_gives_empty_tables(tmp_path):
    (tmp_path / "studies" / "bare").mkdir(parents=True)
    store = Store(tmp_path)
    assert cells_table(store, "bare").empty
    assert curves(store, "bare").empty
    assert trunk_curves(store, "bare").empty
    assert family_curves(store, "bare").empty


def test_an_unknown_study_is_named_together_with_the_known_ones(store):
    with pytest.raises(ValueError, match=r"nothing.*planted"):
        cells_table(store, "nothing")


def test_controls_belong_to_the_trunk_of_the_cells_that_they_serve(tmp_path):
    table = cells_table(Store(plant(tmp_path, Effect(seeds=(0, 1, 2)))), "planted")
    assert table["replicate"].nunique() == 3
    assert (table.groupby("seed")["replicate"].nunique() == 1).all()


def test_trunks_of_one_seed_do_not_count_as_independent(tmp_path):
    root = plant(tmp_path, Effect(seeds=(0, 1)))
    edit_cells(root, lambda row: row.update(seed=0))
    assert cells_table(Store(root), "planted")["replicate"].nunique() == 1


def test_an_arm_names_the_settings_that_vary(tmp_path):
    root = plant(tmp_path, Effect())
    edit_cells(root, lambda row: row.update(noise_scale=0.01 if row["growth_step"] == 100 else 0.0))
    arms = set(cells_table(Store(root), "planted").query("kind == 'branch'")["arm"])
    assert arms == {"stack, α=0.01", "stack, α=0", "interposition, α=0.01", "interposition, α=0"}


@pytest.mark.parametrize(("fixed_total", "rule"), [(False, "extra"), (True, "total")])
def test_the_budget_rule_is_read_from_the_cells(tmp_path, fixed_total, rule):
    table = cells_table(Store(plant(tmp_path, Effect(fixed_total=fixed_total))), "planted")
    assert budget_rule(table)[0] == rule
    assert set(table.query("kind == 'branch'")["arm"]) == {"stack", "interposition"}


def test_two_extra_budgets_make_two_arms(tmp_path):
    root = plant(tmp_path, Effect())

    def double(row):
        if row["kind"] == "branch" and row["method"] == "stack":
            row["extra_flops"] *= 2

    edit_cells(root, double)
    table = cells_table(Store(root), "planted")
    assert budget_rule(table)[0] == "extra"
    assert all("FLOPs" in arm for arm in table.query("kind == 'branch'")["arm"])


def test_curves_count_extra_flops_from_the_growth(store):
    table = cells_table(store, "planted").set_index("cell_id")
    points = curves(store, "planted")
    ends = points.groupby(["cell_id", "pair_id"])["extra_flops"].max()
    for (cell, pair), end in ends.items():
        sunk = table.loc[pair, "sunk_flops"] if table.loc[cell, "kind"] == "continued" else 0.0
        spent = table.loc[cell, "total_flops"] - sunk
        wanted = table.loc[cell, "extra_flops"] if table.loc[cell, "kind"] == "branch" else spent
        assert end == pytest.approx(wanted)
    assert (points["extra_flops"] >= 0).all()
    assert points.loc[points["source"] == "train", "acc"].isna().all()


def test_a_trunk_curve_runs_from_init_past_the_last_growth(store):
    points = trunk_curves(store, "planted")
    assert points["flops"].min() >= 0
    assert points["flops"].max() > cells_table(store, "planted")["sunk_flops"].max()
    assert points["trunk_id"].nunique() == 1


def test_family_curves_hold_each_probe_of_the_trunk_and_its_levels(store):
    points = family_curves(store, "planted")
    trunk = points["trunk_id"].iloc[0]
    lines = [line for line in store.evals(trunk) if line["step"] <= 960]  # where continuing leaves it
    assert len(points) == len(lines) * (1 + len(LEVELS) + sum(LEVELS.values()))
    for line in lines:
        at = points[points["step"] == line["step"]].set_index(["family", "level"])
        assert at.loc[(ALL_FAMILIES, MEAN), "acc"] == line["acc"]
        assert at.loc[("facts", MEAN), "se"] == line["families"]["facts"]["se"]
        assert at.loc[("hops", "3"), "acc"] == line["families"]["hops"]["levels"]["3"]
    assert np.allclose(points["flops"], points["f_c"] * F_C)


def test_family_curves_read_the_studys_own_probe_and_without_one_the_full_suite(tmp_path):
    root = plant(tmp_path, Effect(growth_steps=(100,)))
    edit_cells(root, lambda row: row.update(probe_eval_id="newer0000000"))
    assert family_curves(Store(root), "planted").empty
    edit_evals(root, lambda line: line.update(suite="full", eval_id="full00000000"))
    assert set(family_curves(Store(root), "planted")["source"]) == {"full"}


def test_two_trunks_that_agree_are_no_better_measured_than_their_evaluations():
    agreeing, apart = pd.Series([0.30, 0.30]), pd.Series([0.20, 0.40])
    assert standard_error(pd.Series([0.3]), 0.02) == 0.02
    assert standard_error(agreeing, 0.02) == pytest.approx(0.02 / 2**0.5)
    assert standard_error(apart, 0.02) == pytest.approx(apart.std() / 2**0.5)
