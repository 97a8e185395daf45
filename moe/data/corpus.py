"""A prepared corpus as data: whole epochs of windows in a shuffled order, read from the disk as needed."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moe.data.draws import Draws
from moe.data.items import Items, Questions
from moe.data.permutation import Permutation, epoch_order
from moe.data.shards import Prepared, open_prepared
from moe.data.tokenizer import Tokenizer, open_tokenizer
from moe.plain import check, digest

NUM_CHOICES = 4
FAMILY = "text"


class Corpus:
    """Tokens of documents, a separator after each, in constant memory; see `moe.data.Data`."""

    def __init__(self, corpora: Path, identity: dict[str, Any]) -> None:
        self._prepared: Prepared = open_prepared(corpora, identity)
        self._key = digest(identity)
        index = self._prepared.index
        self.vocab_size: int = identity["vocab_size"]
        self.num_ids: int = index["num_ids"]
        self.separator: int | None = index["separator"]
        self.unique_tokens: int | None = len(self._prepared.train)
        num_train, num_held = (index["splits"][name]["documents"] for name in ("train", "held_out"))
        self._where = (
            f"the corpus has {num_train + num_held} documents, {num_held} of them held out "
            f"(data.held_out_fraction={identity['held_out_fraction']})"
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return open_tokenizer(self._prepared.tokenizer_file)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode([text.encode()])[0].tolist()

    def decode(self, tokens: Iterable[int]) -> str:
        return self.tokenizer.decode(tokens)

    def batch(
        self, seed: int, data_step: int, batch_size: int, seq_len: int, *, stream: str = "train"
    ) -> np.ndarray:
        """Windows [batch_size, seq_len + 1] of the training text, each once per epoch in a new order.

        A window's last token is the next one's first, so that every token is predicted once per epoch.
        """
        check(
            stream == "train",
            f"data.at_growth={stream} asks for text that nobody else reads, and this corpus is finite; "
            "choose continue or replay",
        )
        train = self._prepared.train
        num_windows = (len(train) - 1) // seq_len
        check(
            num_windows > 0,
            f"train.seq_len={seq_len} is above the {len(train) - 1} training tokens of the corpus; "
            "give more text or lower train.seq_len",
        )
        check(
            num_windows >= batch_size,
            f"train.batch_size={batch_size} asks for more sequences of train.seq_len={seq_len} than the "
            f"{num_windows} of the corpus: a batch would hold some twice; give more text or lower one",
        )
        number = data_step * batch_size + np.arange(batch_size)
        epoch, place = np.divmod(number, num_windows)
        window = np.empty(batch_size, np.int64)
        for e in np.unique(epoch):
            here = epoch == e
            window[here] = epoch_order(seed, int(e), num_windows)(place[here])
        return train.rows((seq_len * window).tolist(), seq_len + 1)

    def held_out(self, num_sequences: int, seq_len: int) -> dict[str, np.ndarray]:
        """Sequences [n, seq_len + 1] spread evenly over the held-out text; fewer if it is too short."""
        held_out = self._prepared.held_out
        num_windows = (len(held_out) - 1) // seq_len
        check(
            num_windows > 0,
            f"{self._where}: {len(held_out)} held-out tokens are too few for one sequence of "
            f"train.seq_len={seq_len}; give more text or raise data.held_out_fraction",
        )
        window = np.unique(np.linspace(0, num_windows - 1, min(num_sequences, num_windows)).astype(np.int64))
        return {FAMILY: held_out.rows((seq_len * window).tolist(), seq_len + 1)}

    def items(self, questions: Questions) -> list[Items]:
        """A held-out context and four continuations, its own and three from other held-out documents.

        Each item is cut from another place, all places alike; fewer items if there are fewer. The four
        continuations differ. One level, 0.
        """
        shown = questions.context_length
        draws = Draws("items", self._key, questions.num_items)
        contexts, choices = self._drawn(questions, draws)
        num_items = len(contexts)
        order = draws.orders(num_items, NUM_CHOICES)
        return [
            Items(
                family=FAMILY,
                context=contexts,
                context_length=np.full(num_items, shown),
                choices=np.take_along_axis(choices, order[:, :, None], axis=1),
                answer=np.argmin(order, axis=1),
                level=np.zeros(num_items, np.int64),
            )
        ]

    def _drawn(self, questions: Questions, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Contexts [N, L] and choices [N, C, K], the right one first."""
        shown, asked = questions.context_length, questions.continuation_length
        places = self._places(shown + asked)
        order = Permutation(places.total, "items", self._key)
        num_items = min(questions.num_items, places.total)
        contexts = np.empty((num_items, shown), np.int64)
        choices = np.empty((num_items, NUM_CHOICES, asked), np.int64)
        tries = 0
        for place, context, options in zip(order(np.arange(num_items)), contexts, choices, strict=True):
            document, tokens = places.at(int(place))
            context[:], options[0] = tokens[:shown], tokens[shown:]
            found = 1
            while found < NUM_CHOICES:
                tries += 1
                check(
                    tries <= 100 * NUM_CHOICES * num_items,
                    f"{self._where}: they repeat themselves too much for four different continuations of "
                    f"evaluate.continuation_length={asked}; give more varied text",
                )
                other, tokens = places.at(int(draws.below(places.total, 1)[0]))
                differs = not (options[:found] == tokens[shown:]).all(axis=1).any()
                if other != document and differs:
                    options[found] = tokens[shown:]
                    found += 1
        return contexts, choices

    def _places(self, length: int) -> "_Places":
        places = _Places(self._prepared, length)
        check(
            len(places) >= 2,
            f"{self._where}, of which {len(places)} different ones reach {length} tokens "
            "(evaluate.context_length + evaluate.continuation_length); an item needs 2: "
            "give more text or raise data.held_out_fraction",
        )
        return places


class _Places:
    """Every place from which `length` tokens lie in one held-out document, copies left out."""

    def __init__(self, prepared: Prepared, length: int) -> None:
        self._tokens, self._length = prepared.held_out, length
        ends, hashes = prepared.documents[:, 0].astype(np.int64), prepared.documents[:, 1]
        starts = np.concatenate([[0], ends[:-1]])
        first = np.zeros(len(ends), bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        offered = ends - 1 - starts - length + 1  # the separator is no part of a document
        chosen = first & (offered > 0)
        self._starts, self._behind = starts[chosen], np.cumsum(offered[chosen])

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total(self) -> int:
        return int(self._behind[-1])

    def at(self, place: int) -> tuple[int, np.ndarray]:
        """A document's number and its tokens at one of the `total` places."""
        document = int(np.searchsorted(self._behind, place, side="right"))
        behind = int(self._behind[document - 1]) if document else 0
        first = int(self._starts[document]) + place - behind
        return document, self._tokens.rows([first], self._length)[0]
