"""Every shipped configuration is used: studies plan, models build, groups compose."""

import functools
import itertools
import re

import pytest
import tiny
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.regrow.compose import Composer
from sweeps.cell import resolve
from sweeps.config import parse_sweep
from sweeps.plan import make_plan

CONF = tiny.ROOT / "conf"
PAPER = re.search(r"^PAPER := ((?:.*\\\n)*.*)", (tiny.ROOT / "Makefile").read_text(), re.MULTILINE)[1]
PAPER = PAPER.replace("\\\n", " ").split()
STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


@pytest.fixture
def corpus(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"This is document number {i}, and it says {i * i}. " * 30)
    return str(tmp_path)


@functools.cache
def cells_of(study: str, *overrides: str):
    """The cells of a study file's grid; an axis that an override names is narrowed to its value."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        setup_globals()
        hydra, words = GlobalHydra.instance().hydra, [f"study={study}", *overrides]
        master = hydra.compose_config("config", words, RunMode.MULTIRUN, with_log_configuration=False)
        composer, params = Composer(hydra.config_loader, master), master.hydra.sweeper.params
        axes = {key: str(values).split(",") for key, values in params.items()}
        axes |= {key: [value] for key, value in (word.split("=", 1) for word in overrides) if key in axes}
        grid = itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items()))
        return [resolve(parse_sweep(composer.mapping([*words, *values]))) for values in grid]


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_file_plans(study, corpus):
    overrides = [f"data.path={corpus}"] if "text" in study else ["model=pico"] if study in PAPER else []
    plan = make_plan(cells_of(study, *overrides), tiny.Nothing())
    assert plan.flops_naive >= plan.flops_shared > 0
    grown = [cell for cell in plan.requested if cell.kind == "branch"]
    assert plan.flops_naive > plan.flops_shared or not grown
    assert all(cell.config.study_name == study for cell in plan.requested)
    assert all(cell.controls for cell in grown)


def test_the_paper_fits_into_ninety_minutes_of_two_cores():
    """2.4e14 FLOPs, all studies planned as one; they share their trunks, and are 1.5 of it or more apart."""
    plans = [make_plan(cells_of(study, "model=pico"), tiny.Nothing()) for study in PAPER]
    together = make_plan([cell for plan in plans for cell in plan.requested], tiny.Nothing())
    assert together.flops_shared < 2.4e14
    assert sum(plan.flops_shared for plan in plans) > 1.5 * together.flops_shared


def test_the_paper_is_every_study_but_the_demonstrations():
    assert set(PAPER) == set(STUDIES) - {"quickstart", "quickstart_text", "language"}
    for study in PAPER:
        seeds = {cell.config.seed for cell in cells_of(study, "model=pico")}
        assert len(seeds) >= 3, study


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
    if group.is_dir() and group.name not in ("study", "report", "recycle")
    for path in sorted(group.glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_choice_of_every_group_parses(group, name, corpus):
    overrides = [f"{group}={name}", "budget.extra_flops=1e30"]
    overrides += {"text": [f"data.path={corpus}"], "huggingface": [f"data.name={corpus}"]}.get(name, [])
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    resolve(parse_sweep(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)))
