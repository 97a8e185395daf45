"""Contenders that take short turns with the first of them, each in a process of its own.

None lives with another's memory and settings; what disturbs a machine for seconds disturbs both of a pair.
"""

import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

from timing import Step, measure


class Pace(NamedTuple):
    """Medians: seconds of a step, and how many times those of the first contender in the turn beside it."""

    seconds: float
    of_first: float


def in_turns(
    makers: Mapping[str, Callable[[], Step]], rounds: int, count: int, warm_up: int
) -> dict[str, Pace]:
    """Every contender in turns with the first, pair by pair; one whose maker raises ImportError is left out.

    A maker travels as a pickle and is called in its process, which it may set up as it likes.
    """
    (first, make_first), *others = makers.items()
    found, of_first = {}, []
    with _process(make_first) as ours:
        _answer(ours, warm_up)
        for name, make in others:
            with _process(make) as theirs:
                if _answer(theirs, warm_up) is None:
                    continue
                turns = [(_answer(ours, count), _answer(theirs, count)) for _ in range(rounds)]
            pairs = [(a, b) for a, b in turns if a is not None and b is not None]
            ratio = statistics.median(b / a for a, b in pairs)
            found[name] = Pace(statistics.median(b for _, b in pairs), ratio)
            of_first += [a for a, _ in pairs]
    return {first: Pace(statistics.median(of_first), 1.0), **found}


@contextlib.contextmanager
def _process(make: Callable[[], Step]) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _answer(line: Connection, count: int) -> float | None:
    line.send(count)
    answer = line.recv()
    if isinstance(answer, ImportError):
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(make: Callable[[], Step], line: Connection) -> None:
    """Seconds a step of as many as asked, until nobody asks."""
    step = None
    with contextlib.suppress(EOFError):
        while True:
            count = line.recv()
            try:
                step = step or make()
                step()  # what lay idle while another had its turn is cold, and a run never lies idle
                line.send(measure(step, count))
            except Exception as error:
                line.send(error)
