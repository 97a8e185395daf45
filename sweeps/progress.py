"""What the user sees: the plan before, one live view or plain lines during, a table at the end."""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from moe.operator_config import OperatorConfig
from sweeps.cell import BRANCH, Cell
from sweeps.config import Control
from sweeps.cost import CALIBRATE, Prediction
from sweeps.execute import Execution, Status
from sweeps.live import LiveTree
from sweeps.outcome import Outcome
from sweeps.plan import Plan, Task
from sweeps.store import Store
from sweeps.trajectory import Kind

Observer = Callable[[Task, Status, Outcome | None], None]
MAX_ROWS = 40


class View:
    """Speaks to one console; lines are plain where it is not a terminal."""

    def __init__(self, study_name: str, store: Store, console: Console | None = None):
        self.study_name, self.store = study_name, store
        self.console = console or _console()

    # -- before ------------------------------------------------------------------------------------------

    def show_plan(self, plan: Plan, prediction: Prediction, fusion: str | None = None) -> None:
        numbers = plan.summary()
        todo = numbers["flops_todo"] + numbers["flops_rewind"]
        table = Table.grid(padding=(0, 2))
        table.add_row("study", self.study_name)
        cells = f"{numbers['cells']} requested, {numbers['controls']} controls"
        table.add_row("cells", cells + _collapsed(plan))
        for source in _sources(plan):
            table.add_row("source", source)
        table.add_row("trajectories", str(numbers["trajectories"]))
        table.add_row("tasks", f"{numbers['todo_tasks']} to do, {numbers['cached_tasks']} cached")
        ratio = numbers["flops_naive"] / numbers["flops_shared"]
        table.add_row(
            "FLOPs",
            f"{numbers['flops_naive']:.3g} if every cell ran alone, {numbers['flops_shared']:.3g} shared "
            f"({ratio:.1f}x less); {numbers['flops_todo']:.3g} to do, "
            f"{numbers['flops_rewind']:.3g} to rewind",
        )
        if todo:
            table.add_row("expected", f"{expected(prediction)}; {_bytes(plan.disk_bytes)} of states")
        if fusion:
            table.add_row("fusion", fusion)
        self.console.print(table)
        if plan.flops_lost_to_cosine > 0:
            self.console.print(
                f"note: train.schedule=cosine gives each horizon a trunk of its own; constant would share "
                f"{plan.flops_lost_to_cosine:.3g} FLOPs more"
            )
        for note in _collapse_notes(plan):
            self.console.print(f"note: {note}")

    def show_warnings(self, warnings: list[str]) -> None:
        for warning in warnings:
            self.console.print(f"warning: {warning}", markup=False, soft_wrap=True)

    # -- during ------------------------------------------------------------------------------------------

    @contextmanager
    def running(self, plan: Plan) -> Iterator[Observer]:
        """Gives the observer that the driver tells of every change of a task."""
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            with LiveTree(self.study_name, plan, self.store, self.console) as tree:
                yield tree.observe
        else:
            yield _Lines(plan, self.console).observe

    def show_stopping(self) -> None:
        self.console.print("stopping: workers store their states; Ctrl-C again does not wait for them")

    # -- after -------------------------------------------------------------------------------------------

    def show_end(
        self,
        plan: Plan,
        execution: Execution,
        statuses: Counter,
        results: dict[str, Any],
        planned_flops: float,
        stopped: bool,
    ) -> None:
        self.console.print(_result_table(plan, self.store, results, self.console))
        self.show_warnings(execution.warnings)
        counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        spent = f"{execution.spent_flops:.3g} FLOPs trained"
        if planned_flops and not stopped:
            spent += f", {execution.spent_flops / planned_flops:.3f} of the plan"
        self.console.print(f"{self.study_name}: cells {counts}; {spent}; stored in {self.store.root}")
        for task_id, error in execution.errors.items():
            if execution.status.get(task_id) is Status.FAILED:
                what = describe(plan.tasks[task_id])
                self.console.print(f"failed: {what}: {_last_line(error)}", markup=False, soft_wrap=True)
                folder = self.store.folder(plan.tasks[task_id].trajectory.id)
                for path in sorted(folder.glob("attempts/*/error.txt"))[-1:] if folder else []:
                    self.console.print(f"        traceback in {path}", markup=False, soft_wrap=True)
        if stopped or statuses["failed"] or statuses["blocked"] or statuses["todo"]:
            why = "stopped; states are saved. To go on" if stopped else "To try again what failed"
            self.console.print(f"{why}: {shlex.join(['python', *sys.argv])}", soft_wrap=True)

    def show_cost(self, prediction: Prediction, wall_s: float) -> None:
        """What was predicted, against what it took."""
        if not prediction.wall_s:
            self.console.print(f"time: {_duration(wall_s)}; none was predicted")
        else:
            ratio = wall_s / prediction.wall_s
            self.console.print(
                f"time: {_duration(wall_s)}, {ratio:.2f} of the predicted {_duration(prediction.wall_s)}"
            )


