"""Writes a planned checkpoint within a memory limit, shard by shard, and goes on where it was stopped."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event, local
from typing import Any

import torch

from moe.files import append_lines, read_lines, write_bytes, write_json
from moe.plain import check
from moe.recycle.block import CHUNK_BYTES, changed
from moe.recycle.checkpoint import DTYPES, INDEX, Reader, Stored
from moe.recycle.plan import Piece, Plan, Target
from moe.recycle.shards import Shard, index_of

JOURNAL = "journal.jsonl"
_COPY_BYTES = 8 << 20
_HASHED_BYTES = 1 << 20
_FLUSHED_BYTES = 256 << 20  # the disk is given so much at a time, while the rest is worked on
_WARM_BYTES = 32 << 20  # what the first numbers of a process load: code of torch, threads' own stores
_NOT_CARRIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
_OWN = {"config.json", INDEX, "README.md", "growth.json", ".gitattributes"}


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one call did: bytes of the shards that it wrote; `peak_bytes` is the most memory that its process
    ever held, by the kernel's account (VmHWM), mapped libraries included."""

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
    beside = (_WARM_BYTES if block else 0) + _COPY_BYTES
    room = memory_limit - now - beside
    check(
        room >= block,
        f"memory_limit={memory_limit / 2**20:.0f} MiB does not hold the program ({now / 2**20:.0f} MiB) and "
        f"the largest matrix of an expert at work ({block / 2**20:.0f} MiB); give at least "
        f"{(now + beside + block) / 2**20:.0f} MiB",
    )
    return max(1, min(threads, room // max(block, 1)))


def memory_bytes() -> int:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


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
    to_do = [shard for shard in shards if shard.name not in done]
    progress(sum(shard.num_bytes for shard in shards if shard.name in done))
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small matrices: threads work on different ones
    try:
        with _Workers(threads, seed, progress) as workers:
            for shard in to_do:
                workers.write(draft, shard)
    finally:
        torch.set_num_threads(torch_threads)
    num_bytes = sum(shard.num_bytes for shard in to_do)
    return Written(num_bytes=num_bytes, num_shards=len(to_do), peak_bytes=peak_bytes())


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
    os.rename(draft, target)
    (target / JOURNAL).unlink()


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


class _Workers:
    """Threads that write a file while another brings what is written to the disk, that of the file before it
    too. Leaving waits for the disk; after an exception what is not begun is left out."""

    def __init__(self, threads: int, seed: int, progress: Callable[[int], None]) -> None:
        self.threads, self.seed, self.progress = threads, seed, progress
        self.pool, self.disk = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)
        self.reader, self.stop = Reader(), Event()
        self.files: set[int] = set()
        self.landing: list[Future[None]] = []

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop.set()
        self.pool.shutdown()
        self.disk.shutdown()
        self.reader.close()
        for file in self.files:
            os.close(file)
        if kind is None:
            self._landed()

    def write(self, draft: Path, shard: Shard) -> None:
        """One file, under another name until it is whole; it lands while the next one is written."""
        file = os.open(draft / _part(shard), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.files.add(file)
        os.ftruncate(file, shard.num_bytes)
        _write_at(file, 0, memoryview(shard.header))

        def work(job: tuple[Target, Piece, int]) -> int:
            if not self.stop.is_set():
                _write_piece(file, *job, self.reader, self.seed)
            return job[1].num_bytes

        jobs, waiting = shard.jobs(), 0
        running = {self.pool.submit(work, job) for job in islice(jobs, 4 * self.threads)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {self.pool.submit(work, job) for job in islice(jobs, len(ended))}
            count = sum(future.result() for future in ended)
            waiting += count
            if waiting >= _FLUSHED_BYTES:
                waiting = 0
                self.landing.append(self.disk.submit(os.fdatasync, file))
            self.progress(count)
        self._landed()
        self.landing.append(self.disk.submit(self._land, draft, shard, file))

    def _land(self, draft: Path, shard: Shard, file: int) -> None:
        os.fsync(file)
        self.files.remove(file)
        os.close(file)
        os.replace(draft / _part(shard), draft / shard.name)
        append_lines(draft / JOURNAL, [{"shard": shard.name, "bytes": shard.num_bytes}])

    def _landed(self) -> None:
        """Waits for the disk; raises what it raised."""
        for future in self.landing:
            future.result()
        self.landing.clear()


def _part(shard: Shard) -> str:
    return f"{shard.name}.part"


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
    block = reader.own_block(source, piece.index, _SPACE.of(source, piece))
    block = changed(block, piece.change, seed, in_place=True)
    assert block.dtype == DTYPES[target.dtype], target.name
    _write_at(file, place, block.view(torch.uint8).numpy().data.cast("B"))


def _write_at(file: int, place: int, content: memoryview) -> None:
    while content:
        count = os.pwrite(file, content, place)
        content, place = content[count:], place + count


class _Space(local):
    """Where a thread keeps the block that it works on, as large as the largest so far."""

    def __init__(self) -> None:
        self.content = memoryview(bytearray())

    def of(self, source: Stored, piece: Piece) -> memoryview:
        size = _numel(piece) * source.itemsize
        if len(self.content) < size:
            self.content = memoryview(b"")  # before there is another
            self.content = memoryview(bytearray(size))
        return self.content


_SPACE = _Space()


def _numel(piece: Piece) -> int:
    """Of the block that a changed piece is made of."""
    return piece.source.numel // (piece.source.shape[0] if piece.index is not None else 1)


def _largest_block(plan: Plan) -> int:
    """Bytes that one thread needs for the largest block that is changed; a part of it is a copy."""
    sizes = (
        _numel(piece)
        * (
            piece.source.itemsize * (2 if piece.change.part else 1)
            + 4 * (piece.change.new is not None)
            + bool(piece.change.dropped)
        )
        + CHUNK_BYTES
        for target in plan.targets
        for piece in target.pieces
        if piece.change is not None
    )
    return max(sizes, default=0)


def digest_of(path: Path, stop: Event) -> str:
    """SHA-256 of a file, read in pieces; of what was read until `stop`."""
    sha, piece = hashlib.sha256(), bytearray(_HASHED_BYTES)
    with path.open("rb", buffering=0) as file:
        while not stop.is_set() and (count := file.readinto(piece)):
            sha.update(memoryview(piece)[:count])
    return sha.hexdigest()
