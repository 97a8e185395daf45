"""Optuna's sweeper over our cells: it asks batch by batch, and what diverged is a trial that failed."""

import importlib.util

import commands
import pytest
import tiny
import yaml

from sweeps.store import Store

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None,
    reason="hydra-optuna-sweeper is not installed",
)
TINY = [f"{k}={v}" for k, v in tiny.SHRINK.items() if k not in ("launch.executor", "growth.step")]
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=0"]


def optimized(place, *args):
    """Runs sweep.py under Optuna; what it says and its result file, None if there is none."""
    words = ["-m", "launch=serial", *TINY, *OPTUNA, *args]
    words += [f"launch.store={place / 'store'}", f"hydra.sweep.dir={place}", "controls=[]"]
    done = commands.run(tiny.ROOT / "sweep.py", *words, cwd=place)
    path = place / "optimization_results.yaml"
    return done, yaml.safe_load(path.read_text()) if path.exists() else None


def test_optuna_finds_the_best_of_what_is_done_and_never_what_diverged(tmp_path):
    """Where the least accuracy is asked for, a diverged cell would win if it counted as 0 or -inf."""
    swept = ["growth.step=range(4,9)", "growth.lr=0.004,1e30", "hydra.sweeper.direction=minimize"]
    done, found = optimized(tmp_path, *swept)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(tmp_path / "store")
    cells = {status: [] for status in ("done", "diverged")}
    for cell in store.study("adhoc")["cells"]["cells"]:
        cells[cell["status"]].append(cell)
    final = {(line["step"], line["eval_id"], cell["cell_id"]): line["acc"] for cell in cells["done"]
             for line in store.evals(cell["trajectory_id"])}  # fmt: skip
    accuracies = [
        final[cell["states"]["final"][1], cell["eval_id"], cell["cell_id"]] for cell in cells["done"]
    ]
    assert cells["diverged"]
    assert found is not None
    assert found["best_value"] == min(accuracies)
    assert found["best_params"]["growth.lr"] == 0.004
    trunk = cells["done"][0]["trunk_id"]
    assert [line["step"] for line in store.metrics(trunk)] == list(
        range(1, store.stored_steps(trunk)[-1] + 1)
    )
