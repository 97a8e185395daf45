"""One task at a time through the store: resume, kill, corruption, locks. All on real tiny training."""

import dataclasses
import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import tiny

from moe.evaluate import Suite
from moe.files import append_lines, read_json
from sweeps.outcome import Order, Reading, Result, WorkerOptions
from sweeps.store import Store
from sweeps.study import Refused, run_study
from sweeps.worker import is_done, perform


def make_options(root: str, alive: Path, **more) -> WorkerOptions:
    alive.touch()
    settings = {
        "store": root,
        "device": "cpu",
        "threads": 1,
        "keep_every": 1000,
        "checkpoint_s": 1e9,
        "alive": str(alive),
        "git_commit": None,
    }
    return WorkerOptions(**{**settings, **more})


def suite(name: str, num_items: int) -> Suite:
    return Suite(name=name, eval_id=name, questions=tiny.questions(num_items))


def order(trajectory, step, evaluations=()) -> Order:
    return Order(
        task_id=f"{trajectory.id}@{step}",
        trajectory_id=trajectory.id,
        step=step,
        evaluations=tuple(evaluations),
        reading=Reading(probe=suite("probe", 8), probe_every=4),
    )


@pytest.fixture
def trunk(store_root, tmp_path):
    """A prepared store, its trunk, and a function that does orders on it."""
    store, trajectory = Store(store_root), tiny.cell().trunk
    store.prepare()
    store.add(trajectory)

    def do(step, evaluations=(), **more):
        return perform(
            order(trajectory, step, evaluations), make_options(store_root, tmp_path / "alive", **more)
        )

    return store, trajectory, do


def science(folder: Path) -> dict[str, bytes]:
    """The bytes that must not depend on how a run was interrupted."""
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    paths = [path for name in names for path in folder.glob(f"states/step_*/{name}")]
    paths += [folder / "metrics.jsonl", folder / "evals.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_task_stores_its_state_lines_and_evaluations(trunk):
    store, trajectory, do = trunk
    assert do(6, [suite("full", 16)]).result is Result.DONE
    assert store.stored_steps(trajectory.id) == [6]
    assert [line["step"] for line in store.metrics(trajectory.id)] == list(range(1, 7))
    assert store.evaluated(trajectory.id) == {(4, "probe"), (6, "full")}
    assert store.wall_s(trajectory.id) > 0


def test_a_stopped_task_saves_and_goes_on_bit_for_bit(trunk, tmp_path):
    store, trajectory, do = trunk
    do(9, [suite("full", 16)])
    whole = science(store.folder(trajectory.id))
    shutil.rmtree(store.root)
    store = Store(store.root)
    store.prepare()
    store.add(trajectory)
    missing = make_options(str(store.root), tmp_path / "other")
    Path(missing.alive).unlink()
    assert perform(order(trajectory, 9, [suite("full", 16)]), missing).result is Result.STOPPED
    assert store.stored_steps(trajectory.id) == [1]
    assert do(9, [suite("full", 16)]).result is Result.DONE
    assert science(store.folder(trajectory.id)) == whole  # the checkpoint at 1 is gone, too


def test_checkpoints_by_the_clock_leave_no_trace(trunk):
    store, trajectory, do = trunk
    do(5, checkpoint_s=0)
    assert store.stored_steps(trajectory.id) == [5]


def test_a_checkpoint_that_becomes_a_tap_stays(trunk, tmp_path):
    store, trajectory, do = trunk
    stop = make_options(str(store.root), tmp_path / "gone")
    Path(stop.alive).unlink()
    perform(order(trajectory, 9), stop)
    do(1, [suite("full", 16)])
    do(3)
    assert store.stored_steps(trajectory.id) == [1, 3]
    assert read_json(store.state_folder(trajectory.id, 1) / "DONE.json")["transient"] is False


def test_a_checkpoint_that_was_to_be_replaced_when_the_run_died_is_swept_up(trunk):
    store, trajectory, do = trunk
    do(3)
    do(6)
    done = store.state_folder(trajectory.id, 3) / "DONE.json"
    done.write_text(json.dumps(read_json(done) | {"transient": True}))
    do(6, [suite("full", 16)])
    assert store.stored_steps(trajectory.id) == [6]


def test_a_state_that_lost_its_lines_is_set_aside_and_both_are_derived_again(trunk):
    store, trajectory, do = trunk
    for step in (3, 6, 9):
        do(step)
    whole, path = science(store.folder(trajectory.id)), store.folder(trajectory.id) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], lines[4][:20] + "\n", *lines[5:]]))
    outcome = do(9)
    assert outcome.result is Result.DONE
    assert "no line of metrics for step 5" in outcome.warnings[0]
    again = science(store.folder(trajectory.id))
    assert again.items() <= whole.items()
    assert {"metrics.jsonl", "states/step_00000009/optimizer.safetensors"} <= again.keys()


