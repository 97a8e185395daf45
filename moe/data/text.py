"""Text in files: a folder or one file. Its identity is what they hold, not where they lie."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.data.documents import (
    Document,
    File,
    check_files,
    documents,
    find_files,
    fingerprint,
    manifest_of,
    unreadable,
)
from moe.data.tokenizer import check_vocabulary, tokenizer_file, tokenizer_identity
from moe.plain import check

VERSION = 2


def check_held_out(held_out_fraction: float) -> None:
    check(
        0 < held_out_fraction <= 0.5,
        f"data.held_out_fraction={held_out_fraction} must lie in (0, 0.5]",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Which files are read, what they are cut into, and how they are split."""

    source: str
    path: str | None
    patterns: tuple[str, ...]  # of file names
    skip: tuple[str, ...]  # names of folders left out
    text_field: str  # of the records of .jsonl and .parquet files
    tokenizer: str
    vocab_size: int
    held_out_fraction: float  # of the documents

    def __post_init__(self) -> None:
        check(self.source == "text", f"data.source={self.source} must be text here")
        check(bool(self.patterns), "data.patterns=[] matches no file; give at least one, such as '*.txt'")
        check_held_out(self.held_out_fraction)
        check_vocabulary(self.tokenizer, self.vocab_size)


def text_identity(config: TextConfig) -> dict[str, Any]:
    """What is read: manifest, tokenizer and split; ValueError if the files cannot serve as a corpus.

    Reads every file once in a process. Warns of files that are not UTF-8.
    """
    files = files_of(config)
    check_files(files, config.text_field)
    bad = [file.name for file in files if not fingerprint(file).is_utf8]
    if bad:
        warnings.warn(
            f"{len(bad)} of {len(files)} files under {config.path} are not UTF-8, the first is {bad[0]}; "
            "their bad bytes are read as U+FFFD",
            stacklevel=4,
        )
    has_records = any(file.kind != "text" for file in files)
    return {
        "version": VERSION,
        "source": "text",
        "tokenizer": tokenizer_identity(config.tokenizer, config.vocab_size),
        "vocab_size": config.vocab_size,
        "held_out_fraction": config.held_out_fraction,
        "manifest": manifest_of(files),
        **({"text_field": config.text_field} if has_records else {}),
    }


def files_of(config: TextConfig) -> list[File]:
    """The files of a corpus; ValueError if there are none, or none with any text."""
    check(config.path is not None, "data.path is missing; give a folder of text files, or one file")
    root = Path(config.path or "").expanduser().resolve()
    try:
        is_there = root.exists()
    except OSError as error:
        raise unreadable(f"data.path={config.path}", error) from error
    check(is_there, f"data.path={config.path} is not there; give a folder of text files, or one file")
    files = find_files(root, config.patterns, config.skip)
    check(
        bool(files),
        f"data.path={config.path} holds no file that matches data.patterns={list(config.patterns)}; "
        "give another folder or pattern",
    )
    check(
        any(file.size for file in files),
        f"data.path={config.path} holds only empty files ({len(files)} match data.patterns); "
        "give another folder or pattern",
    )
    return files


class TextSource:
    """The documents of the files that an identity was made of."""

    def __init__(self, config: TextConfig, identity: dict[str, Any]) -> None:
        self._config, self._identity = config, identity
        self._files = files_of(config)
        self._check_manifest(self._files)
        self.total_bytes: int | None = sum(file.size for file in self._files)
        self.tokenizer_file = tokenizer_file(config.tokenizer)

    def documents(self) -> Iterator[Document]:
        yield from documents(self._files, self._config.text_field)
        self._check_manifest(files_of(self._config))  # none may change while they are read

    def _check_manifest(self, files: list[File]) -> None:
        found, manifest = manifest_of(files), self._identity["manifest"]
        check(
            found == manifest,
            f"data.path={self._config.path} holds other files than this study was planned with (manifest "
            f"{found[:12]}, not {manifest[:12]}); run the command again when nothing changes them",
        )
