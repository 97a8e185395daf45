"""Runs that take their training steps together, each otherwise as if alone.

A run is a generator: it yields when it is ready for a step, and is sent its line of it, or thrown what went
wrong. All that it does in between (reading, evaluating, storing) is its own, and so are its failures.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moe.bank import Bank
from moe.train import Line, Trainer
from sweeps.outcome import Outcome


class Ready(NamedTuple):
    """A trainer and the tokens [B, T+1] of its next step."""

    trainer: Trainer
    tokens_BT1: np.ndarray


class Clock:
    """Seconds that a run costs: those of its own work, and its share of steps taken together.

    The clocks of runs that go together add up to the seconds that went by.
    """

    def __init__(self) -> None:
        self._spent_s, self._since_s = 0.0, None

    @property
    def seconds(self) -> float:
        return self._spent_s + (0.0 if self._since_s is None else time.perf_counter() - self._since_s)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._since_s = time.perf_counter()
        try:
            yield
        finally:
            self._spent_s, self._since_s = self.seconds, None

    def add(self, share_s: float) -> None:
        self._spent_s += share_s


Run = Generator[Ready, Line, Outcome]


def in_lockstep(starts: Sequence[Callable[[Clock], Run]]) -> list[Outcome]:
    """What each run ends with, in their order. A run that is over leaves the others to go on."""
    group = _Group(starts)
    try:
        for nth, run in enumerate(group.runs):
            group.resume(nth, run.__next__)
        while group.ready:
            group.step()
    finally:
        for run in group.runs:  # interrupted: each flushes its lines and lets go of its lock
            run.close()
    return [group.outcomes[nth] for nth in range(len(starts))]


class _Group:
    def __init__(self, starts: Sequence[Callable[[Clock], Run]]):
        self.clocks = [Clock() for _ in starts]
        self.runs = [start(clock) for start, clock in zip(starts, self.clocks, strict=True)]
        self.ready: dict[int, Ready] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.bank: Bank | None = None

    def resume(self, nth: int, go_on: Callable[[], Ready]) -> None:
        """Lets a run work until it is ready for a step, or over."""
        with self.clocks[nth].running():
            try:
                self.ready[nth] = go_on()
            except StopIteration as end:
                self.ready.pop(nth, None)
                self.outcomes[nth] = end.value

    def step(self) -> None:
        """One step of all that are ready, which are all that are left."""
        ready, begin = dict(self.ready), time.perf_counter()
        results = self._advance(list(ready.values()))
        share_s = (time.perf_counter() - begin) / len(ready)
        for nth, result in zip(ready, results, strict=True):
            self.clocks[nth].add(share_s)
            run = self.runs[nth]
            if isinstance(result, Exception):
                self.resume(nth, lambda run=run, error=result: run.throw(error))
            else:
                self.resume(nth, lambda run=run, line=result: run.send(line))

    def _advance(self, ready: list[Ready]) -> list[Line | Exception]:
        trainers = [each.trainer for each in ready]
        if len(trainers) == 1:
            self.bank = None
            try:
                return [trainers[0].advance(ready[0].tokens_BT1)]
            except Exception as error:
                return [error]
        try:
            if self.bank is None or self.bank.trainers != trainers:
                self.bank = None  # its stacks make room for the next ones
                self.bank = Bank(trainers)
            return self.bank.advance([each.tokens_BT1 for each in ready])
        except Exception as error:
            self.bank = None
            return [_together(error, len(ready)) for _ in ready]


def _together(error: Exception, num_runs: int) -> RuntimeError:
    """One error each: a traceback belongs to whom it is thrown to."""
    mine = RuntimeError(f"a step of {num_runs} runs together failed ({type(error).__name__}: {error})")
    mine.__cause__ = error
    return mine
