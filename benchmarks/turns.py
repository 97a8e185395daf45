"""Contenders that take turns, each in a process of its own: none lives with another's memory and settings."""

import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection

from timing import Step, measure


def seconds_in_turns(
    makers: Mapping[str, Callable[[], Step]], rounds: int, count: int, warm_up: int
) -> dict[str, float]:
    """The median seconds of a step of each, all of them once a round; ImportError leaves a contender out.

    A maker travels as a pickle and is called in its process, which it may set up as it likes.
    """
    with contextlib.ExitStack() as stack:
        asked = {name: stack.enter_context(_process(make)) for name, make in makers.items()}
        there = {name: line for name, line in asked.items() if _answer(line, warm_up) is not None}
        seconds: dict[str, list[float]] = {name: [] for name in there}
        for _ in range(rounds):
            for name, line in there.items():
                answer = _answer(line, count)
                assert answer is not None
                seconds[name].append(answer)
    return {name: statistics.median(times) for name, times in seconds.items()}


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
                line.send(measure(step, count))
            except Exception as error:
                line.send(error)
