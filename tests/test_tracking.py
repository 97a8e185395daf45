"""Weights & Biases as a mirror, with real offline files."""

import re
import time

import pytest
import tiny
from offline import folders, records, rows

from sweeps.config import TrackingConfig, TrackingKind, TrackingMode
from sweeps.store import Store
from sweeps.study import run_study

pytestmark = pytest.mark.filterwarnings("ignore")  # of wandb's own making

OFFLINE = TrackingConfig(name=TrackingKind.WANDB, mode=TrackingMode.OFFLINE, project="regrow")


def assert_mirrored(store, trajectory_id):
    """Every line of the store is there once, and nothing else is."""
    mirrored = rows(trajectory_id)
    steps = [row for row in mirrored if "step" in row]
    scores = [row for row in mirrored if "eval/step" in row]
    assert len(steps) + len(scores) == len(mirrored)
    assert [row["_step"] for row in mirrored] == list(range(len(mirrored)))
    stored = store.metrics(trajectory_id)
    names = [name for name, value in stored[0].items() if not isinstance(value, list)] if stored else []
    assert [[row[name] for name in names] for row in steps] == [[x[name] for name in names] for x in stored]
    given = [(row["eval/step"], row["eval/id"]) for row in scores]
    assert sorted(given) == sorted((line["step"], line["eval_id"]) for line in store.evals(trajectory_id))
    for line in store.evals(trajectory_id):
        row = scores[given.index((line["step"], line["eval_id"]))]
        assert row[f"eval/{line['suite']}/acc"] == line["acc"]
        assert row[f"eval/{line['suite']}/loss"] == line["loss"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the test's own, for the store and for the offline files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)


def run(**fields):
    run_study([tiny.mapping(launch__store="store", controls=[], **fields)])
    return Store("store")


def trajectories(store):
    rows = store.study("adhoc")["cells"]["cells"]
    return list(dict.fromkeys(part["trajectory_id"] for row in rows for part in row["path"]))


def test_an_offline_mirror_holds_the_points_of_the_store_however_often_it_is_published(here):
    from sweeps.tracking import publish

    store, trunk = run(tracking__name="wandb"), tiny.cell().trunk.id
    assert len(trajectories(store)) == 3
    for id in trajectories(store):
        assert_mirrored(store, id)
    found = records(folders(trunk)[0])
    (said,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert (said.run_id, said.run_group, said.job_type, list(said.tags)) == (trunk, trunk, "trunk", ["adhoc"])
    assert not said.resumed
    assert {"spec", "sunk_flops", "extra_flops", "total_flops"} <= {u.key for u in said.config.update}
    before = {id: folders(id) for id in trajectories(store)}
    assert publish(store, "adhoc", OFFLINE) == 0
    assert {id: folders(id) for id in trajectories(store)} == before

    # A new suite on stored states trains nothing and is published, though its steps lie behind the others.
    store = run(evaluate__items=20, evaluate__probe_items=10)
    assert publish(store, "adhoc", OFFLINE) == 3
    for id in trajectories(store):
        assert_mirrored(store, id)
    assert len([row for row in rows(trunk) if row.get("eval/step") == 8]) == 2


def test_a_mirror_that_was_interrupted_or_lost_is_made_whole(here, monkeypatch):
    import shutil

    import wandb

    from sweeps.tracking import publish

    store = run()
    (first, *_) = trajectories(store)
    log = wandb.Run.log

    def broken(self, point, step):
        if step == 3:
            raise OSError("no network")
        log(self, point, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", broken)
        with pytest.raises(OSError, match="no network"):
            publish(store, "adhoc", OFFLINE)
    assert len(folders(first)) == 1
    assert publish(store, "adhoc", OFFLINE) == 3
    shutil.rmtree(folders(first)[0])
    assert publish(store, "adhoc", OFFLINE) == 1
    for id in trajectories(store):
        assert_mirrored(store, id)


def test_a_name_that_is_taken_is_waited_out(tmp_path):
    """wandb names a run's offline folder by the second."""
    from sweeps.tracking import _await_a_name

    begin = time.time()
    for second in range(2):
        name = time.strftime("%Y%m%d_%H%M%S", time.localtime(begin + second))
        (tmp_path / f"offline-run-{name}-a795").mkdir()
    _await_a_name(tmp_path, "d2ee")
    assert time.time() < begin + 1
    _await_a_name(tmp_path, "a795")
    assert int(time.time()) >= int(begin) + 2


def test_the_command_publishes_a_stored_study(here, capsys):
    from sweeps import tracking

    store = run(study_name="small", budget__decay_fraction=0.0)
    capsys.readouterr()
    tracking.main(["publish", "study=small", "launch.store=store"])
    assert capsys.readouterr().out == (
        "small: 2 runs published (offline, project regrow); the others were as they are stored\n"
    )
    rows = store.study("small")["cells"]["cells"]
    for id in {part["trajectory_id"] for row in rows for part in row["path"]}:
        assert_mirrored(store, id)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command is not a command; choose publish or workspace"),
        (["publish"], "study is missing"),
        (["publish", "study=nothing"], "study=nothing is not in store; it holds: none yet"),
        (["publish", "study=a", "tracking.mode=sometimes"], "choose one of offline, online"),
        (["publish", "study=a", "tracking.nodes=3"], "choose among study, launch.store"),
        (["publish", "quickstart"], "quickstart is not key=value"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_and_writes_nothing(here, tmp_path, words, message):
    from sweeps import tracking

    with pytest.raises(ValueError, match=message):
        tracking.main(words)
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_the_page_are_understood():
    from sweeps.tracking import _parse

    page = (tiny.ROOT / "docs" / "tracking.md").read_text()
    commands = re.findall(r"^python -m sweeps.tracking (?:publish|workspace) (.*)$", page, flags=re.MULTILINE)
    assert [_parse(command.split())["study"] for command in commands] == ["adhoc"] * 4
