"""`launch.fuse`: what is bundled, and that a store cannot tell. Real tiny sweeps, one on a real Ray."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
import tiny

from moe.evaluate import Suite
from moe.files import read_lines
from sweeps.config import parse_sweep
from sweeps.cost import schedule
from sweeps.execute import Status, execute
from sweeps.executors import Executors
from sweeps.fusion import bundles, described, fused_shape, most_alike
from sweeps.machine import machine
from sweeps.outcome import Order, Outcome, Reading, Result, WorkerOptions
from sweeps.plan import make_plan
from sweeps.speed import known_speeds, shape_of
from sweeps.store import Store
from sweeps.study import run_study
from sweeps.trajectory import Kind
from sweeps.worker import perform, perform_together

TOLERANCE = (
    1e-4  # nats over 24 steps; 1e-6, the last digit stored, is usual, and a choice of experts may turn
)


def trunks(*seeds: int, **fields):
    return [tiny.cell(seed=seed, **fields).trunk for seed in seeds]


def order(trajectory, step: int, probe_every: int = 4) -> Order:
    probe = Suite(name="probe", eval_id="probe", questions=tiny.questions(8))
    return Order(
        task_id=f"{trajectory.id}@{step}",
        trajectory_id=trajectory.id,
        step=step,
        evaluations=(probe,),
        reading=Reading(probe=probe, probe_every=probe_every),
    )


def options(root: str, alive: Path, **more) -> WorkerOptions:
    alive.touch()
    given = {"store": root, "device": "cpu", "threads": 1, "keep_every": 1000, "checkpoint_s": 1e9, "fuse": 3}
    return WorkerOptions(**{**given, "alive": str(alive), "git_commit": None, **more})


def prepared(root: str, *trajectories) -> Store:
    store = Store(root)
    store.prepare()
    store.add(*trajectories)
    return store


def losses(store: Store, trajectory) -> list[float]:
    return [line["loss"] for line in store.metrics(trajectory.id)]


def results(outcomes: list[Outcome]) -> list[Result]:
    return [outcome.result for outcome in outcomes]


# --------------------------------------------------------------------------------------------------------
# What is bundled


@pytest.fixture(scope="module")
def plan():
    """Two seeds of a trunk and its branches at two steps, with controls."""
    cells = [
        tiny.cell(seed=seed, growth__step=step, growth__method=method)
        for seed in (0, 1)
        for step in (4, 8)
        for method in ("stack", "interposition")
    ]
    return make_plan(cells, tiny.Nothing())


def test_a_bundle_is_of_one_shape_and_of_the_nearest_lengths():
    few = make_plan([tiny.cell(seed=seed, growth__step=4) for seed in range(3)], tiny.Nothing())
    more = make_plan([tiny.cell(seed=3, growth__step=8)], tiny.Nothing())
    other = make_plan([tiny.cell(seed=4, model__num_experts=8)], tiny.Nothing())
    most = make_plan([tiny.cell(seed=5, growth__step=9)], tiny.Nothing())
    a, b, c, d, e, f = (
        next(
            task
            for task in plan.tasks.values()
            if (task.trajectory.kind, task.trajectory.seed) == (Kind.TRUNK, seed)
        )
        for plan, seed in ((few, 0), (few, 1), (few, 2), (more, 3), (other, 4), (most, 5))
    )
    assert bundles([a], [d, e, b, c], fuse=3) == [[a, b, c]]
    assert bundles([a], [f, d, e, b, c], fuse=9) == [[a, b, c, d]]  # f takes more than twice as many steps
    assert bundles([f], [a, d], fuse=9) == [[f, d]]
    assert bundles([a, e], [b], fuse=3) == [[a, b], [e]]
    assert bundles([a, b], [c, d], fuse=3) == [[a, c], [b, d]]  # no worker is deeper than another needs to be
    assert bundles([a], [b], fuse=1) == [[a]]


def test_rewinds_and_what_trains_nothing_go_alone(plan):
    task = next(task for task in plan.tasks.values() if task.step > task.start)
    assert fused_shape(task) == shape_of(task.trajectory)
    assert fused_shape(dataclasses.replace(task, rewind=True)) is None
    assert fused_shape(dataclasses.replace(task, start=task.step)) is None


class Scripted:
    """Notes bundles; an order fails as often as it is told."""

    def __init__(self, slots, failing=()):
        self.slots, self.failing, self.seen, self.out = slots, list(failing), [], []

    def start(self): ...
    def close(self): ...

    def submit(self, orders):
        assert len(self.out) < self.slots
        self.seen.append([order.task_id for order in orders])
        self.out.append(self.seen[-1])

    def wait(self, timeout_s):
        outcomes = []
        for id in self.out.pop(0):
            failed = id in self.failing
            if failed:
                self.failing.remove(id)
            result = Result.FAILED if failed else Result.DONE
            outcomes.append(Outcome(task_id=id, result=result, error="boom" if failed else None))
        return outcomes


def drive(plan, executor, fuse):
    return execute(
        plan, executor, max_attempts=2, stopping=lambda: False, observe=lambda *given: None, fuse=fuse
    )


def test_every_task_is_done_once_and_bundles_are_no_larger_than_asked(plan):
    executor = Scripted(slots=1)
    execution = drive(plan, executor, fuse=3)
    assert set(execution.status.values()) == {Status.DONE}
    assert sorted(id for bundle in executor.seen for id in bundle) == sorted(plan.tasks)
    assert max(map(len, executor.seen)) == 3
    for bundle in executor.seen:
        assert len(bundle) == 1 or len({fused_shape(plan.tasks[id]) for id in bundle}) == 1


def test_no_worker_is_idle_because_tasks_were_bundled(plan):
    executor = Scripted(slots=2)
    drive(plan, executor, fuse=4)
    assert executor.seen[:2] == [[id] for id in sorted(executor.seen[0] + executor.seen[1])]  # the two trunks


def test_what_failed_in_a_bundle_is_tried_again_alone(plan):
    first = Scripted(slots=1)
    drive(plan, first, fuse=4)
    failing = first.seen[0][1]
    executor = Scripted(slots=1, failing=[failing])
    execution = drive(plan, executor, fuse=4)
    assert set(execution.status.values()) == {Status.DONE}
    assert executor.seen[0] == first.seen[0]
    assert [failing] in executor.seen


def test_a_bundle_takes_the_sum_of_its_shares(plan):
    seconds = dict.fromkeys(plan.tasks, 1.0)
    assert schedule(plan, seconds, 1, fuse=4) == pytest.approx(len(plan.tasks))
    assert schedule(plan, seconds, 1, fuse=1) == pytest.approx(len(plan.tasks))


def test_a_plan_says_what_could_be_fused_where_it_would_help(plan):
    assert most_alike(plan) == 10  # eight branches and two runs from scratch; their anneals follow them
    assert described(plan, 1, on_gpu=False) is None
    assert "launch.fuse=R: up to 10 runs of equal shape" in described(plan, 1, on_gpu=True)
    assert described(plan, 3, on_gpu=False) == "launch.fuse=3: up to 3 of 10 runs of equal shape at a time"


@pytest.mark.parametrize(("fields", "words"), [
    ({"launch__fuse": 0}, "launch.fuse=0 must be above 0"),
    ({"launch__fuse": 2, "launch__gpus_per_run": 2, "launch__executor": "ray"}, "set launch.fuse=1"),
])  # fmt: skip
def test_what_cannot_be_fused_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        parse_sweep(tiny.mapping(**fields))


# --------------------------------------------------------------------------------------------------------
# A bundle in a worker


def test_runs_of_different_lengths_end_each_at_its_own_step(store_root, tmp_path):
    runs = trunks(0, 1, 2)
    store = prepared(store_root, *runs)
    steps = (3, 9, 6)
    bundle = [order(run, step) for run, step in zip(runs, steps, strict=True)]
    outcomes = perform_together(bundle, options(store_root, tmp_path / "alive"))
    assert results(outcomes) == [Result.DONE] * 3
    assert [outcome.task_id for outcome in outcomes] == [each.task_id for each in bundle]
    alone = prepared(str(tmp_path / "alone"), *runs)
    for run, step, outcome in zip(runs, steps, outcomes, strict=True):
        assert perform(order(run, step), options(str(alone.root), tmp_path / "alive")).result is Result.DONE
        assert store.stored_steps(run.id) == [step]
        assert outcome.trained_flops == pytest.approx(step * run.flops_per_step)
        assert losses(store, run) == pytest.approx(losses(alone, run), abs=TOLERANCE)
        assert store.evaluated(run.id) == alone.evaluated(run.id)


def test_seconds_are_shares_that_add_up_and_say_so(store_root, tmp_path):
    runs = trunks(0, 1, 2)
    store = prepared(store_root, *runs)
    begin = time.perf_counter()
    outcomes = perform_together([order(run, 6) for run in runs], options(store_root, tmp_path / "alive"))
    whole_s = time.perf_counter() - begin
    assert 0.9 * whole_s < sum(outcome.wall_s for outcome in outcomes) <= whole_s
    lines = [read_lines(store.folder(run.id) / "attempts/01/timing.jsonl")[0] for run in runs]
    assert [line["fuse"] for line in lines] == [3] * 3
    assert all(0 < line["train_s"] < line["wall_s"] for line in lines)
    assert sum(line["train_s"] for line in lines) < whole_s


def test_fused_seconds_are_no_speed_of_runs_alone(store_root, tmp_path):
    runs = trunks(0, 1, 2)
    store = prepared(store_root, *runs)
    perform_together([order(run, 6) for run in runs], options(store_root, tmp_path / "alive"))

    def speeds(fuse):
        return speeds_of(runs[0], store, fuse)

    assert not speeds(1)
    assert speeds(3)
    perform(order(runs[0], 9), options(store_root, tmp_path / "alive", fuse=1))
    assert speeds(1)
    assert speeds(2) == speeds(1)  # none ran so: those of runs alone stand for it


def speeds_of(run, store: Store, fuse: int):
    place = dataclasses.make_dataclass("Place", ["machine", "slots"])(machine("cpu", 1), 1)
    launch = parse_sweep(tiny.mapping(launch__store=str(store.root), launch__fuse=fuse)).launch
    return known_speeds([shape_of(run)], store, launch, place)


def test_items_that_fused_tasks_asked_are_no_items_of_tasks_alone(store_root, tmp_path):
    (run,) = trunks(0)
    store = prepared(store_root, run)
    perform(order(run, 6), options(store_root, tmp_path / "alive"))
    without = dataclasses.replace(order(run, 9, probe_every=100), evaluations=())
    perform(without, options(store_root, tmp_path / "alive", fuse=1))
    assert speeds_of(run, store, 3)[shape_of(run)].item_s > 0
    assert speeds_of(run, store, 1)[shape_of(run)].item_s is None


def test_a_failing_run_harms_no_neighbour(store_root, tmp_path, monkeypatch):
    """One cannot read its data from step 4 on, one was corrupt, one is busy, one diverges."""
    runs = [*trunks(0, 1, 2, 3), *trunks(4, train__lr=1e6)]
    store = prepared(store_root, *runs)
    good, blind, corrupt, busy, wild = runs
    given = options(store_root, tmp_path / "alive")
    perform(order(corrupt, 3), given)
    (store.state_folder(corrupt.id, 3) / "model.safetensors").write_bytes(b"harmed")

    import sweeps.derivation

    original = sweeps.derivation.make_trainer

    def make_trainer(trajectory, *rest):
        trainer = original(trajectory, *rest)
        read = trainer.batches
        if trajectory.id == blind.id:
            trainer.batches = lambda step: read(step) if step < 4 else [][step]
        return trainer

    monkeypatch.setattr(sweeps.derivation, "make_trainer", make_trainer)
    with store.writing(busy.id):
        outcomes = perform_together([order(run, 16) for run in runs], given)
    assert results(outcomes) == [Result.DONE, Result.FAILED, Result.DONE, Result.BUSY, Result.DIVERGED]
    assert "IndexError" in outcomes[1].error
    assert "IndexError" in (store.folder(blind.id) / "attempts/01/error.txt").read_text()
    assert len(store.metrics(blind.id)) == 4  # what it learnt before is not lost
    assert "set aside" in outcomes[2].warnings[0]
    assert store.diverged(wild.id)
    for run in (good, corrupt):
        assert store.stored_steps(run.id) == [16]
        alone = prepared(str(tmp_path / run.id), run)
        perform(order(run, 16), options(str(alone.root), tmp_path / "alive"))
        assert losses(store, run) == pytest.approx(losses(alone, run), abs=TOLERANCE)


def test_a_step_that_fails_for_all_says_that_they_were_together(store_root, tmp_path, monkeypatch):
    runs = trunks(0, 1)
    prepared(store_root, *runs)
    monkeypatch.setattr("moe.bank.Bank._learn", lambda self, tokens: tokens[2])
    outcomes = perform_together([order(run, 4) for run in runs], options(store_root, tmp_path / "alive"))
    assert results(outcomes) == [Result.FAILED] * 2
    for outcome in outcomes:
        last = outcome.error.strip().splitlines()[-1]
        assert last == "RuntimeError: a step of 2 runs together failed (IndexError: list index out of range)"
        assert "_learn" in outcome.error


def test_a_stopped_bundle_saves_each_run_and_goes_on_alone(store_root, tmp_path):
    runs, alive = trunks(0, 1, 2), tmp_path / "alive"
    store = prepared(store_root, *runs)
    given = options(store_root, alive)
    alive.unlink()
    assert results(perform_together([order(run, 8) for run in runs], given)) == [Result.STOPPED] * 3
    assert [store.stored_steps(run.id) for run in runs] == [[1]] * 3
    alive.touch()
    assert perform(order(runs[0], 8), given).result is Result.DONE
    assert results(perform_together([order(run, 8) for run in runs[1:]], given)) == [Result.DONE] * 2
    for run in runs:
        alone = prepared(str(tmp_path / run.id), run)
        perform(order(run, 8), options(str(alone.root), alive))
        assert losses(store, run) == pytest.approx(losses(alone, run), abs=TOLERANCE)
        assert store.stored_steps(run.id) == [8]


def test_an_interrupted_bundle_lets_go_of_its_locks_and_keeps_its_lines(store_root, tmp_path, monkeypatch):
    runs = trunks(0, 1)
    store = prepared(store_root, *runs)
    from moe.bank import Bank

    original = Bank.advance

    def advance(self, tokens):
        if self.trainers[0].step == 5:
            raise KeyboardInterrupt
        return original(self, tokens)

    monkeypatch.setattr(Bank, "advance", advance)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        perform_together([order(run, 8) for run in runs], options(store_root, tmp_path / "alive"))
    for run in runs:
        assert len(losses(store, run)) == 5
        with store.writing(run.id):
            pass
    del interrupt  # its traceback held the runs until here: nothing was left to the garbage collector


# --------------------------------------------------------------------------------------------------------
# Whole sweeps


def mappings(root: Path, fuse: int, **fields):
    given = {"launch__store": str(root), "launch__fuse": fuse, **fields}
    return [tiny.mapping(seed=seed, growth__step=4, **given) for seed in (0, 1, 2)]


def files(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "drivers" not in path.parts
    }


def assert_alike(root: Path, calm: Path) -> None:
    """The same files, and in them the same numbers up to rounding."""
    assert files(root) == files(calm)
    for name in files(root):
        if name.endswith("spec.json"):
            ours, theirs = (json.loads((place / name).read_text()) for place in (root, calm))
            assert ours | {"created": ""} == theirs | {"created": ""}
        if name.endswith(("metrics.jsonl", "evals.jsonl")):
            ours, theirs = read_lines(root / name), read_lines(calm / name)
            assert [line.keys() for line in ours] == [line.keys() for line in theirs]
            assert [line["step"] for line in ours] == [line["step"] for line in theirs]
            assert [line["loss"] for line in ours] == pytest.approx(
                [line["loss"] for line in theirs], abs=TOLERANCE
            )


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    root = tmp_path_factory.mktemp("calm") / "store"
    assert run_study(mappings(root, 1)).exit_code == 0
    return root


def test_a_store_cannot_tell_whether_runs_were_fused(calm, tmp_path, capsys):
    root = tmp_path / "store"
    result = run_study(mappings(root, 3))
    assert [cell.status for cell in result.cells] == ["done"] * 3
    assert "fusion        launch.fuse=3: up to 3 of" in capsys.readouterr().out
    assert_alike(root, calm)
    again = run_study(mappings(root, 1))
    assert [cell.cell_id for cell in again.cells] == [cell.cell_id for cell in result.cells]
    assert Store(root).study("adhoc")["summary"]["spent_flops"] == 0


def test_a_killed_fused_sweep_goes_on_unfused(calm, tmp_path):
    root = tmp_path / "store"
    if (child := os.fork()) == 0:
        from moe.bank import Bank

        original, steps = Bank.advance, []

        def advance(self, tokens):
            steps.append(len(tokens))
            if len(steps) == 12:
                os._exit(9)
            return original(self, tokens)

        Bank.advance = advance
        run_study(mappings(root, 3, launch__checkpoint_s=1e-9))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert run_study(mappings(root, 1)).exit_code == 0
    names = {name for name in files(root) if name.endswith((".safetensors", ".jsonl"))}
    assert names == {name for name in files(calm) if name.endswith((".safetensors", ".jsonl"))}
    for name in names:
        if name.endswith("metrics.jsonl"):
            assert [line["loss"] for line in read_lines(root / name)] == pytest.approx(
                [line["loss"] for line in read_lines(calm / name)], abs=TOLERANCE
            )


def test_a_ray_worker_that_dies_with_a_bundle_fails_the_tasks_of_it_and_all_are_done(
    calm, tmp_path, monkeypatch
):
    import ray

    from sweeps.ray import RayExecutor

    root, kills, original = tmp_path / "store", [], RayExecutor.wait

    def wait(self, timeout_s):
        if not kills and any(root.glob("trajectories/*/attempts/01/log.txt")):
            kills.extend(order.task_id for order in self._busy[0].orders)
            ray.kill(self._busy[0].workers[0], no_restart=True)
        return original(self, timeout_s)

    monkeypatch.setattr(RayExecutor, "wait", wait)
    executors = Executors()
    try:
        result = run_study(mappings(root, 3, launch__executor="ray", launch__workers=1), executors)
    finally:
        executors.close()
    assert [cell.status for cell in result.cells] == ["done"] * 3
    assert len(kills) == 3
    errors = [path.read_text() for path in root.glob("trajectories/*/attempts/01/error.txt")]
    failed = {error.splitlines()[0] for error in errors}
    assert failed
    assert failed <= set(kills)  # what was stored by then is done
    for path in calm.glob("trajectories/*/metrics.jsonl"):
        name = path.relative_to(calm)
        assert [line["loss"] for line in read_lines(root / name)] == pytest.approx(
            [line["loss"] for line in read_lines(path)], abs=TOLERANCE
        )
