"""Documents of files: a text file is one, a line of .jsonl or a row of .parquet is one. Read as a stream."""

import codecs
import fnmatch
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from moe.plain import canonical_json, check

MAX_DOCUMENT_BYTES = 1 << 26  # a document is held in memory whole
_CHUNK_BYTES = 1 << 20
_ROWS = 256  # of a Parquet file, read together


class File(NamedTuple):
    """A file as it was found; `name` is its path relative to the folder that was searched.

    `ctime_ns` tells a change that left size and `mtime_ns` as they were.
    """

    path: str
    name: str
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def kind(self) -> str:
        """text, jsonl or parquet, by the end of its name."""
        return {".jsonl": "jsonl", ".parquet": "parquet"}.get(Path(self.name).suffix.lower(), "text")


@dataclass(frozen=True, slots=True)
class Document:
    """UTF-8 text that is trained on or held out as a whole; `read_bytes` of the source lie behind it."""

    content: bytes
    read_bytes: int

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.content).digest()


# --------------------------------------------------------------------------------------------------------
# Files


def find_files(root: Path, patterns: tuple[str, ...], skip: tuple[str, ...]) -> list[File]:
    """The files below `root` whose names match, in the order of their paths; or `root` itself, if a file.

    ValueError naming what cannot be looked at: a corpus is never less than what the folder holds.
    """
    try:
        return _found(root, patterns, skip)
    except OSError as error:
        raise unreadable(error.filename or root, error) from error


def _found(root: Path, patterns: tuple[str, ...], skip: tuple[str, ...]) -> list[File]:
    if root.is_file():
        return [_file(root, root.name)]
    found = []
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if name not in skip]
        for name in names:
            path = Path(folder, name)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) and path.is_file():
                found.append(_file(path, path.relative_to(root).as_posix()))
    return sorted(found, key=lambda file: file.name)


