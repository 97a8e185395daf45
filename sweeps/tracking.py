"""Weights & Biases as a mirror of the store: one run a trajectory. Never a source for analysis.

The only module that imports wandb. The driver publishes from the store, so workers need no network. By hand:
`python -m sweeps.tracking publish|workspace study=NAME [launch.store=DIR] [tracking.mode=online]
[tracking.project=P] [tracking.entity=E]`; a workspace shows what was published (sweeps/workspace.py).
"""

import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moe.files import read_json, write_json
from moe.plain import check, digest, parse
from sweeps import workspace
from sweeps.config import TrackingConfig, TrackingMode
from sweeps.store import Store
from sweeps.trajectory import Kind, Trajectory
from sweeps.workspace import Mirrored

_DEFAULTS = Path(__file__).parent.parent / "conf" / "tracking" / "wandb.yaml"


def publish(store: Store, study: str, tracking: TrackingConfig) -> int:
    """Mirrors every trajectory of a study that has lines; returns how many were not mirrored as they are.

    A run's id is the trajectory's, its group the trunk's. A run is always published whole, and without
    `resume`: W&B then replaces what it has under that id, so no point can be there twice, whatever was
    published, interrupted or forgotten before. Offline the run's earlier folder gives way to the new one.
    """
    trunks = _trunks(store, study)
    known = [id for id in trunks if store.folder(id) is not None]
    published = []
    try:
        for id in known:
            if (one := _publish_one(store, id, trunks[id], study, tracking)) is not None:
                published.append(one)
    finally:
        if published and tracking.mode is TrackingMode.OFFLINE:
            wandb.teardown()  # waits for the end of the files, which finish() does not
        for one in published:
            _record(one, tracking)
    return len(published)


def mirrored(store: Store, study: str, project: str) -> Mirrored:
    """The study's runs that were published in a project, in either mode; ValueError if none were."""
    folders = {id: folder for id in _trunks(store, study) if (folder := store.folder(id)) is not None}
    ids = [id for id, folder in folders.items() if study in _studies(folder, project)]
    check(
        bool(ids),
        f"study={study} has no published run in tracking.project={project}; first run: "
        f"python -m sweeps.tracking publish study={study} with the same options",
    )
    names = frozenset(name for id in ids for point in _points(store, id) for name in point)
    return Mirrored(study=study, num_runs=len(ids), names=names)


def _trunks(store: Store, study: str) -> dict[str, str]:
    """The trunk of each trajectory of a study."""
    cells = store.study(study)["cells"]
    check(cells is not None, f"study={study} has no cells.json in {store.root}; run the study again")
    return {part["trajectory_id"]: row["trunk_id"] for row in cells["cells"] for part in row["path"]}


@dataclass(frozen=True)
class _Published:
    """A run that was just logged: the trajectory and its folder, W&B's files, what they were made from."""

    trajectory_id: str
    folder: Path
    files: Path
    fingerprint: str
    studies: list[str]


def _publish_one(
    store: Store, trajectory_id: str, trunk: str, study: str, tracking: TrackingConfig
) -> _Published | None:
    folder, points = store.folder(trajectory_id), _points(store, trajectory_id)
    assert folder is not None
    if not points:
        return None
    before = _records(folder).get(_key(tracking), {})
    studies, config = sorted({*before.get("studies", []), study}), _config(store, store.load(trajectory_id))
    fingerprint = digest({"points": points, "studies": studies, "config": config, "trunk": trunk})
    earlier = Path(before["folder"]) if before.get("folder") else None
    if before.get("fingerprint") == fingerprint and (earlier is None or earlier.exists()):
        return None
    directory = os.environ.get("WANDB_DIR") or os.getcwd()  # wandb's own default is that of its first run
    _await_a_name(Path(directory, "wandb"), trajectory_id)
    run = wandb.init(
        id=trajectory_id,
        name=folder.name,
        project=tracking.project,
        entity=tracking.entity,
        group=trunk,
        job_type=store.load(trajectory_id).kind.value,
        tags=studies,
        config=config,
        mode=tracking.mode.value,
        dir=directory,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
    )
    run.define_metric("*", step_metric="step", step_sync=False)
    run.define_metric("eval/*", step_metric="eval/step", step_sync=False)
    files = Path(run.dir).parent
    try:
        for place, point in enumerate(points):
            run.log(point, step=place)
    finally:
        run.finish()
    return _Published(trajectory_id, folder, files.resolve(), fingerprint, studies)


