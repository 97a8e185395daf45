"""The entropy of the embedded language: what its best reader cannot know, in nats per token.

That reader knows the whole world (facts, tables, moves, word classes, every share) but not the draws. All
that is drawn for a document can be read off its tokens, and no two draws tell the same tokens, so the
entropy of the draws is that of the document: exact sums over levels, nothing sampled.

Neglected, and the direction in which E is off by it:
- A window that starts amid a document hides its beginning: the reader's loss is higher than E.
- A hash picks what is held out, not the same part of every level: either way, .003 nats in conf/data/world.
- An evaluation reads a sample of held-out documents: either way, see docs/language.md.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe.data.draws import zipf
from moe.data.language import FAMILIES, WorldConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Entropy:
    """Nats per token of one family's documents, their marks included; divide by ln 2 for bits.

    `training` is the entropy of its documents in the training stream: on average no reader stays below it.
    `held_out` is the loss on held-out sequences of a reader who expects the training stream without its
    gaps: one who knows neither what is held out nor that a sequence has one family. Training never shows
    either, so this is what learning leads to; a learner that holds the gaps for impossible ends above it
    (of facts every learner meets the gaps: one telling of each is never there).
    `least` is the entropy of held-out sequences: no reader at all stays below it, whatever it knows.
    """

    training: float
    held_out: float
    least: float


def entropies(config: WorldConfig) -> dict[str, Entropy]:
    """The entropy of each family with a share of the training tokens."""
    told, mark = _told(config), _nats_of_marks(config)
    found = {}
    for name, family in told.items():
        train, held = family.part(1 - family.held), family.part(family.held)
        found[name] = Entropy(
            training=(mark[name] + train.nats + math.log(train.share)) / train.length,
            held_out=(mark[name] + held.nats) / held.length,
            least=(held.nats + math.log(held.share)) / held.length if held.share else math.nan,
        )
    return found


def mixture_entropy(config: WorldConfig) -> float:
    """The entropy of the training stream, nats per token: what no training loss stays below."""
    told, mark = _told(config), _nats_of_marks(config)
    nats = tokens = 0.0
    for name, family in told.items():
        train, documents = family.part(1 - family.held), math.exp(-mark[name])
        nats += documents * (mark[name] + train.nats + math.log(train.share))
        tokens += documents * train.length
    return nats / tokens


@functools.lru_cache(maxsize=16)  # one for all cells of a study
def held_out_entropy(config: WorldConfig, families: tuple[str, ...]) -> float | None:
    """The mean of `Entropy.held_out` over families, which is E of an evaluation's `loss` averaged over them.

    None where a family has no held-out documents.
    """
    found = entropies(config)
    mean = sum(found[name].held_out for name in families) / len(families)
    return mean if math.isfinite(mean) else None


class _Part(NamedTuple):
    """Documents that are trained on, or held out: means over them, and their share of those made."""

    share: float
    nats: float  # -ln of the probability of being made
    length: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graded:
    """A family by level [L]: how its documents are made, and the fraction of them that is held out."""

    share: np.ndarray
    nats: np.ndarray  # of the draws of a document of that level
    length: np.ndarray
    held: np.ndarray

    def part(self, kept: np.ndarray) -> _Part:
        """Of the documents made, the fraction `kept` of each level."""
        share = self.share * kept
        total = float(share.sum())
        if total == 0:
            return _Part(0.0, math.nan, math.nan)
        there = share > 0
        weight = share[there] / total
        nats = self.nats[there] - np.log(self.share[there])
        return _Part(total, float(weight @ nats), float(weight @ self.length[there]))


def _told(c: WorldConfig) -> dict[str, _Graded]:
    """The families with a share, in the order of `FAMILIES`."""
    kinds = (_facts, _grammar, _arithmetic, _recall, _hops)
    return {
        name: kind(c) for name, kind in zip(FAMILIES, kinds, strict=True) if getattr(c, f"share_{name}") > 0
    }


def _nats_of_marks(c: WorldConfig) -> dict[str, float]:
    """-ln of each family's share of the documents in the training stream."""
    made = {name: family.part(np.ones(len(family.share))) for name, family in _told(c).items()}
    documents = {name: getattr(c, f"share_{name}") / part.length for name, part in made.items()}
    total = sum(documents.values())
    return {name: -math.log(number / total) for name, number in documents.items()}


def _facts(c: WorldConfig) -> _Graded:
    """Entity, relation and telling, of which each fact holds one out; the value is known."""
    nats = _nats(_shares(c.num_entities, c.entity_zipf)) + math.log(c.num_relations * c.num_templates)
    one = np.ones(1)
    return _Graded(share=one, nats=nats * one, length=6.0 * one, held=one / c.num_templates)


def _grammar(c: WorldConfig) -> _Graded:
    """Per clause a noun in a number, half the time another behind a preposition, a verb of known form."""
    level = np.arange(c.max_depth + 1)
    noun = _nats(_shares(c.num_nouns, c.noun_zipf)) + math.log(2)
    clause = noun + math.log(2) + (math.log(4) + noun) / 2 + math.log(c.num_verbs)
    return _graded(c, level, (level + 1) * clause, 5 + 4 * level)


def _arithmetic(c: WorldConfig) -> _Graded:
    """Numbers and signs; the sum is known."""
    level = np.arange(1, c.max_operators + 1)
    nats = (level + 1) * math.log(c.max_operand + 1) + level * math.log(2)
    return _graded(c, level, nats, 4 + 2 * level)


def _recall(c: WorldConfig) -> _Graded:
    """Different keys, different answers, and which keys are asked for, each once."""
    level = np.arange(c.min_pairs, c.max_pairs + 1)
    nats = [2 * _orders(c.num_keys, pairs) + _orders(pairs, c.recall_queries) for pairs in level.tolist()]
    return _graded(c, level, np.array(nats), 2 + 2 * level + 2 * c.recall_queries)


def _hops(c: WorldConfig) -> _Graded:
    """A place and moves; single moves are never held out."""
    level = np.arange(1, c.max_hops + 1)
    nats = math.log(c.num_places) + level * math.log(c.num_moves)
    return _graded(c, level, nats, 3 + level, held=c.held_out_fraction * (level > 1))


def _graded(
    c: WorldConfig, level: np.ndarray, nats: np.ndarray, length: np.ndarray, held: np.ndarray | None = None
) -> _Graded:
    return _Graded(
        share=_shares(len(level), c.level_zipf),
        nats=nats,
        length=length,
        held=np.full(len(level), c.held_out_fraction) if held is None else held,
    )


def _shares(num: int, exponent: float) -> np.ndarray:
    return np.diff(zipf(num, exponent), prepend=0.0)


def _nats(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-share @ np.log(share))


def _orders(num: int, taken: int) -> float:
    """ln of the ordered choices of `taken` out of `num`, none twice."""
    return math.lgamma(num + 1) - math.lgamma(num - taken + 1)
