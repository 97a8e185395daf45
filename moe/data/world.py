"""The embedded language: five graded families of short documents, without end and without a download."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe.config import check, check_positive
from moe.data.draws import Draws, cumulative, zipf
from moe.data.items import Items

VERSION = 1
FAMILIES = ("facts", "grammar", "arithmetic", "recall", "hops")
NUM_CHOICES = 4
_TEMPLATE_ORDERS = np.array([[2, 0, 1, 3], [2, 3, 0, 1], [0, 1, 2, 3]])  # 0, 1 = the name; 2, 3 = its words


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Every parameter of the language; `world_seed` fixes its facts, word classes, split and test items."""

    source: str
    vocab_size: int
    world_seed: int
    held_out_fraction: float  # of the possible documents of each family but facts
    level_zipf: float  # in training, the i-th level of a family but facts has a share falling as i^-level_zipf
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
        free = {"source", "world_seed", "entity_zipf", "noun_zipf", "level_zipf", "held_out_fraction", *shares}
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
        self._between("min_pairs", 2, self.max_pairs, "an item has four choices from its context")
        self._between("max_pairs", 2, self.num_symbols // 2, "keys and values differ")
        self._between("recall_queries", 1, self.min_pairs, "a key is asked for once")
        self._between("cycle_length", NUM_CHOICES, self.num_places, "places differ")
        self._between("max_hops", 1, self.cycle_length - 1, "a walk must not close the cycle")
        self._between("hop_queries", 1, self.cycle_length, "a start is asked for once")
        needed = len(_vocabulary(self)[0])
        check(
            self.vocab_size >= needed,
            f"data.vocab_size={self.vocab_size} is too small for this language; it needs {needed}",
        )

    def _between(self, name: str, low: int, high: int | None, why: str) -> None:
        value = getattr(self, name)
        bounds = f"at least {low}" if high is None else f"in {low}..{high}"
        check(low <= value and (high is None or value <= high), f"data.{name}={value} must be {bounds} ({why})")


def _vocabulary(c: WorldConfig) -> tuple[list[str], dict[str, int]]:
    """The words by id, and where each block of them starts."""
    values = [f"{chr(97 + r)}-{i}" for r in range(c.num_relations) for i in range(c.num_values)]
    templates = [
        f"{word}-{chr(97 + r)}{t}"
        for r in range(c.num_relations)
        for t in range(c.num_templates)
        for word in ("has", "as")
    ]
    verbs = [
        f"{_syllables(v)}r{'aeiou'[k % 5] * (1 + k // 5)}{number}"
        for v in range(c.num_verbs)
        for k in range(c.num_classes)
        for number in ("", "n")
    ]
    blocks = {
        "marks": [f"{name}:" for name in FAMILIES],
        "digits": [str(i) for i in range(c.modulus)],
        "operators": ["+", "-", "="],
        "symbols": [f"@{i}" for i in range(c.num_symbols)],
        "places": [f"#{i}" for i in range(c.num_places)],
        "ask": ["?"],
        "hops": [f"hop{k}" for k in range(1, c.max_hops + 1)],
        "first": [_syllables(i).title() for i in range(c.num_first_names)],
        "last": [_syllables(i).title() + "son" for i in range(c.num_last_names)],
        "templates": templates,
        "values": values,
        "the": ["the"],
        "prepositions": ["near", "under", "behind", "with"],
        "nouns": [f"{_syllables(i)}k{number}" for i in range(c.num_nouns) for number in ("", "s")],
        "verbs": verbs,
    }
    words: list[str] = []
    start = {}
    for name, block in blocks.items():
        start[name] = len(words)
        words += block
    return words, start


def _syllables(i: int) -> str:
    consonants, vowels = "bdfglmnpstvz", "aeiou"
    word = consonants[i % 12] + vowels[i // 12 % 5]
    return word if i < 60 else word + _syllables(i // 60 - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """Rows of one family: `tokens` [n, W] padded with 0, `length` [n] and `level` [n]; the last token answers."""

    tokens: np.ndarray
    length: np.ndarray
    level: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Documents":
        return Documents(self.tokens[rows], self.length[rows], self.level[rows])


class World:
    """The language of one `WorldConfig`; see `moe.data.Data`.

    A training document is never a held-out one: of each fact one template is kept back, and of the other
    families every document whose hash falls below `held_out_fraction`.
    """

    unique_tokens: int | None = None

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.vocabulary, self._start = _vocabulary(config)
        draws = Draws("world", config.world_seed)
        c, num_names = config, config.num_first_names * config.num_last_names
        self._name = draws.orders(1, num_names)[0, : c.num_entities]
        self._value = draws.below(c.num_values, c.num_entities, c.num_relations)
        self._held_template = draws.below(c.num_templates, c.num_entities, c.num_relations)
        self._noun_class = draws.orders(1, c.num_nouns)[0] % c.num_classes
        self._hash_weight = draws.raw(256) | np.uint64(1)
        self._entity_share = zipf(c.num_entities, c.entity_zipf)
        self._noun_share = zipf(c.num_nouns, c.noun_zipf)
        self._make: dict[str, Callable[[Draws, np.ndarray | int, bool], Documents]] = {
            name: getattr(self, f"_{name}") for name in FAMILIES
        }
        mean_length = {
            "facts": 6.0,
            "grammar": 5.0 + 4 * self._mean_level("grammar"),
            "arithmetic": 4.0 + 2 * self._mean_level("arithmetic"),
            "recall": 2.0 + 2 * self._mean_level("recall") + 2 * c.recall_queries,
            "hops": 1.0 + 2 * c.cycle_length + 3 * c.hop_queries,
        }
        kept = {name: 1.0 if name == "facts" else 1.0 - c.held_out_fraction for name in FAMILIES}
        share = np.array([getattr(c, f"share_{name}") for name in FAMILIES])
        documents = share / [mean_length[name] for name in FAMILIES]
        self._tokens_per_document = 1.0 / documents.sum()
        self._family_share = cumulative(documents / [kept[name] for name in FAMILIES])

    def words(self, tokens: np.ndarray) -> str:
        return " ".join(self.vocabulary[token] for token in np.asarray(tokens).ravel())

    # ----------------------------------------------------------------------------------------------------
    # What a trainer and an evaluator read

    def batch(
        self, seed: int, data_step: int, batch_size: int, seq_len: int, *, stream: str = "train"
    ) -> np.ndarray:
        """Tokens [batch_size, seq_len + 1]: shuffled training documents end to end, cut without padding."""
        draws = Draws("batch", self.config.world_seed, stream, seed, data_step)

        def pieces(num: int) -> np.ndarray:
            family = draws.weighted(self._family_share, num)
            parts, rows = [], []
            for i, name in enumerate(FAMILIES):
                of_family = np.flatnonzero(family == i)
                documents = self._make[name](draws, len(of_family), False)
                if name != "facts":
                    kept = ~self._is_held_out(documents)
                    of_family, documents = of_family[kept], documents[kept]
                parts.append(documents)
                rows.append(of_family)
            return _pack(parts, rows, num)

        return self._fill(pieces, self._tokens_per_document, batch_size, seq_len)

    def held_out(self, num_sequences: int, seq_len: int) -> dict[str, np.ndarray]:
        """Per family, sequences [num_sequences, seq_len + 1] of held-out documents only."""
        sequences = {}
        for name in FAMILIES:
            draws = Draws("held_out", self.config.world_seed, name)

            def pieces(num: int, name: str = name, draws: Draws = draws) -> np.ndarray:
                documents = self._make[name](draws, num, True)
                if name != "facts":
                    documents = documents[self._is_held_out(documents)]
                return _pack([documents], [np.arange(len(documents.length))], len(documents.length))

            sequences[name] = self._fill(pieces, 1.0, num_sequences, seq_len)
        return sequences

    def _fill(self, pieces: Callable, mean_tokens: float, rows: int, seq_len: int) -> np.ndarray:
        needed = rows * (seq_len + 1)
        stream = [pieces(int(1.05 * needed / mean_tokens) + 64)]
        while sum(map(len, stream)) < needed:
            stream.append(pieces(needed // 8 + 64))
        return np.concatenate(stream)[:needed].reshape(rows, seq_len + 1).astype(np.int64)

    def items(self, num_items: int) -> list[Items]:
        """Held-out documents without their last token, evenly over levels; no two of a family are equal.

        Levels: facts, the frequency stratum of the entity (0 = the most frequent), + `num_strata` if that
        template never stated that fact in training; grammar, clauses between; arithmetic, operators; recall,
        pairs; hops, steps.
        """
        return [self._items(name, num_items) for name in FAMILIES]

    def _items(self, name: str, num_items: int) -> Items:
        draws = Draws("items", self.config.world_seed, name, num_items)
        levels = self._levels(name)
        chosen = []
        for i, level in enumerate(levels):
            quota = num_items // len(levels) + (i < num_items % len(levels))
            candidates = 64 + int(4 * quota / self.config.held_out_fraction)
            documents = self._make[name](draws, np.full(candidates, level), True)
            if name != "facts":
                documents = documents[self._is_held_out(documents)]
            _, first = np.unique(self._hash(documents), return_index=True)
            chosen.append(documents[np.sort(first)[:quota]])
        width = max(documents.tokens.shape[1] for documents in chosen)
        tokens = np.concatenate([_widen(d.tokens, width) for d in chosen]).astype(np.int64)
        length = np.concatenate([d.length for d in chosen])
        rows = np.arange(len(length))
        right = tokens[rows, length - 1]
        pool = self._pool(name, draws, tokens, length, right)
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

    def _levels(self, name: str) -> range:
        c = self.config
        return {
            "facts": range(2 * c.num_strata),
            "grammar": range(c.max_depth + 1),
            "arithmetic": range(1, c.max_operators + 1),
            "recall": range(c.min_pairs, c.max_pairs + 1),
            "hops": range(1, c.max_hops + 1),
        }[name]

    def _pool(
        self, name: str, draws: Draws, tokens: np.ndarray, length: np.ndarray, right: np.ndarray
    ) -> np.ndarray:
        """What the choices are taken from, the right one among them: ids [n, P], -1 = none."""
        c, start = self.config, self._start
        match name:
            case "facts":
                first = right - (right - start["values"]) % c.num_values
                return first[:, None] + np.arange(c.num_values)
            case "grammar":
                form = right - start["verbs"]
                number, noun_class, verb = form % 2, form // 2 % c.num_classes, form // 2 // c.num_classes
                other = (noun_class + 1 + draws.below(c.num_classes - 1, len(right))) % c.num_classes
                classes = np.stack([noun_class, noun_class, other, other], 1)
                numbers = number[:, None] ^ np.array([0, 1, 0, 1])
                return start["verbs"] + (verb[:, None] * c.num_classes + classes) * 2 + numbers
            case "arithmetic":
                return np.broadcast_to(start["digits"] + np.arange(c.modulus), (len(right), c.modulus))
            case "recall":
                pairs = (length - 2) // 2 - c.recall_queries
                return np.where(np.arange(2 * c.max_pairs) < 2 * pairs[:, None], tokens[:, 1 : 1 + 2 * c.max_pairs], -1)
            case _:
                return tokens[:, 2 : 2 + 2 * c.cycle_length : 2]

    # ----------------------------------------------------------------------------------------------------
    # The split

    def _hash(self, documents: Documents) -> np.ndarray:
        h = documents.tokens.astype(np.uint64) @ self._hash_weight[: documents.tokens.shape[1]]
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        return h ^ (h >> np.uint64(33))

    def _is_held_out(self, documents: Documents) -> np.ndarray:
        return (self._hash(documents) >> np.uint64(11)) * 2.0**-53 < self.config.held_out_fraction

    # ----------------------------------------------------------------------------------------------------
    # The families: (draws, levels [n] or how many at random, held-out templates?) → documents

    def _level(self, name: str, draws: Draws, level: np.ndarray | int) -> np.ndarray:
        levels = self._levels(name)
        if not isinstance(level, int):
            return level
        return levels[0] + draws.weighted(zipf(len(levels), self.config.level_zipf), level)

    def _mean_level(self, name: str) -> float:
        levels = np.array(self._levels(name))
        return float(np.diff(zipf(len(levels), self.config.level_zipf), prepend=0) @ levels)

    def _facts(self, draws: Draws, level: np.ndarray | int, held_out: bool) -> Documents:
        """`facts: <name> <words of a template> <value>` in one of three orders; 6 tokens."""
        c = self.config
        if isinstance(level, int):
            entity = draws.weighted(self._entity_share, level)
            n, level, seen = level, np.zeros(level, np.int64), np.full(level, not held_out)
        else:
            n, stratum, seen = len(level), level % c.num_strata, level < c.num_strata
            last = c.num_entities // 4 ** (c.num_strata - 1 - stratum)
            first = np.where(stratum == 0, 0, last // 4)
            entity = first + draws.below(last - first, n)
        relation = draws.below(c.num_relations, n)
        template = self._held_template[entity, relation]
        other = (template + 1 + draws.below(c.num_templates - 1, n)) % c.num_templates
        template = np.where(seen, other, template)
        name, words = self._name[entity], self._start["templates"] + 2 * (relation * c.num_templates + template)
        parts = np.stack(
            [
                self._start["first"] + name // c.num_last_names,
                self._start["last"] + name % c.num_last_names,
                words,
                words + 1,
            ],
            axis=1,
        )
        tokens = np.empty((n, 6), np.uint16)
        tokens[:, 0] = self._start["marks"] + FAMILIES.index("facts")
        tokens[:, 1:5] = np.take_along_axis(parts, _TEMPLATE_ORDERS[template % 3], axis=1)
        tokens[:, 5] = self._start["values"] + relation * c.num_values + self._value[entity, relation]
        return Documents(tokens, np.full(n, 6), level)

    def _grammar(self, draws: Draws, level: np.ndarray | int, held_out: bool) -> Documents:
        """`grammar: the <noun> (near <noun>)? the <noun> … <verb> <verb>`: the last noun's verb comes first.

        `level` clauses are nested in the main one, whose verb ends the document and agrees with its noun.
        """
        c, start = self.config, self._start
        level = self._level("grammar", draws, level)
        n, size = len(level), c.max_depth + 1
        noun = draws.weighted(self._noun_share, n * size * 2).reshape(n, size, 2)  # the subject, a neighbour
        number = draws.below(2, n, size, 2)
        clauses = np.empty((n, size, 2, 2), np.uint16)
        clauses[..., 0, 0] = start["the"]
        clauses[..., 1, 0] = start["prepositions"] + draws.below(4, n, size)
        clauses[..., 1] = start["nouns"] + 2 * noun + number
        verbs = draws.below(c.num_verbs, n, size) * c.num_classes + self._noun_class[noun[..., 0]]
        verbs = start["verbs"] + 2 * verbs + number[..., 0]
        here = np.arange(size) <= level[:, None]
        has_neighbour = here & (draws.below(2, n, size) == 1)
        mark = np.full((n, 1), start["marks"] + FAMILIES.index("grammar"))
        tokens = np.concatenate([mark, clauses.reshape(n, -1), verbs[:, ::-1]], axis=1).astype(np.uint16)
        clause = np.stack([here, here, has_neighbour, has_neighbour], axis=2).reshape(n, -1)
        keep = np.concatenate([np.ones((n, 1), bool), clause, here[:, ::-1]], axis=1)
        return Documents(*_close_up(tokens, keep), level)

    def _arithmetic(self, draws: Draws, level: np.ndarray | int, held_out: bool) -> Documents:
        """`arithmetic: 3 + 4 - 2 = 5` in the modulus, from left to right."""
        c, start = self.config, self._start
        level = self._level("arithmetic", draws, level)
        n, rows = len(level), np.arange(len(level))
        number = draws.below(c.max_operand + 1, n, c.max_operators + 1)
        minus = draws.below(2, n, c.max_operators)
        here = np.arange(c.max_operators) < level[:, None]
        value = (number[:, 0] + (number[:, 1:] * (1 - 2 * minus) * here).sum(1)) % c.modulus
        tokens = np.zeros((n, 4 + 2 * c.max_operators), np.uint16)
        tokens[:, 0] = start["marks"] + FAMILIES.index("arithmetic")
        tokens[:, 1] = start["digits"] + number[:, 0]
        tokens[:, 2:-2:2] = (start["operators"] + minus) * here
        tokens[:, 3:-1:2] = (start["digits"] + number[:, 1:]) * here
        tokens[rows, 2 + 2 * level] = start["operators"] + 2
        tokens[rows, 3 + 2 * level] = start["digits"] + value
        return Documents(tokens, 4 + 2 * level, level)

    def _recall(self, draws: Draws, level: np.ndarray | int, held_out: bool) -> Documents:
        """`recall: (<key> <value>)* ? (<key> <value>)*`: what was paired before is paired again."""
        c, start = self.config, self._start
        level = self._level("recall", draws, level)
        n, rows = len(level), np.arange(len(level))[:, None]
        symbols = start["symbols"] + draws.orders(n, c.num_symbols)[:, : 2 * c.max_pairs]
        asked = draws.uniform(n, c.max_pairs) + 2.0 * (np.arange(c.max_pairs) >= level[:, None])
        asked = np.argsort(asked, axis=1, kind="stable")[:, : c.recall_queries]
        tokens = np.zeros((n, 2 + 2 * c.max_pairs + 2 * c.recall_queries), np.uint16)
        tokens[:, 0] = start["marks"] + FAMILIES.index("recall")
        here = np.arange(2 * c.max_pairs) < 2 * level[:, None]
        tokens[:, 1 : 1 + 2 * c.max_pairs] = symbols * here
        tokens[rows[:, 0], 1 + 2 * level] = start["ask"]
        query = 2 + 2 * level[:, None] + 2 * np.arange(c.recall_queries)
        tokens[rows, query] = symbols[rows, 2 * asked]
        tokens[rows, query + 1] = symbols[rows, 2 * asked + 1]
        return Documents(tokens, 2 + 2 * (level + c.recall_queries), level)

    def _hops(self, draws: Draws, level: np.ndarray | int, held_out: bool) -> Documents:
        """`hops: (<a> <next of a>)* (hop<k> <a> <k-th after a>)*` over one cycle; the last query has the level."""
        c, start = self.config, self._start
        level = self._level("hops", draws, level)
        n, size, rows = len(level), c.cycle_length, np.arange(len(level))[:, None]
        cycle = start["places"] + draws.orders(n, c.num_places)[:, :size]
        edge = draws.orders(n, size)
        asked = draws.orders(n, size)[:, : c.hop_queries]
        hops = self._level("hops", draws, n * c.hop_queries).reshape(n, c.hop_queries)
        hops[:, -1] = level
        tokens = np.empty((n, 1 + 2 * size + 3 * c.hop_queries), np.uint16)
        tokens[:, 0] = start["marks"] + FAMILIES.index("hops")
        queries = 1 + 2 * size
        tokens[:, 1:queries:2] = cycle[rows, edge]
        tokens[:, 2:queries:2] = cycle[rows, (edge + 1) % size]
        tokens[:, queries::3] = start["hops"] + hops - 1
        tokens[:, queries + 1 :: 3] = cycle[rows, asked]
        tokens[:, queries + 2 :: 3] = cycle[rows, (asked + hops) % size]
        return Documents(tokens, np.full(n, tokens.shape[1]), level)


def _close_up(tokens: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves the kept tokens of each row to its left, zeros to its right; also the new lengths."""
    length = keep.sum(1)
    closed = np.zeros_like(tokens)
    closed[np.arange(tokens.shape[1]) < length[:, None]] = tokens[keep]
    return closed, length


def _widen(tokens: np.ndarray, width: int) -> np.ndarray:
    return np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))


def _pack(parts: list[Documents], rows: list[np.ndarray], num: int) -> np.ndarray:
    """Documents end to end, those of `parts[i]` at the places `rows[i]` of `num`."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens, length = np.zeros((num, width), np.uint16), np.zeros(num, np.int64)
    for part, places in zip(parts, rows, strict=True):
        tokens[places, : part.tokens.shape[1]] = part.tokens
        length[places] = part.length
    return tokens[np.arange(width) < length[:, None]]
