"""Before the first FLOP: the corpora of a study are prepared in its store, and read as they will be; and so
are the checkpoints that its trunks start from."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from moe.data import Data, Observer, Questions, is_corpus, open_data, prepare_data
from sweeps.cell import Cell, data_json
from sweeps.plan import Plan
from sweeps.provenance import git_commit
from sweeps.source import state_of
from sweeps.store import Busy, Store

_QUIET_S = 1.0  # what takes less is not worth a word
_LINE_S = 10.0  # between lines where there is no terminal


def prepare_corpora(plan: Plan, store: Store, console: Console) -> None:
    """Prepares what is missing and reads of each corpus what the plan will: a batch, sequences, items.

    ValueError if a corpus cannot serve; nothing but prepared corpora is written.
    """
    by_corpus: dict[str, list[Cell]] = {}
    for cell in plan.cells.values():
        by_corpus.setdefault(data_json(cell.config.data), []).append(cell)
    for identity_json, cells in by_corpus.items():
        identity = json.loads(identity_json)
        if is_corpus(identity):
            with _observing(console) as observe:
                prepare_data(cells[0].config.data, identity, store.corpora, observe)
            _read(open_data(identity, store.corpora), cells)


def prepare_sources(plan: Plan, store: Store) -> None:
    """Stores the checkpoint that a trunk of the plan starts from as its state at step 0, if it is needed.

    The trajectory is in the store already. ValueError if the checkpoint is not what was planned with.
    """
    for trajectory in {task.trajectory for task in plan.tasks.values() if task.start == 0}:
        source = trajectory.source
        if source is None or 0 in store.stored_steps(trajectory.id):
            continue
        from moe.checkpoint import Description, save_state

        description = Description(trajectory.model, json.loads(trajectory.data), trajectory.train.seq_len)
        record = {"transient": False, "flops": 0.0, "git_commit": git_commit()}
        with suppress(Busy), store.writing(trajectory.id):  # whoever trains it has its start
            save_state(store.state_folder(trajectory.id, 0), state_of(source), description, **record)


def _read(data: Data, cells: Iterable[Cell]) -> None:
    """Reads once whatever these cells will read, so that what is too short is refused now."""
    batches, asked = set(), set()
    for cell in cells:
        train = cell.config.train
        batches.add((train.batch_size, train.seq_len))
        asked |= {cell.full.questions, cell.probe.questions}
    for batch_size, seq_len in sorted(batches):
        data.batch(0, 0, batch_size, seq_len)
        data.held_out(1, seq_len)
    for questions in sorted(asked, key=_length):
        data.items(questions)


def _length(questions: Questions) -> tuple[int, int, int]:
    return questions.context_length, questions.continuation_length, questions.num_items


@contextmanager
def _observing(console: Console) -> Iterator[Observer]:
    """A bar on a terminal and plain lines elsewhere, of what takes longer than a second."""
    shown = _Bar(console) if console.is_terminal else _Lines(console)
    done = False
    try:
        yield shown.observe
        done = True
    finally:
        shown.close(done)


class _Lines:
    """A line when a stage begins, and one every few seconds."""

    def __init__(self, console: Console):
        self._console, self._begin = console, time.monotonic()
        self._stage, self._said_s = "", 0.0

    def observe(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        due = stage != self._stage or now - self._said_s > _LINE_S
        if now - self._begin > _QUIET_S and due:
            self._stage, self._said_s = stage, now
            self._console.print(f"preparing the corpus: {stage}{_amount(done, total)}", markup=False)

    def close(self, done: bool) -> None:
        if self._stage and done:
            self._console.print(
                f"prepared the corpus in {time.monotonic() - self._begin:.0f} s", markup=False
            )


class _Bar:
    """One bar, of the stage that is under way."""

    def __init__(self, console: Console):
        self._console, self._begin = console, time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def observe(self, stage: str, done: int, total: int | None) -> None:
        if time.monotonic() - self._begin < _QUIET_S:
            return
        if self._progress is None or self._task is None:
            columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task("", total=None)
            self._progress.start()
        description = f"preparing the corpus: {stage}{_amount(done, total)}"
        self._progress.update(self._task, description=description, completed=done, total=total)

    def close(self, done: bool) -> None:
        if self._progress is not None:
            self._progress.stop()


def _amount(done: int, total: int | None) -> str:
    if done == 0:
        return ""
    return f", {done / 1e6:.0f} MB" + (f" of {total / 1e6:.0f} MB" if total else "")
