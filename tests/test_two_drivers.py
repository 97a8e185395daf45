"""Two drivers at one store, started within a moment of each other: neither trains what the other does."""

import os
import warnings

import tiny

from moe.files import read_lines
from sweeps.store import Store
from sweeps.study import run_study


def driver(root, step):
    """The process id of a driver of one cell."""
    with warnings.catch_warnings():  # the driver needs no other thread of ours
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        fields = {"launch__store": root, "trunk__steps": 300, "evaluate__probe_every": 50, "controls": []}
        code = run_study([tiny.mapping(growth__step=step, study_name=f"s{step}", **fields)]).exit_code
    finally:
        os._exit(code)


def test_two_drivers_on_one_store_train_nothing_twice(tmp_path):
    root = str(tmp_path / "store")
    drivers = [driver(root, step) for step in (300, 100)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in drivers] == [0, 0]
    store = Store(root)
    assert [line["step"] for line in store.metrics(tiny.cell().trunk.id)] == list(range(1, 301))
    assert {100, 300} <= set(store.stored_steps(tiny.cell().trunk.id))
    for folder in (store.root / "trajectories").glob("*-*"):
        attempts = [line for path in folder.glob("attempts/*/timing.jsonl") for line in read_lines(path)]
        assert sum(line["steps"] for line in attempts) == len(store.metrics(folder.name[-12:])), folder.name
        evaluations = [(line["step"], line["eval_id"]) for line in store.evals(folder.name[-12:])]
        assert len(evaluations) == len(set(evaluations))
