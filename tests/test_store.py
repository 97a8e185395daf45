"""The five questions a person asks the store, on a real tiny study; what is removed, and what never is."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from test_text import write_corpus

from moe.files import read_json, write_json
from moe.flops import train_flops_per_token
from sweeps.config import parse_sweep
from sweeps.plan import make_plan
from sweeps.store import Store
from sweeps.store.__main__ import main
from sweeps.store.explanation import explain
from sweeps.study import run_study

HOW = {"launch__keep_every": 2, "launch__checkpoint_s": 1e9, "evaluate__probe_every": 1000}
TINY = [f"{key}={value}" for key, value in tiny.SHRINK.items() if key != "growth.step"]


def study(root, *steps, **fields):
    return run_study([tiny.mapping(launch__store=str(root), growth__step=s, **HOW, **fields) for s in steps])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two studies of one trunk: `adhoc`, and `other`, which alone grows at step 6."""
    root = tmp_path_factory.mktemp("trained") / "store"
    assert study(root, 4, 8).exit_code == 0
    assert study(root, 6, study_name="other", controls=[]).exit_code == 0
    return root


@pytest.fixture
def root(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "store"))


def tree(root):
    paths = (path for path in Path(root).rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def asked(capsys, *words):
    """The JSON answer to a question."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def told(capsys, *words, code=0):
    """What is printed, as one line of words, so that no test depends on where lines break."""
    assert main([*map(str, words)]) == code
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def only(root, pattern):
    (path,) = Path(root).glob(pattern)
    return path


def trunk_id(**fields):
    return tiny.cell(**fields).trunk.id


# -- ls ------------------------------------------------------------------------------------------------------


def test_ls_lists_every_study_and_every_byte_of_every_trajectory(trained, capsys):
    found = asked(capsys, "ls", "--store", trained)
    assert [(row["study"], row["cells"], row["done"]) for row in found["studies"]] == [
        ("adhoc", 5, 5),
        ("other", 1, 1),
    ]
    files = [path for path in trained.glob("trajectories/*/**/*") if path.is_file()]
    assert sum(row["bytes"] for row in found["trajectories"]) == sum(path.stat().st_size for path in files)
    trunk = next(row for row in found["trajectories"] if row["kind"] == "trunk")
    assert trunk["studies"] == ["adhoc", "other"]
    assert trunk["steps"] == Store(trained).stored_steps(trunk["trajectory_id"])


def test_ls_of_a_study_lists_its_cells_with_their_final_accuracy(trained, capsys):
    cells = asked(capsys, "ls", "adhoc", "--store", trained)
    again = study(trained, 4, 8).cells  # all cached
    accuracies = {cell["cell_id"]: cell["final_acc"] for cell in cells}
    assert len(cells) == 5
    assert {cell.cell_id: cell.final_acc for cell in again}.items() <= accuracies.items()


def test_tables_stay_within_a_hundred_columns_and_lose_no_id(trained, capsys):
    for words in (["ls"], ["ls", "adhoc"], ["show", trunk_id()]):
        assert main([*words, "--store", str(trained)]) == 0
        out = capsys.readouterr().out
        assert max(len(line) for line in out.splitlines() if str(trained) not in line) <= 100
        assert trunk_id() in out or words == ["ls", "adhoc"]


# -- show ----------------------------------------------------------------------------------------------------


def test_the_ledger_of_a_cell_adds_up_to_its_total_flops(trained, capsys):
    for cell in Store(trained).study("adhoc")["cells"]["cells"]:
        ledger = asked(capsys, "show", cell["cell_id"], "--store", trained)["ledger"]
        assert ledger[-1]["cumulative_flops"] == pytest.approx(cell["total_flops"])
        assert sum(part["tokens"] for part in ledger) == cell["tokens"]
        assert ledger[0]["operator"] == "init"
    config = parse_sweep(tiny.mapping())
    per_step = 64 * train_flops_per_token(config.model, config.train.seq_len)
    assert ledger[0]["flops"] == pytest.approx(ledger[0]["steps"] * per_step)


def test_show_gives_the_states_evaluations_and_studies_of_an_address(trained, capsys):
    found = asked(capsys, "show", f"{trunk_id()[:6]}@6", "--store", trained)
    assert [state["step"] for state in found["states"]] == [6]
    (line,) = [line for line in Store(trained).evals(trunk_id()) if line["step"] == 6]
    assert [e["acc"] for e in found["evaluations"]] == [line["acc"]]
    assert found["studies"] == {"other": 1}
    assert found["wall_s"] == pytest.approx(sum(attempt["wall_s"] for attempt in found["attempts"]))


def test_a_prefix_is_enough_where_it_fits_one_id_only(root, capsys):
    whole = trunk_id()
    assert asked(capsys, "show", whole[:8], "--store", root)["trajectory_id"] == whole
    folder = only(root, "trajectories/trunk-*")
    shutil.copytree(folder, folder.with_name(f"trunk-twin-{whole[:8]}0000"))
    assert f"beginning of 2 ids: {whole[:8]}" in told(capsys, "show", whole[:8], "--store", root, code=2)


@pytest.mark.parametrize(("words", "message"), [
    (["show", "zz"], "'zz' is no id"),
    (["show", "0000000"], "nothing whose id begins with 0000000"),
    (["show", "TRUNK@99"], "the trajectory has come to step 15"),
    (["ls", "nowhere"], "study=nowhere is not in"),
    (["why", "study=quickstart,language"], "study cannot be swept"),
    (["why", "growth.stpe=4"], "stpe"),
    (["why", "growth.step=99", "trunk.steps=16"], "growth.step=99 is beyond trunk.steps=16"),
])  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused_in_one_line(trained, capsys, words, message):
    words = [word.replace("TRUNK", trunk_id()) for word in words]
    place = [] if words[0] == "why" else ["--store", str(trained)]
    assert main([*words, *place]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refused: ")
    assert err.count("\n") == 1
    assert message in err


def test_what_is_no_store_is_refused(tmp_path, capsys):
    for command in ("ls", "verify", "gc"):
        assert "is no store" in told(capsys, command, "--store", tmp_path, code=2)
    assert not list(tmp_path.iterdir())


# -- why -----------------------------------------------------------------------------------------------------


def test_a_cell_that_is_cached_is_said_to_be_and_nothing_is_written(trained, capsys):
    before = tree(trained)
    given = ["why", *TINY, f"launch.store={trained}"]
    assert "Everything is cached" in told(capsys, *given, "-m", "growth.step=4,8")
    text = told(capsys, *given, "growth.step=5", "growth.lr=0.5")
    assert "wanted stored" in text
    assert "learning_rate.peak 0.5 0.004" in text
    assert tree(trained) == before


def explained(root, **fields):
    cell = tiny.cell(**{"growth__step": 4, "launch__store": str(root), **fields})
    store = Store(root)
    return explain(store, make_plan([cell], store))


@pytest.mark.parametrize(("changed", "kind", "row"), [
    ({"train__beta2": 0.9}, "trunk", ("train.beta2", "0.9", "0.95")),
    ({"seed": 3}, "trunk", ("seed", "3", "0")),
    ({"growth__method": "stack"}, "branch", ("operator.method", '"stack"', '"interposition"')),
    ({"growth__lr": 0.5}, "branch", ("learning_rate.peak", "0.5", "0.004")),
    ({"growth__step": 5}, "branch", ("parent.step", "5", "4")),
    ({"growth__keep_first": 1}, "branch", ("operator.keep_first", "1", "–")),
])  # fmt: skip
def test_why_names_the_one_field_that_makes_a_trajectory_new(trained, changed, kind, row):
    (new,) = [new for new in explained(trained, **changed)["new"] if new["kind"] == kind]
    assert [tuple(field.values()) for field in new["diff"]] == [row]
    assert (new["kind"], new["nearest"].split("-")[0]) == (kind, kind)


def test_a_changed_suite_lacks_evaluations_only_and_says_which_there_are(trained):
    found = explained(trained, evaluate__items=20)
    lacks = [lack for cell in found["cells"] for lack in cell["missing"]]
    assert {(lack["role"], lack["lacks"]) for lack in lacks} == {("final", "evaluation")}
    assert all("64 items" in lack["evaluated_by"][0] for lack in lacks)
    assert found["new"] == []


def test_a_state_that_is_gone_is_missed_only_if_it_was_not_evaluated(root):
    for step in (4, 15):
        shutil.rmtree(Store(root).state_folder(trunk_id(), step))
    assert not any(cell["missing"] for cell in explained(root)["cells"])
    (only(root, "trajectories/trunk-*") / "evals.jsonl").unlink()
    lacks = [(lack["address"], lack["lacks"]) for c in explained(root)["cells"] for lack in c["missing"]]
    assert (f"{trunk_id()}@4", "state and evaluation") in lacks
    assert (f"{trunk_id()}@11", "evaluation") in lacks


def test_a_study_is_asked_about_by_its_name(tmp_path, capsys):
    text = told(capsys, "why", "study=quickstart", f"launch.store={tmp_path}/none", "growth.step=0,200")
    assert text.count(" cell to do") == 3  # at step 0 both methods are scratch
    assert "No trunk is stored" in text
    assert not list(tmp_path.iterdir())


# -- verify --------------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_id(path):
    write_json(path, {**read_json(path), "trajectory_id": "0" * 12})


def edit_identity(path):
    spec = read_json(path)
    write_json(path, {**spec, "identity": {**spec["identity"], "seed": 9}})


def twice(path):
    path.write_bytes(path.read_bytes() * 2)


def break_line(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2][:9] + b"\n", *lines[3:]]))


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


TRUNK, STATE = "trajectories/trunk-*", "trajectories/trunk-*/states/step_00000004"
FAULTS = {
    "a flipped bit": (f"{STATE}/model.safetensors", flip, "is not what was written"),
    "a truncated file": (f"{STATE}/optimizer.safetensors", truncate, "is not what was written"),
    "a file that is gone": (f"{STATE}/state.json", Path.unlink, "is missing"),
    "a DONE.json that is none": (f"{STATE}/DONE.json", truncate, "cannot be read"),
    "a state under another name": (STATE, lambda p: p.rename(p.with_name("step_00000005")), "of step 4"),
    "a line that does not parse": (f"{TRUNK}/metrics.jsonl", break_line, "line 3 does not parse"),
    "lines that are gone": (f"{TRUNK}/metrics.jsonl", Path.unlink, "ends before the stored step 15"),
    "an evaluation twice": (f"{TRUNK}/evals.jsonl", twice, "an evaluation is there twice"),
    "an evaluation that is gone": ("trajectories/anneal-*/evals.jsonl", Path.unlink, "has no evaluation"),
    "another identity": (f"{TRUNK}/spec.json", edit_identity, "is its digest"),
    "another id": (f"{TRUNK}/spec.json", edit_id, "000000000000 is what it says"),
    "a parent that is gone": (f"{TRUNK}/spec.json", Path.unlink, "holds no trajectory"),
    "a list of cells that is none": ("studies/adhoc/cells.json", truncate, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_every_fault_and_its_file(root, capsys, fault):
    pattern, break_it, message = FAULTS[fault]
    path = sorted(root.glob(pattern))[0]
    break_it(path)
    before = tree(root)
    text = told(capsys, "verify", "--store", root, code=1)
    assert message in text
    assert str(root) not in text.replace(f"{root} holds no", "")
    assert tree(root) == before


def test_verify_finds_nothing_in_what_a_kill_leaves_behind(root, capsys):
    trunk = only(root, TRUNK)
    with (trunk / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "lo')
    (trunk / "states" / ".step_00000016.1.draft").mkdir()
    (trunk / "states" / "step_00000016").mkdir()
    assert told(capsys, "verify", "--store", root) == "all that is stored is what was written"


# -- gc ------------------------------------------------------------------------------------------------------


def forget(root, name):
    shutil.rmtree(root / "studies" / name)


def test_a_dry_run_lists_and_removes_nothing(root, capsys):
    forget(root, "other")
    before = tree(root)
    text = told(capsys, "gc", "--store", root)
    assert "trajectory that no study names" in text
    assert "nothing was" in text
    assert tree(root) == before


def test_what_a_study_needs_survives_and_its_rerun_trains_nothing(root, capsys):
    store, before = Store(root), tree(root)
    cells = {cell["cell_id"]: cell for cell in store.study("adhoc")["cells"]["cells"]}
    forget(root, "other")
    told(capsys, "gc", "--delete", "--store", root)
    gone = {Path(path).parts[1] for path in set(before) - set(tree(root)) if "trajectories" in path}
    named = {id for cell in cells.values() for id, _ in cell["states"].values()}
    assert {name[-12:] for name in gone if not (root / "trajectories" / name).exists()}.isdisjoint(named)
    assert store.stored_steps(trunk_id()) == [4, 8, 11, 15]
    assert study(root, 4, 8).exit_code == 0
    assert Store(root).study("adhoc")["summary"]["spent_flops"] == 0
    capsys.readouterr()
    assert told(capsys, "verify", "--store", root) == "all that is stored is what was written"
    assert "Nothing to remove" in told(capsys, "gc", "--store", root)
    after = tree(root)
    assert all(
        after[path] == content for path, content in before.items() if path in after and "studies" not in path
    )


def test_states_between_stay_if_that_is_asked_for(root, capsys):
    forget(root, "other")
    told(capsys, "gc", "--delete", "--keep-between", "--store", root)
    assert Store(root).stored_steps(trunk_id()) == [2, 4, 6, 8, 10, 11, 12, 14, 15]
    assert not list(root.glob("trajectories/*-at6-*"))


def test_the_highest_state_stays_whatever_it_is_for(root, capsys):
    """The trunk of `other` alone: its cells need step 6, and training goes on from step 15."""
    forget(root, "adhoc")
    told(capsys, "gc", "--delete", "--store", root)
    assert Store(root).stored_steps(trunk_id()) == [6, 15]


def test_a_removed_trajectory_is_trained_again_to_the_same_bytes(root, capsys):
    before = tree(root)
    forget(root, "other")
    told(capsys, "gc", "--delete", "--store", root)
    assert study(root, 6, study_name="other", controls=[]).exit_code == 0
    after = tree(root)
    results = [path for path in before if path.endswith((".safetensors", "evals.jsonl")) and "-at6-" in path]
    assert len(results) >= 4
    assert all(after[path] == before[path] for path in results)


def test_what_was_left_behind_is_removed_and_half_a_trajectory_too(root, capsys):
    states = only(root, TRUNK) / "states"
    left = [states / ".corrupt-step_00000004-1", states / ".step_00000016.1.draft", states / "step_00000016"]
    left += [root / "trajectories" / "trunk-half-000000000000", root / "corpora" / ".0123456789ab.1.draft"]
    for path in left:
        path.mkdir(parents=True)
        (path / "file").write_text("bytes")
    assert "25 B would be removed" in told(capsys, "gc", "--keep-between", "--store", root)
    told(capsys, "gc", "--keep-between", "--delete", "--store", root)
    assert not any(path.exists() for path in left)


@contextlib.contextmanager
def held_by_another_process(path):
    code = f"""
import fcntl, sys
file = open({str(path)!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate()


def test_a_trajectory_whose_lock_is_held_stays(root, capsys):
    forget(root, "other")
    folders = list(root.glob("trajectories/*-at6-*"))
    with held_by_another_process(folders[0] / ".lock"):
        text = told(capsys, "gc", "--delete", "--store", root)
    assert f"kept trajectories/{folders[0].name}: another process holds its lock" in text
    assert [folder.exists() for folder in folders] == [True] + [False] * (len(folders) - 1)


@pytest.mark.parametrize(("host", "pid", "message"), [
    (socket.gethostname(), os.getpid(), "runs a study in"),
    ("elsewhere-7", 1, "is of a run on elsewhere-7"),
], ids=["here", "elsewhere"])  # fmt: skip
def test_nothing_is_removed_while_a_driver_may_be_at_work(root, capsys, host, pid, message):
    forget(root, "other")
    (root / "drivers" / f"{host}-{pid}.alive").touch()
    before = tree(root)
    assert message in told(capsys, "gc", "--delete", "--store", root, code=2)
    assert tree(root) == before


def test_the_alive_file_of_a_dead_driver_blocks_nothing(root, capsys):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    (root / "drivers" / f"{socket.gethostname()}-{process.pid}.alive").touch()
    assert "removed" in told(capsys, "gc", "--delete", "--store", root)


def test_a_corpus_stays_as_long_as_a_needed_trajectory_reads_it(tmp_path, capsys):
    root = tmp_path / "store"
    write_corpus(tmp_path / "text")
    fields = {"data__path": str(tmp_path / "text"), "launch__store": str(root), "controls": []}
    given = tiny.mapping("data=text", **fields)
    assert run_study([given]).exit_code == 0
    (corpus,) = [path for path in (root / "corpora").iterdir() if path.is_dir()]
    told(capsys, "gc", "--delete", "--store", root)
    assert "all that is stored" in told(capsys, "verify", "--store", root)
    truncate(next(corpus.glob("*.tokens")))
    assert "does not match the shards" in told(capsys, "verify", "--store", root, code=1)
    forget(root, "adhoc")
    told(capsys, "gc", "--delete", "--store", root)
    assert not corpus.exists()
    assert not Store(root).studies()
    assert not list(root.glob("trajectories/*/"))
