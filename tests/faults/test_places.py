"""Stores that cannot be written: a clear error within seconds, and nothing half done."""

import os
import shutil
import tempfile
from pathlib import Path

import injection
import pytest
import tiny
from filelock import FileLock

from sweeps.store import Store
from sweeps.study import Refused, run_study


def test_a_locked_store_is_refused_after_a_while(store_root, monkeypatch):
    store, trajectory = Store(store_root), tiny.cell().trunk
    store.prepare()
    monkeypatch.setattr("sweeps.store.LOCK_S", 0.2)
    with (
        FileLock(store.root / "trajectories" / ".lock"),
        pytest.raises(ValueError, match=r"is locked: another"),
    ):
        Store(store.root).add(trajectory)


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    """In a process without root's rights, for which there is no read-only folder."""
    root = Path(tempfile.mkdtemp())  # a folder that another user may enter
    Store(root).prepare()
    for folder in (root / "trajectories", root / "studies", root / "drivers", root):
        folder.chmod(0o555)

    def prepare() -> int:
        if os.geteuid() == 0:
            os.setuid(65534)
        with pytest.raises(ValueError, match="cannot be written: Permission denied"):
            Store(root).prepare()
        return 0

    try:
        assert injection.in_child(prepare) == (0, "")
    finally:
        for folder in (root, root / "trajectories", root / "studies", root / "drivers"):
            folder.chmod(0o755)
        shutil.rmtree(root)


def test_a_study_in_a_locked_store_is_refused(store_root, monkeypatch):
    monkeypatch.setattr("sweeps.store.LOCK_S", 0.2)
    Store(store_root).prepare()
    with FileLock(Path(store_root) / "studies" / ".lock"), pytest.raises(Refused, match=r"studies/.lock"):
        run_study([tiny.mapping(launch__store=store_root)])


class Refusing:
    """An executor whose workers have no room."""

    slots = 1

    def start(self):
        raise ValueError("launch.workers=2: 0 had room")

    def close(self):
        pass


def test_workers_that_find_no_room_are_refused_with_no_study_written(store_root, monkeypatch):
    monkeypatch.setattr("sweeps.executors._make", lambda launch, alive: Refusing())
    with pytest.raises(Refused, match="0 had room"):
        run_study([tiny.mapping(launch__store=store_root)])
    assert not list(Path(store_root).glob("studies/*"))
    assert not list(Path(store_root).glob("trajectories/*-*"))
    assert not list(Path(store_root).glob("drivers/*.alive"))


@pytest.mark.parametrize(("file", "words"), [
    ("cells.json", "refused: launch.store="),
    ("summary.json", "warning: the study's files are those from before this run"),
])  # fmt: skip
def test_a_disk_that_is_full_when_a_study_is_written_is_named_in_one_line(store_root, file, words):
    """Before anything runs it is a refusal; afterwards the results are stored, and the exit code says 1."""

    def full(when: str, operation: str) -> None:
        if when == "before" and operation.startswith("replace") and operation.endswith(file):
            raise OSError(28, "No space left on device")

    def work() -> int:
        injection.watch(Path(store_root), full)
        try:
            return run_study([tiny.mapping(launch__store=store_root, controls=[])]).exit_code
        except Refused as refused:
            print("refused:", refused)
            return 2

    status, output = injection.in_child(work)
    assert status == (2 if file == "cells.json" else 1), output
    assert words in output
    assert "No space left on device" in output
    assert "Traceback" not in output
    assert bool(list(Path(store_root).glob("trajectories/*/evals.jsonl"))) == (file == "summary.json")