def _await_a_name(folder: Path, trajectory_id: str) -> None:
    """wandb names offline folders by the second: published twice within one, a run would lose its file."""
    while (folder / f"offline-run-{time.strftime('%Y%m%d_%H%M%S')}-{trajectory_id}").exists():
        time.sleep(0.05)


def _record(run: _Published, tracking: TrackingConfig) -> None:
    """Remembers what was published, and drops a run's earlier offline folders."""
    offline = tracking.mode is TrackingMode.OFFLINE
    records, key = _records(run.folder), _key(tracking)
    earlier = records.get(key, {}).get("folder")
    records[key] = {
        "fingerprint": run.fingerprint,
        "studies": run.studies,
        "folder": str(run.files) if offline else None,
    }
    write_json(run.folder / "wandb.json", records)
    if offline:
        in_use = {Path(each["folder"]) for each in records.values() if each.get("folder")}
        old = {*run.files.parent.iterdir(), *([Path(earlier)] if earlier else [])}
        _remove(old - in_use, run.trajectory_id)


def _records(folder: Path) -> dict[str, Any]:
    path = folder / "wandb.json"
    return read_json(path) if path.exists() else {}


def _key(tracking: TrackingConfig) -> str:
    where = [tracking.entity] if tracking.entity else []
    return "/".join([tracking.mode, *where, tracking.project])


def _studies(folder: Path, project: str) -> set[str]:
    """The studies that a trajectory was published for in a project, whoever owns it."""
    records = [each for key, each in _records(folder).items() if key.split("/")[-1] == project]
    return {study for each in records for study in each["studies"]}


