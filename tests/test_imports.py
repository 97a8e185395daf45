"""The walls of the building, read from the imports."""

import ast
import json
import subprocess
import sys

import pytest
import tiny

ALLOWED = {  # who may import whom, by top-level place
    "moe": {"moe"},
    "sweeps": {"sweeps", "moe"},
    "hydra_plugins": {"hydra_plugins", "sweeps"},
    "analysis": {"analysis", "sweeps.store", "moe.config", "moe.flops", "moe.operator", "moe.plain"},
    "sweep.py": {"sweeps"},
    "report.py": {"analysis", "sweeps.store", "moe.plain"},
    "recycle.py": {"moe", "analysis.figures"},  # which it draws with; moe does not
}
OURS = ("moe", "sweeps", "analysis", "hydra_plugins", "sweep", "report", "recycle")
ONLY_IN = {"ray": "sweeps/ray/", "wandb": "sweeps/tracking.py", "wandb_workspaces": "sweeps/workspace.py"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def sources(place):
    top = tiny.ROOT / place
    return [top] if top.is_file() else sorted(top.rglob("*.py"))


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_point_one_way(place):
    assert sources(place)
    for path in sources(place):
        for module in imports(path):
            if module.split(".")[0] in OURS:
                allowed = any(module == ok or module.startswith(ok + ".") for ok in ALLOWED[place])
                # `from moe import flops` names the package; what it takes is checked by its own name.
                assert allowed or module == "moe", f"{path.relative_to(tiny.ROOT)} imports {module}"


@pytest.mark.parametrize(("library", "home"), ONLY_IN.items())
def test_ray_and_wandb_are_imported_in_one_place(library, home):
    users = {
        str(path.relative_to(tiny.ROOT))
        for place in ALLOWED
        for path in sources(place)
        if library in {module.split(".")[0] for module in imports(path)}
    }
    assert users
    assert all(user.startswith(home) for user in users), users


LIGHT = (
    *("moe.data", "sweeps.plan", "sweeps.store", "sweeps.study", "hydra_plugins.regrow.launcher"),
    *("analysis.correlation", "analysis.advice_text", "analysis.report"),  # pandas may import pyarrow
)
HEAVY = ("torch", "ray", "wandb", "datasets", "pyarrow", "tokenizers", "huggingface_hub")
ONE_BY_ONE = """
import importlib, json, sys
found = {}
for module in sys.argv[1].split():
    importlib.import_module(module)
    found[module] = sorted(set(sys.argv[2].split()) & set(sys.modules))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded():
    """What of the heavy is there after each of the light modules, imported one after another."""
    command = [sys.executable, "-c", ONE_BY_ONE, " ".join(LIGHT), " ".join(HEAVY)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, cwd=tiny.ROOT).stdout)


@pytest.mark.parametrize("module", LIGHT)
def test_planning_and_analysis_need_no_heavy_library(module, loaded):
    assert set(loaded[module]) <= ({"pyarrow"} if module.startswith("analysis") else set())
