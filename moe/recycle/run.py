"""A whole growth: checked, planned, written, recorded."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event

from moe.plain import check
from moe.recycle.checkpoint import open_checkpoint
from moe.recycle.lineage import card_of, chained, entry_of, growths_of, identity_of, metadata_of
from moe.recycle.plan import Plan, make_plan
from moe.recycle.settings import RecycleConfig, num_bytes
from moe.recycle.shards import Shard, shards_of
from moe.recycle.writer import JOURNAL, Written, digest_of, draft_of, finish, threads_within, write

_SPARE_BYTES = 64 << 20  # of a disk: config, tokenizer, journal


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A growth that is whole, and what this call wrote of it; None where it was there already."""

    plan: Plan
    target: Path
    written: Written | None
    seconds: float


def planned(config: RecycleConfig) -> Plan:
    """From headers alone. ValueError, before any work, for what cannot be grown."""
    assert config.source is not None
    return make_plan(open_checkpoint(config.source), config.operator)


def grow(config: RecycleConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> Grown:
    """Grows `config.source` into `config.target`; goes on where an interrupted call stopped.

    The source is never written to. The target has its name only when it is whole: until then it is a folder
    beside it. ValueError, before anything is written, for bad input, a full disk or too little memory.
    """
    plan = planned(config)
    assert config.target is not None
    target, begun = Path(config.target), time.monotonic()
    check(
        not within(target, plan.source.directory),
        f"target={target} lies within source={plan.source.directory}; the source is never written to",
    )
    shard_bytes = num_bytes("shard_size", config.shard_size)
    given = {name: getattr(config, name) for name in ("revision", "sunk_tokens", "sunk_flops")}
    entry = entry_of(plan, given, _version())
    shards = shards_of(plan.targets, shard_bytes, metadata_of(entry))
    if target.exists():
        _check_same(target, plan, entry)
        (target / JOURNAL).unlink(missing_ok=True)  # of a call that was killed at its very end
        return Grown(plan=plan, target=target, written=None, seconds=0.0)
    _check_room(target, shards)
    limit = num_bytes("memory_limit", config.memory_limit)
    threads = threads_within(plan, limit, config.num_threads)
    total, done = sum(shard.num_bytes for shard in shards), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    target.parent.mkdir(parents=True, exist_ok=True)
    stop = Event()
    with ThreadPoolExecutor(config.num_threads) as pool:  # the sources' digests are taken beside the writing
        hashing = {path.name: pool.submit(digest_of, path, stop) for path in plan.source.files}
        try:
            identity = identity_of(plan, shard_bytes)
            written = write(
                plan, shards, target, identity=identity, seed=config.seed, threads=threads, progress=advance
            )
            entry["source_sha256"] = {name: found.result() for name, found in hashing.items()}
        finally:
            stop.set()
    lineage = chained(plan.source.directory, entry)
    finish(plan, shards, target, lineage, card_of(plan.source.directory, lineage))
    return Grown(plan=plan, target=target, written=written, seconds=time.monotonic() - begun)


def _check_same(target: Path, plan: Plan, entry: dict[str, object]) -> None:
    """What is there must be this very growth of this source."""
    known = growths_of(target)
    last = known[-1] if known else {}
    same = all(last.get(name) == entry[name] for name in ("operator", "source", "before", "after"))
    check(
        same and len(known) == len(growths_of(plan.source.directory)) + 1,
        f"target={target} is there and is not this growth; give another folder, or remove it",
    )


def _check_room(target: Path, shards: list[Shard]) -> None:
    """What is left to write fits on the disk."""
    draft, folder = draft_of(target), target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    there = sum(path.stat().st_size for path in draft.iterdir()) if draft.is_dir() else 0
    needed = sum(shard.num_bytes for shard in shards) + _SPARE_BYTES - there
    free = shutil.disk_usage(folder).free
    check(
        needed <= free,
        f"target={target} needs {needed / 1e9:.3g} GB more, and {folder} has {free / 1e9:.3g} GB free",
    )


def within(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or in it."""
    return Path(os.path.abspath(path)).is_relative_to(folder.absolute())


def _version() -> str:
    try:
        return version("regrow")
    except PackageNotFoundError:
        return "unknown"