def _remove(folders: set[Path], trajectory_id: str) -> None:
    """Removes a run's offline folders among these: its points are all in a newer one, or it was cut short."""
    for folder in folders:
        if re.fullmatch(rf"offline-run-\w+-{trajectory_id}", folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _points(store: Store, trajectory_id: str) -> list[dict[str, Any]]:
    """Every stored line as it is published, by step; an evaluation follows what was logged at its step."""
    metrics = [(line["step"], 0, _flat(line)) for line in store.metrics(trajectory_id)]
    evals = [(line["step"], 1, _scores(line)) for line in store.evals(trajectory_id)]
    trajectory = store.load(trajectory_id)
    sunk = _sunk_flops(trajectory)
    return [
        point | {"extra_flops": (total := trajectory.at(step).flops) - sunk, "total_flops": total}
        for step, _, point in sorted([*metrics, *evals], key=lambda entry: entry[:2])
    ]


def _scores(line: dict[str, Any]) -> dict[str, Any]:
    """An evaluation on an axis of its own: several suites may have been asked at one step."""
    names = ("acc", "acc_se", "chance", "prob_right", "loss")
    scores = {f"eval/{line['suite']}/{name}": line[name] for name in names}
    families = {f"eval/{line['suite']}/acc/{family}": f["acc"] for family, f in line["families"].items()}
    return {"eval/step": line["step"], "eval/id": line["eval_id"], **scores, **families}


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """Per-layer lists as one value a layer, as a chart can show it; of a layer's loads the largest."""
    flat = {}
    for name, value in line.items():
        if isinstance(value, list):
            name += "_max" if any(isinstance(item, list) for item in value) else ""
            layers = {f"{name}/layer_{i:02d}": item for i, item in enumerate(value) if item is not None}
            flat |= {layer: max(item) if isinstance(item, list) else item for layer, item in layers.items()}
        else:
            flat[name] = value
    return flat


def _config(store: Store, trajectory: Trajectory) -> dict[str, Any]:
    """The spec, and FLOPs before the first growth, after it, and in all, at the last stored step."""
    steps = store.stored_steps(trajectory.id)
    total = trajectory.at(steps[-1] if steps else 0).flops
    sunk = _sunk_flops(trajectory)
    return {
        "spec": store.spec(trajectory.id),
        "sunk_flops": sunk,
        "extra_flops": total - sunk,
        "total_flops": total,
        "store": str(Path(store.root).resolve()),
    }


def _sunk_flops(trajectory: Trajectory) -> float:
    sunk = 0.0
    line: Trajectory | None = trajectory
    while line is not None and line.parent is not None:
        if line.kind is Kind.BRANCH:
            sunk = line.parent.flops
        line = line.parent.trajectory
    return sunk


# -- the command -----------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Does what the first word says; ValueError for people."""
    command, *overrides = arguments or [""]
    match command:
        case "publish":
            _publish_command(*_asked(overrides))
        case "workspace":
            _workspace_command(*_asked(overrides))
        case _:
            raise ValueError(f"{command or 'no command'} is not a command; choose publish or workspace")


def _publish_command(store: Store, study: str, tracking: TrackingConfig) -> None:
    count = publish(store, study, tracking)
    where = f"{tracking.mode}, project {tracking.project}"
    print(f"{study}: {count} runs published ({where}); the others were as they are stored")


def _workspace_command(store: Store, study: str, tracking: TrackingConfig) -> None:
    runs, entity = mirrored(store, study, tracking.project), tracking.entity
    if tracking.mode is TrackingMode.OFFLINE:
        store.write_study(
            study, workspace=workspace.plain(workspace.build(runs, tracking.project, entity or ""))
        )
        path = store.root / "studies" / study / "workspace.json"
        print(
            f"{study}: workspace of {runs.num_runs} runs in {path}; nothing was sent (tracking.mode=offline)"
        )
        return
    entity = entity or wandb.Api().default_entity
    check(bool(entity), "tracking.entity is missing, and the account has no default; name a user or a team")
    built = workspace.build(runs, tracking.project, str(entity))
    print(f"{study}: workspace of {runs.num_runs} runs at {workspace.save(built)}")


def _asked(overrides: list[str]) -> tuple[Store, str, TrackingConfig]:
    asked = _parse(overrides)
    store, tracking = (
        Store(str(asked["launch"]["store"])),
        parse(TrackingConfig, asked["tracking"], "tracking"),
    )
    known = ", ".join(store.studies()) or "none yet"
    check(asked["study"] is not None, f"study is missing; {store.root} holds: {known}; try study=NAME")
    return store, str(asked["study"]), tracking


def _parse(overrides: list[str]) -> dict[str, Any]:
    """key=value words over the defaults; an unknown key is a ValueError that names those there are."""
    defaults = {"study": None, "launch": {"store": "store"}, "tracking": OmegaConf.load(_DEFAULTS)}
    config = OmegaConf.create(defaults)
    OmegaConf.set_struct(config, True)
    for word in overrides:
        key, equals, _ = word.partition("=")
        check(bool(equals), f"{word} is not key=value; try study=NAME")
        try:
            config.merge_with_dotlist([word])
        except OmegaConfBaseException as error:
            keys = "study, launch.store, tracking.mode, tracking.project, tracking.entity"
            raise ValueError(f"{key} is not a key here; choose among {keys}") from error
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        sys.exit(2)
    except wandb.Error as error:  # not logged in, or not reached: what was sent stays, the rest is to do
        print(f"Weights & Biases: {error}; the same command does the rest", file=sys.stderr)
        sys.exit(1)
