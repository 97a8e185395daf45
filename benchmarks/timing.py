"""How seconds are measured: alternately, and as medians."""

import statistics
import time
from collections.abc import Callable

Step = Callable[[], object]


def measure(step: Step, steps: int = 1) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def interleaved(steps: dict[str, Step], rounds: int, count: int = 1, warm_up: int = 2) -> dict[str, float]:
    """The median seconds of each, all of them once a round."""
    for step in steps.values():
        measure(step, warm_up)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(measure(step, count))
    return {name: statistics.median(times) for name, times in seconds.items()}
