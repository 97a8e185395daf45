"""Every shipped configuration is used: studies plan, models build, groups compose."""

import itertools

import pytest
import tiny
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sweeps.cell import resolve
from sweeps.config import parse_sweep
from sweeps.plan import make_plan

CONF = tiny.ROOT / "conf"
STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


@pytest.fixture
def corpus(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"This is document number {i}, and it says {i * i}. " * 30)
    return str(tmp_path)


def cells_of(study: str, *overrides: str):
    """The cells of a study file's grid, composed one by one as Hydra would."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        whole = compose("config", overrides=[f"study={study}", *overrides], return_hydra_config=True)
        params = whole.hydra.sweeper.params
        grid = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
        for values in itertools.product(*grid):
            cfg = compose("config", overrides=[f"study={study}", *overrides, *values])
            yield resolve(parse_sweep(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)))


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_file_plans(study, corpus):
    overrides = [f"data.path={corpus}"] if "text" in study else []
    plan = make_plan(cells_of(study, *overrides), tiny.Nothing())
    assert plan.flops_naive > plan.flops_shared > 0
    assert all(cell.config.study_name == study for cell in plan.requested)
    assert all(cell.controls for cell in plan.requested if cell.kind == "branch")


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_a_multirun_and_names_itself(study):
    text = (CONF / "study" / f"{study}.yaml").read_text()
    assert text.startswith("# @package _global_")
    assert "mode: MULTIRUN" in text
    assert f"study_name: {study}" in text


def test_quickstart_is_what_the_readme_promises():
    """At least 5 growth steps x both methods + scratch, about 1.2e13 FLOPs, with continued and scratch."""
    plan = make_plan(cells_of("quickstart"), tiny.Nothing())
    grown = [cell for cell in plan.requested if cell.kind == "branch"]
    assert len({cell.config.growth.step for cell in grown}) >= 5
    assert {str(cell.config.growth.method) for cell in grown} == {"stack", "interposition"}
    assert any(cell.kind == "scratch" for cell in plan.requested)
    assert plan.flops_shared < 1.3e13
    assert {str(name) for cell in grown for name in cell.controls} == {"continued", "scratch_extra"}


GROUPS = [
    (group.name, path.stem)
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name not in ("study", "report")
    for path in sorted(group.glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_choice_of_every_group_parses(group, name, corpus):
    overrides = [f"{group}={name}", "budget.extra_flops=1e30"]
    overrides += {"text": [f"data.path={corpus}"], "huggingface": [f"data.name={corpus}"]}.get(name, [])
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    resolve(parse_sweep(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)))