@pytest.mark.parametrize("content", ["", "{", '{"sha256": 3}'])
def test_a_state_whose_digests_are_unreadable_is_corrupt(trunk, content):
    store, trajectory, do = trunk
    do(3)
    do(6)
    (store.state_folder(trajectory.id, 6) / "DONE.json").write_text(content)
    outcome = do(6, [suite("full", 16)])
    assert outcome.result is Result.DONE, outcome.error
    assert "DONE.json is not what was written; set aside" in outcome.warnings[0]


def test_a_step_that_another_run_waits_for_is_stored_on_the_way(trunk):
    store, trajectory, do = trunk
    with store.writing(trajectory.id):
        assert do(5).result is Result.BUSY
    do(9)
    assert store.stored_steps(trajectory.id) == [5, 9]
    assert do(5).trained_flops == 0
    assert not list(store.wanted_folder(trajectory.id).iterdir())


def test_what_the_store_holds_is_done_whatever_became_of_the_worker(trunk):
    store, trajectory, do = trunk
    asked = order(trajectory, 8, [suite("probe", 8)])
    assert not is_done(asked, str(store.root))
    do(8, [suite("probe", 8)])
    assert is_done(asked, str(store.root))
    assert not is_done(order(trajectory, 8, [suite("full", 16)]), str(store.root))
    assert not is_done(order(trajectory, 9), str(store.root))


def test_an_attempt_keeps_a_log_of_its_beginning_and_its_end(trunk):
    store, trajectory, do = trunk
    do(3)
    begins, ends = (store.folder(trajectory.id) / "attempts/01/log.txt").read_text().splitlines()
    assert begins.endswith(f"{trajectory.id}@3 begins on cpu, 1 threads")
    assert f"{trajectory.id}@3 done: 3 steps in " in ends


def test_a_worker_whose_store_is_no_longer_one_fails_and_does_not_raise(trunk):
    store, _, do = trunk
    (store.root / "store.json").write_text("{")
    outcome = do(3)
    assert outcome.result is Result.FAILED
    assert "store.json is not a store's" in outcome.error


def test_trunks_keep_states_at_the_stated_interval(trunk):
    store, trajectory, do = trunk
    do(7, keep_every=3)
    assert store.stored_steps(trajectory.id) == [3, 6, 7]


def test_a_rewind_writes_its_state_and_nothing_else_and_sees_the_same_losses(trunk):
    store, trajectory, do = trunk
    do(2)
    do(8)
    before = (store.folder(trajectory.id) / "metrics.jsonl").read_bytes()
    outcome = do(5)
    assert (outcome.result, outcome.warnings) == (Result.DONE, ())
    assert outcome.trained_flops == pytest.approx(3 * trajectory.flops_per_step)
    assert store.stored_steps(trajectory.id) == [2, 5, 8]
    assert (store.folder(trajectory.id) / "metrics.jsonl").read_bytes() == before


def test_a_rewind_that_sees_other_losses_says_so(trunk):
    store, trajectory, do = trunk
    do(2)
    do(8)
    path = store.folder(trajectory.id) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss":', '"loss":1'))
    assert "at step 3" in do(5).warnings[0]


def test_a_corrupt_state_is_set_aside_and_derived_again(trunk):
    store, trajectory, do = trunk
    do(3)
    do(6)
    whole = science(store.folder(trajectory.id))
    model = store.state_folder(trajectory.id, 6) / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-8] + b"harmed!!")
    outcome = do(6, [suite("full", 16)])
    assert outcome.result is Result.DONE
    assert "set aside" in outcome.warnings[0]
    again = science(store.folder(trajectory.id))
    assert again["states/step_00000006/model.safetensors"] == whole["states/step_00000006/model.safetensors"]
    assert again["metrics.jsonl"] == whole["metrics.jsonl"]


