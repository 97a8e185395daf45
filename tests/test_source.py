"""A sweep that starts from a checkpoint ends as one from the trunk it was, whatever its folder is called."""

import dataclasses
import shutil

import commands
import pytest
import tiny
import torch
from checkpoints import edit_config
from safetensors.torch import load_file, save_file

from analysis.curves import curves, trunk_curves
from moe.checkpoint import load_state, load_weights
from moe.config import LearningRate, Schedule
from moe.recycle.interchange import export_state
from sweeps.cell import data_json, resolve
from sweeps.config import parse_sweep
from sweeps.row import row
from sweeps.source import state_of
from sweeps.store import Store
from sweeps.store.lineage import ledger
from sweeps.store.verification import verify
from sweeps.study import Refused, run_study
from sweeps.trajectory import Kind, Source, Trajectory

GROW_AT = 4
COMMON = {
    "train__warmup_steps": 0,  # a trunk that starts from a state goes on at the rate it had
    "growth__optimizer_state": "copy",
    "budget__extra_flops": 2e7,
    "trunk__steps": 8,
    "controls": ["continued"],
}


def asked(store, **fields):
    return tiny.mapping(**(COMMON | {"launch__store": str(store)} | fields))


def cell_of(mapping):
    return resolve(parse_sweep(mapping))


