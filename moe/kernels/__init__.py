"""The CPU's own path in fp32: C for what lies between the matrix products of a step.

`kernels.c` is compiled for this machine at first use and kept in the user's cache. Without a C compiler
`library()` is None, and the same mathematics is done by torch's operations.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ["-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC"]


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be made."""
    found = compiler()
    if found is None:
        return None
    try:
        path = _cache() / f"kernels-{_key(found)}.so"
        return _typed(_loaded(found, path))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: this user has no home
        return None


def compiler() -> tuple[str, ...] | None:
    """The C compiler of this machine and its options (`CC`), if it has one; `CC=none` does without."""
    command = shlex.split(os.environ.get("CC") or "cc")
    found = shutil.which(command[0]) if command else None
    return None if found is None else (found, *command[1:])


def _loaded(compiler: tuple[str, ...], path: Path) -> ctypes.CDLL:
    """Made anew where a disk lost a part of it."""
    if path.exists():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    _compile(compiler, path)
    return ctypes.CDLL(str(path))


def _compile(compiler: tuple[str, ...], path: Path) -> None:
    """To a name of its own first: several workers may do this at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        command = [*compiler, *_FLAGS, "-o", str(draft), str(_SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        draft.rename(path)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "regrow"


def _key(compiler: tuple[str, ...]) -> str:
    """Source, flags, compiler and processor: a home folder may be shared by unlike machines."""
    made = os.stat(compiler[0])
    parts = [_SOURCE.read_text(), *_FLAGS, *compiler, f"{made.st_size} {made.st_mtime_ns}", _processor()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = info.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """Arguments as they are declared in C: pointers are addresses."""
    pointer, count, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    for name, kinds in {
        "rms_norm": [pointer, pointer, real, number, count, count, pointer, pointer],
        "rms_norm_back": [pointer, pointer, pointer, pointer, number, count, count, pointer, pointer],
        "attend": [pointer, pointer, count, count, pointer, pointer],
        "attend_back": [pointer, pointer, pointer, pointer, pointer, count, count, pointer, pointer, pointer],
        "route": [pointer, number, number, number, count, count, *[pointer] * 6],
        "route_back": [*[pointer] * 7, real, number, number, number, count, count, pointer],
        "sort_slots": [pointer, count, number, pointer, pointer],
        "gather": [pointer, pointer, number, number, count, count, pointer],
        "scatter_add": [pointer, pointer, number, number, count, count, pointer],
        "swiglu": [pointer, pointer, pointer, number, count, count, pointer, pointer],
        "swiglu_back": [pointer, pointer, pointer, pointer, number, count, count, pointer, pointer, pointer],
        "cross_entropy": [pointer, pointer, number, real, count, count, pointer],
    }.items():
        getattr(library, name).argtypes = kinds
    return library
