"""Token shards: a corpus as it lies under `<store>/corpora/<digest of its identity>/`, memory-mapped.

<split>-00000.tokens (uint16, uint32 above 65536 ids), held_out.documents, tokenizer.json if there is one,
corpus.json, and DONE.json last: a folder without it does not exist.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe.data.tokenizer import FILE_NAME
from moe.files import read_json
from moe.plain import canonical_json, check, digest

VERSION = 1
SPLITS = ("train", "held_out")
INDEX, DONE, DOCUMENTS = "corpus.json", "DONE.json", "held_out.documents"


def corpus_folder(corpora: Path, identity: dict[str, Any]) -> Path:
    return corpora / digest(identity)


def is_prepared(corpora: Path, identity: dict[str, Any]) -> bool:
    return (corpus_folder(corpora, identity) / DONE).exists()


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.tokens"


def shards_of(split: str, num_tokens: int, shard_tokens: int) -> list[tuple[str, int]]:
    """Name and tokens of every shard of a split."""
    return [
        (shard_name(split, number), min(shard_tokens, num_tokens - first))
        for number, first in enumerate(range(0, num_tokens, shard_tokens))
    ]


class Tokens:
    """The tokens of one split as if they were one array; only what is asked for is read from the disk."""

    def __init__(self, folder: Path, index: dict[str, Any], split: str) -> None:
        self._size = index["splits"][split]["tokens"]
        self._shard_tokens = index["shard_tokens"]
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        names = [name for name, _ in shards_of(split, self._size, self._shard_tokens)]
        self._shards = [np.memmap(folder / name, dtype, mode="r") for name in names]

    def __len__(self) -> int:
        return self._size

    def rows(self, first: Iterable[int], length: int) -> np.ndarray:
        """Tokens [n, length], int64, from each place in `first` on; they may run over into the next shard."""
        starts = list(first)
        rows_NL = np.empty((len(starts), length), np.int64)
        for row, start in zip(rows_NL, starts, strict=True):
            filled = 0
            while filled < length:
                number, place = divmod(int(start) + filled, self._shard_tokens)
                part = self._shards[number][place : place + length - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
        return rows_NL


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A prepared corpus, opened. `documents` has a row per held-out document: its end, and a hash of it."""

    index: dict[str, Any]
    train: Tokens
    held_out: Tokens
    documents: np.ndarray
    tokenizer_file: Path | None


def open_prepared(corpora: Path, identity: dict[str, Any]) -> Prepared:
    """Opens a corpus without reading its tokens; ValueError naming the file that does not belong to it."""
    folder = corpus_folder(corpora, identity)
    check(
        (folder / DONE).exists(),
        f"launch.store={corpora.parent} has no prepared corpus {folder.name}; run sweep.py with this store, "
        "which prepares it",
    )
    done = read_json(folder / DONE)["files"]
    for name, facts in done.items():
        _check_file(folder, name, facts)
    index = read_json(folder / INDEX)
    _check_index(folder, index, identity, done)
    documents = np.memmap(folder / DOCUMENTS, "<u8", mode="r").reshape(-1, 2)
    file = folder / FILE_NAME
    train, held_out = (Tokens(folder, index, split) for split in SPLITS)
    return Prepared(index, train, held_out, documents, file if FILE_NAME in done else None)


def _check_file(folder: Path, name: str, facts: dict[str, Any]) -> None:
    path = folder / name
    whole = path.exists() and path.stat().st_size == facts["bytes"]
    if whole and "sha256" in facts:
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"]
    what = "a tokenizer" if name == FILE_NAME else "a file"
    check(whole, f"{path} is {what} that does not match the shards it was written with; {_again(folder)}")


def _check_index(folder: Path, index: dict[str, Any], identity: dict[str, Any], done: dict[str, Any]) -> None:
    check(
        index["version"] == VERSION and canonical_json(index["identity"]) == canonical_json(identity),
        f"{folder / INDEX} is of another corpus or release; {_again(folder)}",
    )
    itemsize = np.dtype(index["dtype"]).itemsize
    for split in SPLITS:
        num_tokens = index["splits"][split]["tokens"]
        for name, tokens in shards_of(split, num_tokens, index["shard_tokens"]):
            check(
                done.get(name, {}).get("bytes") == tokens * itemsize,
                f"{folder / name} does not have the tokens that {INDEX} says; {_again(folder)}",
            )
    sha256 = identity["tokenizer"].get("sha256")
    check(
        sha256 is None or done.get(FILE_NAME, {}).get("sha256") == sha256,
        f"{folder / FILE_NAME} is a tokenizer that does not match the shards; {_again(folder)}",
    )


def _again(folder: Path) -> str:
    return f"remove {folder} and run sweep.py again, which prepares it anew"
