"""Faults for tests: forked children, warm from their parent's imports, that are killed, starved or harmed.

Every durable operation of a child (fsync, rename, replace, unlink) is a moment, before and after it: a fault
is chosen by its place among them or by the file it concerns.
"""

import errno
import fnmatch
import itertools
import json
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Decide = Callable[[str, str], None]  # sees ("before" | "after", "operation name-in-the-store")


def in_child(work: Callable[[], int]) -> tuple[int, str]:
    """The exit status of `work` in a forked child (negative: a signal ended it) and what it printed."""
    reading, writing = os.pipe()  # not a file: the size of files may be what is limited
    with warnings.catch_warnings():  # the child is done before another thread of ours would be missed
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _become(work, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as output:
            printed = output.read().decode()
        _, status = os.waitpid(pid, 0)
    except BaseException:  # the test's time is up
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(status), printed


def _become(work: Callable[[], int], output: int) -> None:
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def watch(root: Path, decide: Decide) -> None:
    """From here on `decide` is asked before and after each durable operation below `root`."""

    def watched(name: str, where: Callable[..., Any]) -> None:
        original = getattr(os, name)

        def operation(*args: Any, **options: Any) -> Any:
            path = os.path.relpath(os.fspath(where(*args)), root)
            if path.startswith(".."):
                return original(*args, **options)
            decide("before", f"{name} {path}")
            result = original(*args, **options)
            decide("after", f"{name} {path}")
            return result

        setattr(os, name, operation)

    watched("fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    for name in ("rename", "replace"):
        watched(name, lambda source, target: target)
    watched("unlink", lambda path, **_: path)


def kill_at(when: str, pattern: str, count: int = 1) -> Decide:
    """Ends the process, as `kill -9` does, at the `count`-th moment of that kind."""
    seen = itertools.count(1)

    def decide(moment: str, operation: str) -> None:
        if moment == when and fnmatch.fnmatch(operation, pattern) and next(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return decide


def kill_at_place(place: int) -> Decide:
    """Ends the process at the moment of that place, whatever it is."""
    return _at_place(place, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fill_disk_at_place(place: int, operations: int) -> Decide:
    """From that place on, as many writes fail as if the disk were full; then there is room again."""
    seen = itertools.count()

    def decide(moment: str, operation: str) -> None:
        here = next(seen)
        if moment == "before" and place <= here < place + operations and not operation.startswith("unlink"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation)

    return decide


def _at_place(place: int, act: Callable[[], None]) -> Decide:
    seen = itertools.count()

    def decide(moment: str, operation: str) -> None:
        if next(seen) == place:
            act()

    return decide


def record(path: Path) -> Decide:
    """Notes every moment in a file, one a line."""

    def decide(moment: str, operation: str) -> None:
        with path.open("a") as file:
            file.write(json.dumps([moment, operation]) + "\n")

    return decide


def limit_files(num_bytes: int) -> None:
    """The kernel refuses to write any file beyond this size, half-way through it, to every library."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def kill() -> None:
    """What `kill -9` does to this process."""
    os.kill(os.getpid(), signal.SIGKILL)
