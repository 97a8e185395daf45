"""Preparing a corpus: its documents become shards of tokens, once, in bounded memory."""

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from filelock import FileLock, Timeout

from moe.data.documents import Document, unreadable
from moe.data.shards import DOCUMENTS, DONE, INDEX, SPLITS, VERSION, corpus_folder, shard_name, shards_of
from moe.data.tokenizer import BPE, FILE_NAME, Sample, Tokenizer, open_tokenizer, train_bpe
from moe.files import atomic_directory, write_json
from moe.plain import check

SHARD_TOKENS = 1 << 26
_BATCH_BYTES, _BATCH_DOCUMENTS = 1 << 20, 1 << 10  # encoded together

Observer = Callable[[str, int, int | None], None]  # what is done, bytes done, bytes in all if known


class Source(Protocol):
    """Where the documents of a corpus come from, read once from beginning to end."""

    total_bytes: int | None
    tokenizer_file: Path | None  # None: bytes, or a BPE that is trained

    def documents(self) -> Iterable[Document]: ...


def prepare(corpora: Path, identity: dict[str, Any], source: Source, observe: Observer) -> None:
    """Writes a corpus as shards, once: what is there stays, and another process is waited for.

    Memory is bounded whatever the size of the corpus. ValueError, with nothing written, if the documents
    cannot serve; an interruption leaves nothing that counts.
    """
    made = [path for path in (corpora, *corpora.parents) if not path.exists()]
    try:
        corpora.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"launch.store={corpora.parent} cannot be written: {error.strerror}") from error
    try:
        _prepare(corpora, corpus_folder(corpora, identity), identity, source, observe)
    except ValueError:
        for path in made:
            with suppress(OSError):  # somebody else's is in it by now
                path.rmdir()
        raise


def _prepare(
    corpora: Path, folder: Path, identity: dict[str, Any], source: Source, observe: Observer
) -> None:
    lock = corpora / f".{folder.name}.lock"
    with _locked(lock, observe):
        for draft in corpora.glob(f".{folder.name}.*.draft"):  # of a process that was killed
            shutil.rmtree(draft)
        if (folder / DONE).exists():
            return
        try:
            with atomic_directory(folder) as draft:
                _write(draft, identity, source, observe)
        except ValueError:
            lock.unlink(missing_ok=True)
            raise
        except OSError as error:
            lock.unlink(missing_ok=True)
            raise ValueError(
                f"launch.store={corpora.parent}: the corpus could not be prepared ({error}); make room or "
                "choose another store, then run the command again"
            ) from error


@contextmanager
def _locked(path: Path, observe: Observer) -> Iterator[None]:
    """Held by one process at a time. Who held it before may have removed it: then it is made anew."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        observe("waiting for another run", 0, None)
        lock.acquire()
    while not path.exists():
        lock.release()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(draft: Path, identity: dict[str, Any], source: Source, observe: Observer) -> None:
    documents: Iterable[Document] = source.documents()
    total_bytes = source.total_bytes
    file = draft / FILE_NAME
    trains = identity["tokenizer"]["kind"] == BPE
    if trains:
        spool = draft / "spool"
        sample = _spool(documents, identity["held_out_fraction"], spool, total_bytes, observe)
        train_bpe(_told(sample.texts(), observe), identity["vocab_size"], file)
        del sample
        documents, total_bytes = _unspool(spool), spool.stat().st_size
    elif source.tokenizer_file is not None:
        _take_tokenizer(source.tokenizer_file, file, identity["tokenizer"]["sha256"])
    tokenizer = open_tokenizer(file if file.exists() else None)
    with _Writer(draft, identity, tokenizer) as writer:
        for batch in _batches(documents):
            writer.add(batch)
            observe("encoding", batch[-1].read_bytes, total_bytes)
    if trains:
        (draft / "spool").unlink()
    write_json(draft / INDEX, writer.index())
    large = {*(name for name, _ in writer.shards()), DOCUMENTS}
    files = {path.name: _facts(path, path.name not in large) for path in draft.iterdir()}
    write_json(draft / DONE, {"files": files})


def _facts(path: Path, is_small: bool) -> dict[str, Any]:
    """The size, and of a small file the digest."""
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    return facts | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if is_small else facts


def _take_tokenizer(source: Path, file: Path, sha256: str) -> None:
    """Copies the tokenizer that was planned with; ValueError if it is another by now, or gone."""
    try:
        content = source.read_bytes()
    except OSError as error:
        raise unreadable(f"data.tokenizer={source}", error) from error
    found = hashlib.sha256(content).hexdigest()
    check(
        found == sha256,
        f"data.tokenizer={source} has changed since this was planned (SHA-256 {found[:12]}, not "
        f"{sha256[:12]}); run the command again",
    )
    file.write_bytes(content)


def _spool(
    documents: Iterable[Document], held_out_fraction: float, spool: Path, total: int | None, observe: Observer
) -> Sample:
    """Copies documents to one file, so that a source is read once, and samples those to train on."""
    sample = Sample()
    with spool.open("wb") as file:
        for number, document in enumerate(documents):
            key = document.digest
            if not is_held_out(key, held_out_fraction):
                sample.add(document, key)
            file.write(len(document.content).to_bytes(8, "little") + document.content)
            if number % 64 == 0:
                observe("reading", document.read_bytes, total)
    return sample


def _told(texts: Iterable[str], observe: Observer) -> Iterator[str]:
    done = 0
    for text in texts:
        observe("training the BPE", done, None)
        yield text
        done += len(text)


def _unspool(spool: Path) -> Iterator[Document]:
    with spool.open("rb") as file:
        while head := file.read(8):
            yield Document(file.read(int.from_bytes(head, "little")), file.tell())


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.content)
        if size >= _BATCH_BYTES or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def is_held_out(digest: bytes, held_out_fraction: float) -> bool:
    """Whether the SHA-256 of a document's content puts it aside: copies fall on the same side."""
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53 < held_out_fraction


