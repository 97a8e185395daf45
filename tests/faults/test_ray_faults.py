"""Drivers and workers of a real Ray, killed at random moments of a sweep; two drivers of one store as well.

A worker's process is known by what it writes in `attempts/NN/log.txt`. `make fault` runs this.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny
import wreck

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

LONG = {
    "trunk__steps": 200,
    "growth__step": 100,
    "budget__extra_flops": 3e8,
    "controls": ["continued"],
    "launch__checkpoint_s": 0.2,
    "launch__keep_every": 50,
    "launch__threads": 1,
}
DRIVER = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from sweeps.study import run_study
sys.exit(run_study(json.loads({cells!r})).exit_code)
"""


def cells(root: Path, **fields):
    return wreck.study(root, "stack", "interposition", **LONG, **fields)


def start(mappings) -> subprocess.Popen:
    """A driver of its own process; what it says goes to a file beside the store."""
    script = DRIVER.format(tests=str(Path(tiny.__file__).parent), cells=json.dumps(mappings))
    said = Path(mappings[0]["launch"]["store"]).with_name("said.txt").open("a")
    with said:
        return subprocess.Popen([sys.executable, "-c", script], stdout=said, stderr=said)


def said(root: Path) -> str:
    return root.with_name("said.txt").read_text()


def workers(root: Path) -> list[int]:
    """Processes that have begun a task more often than ended one."""
    open_tasks: Counter[int] = Counter()
    for path in root.glob("trajectories/*/attempts/*/log.txt"):
        for pid, event in re.findall(r" (\d+): (.*)", path.read_text()):
            open_tasks[int(pid)] += 1 if " begins on " in event else -1
    return [pid for pid, count in open_tasks.items() if count > 0]


def progress(root: Path) -> int:
    """Lines of metrics: how far a sweep is, whatever the machine does beside it."""
    return sum(path.read_bytes().count(b"\n") for path in root.glob("trajectories/*/metrics.jsonl"))


def until(happens, process: subprocess.Popen, root: Path) -> None:
    deadline = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline, said(root)
        assert process.poll() is None, said(root)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    root = tmp_path_factory.mktemp("calm") / "store"
    status, output = wreck.run(cells(root))
    assert status == 0, output
    return root


@pytest.fixture(scope="module")
def head():
    """The address of a Ray that outlives its drivers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def test_an_undisturbed_sweep_on_that_ray_has_the_calm_bytes(calm, head, tmp_path):
    root = tmp_path / "store"
    process = start(on_ray(root, head))
    assert process.wait(timeout=300) == 0, said(root)
    assert wreck.differing(wreck.science(root), wreck.science(calm)) == []


def on_ray(root: Path, head: str):
    return cells(root, launch__executor="ray", launch__address=head, launch__workers=2)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was done
        os.kill(pid, signal.SIGKILL)


def assert_completed(root: Path, calm: Path) -> None:
    stored, evaluated = wreck.stored(root), wreck.evaluated(root)
    status, output = wreck.run(cells(root))
    assert status == 0, output
    assert wreck.differing(wreck.science(root), wreck.science(calm)) == []
    assert stored.items() <= wreck.stored(root).items(), "what was stored was trained again"
    assert evaluated <= wreck.evaluated(root)
    assert not wreck.litter(root)
    assert not wreck.half_states(root)


@pytest.mark.parametrize("victim", ["driver", "worker", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_on_ray_survives_kills(calm, head, tmp_path, victim, seed):
    """A killed worker costs the sweep an attempt and no result; a killed driver, or both, a rerun."""
    root = tmp_path / "store"
    process = start(on_ray(root, head))
    moment = random.Random(f"{victim} {seed}").randrange(int(0.7 * progress(calm)))
    busy: list[int] = []

    def reached() -> bool:
        busy[:] = workers(root)
        return bool(busy) and progress(root) >= moment

    until(reached, process, root)
    if victim in ("driver", "both"):
        process.kill()
    if victim in ("worker", "both"):
        kill(busy[0])
    status = process.wait(timeout=300)
    assert status == (0 if victim == "worker" else -signal.SIGKILL), said(root)
    assert_completed(root, calm)


@pytest.mark.parametrize("seed", range(6))
def test_of_two_drivers_one_is_killed_and_the_other_completes(calm, tmp_path, seed):
    root, generator = tmp_path / "store", random.Random(f"drivers {seed}")
    processes = [start(cells(root)) for _ in range(2)]
    moment = generator.randrange(int(0.7 * progress(calm)))
    until(lambda: workers(root) and progress(root) >= moment, processes[0], root)
    killed = generator.randrange(2)
    processes[killed].kill()
    assert processes[killed].wait(timeout=10) in (-signal.SIGKILL, 0)
    assert processes[1 - killed].wait(timeout=300) == 0, said(root)
    assert_completed(root, calm)