def grown_branch(root: str, tmp_path: Path, *stops: int) -> dict[str, bytes]:
    """A branch of 24 steps from a router with a selection bias, resumed from its states at `stops`."""
    fields = {"growth__noise_scale": 0.1, "growth__optimizer_state": "rescale", "budget__extra_flops": 1e9}
    cell = tiny.cell("growth=width", model__selection_bias_rate=0.01, model__gate="sigmoid", **fields)
    store, branch, alive = Store(root), cell.start.trajectory, tmp_path / "alive"
    store.prepare()
    store.add(branch)
    for trajectory, step in ((cell.trunk, cell.base.step), *((branch, s) for s in (0, *stops, 24))):
        assert perform(order(trajectory, step), make_options(root, alive)).result is Result.DONE
    folder = store.folder(branch.id)
    names = ("metrics.jsonl", "evals.jsonl", "states/growth.json", "states/moments_before.safetensors")
    last = [f"states/step_00000024/{name}.safetensors" for name in ("model", "optimizer")]
    return {name: (folder / name).read_bytes() for name in (*names, *last) if (folder / name).exists()}


def test_a_grown_branch_logs_its_twins_and_moments_and_resumes_to_the_same_bytes(tmp_path):
    calm = grown_branch(str(tmp_path / "a"), tmp_path)
    assert len(calm) == 6
    line = json.loads(calm["metrics.jsonl"].splitlines()[19])
    assert line["step"] == 20
    assert all(0 < d < 1 for d in line["twin_distance"])
    assert all(0 < rate <= 1 for rate in line["co_routing"])
    assert -1 <= line["first_moment_cosine"] <= 1
    assert 0 < line["second_moment_cosine"] <= 1
    assert grown_branch(str(tmp_path / "b"), tmp_path, 9, 17) == calm


def test_a_busy_trajectory_is_an_event_and_not_a_wait(trunk):
    store, trajectory, do = trunk
    with store.writing(trajectory.id):
        begin = time.monotonic()
        assert do(3).result is Result.BUSY
        assert time.monotonic() - begin < 5
    assert do(3).result is Result.DONE


def test_a_failing_task_keeps_its_traceback(trunk, monkeypatch):
    store, trajectory, do = trunk
    monkeypatch.setattr(
        "sweeps.derivation.Trainer", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no luck"))
    )
    outcome = do(3)
    assert outcome.result is Result.FAILED
    assert "RuntimeError: no luck" in outcome.error
    assert "no luck" in (store.folder(trajectory.id) / "attempts/01/error.txt").read_text()
    monkeypatch.undo()
    do(3)
    assert (store.folder(trajectory.id) / "attempts/02/timing.jsonl").exists()


def test_a_diverged_trajectory_is_a_result_that_is_kept(store_root, tmp_path):
    store, trajectory = Store(store_root), tiny.cell(train__lr=1e6).trunk
    store.prepare()
    store.add(trajectory)
    assert (
        perform(order(trajectory, 16), make_options(store_root, tmp_path / "alive")).result is Result.DIVERGED
    )
    assert 1 <= store.diverged(trajectory.id) <= 16
    assert store.metrics(trajectory.id)  # what was seen before it is kept


def test_a_state_below_the_last_is_derived_without_a_second_set_of_lines(trunk):
    """Whatever the plan thought: what is stored when the task runs decides."""
    store, trajectory, do = trunk
    for step in (3, 6, 9):
        do(step)
    whole = science(store.folder(trajectory.id))
    model = store.state_folder(trajectory.id, 6) / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-8] + b"harmed!!")
    do(6, [suite("full", 16)])
    again = science(store.folder(trajectory.id))
    assert again["states/step_00000006/model.safetensors"] == whole["states/step_00000006/model.safetensors"]
    assert again["metrics.jsonl"] == whole["metrics.jsonl"]
    assert [line["step"] for line in store.evals(trajectory.id)] == [4, 8, 6]


def test_what_was_asked_of_a_tap_outlives_its_state_and_is_not_asked_twice(trunk):
    store, trajectory, do = trunk
    do(4)
    do(6, [suite("probe", 8)])
    before = store.evals(trajectory.id)
    for step in (4, 6):
        shutil.rmtree(store.state_folder(trajectory.id, step))
    do(9)
    assert [line["step"] for line in before if "tap" in line] == [6]
    assert [(line["step"], "tap" in line) for line in store.evals(trajectory.id)] == [
        (6, True),
        (4, False),
        (8, False),
    ]
    assert {line["step"]: line["acc"] for line in before}.items() <= {
        line["step"]: line["acc"] for line in store.evals(trajectory.id)
    }.items()


