"""What makes an id: every field of the science, no tap, nothing of how it is run."""

import dataclasses

import pytest
import tiny

from moe.config import EvaluateConfig, ModelConfig, TrainConfig
from moe.data import WorldConfig
from moe.operator_config import OperatorConfig
from sweeps.cell import all_cells, resolve
from sweeps.config import (
    BudgetConfig,
    LaunchConfig,
    LimitConfig,
    TrackingConfig,
    TrunkConfig,
    parse_sweep,
)
from sweeps.growth import GrowthConfig, ThenConfig

# Another legal value for each field. A field that is missing here fails its test: decide what it is.
MODEL = {
    "vocab_size": 600,
    "num_layers": 3,
    "hidden_size": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "num_experts": 6,
    "top_k": 1,
    "expert_hidden_size": 4,
    "rope_theta": 5e3,
    "norm_eps": 1e-5,
    "gate": "sigmoid",
    "route_scale": 2.0,
    "selection_bias_rate": 0.01,
    "num_groups": 2,
    "top_k_groups": 2,
    "capacity_factor": 1.5,
    "num_shared_experts": 1,
    "num_dense_layers": 1,
    "dense_hidden_size": 12,
    "norm_placement": "post",
    "residual_base_layers": 2,
}
NEEDS = {  # what a field's other value goes with
    "top_k_groups": {"model__num_groups": 2},
    "num_dense_layers": {"model__dense_hidden_size": 8, "model__num_dense_layers": 2},
    "dense_hidden_size": {"model__dense_hidden_size": 8, "model__num_dense_layers": 1},
}
TRAIN = {
    "batch_size": 3,
    "seq_len": 16,
    "lr": 1e-3,
    "warmup_steps": 3,
    "schedule": "cosine",
    "weight_decay": 0.2,
    "beta1": 0.8,
    "beta2": 0.9,
    "eps": 1e-7,
    "grad_clip": 2.0,
    "load_balance_coef": 0.02,
    "z_loss_coef": 0.002,
    "precision": "bf16",
}
BRANCH = {  # fields that make another branch of the same trunk
    "method": "stack",
    "depth_factor": 3,
    "width_method": "none",
    "width_factor": 3,
    "noise_scale": 0.1,
    "optimizer_state": "copy",
    "warmup_steps": 7,
    "lr": 1e-3,
    "seed": 5,
    "keep_first": 1,
    "keep_last": 1,
    "layer_map": [0, 0, 1, 1, 1],
    "copies": "zeroed",
    "router_noise_scale": 0.2,
    "drop_fraction": 0.25,
    "then": {**tiny.composed("growth=width")["growth"], "after_extra_flops": 1e7},
}
for key in ("step", "optimizer_state", "warmup_steps", "lr", "seed"):
    del BRANCH["then"][key]
BRANCH_NEEDS = {
    "layer_map": {"growth__method": "layer_map", "growth__layer_map": [0, 1, 1]},
    "drop_fraction": {"growth__width_method": "drop_upcycle"},
}
THEN = {"after_extra_flops": 2e7, "optimizer_state": "copy", "warmup_steps": 7, "lr": 1e-3, "seed": 5}
LAUNCH = {
    "executor": "ray",
    "store": "elsewhere",
    "workers": 7,
    "threads": 3,
    "device": "cpu",
    "gpus_per_run": 0.5,
    "address": "auto",
    "max_attempts": 9,
    "keep_every": 7,
    "checkpoint_s": 1.5,
    "speed_file": "elsewhere",
    "fuse": 4,
}
LIMIT = {"max_flops": 1e6, "max_hours": 0.5}
TRACKING = {"name": "wandb", "mode": "online", "project": "other", "entity": "team"}


def test_no_field_is_without_a_class():
    for cls, values in (
        (ModelConfig, MODEL),
        (TrainConfig, TRAIN),
        (LaunchConfig, LAUNCH),
        (LimitConfig, LIMIT),
        (TrackingConfig, TRACKING),
    ):
        assert {f.name for f in dataclasses.fields(cls)} == set(values)
    assert {f.name for f in dataclasses.fields(GrowthConfig)} == {*BRANCH, "step"}
    own = {f.name for f in dataclasses.fields(ThenConfig)} - {
        f.name for f in dataclasses.fields(OperatorConfig)
    }
    assert own == {*THEN, "then"}
    assert {f.name for f in dataclasses.fields(TrunkConfig)} == {
        "steps",
        "decay_from",
        "source",
        "sunk_flops",
    }
    assert {f.name for f in dataclasses.fields(BudgetConfig)} == {
        "extra_flops",
        "total_flops",
        "decay_fraction",
    }
    assert {f.name for f in dataclasses.fields(EvaluateConfig)} == {
        "items",
        "probe_items",
        "probe_every",
        "families",
        "context_length",
        "continuation_length",
    }


