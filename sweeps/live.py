"""The view of a study while it runs in a terminal: the tree of its trajectories, redrawn in place."""

import time
from collections.abc import Callable
from threading import RLock
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.execute import Status
from sweeps.outcome import Outcome
from sweeps.plan import Plan, Task
from sweeps.store import Store
from sweeps.tree import Fold, Standing, Tree
from sweeps.watch import Watch

REFRESH_HZ = 2.0
MAX_WIDTH = 120
MAX_ERRORS = 3

_LOOKS = {  # mark, the same where only ASCII can be shown, style
    Standing.CACHED: ("✓", "+", "dim"),
    Standing.DONE: ("✓", "+", "green"),
    Standing.RUNNING: ("▸", ">", "cyan"),
    Standing.WAITING: ("…", "~", "yellow"),
    Standing.TODO: ("·", ".", "dim"),
    Standing.BLOCKED: ("–", "-", "yellow"),
    Standing.FAILED: ("✗", "x", "bold red"),
    Standing.DIVERGED: ("∞", "!", "magenta"),
    Standing.LOST: ("↺", "?", "yellow"),
}
_ASCII_GUIDES = str.maketrans("├└│", "|`|")
_TROUBLES = (Status.FAILED, Status.BLOCKED, Status.DIVERGED, Status.LOST)


