"""The commands as users type them: real processes, exit codes, what is written and what is not."""

import signal
import subprocess
import sys
import time

import commands
import pytest
import tiny
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from sweeps.store import Store

TINY = [f"{key}={value}" for key, value in tiny.SHRINK.items() if key != "launch.executor"]


def sweep(tmp_path, *args, launch="serial", background=False):
    multirun = [arg for arg in args if arg == "-m"]  # Hydra wants its flags before any override
    command = [sys.executable, str(tiny.ROOT / "sweep.py"), *multirun, f"launch={launch}", *TINY]
    command += [
        f"launch.store={tmp_path / 'store'}",
        f"hydra.run.dir={tmp_path}",
        f"hydra.sweep.dir={tmp_path}",
        *(arg for arg in args if arg != "-m"),
    ]
    if background or launch == "ray":
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
        return process if background else _ended(process)
    return commands.run(*command[1:], cwd=tmp_path)


def _ended(process):
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def untouched(tmp_path):
    return not (tmp_path / "store").exists()


def test_hydra_finds_the_plugins():
    assert "RegrowLauncher" in {cls.__name__ for cls in Plugins.instance().discover(Launcher)}
    assert "RegrowSweeper" in {cls.__name__ for cls in Plugins.instance().discover(Sweeper)}


def test_a_grid_runs_as_one_study_and_a_rerun_trains_nothing(tmp_path):
    args = ("-m", "growth.step=0,4,8", "growth.method=stack,interposition", "growth.width_method=none")
    first = sweep(tmp_path, *args)
    assert first.returncode == 0, first.stderr
    study = Store(tmp_path / "store").study("adhoc")
    assert study["plan"]["cells"] == 5  # at step 0 both methods are scratch
    assert study["summary"]["failed"] == 0
    assert "growth.method=interposition,stack at growth.step=0 is one cell" in first.stdout
    again = sweep(tmp_path, *args)
    assert again.returncode == 0
    assert "0 FLOPs trained" in again.stdout
    wanted = {"cells", "controls", "trajectories", "tasks", "cached_tasks"}
    wanted |= {"flops_naive", "flops_shared", "flops_rewind", "flops_todo"}
    assert wanted <= set(study["plan"])
    assert {"done", "cached", "failed", "blocked", "diverged", "spent_flops", "wall_s"} <= set(
        study["summary"]
    )


