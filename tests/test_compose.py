"""A sweep's cells, composed once, are those that Hydra composes one by one."""

import json

import pytest
import tiny
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.regrow.compose import Composer
from hydra_plugins.regrow.launcher import StoredReturn


@pytest.fixture(scope="module")
def hydra():
    with initialize_config_dir(config_dir=str(tiny.ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().hydra


@pytest.fixture(scope="module")
def master(hydra):
    setup_globals()
    return hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN, with_log_configuration=False)


class Counted:
    """Hydra's loader, and how often it composed."""

    def __init__(self, loader):
        self.loader, self.count = loader, 0

    def load_sweep_config(self, master_config, sweep_overrides):
        self.count += 1
        return self.loader.load_sweep_config(master_config, sweep_overrides)

    def list_groups(self, parent_name):
        return self.loader.list_groups(parent_name)


_composed = {}


def by_hydra(hydra, master, overrides):
    if tuple(overrides) not in _composed:
        _composed[tuple(overrides)] = _by_hydra(hydra, master, overrides)
    return _composed[tuple(overrides)]


def _by_hydra(hydra, master, overrides):
    config = hydra.config_loader.load_sweep_config(master, overrides)
    ours = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)


PLAIN = {  # the cells of each share one composition
    "numbers": [["growth.step=0", "train.lr=1e-3"], ["growth.step=8", "train.lr=2"]],
    "null": [["growth.lr=null"], ["growth.lr=0.5"], ["growth.lr=null"]],
    "text": [["study_name=a"], ["study_name='b c'"], ["study_name=12"], ["study_name='12'"]],
    "truth": [["launch.device=true"], ["launch.device=no"], ["launch.device='no'"]],
    "lists": [["controls=[]"], ["controls=[sham,continued]"], ["controls=[sham]"]],
    "list or not": [["growth.layer_map=[0,0,1]"], ["growth.layer_map=null"], ["growth.layer_map=[1]"]],
    "not a list at first": [["growth.layer_map=null"], ["growth.layer_map=[[0],[1,2]]"]],
    "followed by interpolations": [["data.vocab_size=600"], ["data.vocab_size=700"]],
    "in place of an interpolation": [["model.vocab_size=600"], ["model.vocab_size=700"]],
    "beside a group": [["growth=depth", "growth.step=4"], ["growth=depth", "growth.step=5"]],
    "beside an interpolation": [
        ["growth.seed=${seed}", "seed=3"],
        ["growth.seed=${seed}", "seed=4"],
    ],
    "beside an addition": [["+plan=only", "seed=3"], ["+plan=only", "seed=4"]],
    "beside a deletion": [["~trunk.steps", "growth.step=3"], ["~trunk.steps", "growth.step=4"]],
    "of a part that a group made": [
        ["growth=chain", "growth.then.lr=1"],
        ["growth=chain", "growth.then.lr=2"],
    ],
}
OWN = {  # each cell of these is Hydra's own work
    "groups": [["growth=depth"], ["growth=width"], ["model=pico"]],
    "a dictionary": [["growth.then={lr: 1}"], ["growth.then={seed: 2}"]],
    "an interpolation": [["growth.seed=${seed}"], ["growth.seed=${train.batch_size}"]],
    "given twice": [["seed=1", "seed=2"], ["seed=3", "seed=4"]],
    "an addition": [["+growth.new=1"], ["++growth.new=2"], ["++growth.step=2"]],
    "a part and a value in it": [
        ["growth=chain", "growth.then.lr=1", "growth.then=null"],
        ["growth=chain", "growth.then.lr=2", "growth.then=null"],
    ],
    "a value and what deletes it": [["growth.lr=1", "~growth.lr"], ["growth.lr=2", "~growth.lr"]],
    "a value and what overrides it": [
        ["growth.step=4", "++growth={step: 5}"],
        ["growth.step=6", "++growth={step: 5}"],
    ],
}


@pytest.mark.parametrize("kind", [*PLAIN, *OWN])
def test_every_cell_is_what_hydra_composes(hydra, master, kind):
    cells = (PLAIN | OWN)[kind]
    loader = Counted(hydra.config_loader)
    composer = Composer(loader, master)
    cells = [*cells, *cells[:1]] if kind in PLAIN else cells  # none is coloured by the one before it
    found = [composer.mapping(overrides) for overrides in cells]
    expected = [by_hydra(hydra, master, overrides) for overrides in cells]
    assert json.dumps(found, indent=1) == json.dumps(expected, indent=1)  # in which 1 is not 1.0
    assert loader.count == (1 if kind in PLAIN else len(cells))


@pytest.mark.parametrize("override", ["growth.stpe=1", "growth=nowhere", "growth.step.x=1", "seed=???"])
def test_what_hydra_refuses_is_refused(hydra, master, override):
    composer = Composer(hydra.config_loader, master)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        by_hydra(hydra, master, [override])
    with pytest.raises(type(theirs.value)) as ours:
        composer.mapping([override])
    assert str(ours.value) == str(theirs.value)


def test_a_value_that_interpolations_cannot_resolve_is_refused_for_its_cell_alone(hydra, master):
    composer = Composer(hydra.config_loader, master)
    composer.mapping(["data.vocab_size=600"])
    with pytest.raises(OmegaConfBaseException):
        composer.mapping(["data.vocab_size=${nothing}"])
    assert composer.mapping(["data.vocab_size=700"])["model"]["vocab_size"] == 700


@pytest.mark.parametrize("fails", [False, True])
def test_a_result_is_handed_back_as_run_job_does(hydra, master, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)

    def fetch(config=None):
        if fails:
            raise RuntimeError("broken")
        return 0.25

    overrides = ["growth.step=4", "seed=7"]
    composer = Composer(hydra.config_loader, master)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
    theirs = run_job(
        hydra_context=context,
        task_function=fetch,
        config=composer.config(overrides, 3),
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        configure_logging=False,
    )
    ours = StoredReturn(lambda: composer.config(overrides, 3), overrides, fetch)
    for name in ("overrides", "cfg", "hydra_cfg", "working_dir", "task_name", "status"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.hydra_cfg.hydra.job.num == 3
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            _ = ours.return_value
    else:
        assert ours.return_value == theirs.return_value == 0.25
