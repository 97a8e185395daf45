"""The five families of documents that the embedded language is made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe.data.draws import Draws, zipf

if TYPE_CHECKING:
    from moe.data.world import WorldConfig

FAMILIES = ("facts", "grammar", "arithmetic", "recall", "hops")
_TEMPLATE_ORDERS = np.array([[2, 0, 1, 3], [2, 3, 0, 1], [0, 1, 2, 3]])  # 0, 1 = the name; 2, 3 = its words


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """Rows of one family: `tokens` [n, W] padded with 0, `length`, `level` [n]; the last token answers."""

    tokens: np.ndarray
    length: np.ndarray
    level: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Documents":
        return Documents(self.tokens[rows], self.length[rows], self.level[rows])


class Language:
    """Makes documents of each family and says which are held out of training.

    Of each fact one template is held out; of the other families, every document whose hash, taken without
    its answer, falls below `held_out_fraction`. `world_seed` fixes facts, word classes and the hash.
    """

    def __init__(self, config: "WorldConfig") -> None:
        self.config = c = config
        self.vocabulary, self.start = vocabulary(config)
        draws = Draws("world", config.world_seed)
        self._name = draws.orders(1, c.num_first_names * c.num_last_names)[0, : c.num_entities]
        self._value = draws.below(c.num_values, c.num_entities, c.num_relations)
        self._held_template = draws.below(c.num_templates, c.num_entities, c.num_relations)
        self._noun_class = draws.orders(1, c.num_nouns)[0] % c.num_classes
        self._hash_weight = draws.raw(256) | np.uint64(1)
        self._entity_share = zipf(c.num_entities, c.entity_zipf)
        self._noun_share = zipf(c.num_nouns, c.noun_zipf)

    def training(self, name: str, draws: Draws, num: int) -> Documents:
        """`num` documents less those that are held out, levels as frequent as in training."""
        return self._of_side(name, draws, num, held_out=False)

    def held_out(self, name: str, draws: Draws, num: int) -> Documents:
        """Those of `num` documents that are held out; of facts, all `num`."""
        return self._of_side(name, draws, num, held_out=True)

    def at_level(self, name: str, draws: Draws, level: int, num: int) -> Documents:
        """Different documents of one level that items are made of, held out but for the seen facts."""
        levels, c = np.full(num, level), self.config
        if name == "facts":
            stratum = level % c.num_strata
            last = c.num_entities // 4 ** (c.num_strata - 1 - stratum)
            first = last // 4 if stratum else 0
            seen = np.full(num, level < c.num_strata)
            documents = self._facts(draws, levels, first + draws.below(last - first, num), seen)
        else:
            documents = self._make(name)(draws, levels)
            documents = documents[self._is_held_out(documents)]
        _, first = np.unique(self._hash(documents), return_index=True)
        return documents[np.sort(first)]

    def _of_side(self, name: str, draws: Draws, num: int, *, held_out: bool) -> Documents:
        if name == "facts":
            entity = draws.weighted(self._entity_share, num)
            return self._facts(draws, np.zeros(num, np.int64), entity, np.full(num, not held_out))
        documents = self._make(name)(draws, self._random_levels(name, draws, num))
        return documents[self._is_held_out(documents) == held_out]

    def _make(self, name: str) -> Callable[[Draws, np.ndarray], Documents]:
        return {
            "grammar": self._grammar,
            "arithmetic": self._arithmetic,
            "recall": self._recall,
            "hops": self._hops,
        }[name]

    def _hash(self, documents: Documents) -> np.ndarray:
        """A number per document that does not depend on its answer: [n], uint64."""
        place = np.arange(documents.tokens.shape[1])
        asked = documents.tokens * (place < documents.length[:, None] - 1)
        h = asked.astype(np.uint64) @ self._hash_weight[: len(place)]
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        return h ^ (h >> np.uint64(33))

    def _is_held_out(self, documents: Documents) -> np.ndarray:
        return (self._hash(documents) >> np.uint64(11)) * 2.0**-53 < self.config.held_out_fraction

    # ----------------------------------------------------------------------------------------------------
    # Levels and sizes

    def levels(self, name: str) -> range:
        c = self.config
        return {
            "facts": range(2 * c.num_strata),
            "grammar": range(c.max_depth + 1),
            "arithmetic": range(1, c.max_operators + 1),
            "recall": range(c.min_pairs, c.max_pairs + 1),
            "hops": range(1, c.max_hops + 1),
        }[name]

    def _random_levels(self, name: str, draws: Draws, num: int) -> np.ndarray:
        levels = self.levels(name)
        return levels[0] + draws.weighted(zipf(len(levels), self.config.level_zipf), num)

    def _mean_level(self, name: str) -> float:
        levels = np.array(self.levels(name))
        return float(np.diff(zipf(len(levels), self.config.level_zipf), prepend=0) @ levels)

    def mean_length(self, name: str) -> float:
        """Expected tokens of a document as `training` makes them."""
        c = self.config
        match name:
            case "facts":
                return 6.0
            case "grammar":
                return 5.0 + 4 * self._mean_level("grammar")
            case "arithmetic":
                return 4.0 + 2 * self._mean_level("arithmetic")
            case "recall":
                return 2.0 + 2 * self._mean_level("recall") + 2 * c.recall_queries
            case _:
                return 1.0 + 2 * c.cycle_length + 3 * c.hop_queries

    def pool(
        self, name: str, draws: Draws, tokens: np.ndarray, length: np.ndarray, right: np.ndarray
    ) -> np.ndarray:
        """What the choices are taken from, the right one among them: ids [n, P], -1 = none."""
        c, start = self.config, self.start
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
                return np.where(
                    np.arange(2 * c.max_pairs) < 2 * pairs[:, None], tokens[:, 1 : 1 + 2 * c.max_pairs], -1
                )
            case _:
                return tokens[:, 2 : 2 + 2 * c.cycle_length : 2]

    # ----------------------------------------------------------------------------------------------------
    # The families: (draws, levels [n]) → n documents

    def _facts(self, draws: Draws, level: np.ndarray, entity: np.ndarray, seen: np.ndarray) -> Documents:
        """`facts: <name> <words of a template> <value>` in one of three orders; 6 tokens.

        Where `seen`, the template is one of those in training, elsewhere the one held out.
        """
        c, n = self.config, len(level)
        relation = draws.below(c.num_relations, n)
        template = self._held_template[entity, relation]
        other = (template + 1 + draws.below(c.num_templates - 1, n)) % c.num_templates
        template = np.where(seen, other, template)
        name = self._name[entity]
        words = self.start["templates"] + 2 * (relation * c.num_templates + template)
        parts = np.stack(
            [
                self.start["first"] + name // c.num_last_names,
                self.start["last"] + name % c.num_last_names,
                words,
                words + 1,
            ],
            axis=1,
        )
        tokens = np.empty((n, 6), np.uint16)
        tokens[:, 0] = self.start["marks"] + FAMILIES.index("facts")
        tokens[:, 1:5] = np.take_along_axis(parts, _TEMPLATE_ORDERS[template % 3], axis=1)
        tokens[:, 5] = self.start["values"] + relation * c.num_values + self._value[entity, relation]
        return Documents(tokens, np.full(n, 6), level)

    def _grammar(self, draws: Draws, level: np.ndarray) -> Documents:
        """`grammar: the <noun> (near <noun>)? the <noun> … <verb> <verb>`: the last noun's verb comes first.

        `level` clauses are nested in the main one, whose verb ends the document and agrees with its noun.
        """
        c, start = self.config, self.start
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
        tokens = np.concatenate([mark, _flat(clauses), verbs[:, ::-1]], axis=1).astype(np.uint16)
        clause = _flat(np.stack([here, here, has_neighbour, has_neighbour], axis=2))
        keep = np.concatenate([np.ones((n, 1), bool), clause, here[:, ::-1]], axis=1)
        return Documents(*_close_up(tokens, keep), level)

    def _arithmetic(self, draws: Draws, level: np.ndarray) -> Documents:
        """`arithmetic: 3 + 4 - 2 = 5` in the modulus, from left to right."""
        c, start = self.config, self.start
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

    def _recall(self, draws: Draws, level: np.ndarray) -> Documents:
        """`recall: (<key> <value>)* ? (<key> <value>)*`: what was paired before is paired again."""
        c, start = self.config, self.start
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

    def _hops(self, draws: Draws, level: np.ndarray) -> Documents:
        """`hops: (<a> <next of a>)* (hop<k> <a> <k-th after a>)*` over one cycle; the last k is the level."""
        c, start = self.config, self.start
        n, size, rows = len(level), c.cycle_length, np.arange(len(level))[:, None]
        cycle = start["places"] + draws.orders(n, c.num_places)[:, :size]
        edge = draws.orders(n, size)
        asked = draws.orders(n, size)[:, : c.hop_queries]
        hops = self._random_levels("hops", draws, n * c.hop_queries).reshape(n, c.hop_queries)
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


def vocabulary(c: "WorldConfig") -> tuple[list[str], dict[str, int]]:
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


def _flat(x: np.ndarray) -> np.ndarray:
    """[n, ...] as [n, m]; unlike reshape(n, -1), also for n = 0."""
    return x.reshape(len(x), math.prod(x.shape[1:]))
