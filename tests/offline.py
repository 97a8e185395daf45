"""What wandb wrote of runs that it could not send, read back from its files."""

import json
import struct
from pathlib import Path


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


def folders(trajectory_id):
    """The offline folders of a run, where the test stands."""
    return list(Path("wandb").glob(f"offline-run-*-{trajectory_id}"))


def rows(trajectory_id):
    """What a run's only offline file logs, in order, as W&B will have it: {name: value}, `_step` included."""
    return [_values(each.item) for each in _of(trajectory_id, "history")]


def summary(trajectory_id):
    """The last values that a run's only offline file ends with: {name: value}."""
    return {k: v for each in _of(trajectory_id, "summary") for k, v in _values(each.update).items()}


def run(trajectory_id):
    """What a run's only offline file says of the run itself: its tags, its configuration."""
    return _of(trajectory_id, "run")[0]


def _of(trajectory_id, kind):
    (folder,) = folders(trajectory_id)
    return [getattr(r, kind) for r in records(folder) if r.WhichOneof("record_type") == kind]


def _values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
