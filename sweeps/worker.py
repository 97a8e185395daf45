"""What a worker does with a task: one attempt at deriving its state, and the account of it.

Runs in the driver (serial) or in a Ray actor. It knows a task by ids and numbers alone; everything else it
reads from the store.
"""

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from moe.checkpoint import CorruptState
from moe.data import open_data
from moe.files import append_lines, write_json
from moe.parallel import ALONE, Ranks
from moe.train import Diverged, Line
from sweeps.derivation import Derivation, Journal, Stopped, make_trainer
from sweeps.lockstep import Clock, Ready, Run, in_lockstep
from sweeps.machine import machine
from sweeps.outcome import Order, Outcome, Result, WorkerOptions
from sweeps.store import Busy, Store


def perform(order: Order, options: WorkerOptions, ranks: Ranks = ALONE) -> Outcome:
    """Does one task and never raises: an exception becomes a failed outcome with its traceback stored.

    Of several ranks this is the first, which the others `follow`.
    """
    return perform_together([order], options, ranks)[0]


def perform_together(orders: Sequence[Order], options: WorkerOptions, ranks: Ranks = ALONE) -> list[Outcome]:
    """The outcome of each order of a bundle, which take their training steps as one model.

    What ends, fails or is busy among them leaves the others to go on.
    """
    return in_lockstep([partial(_run, order, options, ranks) for order in orders])


def _run(order: Order, options: WorkerOptions, ranks: Ranks, clock: Clock) -> Run:
    journal, error = Journal(), None
    try:
        store = Store(options.store)
        with store.writing(order.trajectory_id) as folder:
            result, error = yield from _attempt(order, options, store, folder, journal, clock, ranks)
    except Busy:
        result = Result.BUSY
        _ask_the_writer(options.store, order)
    except Exception:
        result, error = Result.FAILED, traceback.format_exc()
    if not journal.has_begun:
        ranks.send(None)
    return Outcome(
        task_id=order.task_id,
        result=result,
        trained_flops=journal.trained_steps * journal.flops_per_step,
        wall_s=clock.seconds,
        error=error,
        warnings=tuple(journal.warnings),
    )


def follow(order: Order, options: WorkerOptions, ranks: Ranks) -> None:
    """What another rank does of a task: its rows of each batch, from the state and as long as the first says.

    Diverges when the first does: both see the same loss.
    """
    state = ranks.receive()
    if state is None:
        return
    store = Store(options.store)
    trajectory = store.load(order.trajectory_id)
    data = open_data(trajectory.root.identity["data"], store.corpora)
    trainer = make_trainer(trajectory, data, state, options.device, ranks)
    with contextlib.suppress(Diverged):
        for _ in trainer.steps(order.step):
            if trainer.step < order.step and not ranks.goes_on():
                return


def _attempt(
    order: Order,
    options: WorkerOptions,
    store: Store,
    folder: Path,
    journal: Journal,
    clock: Clock,
    ranks: Ranks,
) -> Generator[Ready, Line, tuple[Result, str | None]]:
    """One attempt under the trajectory's lock, recorded in attempts/NN: log.txt when it begins and ends, and
    timing.jsonl, or error.txt if it fails."""
    begin_s, attempt = clock.seconds, _attempt_folder(folder)
    _log(attempt, f"{order.task_id} begins on {options.device}, {options.threads} threads")
    result, error = yield from _result(order, options, store, folder, journal, clock, ranks)
    wall_s = round(clock.seconds - begin_s, 3)
    _log(attempt, f"{order.task_id} {result}: {journal.trained_steps} steps in {wall_s} s")
    try:
        if result is Result.FAILED:
            _record_error(attempt, order, error)
        else:
            timing = {"task": order.task_id, "steps": journal.trained_steps, "wall_s": wall_s}
            timing["train_s"] = round(journal.train_s, 3)
            timing["evaluate_s"] = round(journal.evaluate_s, 3)
            timing |= machine(options.device, options.threads)
            if options.fuse > 1:  # a share of steps taken together is no measure of a run alone
                timing["fuse"] = options.fuse
            append_lines(attempt / "timing.jsonl", [timing])
    except OSError as full:  # what was trained is stored; only the account of it is not
        journal.warnings.append(f"{attempt}: the attempt is not recorded ({full})")
    return result, error


def _result(
    order: Order,
    options: WorkerOptions,
    store: Store,
    folder: Path,
    journal: Journal,
    clock: Clock,
    ranks: Ranks,
) -> Generator[Ready, Line, tuple[Result, str | None]]:
    try:
        yield from Derivation(order, options, store, folder, journal, clock, ranks).run()
        return Result.DONE, None
    except Stopped:
        return Result.STOPPED, None
    except Diverged as diverged:
        write_json(folder / "diverged.json", {"step": diverged.step, "reason": str(diverged)})
        return Result.DIVERGED, str(diverged)
    except CorruptState as corrupt:
        return Result.LOST, str(corrupt)
    except Exception:
        return Result.FAILED, traceback.format_exc()


def _ask_the_writer(root: str, order: Order) -> None:
    """Whoever writes the trajectory stores this step too when it gets there, so that nobody rewinds to it."""
    with contextlib.suppress(Exception):  # a courtesy: without it the step is derived once more
        Store(root).want(order.trajectory_id, order.step)


def is_done(order: Order, root: str) -> bool:
    """Whether the store has all that the order asks for, whatever became of its worker."""
    store, asked = Store(root), {(order.step, suite.eval_id) for suite in order.evaluations}
    kept = order.step in store.kept_steps(order.trajectory_id)
    return kept and asked <= store.evaluated(order.trajectory_id)


def record_death(order: Order, root: str, error: str) -> None:
    """An attempt whose worker died, accounted for by the driver: the worker cannot."""
    with contextlib.suppress(OSError, ValueError):  # the driver has the error too
        folder = Store(root).folder(order.trajectory_id)
        if folder is not None:
            attempt = _attempt_folder(folder)
            _log(attempt, f"{order.task_id} {Result.FAILED}: its worker died")
            _record_error(attempt, order, error)


def _record_error(attempt: Path, order: Order, error: str | None) -> None:
    (attempt / "error.txt").write_text(f"{order.task_id}\n{error}")


def _attempt_folder(folder: Path) -> Path:
    """attempts/NN of the attempt under way: one more than have ended in an error."""
    failed = len(list(folder.glob("attempts/*/error.txt")))
    attempt = folder / "attempts" / f"{failed + 1:02d}"
    attempt.mkdir(parents=True, exist_ok=True)
    return attempt


def _log(attempt: Path, event: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError), (attempt / "log.txt").open("a") as file:
        file.write(f"{now} {socket.gethostname()} {os.getpid()}: {event}\n")
