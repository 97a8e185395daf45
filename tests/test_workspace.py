"""A workspace over the runs that were published: built offline, held against what wandb really wrote."""

import json
import sys

import offline
import pytest
import tiny

from sweeps.config import TrackingConfig, TrackingKind, TrackingMode
from sweeps.store import Store
from sweeps.study import run_study

pytestmark = pytest.mark.filterwarnings("ignore")  # of wandb's own making

SMALL = {"launch__store": "store", "controls": [], "trunk__steps": 24, "growth__step": 20}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two published studies that share a trunk, and one that is only stored; the test stands beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workspace"))
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("WANDB_DIR", raising=False)
        run_study([tiny.mapping(study_name="one", tracking__name="wandb", **SMALL)])
        stack = {"growth__method": "stack", "tracking__name": "wandb"}
        run_study([tiny.mapping(study_name="two", **(SMALL | stack))])
        run_study([tiny.mapping(study_name="unpublished", **SMALL)])
        yield Store("store")


def cells(store, study):
    return store.study(study)["cells"]["cells"]


def runs(store, study):
    return {part["trajectory_id"] for row in cells(store, study) for part in row["path"]}


def spec(store, study):
    """The workspace as it would be sent: W&B's own JSON."""
    from sweeps import tracking, workspace

    mirrored = tracking.mirrored(store, study, "regrow")
    return workspace.plain(workspace.build(mirrored, "regrow"))


def panels(spec):
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def passes(filters, tags):
    """W&B's filter on tags: a run passes that carries one of those named."""
    (item,) = filters["filters"]
    assert (item["key"], item["op"]) == ({"section": "run", "name": "tags"}, "IN")
    return not item["disabled"] and bool(set(item["value"]) & set(tags))


def test_every_curve_is_logged_at_the_points_of_its_axis(store):
    points = [set(row) for id in runs(store, "one") for row in offline.rows(id)]
    curves = [
        config for some in panels(spec(store, "one")).values() for config in some if "metrics" in config
    ]
    for config in curves:
        for name in config["metrics"]:
            assert any({name, config["xAxis"]} <= point for point in points), (name, config["xAxis"])


def test_loss_and_accuracy_are_shown_over_extra_and_over_total_flops(store):
    shown = [(c["xAxis"], c["metrics"]) for c in panels(spec(store, "one"))["Loss and accuracy"]]
    curves = [
        ["loss"],
        ["eval/probe/acc", "eval/probe/chance"],
        ["eval/probe/prob_right"],
        ["eval/probe/loss"],
    ]
    assert shown == [(axis, names) for names in curves for axis in ("extra_flops", "total_flops")]


def test_every_end_is_a_last_value_over_a_value_of_the_configuration(store):
    ends = panels(spec(store, "one"))["End accuracy"]
    assert [(c["xAxis"], c["yAxis"]) for c in ends] == [
        (f"config:{axis}.value", f"summary:eval/full/{score}")
        for score in ("acc", "prob_right")
        for axis in ("sunk_flops", "total_flops")
    ]
    (row,) = cells(store, "one")
    leaf = row["trajectory_id"]
    configured = {update.key: json.loads(update.value_json) for update in offline.run(leaf).config.update}
    (line,) = [line for line in store.evals(leaf) if line["suite"] == "full"]
    for config in ends:
        kind, _, name = config["xAxis"].removesuffix(".value").partition(":")
        assert kind == "config"
        assert configured[name] == pytest.approx(row[name], rel=1e-12)
        kind, _, name = config["yAxis"].partition(":")
        assert kind == "summary"
        assert offline.summary(leaf)[name] == line[name.removeprefix("eval/full/")]


def test_a_panel_a_layer_shows_loads_and_norms(store):
    shown = panels(spec(store, "one"))
    norms = {name for config in shown["Norms"] for name in config["metrics"]}
    assert norms == {"grad_norm", "expert_weight_norm/layer_00", "expert_weight_norm/layer_01"}
    loads = {name for config in shown["Expert load"] for name in config["metrics"]}
    per_layer = {f"expert_load_{of}/layer_{i:02d}" for of in ("max", "entropy") for i in range(2)}
    assert loads == {"load_balance_loss"} | per_layer


def test_the_axes_are_the_flops_of_the_plan(store):
    (row,) = cells(store, "one")
    before = 0.0
    for part in row["path"]:
        points = offline.rows(part["trajectory_id"])
        spent = [before + part["flops_per_step"] * p.get("step", p.get("eval/step")) for p in points]
        sunk = 0.0 if part["phase"] == "trunk" else row["sunk_flops"]
        assert [p["total_flops"] for p in points] == pytest.approx(spent, rel=1e-12)
        assert [p["extra_flops"] for p in points] == pytest.approx([x - sunk for x in spent], rel=1e-9)
        before += part["flops_per_step"] * part["to_step"]
    assert (points[-1]["total_flops"], points[-1]["extra_flops"]) == (row["total_flops"], row["extra_flops"])


