"""What a person sees: the plan, bars in a terminal, lines in a pipe, the table at the end."""

import io
import re

import pytest
import tiny
from rich.console import Console

from sweeps import progress
from sweeps.study import run_study


def seen(monkeypatch, terminal: bool, term: str = "xterm", **fields) -> str:
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=terminal,
        width=140,
        height=40,
        highlight=False,
        color_system=None,
        _environ={"TERM": term},
    )
    monkeypatch.setattr(progress, "_console", lambda: console)
    steps = fields.pop("steps", (4, 8))
    run_study([tiny.mapping(growth__step=step, **fields) for step in steps])
    return text.getvalue()


@pytest.fixture(scope="module")
def piped(tmp_path_factory):
    """What a whole study says to a pipe."""
    with pytest.MonkeyPatch.context() as patch:
        return seen(patch, False, launch__store=str(tmp_path_factory.mktemp("piped") / "store"))


def test_a_pipe_gets_one_line_for_each_task(piped):
    lines = [line for line in piped.splitlines() if "done: " in line]
    count = int(re.search(r"tasks +(\d+) to do, 0 cached", piped)[1])
    assert [line.split()[0] for line in lines] == [f"[{i}/{count}]" for i in range(1, count + 1)]
    assert "\x1b" not in piped


def test_a_terminal_gets_the_tree_as_it_grows(monkeypatch, store_root):
    monkeypatch.setattr("sweeps.derivation.FLUSH_S", 0.0)
    monkeypatch.setattr("sweeps.live.REFRESH_HZ", 10.0)
    text = seen(monkeypatch, True, launch__store=store_root, steps=(30,), trunk__steps=30)
    assert re.search(r"trunk seed 0 +▸ running +━* +\d+/\d+", text)
    assert re.search(r"└ @\d+ anneal +✓ done +━+ +\d+/\d+ +acc 0\.\d{3}", text)
    assert "tasks 8/8" in text
    assert "100%" in text


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch, store_root):
    text = seen(monkeypatch, True, term="dumb", launch__store=store_root, steps=(4,), controls=[])
    assert text.count("] done: ") == int(re.search(r"tasks +(\d+) to do", text)[1])
    assert "running" not in text


def test_a_line_says_why_a_task_failed(monkeypatch, store_root):
    def broken(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr("sweeps.derivation.grow_weights", broken)
    text = seen(monkeypatch, False, launch__store=store_root, launch__max_attempts=1, steps=(4,))
    lines = [line for line in text.splitlines() if "] failed: " in line]
    assert lines
    assert all(line.endswith(": RuntimeError: no such operator") for line in lines)


def test_an_attempt_that_failed_is_shown_with_what_comes_of_it(monkeypatch, store_root):
    from sweeps.derivation import Derivation

    original, failed = Derivation.run, []

    def run(self):
        if not failed:
            failed.append(self.order.task_id)
            raise RuntimeError("out of luck")
        return original(self)

    monkeypatch.setattr(Derivation, "run", run)
    text = seen(monkeypatch, False, launch__store=store_root, steps=(4,), controls=[])
    assert re.search(r"again: trunk seed 0: to step \d+ failed: RuntimeError: out of luck", text)
    warned = f"warning: {failed[0]}: attempt 1 of 2 failed (RuntimeError: out of luck); it is tried again"
    assert warned in text
    assert "failed: trunk" not in text.split(warned)[1]


def test_a_narrow_terminal_gets_fewer_columns_and_no_broken_rows(monkeypatch, store_root):
    text = io.StringIO()
    console = Console(file=text, width=100, highlight=False)
    monkeypatch.setattr(progress, "_console", lambda: console)
    controls = ["continued", "scratch_extra", "scratch_total", "sham"]
    run_study([tiny.mapping(growth__step=4, launch__store=store_root, controls=controls)])
    (header,) = [line for line in text.getvalue().splitlines() if line.startswith("growth.step")]
    assert {"final", "status", *controls} <= set(header.split())
    assert "start" not in header.split()
    assert re.search(r"^ +4 +interposition \+ .* done *$", text.getvalue(), re.MULTILINE)
    assert max(map(len, text.getvalue().splitlines())) <= 100


def test_the_end_shows_every_cell_with_its_controls(piped):
    header = next(line for line in piped.splitlines() if line.startswith("growth.step"))
    for name in ("base", "start", "final", "continued", "scratch_extra"):
        assert name in header
    rows = [line for line in piped.splitlines() if re.match(r" +[48] +interposition \+ duplicate ", line)]
    assert len(rows) == 2
    assert "1.000 of the plan" in piped


def test_the_end_shows_what_was_swept(monkeypatch, store_root):
    text = io.StringIO()
    console = Console(file=text, width=160, highlight=False)
    monkeypatch.setattr(progress, "_console", lambda: console)
    given = {"launch__store": store_root, "controls": []}
    run_study([tiny.mapping(growth__seed=seed, **given) for seed in (3, 4)])
    header = next(line for line in text.getvalue().splitlines() if line.startswith("growth.step"))
    assert header.split().count("growth.seed") == 1
    assert re.search(r"duplicate +4 +0 ", text.getvalue())


def test_the_plan_says_what_sharing_saves(piped):
    assert "if every cell ran alone" in piped
    assert "x less" in piped


@pytest.mark.parametrize(
    ("seconds", "words"), [(30, "about 30 s"), (240, "about 4 min"), (1e6, "about 11.6 days")]
)
def test_durations_are_readable(seconds, words):
    assert progress._duration(seconds) == words


def test_results_of_another_commit_are_pointed_out(monkeypatch, store_root):
    given = {"launch__store": store_root, "steps": (4,), "controls": []}
    monkeypatch.setattr("sweeps.study.git_commit", lambda: "aaa")
    assert "were made by commit" not in seen(monkeypatch, False, **given)
    monkeypatch.setattr("sweeps.study.git_commit", lambda: "bbb")
    text = seen(monkeypatch, False, **given)
    assert "stored results of adhoc were made by commit aaa; the source is now bbb" in text