@pytest.mark.parametrize(("section", "field", "value"), [
    *(("model", field, value) for field, value in MODEL.items()),
    *(("train", field, value) for field, value in TRAIN.items()),
])  # fmt: skip
def test_every_science_field_changes_the_id(section, field, value):
    more = {"budget__decay_fraction": 0.0, **NEEDS.get(field, {})}
    more |= {"growth__width_method": "none", "growth__method": "interposition"}  # which suits all of them
    before = tiny.cell(**more)
    after = tiny.cell(**(more | {f"{section}__{field}": value}))
    assert before.trunk.id != after.trunk.id
    assert before.leaf.trajectory.id != after.leaf.trajectory.id


def test_seed_and_world_seed_change_the_id():
    assert len({tiny.cell(**kw).trunk.id for kw in ({}, {"seed": 1}, {"data__world_seed": 1})}) == 3


def another(section, field):
    """A configuration whose one data field differs, legally."""
    value = section[field]
    for other in (value + 1, value - 1, value * 2, value / 2) if not isinstance(value, int) else (
        value + 1, value - 1, value * 2, value // 2
    ):  # fmt: skip
        try:
            return tiny.cell(**{f"data__{field}": other})
        except ValueError:
            continue
    raise AssertionError(f"no other legal value of data.{field} was found")


def test_every_field_of_the_data_changes_the_id():
    section = tiny.mapping()["data"]
    shares = [name for name in section if name.startswith("share_")]
    fields = [f.name for f in dataclasses.fields(WorldConfig) if f.name not in ("source", *shares)]
    swapped = {f"data__{a}": section[b] for a, b in zip(shares[:2], shares[1::-1], strict=True)}
    cells = [tiny.cell(), tiny.cell(**swapped), *(another(section, field) for field in fields)]
    assert len({cell.trunk.id for cell in cells}) == 2 + len(fields)


@pytest.mark.parametrize(("field", "value"), BRANCH.items())
def test_sweeping_the_growth_shares_one_trunk(field, value):
    needs = BRANCH_NEEDS.get(field, {})
    before, after = tiny.cell(**needs), tiny.cell(**(needs | {f"growth__{field}": value}))
    assert before.trunk.id == after.trunk.id
    assert before.leaf.trajectory.id != after.leaf.trajectory.id


@pytest.mark.parametrize(("field", "value"), THEN.items())
def test_sweeping_a_further_growth_shares_the_branch_before_it(field, value):
    first = {"growth__then__after_extra_flops": 1e7}
    before, after = (
        tiny.cell("growth=chain", **(first | more)) for more in ({}, {f"growth__then__{field}": value})
    )
    assert before.start.trajectory.id == after.start.trajectory.id
    assert before.leaf.trajectory.id != after.leaf.trajectory.id


@pytest.mark.parametrize(("field", "value"), [
    *(("launch__" + field, value) for field, value in LAUNCH.items()),
    *(("budget__" + field, value) for field, value in LIMIT.items()),
    *(("tracking__" + field, value) for field, value in TRACKING.items()),
    ("study_name", "other"),
])  # fmt: skip
def test_launch_options_never_change_an_id(field, value):
    before, after = tiny.cell(), tiny.cell(**{field: value})
    assert list(all_cells([before])) == list(all_cells([after]))


def test_horizons_and_growth_steps_are_taps():
    a = tiny.cell(budget__extra_flops=4e7, budget__decay_fraction=0.0)
    b = tiny.cell(budget__extra_flops=8e7, budget__decay_fraction=0.0)
    assert a.leaf.trajectory.id == b.leaf.trajectory.id
    assert a.id != b.id
    assert tiny.cell(growth__step=4).trunk.id == tiny.cell(trunk__steps=99).trunk.id


def test_the_evaluation_changes_the_cell_and_nothing_that_is_trained():
    a, b = tiny.cell(), tiny.cell(evaluate__items=32)
    assert a.leaf.trajectory.id == b.leaf.trajectory.id
    assert a.id != b.id


def test_fields_without_effect_do_not_make_another_id():
    depth = ("growth=depth",)
    assert tiny.cell(*depth, growth__noise_scale=0.5).id == tiny.cell(*depth, growth__noise_scale=0).id
    assert tiny.cell(*depth, growth__width_factor=9).id == tiny.cell(*depth).id
    assert tiny.cell(growth__noise_scale=0.0, growth__seed=4).id == tiny.cell(growth__noise_scale=0).id
    assert tiny.cell(growth__lr=4e-3).id == tiny.cell().id  # null means train.lr
    a = tiny.cell(*depth, growth__optimizer_state="rescale")
    assert a.id == tiny.cell(*depth, growth__optimizer_state="copy").id


def test_where_a_corpus_lies_is_no_part_of_an_id(tmp_path):
    ids = set()
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        for i in range(40):
            (folder / f"{i}.txt").write_text(f"document {i} " * 200)
        ids.add(tiny.cell("data=text", data__path=str(folder), evaluate__items=4, evaluate__probe_items=4).id)
    assert len(ids) == 1


def test_golden_ids():
    """Ids are addresses of stored work: these two change only with a VERSION or a new default language."""
    cell = resolve(parse_sweep(tiny.composed()))
    assert (cell.trunk.id, cell.start.trajectory.id) == ("4e3324dd1396", "ddb6070e8461")
