import json

import numpy as np
import pytest
from planted import Effect, edit_cells, plant, plant_growth, plant_growths
from safetensors.numpy import save_file

from analysis.growths import distinct, growths, seam_norms, twins
from analysis.report import write_report
from analysis.table import cells_table
from analysis.updates import shared_names, update_cosines
from moe.operator import DepthMethod, Operator, WidthMethod
from sweeps.store import Store

TINY = Effect(growth_steps=(100,), extra_steps=60)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(plant_growths(plant(tmp_path_factory.mktemp("store"), TINY)))


def arms_of(root, change):
    edit_cells(root, change)
    return set(cells_table(Store(root), "planted").query("kind == 'branch'")["arm"])


# --------------------------------------------------------------------------------------------------------
# Arms


def test_a_chain_is_an_arm_named_by_its_growths_in_order(store):
    arms = cells_table(store, "planted").query("kind == 'branch'")["arm"]
    assert set(arms) == {"stack", "interposition", "interposition → duplicate"}


def test_a_setting_that_an_operator_does_not_have_is_not_in_the_names(tmp_path):
    def change(row):
        wide = row["method"] == "stack"
        row |= {"growth": "duplicate", "noise_scale": 0.01} if wide else {"growth": "interposition"}
        row |= {"copies": None if wide else "exact", "router_noise_scale": 0.01 if wide else 0.0}
        row |= {"optimizer_state": "rescale" if wide else "copy", "depth_factor": 1 if wide else 2}

    assert arms_of(plant(tmp_path, TINY), change) == {"duplicate", "interposition"}


def test_a_setting_that_varies_is_named_for_the_operators_that_have_it(tmp_path):
    def change(row):
        late = row["growth_step"] == 200
        row |= {"growth": row["method"], "keep_first": int(late and row["method"] == "stack")}
        row |= {"copies": "zeroed" if late and row["method"] == "interposition" else "exact"}

    assert arms_of(plant(tmp_path, Effect(growth_steps=(100, 200))), change) == {
        *("stack, first 0 kept", "stack, first 1 kept"),
        *("interposition, copies exact", "interposition, copies zeroed"),
    }


def test_router_noise_is_named_only_where_it_is_not_that_of_the_experts(tmp_path):
    def change(row):
        alpha = 0.01 if row["growth_step"] == 200 else 0.1
        of_router = alpha if row["method"] == "stack" else 0.01
        row |= {"growth": row["method"], "noise_scale": alpha, "router_noise_scale": of_router}

    same = {"stack, α=0.01", "stack, α=0.1", "interposition, α=0.01", "interposition, α=0.1"}
    root = plant(tmp_path, Effect(growth_steps=(100, 200)))
    assert arms_of(root, change) == same
    edit_cells(root, lambda row: row.update(noise_scale=0.1))
    arms = cells_table(Store(root), "planted").query("kind == 'branch'")["arm"]
    assert set(arms) == {"stack, router α=0.01", "stack, router α=0.1", "interposition"}


def test_budgets_before_a_second_growth_are_named_if_they_differ_by_more_than_a_step(tmp_path):
    flops = {100: 1.00e12, 200: 1.01e12, 400: 2.0e12, 800: 2.02e12}
    root = plant(tmp_path, Effect(methods=("stack",), controls=()))

    def change(row):
        row |= {"growth": "a → b", "then_after_flops": flops.get(row["growth_step"])}

    assert arms_of(root, change) == {"a → b, then after 1e+12 FLOPs", "a → b, then after 2e+12 FLOPs"}


# --------------------------------------------------------------------------------------------------------
# Growths


def test_each_growth_of_each_grown_cell_has_a_row_with_what_was_recorded(store):
    table = growths(store, "planted").set_index(["arm", "nth"])
    assert len(table) == 4
    deep = table.loc[("stack", 1)]
    assert (deep["loss_before"], deep["loss_after"], deep["depth_copy"]) == (2.5, 4.0, 1.5)
    assert (deep["exactness"], deep["growth"], deep["probe_tokens"]) == ("changed", "stack", 640)
    assert deep[["width_copy", "expert_noise", "router_noise", "effective_alpha_experts"]].isna().all()
    wide = table.loc[("interposition → duplicate", 2)]
    assert (wide["growth"], wide["width_copy"], wide["router_noise"]) == ("duplicate", 0.0, -5e-6)
    assert (wide["effective_alpha_experts"], wide["effective_alpha_router"]) == (0.0101, 0.0099)
    assert (wide["num_experts_before"], wide["num_experts_after"], wide["top_k_after"]) == (2, 4, 2)


