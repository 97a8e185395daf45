"""Deriving one state of a trajectory: find the state to start from, train, evaluate, store."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from moe.checkpoint import (
    CorruptState,
    Description,
    State,
    load_state,
    load_tensors,
    promote_state,
    save_state,
    save_tensors,
)
from moe.data import Data, open_data
from moe.diagnostics import sample_moments
from moe.evaluate import Suite, evaluate
from moe.files import append_lines, keep_lines, read_whole_json, write_json
from moe.growth import Tensors, grow_moments, grow_weights
from moe.growth_report import growth_report
from moe.parallel import ALONE, Ranks
from moe.train import Diverged, Line, Trainer, initial_state
from sweeps.lockstep import Clock, Ready
from sweeps.outcome import Order, WorkerOptions
from sweeps.store import Store
from sweeps.trajectory import Kind, Trajectory

_PROBE_SEQUENCES = 4  # of each family, on which a growth is measured
FLUSH_S = 0.5  # metrics reach the disk, and with it the live view, this often


class Stopped(Exception):
    """The driver's alive file is gone."""


@dataclass
class Journal:
    """What one attempt has done so far."""

    has_begun: bool = False  # the other ranks know what to start from
    trained_steps: int = 0
    flops_per_step: float = 0.0
    train_s: float = 0.0  # of its steps alone, or its share of those taken together
    evaluate_s: float = 0.0
    warnings: list[str] = field(default_factory=list)


