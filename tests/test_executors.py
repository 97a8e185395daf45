"""One contract for every executor: what the driver may rely on, serially and on a real Ray."""

import os
import signal
import time
from pathlib import Path

import pytest
import tiny
import torch

from sweeps.cell import resolve
from sweeps.config import parse_sweep
from sweeps.execute import Status, execute
from sweeps.executors import Executors
from sweeps.outcome import Outcome, Result
from sweeps.plan import make_plan
from sweeps.store import Busy, Store
from sweeps.study import Refused, run_study


def mappings(root: str, executor: str, **fields):
    fields = {"launch__store": root, "launch__executor": executor, "launch__workers": 2, **fields}
    methods = ("stack", "interposition")
    return [tiny.mapping(growth__step=s, growth__method=m, **fields) for s in (4, 8) for m in methods]


@pytest.fixture(scope="module")
def ray_executors():
    """One Ray for all tests of this module."""
    executors = Executors()
    yield executors
    executors.close()


def science(root: Path) -> dict[str, bytes]:
    paths = [p for p in root.glob("trajectories/*/**/*") if p.suffix in (".jsonl", ".safetensors")]
    return {str(p.relative_to(root)): p.read_bytes() for p in paths if "attempts" not in p.parts}


@pytest.fixture(scope="module")
def serial_store(tmp_path_factory):
    root = tmp_path_factory.mktemp("serial") / "store"
    assert run_study(mappings(str(root), "serial")).exit_code == 0
    return root


@pytest.fixture(scope="module")
def ray_store(tmp_path_factory, ray_executors):
    root = tmp_path_factory.mktemp("ray") / "store"
    assert run_study(mappings(str(root), "ray"), ray_executors).exit_code == 0
    return root


def test_ray_and_serial_store_the_same_bytes(serial_store, ray_store):
    assert science(serial_store) == science(ray_store)


@pytest.mark.parametrize("kind", ["serial", "ray"])
def test_a_rerun_trains_nothing_and_starts_no_executor(kind, request):
    root = request.getfixturevalue(f"{kind}_store")
    before = science(root)

    class Refusing(Executors):
        def get(self, launch):
            raise AssertionError("an executor was started for nothing")

    again = run_study(mappings(str(root), kind), Refusing())
    assert [cell.status for cell in again.cells] == ["done"] * 4
    assert science(root) == before
    summary = Store(root).study("adhoc")["summary"]
    assert summary["spent_flops"] == 0
    assert (summary["done"], summary["failed"]) == (0, 0)
    assert summary["cached"] == summary["runs"][0]["done"]


@pytest.mark.parametrize("kind", ["serial", "ray"])
def test_executed_flops_are_those_of_the_plan(kind, request):
    root = request.getfixturevalue(f"{kind}_store")
    study = Store(root).study("adhoc")
    first = study["summary"]["runs"][0]
    ideal = make_plan(
        [resolve(parse_sweep(m)) for m in mappings(str(root), kind)], tiny.Nothing()
    ).flops_shared
    assert first["spent_flops"] == pytest.approx(ideal)
    assert {row["status"] for row in study["cells"]["cells"]} == {"done"}


def test_a_dead_ray_worker_is_replaced_and_its_task_done_again(tmp_path, ray_executors, monkeypatch):
    """A worker is killed as soon as training has begun; the sweep ends as if nothing had happened."""
    import ray

    from sweeps.ray import RayExecutor

    root, calm, kills = tmp_path / "store", tmp_path / "calm", []
    more = {"trunk__steps": 40, "budget__extra_flops": 2e8, "controls": []}
    original = RayExecutor.wait

    def wait(self, timeout_s):
        if not kills and any(root.glob("trajectories/*/metrics.jsonl")):
            worker = self._busy[0].workers[0]
            kills.append(worker)
            ray.kill(worker, no_restart=True)
        return original(self, timeout_s)

    monkeypatch.setattr(RayExecutor, "wait", wait)
    result = run_study(mappings(str(root), "ray", **more), ray_executors)
    assert kills
    assert [cell.status for cell in result.cells] == ["done"] * 4
    (error,) = root.glob("trajectories/*/attempts/01/error.txt")
    assert f"the worker of {error.read_text().splitlines()[0]} died" in error.read_text()
    run_study(mappings(str(calm), "serial", **more))
    assert science(calm) == science(root)


class Scripted:
    """An executor that answers as it is told, one order at a time."""

    slots = 2

    def start(self):
        pass

    def __init__(self, answers):
        self.answers, self.orders, self.seen = answers, [], []

    def submit(self, orders):
        (order,) = orders
        self.orders.append(order)
        self.seen.append(order.task_id)

    def wait(self, timeout_s):
        order = self.orders.pop(0)
        answer = self.answers.get(order.task_id, [Result.DONE])
        result = answer.pop(0) if len(answer) > 1 else answer[0]
        return [
            Outcome(task_id=order.task_id, result=result, error="boom" if result is Result.FAILED else None)
        ]

    def close(self):
        pass


def drive(plan, answers, max_attempts=2, stopping=lambda: False):
    executor = Scripted(answers)
    execution = execute(plan, executor, max_attempts=max_attempts, stopping=stopping, observe=lambda *a: None)
    return execution, executor.seen


