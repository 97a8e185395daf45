"""Every command of the README runs, shrunk to a tiny model; every file and figure it names is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import checkpoints
import commands
import pytest
import tiny

from sweeps.store import Store

README = (tiny.ROOT / "README.md").read_text()
COMMANDS = [
    line.split("   #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
]
TINY = [f"{k}={v}" for k, v in tiny.SHRINK.items() if not k.startswith(("launch.executor", "growth.step"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands expect: a checkpoint of the name that they give it."""
    place = tmp_path_factory.mktemp("readme")
    sizes = {"hidden_size": 32, "num_layers": 2, "num_experts": 4, "expert_size": 16, "vocab_size": 64}
    (source,) = {word for c in COMMANDS for word in re.findall(r"source=(\S+)", c) if "recycle.py" in c}
    checkpoints.random_weights(place / source, *checkpoints.qwen3(**sizes))
    return place


def shrunk(command: str, place: Path) -> str:
    """The command with a tiny model, a store of its own, and no Ray (which has tests of its own).

    The function of a grown checkpoint is not run: tests/test_recycle.py does, and transformers takes 5 s.
    """
    if "recycle.py" in command:
        return f"{command} verify=false" if "do=" not in command else f"{command} memory_limit=1MiB"
    more = [f"launch.store={place / 'store'}"]
    if "report.py" in command:
        return " ".join([command, *more, f"report.dir={place / 'report'}"])
    more += [
        *TINY,
        "trunk.steps=400",
        "evaluate.probe_every=100",
        f"hydra.sweep.dir={place}",
        f"hydra.run.dir={place}",
    ]
    more += [] if "launch=" in command else ["launch=serial"]
    if "study=" in command:
        more.append("growth.step=0,8")
    return " ".join([command, *more])


def in_words(line: str) -> list[str]:
    """What a shell makes of a line: `python -c` in it is run, too."""
    if "$" not in line:
        return shlex.split(line)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shell = ["bash", "-c", rf"printf '%s\n' {line}"]
    said = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python")])
def test_every_readme_command_runs(command, place):
    program = command.split()[1]
    line = shrunk(command.replace(program, str(tiny.ROOT / program), 1), place)
    python, *words = in_words(line)
    assert python == "python"
    # Without pictures, which test_report.py has of the same command.
    done = commands.run(*words, cwd=place, env={**os.environ, "WANDB_SILENT": "true"}, renders=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if "report.py" in command:
        assert (place / "report" / "index.html").exists()
    elif "do=verify" in command:
        assert "equal to their source, byte by byte" in done.stdout
    elif "plan=only" not in command and "recycle.py" not in command:
        name = re.search(r"study=(\w+)", command)
        assert Store(place / "store").study(name[1] if name else "adhoc")["summary"]["failed"] == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_its_targets(command):
    done = subprocess.run([*command.split(), "--dry-run"], cwd=tiny.ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_the_readme_has_commands_and_they_are_all_known():
    assert len(COMMANDS) >= 8
    assert {c.split()[0] for c in COMMANDS} == {"python", "make"}


def test_every_file_the_readme_names_exists():
    named = set(re.findall(r"\]\(((?!http)[^)]+)\)", README)) | set(
        re.findall(r"`([\w/]+\.(?:py|yaml))`", README)
    )
    assert named
    assert {name for name in named if not (tiny.ROOT / name).exists()} == set()