class Derivation:
    """Of the state that an order names, under the lock of its trajectory."""

    def __init__(
        self,
        order: Order,
        options: WorkerOptions,
        store: Store,
        folder: Path,
        journal: Journal,
        clock: Clock,
        ranks: Ranks = ALONE,
    ):
        self.clock = clock
        self.order, self.options, self.journal, self.ranks = order, options, journal, ranks
        self.store, self.folder = store, folder
        self.trajectory = store.load(order.trajectory_id)
        self.wanted = store.wanted_folder(order.trajectory_id)
        journal.flops_per_step = self.trajectory.flops_per_step
        identity = self.trajectory.root.identity
        self.data: Data = open_data(identity["data"], store.corpora)
        self.description = Description(self.trajectory.model, identity["data"], self.trajectory.train.seq_len)
        self.pending: list[dict[str, Any]] = []
        self.transient: int | None = None  # a checkpoint that the next stored state replaces
        self.kept: set[tuple[int, str]] = set()  # evaluations that outlived the cut
        self.rewinds = False  # a later state is stored: its lines stand, this one only derives a state

    def run(self) -> Generator[Ready, Line, None]:
        """Yields when it is ready for a training step, and is sent its line."""
        self._sweep_up()
        state = self._starting_state()
        self._mend_growth()
        before = load_tensors(self._moments_before) if self._moments_before.exists() else None
        trainer = make_trainer(self.trajectory, self.data, state, self.options.device, self.ranks, before)
        if state.step < self.order.step:
            self.rewinds = any(step > state.step for step in self.store.stored_steps(self.trajectory.id))
            if not self.rewinds:
                self._forget_beyond(state.step)
            self.journal.has_begun = True
            self.ranks.send(state)
            try:
                yield from self._train(trainer)
            finally:
                self._flush()
        if not self._is_stored(self.order.step):
            self._save(trainer)
        elif self._is_transient(self.order.step):
            promote_state(self.store.state_folder(self.trajectory.id, self.order.step))
        self._evaluate_suites(trainer)

    def _sweep_up(self) -> None:
        """Under the lock whatever is half there is a dead process's: drafts, states, and a line cut short."""
        states = [s for s in self.folder.glob("states/step_*") if not (s / "DONE.json").exists()]
        for half in [*self.folder.glob(".*.draft"), *self.folder.glob("states/.*.draft"), *states]:
            shutil.rmtree(half) if half.is_dir() else half.unlink()
        lines = [self.folder / "metrics.jsonl", self.folder / "evals.jsonl"]
        for path in [*lines, *self.folder.glob("attempts/*/timing.jsonl")]:
            keep_lines(path, lambda line: True)
        for step in self.store.stored_steps(self.trajectory.id)[:-1]:
            if self._is_transient(step) and step != self.order.step:
                _remove_state(self.store.state_folder(self.trajectory.id, step))  # the next replaced it
        self._set_aside_beyond_lines()

    def _set_aside_beyond_lines(self) -> None:
        """A stored state has all its lines. Where a disk lost some, both are derived again from below."""
        lines = self.store.metrics(self.trajectory.id)
        intact = next((i for i, line in enumerate(lines) if line["step"] != i + 1), len(lines))
        for step in self.store.stored_steps(self.trajectory.id):
            if step > intact:
                folder = self.store.state_folder(self.trajectory.id, step)
                self._set_aside(folder, f"{folder} has no line of metrics for step {intact + 1}")

    # -- where to start ----------------------------------------------------------------------------------

    def _starting_state(self) -> State:
        """The nearest stored state at or below the task's step; corrupt ones are set aside on the way."""
        stored = [s for s in self.store.stored_steps(self.trajectory.id) if s <= self.order.step]
        for step in reversed(stored):
            folder = self.store.state_folder(self.trajectory.id, step)
            try:
                state = load_state(folder)
            except CorruptState as corrupt:
                self._set_aside(folder, corrupt)
                continue
            if self._is_transient(step):
                self.transient = step
            return state
        parent = self.trajectory.parent
        if parent is None and self.trajectory.source is not None:
            raise CorruptState(f"{self.folder} has lost the checkpoint that it starts from")
        if parent is None:
            return initial_state(self.trajectory.model, self.trajectory.seed)
        return self._grown_state()

    def _grown_state(self) -> State:
        parent, trajectory = self.trajectory.parent, self.trajectory
        assert parent is not None
        folder = self.store.state_folder(parent.trajectory.id, parent.step)
        if not (folder / "DONE.json").exists():
            raise CorruptState(f"{folder} is gone")
        try:
            source = load_state(folder)
        except CorruptState as corrupt:
            self._set_aside(folder, corrupt)
            raise
        model, operator = parent.trajectory.model, trajectory.operator
        weights = grow_weights(model, operator, source.weights)
        moments = grow_moments(model, operator, trajectory.optimizer_state, source.moments)
        if trajectory.kind is Kind.BRANCH:
            save_tensors(self._moments_before, sample_moments(model, operator, source.moments))
        if operator.grows:
            self._report_growth(source, weights)
        return State(step=0, weights=weights, moments=moments)

    def _mend_growth(self) -> None:
        """What was recorded beside the first state is derived again if a disk damaged it."""
        parent, harmed = self.trajectory.parent, self._harmed_growth()
        if parent is None or not harmed:
            return
        self.journal.warnings.append(f"{self.folder / 'states' / harmed} is not what was written")
        if parent.step in self.store.stored_steps(parent.trajectory.id):
            self._grown_state()
        else:  # no result depends on it
            (self.folder / "states" / harmed).unlink(missing_ok=True)

    def _harmed_growth(self) -> str | None:
        """The name of the file beside the first state that should be there and cannot be read."""
        if self.trajectory.kind is Kind.BRANCH and self._moments_before.exists():
            try:
                load_tensors(self._moments_before)
            except (SafetensorError, OSError):
                return self._moments_before.name
        growth = self.folder / "states" / "growth.json"
        return growth.name if growth.exists() and read_whole_json(growth) is None else None

    @property
    def _moments_before(self) -> Path:
        return self.folder / "states" / "moments_before.safetensors"

    def _report_growth(self, source: State, grown: Tensors) -> None:
        """Writes growth.json: what the operator promised and what it did, on held-out tokens."""
        parent, trajectory = self.trajectory.parent, self.trajectory
        assert parent is not None
        held_out = self.data.held_out(_PROBE_SEQUENCES, trajectory.train.seq_len)
        tokens_BT1 = torch.from_numpy(np.concatenate([held_out[name] for name in sorted(held_out)]))
        report = growth_report(
            parent.trajectory.model,
            trajectory.operator,
            source.weights,
            grown,
            tokens_BT1,
            precision=trajectory.train.precision,
            device=self.options.device,
        )
        record = {
            "parent": str(parent),
            "operator": trajectory.identity["operator"],
            "optimizer_state": trajectory.optimizer_state.value,
            "sunk_flops": parent.flops,
        }
        write_json(self.folder / "states" / "growth.json", record | report)

    def _set_aside(self, folder: Path, corrupt: CorruptState | str) -> None:
        aside = folder.with_name(f".corrupt-{folder.name}-{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, aside)
        self.journal.warnings.append(f"{corrupt}; set aside as {aside.name} and derived again")

    def _forget_beyond(self, step: int) -> None:
        """Cuts the lines above the state that training resumes from; they will be written again.

        What a task asked of a tap was asked of a state stored whole, and stays even if that state is gone.
        """
        keep_lines(self.folder / "metrics.jsonl", lambda line: line["step"] <= step)
        keep_lines(self.folder / "evals.jsonl", lambda line: line["step"] <= step or "tap" in line)
        self.kept = self.store.evaluated(self.trajectory.id)

    # -- training ----------------------------------------------------------------------------------------

    def _train(self, trainer: Trainer) -> Generator[Ready, Line, None]:
        saved = flushed = time.monotonic()
        compare = self._stored_losses() if self.rewinds else None
        while trainer.step < self.order.step:
            begin_s = self.clock.seconds
            line = yield Ready(trainer, trainer.read())
            self.journal.train_s += self.clock.seconds - begin_s
            with self.ranks.between_steps(is_last=trainer.step == self.order.step):
                self.journal.trained_steps += 1
                if compare is not None:
                    self._compare(line, compare)
                else:
                    self.pending.append(line)
                    self._probe(trainer)
                now = time.monotonic()
                if now - flushed > FLUSH_S:
                    self._flush()
                    flushed = now
                if trainer.step == self.order.step:
                    break
                if not os.path.exists(self.options.alive):
                    if compare is None:
                        self._save(trainer, transient=True)
                    raise Stopped
                if compare is None and (self._is_kept(trainer.step) or self._is_wanted(trainer.step)):
                    self._save(trainer)
                    saved = now
                elif compare is None and now - saved > self.options.checkpoint_s:
                    self._save(trainer, transient=True)
                    saved = now

    def _is_kept(self, step: int) -> bool:
        return self.trajectory.parent is None and step % self.options.keep_every == 0

    def _is_wanted(self, step: int) -> bool:
        return os.path.exists(f"{self.wanted}/{step}")

    def _probe(self, trainer: Trainer) -> None:
        reading = self.order.reading
        if trainer.step % reading.probe_every == 0 and (trainer.step, reading.probe.eval_id) not in self.kept:
            self._flush()
            self._evaluate(trainer, reading.probe)

    def _stored_losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.store.metrics(self.trajectory.id)}

    def _compare(self, line: dict[str, Any], losses: dict[int, float]) -> None:
        """A rewind is a free check of determinism: it must see the losses that were seen before."""
        before = losses.get(line["step"])
        if before is not None and before != line["loss"] and not self.journal.warnings:
            self.journal.warnings.append(
                f"rewinding {self.order.task_id}: loss {line['loss']} at step {line['step']}, "
                f"{before} before; "
                "another number of threads or fused runs, device, C compiler or torch rounds differently"
            )

    # -- storing -----------------------------------------------------------------------------------------

    def _flush(self) -> None:
        append_lines(self.folder / "metrics.jsonl", self.pending)
        self.pending.clear()

    def _is_stored(self, step: int) -> bool:
        return step in self.store.stored_steps(self.trajectory.id)

    def _is_transient(self, step: int) -> bool:
        done = read_whole_json(self.store.state_folder(self.trajectory.id, step) / "DONE.json")
        return done is not None and done.get("transient", False)

    def _save(self, trainer: Trainer, transient: bool = False) -> None:
        """Lines first, then the state: a stored state has all its lines."""
        self._flush()
        transient = transient and not self._is_kept(trainer.step) and not self._is_wanted(trainer.step)
        folder = self.store.state_folder(self.trajectory.id, trainer.step)
        save_state(
            folder,
            trainer.state(),
            self.description,
            transient=transient,
            flops=trainer.step * self.trajectory.flops_per_step,
            torch=torch.__version__,
            git_commit=self.options.git_commit,
        )
        (self.wanted / str(trainer.step)).unlink(missing_ok=True)
        before, self.transient = self.transient, trainer.step if transient else None
        if before is not None and before != trainer.step:
            _remove_state(self.store.state_folder(self.trajectory.id, before))

    def _evaluate_suites(self, trainer: Trainer) -> None:
        evaluated = self.store.evaluated(self.trajectory.id)
        for suite in self.order.evaluations:
            if (self.order.step, suite.eval_id) not in evaluated:
                self._evaluate(trainer, suite, tap=True)

    def _evaluate(self, trainer: Trainer, suite: Suite, **marks: bool) -> None:
        begin, seq_len = time.perf_counter(), self.trajectory.train.seq_len
        scores = evaluate(
            trainer.model, self.data, suite.questions, seq_len=seq_len, device=self.options.device
        )
        self.journal.evaluate_s += time.perf_counter() - begin
        if not math.isfinite(scores["loss"]):
            raise Diverged(trainer.step, scores["loss"], "the held-out loss is not finite")
        line = {"step": trainer.step, "eval_id": suite.eval_id, "suite": suite.name, **marks, **scores}
        append_lines(self.folder / "evals.jsonl", [line])


def make_trainer(
    trajectory: Trajectory,
    data: Data,
    state: State,
    device: str,
    ranks: Ranks,
    moments_before: Tensors | None = None,
) -> Trainer:
    train = trajectory.train
    seed, start, stream = trajectory.seed, trajectory.data_start, trajectory.stream

    def batches(step: int) -> np.ndarray:
        return data.batch(seed, start + step, train.batch_size, train.seq_len, stream=stream)

    return Trainer(
        trajectory.model,
        train,
        trajectory.learning_rate,
        batches,
        state,
        device,
        num_copies=trajectory.num_copies,
        moments_before=moments_before,
        ranks=ranks,
    )


def _remove_state(folder: Path) -> None:
    """DONE.json goes first: from then on the state does not exist."""
    (folder / "DONE.json").unlink(missing_ok=True)
    for path in folder.glob("*"):
        path.unlink()
    folder.rmdir()
