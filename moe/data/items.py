"""What every source of data offers: batches, held-out sequences, multiple-choice items."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What an evaluation asks: `num_items` of each of `families`; its score is the mean of those `averaged`
    (of all, if none is named).

    Of a corpus, `context_length` tokens are shown and `continuation_length` are to be chosen.
    """

    num_items: int
    families: tuple[str, ...]
    context_length: int
    continuation_length: int
    averaged: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Items:
    """Multiple-choice items of one family; right choices are spread evenly over the positions.

    `context` [N, L] is padded on the right and `context_length` [N] says how far it reaches; `choices`
    [N, C, K] are continuations of K tokens, `answer` [N] the index of the right one, `level` [N] the grade.
    """

    family: str
    context: np.ndarray
    context_length: np.ndarray
    choices: np.ndarray
    answer: np.ndarray
    level: np.ndarray

    @property
    def chance(self) -> float:
        return 1.0 / self.choices.shape[1]

    def __len__(self) -> int:
        return len(self.answer)


class Data(Protocol):
    """A source of tokens. Everything it returns is a pure function of the identity and the arguments."""

    vocab_size: int  # of the model; ids from `num_ids` on stand for nothing
    num_ids: int
    separator: int | None  # the id after each document, if there is one
    unique_tokens: int | None  # tokens of the training split; None = without end

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without a separator; ValueError if this data has none for it."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of ids: what `encode` gives comes back, as far as the tokenizer keeps it."""
        ...

    def batch(
        self, seed: int, data_step: int, batch_size: int, seq_len: int, *, stream: str = "train"
    ) -> np.ndarray:
        """Training tokens [batch_size, seq_len + 1], int64; another `stream` reads other tokens."""
        ...

    def held_out(self, num_sequences: int, seq_len: int) -> dict[str, np.ndarray]:
        """Sequences [n, seq_len + 1] per family that no training stream contains."""
        ...

    def items(self, questions: Questions) -> list[Items]:
        """Different items of each family asked for, spread over its levels; fewer if there are fewer."""
        ...
