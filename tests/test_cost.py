"""What a plan will cost: seconds from measured speeds, the driver's own scheduling, limits that refuse."""

import json

import pytest
import tiny

from sweeps.cell import resolve
from sweeps.config import parse_sweep
from sweeps.cost import num_items, predict, schedule, task_seconds
from sweeps.machine import machine, place_of
from sweeps.plan import make_plan
from sweeps.speed import Speed, keep_speed, keep_start, known_speeds, known_start_s, shape_of
from sweeps.store import Store
from sweeps.study import Refused, run_study
from sweeps.trajectory import Kind


def planned(*steps, **fields):
    fields = {"growth__step": 8, **fields}
    return make_plan([tiny.cell(**(fields | {"growth__step": step})) for step in steps], tiny.Nothing())


def shapes(plan):
    return {shape_of(task.trajectory) for task in plan.tasks.values()}


def alike(plan, **fields):
    speed = Speed(**({"flops_per_s": 1e6, "item_s": 0.01, "task_s": 0.5} | fields))
    return dict.fromkeys(shapes(plan), speed)


def test_one_worker_takes_the_sum_and_many_the_longest_path():
    plan = planned(4, 8, 16)
    seconds = {task_id: 1.0 + i for i, task_id in enumerate(plan.tasks)}
    longest = {}
    for id in sorted(plan.tasks, key=lambda id: depth(plan, id)):
        needs = [longest[need] for need in plan.tasks[id].needs]
        longest[id] = seconds[id] + max(needs, default=0.0)
    assert schedule(plan, seconds, 1) == pytest.approx(sum(seconds.values()))
    assert schedule(plan, seconds, 1000) == pytest.approx(max(longest.values()))
    two = schedule(plan, seconds, 2)
    assert max(*longest.values(), sum(seconds.values()) / 2) <= two < sum(seconds.values())


def depth(plan, task_id):
    return 1 + max((depth(plan, need) for need in plan.tasks[task_id].needs), default=0)


def test_a_branch_is_predicted_to_train_beside_its_trunk():
    """Trunk to 4, then to 16; the branch of 4 takes as long as the rest of the trunk."""
    plan = planned(4, 16, controls=[], budget__decay_fraction=0.0)
    seconds = {id: 3.0 if task.trajectory.kind is Kind.TRUNK else 1.5 for id, task in plan.tasks.items()}
    branches = [task for task in plan.tasks.values() if task.trajectory.kind is Kind.BRANCH]
    assert len(branches) == 4  # each is grown, then trained
    assert schedule(plan, seconds, 2) == 3 + 3 + 1.5 + 1.5


def test_a_task_is_its_steps_its_evaluations_and_a_rest():
    plan = planned(8, controls=[], evaluate__probe_every=4)
    trunk = next(task for task in plan.tasks.values() if task.trajectory.kind is Kind.TRUNK)
    families = len(trunk.reading.probe.questions.families)
    assert num_items(trunk) == 2 * 8 * families  # probes at 4 and 8; the one at 8 is the tap's own
    speed = Speed(flops_per_s=2e6, item_s=0.25, task_s=3.0)
    expected = 3.0 + 8 * trunk.trajectory.flops_per_step / 2e6 + 0.25 * num_items(trunk)
    assert task_seconds(trunk, speed) == pytest.approx(expected)


def test_items_that_are_predicted_are_items_that_are_asked(store_root):
    run_study([tiny.mapping(growth__step=6, launch__store=store_root)])
    store, plan = Store(store_root), planned(6)
    asked = sum(
        family["n"]
        for id in plan.trajectories
        for line in store.evals(id)
        for family in line["families"].values()
    )
    assert sum(map(num_items, plan.tasks.values())) == asked > 0


def test_the_start_of_workers_and_gpu_hours_are_counted():
    plan = planned(8)
    speeds = alike(plan)
    none = predict(plan, speeds, slots=1, gpus_per_run=0.0, start_s=0.0)
    some = predict(plan, speeds, slots=1, gpus_per_run=0.5, start_s=7.0)
    assert some.wall_s == pytest.approx(none.wall_s + 7.0)
    assert some.gpu_hours == pytest.approx(none.wall_s * 0.5 / 3600)
    assert (none.gpu_hours, none.leaves_out) == (None, ())