def test_a_chain_and_the_growth_that_it_goes_on_from_are_one_growth(store):
    table = distinct(growths(store, "planted"))
    assert table["title"].tolist() == ["stack", "interposition", "interposition → duplicate (2nd growth)"]
    assert table["arms"][1] == ["interposition", "interposition → duplicate"]


def test_growths_are_averaged_over_trunks(tmp_path):
    root = plant_growths(plant(tmp_path, Effect(seeds=(0, 1), growth_steps=(100,), methods=("stack",))))
    rows = growths(Store(root), "planted")
    plant_growth(root, rows["trajectory_id"][0], rows["parent"][0], "stack", loss_after=5.0)
    (mean,) = distinct(growths(Store(root), "planted"))["loss_after"]
    assert mean == (5.0 + 4.0) / 2


def test_a_null_in_the_record_is_a_missing_measurement(tmp_path, unrendered):
    root = plant_growths(plant(tmp_path, Effect(growth_steps=(100,), methods=("stack",))))
    row = growths(Store(root), "planted").iloc[0]
    nothing = {"loss_after": None, "max_logit_change": None, "jump": None, "after": None}
    plant_growth(root, row["trajectory_id"], row["parent"], "stack", **nothing)
    row = growths(Store(root), "planted").iloc[0]
    assert row[["loss_after", "max_logit_change", "depth_copy", "num_layers_after"]].isna().all()
    page = write_report(Store(root), "planted", tmp_path / "page").page.read_text()
    assert "2.5000 → –" in page


def test_the_norms_stand_on_both_sides_of_the_seam(store):
    seams = seam_norms(store, growths(store, "planted")).set_index("arm")
    assert set(seams.index) == {"stack", "interposition"}
    stack = seams.loc["stack"]
    assert (stack["seam"], stack["base_last"], stack["above"], stack["below"]) == (2, 0.5, 0.5, 0.3)
    assert np.isnan(stack["end_above"])


