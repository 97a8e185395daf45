"""Random numbers that are a pure function of a key."""

import hashlib
import json
import math

import numpy as np


class Draws:
    """A stream of random numbers fixed by its key (texts and whole numbers), the same on any machine.

    Only Philox's raw 64-bit words are used: NumPy promises that those never change, and does not promise it
    of the distributions built on them.
    """

    def __init__(self, *key: str | int) -> None:
        name = hashlib.sha256(json.dumps(key).encode()).digest()
        self._philox = np.random.Philox(key=int.from_bytes(name[:16], "little"))

    def raw(self, num: int) -> np.ndarray:
        """Random 64-bit words, uint64."""
        return self._philox.random_raw(num)

    def uniform(self, *shape: int) -> np.ndarray:
        """Numbers in [0, 1)."""
        return ((self.raw(math.prod(shape)) >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def below(self, bound: int | np.ndarray, *shape: int) -> np.ndarray:
        """Whole numbers in [0, bound); `bound` may be an array that broadcasts to `shape`."""
        return (self.uniform(*shape) * bound).astype(np.int64)

    def orders(self, rows: int, num: int) -> np.ndarray:
        """One random order of 0..num-1 per row: [rows, num]."""
        return np.argsort(self.uniform(rows, num), axis=1, kind="stable")

    def weighted(self, cumulative: np.ndarray, num: int) -> np.ndarray:
        """`num` indices, i with probability cumulative[i] - cumulative[i-1]."""
        return np.searchsorted(cumulative[:-1], self.uniform(num), side="right")


def cumulative(weights: np.ndarray) -> np.ndarray:
    """Running shares of `weights`, rounded so that the last bit of a power function cannot matter."""
    return np.round(np.cumsum(weights) / np.sum(weights), 12)


def zipf(num: int, exponent: float) -> np.ndarray:
    """Running shares of `num` ranks whose frequency falls as rank^-exponent."""
    return cumulative(np.arange(1, num + 1, dtype=np.float64) ** -exponent)
