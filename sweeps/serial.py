"""The executor that works in the driver itself, one bundle of tasks at a time."""

from collections import deque
from collections.abc import Sequence

from moe.process import prepare_process
from sweeps.outcome import Order, Outcome, WorkerOptions
from sweeps.worker import perform_together


class SerialExecutor:
    slots = 1

    def __init__(self, options: WorkerOptions):
        self._options, self._orders = options, deque[Sequence[Order]]()
        prepare_process(options.threads)

    def start(self) -> None:
        pass

    def submit(self, orders: Sequence[Order]) -> None:
        self._orders.append(orders)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Does the next bundle, however long it takes."""
        return perform_together(self._orders.popleft(), self._options) if self._orders else []

    def close(self) -> None:
        pass
