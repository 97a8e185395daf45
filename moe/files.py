"""Files that are whole or absent: atomic JSON and folders, and JSON lines that survive a cut."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A draft folder that takes the name `directory` when the block ends well, and vanishes otherwise."""
    draft = directory.with_name(f".{directory.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in draft.iterdir():
            _fsync(path)
        if directory.exists():  # a folder that does not count (no DONE.json) would block the rename
            shutil.rmtree(directory)
        os.rename(draft, directory)
        _fsync(directory.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` atomically by `value` as indented JSON with sorted keys; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_whole_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None if it is missing or damaged, so that whoever wrote it writes it again."""
    try:
        return _parsed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def to_line(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"


def append_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Appends JSON lines and makes them durable: all of them or, where that fails (a full disk), none."""
    text = memoryview("".join(map(to_line, values)).encode())
    if not text:
        return
    with path.open("ab", buffering=0) as file:  # a buffer would be written once more when the file is closed
        size = file.tell()
        try:
            while text:
                text = text[file.write(text) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a crash cut short or a disk damaged does not count."""
    return [value for _, value in _whole_lines(path.read_bytes())] if path.exists() else []


def _whole_lines(text: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line that is whole, with its newline, and what it says."""
    for line in text.split(b"\n")[:-1]:
        value = _parsed(line)
        if value is not None:
            yield line + b"\n", value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def last_line(path: Path, window_bytes: int = 1 << 13) -> dict[str, Any] | None:
    """The last whole line, read from the end of the file in a window that grows; None if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            while True:
                start = max(0, size - window_bytes)
                file.seek(start)
                lines = file.read().split(b"\n")[:-1]
                for line in reversed(lines[1:] if start else lines):
                    value = _parsed(line)
                    if value is not None:
                        return value
                if start == 0:
                    return None
                window_bytes *= 4
    except FileNotFoundError:
        return None


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the lines that `keep` refuses and those that are not whole; kept lines keep their bytes."""
    if not path.exists():
        return
    text = path.read_bytes()
    kept = b"".join(line for line, value in _whole_lines(text) if keep(value))
    if kept != text:
        write_bytes(path, kept)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` atomically."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:  # a full disk is not left fuller
        draft.unlink(missing_ok=True)
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
