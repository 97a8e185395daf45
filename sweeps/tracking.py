"""Weights & Biases as a mirror of the store: one run a trajectory. Never a source for analysis.

The only module that imports wandb. The driver publishes from the store, so workers need no network.
"""

from pathlib import Path
from typing import Any

import wandb

from moe.files import read_json, write_json
from sweeps.config import TrackingConfig
from sweeps.store import Store
from sweeps.trajectory import Kind, Trajectory


def publish(store: Store, study: str, tracking: TrackingConfig) -> int:
    """Mirrors every trajectory of a study; returns how many had something new.

    A run's id is the trajectory's, its group the trunk's. What was published is remembered beside the
    trajectory, so publishing again adds only what is new, late evaluations of early states included.
    """
    cells = store.study(study)["cells"]["cells"]
    trunks = {part["trajectory_id"]: row["trunk_id"] for row in cells for part in row["path"]}
    return sum(_publish_one(store, id, trunk, study, tracking) for id, trunk in trunks.items())


def _publish_one(store: Store, trajectory_id: str, trunk: str, study: str, tracking: TrackingConfig) -> bool:
    folder = store.folder(trajectory_id)
    assert folder is not None
    record_path = folder / "wandb.json"
    record = read_json(record_path) if record_path.exists() else {}
    key = f"{tracking.mode}/{tracking.project}"
    seen = record.get(key, {"step": 0, "evals": [], "studies": []})
    metrics = [line for line in store.metrics(trajectory_id) if line["step"] > seen["step"]]
    evals = [line for line in store.evals(trajectory_id) if _address(line) not in seen["evals"]]
    if not metrics and not evals and study in seen["studies"]:
        return False
    trajectory = store.load(trajectory_id)
    studies = sorted({*seen["studies"], study})
    run = wandb.init(
        id=trajectory_id,
        name=folder.name,
        project=tracking.project,
        group=trunk,
        job_type=trajectory.kind.value,
        tags=studies,
        config=_config(store, trajectory),
        mode=tracking.mode.value,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
    )
    run.define_metric("*", step_metric="step")
    run.define_metric("eval/*", step_metric="eval/step")
    for line in metrics:
        run.log(_flat(line))
    for line in evals:
        run.log(_scores(line))
    run.finish()
    last = metrics[-1]["step"] if metrics else seen["step"]
    known = seen["evals"] + [_address(line) for line in evals]
    write_json(record_path, {**record, key: {"step": last, "evals": known, "studies": studies}})
    return True


def _address(line: dict[str, Any]) -> str:
    return f"{line['step']}/{line['eval_id']}"


def _scores(line: dict[str, Any]) -> dict[str, Any]:
    """An evaluation on an axis of its own: it may come after later steps were logged."""
    names = ("acc", "acc_se", "chance", "prob_right", "loss")
    scores = {f"eval/{line['suite']}/{name}": line[name] for name in names}
    families = {f"eval/{line['suite']}/acc/{family}": f["acc"] for family, f in line["families"].items()}
    return {"eval/step": line["step"], **scores, **families}


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
