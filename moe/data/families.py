"""The five families of documents that the embedded language is made of.

Each makes documents of given levels, all at once: rows of ids padded with 0, whose last token is the answer.
"""

import math
from collections.abc import Sequence

import numpy as np

from moe.data.draws import Draws, zipf
from moe.data.family import Documents, Family
from moe.data.language import NUM_CHOICES, WorldConfig

_TEMPLATE_ORDERS = np.array([[2, 0, 1, 3], [2, 3, 0, 1], [0, 1, 2, 3]])  # 0, 1 = the name; 2, 3 = its words


class Facts(Family):
    """`facts: <name> <words of a template> <value>` in one of three orders; 6 tokens.

    Who has which value of which relation. An entity's frequency falls with its rank. Each fact has a
    template of its own that never states it in training; held out is that telling. Levels: the frequency
    stratum of the entity (0 = the most frequent), + `num_strata` for the telling that was held out.
    """

    name = "facts"
    mean_length = 6.0

    def __init__(self, config: WorldConfig) -> None:
        super().__init__(config, range(2 * config.num_strata))
        self.held_out_fraction = self.training_fraction = 1.0
        c, draws = config, Draws("facts", config.world_seed)
        self._name = draws.orders(1, c.num_first_names * c.num_last_names)[0, : c.num_entities]
        self._value = draws.below(c.num_values, c.num_entities, c.num_relations)
        self._held_template = draws.below(c.num_templates, c.num_entities, c.num_relations)
        self._entity_share = zipf(c.num_entities, c.entity_zipf)

    def training(self, draws: Draws, num: int) -> Documents:
        return self._tell(draws, *self._random_entities(draws, num), seen=np.ones(num, bool))

    def held_out(self, draws: Draws, num: int) -> Documents:
        return self._tell(draws, *self._random_entities(draws, num), seen=np.zeros(num, bool))

    def make(self, draws: Draws, level: np.ndarray) -> Documents:
        c = self.config
        bounds = np.array([self.stratum(stratum) for stratum in range(c.num_strata)])[level % c.num_strata]
        entity = bounds[:, 0] + draws.below(bounds[:, 1] - bounds[:, 0], len(level))
        return self._tell(draws, entity, level, seen=level < c.num_strata)

    def at_level(self, draws: Draws, level: int, num: int) -> Documents:
        return self.different(self.make(draws, np.full(num, level)))

    def stratum(self, stratum: int) -> tuple[int, int]:
        """The ranks of the entities in a stratum: from the first to before the last."""
        last = self.config.num_entities // 4 ** (self.config.num_strata - 1 - stratum)
        return (last // 4 if stratum else 0), last

    def name_words(self, entity: np.ndarray) -> np.ndarray:
        """First and last name: ids [n, 2]."""
        first, last = np.divmod(self._name[entity], self.config.num_last_names)
        return np.stack([self.start["first"] + first, self.start["last"] + last], axis=-1)

    def exposures(self, stratum: int, tokens: float) -> float:
        """How often a fact of a stratum is told in `tokens` training tokens, on average over its facts."""
        first, last = self.stratum(stratum)
        share = self._entity_share[last - 1] - (self._entity_share[first - 1] if first else 0.0)
        told = tokens * self.config.share_facts / self.mean_length
        return float(told * share / ((last - first) * self.config.num_relations))

    def pool(self, draws: Draws, documents: Documents, right: np.ndarray) -> np.ndarray:
        """The values of the same relation."""
        first = right - (right - self.start["values"]) % self.config.num_values
        return first[:, None] + np.arange(self.config.num_values)

    def _random_entities(self, draws: Draws, num: int) -> tuple[np.ndarray, np.ndarray]:
        return draws.weighted(self._entity_share, num), np.zeros(num, np.int64)

    def _tell(self, draws: Draws, entity: np.ndarray, level: np.ndarray, *, seen: np.ndarray) -> Documents:
        c, n = self.config, len(entity)
        relation = draws.below(c.num_relations, n)
        template = self._held_template[entity, relation]
        other = (template + 1 + draws.below(c.num_templates - 1, n)) % c.num_templates
        template = np.where(seen, other, template)
        words = self.start["templates"] + 2 * (relation * c.num_templates + template)
        parts = np.concatenate([self.name_words(entity), words[:, None], words[:, None] + 1], axis=1)
        tokens = np.empty((n, 6), np.uint16)
        tokens[:, 0] = self.mark
        tokens[:, 1:5] = np.take_along_axis(parts, _TEMPLATE_ORDERS[template % 3], axis=1)
        tokens[:, 5] = self.start["values"] + relation * c.num_values + self._value[entity, relation]
        return Documents(tokens, np.full(n, 6), level)


class Grammar(Family):
    """`grammar: the <noun> (near <noun>)? the <noun> … <verb> <verb>`: the last noun's verb comes first.

    A verb agrees with its noun in class and number. Levels: of documents, the clauses nested in the main one;
    of items, which end with the verb of any clause, those nested in that clause. Frequent nouns are met more
    often in training, but all are asked for alike. The split goes by the clauses, without their verbs.
    """

    name = "grammar"

    def __init__(self, config: WorldConfig) -> None:
        super().__init__(config, range(config.max_depth + 1))
        draws = Draws("grammar", config.world_seed)
        self._noun_class = draws.orders(1, config.num_nouns)[0] % config.num_classes
        self._noun_share = zipf(config.num_nouns, config.noun_zipf)
        self.mean_length = 5.0 + 4 * self.mean_level

    def make(self, draws: Draws, level: np.ndarray) -> Documents:
        nothing = np.zeros_like(level)
        return self._nest(draws, level, nothing, self._nouns(draws, len(level)), level)

    def make_item(self, draws: Draws, level: np.ndarray) -> Documents:
        c, n = self.config, len(level)
        outer = draws.below(c.max_depth + 1 - level, n)  # clauses around the one that is asked for
        noun = self._nouns(draws, n)
        noun[np.arange(n), outer, 0] = draws.below(c.num_nouns, n)
        return self._nest(draws, outer + level, outer, noun, level)

    def key(self, documents: Documents) -> np.ndarray:
        is_verb = documents.tokens >= self.start["verbs"]  # the last words of the vocabulary
        return documents.tokens * (np.cumsum(is_verb, axis=1) == 0)

    def _nouns(self, draws: Draws, num: int) -> np.ndarray:
        """Of each clause the subject and a neighbour, the main clause first: [num, clauses, 2]."""
        size = self.config.max_depth + 1
        return draws.weighted(self._noun_share, num * size * 2).reshape(num, size, 2)

    def _nest(
        self, draws: Draws, last: np.ndarray, told: np.ndarray, noun: np.ndarray, level: np.ndarray
    ) -> Documents:
        """Clauses 0 to `last`, then their verbs, from that of the last back to that of clause `told`."""
        c, start = self.config, self.start
        n, size = len(level), c.max_depth + 1
        number = draws.below(2, n, size, 2)
        clauses = np.empty((n, size, 2, 2), np.uint16)
        clauses[..., 0, 0] = start["the"]
        clauses[..., 1, 0] = start["prepositions"] + draws.below(4, n, size)
        clauses[..., 1] = start["nouns"] + 2 * noun + number
        verbs = draws.below(c.num_verbs, n, size) * c.num_classes + self._noun_class[noun[..., 0]]
        verbs = start["verbs"] + 2 * verbs + number[..., 0]
        here = np.arange(size) <= last[:, None]
        has_verb = here & (np.arange(size) >= told[:, None])
        has_neighbour = here & (draws.below(2, n, size) == 1)
        mark = np.full((n, 1), self.mark)
        tokens = np.concatenate([mark, _flat(clauses), verbs[:, ::-1]], axis=1).astype(np.uint16)
        clause = _flat(np.stack([here, here, has_neighbour, has_neighbour], axis=2))
        keep = np.concatenate([np.ones((n, 1), bool), clause, has_verb[:, ::-1]], axis=1)
        return Documents(*_close_up(tokens, keep), level)

    def pool(self, draws: Draws, documents: Documents, right: np.ndarray) -> np.ndarray:
        """The same verb in both numbers, of the right class and of another."""
        c, first = self.config, self.start["verbs"]
        form = right - first
        number, noun_class, verb = form % 2, form // 2 % c.num_classes, form // 2 // c.num_classes
        other = (noun_class + 1 + draws.below(c.num_classes - 1, len(right))) % c.num_classes
        classes = np.stack([noun_class, noun_class, other, other], 1)
        numbers = number[:, None] ^ np.array([0, 1, 0, 1])
        return first + (verb[:, None] * c.num_classes + classes) * 2 + numbers


class Arithmetic(Family):
    """`arithmetic: 3 + 4 - 2 = 5` in the modulus, from left to right. Levels: operators.

    The split goes by the signed numbers, in whatever order.
    """

    name = "arithmetic"

    def __init__(self, config: WorldConfig) -> None:
        super().__init__(config, range(1, config.max_operators + 1))
        self.mean_length = 4.0 + 2 * self.mean_level

    def make(self, draws: Draws, level: np.ndarray) -> Documents:
        c, start = self.config, self.start
        n, rows = len(level), np.arange(len(level))
        number = draws.below(c.max_operand + 1, n, c.max_operators + 1)
        minus = draws.below(2, n, c.max_operators)
        here = np.arange(c.max_operators) < level[:, None]
        value = (number[:, 0] + (number[:, 1:] * (1 - 2 * minus) * here).sum(1)) % c.modulus
        tokens = np.zeros((n, 4 + 2 * c.max_operators), np.uint16)
        tokens[:, 0] = self.mark
        tokens[:, 1] = start["digits"] + number[:, 0]
        tokens[:, 2:-2:2] = (start["operators"] + minus) * here
        tokens[:, 3:-1:2] = (start["digits"] + number[:, 1:]) * here
        tokens[rows, 2 + 2 * level] = start["operators"] + 2
        tokens[rows, 3 + 2 * level] = start["digits"] + value
        return Documents(tokens, 4 + 2 * level, level)

    def key(self, documents: Documents) -> np.ndarray:
        most = self.config.max_operators
        signs = documents.tokens[:, 2 : 2 + 2 * most : 2].astype(np.int64) - self.start["operators"]
        numbers = documents.tokens[:, 1 : 2 + 2 * most : 2].astype(np.int64) - self.start["digits"]
        signed = 1 + numbers
        signed[:, 1:] += self.config.modulus * signs
        here = np.arange(most + 1) <= documents.level[:, None]
        return np.sort(signed * here, axis=1)

    def pool(self, draws: Draws, documents: Documents, right: np.ndarray) -> np.ndarray:
        """Four neighbouring residues, one to three apart, the right one at any place among them."""
        n, modulus = len(right), self.config.modulus
        gaps = 1 + draws.below(min(3, (modulus - 1) // 3), n, NUM_CHOICES - 1)
        offset = np.concatenate([np.zeros((n, 1), np.int64), np.cumsum(gaps, axis=1)], axis=1)
        offset -= np.take_along_axis(offset, draws.below(NUM_CHOICES, n, 1), axis=1)
        first = self.start["digits"]
        return first + (right[:, None] - first + offset) % modulus


class Recall(Family):
    """`recall: (<key> <answer>)* ? (<key> <answer>)*`: what was paired is paired again. Levels: pairs.

    An item has one question, about enough pairs for four different answers. The split goes by the pairs, in
    whatever order.
    """

    name = "recall"

    def __init__(self, config: WorldConfig) -> None:
        super().__init__(config, range(config.min_pairs, config.max_pairs + 1))
        self.item_levels = range(max(config.min_pairs, NUM_CHOICES), config.max_pairs + 1)
        self.mean_length = 2.0 + 2 * self.mean_level + 2 * config.recall_queries

    def make(self, draws: Draws, level: np.ndarray) -> Documents:
        return self._pair(draws, level, self.config.recall_queries)

    def make_item(self, draws: Draws, level: np.ndarray) -> Documents:
        return self._pair(draws, level, 1)

    def key(self, documents: Documents) -> np.ndarray:
        return _pairs_in_order(documents.tokens, documents.level, self.config.max_pairs)

    def _pair(self, draws: Draws, level: np.ndarray, num_queries: int) -> Documents:
        c, start = self.config, self.start
        n, rows = len(level), np.arange(len(level))[:, None]
        words = np.empty((n, 2 * c.max_pairs), np.int64)
        words[:, ::2] = start["keys"] + draws.orders(n, c.num_keys)[:, : c.max_pairs]
        words[:, 1::2] = start["answers"] + draws.orders(n, c.num_keys)[:, : c.max_pairs]
        asked = _order_of_first(draws, level, c.max_pairs)[:, :num_queries]
        tokens = np.zeros((n, 2 + 2 * c.max_pairs + 2 * num_queries), np.uint16)
        tokens[:, 0] = self.mark
        here = np.arange(2 * c.max_pairs) < 2 * level[:, None]
        tokens[:, 1 : 1 + 2 * c.max_pairs] = words * here
        tokens[rows[:, 0], 1 + 2 * level] = start["ask"]
        query = 2 + 2 * level[:, None] + 2 * np.arange(num_queries)
        tokens[rows, query] = words[rows, 2 * asked]
        tokens[rows, query + 1] = words[rows, 2 * asked + 1]
        return Documents(tokens, 2 + 2 * (level + num_queries), level)

    def pool(self, draws: Draws, documents: Documents, right: np.ndarray) -> np.ndarray:
        """The answers in the context."""
        most = self.config.max_pairs
        answers = documents.tokens[:, 2 : 2 + 2 * most : 2].astype(np.int64)
        return np.where(np.arange(most) < documents.level[:, None], answers, -1)


class Hops(Family):
    """`hops: <place> <move>* <place>`: where do moves lead, one after the other? Levels: moves.

    A move is a permutation of all places, the same in all documents; none commutes with another. Single
    moves have to be known, so none is held out; of the others the split goes by place and moves.
    """

    name = "hops"

    def __init__(self, config: WorldConfig) -> None:
        super().__init__(config, range(1, config.max_hops + 1))
        share_of_one = float(zipf(config.max_hops, self.level_zipf)[0])
        self.held_out_fraction *= 1.0 - share_of_one
        self.training_fraction = 1.0 - self.held_out_fraction
        self.mean_length = 3.0 + self.mean_level
        draws = Draws("moves", config.world_seed)
        self._after = draws.orders(config.num_moves, config.num_places)

    def make(self, draws: Draws, level: np.ndarray) -> Documents:
        c, start, n = self.config, self.start, len(level)
        place, move = draws.below(c.num_places, n), draws.below(c.num_moves, n, c.max_hops)
        tokens = np.zeros((n, c.max_hops + 3), np.uint16)
        tokens[:, 0], tokens[:, 1] = self.mark, start["places"] + place
        for hop in range(c.max_hops):
            here = hop < level
            tokens[here, 2 + hop] = start["moves"] + move[here, hop]
            place = np.where(here, self._after[move[:, hop], place], place)
        tokens[np.arange(n), 2 + level] = start["places"] + place
        return Documents(tokens, 3 + level, level)

    def at_level(self, draws: Draws, level: int, num: int) -> Documents:
        """Single moves as they are told in training, the others held out."""
        if level > 1:
            return super().at_level(draws, level, num)
        return self.different(self.make(draws, np.full(num, level)))

    def pool(self, draws: Draws, documents: Documents, right: np.ndarray) -> np.ndarray:
        """All places."""
        return np.tile(self.start["places"] + np.arange(self.config.num_places), (len(right), 1))

    def _is_held_out(self, documents: Documents) -> np.ndarray:
        return super()._is_held_out(documents) & (documents.level > 1)


def families_of(config: WorldConfig) -> Sequence[Family]:
    """Those with a share of the training tokens, in the order of `FAMILIES`."""
    kinds = (Facts, Grammar, Arithmetic, Recall, Hops)
    return [kind(config) for kind in kinds if getattr(config, f"share_{kind.name}") > 0]


def _order_of_first(draws: Draws, size: np.ndarray, most: int) -> np.ndarray:
    """Per row a random order of 0..size-1, then the rest of 0..most-1: [n, most]."""
    late = 2.0 * (np.arange(most) >= size[:, None])
    return np.argsort(draws.uniform(len(size), most) + late, axis=1, kind="stable")


def _pairs_in_order(tokens: np.ndarray, num_pairs: np.ndarray, most: int) -> np.ndarray:
    """The pairs after the mark, one number each, sorted: [n, most]."""
    first, second = (tokens[:, i : i + 2 * most : 2].astype(np.int64) for i in (1, 2))
    return np.sort((first << 16 | second) * (np.arange(most) < num_pairs[:, None]), axis=1)


def _close_up(tokens: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves the kept tokens of each row to its left, zeros to its right; also the new lengths."""
    length = keep.sum(1)
    closed = np.zeros_like(tokens)
    closed[np.arange(tokens.shape[1]) < length[:, None]] = tokens[keep]
    return closed, length


def _flat(x: np.ndarray) -> np.ndarray:
    """[n, ...] as [n, m]; unlike reshape(n, -1), also for n = 0."""
    return x.reshape(len(x), math.prod(x.shape[1:]))