def ran(*mappings):
    result = run_study(list(mappings))
    assert result.exit_code == 0
    return [cell_of(mapping) for mapping in mappings]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(store, cell) of a study that trains its trunk from random init and grows it at GROW_AT."""
    root = tmp_path_factory.mktemp("whole") / "store"
    (cell,) = ran(asked(root, growth__step=GROW_AT))
    return Store(root), cell


@pytest.fixture(scope="module")
def state(whole):
    store, cell = whole
    return store.state_folder(cell.trunk.id, GROW_AT)


@pytest.fixture(scope="module")
def exported(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export_state(state, folder)
    return folder


def tensors(store, address):
    state = load_state(store.state_folder(*address.key))
    return state.weights, state.moments.first, state.moments.second


def same(a, b):
    return all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def started(state, tmp_path_factory):
    """(store, cell) of a study that starts from that state and grows it at once."""
    root = tmp_path_factory.mktemp("started") / "store"
    (cell,) = ran(asked(root, trunk__source=str(state), growth__step=0))
    return Store(root), cell


def test_growing_a_state_of_ours_ends_as_growing_its_trunk_there(whole, started):
    (before, one), (after, other) = whole, started
    assert other.trunk.id != one.trunk.id
    assert other.trunk.data_start == GROW_AT
    for mine, its in ((other, one), (other.controls["continued"], one.controls["continued"])):
        assert same(tensors(after, mine.leaf), tensors(before, its.leaf))
        assert mine.total_flops == pytest.approx(its.total_flops)
    assert other.sunk_flops == one.sunk_flops == GROW_AT * one.trunk.flops_per_step
    assert other.extra_flops == pytest.approx(one.extra_flops)


def test_its_curves_lie_where_those_of_the_whole_trunk_lie(whole, started):
    columns = ["kind", "extra_flops", "source", "loss"]
    before, after = (curves(store, "adhoc") for store, _ in (whole, started))
    before, after = (c[c["extra_flops"] > 0][columns].sort_values(columns) for c in (before, after))
    assert set(after["kind"]) == {"branch", "continued"}
    assert after["extra_flops"].to_numpy() == pytest.approx(before["extra_flops"].to_numpy())
    assert list(after["loss"]) == list(before["loss"])
    sunk = started[1].sunk_flops
    trunk = trunk_curves(started[0], "adhoc")
    assert trunk.empty or trunk["flops"].min() >= sunk


def test_what_a_checkpoint_cost_is_sunk_and_none_of_it_is_trained_again(started):
    store, cell = started
    facts = row(cell, True)
    assert facts["source_flops"] == cell.sunk_flops
    assert facts["chinchilla_multiple"] is facts["paper_flops"] is None
    plan = store.study("adhoc")["plan"]
    trained = cell.extra_flops + cell.controls["continued"].leaf.trained_flops
    assert plan["flops_todo"] == pytest.approx(trained)
    assert plan["flops_naive"] == pytest.approx(trained)
    assert store.study("adhoc")["summary"]["spent_flops"] == pytest.approx(trained)
    parts = ledger(store.load(cell.leaf.trajectory.id), cell.leaf.step)
    assert parts[0]["operator"] == "source"
    assert parts[-1]["cumulative_flops"] == pytest.approx(cell.total_flops)


def test_a_total_budget_counts_what_was_sunk(state, tmp_path):
    one_step = tiny.cell().trunk.flops_per_step
    total = 30 * one_step
    fields = {"budget__extra_flops": None, "budget__total_flops": total, "growth__step": 2}
    cell = cell_of(asked(tmp_path, trunk__source=str(state), **fields))
    assert cell.sunk_flops == pytest.approx((GROW_AT + 2) * one_step)
    assert total - cell.leaf.trajectory.flops_per_step < cell.total_flops <= total


def test_the_tokens_go_on_only_where_the_stream_is_the_same(state, tmp_path):
    def start(**fields):
        return cell_of(asked(tmp_path, trunk__source=str(state), **fields)).trunk.data_start

    assert start() == GROW_AT
    assert start(seed=1) == start(train__batch_size=4) == start(data__world_seed=1) == 0


def test_a_states_place_is_no_part_of_an_id_and_neither_is_what_it_cost(whole, state, tmp_path):
    shutil.copytree(whole[0].root, tmp_path / "moved")
    moved = tmp_path / "moved" / state.relative_to(whole[0].root)
    cells = [
        cell_of(asked(tmp_path, trunk__source=str(folder), trunk__sunk_flops=cost))
        for folder, cost in ((state, None), (moved, None), (state, 1e9))
    ]
    assert len({cell.id for cell in cells}) == 1
    assert len({cell.sunk_flops for cell in cells}) == 2


def test_what_was_said_of_a_checkpoint_is_replaced_by_what_is_said_later(state, tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    for cost in (1e9, 2e9):
        trunk = cell_of(asked(tmp_path, trunk__source=str(state), trunk__sunk_flops=cost)).trunk
        Store(store.root).add(trunk)
        assert Store(store.root).load(trunk.id).at(0).flops == cost


def test_golden_id_of_a_trunk_that_starts_from_a_checkpoint():
    mapping = tiny.composed()
    config = parse_sweep(mapping)
    source = Source(sha256="0" * 64, has_moments=True, data_start=7, sunk_flops=1e9, path="anywhere")
    trunk = Trajectory(
        kind=Kind.TRUNK,
        model=config.model,
        data=data_json(config.data),
        train=config.train,
        seed=config.seed,
        learning_rate=LearningRate(schedule=Schedule.CONSTANT, peak=1e-3),
        source=source,
    )
    assert trunk.id == "7eacd968864c"
    for field, value in (("sha256", "1" * 64), ("has_moments", False), ("data_start", 8), ("version", 2)):
        other = dataclasses.replace(trunk, source=dataclasses.replace(source, **{field: value}))
        assert other.id != trunk.id
    for field, value in (("sunk_flops", 2e9), ("path", "elsewhere")):
        other = dataclasses.replace(trunk, source=dataclasses.replace(source, **{field: value}))
        assert other.id == trunk.id


def test_a_hugging_face_checkpoint_starts_with_its_weights_and_no_moments(exported, state, tmp_path):
    fields = {"trunk__source": str(exported), "trunk__sunk_flops": 5e8, "growth__step": 0}
    one, other, later = (
        asked(tmp_path / "store", **fields | {"growth__optimizer_state": rule, "growth__step": step})
        for rule, step in (("copy", 0), ("reset", 0), ("copy", 2))
    )
    assert cell_of(one).id == cell_of(other).id != cell_of(later).id
    (cell,) = ran(one)
    store = Store(tmp_path / "store")
    start = load_state(store.state_folder(cell.trunk.id, 0))
    weights = load_weights(state)
    assert all(torch.equal(start.weights[name], weights[name]) for name in weights)
    assert start.moments.step == len(start.moments.first) == 0
    assert cell.trunk.data_start == 0
    assert cell.sunk_flops == 5e8
    assert verify(store) == []
    assert cell_of(later).sunk_flops == 5e8 + 2 * cell.trunk.flops_per_step


def test_the_start_is_fetched_again_when_the_store_has_lost_it(state, tmp_path):
    root = tmp_path / "store"
    fields = {"trunk__source": str(state), "growth__step": 0, "controls": []}
    (cell,) = ran(asked(root, **fields))
    start = Store(root).state_folder(cell.trunk.id, 0)
    (start / "model.safetensors").write_bytes(b"damaged")
    (again,) = ran(asked(root, **fields, growth__seed=7))  # grows it again, and finds it damaged
    assert again.trunk.id == cell.trunk.id
    shutil.rmtree(start)
    ran(asked(root, **fields, growth__seed=8))
    assert same(tensors(Store(root), cell.trunk.at(0))[:1], (load_weights(state),))


def test_a_checkpoint_that_changes_after_planning_is_not_started_from(state, exported, tmp_path):
    for folder in (state, exported):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        cell = cell_of(asked(tmp_path, trunk__source=str(copy), trunk__sunk_flops=1e9))
        shutil.rmtree(copy)
        assert cell.trunk.source is not None
        with pytest.raises(ValueError, match="is no folder"):
            state_of(cell.trunk.source)
        shutil.copytree(folder, copy)
        weights = load_file(copy / "model.safetensors")
        next(iter(weights.values())).add_(1.0)
        save_file(weights, copy / "model.safetensors")
        with pytest.raises(ValueError, match=r"has changed since this study|is not what was written"):
            state_of(cell.trunk.source)


def test_the_command_starts_from_a_checkpoint_and_only_plans_if_asked(exported, tmp_path):
    fields = {**tiny.SHRINK, **{key.replace("__", "."): value for key, value in COMMON.items()}}
    del fields["launch.executor"]
    fields |= {"trunk.source": exported, "trunk.sunk_flops": 1.5e9, "growth.step": 0, "controls": "[]"}
    fields |= {"launch.store": tmp_path / "store", "hydra.run.dir": tmp_path}
    words = [str(tiny.ROOT / "sweep.py"), "launch=serial", *(f"{k}={v}" for k, v in fields.items())]
    planned = commands.run(*words, "+plan=only", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    said = " ".join(planned.stdout.split())
    assert "1.5e+09 FLOPs sunk, without optimizer moments; tokens from step 0" in said
    assert not (tmp_path / "store").exists()
    done = commands.run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (facts,) = Store(tmp_path / "store").study("adhoc")["cells"]["cells"]
    assert (facts["status"], facts["sunk_flops"], facts["growth_step"]) == ("done", 1.5e9, 0)
    refused = commands.run(*words, "model.num_layers=3", cwd=tmp_path)
    assert refused.returncode == 2
    assert "give model.num_layers=2" in refused.stderr


def test_tied_embeddings_are_untied_and_that_is_said(exported, tmp_path):
    tied = shutil.copytree(exported, tmp_path / "tied")
    edit_config(tied, tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="one matrix as embedding and head; here each has a copy of its own"):
        cell = cell_of(asked(tmp_path, trunk__source=str(tied), trunk__sunk_flops=1e9))
    assert cell.trunk.source is not None
    weights = state_of(cell.trunk.source).weights
    assert torch.equal(weights["head.weight"], weights["embedding.weight"])


def test_the_pages_command_plans_once_the_refusals_remedy_is_pasted(exported):
    page = (tiny.ROOT / "docs" / "checkpoints.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("python sweep.py"))
    words = [word.split(",")[0].replace("DIR", str(exported)) for word in line.split()[3:]]
    with pytest.raises(ValueError, match="give model") as refused:
        resolve(parse_sweep(tiny.composed(*words)))
    remedy = str(refused.value).rsplit("; give ", 1)[1].split()
    cell = resolve(parse_sweep(tiny.composed(*words, *remedy)))
    assert (cell.sunk_flops, cell.config.growth.step, cell.kind) == (2e15, 0, "branch")


def spoilt(folder, name, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with (copy / name).open("r+b") as file:
        file.truncate(200)
    return copy


@pytest.mark.parametrize(("fields", "words"), [
    ({"trunk__source": "nowhere"}, "trunk.source=nowhere is no folder; give a checkpoint's, or null"),
    ({"trunk__source": str(tiny.ROOT)}, "has neither config.json, as a Hugging Face checkpoint has, nor"),
    ({"trunk__sunk_flops": 1e9}, "there is none; give trunk.source=DIR, or set trunk.sunk_flops=null"),
    ({"trunk__source": "HF"}, "trunk.sunk_flops is missing: a Hugging Face checkpoint does not say"),
    ({"trunk__source": "HF", "trunk__sunk_flops": 0}, "trunk.sunk_flops=0.0 must be above 0"),
    ({"trunk__source": "HF", "trunk__sunk_flops": 1.0, "model__num_layers": 3, "model__gate": "softmax"},
     "model.num_layers=3, and trunk.source=HF has num_layers=2; "
     "give model.num_layers=2 model.gate=softmax_renormalised"),
    ({"trunk__source": "OWN", "model__top_k": 1}, "model.top_k=1, and trunk.source=OWN has top_k=2"),
    ({"trunk__source": "OWN", "data__num_nouns": 40}, "was trained on another vocabulary than that of data"),
    ({"trunk__source": "OUT"}, "trunk.sunk_flops is missing: a state outside its store does not say"),
    ({"trunk__source": "CUT"}, "optimizer.safetensors is not what was written"),
    ({"trunk__source": "MIXTRAL"}, "model_type 'mixtral' of config.json is no layout that our model"),
    ({"trunk__source": "TORN"}, "model.safetensors has no safetensors header; fetch it again"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(fields, words, exported, state, tmp_path):
    made = {
        "HF": lambda: exported,
        "OWN": lambda: state,
        "OUT": lambda: shutil.copytree(state, tmp_path / "step_00000004"),
        "CUT": lambda: spoilt(state, "optimizer.safetensors", tmp_path),
        "TORN": lambda: spoilt(exported, "model.safetensors", tmp_path),
        "MIXTRAL": lambda: shutil.copytree(exported, tmp_path / "mixtral"),
    }
    name = fields.get("trunk__source")
    if name in made:
        folder = made[name]()
        fields, words = fields | {"trunk__source": str(folder)}, words.replace(name, str(folder))
        if name == "MIXTRAL":
            edit_config(folder, model_type="mixtral")
    with pytest.raises(Refused) as refused:
        run_study([asked(tmp_path / "store", growth__step=0, **fields)])
    assert words in str(refused.value)
    assert str(refused.value).startswith(("trunk.", "model."))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()