class LiveTree:
    """A context manager that draws; `observe` is told of every change of a task, `render` gives the view.

    Never taller than the terminal. A refresh reads one line of each running trajectory, nothing else anew.
    """

    def __init__(
        self,
        study_name: str,
        plan: Plan,
        store: Store,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.study_name, self.plan, self.store, self.console = study_name, plan, store, console
        self.tree, self.watch = Tree(plan.trajectories.values()), Watch(plan, store, clock)
        self.lock = RLock()  # the thread that redraws reads what the driver's changes
        self.live = Live(
            get_renderable=self.render,
            console=console,
            refresh_per_second=REFRESH_HZ,
            vertical_overflow="crop",
        )

    def __enter__(self) -> "LiveTree":
        self.live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def observe(self, task: Task, status: Status, outcome: Outcome | None) -> None:
        with self.lock:
            self.watch.observe(task, status, outcome)

    def render(self) -> RenderableType:
        with self.lock:
            self.watch.poll()
            width, height = min(self.console.width, MAX_WIDTH), self.console.height
            head, errors = self._head(width), self._errors(width)
            room = max(1, height - len(head) - len(errors) - 1)
            return Group(*head, *self._rows(width, room), *errors)

    # -- above -------------------------------------------------------------------------------------------

    def _head(self, width: int) -> list[RenderableType]:
        counts, num_tasks = self.watch.counts, len(self.plan.tasks)
        done_flops = self.watch.flops()[0]
        total_flops = self.plan.flops_todo + self.plan.flops_rewind
        words = [f"study {self.study_name}", f"tasks {counts[Status.DONE]}/{num_tasks}"]
        words += [f"{counts[status]} {status.value}" for status in _TROUBLES if counts[status]]
        words += [f"{self.plan.cached_tasks} cached"] if self.plan.cached_tasks else []
        words += [f"FLOPs {done_flops:.3g}/{total_flops:.3g}", f"elapsed {_clock(self.watch.elapsed_s)}"]
        eta_s, speed = self.watch.eta_s(), self.watch.tokens_per_s
        words += [f"ETA {_clock(eta_s)}"] if eta_s is not None else []
        words += [f"{_short(speed)} tokens/s"] if speed else []
        if total_flops:
            share = done_flops / total_flops
        else:  # there are only evaluations to do, or nothing
            share = counts[Status.DONE] / num_tasks if num_tasks else 1.0
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.width = width
        bar.add_column(ratio=1)
        bar.add_column(width=4, justify="right")
        bar.add_row(ProgressBar(total=1.0, completed=share), f"{int(100 * share)}%")
        return [*_packed(words, width), bar]

    # -- the tree ----------------------------------------------------------------------------------------

    def _rows(self, width: int, room: int) -> list[RenderableType]:
        """Tables of equal columns, with a fold's line, which is wider than a label, between them."""
        columns, parts = _columns(width), []
        table: Table | None = None
        for line in self.tree.lines(self.watch.standings, room):
            guide = line.guide.translate(_ASCII_GUIDES) if self._is_ascii else line.guide
            if isinstance(line.what, Fold):
                parts.append(Text(f"{guide}{line.what}", "dim", no_wrap=True, overflow="ellipsis"))
                table = None
                continue
            if table is None:
                table = _table(width, columns)
                parts.append(table)
            cells = self._cells(line.what, columns)
            label = Text.assemble((guide, "dim"), self.tree.labels[line.what])
            table.add_row(label, *(cells[name] for name in columns))
        return parts

    def _cells(self, id: str, columns: dict[str, int]) -> dict[str, RenderableType]:
        standing, track = self.watch.standings[id], self.watch.tracks.get(id)
        mark, plain_mark, style = _LOOKS[standing]
        word = Text(f"{plain_mark if self._is_ascii else mark} {standing.value}", style)
        done, total = self.watch.steps(id)
        bar, speed = "", track.tokens_per_s if track else None
        if total and (done or standing is Standing.RUNNING):
            bar = ProgressBar(total=total, completed=done, width=columns.get("bar"), finished_style="green")
        return {
            "standing": word,
            "bar": bar,
            "steps": f"{done}/{total}" if total else "",
            "speed": f"{_short(speed)} tok/s" if speed else "",
            "value": self._value(id, standing),
        }

    def _value(self, id: str, standing: Standing) -> str:
        """The accuracy of what is complete, the loss of what is not."""
        if standing in (Standing.DONE, Standing.CACHED):
            scores = self.store.evals(id)
            return f"acc {max(scores, key=_place)['acc']:.3f}" if scores else ""
        track = self.watch.tracks.get(id)
        if track is None or track.loss is None:
            return ""
        return "rewinding" if track.running and track.running.rewind else f"loss {track.loss:.3f}"

    # -- below -------------------------------------------------------------------------------------------

    def _errors(self, width: int) -> list[RenderableType]:
        shown = list(self.watch.errors.items())[-MAX_ERRORS:]
        mark = _LOOKS[Standing.FAILED][1 if self._is_ascii else 0]
        texts = [Text(f"{mark} {self.tree.labels[id]}: {error}", "red") for id, error in shown]
        for text in texts:
            text.truncate(width, overflow="ellipsis")
        return [*texts]

    @property
    def _is_ascii(self) -> bool:
        return not self.console.encoding.startswith("utf")


def _columns(width: int) -> dict[str, int]:
    """The columns beside the label that a terminal of this width has room for, and their widths."""
    columns = {"standing": 10 if width >= 66 else 1}  # the mark with its word, or alone
    if width >= 50:
        columns["bar"] = 12 if width >= 90 else 8
    if width >= 76:
        columns["steps"] = 10
    if width >= 84:
        columns["speed"] = 10
    return columns | {"value": 10}


def _table(width: int, columns: dict[str, int]) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.width = width
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for name, size in columns.items():
        justify = "right" if name in ("steps", "speed") else "left"
        table.add_column(width=size, no_wrap=True, overflow="crop", justify=justify)
    return table


def _place(line: dict[str, Any]) -> tuple[int, bool]:
    """The last step's evaluation; of several there that of a tap, not the probe along the way."""
    return line["step"], "tap" in line


def _packed(words: list[str], width: int) -> list[RenderableType]:
    """Words on as few lines as hold them."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]}  {word}" if lines[-1] else word
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [Text(line, "bold", no_wrap=True, overflow="ellipsis") for line in lines]


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _short(number: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return f"{number:.0f}"