def expected(prediction: Prediction) -> str:
    """What a plan will take, in words, and what these seconds do not hold."""
    if prediction.wall_s is None:
        return f"time unknown: no speed of {'; '.join(prediction.unknown)} ({CALIBRATE})"
    workers = "1 worker" if prediction.slots == 1 else f"{prediction.slots} workers"
    words = f"{_duration(prediction.wall_s)} with {workers}"
    if prediction.gpu_hours is not None:
        words += f", {prediction.gpu_hours:.3g} GPU-hours"
    left_out = " and ".join(prediction.leaves_out)
    return words + (f", {left_out} left out (never measured)" if left_out else "")


def describe(task: Task) -> str:
    """A task in words: what kind of line, where it comes from, how far it goes."""
    trajectory = task.trajectory
    words = [trajectory.kind.value]
    if trajectory.kind is Kind.BRANCH:
        assert trajectory.parent is not None
        how = trajectory.operator.label if trajectory.operator.grows else "sham"
        words.append(f"{how} at step {trajectory.parent.step}")
    if trajectory.kind is Kind.ANNEAL:
        assert trajectory.parent is not None
        words.append(f"of {trajectory.parent.trajectory.slug} at {trajectory.parent.step}")
    words.append(f"seed {trajectory.seed}")
    verb = (
        "grow"
        if task.step == 0 and trajectory.parent is not None
        else "evaluate"
        if task.start == task.step
        else "rewind"
        if task.rewind
        else ""
    )
    return f"{' '.join(words)}: {verb + ' ' if verb else ''}to step {task.step}"


def _last_line(error: str) -> str:
    return error.strip().splitlines()[-1] if error.strip() else "unknown error"


class _Lines:
    """One line for each task that ended."""

    def __init__(self, plan: Plan, console: Console):
        self.console, self.total, self.ended = console, len(plan.tasks), 0
        self.waiting: set[str] = set()

    def observe(self, task: Task, status: Status, outcome: Outcome | None) -> None:
        if status is Status.TODO and outcome is not None and outcome.error:
            line = f"again: {describe(task)} failed: {_last_line(outcome.error)}"
            self.console.print(line, markup=False, soft_wrap=True)
        if status in (Status.RUNNING, Status.TODO):
            return
        if status is Status.WAITING:
            if task.id not in self.waiting:
                self.waiting.add(task.id)
                self.console.print(f"waiting: another run writes {describe(task)}", markup=False)
            return
        self.ended += 1
        seconds = f" in {outcome.wall_s:.1f} s" if outcome else ""
        why = f": {_last_line(outcome.error)}" if outcome and outcome.error else ""
        line = f"[{self.ended}/{self.total}] {status.value}: {describe(task)}{seconds}{why}"
        self.console.print(line, markup=False, soft_wrap=True)


def _result_table(plan: Plan, store: Store, results: dict[str, Any], console: Console) -> Table:
    """A row for each requested cell; where the terminal is too narrow, without what matters least."""
    swept = [f"growth.{name}" for name in _swept(plan.requested)]
    columns = ["growth.step", "growth", *swept, "seed", "sunk FLOPs"]
    columns += ["base", "start", "final", "± se"]
    columns += [c.value for c in Control if any(c in cell.controls for cell in plan.requested)]
    table, endless = _table_of(columns, plan, store, results), console.options.update(width=10_000)
    for name in ("start", "sunk FLOPs", "± se", "base", "seed"):
        if console.measure(table, options=endless).maximum <= console.width:
            break
        columns.remove(name)
        table = _table_of(columns, plan, store, results)
    return table