def test_what_was_never_measured_is_not_made_up():
    plan = planned(8)
    speeds = alike(plan, item_s=None)
    assert predict(plan, speeds, slots=1, gpus_per_run=0, start_s=None).leaves_out == (
        "evaluations",
        "the start of workers",
    )
    del speeds[min(speeds, key=str)]
    unknown = predict(plan, speeds, slots=1, gpus_per_run=0, start_s=1.0)
    assert (unknown.wall_s, unknown.work_s) == (None, None)
    assert unknown.unknown == (str(min(shapes(plan), key=str)),)


# -- evidence --------------------------------------------------------------------------------------------


def timed(store_root, **differs):
    """A store whose tasks took 10 s, 0.25 s an item and 2 s a step, as their machine noted."""
    config = parse_sweep(tiny.mapping(controls=[], launch__device="cpu", launch__store=store_root))
    store, cell = Store(store_root), resolve(config)
    store.prepare()
    trunk = cell.trunk
    store.add(trunk)
    folder = store.folder(trunk.id)
    (folder / "attempts/01").mkdir(parents=True)
    where = machine("cpu", 1) | differs
    lines = [
        {"task": f"{trunk.id}@0", "steps": 0, "wall_s": 11.0, "evaluate_s": 1.0, **where},
        {"task": f"{trunk.id}@8", "steps": 8, "wall_s": 30.0, "evaluate_s": 4.0, **where},
        {"task": f"{trunk.id}@16", "steps": 8, "wall_s": 26.0, "evaluate_s": 0.0, **where},
    ]
    (folder / "attempts/01/timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evals = [{"step": 8, "eval_id": "e", "families": {"facts": {"n": 8}, "hops": {"n": 12}}}]
    (folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    return config, store, trunk


def test_speeds_are_those_of_stored_tasks(store_root):
    config, store, trunk = timed(store_root)
    place = place_of(config.launch)
    (speed,) = known_speeds([shape_of(trunk)], store, config.launch, place).values()
    assert speed.flops_per_s == pytest.approx(trunk.flops_per_step / 2.0)
    assert (speed.item_s, speed.task_s) == (0.25, 10.0)


@pytest.mark.parametrize("differs", [{"threads": 2}, {"device": "cuda"}, {"processor": "x"}, {"torch": "1"}])
def test_another_machine_is_no_evidence(store_root, differs):
    config, store, trunk = timed(store_root, **differs)
    assert known_speeds([shape_of(trunk)], store, config.launch, place_of(config.launch)) == {}


def test_seconds_with_and_without_the_kernels_are_not_compared(monkeypatch):
    monkeypatch.setattr("moe.kernels.compiler", lambda: "cc")
    with_kernels = machine("cpu", 1)
    monkeypatch.setattr("moe.kernels.compiler", lambda: None)
    assert machine("cpu", 1) != with_kernels
    assert machine("cpu", 1).keys() == with_kernels.keys()


def test_stored_tasks_count_before_calibration(tmp_path, store_root):
    _, store, trunk = timed(store_root)
    path = tmp_path / "new" / "speed.json"
    launch = parse_sweep(tiny.mapping(launch__device="cpu", launch__speed_file=str(path))).launch
    place = place_of(launch)
    calibrated = Speed(flops_per_s=1.0, item_s=None, task_s=0.0)
    keep_speed(path, shape_of(trunk), place, calibrated)
    empty = Store(tmp_path / "empty")
    assert known_speeds([shape_of(trunk)], empty, launch, place) == {shape_of(trunk): calibrated}
    assert known_speeds([shape_of(trunk)], store, launch, place)[shape_of(trunk)].item_s == 0.25


def test_a_calibration_holds_for_its_machine_and_number_of_workers(tmp_path):
    path = str(tmp_path / "speed.json")
    one, two = (
        parse_sweep(tiny.mapping(launch__executor="ray", launch__workers=n, launch__speed_file=path)).launch
        for n in (1, 2)
    )
    shape, store = shape_of(tiny.cell().trunk), Store(tmp_path / "store")
    keep_speed(tmp_path / "speed.json", shape, place_of(one), Speed(flops_per_s=1.0, item_s=1.0, task_s=1.0))
    keep_start(tmp_path / "speed.json", one, place_of(one), 6.0)
    assert known_speeds([shape], store, one, place_of(one))
    assert known_start_s(store, one, place_of(one)) == 6.0
    assert not known_speeds([shape], store, two, place_of(two))
    assert known_start_s(store, two, place_of(two)) is None


def test_calibration_makes_a_plan_predictable(tmp_path):
    from sweeps.calibrate import calibrate

    path, said = tmp_path / "speed.json", []
    mapping = tiny.mapping(launch__speed_file=str(path), launch__store=str(tmp_path / "store"))
    config = parse_sweep(mapping)
    assert calibrate(config, seconds=0.05, say=said.append) == path
    plan = make_plan([resolve(config)], tiny.Nothing())
    place = place_of(config.launch)
    speeds = known_speeds(shapes(plan), Store(tmp_path / "store"), config.launch, place)
    assert set(speeds) == shapes(plan)
    assert all(s.flops_per_s > 0 and s.item_s > 0 and s.task_s > 0 for s in speeds.values())
    assert predict(plan, speeds, slots=1, gpus_per_run=0, start_s=0.0).wall_s > 0
    assert not (tmp_path / "store").exists()


# -- the study -------------------------------------------------------------------------------------------


def test_a_study_keeps_what_was_predicted_and_what_it_took(store_root, capsys):
    run_study([tiny.mapping(growth__step=4, launch__store=store_root)])
    assert "time unknown" in capsys.readouterr().out
    run_study([tiny.mapping(growth__step=step, launch__store=store_root) for step in (4, 12)])
    out = capsys.readouterr().out
    study = Store(store_root).study("adhoc")
    assert study["plan"]["prediction"]["wall_s"] > 0
    assert study["summary"]["predicted_s"] == study["plan"]["prediction"]["wall_s"]
    assert study["summary"]["wall_s"] > study["summary"]["start_s"] > 0
    assert "of the predicted about" in out


@pytest.mark.parametrize(("fields", "words"), [
    ({"budget__max_flops": 1e6}, r"the plan trains .* FLOPs, above budget.max_flops=1000000.0; narrow"),
    ({"budget__max_hours": 1.0}, "no speed is known of .*; run python -m sweeps.calibrate"),
    ({"budget__max_flops": -1.0}, "budget.max_flops=-1.0 must not be negative"),
])  # fmt: skip
def test_a_plan_above_its_limit_is_refused_and_nothing_is_written(tmp_path, fields, words):
    with pytest.raises(Refused, match=words):
        run_study([tiny.mapping(launch__store=str(tmp_path / "store"), **fields)])
    assert not (tmp_path / "store").exists()


def test_a_plan_that_takes_too_long_is_refused(store_root):
    run_study([tiny.mapping(growth__step=4, launch__store=store_root)])
    more = {"growth__step": 12, "launch__store": store_root}
    with pytest.raises(Refused, match=r"predicted to take .* h, above budget.max_hours=1e-06"):
        run_study([tiny.mapping(budget__max_hours=1e-6, **more)])
    assert run_study([tiny.mapping(budget__max_hours=1.0, **more)]).exit_code == 0
    assert run_study([tiny.mapping(budget__max_hours=0.0, **more)]).exit_code == 0  # all of it is stored


def test_a_limit_cannot_be_swept(store_root):
    cells = [tiny.mapping(budget__max_flops=limit, launch__store=store_root) for limit in (1e9, 2e9)]
    with pytest.raises(Refused, match=r"budget.max_flops differs between cells"):
        run_study(cells)