def _file(path: Path, name: str) -> File:
    stat = path.stat()
    return File(str(path), name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _raise(error: OSError) -> None:
    raise error


class Fingerprint(NamedTuple):
    sha256: str
    has_nul: bool
    is_utf8: bool


def fingerprint(file: File) -> Fingerprint:
    """What a file holds, in short, read as a stream once in a process while size and time stay the same."""
    try:
        return _fingerprint(file)
    except OSError as error:
        raise unreadable(file.path, error) from error


def unreadable(path: object, error: Exception) -> ValueError:
    """What a reader's error is to a user: libraries raise some that hold no word of the system."""
    told = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ValueError(f"{path} cannot be read ({told}); leave it out, allow it or restore it")


@lru_cache(maxsize=1 << 17)
def _fingerprint(file: File) -> Fingerprint:
    digest, has_nul, is_utf8 = hashlib.sha256(), False, True
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(file.path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            if file.kind != "parquet":
                has_nul = has_nul or b"\0" in chunk
                is_utf8 = is_utf8 and _decodes(decoder, chunk)
    return Fingerprint(digest.hexdigest(), has_nul, is_utf8 and _decodes(decoder, b"", final=True))


def _decodes(decoder: codecs.IncrementalDecoder, chunk: bytes, final: bool = False) -> bool:
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError:
        return False
    return True


def manifest_of(files: list[File]) -> str:
    """The SHA-256 of every file's relative path and SHA-256."""
    entries = [[file.name, fingerprint(file).sha256] for file in files]
    return hashlib.sha256(canonical_json(entries).encode()).hexdigest()


def check_files(files: list[File], text_field: str) -> None:
    """ValueError naming the first file that cannot be read as documents, as far as a quick look tells."""
    for file in files:
        if file.kind == "parquet":
            _parquet(file, text_field).close()
            continue
        check(
            file.kind == "jsonl" or not fingerprint(file).has_nul,
            f"{file.path} is no text: it has NUL bytes; leave it out with data.patterns or data.skip, "
            "or save it as UTF-8",
        )
        if file.kind == "text":
            _check_size(file.size, file.path)


def _check_size(size: int, where: str) -> None:
    check(
        size <= MAX_DOCUMENT_BYTES,
        f"{where} is one document of more than {MAX_DOCUMENT_BYTES >> 20} MiB, and a document is trained "
        "on or held out as a whole; cut it into documents, say the lines of a .jsonl file",
    )


# --------------------------------------------------------------------------------------------------------
# Documents


def documents(files: list[File], text_field: str) -> Iterator[Document]:
    """Every document that is not empty, in the order of the files; bad bytes are read as U+FFFD.

    ValueError naming file and line (or row) for what is no record with text in the field `text_field`.
    """
    behind = 0
    for file in files:
        match file.kind:
            case "jsonl":
                texts = _lines(file, text_field)
            case "parquet":
                texts = _rows(file, text_field)
            case _:
                texts = _whole(file)
        try:
            for content, read_bytes in texts:
                if content:
                    yield Document(content, behind + read_bytes)
        except OSError as error:
            raise unreadable(file.path, error) from error
        behind += file.size


def _whole(file: File) -> Iterator[tuple[bytes, int]]:
    _check_size(os.path.getsize(file.path), file.path)
    content = Path(file.path).read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        content = content.decode(errors="replace").encode()
    yield content, file.size


def _lines(file: File, text_field: str) -> Iterator[tuple[bytes, int]]:
    with open(file.path, "rb") as stream:
        number = 0
        while line := stream.readline(2 * MAX_DOCUMENT_BYTES):
            number += 1
            where = f"{file.path} line {number}"
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.isspace():
                yield utf8(_field(_record(line, where), text_field, where), where), stream.tell()


def _record(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON ({error}); a .jsonl file has one record on each line: correct it or leave "
            "the file out with data.patterns"
        ) from None


def _field(record: Any, text_field: str, where: str) -> Any:
    fields = list(record) if isinstance(record, dict) else []
    check(
        text_field in fields,
        f"{where} has no field {text_field}; set data.text_field to one of its fields: {_listed(fields)}",
    )
    return record[text_field]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "it has none"


def utf8(value: Any, where: str) -> bytes:
    """The UTF-8 of a record's text; ValueError naming the place if it is no text."""
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: data.text_field holds {'null' if value is None else type(value).__name__}, not text; "
            "choose another field or remove the record"
        )
    try:
        content = value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        content = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    _check_size(len(content), where)
    return content


def check_library(name: str, what: str) -> None:
    """ValueError if an optional library is not installed."""
    check(
        importlib.util.find_spec(name) is not None,
        f"{what} needs the library {name}, which is not installed; run: pip install 'regrow[hf]'",
    )


def _parquet(file: File, text_field: str) -> Any:
    """The opened file; ValueError if it is none, or has no text in its column `text_field`."""
    check_library("pyarrow", f"{file.path} (Parquet)")
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(f"{file.path} (Parquet)", error) from None
    schema = opened.schema_arrow
    check(
        text_field in schema.names,
        f"{file.path} has no column {text_field}; set data.text_field to one of its columns: "
        f"{_listed(schema.names)}",
    )
    kind = schema.field(text_field).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    check(
        pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind),
        f"{file.path}: data.text_field={text_field} holds {kind}, not text; choose another column",
    )
    return opened


def _rows(file: File, text_field: str) -> Iterator[tuple[bytes, int]]:
    opened, row = _parquet(file, text_field), 0
    num_rows = max(1, opened.metadata.num_rows)
    with opened:
        for values in _columns(opened, file, text_field):
            for value in values:
                row += 1
                yield utf8(value, f"{file.path} row {row}"), file.size * row // num_rows


def _columns(opened: Any, file: File, text_field: str) -> Iterator[list[Any]]:
    """The column's values, some rows at a time; ValueError if the file is damaged."""
    import pyarrow

    try:
        for batch in opened.iter_batches(batch_size=_ROWS, columns=[text_field], use_threads=False):
            yield batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(f"{file.path} (Parquet)", error) from error
