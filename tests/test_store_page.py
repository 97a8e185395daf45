"""docs/store.md holds: every command runs, every heading is printed, its layout is what is written."""

import contextlib
import io
import re
import shlex

import pytest
import tiny

from sweeps.store import Store
from sweeps.store.__main__ import main
from sweeps.study import run_study

PAGE = (tiny.ROOT / "docs" / "store.md").read_text()
COMMANDS = re.findall(r"^python -m sweeps\.store (.*)$", PAGE, flags=re.MULTILINE)
BLOCKS = [block.splitlines() for block in re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)]
TINY = [f"{k}={v}" for k, v in tiny.SHRINK.items() if k not in ("launch.executor", "growth.step")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which `store` is the store of the page."""
    place = tmp_path_factory.mktemp("page")
    given = {"launch__store": str(place / "store"), "launch__keep_every": 2, "controls": []}
    assert run_study([tiny.mapping(growth__step=8, **given)]).exit_code == 0
    return place


def words_of(command, place):
    """The command with the ids of the store, and a tiny model where it asks about cells."""
    cell = Store(place / "store").study("adhoc")["cells"]["cells"][0]
    command = command.replace("TRAJECTORY", cell["trunk_id"]).replace("CELL", cell["cell_id"])
    tiny_cells = [*TINY, "trunk.steps=400"] if command.startswith("why") else []
    words = shlex.split(command)
    return [words[0], *tiny_cells, *words[1:]]


@pytest.fixture(scope="module")
def answers(place):
    """{command: (exit code, lines)} of all commands in their order, the removal last."""
    found = {}
    for command in COMMANDS:
        out = io.StringIO()
        with contextlib.chdir(place), contextlib.redirect_stdout(out):
            code = main(words_of(command, place))
        found[command] = code, [" ".join(line.split()) for line in out.getvalue().splitlines()]
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers(command, answers):
    code, lines = answers[command]
    assert code == 0
    assert lines


def test_every_heading_on_the_page_is_printed(answers):
    headings = [
        line for lines in BLOCKS for line in lines if re.match(r"(study|kind|begins|  field|what) ", line)
    ]
    assert (len(COMMANDS), len(headings)) == (11, 5)
    printed = {line for _, lines in answers.values() for line in lines}
    assert {" ".join(line.split()) for line in headings} <= printed


def test_the_layout_is_what_is_written(place):
    layout = PAGE.split("```\n")[1]
    named = set(re.findall(r"[\w.]+(?=/)|\w+\.jsonl?", layout))
    written = {path.name for path in place.glob("store/*")} - {"corpora"}
    written |= {path.name for path in place.glob("store/trajectories/*/*")} - {".lock"}
    assert written <= named
    assert written >= {"store.json", "spec.json", "metrics.jsonl", "evals.jsonl", "states", "attempts"}
