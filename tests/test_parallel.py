"""Two processes on one batch train as one does: gloo on CPUs, in forked children."""

import os
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist

from moe.config import LearningRate, Schedule
from moe.files import read_json
from moe.parallel import ALONE, Ranks, join
from moe.train import Trainer, initial_state
from sweeps.outcome import Order, Result, WorkerOptions
from sweeps.store import Store
from sweeps.worker import follow, perform

RATE = LearningRate(schedule=Schedule.CONSTANT, peak=3e-3, warmup_steps=2)
MODEL = tiny.model(selection_bias_rate=0.001, gate="sigmoid_renormalised")
TRAIN = tiny.train(batch_size=4, load_balance_coef=0.1, z_loss_coef=0.01)


def batches(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 400, (4, 33))


def on_ranks(folder: Path, work, size: int = 2) -> list:
    """What `work(ranks)` gives on each of `size` processes."""
    folder.mkdir()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(60)
                ranks = join(dist.FileStore(str(folder / "store"), size), rank, size)
                torch.save(work(ranks), folder / f"{rank}.pt")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def train(ranks: Ranks, to_step: int, state=None):
    run = Trainer(MODEL, TRAIN, RATE, batches, state or initial_state(MODEL, 0), ranks=ranks)
    lines = list(run.steps(to_step))
    state = run.state()
    return lines, state


def tensors(state):
    return {**state.weights, **{f"first/{n}": t for n, t in state.moments.first.items()}}


def test_two_ranks_learn_as_one_process_does(tmp_path):
    """Losses of the whole batch within 1e-4 nats over 40 steps, gradient norms within 1e-3 of themselves."""
    alone, _ = train(ALONE, 40)
    (first, _), (second, _) = on_ranks(tmp_path / "two", lambda ranks: train(ranks, 40))
    assert first == second
    for ours, theirs in zip(first, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        for name in ("load_balance_loss", "z_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)
        assert ours["tokens"] == theirs["tokens"]


def test_diagnostics_are_of_the_whole_batch(tmp_path):
    still = LearningRate(schedule=Schedule.CONSTANT, peak=0.0)

    def line(ranks):
        run = Trainer(tiny.model(), TRAIN, still, batches, initial_state(tiny.model(), 0), ranks=ranks)
        run.num_copies = 2
        return list(run.steps(20))[-1]

    alone, (first, _) = line(ALONE), on_ranks(tmp_path / "two", line)
    assert first["expert_load"] == alone["expert_load"]  # counts: no rounding
    assert first["co_routing"] == alone["co_routing"]
    assert first["router_entropy"] == pytest.approx(alone["router_entropy"], abs=2e-6)


def test_ranks_divide_the_rows_of_a_batch():
    batch = batches(0)
    shares = [Ranks(rank, 4).rows(batch) for rank in range(4)]
    assert [len(share) for share in shares] == [1] * 4
    assert np.array_equal(np.concatenate(shares), batch)


def test_ranks_keep_the_same_bytes(tmp_path):
    (_, first), (_, second) = on_ranks(tmp_path / "two", lambda ranks: train(ranks, 10))
    assert all(torch.equal(tensors(first)[name], tensors(second)[name]) for name in tensors(first))


def test_a_run_resumes_on_another_number_of_ranks(tmp_path):
    lines, whole = train(ALONE, 15)
    _, five = train(ALONE, 5)

    def go_on(ranks):  # only the first rank has the state
        ranks.send(five) if ranks.leads else None
        return train(ranks, 10, five if ranks.leads else ranks.receive())

    (then, ten), _ = on_ranks(tmp_path / "two", go_on)
    last, fifteen = train(ALONE, 15, ten)
    assert [line["loss"] for line in [*then, *last]] == pytest.approx(
        [line["loss"] for line in lines[5:]], abs=1e-4
    )
    assert fifteen.moments.step == whole.moments.step
    for name, tensor in tensors(fifteen).items():
        torch.testing.assert_close(tensor, tensors(whole)[name], atol=1e-4, rtol=1e-3)


# --------------------------------------------------------------------------------------------------------
# A task on two ranks


def order_of(cell, step: int) -> Order:
    return Order(
        task_id=f"{cell.trunk.id}@{step}",
        trajectory_id=cell.trunk.id,
        step=step,
        evaluations=(cell.full,),
        reading=cell.reading,
    )


def task(root: Path, alive: Path, ranks: Ranks, step: int = 12):
    cell = tiny.cell()
    options = WorkerOptions(
        store=str(root),
        device="cpu",
        threads=1,
        keep_every=1000,
        checkpoint_s=0.0,
        alive=str(alive),
        git_commit=None,
    )
    if ranks.leads:
        return perform(order_of(cell, step), options, ranks)
    return follow(order_of(cell, step), options, ranks)


def prepared(root: Path) -> Store:
    store = Store(str(root))
    store.prepare()
    store.add(tiny.cell().trunk)
    return store


def test_a_task_on_two_ranks_stores_what_one_process_stores(tmp_path):
    stores = {name: prepared(tmp_path / name) for name in ("one", "two")}
    alive = tmp_path / "alive"
    alive.touch()
    assert task(tmp_path / "one", alive, ALONE).result is Result.DONE
    outcome, other = on_ranks(tmp_path / "ranks", lambda ranks: task(tmp_path / "two", alive, ranks))
    assert (outcome.result, other) == (Result.DONE, None)
    trunk = tiny.cell().trunk.id
    for read in (Store.metrics, Store.evals):
        one, two = (read(stores[name], trunk) for name in ("one", "two"))
        assert [line["step"] for line in two] == [line["step"] for line in one]
        assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-4)
    assert stores["two"].stored_steps(trunk) == [12]
    assert outcome.trained_flops == 12 * tiny.cell().trunk.flops_per_step


@pytest.mark.parametrize("trouble", ["stop", "busy", "broken data", "full disk"])
def test_other_ranks_return_when_the_first_cannot_go_on(tmp_path, monkeypatch, trouble):
    store, alive, root = prepared(tmp_path / "store"), tmp_path / "alive", tmp_path / "store"
    if trouble != "stop":
        alive.touch()

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    def work(ranks):
        begin = time.monotonic()
        if ranks.leads and trouble == "full disk":
            monkeypatch.setattr("sweeps.derivation.save_state", fail)
        if ranks.leads and trouble == "broken data":
            monkeypatch.setattr("sweeps.derivation.initial_state", fail)
        outcome = task(root, alive, ranks)
        assert time.monotonic() - begin < 30
        return outcome and outcome.result

    expected = {"stop": Result.STOPPED, "busy": Result.BUSY}.get(trouble, Result.FAILED)
    if trouble == "busy":
        with store.writing(tiny.cell().trunk.id):
            results = on_ranks(tmp_path / "ranks", work)
    else:
        results = on_ranks(tmp_path / "ranks", work)
    assert results == [expected, None]
    if trouble == "stop":
        (state,) = (root / "trajectories").glob("*/states/*/DONE.json")
        assert read_json(state)["transient"]