@dataclass
class _Split:
    """Counts of a split, and its shard that is being written."""

    documents: int = 0
    tokens: int = 0
    file: BinaryIO | None = field(default=None, repr=False)


class _Writer:
    """Appends documents to the shards of their split, each followed by the separator."""

    def __init__(self, draft: Path, identity: dict[str, Any], tokenizer: Tokenizer) -> None:
        self._draft, self._identity, self._tokenizer = draft, identity, tokenizer
        self._dtype = np.dtype("<u2" if identity["vocab_size"] <= 1 << 16 else "<u4")
        self._splits = {name: _Split() for name in SPLITS}
        self._documents = (draft / DOCUMENTS).open("wb")
        self._bytes = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        for file in (self._documents, *(split.file for split in self._splits.values())):
            if file is not None:
                file.close()

    def add(self, batch: list[Document]) -> None:
        encoded = self._tokenizer.encode([document.content for document in batch])
        end = np.array([self._tokenizer.separator], self._dtype)
        for document, ids in zip(batch, encoded, strict=True):
            key = document.digest
            name = SPLITS[is_held_out(key, self._identity["held_out_fraction"])]
            split = self._splits[name]
            self._append(name, split, np.concatenate([ids.astype(self._dtype), end]))
            split.documents += 1
            self._bytes += len(document.content)
            if name == "held_out":
                place = [split.tokens, int.from_bytes(key[:8], "big")]
                self._documents.write(np.array(place, "<u8").tobytes())

    def _append(self, name: str, split: _Split, tokens: np.ndarray) -> None:
        while len(tokens):
            number, place = divmod(split.tokens, SHARD_TOKENS)
            if place == 0:
                if split.file is not None:
                    split.file.close()
                split.file = (self._draft / shard_name(name, number)).open("wb")
            part, tokens = np.split(tokens, [SHARD_TOKENS - place])
            assert split.file is not None
            split.file.write(part.tobytes())
            split.tokens += len(part)

    def shards(self) -> list[tuple[str, int]]:
        """Name and tokens of every shard."""
        splits = self._splits.items()
        return [shard for name, split in splits for shard in shards_of(name, split.tokens, SHARD_TOKENS)]

    def index(self) -> dict[str, Any]:
        """What corpus.json says. ValueError if one of the splits is empty."""
        counts = {
            name: {"documents": split.documents, "tokens": split.tokens}
            for name, split in self._splits.items()
        }
        _check_counts(counts, self._identity)
        return {
            "version": VERSION,
            "identity": self._identity,
            "splits": counts,
            "text_bytes": self._bytes,
            "dtype": self._dtype.name,
            "shard_tokens": SHARD_TOKENS,
            "separator": self._tokenizer.separator,
            "num_ids": self._tokenizer.num_ids,
            "tokenizers": importlib.metadata.version("tokenizers"),
        }


def _check_counts(counts: dict[str, dict[str, int]], identity: dict[str, Any]) -> None:
    num_train, num_held = (counts[name]["documents"] for name in SPLITS)
    check(num_train + num_held > 0, "the corpus has no text: every document is empty; give other files")
    where = (
        f"the corpus has {num_train + num_held} documents, {num_held} of them held out "
        f"(data.held_out_fraction={identity['held_out_fraction']})"
    )
    check(num_train > 0, f"{where}; none is left to train on: give more text")
    check(num_held > 0, f"{where}; none is left to ask about: give more text, or raise the fraction")
