"""The embedded language: five graded families of short documents, without end and without a download."""

import functools
from collections.abc import Callable

import numpy as np

from moe.data.draws import Draws, cumulative
from moe.data.families import families_of
from moe.data.family import Documents, Family
from moe.data.items import Items, Questions
from moe.data.language import NUM_CHOICES, WorldConfig
from moe.plain import check

VERSION = 3  # 2: tokens are made in blocks; 3: hops by moves that have to be known
_WHOLE = 1000  # items of a family, of which smaller suites are parts
_HELD_OUT = 16  # sequences of a family, likewise
_SIDE = 1000  # documents expected on each side of the split, where it is tried
_BLOCK_TOKENS = 1 << 17  # NumPy's calls cost as much for a batch as for this many tokens


class World:
    """The language of one `WorldConfig` as a source of tokens; see `moe.data.Data`.

    ValueError if a family has too few different documents to train on some and ask about others.
    """

    unique_tokens: int | None = None
    separator: int | None = None

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.families = {family.name: family for family in families_of(config)}
        some = next(iter(self.families.values()))
        self.words = some.words
        self.num_ids = len(self.words)
        self._id = {word: i for i, word in enumerate(self.words)}
        share = np.array([getattr(config, f"share_{name}") for name in self.families])
        documents = share / [family.mean_length for family in self.families.values()]
        for family in self.families.values():
            _check_split(family)
        kept = [family.training_fraction for family in self.families.values()]
        self._tokens_per_document = round(1.0 / documents.sum(), 6)
        self._family_share = cumulative(documents / kept)  # of the documents made
        self._blocks = functools.lru_cache(maxsize=4)(self._block)
        self._whole = functools.lru_cache(maxsize=16)(self._make_items)

    def encode(self, text: str) -> list[int]:
        """The ids of words between spaces; ValueError for a word that is not in the language."""
        for word in (words := text.split()):
            check(word in self._id, f"the word {word!r} is not in this language of {len(self._id)} words")
        return [self._id[word] for word in words]

    def decode(self, tokens: np.ndarray) -> str:
        return " ".join(self.words[token] for token in np.asarray(tokens).ravel())

    def batch(
        self, seed: int, data_step: int, batch_size: int, seq_len: int, *, stream: str = "train"
    ) -> np.ndarray:
        """Tokens [batch_size, seq_len + 1]: shuffled training documents end to end, cut without padding."""
        steps = max(1, _BLOCK_TOKENS // (batch_size * (seq_len + 1)))
        block, nth = divmod(data_step, steps)
        rows = self._blocks(stream, seed, block, steps * batch_size, seq_len)
        return rows[nth * batch_size : (nth + 1) * batch_size].astype(np.int64)

    def _block(self, stream: str, seed: int, block: int, rows: int, seq_len: int) -> np.ndarray:
        """The rows of several steps, uint16."""
        draws = Draws("batch", self.config.world_seed, stream, seed, block, rows)

        def more(num: int) -> np.ndarray:
            count = np.bincount(draws.weighted(self._family_share, num), minlength=len(self.families))
            pairs = zip(self.families.values(), count.tolist(), strict=True)
            return _join([family.training(draws, n) for family, n in pairs], draws)

        return _fill(more, self._tokens_per_document, rows, seq_len)

    def held_out(self, num_sequences: int, seq_len: int) -> dict[str, np.ndarray]:
        """Per family, sequences [num_sequences, seq_len + 1] of held-out documents only."""
        sequences = {}
        for name, family in self.families.items():
            draws = Draws("held_out", self.config.world_seed, name)

            def more(num: int, family: Family = family, draws: Draws = draws) -> np.ndarray:
                return _join([family.held_out(draws, num)], draws)

            tokens_per_document = family.held_out_fraction * family.mean_length
            whole = _fill(more, tokens_per_document, max(num_sequences, _HELD_OUT), seq_len)
            sequences[name] = whole[:num_sequences].astype(np.int64)
        return sequences

    def items(self, questions: Questions) -> list[Items]:
        """Held-out documents without their last token, evenly over levels; no two of a family are equal.

        A level with fewer different documents than its part gives all, the others more. The levels are those
        of `moe.data.families`.
        """
        return [self._items(self.families[name], questions.num_items) for name in questions.families]

    def _items(self, family: Family, num_items: int) -> Items:
        """A smaller suite is a part of the larger, up to one of `_WHOLE` items."""
        whole = self._whole(family.name, max(num_items, _WHOLE))
        of_level = [np.flatnonzero(whole.level == level) for level in np.unique(whole.level)]
        quotas = _quotas([len(places) for places in of_level], num_items)
        rows = np.concatenate([p[:quota] for p, quota in zip(of_level, quotas, strict=True)])
        return Items(
            family=family.name,
            context=whole.context[rows],
            context_length=whole.context_length[rows],
            choices=whole.choices[rows],
            answer=whole.answer[rows],
            level=whole.level[rows],
        )

    def _make_items(self, name: str, num_items: int) -> Items:
        family, draws = self.families[name], Draws("items", self.config.world_seed, name, num_items)
        documents = _even(family, draws, num_items)
        rows = np.arange(len(documents))
        right = documents.tokens[rows, documents.length - 1].astype(np.int64)
        pool = family.pool(draws, documents, right)
        score = draws.uniform(*pool.shape)
        score[pool == right[:, None]] = -1.0
        score[pool < 0] = 2.0
        choices = np.take_along_axis(pool, np.argsort(score, axis=1, kind="stable")[:, :NUM_CHOICES], axis=1)
        order = draws.orders(len(rows), NUM_CHOICES)
        context = documents.tokens.astype(np.int64)
        context[rows, documents.length - 1] = 0
        return Items(
            family=name,
            context=context[:, : documents.length.max() - 1],
            context_length=documents.length - 1,
            choices=np.take_along_axis(choices, order, axis=1)[:, :, None],
            answer=np.argmin(order, axis=1),
            level=documents.level,
        )


def _check_split(family: Family) -> None:
    """Draws enough documents to find both sides; whoever read one that is empty would look for ever."""
    c, draws = family.config, Draws("split", family.config.world_seed, family.name)
    made, fraction = round(_SIDE / c.held_out_fraction), family.held_out_fraction
    sides = {
        "held out": len(family.held_out(draws, made)) if fraction > 0 else 0,
        "left to train on": len(family.training(draws, _SIDE)),
    }
    for side, num in sides.items():
        check(
            num > 0,
            f"data.share_{family.name}={getattr(c, f'share_{family.name}')}: with "
            f"data.held_out_fraction={c.held_out_fraction} none of its documents is {side}, they are too few "
            "or too alike; make the family larger, change the fraction, or set its share to 0",
        )


def _even(family: Family, draws: Draws, num_items: int) -> Documents:
    """`num_items` documents, as many of each level as there are; levels with few give what they have."""
    levels = family.item_levels
    wanted = 64 + int(6 * num_items / len(levels) / family.held_out_fraction)
    made = [family.at_level(draws, level, wanted) for level in levels]
    quotas = _quotas([len(documents) for documents in made], num_items)
    return _stack([d[np.arange(quota)] for d, quota in zip(made, quotas, strict=True)])


def _quotas(there: list[int], num: int) -> list[int]:
    """How many to take of each level, in all `num`: alike, but what a level lacks the others give."""
    quotas, left = [0] * len(there), num
    for i, level in enumerate(sorted(range(len(there)), key=lambda level: there[level])):
        quotas[level] = min(left // (len(there) - i), there[level])
        left -= quotas[level]
    return quotas


def _fill(
    more: Callable[[int], np.ndarray], tokens_per_document: float, rows: int, seq_len: int
) -> np.ndarray:
    """As many tokens as rows of seq_len + 1 need, uint16; `more(n)` gives those of about n documents."""
    needed = rows * (seq_len + 1)
    stream = [more(int(1.05 * needed / tokens_per_document) + 64)]
    while sum(map(len, stream)) < needed:
        stream.append(more(int(0.1 * needed / tokens_per_document) + 64))
    return np.concatenate(stream)[:needed].reshape(rows, seq_len + 1)


def _join(made: list[Documents], draws: Draws) -> np.ndarray:
    """All documents end to end in random order, without padding."""
    documents = _stack(made)
    order = np.argsort(draws.raw(len(documents)), kind="stable")
    here = np.arange(documents.tokens.shape[1]) < documents.length[order, None]
    return documents.tokens[order][here]


def _stack(made: list[Documents]) -> Documents:
    width = max(documents.tokens.shape[1] for documents in made)
    tokens = np.zeros((sum(map(len, made)), width), np.uint16)
    end = 0
    for documents in made:
        start, end = end, end + len(documents)
        tokens[start:end, : documents.tokens.shape[1]] = documents.tokens
    length = np.concatenate([documents.length for documents in made])
    return Documents(tokens, length, np.concatenate([documents.level for documents in made]))
