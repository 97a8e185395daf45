"""Weights & Biases as a mirror, with real offline files."""

import struct

import pytest
import tiny

from sweeps.config import TrackingConfig, TrackingKind, TrackingMode
from sweeps.store import Store
from sweeps.study import run_study

OFFLINE = TrackingConfig(name=TrackingKind.WANDB, mode=TrackingMode.OFFLINE, project="regrow")


def records(folder):
    """Every record of an offline run, from its file: LevelDB's log format behind seven bytes of header."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


@pytest.mark.filterwarnings("ignore")
def test_an_offline_mirror_holds_the_points_of_the_store_and_publishing_again_adds_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_study([tiny.mapping(launch__store="store", controls=[], tracking__name="wandb")])
    store = Store("store")
    trunk = tiny.cell().trunk
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == len(list((tmp_path / "store" / "trajectories").glob("*-*")))
    (folder,) = [f for f in folders if f.name.endswith(trunk.id)]
    found = records(folder)
    (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.job_type, list(run.tags)) == (
        trunk.id,
        trunk.id,
        "trunk",
        ["adhoc"],
    )
    assert {"spec", "sunk_flops", "extra_flops", "total_flops"} <= {u.key for u in run.config.update}
    losses = [
        float(item.value_json)
        for r in found
        if r.WhichOneof("record_type") == "history"
        for item in r.history.item
        if (item.key or "/".join(item.nested_key)) == "loss"
    ]
    assert losses == [line["loss"] for line in store.metrics(trunk.id)]

    from sweeps.tracking import publish

    assert publish(store, "adhoc", OFFLINE) == 0

    # A new suite on stored states trains nothing and is published, though its steps lie behind the others.
    asked = {"evaluate__items": 20, "evaluate__probe_items": 10}
    run_study([tiny.mapping(launch__store="store", controls=[], **asked)])
    assert publish(store, "adhoc", OFFLINE) == 3
    newest = max((tmp_path / "wandb").glob(f"offline-run-*-{trunk.id}"), key=lambda f: f.stat().st_mtime_ns)
    steps = [
        int(item.value_json)
        for r in records(newest)
        if r.WhichOneof("record_type") == "history"
        for item in r.history.item
        if (item.key or "/".join(item.nested_key)) == "eval/step"
    ]
    assert steps == [8]