def test_the_loss_spike_is_the_highest_loss_after_growth_over_the_mean_before(tmp_path):
    root = plant(tmp_path, Effect(growth_steps=(100,), extra_steps=120, methods=("stack",)))
    (row,) = (r for r in Store(root).study("planted")["cells"]["cells"] if r["kind"] == "branch")
    for trajectory, losses in (
        (row["states"]["base"][0], [9.0] * 80 + [2.0, 3.0] * 10 + [7.0] * 20),
        (row["states"]["start"][0], [4.0] * 49 + [5.0, 8.0]),
    ):
        folder = next((root / "trajectories").glob(f"*-{trajectory}"))
        lines = [json.dumps({"step": i, "loss": loss}) for i, loss in enumerate(losses, start=1)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    table = cells_table(Store(root), "planted").set_index("kind")["loss_spike"]
    assert table["branch"] == 5.0 - 2.5
    assert table.drop("branch").isna().all()


# --------------------------------------------------------------------------------------------------------
# Twins and moments


def test_twins_are_means_over_layers_with_experts_counted_from_the_first_growth(store):
    (line,) = twins(store, "planted").to_dict("records")
    assert (line["arm"], line["step"], line["nth"]) == ("interposition → duplicate", 20, 2)
    means = {"twin_cosine": 0.8, "twin_distance": 0.2, "co_routing": 0.5, "expert_load_entropy": 0.75}
    assert {name: line[name] for name in means} == pytest.approx(means)
    assert (line["first_moment_cosine"], line["second_moment_cosine"]) == (0.25, 0.5)
    rows = store.study("planted")["cells"]["cells"]
    first = next(row for row in rows if row.get("growth") == "interposition")["path"][1]
    assert line["grown_at_flops"] == 20 * first["flops_per_step"]
    assert line["extra_flops"] == 20 * first["flops_per_step"] + 20 * 2e9
    assert line["strangers"] == 2 / 4


def test_a_line_that_two_cells_share_is_listed_once_with_the_less_grown(tmp_path):
    root = plant_growths(plant(tmp_path, Effect(growth_steps=(100,), extra_steps=60, controls=())))
    first = growths(Store(root), "planted").query("arm == 'interposition'")["trajectory_id"].iloc[0]
    folder = next((root / "trajectories").glob(f"*-{first}"))
    lines = [{"step": step, "loss": 2.0, "co_routing": [1.0]} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = twins(Store(root), "planted").query(f"trajectory_id == '{first}'")
    assert own[["arm", "step"]].values.tolist() == [["interposition", 10], ["interposition", 20]]


# --------------------------------------------------------------------------------------------------------
# Updates

QUERY, EXPERTS = "attention.query.weight", "moe.experts.w_in_EGD"


def write_updates(root, method, first_of_layer, query, experts):
    """4 layers from 2: the given updates where the trunk's layers first appear, junk elsewhere."""
    store = Store(root)
    row = growths(store, "planted").query(f"arm == '{method}'").iloc[0]
    rows = store.study("planted")["cells"]["cells"]
    step = next(r for r in rows if r.get("growth") == method)["states"]["stable"][1]
    start = {"embedding.weight": np.ones((2, 2), "f4")}
    for layer in range(4):
        start |= {f"layers.{layer}.{name}": np.full((2, 2), layer, "f4") for name in (QUERY, EXPERTS)}
    end = {name: tensor + 50.0 * len(method) for name, tensor in start.items()}
    end["embedding.weight"] = start["embedding.weight"] + np.eye(2, dtype="f4")
    for layer in first_of_layer:
        for name, update in ((QUERY, query), (EXPERTS, experts)):
            end[f"layers.{layer}.{name}"] = start[f"layers.{layer}.{name}"] + np.array(update, "f4")
    for at, weights in ((0, start), (step, end)):
        folder = store.state_folder(row["trajectory_id"], at)
        folder.mkdir(parents=True)
        save_file(weights, folder / "model.safetensors")


def test_updates_are_compared_where_each_layer_of_the_trunk_first_appears(tmp_path):
    root = plant_growths(plant(tmp_path, TINY))
    write_updates(root, "stack", (0, 1), query=[[1, 0], [0, 0]], experts=[[3, 4], [0, 0]])
    write_updates(root, "interposition", (0, 2), query=[[0, 1], [0, 0]], experts=[[3, 4], [0, 0]])
    table = update_cosines(Store(root), "planted").set_index("group")
    assert set(table["arm_a"] + table["arm_b"]) == {"stackinterposition"}
    assert table["cosine"]["expert_ffn"] == pytest.approx(1.0)
    assert table["cosine"]["attention"] == pytest.approx(0.0)
    assert table["cosine"]["embedding"] == pytest.approx(1.0)
    dot, square = 2 * 25 + 2, 2 * 25 + 2 * 1 + 2  # two layers of experts, two of queries, one embedding
    assert table["cosine"]["overall"] == pytest.approx(dot / square)


def test_pairs_without_stored_weights_are_left_out_and_said_to_be(store):
    table = update_cosines(store, "planted")
    assert table.empty
    assert table.attrs["left_out"] == ["1 pair is not compared: weights are not stored."]


def test_a_layer_is_found_at_its_first_appearance_and_split_experts_nowhere():
    names = [f"layers.{i}.{name}" for i in range(4) for name in (QUERY, EXPERTS)] + ["head.weight"]
    stack = Operator(method=DepthMethod.STACK, depth_factor=2)
    split = Operator(
        method=DepthMethod.INTERPOSITION,
        depth_factor=2,
        width_method=WidthMethod.SPLIT,
        width_factor=2,
    )
    assert shared_names(stack, 2, names)[f"layers.1.{EXPERTS}"] == f"layers.1.{EXPERTS}"
    assert shared_names(split, 2, names) == {
        f"layers.0.{QUERY}": f"layers.0.{QUERY}",
        f"layers.1.{QUERY}": f"layers.2.{QUERY}",
        "head.weight": "head.weight",
    }


# --------------------------------------------------------------------------------------------------------
# The page


def test_the_page_shows_what_each_growth_did_beside_its_figures(tmp_path, unrendered):
    root = plant_growths(plant(tmp_path / "store", TINY))
    report = write_report(Store(root), "planted", tmp_path / "page")
    page = report.page.read_text()
    for shown in ("2.5000 → 4.0000", "+1.5", "−5.0e−6", "0.01 / 0.0099", "perturbed", "around the seam"):
        assert shown in page
    names = ["growths.csv", "update_cosines.csv", "figures/clone_divergence.csv"]
    names += ["figures/function_preservation_waterfall.csv"]
    assert all((tmp_path / "page" / name).stat().st_size for name in names)


@pytest.mark.parametrize(
    "record", [None, {"parent": "0@1", "operator": {"method": "stack"}, "sunk_flops": 1.0}]
)
def test_a_store_from_before_growths_were_measured_still_gets_a_page(tmp_path, record, unrendered):
    root = plant(tmp_path / "store", TINY)
    assert Store(root).growth("000000000000") is None
    for folder in (root / "trajectories").glob("branch-*"):
        (folder / "states").mkdir()
        if record:
            (folder / "states" / "growth.json").write_text(json.dumps(record))
    page = write_report(Store(root), "planted", tmp_path / "page").page.read_text()
    assert "Nothing was recorded about these growths" in page
    assert "interposition" in page