def test_an_evaluation_alone_cuts_nothing(trunk):
    store, trajectory, do = trunk
    do(3)
    path = store.folder(trajectory.id) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step":4,"loss":9.0}\n')  # of a run that diverged later
    do(3, [suite("full", 16)])
    assert [line["step"] for line in store.metrics(trajectory.id)] == [1, 2, 3, 4]


def test_a_line_cut_short_is_dropped_before_anything_is_added(trunk):
    store, trajectory, do = trunk
    do(3)
    for name in ("metrics.jsonl", "evals.jsonl"):
        with (store.folder(trajectory.id) / name).open("a") as file:
            file.write('{"step":4,"eval_id":"su')
    do(3, [suite("full", 16)])
    assert store.evaluated(trajectory.id) == {(3, "full")}
    assert len(store.metrics(trajectory.id)) == 3


def test_lines_of_a_killed_run_beyond_its_last_state_are_written_once(trunk):
    store, trajectory, do = trunk
    do(9, [suite("full", 16)])
    whole = science(store.folder(trajectory.id))
    again = Store(store.root.with_name("again"))
    again.prepare()
    again.add(trajectory)
    folder = again.folder(trajectory.id)
    shutil.copytree(store.folder(trajectory.id), folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "states" / "step_00000009")  # killed after its lines and before its state
    lines = (folder / "evals.jsonl").read_text().splitlines(keepends=True)
    (folder / "evals.jsonl").write_text("".join(line for line in lines if "probe" in line))
    options = make_options(str(again.root), store.root.with_name("alive"))
    assert perform(order(trajectory, 9, [suite("full", 16)]), options).result is Result.DONE
    assert science(folder) == whole


def test_drafts_of_the_dead_are_swept_up(trunk):
    store, trajectory, do = trunk
    draft = store.folder(trajectory.id) / "states" / ".step_00000003.99999.draft"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    do(3)
    assert not list(store.folder(trajectory.id).glob("**/*.draft"))


def test_an_infinite_gradient_is_diverged_and_not_a_failure(store_root, tmp_path):
    store, trajectory = Store(store_root), tiny.cell(train__lr=1e38).trunk
    store.prepare()
    store.add(trajectory)
    outcome = perform(
        order(trajectory, 16, [suite("full", 16)]), make_options(store_root, tmp_path / "alive")
    )
    assert outcome.result is Result.DIVERGED


def test_a_refused_request_writes_nothing(tmp_path):
    with pytest.raises(Refused, match=r"growth.step=99"):
        run_study([tiny.mapping(launch__store=str(tmp_path / "store"), growth__step=99)])
    assert not (tmp_path / "store").exists()


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="store version 99, newer than"):
        Store(tmp_path)


def test_a_damaged_file_of_a_study_is_named_and_written_anew_by_the_next_run(tmp_path):
    mapping = tiny.mapping(launch__store=str(tmp_path), trunk__steps=4, growth__step=2, controls=[])
    run_study([mapping])
    for name in ("cells", "plan", "summary"):
        path = tmp_path / "studies" / "adhoc" / f"{name}.json"
        path.write_text(path.read_text()[:99])
        with pytest.raises(ValueError, match=f"{name}.json is damaged; run the study again"):
            Store(tmp_path).study("adhoc")
        assert run_study([mapping]).exit_code == 0
        assert Store(tmp_path).study("adhoc")[name]


def test_a_damaged_spec_is_named_and_written_anew(trunk):
    store, trajectory, do = trunk
    path = store.folder(trajectory.id) / "spec.json"
    path.write_text("")
    with pytest.raises(ValueError, match=r"spec.json is damaged"):
        Store(store.root).load(trajectory.id)
    Store(store.root).add(trajectory)
    assert Store(store.root).load(trajectory.id).id == trajectory.id
    assert do(3).result is Result.DONE


def test_lines_that_do_not_fit_on_the_disk_leave_none(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    append_lines(path, [{"step": 1}])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            append_lines(path, [{"step": 2}, {"step": 3}])
    append_lines(path, [{"step": 4}])
    assert path.read_text() == '{"step":1}\n{"step":4}\n'


def test_options_travel_as_plain_values():
    kinds = {str(field.type) for field in dataclasses.fields(WorkerOptions)}
    assert kinds <= {
        "<class 'str'>",
        "<class 'int'>",
        "<class 'float'>",
        "str | None",
        "tuple[str, int, int]",
    }
