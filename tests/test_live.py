"""The live tree as it stands in a terminal, drawn from a plan and a store that says what was trained.

live_screens.txt holds the screens as a person read and approved them.
"""

import io
import re

import pytest
import tiny
from rich.console import Console

from sweeps.execute import Status
from sweeps.live import LiveTree
from sweeps.outcome import Outcome, Result
from sweeps.plan import make_plan
from sweeps.trajectory import Kind


class Told(tiny.Nothing):
    """A store whose last lines are told to it; what is `held` is evaluated wherever one asks."""

    def __init__(self, held=False):
        self.metrics, self.scores, self.held = {}, {}, held

    def evaluated(self, trajectory_id):
        return _All() if self.held else set()

    def last_metric(self, trajectory_id):
        return self.metrics.get(trajectory_id)

    def evals(self, trajectory_id):
        return [{"step": 1, "acc": self.scores.get(trajectory_id, 0.25)}]


class _All(set):
    def __contains__(self, item):
        return True


class Seen:
    """A live tree at a clock that stands still between moves, and the screen it gives."""

    def __init__(self, width=100, height=30, held=False, encoding="utf-8"):
        self.store, self.now = Told(held), 0.0
        self.plan = make_plan([tiny.cell(growth__method=m) for m in ("stack", "interposition")], self.store)
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        self.console = Console(
            file=file,
            width=width,
            height=height,
            force_terminal=True,
            color_system=None,
            legacy_windows=False,
        )
        self.live = LiveTree("timing", self.plan, self.store, self.console, clock=lambda: self.now)

    def tasks(self, kind, method="none"):
        """The tasks of the one trajectory of a kind, and of a method if it grows, in their order."""
        found = [task for task in self.plan.tasks.values() if task.trajectory.kind is kind]
        found = [task for task in found if task.trajectory.operator.method.value == method]
        return sorted(found, key=lambda task: task.step)

    def set(self, task, status, error=None):
        result = Result.FAILED if error else Result.DONE
        self.live.observe(task, status, Outcome(task_id=task.id, result=result, error=error))

    def at(self, now, task, step, loss):
        """The clock, and what the store holds then of a trajectory."""
        self.now = now
        tokens = step * task.trajectory.train.tokens_per_step
        self.store.metrics[task.trajectory.id] = {"step": step, "loss": loss, "tokens": tokens}
        self.screen()

    def screen(self):
        with self.console.capture() as capture:
            self.console.print(self.live.render())
        return [line.rstrip() for line in capture.get().splitlines()]


def in_the_middle(seen):
    """The trunk is at its first tap; one branch is grown and trains."""
    trunk, branch = seen.tasks(Kind.TRUNK)[0], seen.tasks(Kind.BRANCH, "stack")
    seen.set(trunk, Status.RUNNING)
    seen.at(1.0, trunk, 2, 5.5)
    seen.at(7.0, trunk, 8, 5.5)
    seen.set(trunk, Status.DONE)
    seen.set(branch[0], Status.RUNNING)
    seen.set(branch[0], Status.DONE)
    seen.set(branch[1], Status.RUNNING)
    seen.at(8.0, branch[1], 1, 4.125)
    seen.at(10.0, branch[1], 2, 4.125)


def failed(seen):
    in_the_middle(seen)
    seen.set(seen.tasks(Kind.BRANCH, "stack")[1], Status.FAILED, "Traceback\nRuntimeError: no room")
    for task in seen.plan.tasks.values():
        if task.needs == (seen.tasks(Kind.BRANCH, "stack")[1].id,):
            seen.set(task, Status.BLOCKED)


STATES = {"start": None, "middle": in_the_middle, "failed": failed, "cached": None}


def drawn(state, width, height):
    seen = Seen(width, height, held=state == "cached")
    if STATES[state] is not None:
        STATES[state](seen)
    return seen.screen()


def approved():
    text = (tiny.ROOT / "tests" / "live_screens.txt").read_text()
    for heading, screen in re.findall(r"^# (.*)\n((?:(?!# ).*\n)*)", text, flags=re.MULTILINE):
        state, width, height = heading.split()
        yield state, int(width), int(height), screen.splitlines()


@pytest.mark.parametrize(("state", "width", "height", "screen"), list(approved()))
def test_the_screen_is_the_one_that_was_approved(state, width, height, screen):
    assert drawn(state, width, height) == screen


@pytest.mark.parametrize("width", [20, 36, 50, 66, 76, 84, 200])
@pytest.mark.parametrize("height", [3, 6, 30])
def test_no_line_is_wider_and_no_screen_taller_than_the_terminal(width, height):
    for state in ("middle", "failed"):
        lines = drawn(state, width, height)
        assert max(map(len, lines)) <= width
        assert len(lines) <= max(height, 10)  # what stands above and below the tree is never cut by us


def test_where_only_ascii_can_be_shown_nothing_else_is():
    seen = Seen(encoding="ascii")
    failed(seen)
    assert "\n".join(seen.screen()).isascii()
    assert "| ` @4 anneal" in "\n".join(seen.screen())


def test_a_refresh_reads_the_lines_of_what_runs_and_no_others(monkeypatch):
    seen = Seen()
    in_the_middle(seen)
    asked = []
    monkeypatch.setattr(seen.store, "last_metric", asked.append)
    for seen.now in (20.0, 20.1, 20.2, 21.0):  # those in between come too soon
        seen.screen()
    assert asked == [seen.tasks(Kind.BRANCH, "stack")[1].trajectory.id] * 2


def test_what_was_trained_before_a_rewind_does_not_count_as_its_progress():
    seen = Seen()
    (task, *_) = seen.tasks(Kind.TRUNK)
    seen.set(task, Status.RUNNING)
    seen.at(1.0, task, 1000, 3.0)  # the store's last line lies beyond the task
    assert next(line for line in seen.screen() if line.startswith("trunk")).split()[-3] == "0/15"


def test_an_error_longer_than_the_terminal_takes_one_line():
    seen = Seen(width=40)
    seen.set(seen.tasks(Kind.TRUNK)[0], Status.FAILED, "RuntimeError: " + "long " * 40)
    last = seen.screen()[-1]
    assert last.startswith("✗ trunk seed 0: RuntimeError: long")
    assert last.endswith("…")
