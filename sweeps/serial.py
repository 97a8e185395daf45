"""The executor that works in the driver itself, one task at a time."""

from collections import deque

from moe.process import prepare_process
from sweeps.outcome import Order, Outcome, WorkerOptions
from sweeps.worker import perform


class SerialExecutor:
    slots = 1

    def __init__(self, options: WorkerOptions):
        self._options, self._orders = options, deque[Order]()
        prepare_process(options.threads)

    def start(self) -> None:
        pass

    def submit(self, order: Order) -> None:
        self._orders.append(order)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Does the next order, however long it takes."""
        return [perform(self._orders.popleft(), self._options)] if self._orders else []

    def close(self) -> None:
        pass
