"""A Hugging Face checkpoint on disk: its headers, and slices of its tensors."""

import errno
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from moe.plain import check

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_NO_COPY_FILE_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_READ_BYTES = 1 << 20  # at a time, where the kernel does not copy
_MAX_HEADER = 100 << 20  # bytes, as in the format's own reader
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: `begin` to `end` are its bytes there, rows first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Checkpoint:
    """`config` is config.json; `tensors` come in the order of their layers. Nothing but headers was read."""

    directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def files(self) -> list[Path]:
        return sorted({stored.path for stored in self.tensors.values()})

    @property
    def num_bytes(self) -> int:
        return sum(stored.end - stored.begin for stored in self.tensors.values())


def open_checkpoint(directory: str | Path, key: str = "source") -> Checkpoint:
    """Reads config.json and every header; ValueError, naming `key` and the file, for what is not whole.

    The files may be sparse: their sizes are compared with their headers, their contents are not read.
    """
    directory = Path(directory)
    check(directory.is_dir(), f"{key}={directory} is no folder; give one with config.json and *.safetensors")
    config = _json(directory / "config.json", key)
    index = directory / INDEX
    if index.is_file():
        named = _json(index, key).get("weight_map")
        check(isinstance(named, dict) and bool(named), f"{key}: {index} has no weight_map")
        assert isinstance(named, dict)
        names = sorted(set(named.values()))
    else:
        named, names = None, [_SINGLE]
    found: dict[str, Stored] = {}
    for name in names:
        path = directory / name
        where = INDEX if named else directory
        check(path.is_file(), f"{key}: {name} is missing, and {where} needs it; fetch it again")
        found |= {stored.name: stored for stored in _header(path)}
    for name, file in (named or {}).items():
        here = found.get(name)
        check(
            here is not None and here.path.name == file,
            f"{key}: {INDEX} says that {name} is in {file}, and it is not; fetch both again",
        )
    return Checkpoint(directory, config, found)


def _json(path: Path, key: str) -> dict[str, Any]:
    check(path.is_file(), f"{key}: {path} is missing")
    try:
        value = json.loads(path.read_text())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{key}: {path} is no JSON object")
    return value


def _header(path: Path) -> Iterator[Stored]:
    """The tensors of one safetensors file: 8 bytes of length, JSON, bytes without gaps."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        check(0 < length <= min(size - 8, _MAX_HEADER), f"{path} has no safetensors header; fetch it again")
        try:
            header = json.loads(file.read(length))
            entries = [
                _stored(path, 8 + length, *item) for item in header.items() if item[0] != "__metadata__"
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path} has a damaged safetensors header; fetch it again") from None
    for stored in entries:
        check(
            stored.end <= size,
            f"{path} is cut short: {stored.name} ends at byte {stored.end} of {size}; fetch it again",
        )
        yield stored


def _stored(path: Path, base: int, name: str, entry: Mapping[str, Any]) -> Stored:
    """One entry of a header. ValueError, TypeError or KeyError for one that is none."""
    begin, end = (base + int(offset) for offset in entry["data_offsets"])
    dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
    size = prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else end - begin
    if not base <= begin <= end or size != end - begin:
        raise ValueError
    return Stored(name, dtype, shape, path, begin, end)


def _copy_range(source: int, target: int, size: int, begin: int, place: int) -> int:
    """How many bytes were copied, by the kernel alone where it can between these two files."""
    try:
        return os.copy_file_range(source, target, size, begin, place)
    except OSError as error:
        if error.errno not in _NO_COPY_FILE_RANGE:
            raise
    return os.pwrite(target, os.pread(source, min(size, _READ_BYTES), begin), place)


class Reader:
    """Slices of stored tensors, read at their place: memory is that of the slice, however large the file."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._lock = Lock()

    def block(self, stored: Stored, index: int | None = None) -> Tensor:
        """The tensor, or its `index`-th slice along the first axis, in fp32."""
        return self.own_block(stored, index).float()

    def own_block(self, stored: Stored, index: int | None = None, space: memoryview | None = None) -> Tensor:
        """The same in the type that it is stored in; its numbers lie in `space`, if that is given."""
        shape = stored.shape if index is None else stored.shape[1:]
        size = prod(shape) * stored.itemsize
        content = self.content(stored, (index or 0) * size, size, space)
        return torch.frombuffer(content, dtype=DTYPES[stored.dtype]).view(shape)

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """Slices `first` to before `last` along the first axis, in fp32."""
        row = prod(stored.shape[1:]) * stored.itemsize
        content = self.content(stored, first * row, (last - first) * row)
        return torch.frombuffer(content, dtype=DTYPES[stored.dtype]).view(-1, *stored.shape[1:]).float()

    def content(
        self, stored: Stored, first: int, size: int, space: memoryview | None = None
    ) -> bytearray | memoryview:
        """`size` bytes of a tensor from its byte `first` on, in the first of `space`, if that is given."""
        content = bytearray(size) if space is None else space[:size]
        view, place = memoryview(content), stored.begin + first
        while view:
            count = os.preadv(self._file(stored.path), [view], place)
            check(count > 0, f"{stored.path} ends within {stored.name}")
            view, place = view[count:], place + count
        return content

    def copy_to(self, file: int, place: int, stored: Stored, first: int, size: int, step: int) -> None:
        """`size` bytes of a tensor from its byte `first` on to `place` of an open file, `step` at a time."""
        source, begin = self._file(stored.path), stored.begin + first
        while size:
            count = _copy_range(source, file, min(step, size), begin, place)
            check(count > 0, f"{stored.path} ends within {stored.name}")
            size, begin, place = size - count, begin + count, place + count

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _file(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY)
            return self._files[path]