@pytest.fixture
def plan():
    cells = [tiny.cell(growth__step=s, growth__method=m) for s in (4, 8) for m in ("stack", "interposition")]
    return make_plan(cells, tiny.Nothing())


def test_no_task_is_handed_out_before_what_it_needs(plan):
    _, seen = drive(plan, {})
    place = {task_id: i for i, task_id in enumerate(seen)}
    assert set(seen) == set(plan.tasks)
    assert all(place[need] < place[task.id] for task in plan.tasks.values() for need in task.needs)


def test_a_failed_branch_stops_no_sibling(plan):
    cell = plan.requested[0]
    failing = str(cell.start)
    execution, seen = drive(plan, {failing: [Result.FAILED]})
    assert seen.count(failing) == 2  # launch.max_attempts
    assert execution.status[failing] is Status.FAILED
    assert execution.status[str(cell.leaf)] is Status.BLOCKED
    others = [str(other.leaf) for other in plan.requested[1:]]
    assert all(execution.status[leaf] is Status.DONE for leaf in others)


def test_an_attempt_that_succeeds_after_a_failure_counts(plan):
    leaf = str(plan.requested[0].leaf)
    execution, _ = drive(plan, {leaf: [Result.FAILED, Result.DONE]})
    assert execution.status[leaf] is Status.DONE
    (warning,) = execution.warnings
    assert warning == f"{leaf}: attempt 1 of 2 failed (boom); it is tried again"


def test_a_diverged_trunk_makes_what_depends_on_it_diverged(plan):
    trunk = plan.requested[0].trunk
    execution, _ = drive(plan, {f"{trunk.id}@8": [Result.DIVERGED]})
    assert execution.status[str(plan.requested[0].leaf)] is Status.DONE
    assert execution.status[str(plan.requested[2].leaf)] is Status.DIVERGED


def test_a_busy_trajectory_is_tried_again_later(plan, monkeypatch):
    monkeypatch.setattr("sweeps.execute.BUSY_RETRY_S", 0.0)
    leaf = str(plan.requested[0].leaf)
    execution, seen = drive(plan, {leaf: [Result.BUSY, Result.BUSY, Result.DONE]})
    assert execution.status[leaf] is Status.DONE
    assert seen.count(leaf) == 3


def test_stopping_hands_out_nothing_more(plan):
    execution, seen = drive(plan, {}, stopping=lambda: True)
    assert seen == []
    assert execution.stopped


def test_a_store_with_a_corrupt_state_that_is_needed_derives_it_again(tmp_path):
    root = str(tmp_path / "store")
    run_study(mappings(root, "serial", controls=[])[2:])
    store = Store(root)
    trunk = tiny.cell().trunk
    model = store.state_folder(trunk.id, 8) / "model.safetensors"
    model.write_bytes(b"not a model")
    wider = mappings(root, "serial", controls=[], growth__depth_factor=3)[2:]
    result = run_study(wider)
    assert [cell.status for cell in result.cells] == ["done"] * 2
    assert any("set aside" in warning for warning in Store(root).study("adhoc")["summary"]["warnings"])


def test_cells_of_two_languages_are_each_probed_with_their_own_suite(tmp_path):
    root = str(tmp_path / "store")
    fields = {"launch__store": root, "controls": []}
    result = run_study([tiny.mapping(data__world_seed=seed, **fields) for seed in (0, 1)])
    assert [cell.status for cell in result.cells] == ["done", "done"]
    store = Store(root)
    for row in store.study("adhoc")["cells"]["cells"]:
        probed = {line["eval_id"] for line in store.evals(row["trunk_id"]) if line["suite"] == "probe"}
        assert probed == {row["probe_eval_id"]}


def test_a_sweeper_that_asks_in_batches_may_repeat_itself(tmp_path):
    twice = mappings(str(tmp_path / "store"), "serial", controls=[])[:1] * 2
    with pytest.raises(Refused, match="the 2 requested cells are all one"):
        run_study(twice)
    assert run_study(twice, whole_grid=False).exit_code == 0


@pytest.mark.parametrize(("field", "value", "words"), [
    ("launch__address", "127.0.0.1:1", "nobody answers at"),
    ("launch__device", "cuda", "torch finds no GPU"),
    ("launch__gpus_per_run", 0.5, "runs go to the CPU here"),
])  # fmt: skip
def test_a_machine_that_is_not_there_is_refused_before_anything_is_written(tmp_path, field, value, words):
    if field != "launch__address" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(Refused, match=words):
        run_study(mappings(str(tmp_path / "store"), "ray", **{field: value}))
    assert not (tmp_path / "store").exists()


def test_a_locked_trajectory_is_busy_for_others(tmp_path):
    root = str(tmp_path / "store")
    store, trunk = Store(root), tiny.cell().trunk
    store.prepare()
    store.add(trunk)
    pid = os.fork()
    if pid == 0:
        with Store(root).writing(trunk.id):
            signal.pause()
        os._exit(0)
    try:
        time.sleep(0.5)
        with pytest.raises(Busy), store.writing(trunk.id):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with store.writing(trunk.id):
        pass