def _table_of(columns: list[str], plan: Plan, store: Store, results: dict[str, Any]) -> Table:
    table = Table(title=None, box=None, pad_edge=False)
    for name in [*columns, "status"]:
        justify = "left" if name in ("growth", "status") else "right"
        table.add_column(name, justify=justify, no_wrap=name != "growth")
    seen: set[str] = set()
    for cell in plan.requested[:MAX_ROWS]:
        if cell.id not in seen:
            seen.add(cell.id)
            table.add_row(*_result_row(cell, store, columns), results[cell.id].status)
    if len(plan.requested) > MAX_ROWS:
        table.caption = f"{len(plan.requested) - MAX_ROWS} more rows: see report.py"
    return table


def _result_row(cell: Cell, store: Store, columns: list[str]) -> list[str]:
    accs = {role: _score(store, cell, key) for role, key in cell.states().items()}
    controls = {str(c): _score(store, other, other.leaf) for c, other in cell.controls.items()}
    fixed = {
        "growth.step": str(cell.config.growth.step),
        "growth": cell.growth if cell.kind == BRANCH else cell.kind,
        **{f"growth.{key}": str(value) for key, value in _settings(cell.config.growth).items()},
        "seed": str(cell.config.seed),
        "sunk FLOPs": f"{cell.sunk_flops:.3g}",
        "± se": _score(store, cell, cell.leaf, "acc_se"),
    }
    return [str(fixed.get(c) or accs.get(c) or controls.get(c) or "–") for c in columns]


def _score(store: Store, cell: Cell, address: Any, field: str = "acc") -> str | None:
    for line in store.evals(address.trajectory.id):
        if line["step"] == address.step and line["eval_id"] in (cell.eval_id, cell.probe.eval_id):
            return f"{line[field]:.3f}"
    return None


def _sources(plan: Plan) -> list[str]:
    """Each checkpoint that a trunk of the plan starts from: where, at what cost, with what."""
    found = [cell.trunk.source for cell in plan.requested if cell.trunk.source]
    return [
        f"{source.path}, {source.sunk_flops:.3g} FLOPs sunk, {'with' if source.has_moments else 'without'} "
        f"optimizer moments; tokens from step {source.data_start}"
        for source in dict.fromkeys(found)
    ]


def _collapsed(plan: Plan) -> str:
    asked, distinct = len(plan.requested), len({cell.id for cell in plan.requested})
    return f" ({asked} were asked for; some are the same)" if asked > distinct else ""


def _collapse_notes(plan: Plan) -> list[str]:
    """Which fields made no difference, for each group of requested cells that are one."""
    groups: dict[str, list[Cell]] = {}
    for cell in plan.requested:
        groups.setdefault(cell.id, []).append(cell)
    notes: Counter = Counter()
    for cells in groups.values():
        if len(cells) > 1:
            differing = {key: _values(cells, key) for key in _settings(cells[0].config.growth)}
            moot = "; ".join(f"growth.{key}={','.join(v)}" for key, v in differing.items() if len(v) > 1)
            notes[f"{moot or 'the same cell'} at growth.step={cells[0].config.growth.step} is one cell"] += 1
    return list(notes)


def _settings(growth: OperatorConfig) -> dict[str, Any]:
    """The growth section flat, by dotted key; `step` has a column of its own."""
    settings: dict[str, Any] = {}
    for name in growth.__dataclass_fields__:
        value = getattr(growth, name)
        if isinstance(value, OperatorConfig):
            settings |= {f"{name}.{key}": inner for key, inner in _settings(value).items()}
        elif name != "step":
            settings[name] = value
    return settings


def _swept(cells: list[Cell]) -> list[str]:
    """The growth settings that differ among cells and that the operators' names do not tell."""
    told = ("method", "width_method")
    keys = dict.fromkeys(key for cell in cells for key in _settings(cell.config.growth))
    return [key for key in keys if key.split(".")[-1] not in told and len(_values(cells, key)) > 1]


def _values(cells: list[Cell], key: str) -> list[str]:
    """What the cells that have a setting have there."""
    settings = [_settings(cell.config.growth) for cell in cells]
    return sorted({str(own[key]) for own in settings if key in own})


def _duration(seconds: float) -> str:
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            return f"about {seconds / unit:.3g} {name}"
    return f"about {seconds:.0f} s"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _console() -> Console:
    """The terminal; where there is none, lines wide enough not to be broken."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
