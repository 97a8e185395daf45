"""The entropy that is computed is the one that counting documents finds; no reader stays below it."""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from moe.data import entropy_floor, parse_data
from moe.data.draws import Draws
from moe.data.entropy import entropies, held_out_entropy, mixture_entropy
from moe.data.language import FAMILIES
from moe.data.world import World
from sweeps.row import row

CONF = Path(__file__).parents[1] / "conf" / "data" / "world.yaml"
SMALL = {  # so few documents that each is met many times; half are held out, so that a hash splits evenly
    "held_out_fraction": 0.5,
    **{"num_first_names": 8, "num_last_names": 8, "num_entities": 32, "num_strata": 2, "num_templates": 3},
    **{"num_nouns": 2, "noun_zipf": 0.5, "num_classes": 2, "num_verbs": 2, "max_depth": 1},
    **{"modulus": 8, "max_operand": 7, "max_operators": 2},
    **{"num_keys": 4, "max_pairs": 4, "num_places": 16, "num_moves": 3, "max_hops": 3},
}
DOCUMENTS, WORLDS = 50_000, 8


@pytest.fixture(scope="module")
def config():
    return parse_data(yaml.safe_load(CONF.read_text()))


@pytest.fixture(scope="module")
def worlds(config) -> list[World]:
    small = [dataclasses.replace(config, **SMALL, world_seed=seed) for seed in range(WORLDS)]
    return [World(one) for one in small]


@pytest.fixture(scope="module")
def stream(worlds) -> np.ndarray:
    """Training tokens of all worlds."""
    return np.concatenate([world.batch(0, 0, 800, 128).ravel() for world in worlds])


@pytest.fixture(scope="module")
def mark(stream) -> dict[str, float]:
    """-ln of each family's share of the documents."""
    count = np.bincount(stream)[: len(FAMILIES)]
    return dict(zip(FAMILIES, -np.log(count / count.sum()), strict=True))


def sums(documents, num_made: int) -> np.ndarray:
    """Documents, their -ln of the share of `num_made` that is equal to them, and their tokens.

    Few counts make documents seem rarer kinds of few: half a nat is added for each kind (Miller and Madow).
    """
    rows = np.ascontiguousarray(documents.tokens)
    _, count = np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}"), return_counts=True)
    nats = -(count * np.log(count / num_made)).sum() + len(count) / 2
    return np.array([len(documents), nats, documents.length.sum()])