@pytest.mark.slow
def test_one_cell_without_m_runs_on_ray_and_leaves_nothing_but_the_store(tmp_path):
    done = sweep(tmp_path, launch="ray", background=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert not list((tmp_path / "store" / "drivers").iterdir())


def test_plan_only_trains_and_writes_nothing(tmp_path):
    done = sweep(tmp_path, "-m", "growth.step=4,8", "+plan=only")
    assert done.returncode == 0, done.stderr
    assert "FLOPs" in done.stdout
    assert untouched(tmp_path)


@pytest.mark.parametrize(("args", "words"), [
    (["growth.step=99"], "growth.step=99 is beyond trunk.steps=16"),
    (["growth.step=-1"], "growth.step=-1 must not be negative"),
    (["+growth.stpe=1"], "unknown key growth.stpe"),
    (["data=text", "data.path=nowhere"], "data.path=nowhere"),
    (["-m", "growth.step=4,99"], "growth.step=99 is beyond trunk.steps=16"),
    (["-m", "launch.keep_every=4,8"], "launch differs between cells"),
    (["-m", "controls=[sham],[continued]"], "controls differs between cells"),
    (["evaluate.probe_items=17"], "evaluate.probe_items=17 is above evaluate.items=16"),
    ([f"launch.store={tiny.ROOT}/sweep.py/x"], "sweep.py/x cannot be written"),
    (["-m", "growth=depth", "growth.noise_scale=0.1,0.2"], "the 2 requested cells are all one"),
    (["-m", "study=quickstart,quickstart_text"], "study cannot be swept"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line_with_exit_code_2(tmp_path, args, words):
    done = sweep(tmp_path, *args)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert untouched(tmp_path)


def test_a_misspelt_key_is_refused_by_hydra(tmp_path):
    done = sweep(tmp_path, "growth.stpe=1")
    assert done.returncode == 1
    assert "stpe" in done.stderr
    assert untouched(tmp_path)


def test_a_failure_is_exit_code_1_and_named(tmp_path):
    """Every attempt at the trunk raises; the table names it and how to try again."""
    program = str(tiny.ROOT / "sweep.py")
    code = f"""
import runpy, sys
import sweeps.derivation
def broken(*args, **options):
    raise RuntimeError("the trunk cannot be trained")
sweeps.derivation.Trainer = broken
sys.argv = sys.argv[1:]
runpy.run_path({program!r}, run_name="__main__")
"""
    words = ["-m", "launch=serial", *TINY, f"launch.store={tmp_path / 'store'}"]
    words += [f"hydra.sweep.dir={tmp_path}", "growth.step=4,8"]
    done = commands.run("-c", code, "sweep.py", *words, cwd=tiny.ROOT)
    assert done.returncode == 1
    assert "the trunk cannot be trained" in done.stdout
    assert "To try again what failed: python " in done.stdout
    assert Store(tmp_path / "store").study("adhoc")["summary"]["failed"] > 0


@pytest.mark.parametrize(
    ("launch", "signum"),
    [
        ("serial", signal.SIGTERM),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("serial", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_sweep_exits_130_and_goes_on(tmp_path, launch, signum):
    args = ("growth.step=4000", "trunk.steps=4000", "evaluate.probe_every=100", "controls=[]")
    process = sweep(tmp_path, *args, launch=launch, background=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "store").glob("trajectories/*/metrics.jsonl")):
        assert time.monotonic() < deadline, "nothing was trained"
        time.sleep(0.05)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    store = Store(tmp_path / "store")
    trunk = next((tmp_path / "store" / "trajectories").glob("trunk-*")).name[-12:]
    (step,) = store.stored_steps(trunk)
    assert 0 < step < 4000
    assert len(store.metrics(trunk)) == step
    assert "To go on: python" in out
    assert not list((tmp_path / "store" / "drivers").iterdir())
    again = sweep(tmp_path, *args, f"growth.step={step + 8}")
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in store.metrics(trunk)] == list(range(1, step + 9))


# Serially on every run. On Ray it is slow, and held in its parts: a worker that dies and one that still
# writes, in test_executors.py and test_two_drivers.py; kills at each point of writing, in faults/.
@pytest.mark.parametrize("launch", ["serial", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_killed_driver_is_followed_by_a_rerun_with_the_same_bytes(tmp_path, launch):
    """The rerun may come while the dead driver's worker still writes: it waits its turn."""
    args = ("-m", "growth.step=150,200", "trunk.steps=200", "evaluate.probe_every=20")
    args += ("controls=[continued]",)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    killed.mkdir()
    process = sweep(killed, *args, launch=launch, background=True)
    deadline = time.monotonic() + 60
    while not list(killed.glob("store/trajectories/*/metrics.jsonl")):
        assert time.monotonic() < deadline, "nothing was trained"
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    for place in (killed, calm):
        done = sweep(place, *args)
        assert done.returncode == 0, done.stdout + done.stderr
    stores = [{p.relative_to(place): p.read_bytes() for p in science(place)} for place in (calm, killed)]
    assert stores[0] == stores[1]
    assert len(stores[0]) > 10


def science(place):
    """The files whose bytes must not depend on how a run went."""
    kinds = (".jsonl", ".safetensors")
    return [
        p for p in place.glob("store/trajectories/*/**/*") if p.suffix in kinds and "attempts" not in p.parts
    ]


SEE = """
from hydra.experimental.callback import Callback
class See(Callback):
    def on_job_end(self, config, job_return, **kwargs):
        print("RETURNED", job_return.return_value)
"""


def test_what_hydra_is_handed_back_is_the_stored_accuracy(tmp_path, monkeypatch):
    """An optimising sweeper or a callback sees the value, in the order of the grid."""
    (tmp_path / "see.py").write_text(SEE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = sweep(tmp_path, "-m", "growth.step=4,8", "controls=[]", "+hydra.callbacks.see._target_=see.See")
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "store")
    rows = {row["growth_step"]: row for row in store.study("adhoc")["cells"]["cells"]}
    for step in (4, 8):
        (trajectory_id, final), eval_id = rows[step]["states"]["final"], rows[step]["eval_id"]
        lines = store.evals(trajectory_id)
        acc = next(line["acc"] for line in lines if (line["step"], line["eval_id"]) == (final, eval_id))
        assert f"RETURNED {acc}" in done.stdout