def test_the_runs_of_the_study_pass_the_filter_and_no_others_do(store):
    tags = {id: list(offline.run(id).tags) for id in runs(store, "one") | runs(store, "two")}
    assert runs(store, "one") & runs(store, "two")  # the trunk, which is a run of both
    for study in ("one", "two"):
        filters = spec(store, study)["spec"]["section"]["runSets"][0]["filters"]
        assert {id for id in tags if passes(filters, tags[id])} == runs(store, study)


def test_charts_show_every_run_of_the_study():
    from sweeps.workspace import Mirrored, build, plain

    for num_runs, shown in [(3, 10), (331, 331)]:
        built = build(Mirrored(study="a", num_runs=num_runs, names=frozenset()), "regrow")
        assert plain(built)["spec"]["section"]["settings"]["maxRuns"] == shown


def test_what_no_run_logs_is_in_no_panel():
    from sweeps.workspace import Curves, sections

    assert sections([]) == {}
    names = {"loss", "eval/probe/chance", "expert_weight_norm/layer_10", "expert_weight_norm/layer_09"}
    assert sections(names) == {
        "Loss and accuracy": [
            Curves(x, (name,))
            for name in ("loss", "eval/probe/chance")
            for x in ("extra_flops", "total_flops")
        ],
        "Norms": [Curves("total_flops", (f"expert_weight_norm/layer_{layer}",)) for layer in ("09", "10")],
    }


def test_offline_the_command_writes_the_workspace_beside_the_study_and_says_that_nothing_was_sent(
    store, capsys
):
    from wandb_workspaces.workspaces import Workspace, internal

    from sweeps import tracking

    tracking.main(["workspace", "study=one", "launch.store=store", "tracking.entity=team"])
    assert capsys.readouterr().out == (
        "one: workspace of 3 runs in store/studies/one/workspace.json; "
        "nothing was sent (tracking.mode=offline)\n"
    )
    written = json.loads((store.root / "studies" / "one" / "workspace.json").read_text())
    read = Workspace._from_model(internal.View.model_validate(written))  # as W&B's library reads a view
    assert (read.entity, read.project, read.name) == ("team", "regrow", "study one")
    assert [section.name for section in read.sections] == list(panels(spec(store, "one")))
    assert panels(written) == panels(spec(store, "one"))


def test_online_the_command_sends_the_workspace_and_prints_its_address(store, capsys, monkeypatch):
    import wandb
    from wandb_workspaces.workspaces import interface

    from sweeps import tracking

    sent = []

    class Account:
        default_entity = "team"

    def upsert(view):
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr(wandb, "Api", Account)
    monkeypatch.setattr(interface.internal, "upsert_view2", upsert)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    tracking.main(["workspace", "study=two", "launch.store=store", "tracking.mode=online"])
    assert capsys.readouterr().out == "two: workspace of 3 runs at https://wandb.example/team/regrow?nw=abc\n"
    (view,) = sent
    assert (view.entity, view.project) == ("team", "regrow")
    assert panels(view.model_dump(by_alias=True, exclude_none=True)) == panels(spec(store, "two"))


def test_online_an_account_without_a_default_owner_is_asked_for_one(store, monkeypatch):
    import wandb

    from sweeps import tracking

    class Account:
        default_entity = None

    monkeypatch.setattr(wandb, "Api", Account)
    with pytest.raises(ValueError, match=r"tracking\.entity is missing"):
        tracking.main(["workspace", "study=two", "launch.store=store", "tracking.mode=online"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study=nothing"], "study=nothing is not in store; it holds: one, two, unpublished"),
        ([], "study is missing; store holds: one, two, unpublished"),
        (
            ["study=unpublished"],
            "no published run in tracking.project=regrow; first run: .* study=unpublished",
        ),
        (["study=one", "tracking.project=other"], "no published run in tracking.project=other"),
        (["one"], "one is not key=value; try study=NAME"),
    ],
)
def test_a_workspace_that_cannot_be_built_says_why(store, words, message):
    from sweeps import tracking

    with pytest.raises(ValueError, match=message):
        tracking.main(["workspace", "launch.store=store", *words])


def test_without_the_library_the_command_names_the_extra_and_writes_nothing(store, monkeypatch):
    from sweeps import tracking

    for name in [name for name in sys.modules if name.split(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ValueError, match=r"run: pip install 'regrow\[wandb\]'"):
        tracking.main(["workspace", "study=two", "launch.store=store"])
    assert not (store.root / "studies" / "two" / "workspace.json").exists()


def test_a_named_owner_is_given_to_wandb_and_has_mirrors_of_its_own(store):
    from sweeps.tracking import publish

    owned = TrackingConfig(
        name=TrackingKind.WANDB, mode=TrackingMode.OFFLINE, project="regrow", entity="team"
    )
    assert publish(store, "one", owned) == 3
    for id in runs(store, "one"):
        owners = {
            r.run.entity
            for folder in offline.folders(id)
            for r in offline.records(folder)
            if r.WhichOneof("record_type") == "run"
        }
        assert owners == {"", "team"}