def counted(world: World, name: str) -> np.ndarray:
    """The sums of the documents that are trained and of those held out: [2, 3]."""
    family, num = world.families[name], DOCUMENTS
    train, held = (part(Draws("counted"), num) for part in (family.training, family.held_out))
    if name == "facts":  # made as the one or the other; of three tellings one is held out
        held = held[np.arange(num // 2)]
    return np.stack([sums(part, len(train) + len(held)) for part in (train, held)])


def found_in(mark: float, worlds: np.ndarray) -> np.ndarray:
    """The entropies that sums [worlds, 2, 3] say: training, held out, least."""
    (trained, nats, tokens), (held, held_nats, held_tokens) = worlds.sum(0)
    made = trained + held
    return np.array(
        [
            (trained * (mark + math.log(trained / made)) + nats) / tokens,
            (held * mark + held_nats) / held_tokens,
            (held * math.log(held / made) + held_nats) / held_tokens,
        ]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_entropy_of_a_family_is_the_one_that_counting_its_documents_finds(worlds, mark, name):
    """A hash splits no two worlds alike: all together, within four standard errors by the jackknife."""
    each = np.stack([counted(world, name) for world in worlds])
    found = found_in(mark[name], each)
    without = np.stack([found_in(mark[name], np.delete(each, i, axis=0)) for i in range(WORLDS)])
    error = np.sqrt((WORLDS - 1) * without.var(axis=0))
    assert (error < 0.01).all()
    computed = entropies(worlds[0].config)[name]
    difference = found - [computed.training, computed.held_out, computed.least]
    assert (np.abs(difference) < 4 * error + 0.004).all()


def test_the_entropy_of_the_mixture_is_the_mean_of_its_families_by_their_counted_tokens(worlds, stream):
    starts = np.flatnonzero(stream < len(FAMILIES))
    tokens = np.bincount(stream[starts[:-1]], np.diff(starts))
    each = [entropy.training for entropy in entropies(worlds[0].config).values()]
    assert mixture_entropy(worlds[0].config) == pytest.approx(each @ tokens / tokens.sum(), abs=0.002)


class Table:
    """The best reader that only counts: what followed the same beginning of a document."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.after = Counter(self._beginnings(tokens))
        self.of = Counter()
        for (start, _), count in self.after.items():
            self.of[start] += count

    def loss(self, tokens: np.ndarray) -> float:
        """Nats per token, those before the first mark left out."""
        pairs = self._beginnings(tokens)
        little = 0.05  # of an observation, given to all words alike
        found = [(self.after[p] + little / self.vocab_size) / (self.of[p[0]] + little) for p in pairs]
        return float(-np.log(found).mean())

    def _beginnings(self, tokens: np.ndarray) -> list[tuple[tuple[int, ...], int]]:
        pairs, start = [], ()
        for token in tokens[np.argmax(tokens < len(FAMILIES)) :].tolist():
            whole = token < len(FAMILIES)
            pairs.append(((), token) if whole else (start, token))
            start = (token,) if whole else (*start, token)
        return pairs


def test_a_reader_that_counts_comes_down_to_the_entropy_and_not_below(worlds):
    world = worlds[0]
    reader = Table(world.batch(0, 0, 2400, 128).ravel(), world.num_ids)
    fresh = reader.loss(world.batch(1, 0, 300, 128).ravel())
    assert -0.01 < fresh - mixture_entropy(world.config) < 0.15
    found = entropies(world.config)
    for name, rows in world.held_out(64, 128).items():
        assert reader.loss(rows.ravel()) > found[name].held_out  # what it never met it holds for unlikely


def test_held_out_is_the_loss_of_a_reader_who_expects_the_language_without_its_gaps(worlds):
    """Sums are the same in every world but for the gaps: the reader has met those of the other worlds."""
    reader = Table(np.concatenate([w.batch(0, 0, 600, 128).ravel() for w in worlds[1:]]), worlds[0].num_ids)
    read = reader.loss(worlds[0].held_out(64, 128)["arithmetic"].ravel())
    assert -0.02 < read - entropies(worlds[0].config)["arithmetic"].held_out < 0.2


def test_the_floor_of_an_evaluation_is_the_mean_over_the_families_that_its_loss_averages(config):
    each = {name: entropy.held_out for name, entropy in entropies(config).items()}
    assert entropy_floor(config, ("hops",)) == pytest.approx(each["hops"], abs=1e-6)
    assert entropy_floor(config, ("facts", "hops")) == pytest.approx(
        (each["facts"] + each["hops"]) / 2, abs=1e-6
    )
    assert held_out_entropy(dataclasses.replace(config, max_hops=1), ("facts", "hops")) is None


def test_a_planned_row_has_the_floor_of_its_own_evaluation_and_text_has_none(config, tmp_path):
    some = tiny.cell(evaluate__families=["facts", "hops"])
    assert row(some, True)["entropy_floor"] == entropy_floor(config, ("facts", "hops"))
    default = entropy_floor(config, ("facts", "grammar", "arithmetic", "hops"))
    assert row(tiny.cell(), True)["entropy_floor"] == default
    (tmp_path / "some.txt").write_text("some text\n" * 2000)
    text = tiny.cell("data=text", data__path=str(tmp_path), evaluate__items=4, evaluate__probe_items=4)
    assert row(text, True)["entropy_floor"] is None
