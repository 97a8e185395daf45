"""A shuffled order of any length that is computed place by place, in constant memory."""

from functools import lru_cache

import numpy as np

from moe.data.draws import Draws

ROUNDS = 8
_MIN_HALF_BITS = 4  # halves of fewer bits mix too little


class Permutation:
    """A bijection of [0, size) fixed by its key, the same on any machine: a Feistel network of whole numbers.

    Places beyond `size` in the network's own domain (a power of four) are walked through again (cycle
    walking), twice on average at most unless `size` is below 64.
    """

    def __init__(self, size: int, *key: str | int) -> None:
        assert 0 < size < 1 << 62, size
        half_bits = max(_MIN_HALF_BITS, -(-(size - 1).bit_length() // 2))
        self.size = size
        self._half, self._mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
        self._keys = Draws(*key).raw(ROUNDS)

    def __call__(self, place: np.ndarray) -> np.ndarray:
        """The number at each place, int64; places lie in [0, size)."""
        number = self._network(place.astype(np.uint64))
        while (outside := number >= self.size).any():
            number[outside] = self._network(number[outside])
        return number.astype(np.int64)

    def _network(self, number: np.ndarray) -> np.ndarray:
        left, right = number >> self._half, number & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return left << self._half | right


def _mixed(word: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the word."""
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, num_windows: int) -> Permutation:
    """The order in which an epoch reads the windows of a corpus."""
    return Permutation(num_windows, "epoch", seed, epoch)
