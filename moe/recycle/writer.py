"""Writes a planned checkpoint within a memory limit, shard by shard, and goes on where it was stopped."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import torch

from moe.files import append_lines, read_lines, write_bytes, write_json
from moe.plain import check
from moe.recycle.block import changed
from moe.recycle.checkpoint import DTYPES, INDEX, Reader
from moe.recycle.plan import Piece, Plan, Target
from moe.recycle.shards import Shard, index_of

JOURNAL = "journal.jsonl"
_COPY_BYTES = 8 << 20
_COPIES_IN_FP32 = 4  # of a block: itself, its noise, their sum, and what a standard deviation needs
_NOT_CARRIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
_OWN = {"config.json", INDEX, "README.md", "growth.json", ".gitattributes"}


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one call did: bytes of the shards that it wrote, and its most memory."""

    num_bytes: int
    num_shards: int
    peak_bytes: int


def draft_of(target: Path) -> Path:
    """Where a growth is until it is whole."""
    return target.with_name(f".{target.name}.growing")


def threads_within(plan: Plan, memory_limit: int, threads: int) -> int:
    """How many threads, at most `threads`, fit into `memory_limit` bytes beside what this process has now.

    ValueError if not even one does.
    """
    now, block = memory_bytes(), _largest_block(plan)
    room = memory_limit - now - _COPY_BYTES
    check(
        room >= block,
        f"memory_limit={memory_limit / 2**20:.0f} MiB does not hold the program ({now / 2**20:.0f} MiB) and "
        f"the largest matrix of an expert at work ({block / 2**20:.0f} MiB); give at least "
        f"{(now + _COPY_BYTES + block) / 2**20:.0f} MiB",
    )
    return max(1, min(threads, room // max(block, 1)))


def memory_bytes() -> int:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def write(
    plan: Plan,
    shards: Sequence[Shard],
    target: Path,
    *,
    identity: str,
    seed: int,
    threads: int,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> Written:
    """Fills `draft_of(target)` with every shard but those that its journal has for this `identity`.

    Bytes depend on plan, shards and seed alone. A draft of another identity is a ValueError.
    """
    draft = draft_of(target)
    draft.mkdir(parents=True, exist_ok=True)
    done = _begin(draft, identity)
    peak, written, stop = memory_bytes(), 0, Event()
    reader = Reader()
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small matrices: threads work on different ones
    try:
        for shard in shards:
            if shard.name in done:
                progress(shard.num_bytes)
                continue
            peak = max(peak, _write_shard(draft, shard, reader, seed, threads, progress, stop))
            append_lines(draft / JOURNAL, [{"shard": shard.name, "bytes": shard.num_bytes}])
            written += 1
    finally:
        stop.set()
        reader.close()
        torch.set_num_threads(torch_threads)
    num_bytes = sum(shard.num_bytes for shard in shards if shard.name not in done)
    return Written(num_bytes=num_bytes, num_shards=written, peak_bytes=peak)


def finish(plan: Plan, shards: Sequence[Shard], target: Path, lineage: dict[str, Any], card: str) -> None:
    """Adds everything else, and gives the draft the name `target`."""
    draft = draft_of(target)
    for path in plan.source.directory.iterdir():
        if path.is_file() and path.name not in _OWN and not path.name.endswith(_NOT_CARRIED):
            shutil.copyfile(path, draft / path.name)
    write_json(draft / "config.json", plan.config)
    if len(shards) > 1:
        write_json(draft / INDEX, index_of(shards))
    write_bytes(draft / "README.md", card.encode())
    write_json(draft / "growth.json", lineage)
    (draft / JOURNAL).unlink()
    os.rename(draft, target)


def _begin(draft: Path, identity: str) -> set[str]:
    """The shards that are done. A journal begins with what it is a journal of."""
    lines = read_lines(draft / JOURNAL)
    if not lines:
        for path in draft.iterdir():  # nothing in it counts
            path.unlink()
        append_lines(draft / JOURNAL, [{"identity": identity}])
        return set()
    check(
        lines[0].get("identity") == identity,
        f"{draft} is the draft of another growth (of another source, operator, seed or shard size); finish "
        "that one or remove the folder",
    )
    return {
        line["shard"]
        for line in lines[1:]
        if (draft / line["shard"]).is_file() and (draft / line["shard"]).stat().st_size == line["bytes"]
    }


def _write_shard(
    draft: Path,
    shard: Shard,
    reader: Reader,
    seed: int,
    threads: int,
    progress: Callable[[int], None],
    stop: Event,
) -> int:
    """One file, under another name until it is whole; the most memory that was seen meanwhile."""
    part = draft / f"{shard.name}.part"
    peak = 0
    with part.open("wb") as file:
        file.truncate(shard.num_bytes)
        os.pwrite(file.fileno(), shard.header, 0)

        def work(job: tuple[Target, Piece, int]) -> int:
            if not stop.is_set():
                _write_piece(file.fileno(), *job, reader, seed)
            return job[1].num_bytes

        with ThreadPoolExecutor(threads) as pool:
            jobs = shard.jobs()
            running = {pool.submit(work, job) for job in islice(jobs, 4 * threads)}
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(work, job) for job in islice(jobs, len(ended))}
                progress(sum(future.result() for future in ended))
                peak = max(peak, memory_bytes())
        os.fsync(file.fileno())
    os.replace(part, draft / shard.name)
    return peak


def write_pieces(path: Path, shard: Shard, reader: Reader) -> None:
    """A small file of pieces that nothing is drawn for, on this thread."""
    with path.open("wb") as file:
        file.truncate(shard.num_bytes)
        os.pwrite(file.fileno(), shard.header, 0)
        for target, piece, place in shard.jobs():
            _write_piece(file.fileno(), target, piece, place, reader, seed=0)


def _write_piece(file: int, target: Target, piece: Piece, place: int, reader: Reader, seed: int) -> None:
    source = piece.source
    if piece.change is None:
        row = (source.end - source.begin) // (source.shape[0] if piece.index is not None else 1)
        reader.copy_to(file, place, source, (piece.index or 0) * row, piece.num_bytes, _COPY_BYTES)
        return
    block = changed(reader.block(source, piece.index), piece.change, seed).to(DTYPES[target.dtype])
    _write_at(file, place, block.contiguous().view(torch.uint8).numpy().data.cast("B"))


def _write_at(file: int, place: int, content: memoryview) -> None:
    while content:
        count = os.pwrite(file, content, place)
        content, place = content[count:], place + count


def _largest_block(plan: Plan) -> int:
    """Bytes that one thread needs for the largest block that is changed."""
    sizes = (
        piece.source.numel
        // (piece.source.shape[0] if piece.index is not None else 1)
        * (_COPIES_IN_FP32 * 4 + 2 * piece.source.itemsize)
        for target in plan.targets
        for piece in target.pieces
        if piece.change is not None
    )
    return max(sizes, default=0)


def digests(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(file name, SHA-256) of each file, read in pieces."""
    for path in paths:
        with path.open("rb") as file:
            yield path.name, hashlib.file_digest(file, "sha256").hexdigest()
