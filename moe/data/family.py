"""What a family of documents is: how its documents are made, graded, and held out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from moe.data.draws import Draws, zipf
from moe.data.language import FAMILIES, MAX_LENGTH, WorldConfig, vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """Rows of one family: `tokens` [n, W] padded with 0, `length`, `level` [n]; the last token answers."""

    tokens: np.ndarray
    length: np.ndarray
    level: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Documents":
        return Documents(self.tokens[rows], self.length[rows], self.level[rows])

    def __len__(self) -> int:
        return len(self.length)


class Family(ABC):
    """One kind of document, its levels, and which of its documents are held out of training.

    Held out is every document whose `key`, hashed, falls below `held_out_fraction` (facts have a rule of
    their own). `world_seed` fixes the hash.
    """

    name: str
    levels: range  # of documents
    item_levels: range  # of items, where they differ
    mean_length: float  # expected tokens of a document as `make` makes them at random levels

    def __init__(self, config: WorldConfig, levels: range) -> None:
        self.config, self.levels, self.item_levels = config, levels, levels
        self.level_zipf = config.level_zipf
        self.held_out_fraction = config.held_out_fraction  # of what is made, the part `held_out` keeps ...
        self.training_fraction = 1.0 - config.held_out_fraction  # ... and the part `training` keeps
        self.words, self.start = vocabulary(config)
        self.mark = self.start["marks"] + FAMILIES.index(self.name)
        self._hash_weight = Draws("hash", config.world_seed).raw(MAX_LENGTH) | np.uint64(1)

    # -- what a family defines ---------------------------------------------------------------------------

    @abstractmethod
    def make(self, draws: Draws, level: np.ndarray) -> Documents:
        """One document of each level."""

    @abstractmethod
    def pool(self, draws: Draws, documents: Documents, right: np.ndarray) -> np.ndarray:
        """What an item's choices are taken from, the right one among them: ids [n, P], -1 = none."""

    def make_item(self, draws: Draws, level: np.ndarray) -> Documents:
        """Documents that items are made of."""
        return self.make(draws, level)

    def key(self, documents: Documents) -> np.ndarray:
        """What the split goes by, equal where documents say the same: [n, W]; here all but the answer."""
        return documents.tokens * (np.arange(documents.tokens.shape[1]) < documents.length[:, None] - 1)

    # -- the split ---------------------------------------------------------------------------------------

    def training(self, draws: Draws, num: int) -> Documents:
        """`num` documents less those that are held out, levels as frequent as in training."""
        documents = self.make(draws, self.random_levels(draws, num))
        return documents[~self._is_held_out(documents)]

    def held_out(self, draws: Draws, num: int) -> Documents:
        """Those of `num` documents that are held out."""
        documents = self.make(draws, self.random_levels(draws, num))
        return documents[self._is_held_out(documents)]

    def at_level(self, draws: Draws, level: int, num: int) -> Documents:
        """Different held-out documents of one level, of `num` that were made, for items."""
        documents = self.make_item(draws, np.full(num, level))
        return self.different(documents[self._is_held_out(documents)])

    def different(self, documents: Documents) -> Documents:
        """The first of each key, in their order."""
        _, first = np.unique(self._hash(documents), return_index=True)
        return documents[np.sort(first)]

    def random_levels(self, draws: Draws, num: int) -> np.ndarray:
        return self.levels[0] + draws.weighted(zipf(len(self.levels), self.level_zipf), num)

    @property
    def mean_level(self) -> float:
        share = np.diff(zipf(len(self.levels), self.level_zipf), prepend=0)
        return float(share @ np.array(self.levels))

    def _hash(self, documents: Documents) -> np.ndarray:
        """A number per document made of its key: [n], uint64."""
        key = self.key(documents).astype(np.uint64)
        h = key @ self._hash_weight[: key.shape[1]]
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        return h ^ (h >> np.uint64(33))

    def _is_held_out(self, documents: Documents) -> np.ndarray:
        return (self._hash(documents) >> np.uint64(11)) * 2.0**-53 < self.config.held_out_fraction
