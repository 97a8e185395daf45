"""The embedded language: five graded families of short documents, without end and without a download."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe.data.draws import Draws, cumulative
from moe.data.families import FAMILIES, Documents, Language, vocabulary
from moe.data.items import Items, Questions
from moe.plain import check, check_positive

VERSION = 1
NUM_CHOICES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Every parameter of the language; `world_seed` fixes its facts, word classes, split and test items."""

    source: str
    vocab_size: int
    world_seed: int
    held_out_fraction: float  # of the possible documents of each family but facts
    level_zipf: float  # in training, the share of the i-th level falls as i^-level_zipf (but in facts)
    # Shares of the training tokens
    share_facts: float
    share_grammar: float
    share_arithmetic: float
    share_recall: float
    share_hops: float
    # Facts
    num_first_names: int
    num_last_names: int
    num_entities: int
    entity_zipf: float
    num_relations: int
    num_values: int  # per relation
    num_templates: int  # per relation; one of them is held out of training, chosen per fact
    num_strata: int  # of entities by frequency, each four times as large as the one above it
    # Grammar
    num_nouns: int
    noun_zipf: float
    num_classes: int
    num_verbs: int
    max_depth: int  # clauses between the subject and its verb
    # Arithmetic
    modulus: int
    max_operand: int
    max_operators: int
    # Recall
    num_symbols: int
    min_pairs: int
    max_pairs: int
    recall_queries: int
    # Hops
    num_places: int
    cycle_length: int
    max_hops: int
    hop_queries: int

    def __post_init__(self) -> None:
        check(self.source == "world", f"data.source={self.source} must be world here")
        shares = {f"share_{name}": getattr(self, f"share_{name}") for name in FAMILIES}
        free = {
            "source",
            "world_seed",
            "entity_zipf",
            "noun_zipf",
            "level_zipf",
            "held_out_fraction",
            *shares,
        }
        check_positive(self, "data", *(f.name for f in dataclasses.fields(self) if f.name not in free))
        for name in ("world_seed", "entity_zipf", "noun_zipf", "level_zipf", *shares):
            check(getattr(self, name) >= 0, f"data.{name}={getattr(self, name)} must not be negative")
        total = sum(shares.values())
        check(abs(total - 1) < 1e-6, f"data.share_*={list(shares.values())} add up to {total:g}; make it 1")
        check(
            0 < self.held_out_fraction <= 0.5,
            f"data.held_out_fraction={self.held_out_fraction} must lie in (0, 0.5]",
        )
        names = self.num_first_names * self.num_last_names
        self._between("num_entities", 4 ** (self.num_strata - 1), names, "names; raise data.num_last_names")
        self._between("num_templates", 2, None, "one template of each fact is held out")
        self._between("num_values", NUM_CHOICES, None, "an item has four choices")
        self._between("num_classes", 2, self.num_nouns, "each class needs a noun")
        self._between("modulus", NUM_CHOICES, None, "an item has four choices")
        self._between("max_operand", 1, self.modulus - 1, "operands are residues")
        self._between("min_pairs", 2, self.max_pairs, "an item has four choices from its context")
        self._between("max_pairs", 2, self.num_symbols // 2, "keys and values differ")
        self._between("recall_queries", 1, self.min_pairs, "a key is asked for once")
        self._between("cycle_length", NUM_CHOICES, self.num_places, "places differ")
        self._between("max_hops", 1, self.cycle_length - 1, "a walk must not close the cycle")
        self._between("hop_queries", 1, self.cycle_length, "a start is asked for once")
        needed = len(vocabulary(self)[0])
        check(
            self.vocab_size >= needed,
            f"data.vocab_size={self.vocab_size} is too small for this language; it needs {needed}",
        )

    def _between(self, name: str, low: int, high: int | None, why: str) -> None:
        value = getattr(self, name)
        bounds = f"at least {low}" if high is None else f"in {low}..{high}"
        check(
            low <= value and (high is None or value <= high), f"data.{name}={value} must be {bounds} ({why})"
        )


class World:
    """The language of one `WorldConfig` as a source of tokens; see `moe.data.Data`."""

    unique_tokens: int | None = None

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.language = Language(config)
        share = np.array([getattr(config, f"share_{name}") for name in FAMILIES])
        documents = share / [self.language.mean_length(name) for name in FAMILIES]
        kept = [1.0 if name == "facts" else 1.0 - config.held_out_fraction for name in FAMILIES]
        self._tokens_per_document = 1.0 / documents.sum()
        self._family_share = cumulative(documents / kept)  # of the documents made

    def words(self, tokens: np.ndarray) -> str:
        return " ".join(self.language.vocabulary[token] for token in np.asarray(tokens).ravel())

    def batch(
        self, seed: int, data_step: int, batch_size: int, seq_len: int, *, stream: str = "train"
    ) -> np.ndarray:
        """Tokens [batch_size, seq_len + 1]: shuffled training documents end to end, cut without padding."""
        draws = Draws("batch", self.config.world_seed, stream, seed, data_step)

        def more(num: int) -> np.ndarray:
            count = np.bincount(draws.weighted(self._family_share, num), minlength=len(FAMILIES))
            made = [
                self.language.training(name, draws, int(n)) for name, n in zip(FAMILIES, count, strict=True)
            ]
            return _join(made, draws)

        return _fill(more, self._tokens_per_document, batch_size, seq_len)

    def held_out(self, num_sequences: int, seq_len: int) -> dict[str, np.ndarray]:
        """Per family, sequences [num_sequences, seq_len + 1] of held-out documents only."""
        sequences = {}
        for name in FAMILIES:
            draws = Draws("held_out", self.config.world_seed, name)

            def more(num: int, name: str = name, draws: Draws = draws) -> np.ndarray:
                return _join([self.language.held_out(name, draws, num)], draws)

            kept = 1.0 if name == "facts" else self.config.held_out_fraction
            tokens_per_document = kept * self.language.mean_length(name)
            sequences[name] = _fill(more, tokens_per_document, num_sequences, seq_len)
        return sequences

    def items(self, questions: Questions) -> list[Items]:
        """Held-out documents without their last token, evenly over levels; no two of a family are equal.

        A level with fewer different documents than its part gives all, the others more.

        Levels: facts, the frequency stratum of the entity (0 = the most frequent), + `num_strata` if that
        template never stated that fact in training; grammar, clauses between; arithmetic, operators; recall,
        pairs; hops, steps.
        """
        return [self._items(name, questions.num_items) for name in questions.families]

    def _items(self, name: str, num_items: int) -> Items:
        language, fraction = self.language, self.config.held_out_fraction
        draws = Draws("items", self.config.world_seed, name, num_items)
        levels = language.levels(name)
        wanted = 64 + int(6 * num_items / len(levels) / fraction)
        made = [language.at_level(name, draws, level, wanted) for level in levels]
        chosen, left = [], num_items
        for i, documents in enumerate(sorted(made, key=lambda documents: len(documents.length))):
            quota = min(left // (len(levels) - i), len(documents.length))
            chosen.append(documents[np.arange(quota)])
            left -= quota
        width = max(documents.tokens.shape[1] for documents in chosen)
        tokens = np.concatenate([_widen(d.tokens, width) for d in chosen]).astype(np.int64)
        length = np.concatenate([d.length for d in chosen])
        rows = np.arange(len(length))
        right = tokens[rows, length - 1]
        pool = language.pool(name, draws, tokens, length, right)
        score = draws.uniform(*pool.shape)
        score[pool == right[:, None]] = -1.0
        score[pool < 0] = 2.0
        choices = np.take_along_axis(pool, np.argsort(score, axis=1, kind="stable")[:, :NUM_CHOICES], axis=1)
        order = draws.orders(len(rows), NUM_CHOICES)
        tokens[rows, length - 1] = 0
        return Items(
            family=name,
            context=tokens[:, : length.max() - 1],
            context_length=length - 1,
            choices=np.take_along_axis(choices, order, axis=1)[:, :, None],
            answer=np.argmin(order, axis=1),
            level=np.concatenate([d.level for d in chosen]),
        )


def _fill(
    more: Callable[[int], np.ndarray], tokens_per_document: float, rows: int, seq_len: int
) -> np.ndarray:
    """As many tokens as rows of seq_len + 1 need; `more(n)` gives those of about n documents."""
    needed = rows * (seq_len + 1)
    stream = [more(int(1.05 * needed / tokens_per_document) + 64)]
    while sum(map(len, stream)) < needed:
        stream.append(more(int(0.1 * needed / tokens_per_document) + 64))
    return np.concatenate(stream)[:needed].reshape(rows, seq_len + 1).astype(np.int64)


def _join(made: list[Documents], draws: Draws) -> np.ndarray:
    """All documents end to end in random order, without padding."""
    width = max(documents.tokens.shape[1] for documents in made)
    tokens = np.concatenate([_widen(documents.tokens, width) for documents in made])
    length = np.concatenate([documents.length for documents in made])
    order = np.argsort(draws.raw(len(length)), kind="stable")
    return tokens[order][np.arange(width) < length[order, None]]


def _widen(tokens: np.ndarray, width: int) -> np.ndarray:
    return np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
