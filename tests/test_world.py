"""The embedded language: its documents are true, its split is honest, its tokens depend on nothing else."""

import dataclasses
import functools
import hashlib
import itertools
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from moe.data import WorldConfig, data_identity, open_data, parse_data
from moe.data.language import FAMILIES
from moe.data.world import VERSION, World
from moe.plain import to_plain

CONF = Path(__file__).parents[1] / "conf" / "data" / "world.yaml"


@pytest.fixture(scope="module")
def config() -> WorldConfig:
    return parse_data(yaml.safe_load(CONF.read_text()))


@pytest.fixture(scope="module")
def world(config) -> World:
    return open_data(data_identity(config))


@pytest.fixture(scope="module")
def documents(world) -> dict[str, list[list[str]]]:
    """Whole training documents in words, by family."""
    words = world.decode(world.batch(0, 0, 1600, 128)).split()
    starts = [i for i, word in enumerate(words) if word.endswith(":")]
    found = defaultdict(list)
    for start, end in itertools.pairwise(starts):
        found[words[start][:-1]].append(words[start + 1 : end])
    return found


@pytest.fixture(scope="module")
def leads(documents) -> dict[tuple[str, str], str]:
    """Where single moves lead, as training documents say."""
    return {(words[0], words[1]): words[2] for words in documents["hops"] if len(words) == 3}


@pytest.fixture(scope="module")
def items(world):
    return {items.family: items for items in world.items(tiny.questions(300))}


def asked(world, items, i: int) -> tuple[list[str], list[str], str]:
    context = world.decode(items.context[i, : items.context_length[i]]).split()
    choices = [world.decode(choice) for choice in items.choices[i]]
    return context[1:], choices, choices[items.answer[i]]


def answer_arithmetic(words: list[str], modulus: int) -> str:
    """Evaluates `3 + 4 - 2 =` step by step."""
    value = int(words[0])
    for operator, number in zip(words[1:-1:2], words[2:-1:2], strict=True):
        value = value + int(number) if operator == "+" else value - int(number)
    return str(value % modulus)


def answer_hops(words: list[str], leads: dict[tuple[str, str], str]) -> str:
    """Follows the moves one by one; `leads` is where a move leads from a place."""
    return functools.reduce(lambda place, move: leads[place, move], words[1:], words[0])


def answer_recall(words: list[str]) -> str:
    pairs = words[: words.index("?")]
    return dict(zip(pairs[::2], pairs[1::2], strict=True))[words[-1]]


def subject_of_last_verb(words: list[str], verbs: set[str]) -> tuple[str, str]:
    """Matches verbs to nouns with a stack; (the last verb, the noun it belongs to)."""
    stack = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "the":
            stack.append(following)
        elif word in verbs:
            verb, noun = word, stack.pop()
    return verb, noun


def test_every_sum_is_right(documents, config):
    for words in documents["arithmetic"]:
        assert words[-1] == answer_arithmetic(words[:-1], config.modulus)


def test_every_move_is_a_permutation_that_commutes_with_no_other(leads, config):
    places = {place for place, _ in leads}
    moves = sorted({move for _, move in leads})
    assert (len(places), len(moves)) == (config.num_places, config.num_moves)
    assert all({leads[place, move] for place in places} == places for move in moves)
    for one, other in itertools.combinations(moves, 2):
        ways = [
            [answer_hops([p, a, b], leads) for p in sorted(places)] for a, b in ((one, other), (other, one))
        ]
        assert ways[0] != ways[1]


def test_every_walk_and_every_recalled_pair_is_right(documents, leads):
    for words in documents["hops"]:
        assert words[-1] == answer_hops(words[:-1], leads)
    for words in documents["recall"]:
        assert words[-1] == answer_recall(words[:-1])


def test_every_verb_agrees_with_its_noun_in_class_and_number(documents, world, items):
    verbs = set(world.words[world.words.index("bara") :])
    classes = defaultdict(set)
    agree = defaultdict(set)
    sentences = list(documents["grammar"])
    for i in range(len(items["grammar"])):
        context, _, answer = asked(world, items["grammar"], i)
        sentences.append([*context, answer])
    for words in sentences:
        verb, noun = subject_of_last_verb(words, verbs)
        assert verb.endswith("n") == noun.endswith("s")
        classes[noun.rstrip("s")].add(verb.rstrip("n")[-1])
        agree[verb.rstrip("n")[-1]].add(noun.rstrip("s"))
    assert all(len(found) == 1 for found in classes.values())
    assert len(agree) == world.config.num_classes


def test_a_fact_is_the_same_however_it_is_told(documents):
    values = defaultdict(set)
    tellings = defaultdict(set)
    for words in documents["facts"]:
        name = tuple(word for word in words if word[0].isupper())
        template = next(word for word in words if word.startswith("has-"))
        values[name, template[4]].add(words[-1])
        tellings[name, template[4]].add(template)
    assert all(len(told) == 1 for told in values.values())
    assert max(map(len, tellings.values())) == 3  # one template of four is kept back


def test_frequent_entities_are_told_of_more(documents, config):
    count = Counter(tuple(word for word in words if word[0].isupper()) for words in documents["facts"])
    ordered = [n for _, n in count.most_common()]
    ranks = np.arange(1, config.num_entities + 1.0) ** -config.entity_zipf
    assert ordered[0] / sum(ordered) == pytest.approx(ranks[0] / ranks.sum(), rel=0.15)


def test_exposures_are_the_tellings_that_are_counted(world, documents, config):
    """Of facts by stratum, in the tokens that `documents` were read from."""
    facts = world.families["facts"]
    rank = {tuple(world.decode(facts.name_words(i)).split()): i for i in range(config.num_entities)}
    count = Counter(rank[tuple(word for word in words if word[0].isupper())] for words in documents["facts"])
    for stratum in range(config.num_strata):
        first, last = facts.stratum(stratum)
        told = sum(count[i] for i in range(first, last)) / (last - first) / config.num_relations
        assert facts.exposures(stratum, 1600 * 129) == pytest.approx(told, rel=0.1)


def test_the_answer_of_every_item_is_the_true_one(world, items, config, leads):
    oracles = {
        "arithmetic": lambda words: answer_arithmetic(words, config.modulus),
        "hops": lambda words: answer_hops(words, leads),
        "recall": answer_recall,
    }
    for family, oracle in oracles.items():
        for i in range(len(items[family])):
            context, _, answer = asked(world, items[family], i)
            assert answer == oracle(context)


@pytest.mark.parametrize("family", FAMILIES)
def test_items_are_well_formed(items, family, config):
    found = items[family]
    n = len(found)
    assert found.context.shape[1] <= 64
    assert found.choices.shape == (n, 4, 1)
    assert found.chance == 0.25
    assert all(len(set(row)) == 4 for row in found.choices[:, :, 0].tolist())
    assert all(found.context[i, length:].sum() == 0 for i, length in enumerate(found.context_length))
    assert np.bincount(found.answer, minlength=4).min() > n / 4 / 1.6
    rows = {tuple(row) for row in found.context[:, :].tolist()}
    assert len(rows) == n, "an item is asked twice"
    count = np.bincount(found.level)
    count = count[count > 0]
    full = count >= 300 // len(count)  # a level that has fewer different items gives all of them
    assert n == 300
    assert np.ptp(count[full]) <= 1
    assert full.sum() >= len(count) - 1


def test_distractors_of_a_fact_are_values_of_the_same_relation(world, items):
    for i in range(len(items["facts"])):
        _, choices, _ = asked(world, items["facts"], i)
        assert len({choice[0] for choice in choices}) == 1


def test_no_held_out_document_is_in_training(config):
    small = dataclasses.replace(config, num_entities=256, num_strata=3)  # every pair is met many times
    world = World(small)
    text = world.decode(world.batch(0, 0, 4000, 128))
    for name in FAMILIES:
        text = text.replace(f" {name}:", f"\n{name}:")
    asked = {document.rsplit(" ", 1)[0] for document in text.split("\n")}
    given = {given_in(document) for document in text.split("\n")}
    verbs = set(world.words[world.words.index("bara") :])
    told = {clauses_in(document, verbs) for document in text.split("\n") if document.startswith("grammar")}
    for found in world.items(tiny.questions(200)):
        for i in range(len(found)):
            if found.family == "facts" and found.level[i] < small.num_strata:
                continue
            if found.family == "hops" and found.level[i] == 1:  # single moves have to be known
                continue
            context = world.decode(found.context[i, : found.context_length[i]])
            assert context not in asked
            assert found.family not in ("arithmetic", "recall") or given_in(context) not in given
            assert found.family != "grammar" or clauses_in(context, verbs) not in told


def given_in(document: str) -> tuple[str, ...]:
    """The signed numbers of a sum, or the pairs of a recall document, in an order of their own."""
    words = document.split(" ?")[0].split(" =")[0].split()[1:]
    if document.startswith("arithmetic"):
        words = ["+", *words]
    return tuple(sorted(" ".join(words[i : i + 2]) for i in range(0, len(words), 2)))


def clauses_in(document: str, verbs: set[str]) -> str:
    """A sentence up to its first verb."""
    return " ".join(itertools.takewhile(lambda word: word not in verbs, document.split()))


def test_no_short_cut_answers_the_items(world, leads):
    items = {found.family: found for found in world.items(tiny.questions(1000))}
    rank = (items["arithmetic"].choices[:, :, 0] < right_of(items["arithmetic"])[:, None]).sum(1)
    assert np.bincount(rank, minlength=4) == pytest.approx(250, abs=80)  # neither least nor middle
    for i in range(len(items["recall"])):
        context, choices, _ = asked(world, items["recall"], i)
        assert set(choices) <= set(context[1 : context.index("?") : 2])  # answers of this context
    hops = items["hops"]
    for level in (2, 3, 4):  # where fewer or other moves lead is no likelier to be right than any place
        rows = np.flatnonzero(hops.level == level)
        docs = [asked(world, hops, i) for i in rows]
        for skip in range(level):
            part = [answer_hops([w for j, w in enumerate(c) if j != 1 + skip], leads) for c, _, _ in docs]
            met = np.mean([p in choices for p, (_, choices, _) in zip(part, docs, strict=True)])
            right = np.mean([p == answer for p, (_, _, answer) in zip(part, docs, strict=True)])
            assert met < 0.2
            assert right < 0.1
    grammar = items["grammar"]
    first = np.array([agrees_with_first(world, grammar, i) for i in range(len(grammar))])
    by_level = [first[grammar.level == level].mean() for level in range(5)]
    assert by_level == sorted(by_level)  # the fewer clauses may stand around, the more often it is the first
    assert max(by_level[:4]) < 0.75


def right_of(items) -> np.ndarray:
    return items.choices[np.arange(len(items)), items.answer, 0]


def agrees_with_first(world, items, i: int) -> bool:
    """Whether the right verb agrees in number with the document's first noun, and that is its own."""
    context, _, answer = asked(world, items, i)
    verbs = set(world.words[world.words.index("bara") :])
    return subject_of_last_verb([*context, answer], verbs)[1] is context[1]


def test_seen_facts_are_in_training(config):
    small = dataclasses.replace(config, num_entities=256, num_strata=3)
    world = World(small)
    text = world.decode(world.batch(0, 0, 4000, 128))
    facts = world.items(tiny.questions(200))[0]
    seen = [
        world.decode(facts.context[i, : facts.context_length[i]]) in text
        for i in range(len(facts))
        if facts.level[i] < small.num_strata
    ]
    assert np.mean(seen) > 0.9


def test_held_out_sequences_are_not_the_training_ones(world, documents):
    held_out = world.held_out(8, 128)
    assert set(held_out) == set(FAMILIES)
    for family, tokens in held_out.items():
        assert tokens.shape == (8, 129)
        assert {w for w in world.decode(tokens).split() if w.endswith(":")} == {f"{family}:"}
    told = {" ".join(words) for found in documents.values() for words in found}
    for family, tokens in held_out.items():
        whole = world.decode(tokens).split(f"{family}: ")[1:-1]
        assert len(whole) > 20
        assert not told & {text.strip() for text in whole}


def test_shares_are_shares_of_the_tokens(documents, config):
    tokens = {family: sum(len(words) + 1 for words in found) for family, found in documents.items()}
    for family in FAMILIES:
        share = tokens[family] / sum(tokens.values())
        assert share == pytest.approx(getattr(config, f"share_{family}"), abs=0.01)


def test_a_batch_is_a_pure_function_of_its_arguments(world, config):
    batch = world.batch(3, 5, 4, 32)
    world.batch(0, 0, 2, 16)
    assert batch.shape == (4, 33)
    assert batch.dtype == np.int64
    assert np.array_equal(batch, World(config).batch(3, 5, 4, 32))
    others = [world.batch(4, 5, 4, 32), world.batch(3, 6, 4, 32), world.batch(3, 5, 4, 32, stream="disjoint")]
    assert not any(np.array_equal(batch, other) for other in others)
    assert batch.max() < world.vocab_size


def test_batches_and_items_are_equal_in_every_process(world):
    code = (
        "import sys, yaml, hashlib; from moe.data import *;"
        "w = open_data(data_identity(parse_data(yaml.safe_load(open(sys.argv[1])))));"
        "h = hashlib.sha256(w.batch(1, 2, 4, 64).tobytes());"
        "q = Questions(num_items=40, families=('hops', 'facts'), context_length=1, continuation_length=1);"
        "[h.update(x.tobytes()) for i in w.items(q) for x in (i.context, i.choices, i.answer)];"
        "assert not {'torch', 'pandas'} & set(sys.modules);"
        "print(h.hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(CONF)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(CONF.parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_tokens_of_this_version_are_pinned(config):
    tokens = World(config).batch(0, 0, 16, 128)
    found = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()[:12]
    assert (VERSION, found) == (3, "f498dbb179dc"), "other tokens need another VERSION"


def test_what_is_asked_in_this_version_is_pinned(config):
    world, found = World(config), hashlib.sha256()
    for items in world.items(tiny.questions(200)):
        for part in (items.context, items.context_length, items.choices, items.answer, items.level):
            found.update(np.ascontiguousarray(part).astype("<i8").tobytes())
    for tokens in world.held_out(4, 128).values():
        found.update(tokens.astype("<i8").tobytes())
    assert (VERSION, found.hexdigest()[:12]) == (3, "3d744fdb9793"), "other questions need another VERSION"


def test_a_probe_is_a_part_of_the_full_suite(world):
    for part, whole in zip(world.items(tiny.questions(200)), world.items(tiny.questions(1000)), strict=True):
        asked = {(*row, right) for row, right in zip(whole.context.tolist(), right_of(whole), strict=True)}
        width = whole.context.shape[1] - part.context.shape[1]
        rows = np.pad(part.context, ((0, 0), (0, width))).tolist()
        assert {(*row, right) for row, right in zip(rows, right_of(part), strict=True)} <= asked
        assert len(part) == 200
    held_out = world.held_out(16, 128)
    assert all(np.array_equal(held_out[name][:4], rows) for name, rows in world.held_out(4, 128).items())


def test_the_run_seed_changes_no_item_and_the_world_seed_changes_the_language(config, world):
    other = World(dataclasses.replace(config, world_seed=1))
    same = open_data(data_identity(config))
    assert same is world
    for mine, again, theirs in zip(
        world.items(tiny.questions(50)),
        World(config).items(tiny.questions(50)),
        other.items(tiny.questions(50)),
        strict=True,
    ):
        assert np.array_equal(mine.context, again.context)
        assert not np.array_equal(mine.context, theirs.context)


def test_every_field_is_part_of_the_identity(config):
    identity = data_identity(config)
    assert identity == {"version": identity["version"], **to_plain(config)}
    with pytest.raises(ValueError, match="was written by another release"):
        open_data({**identity, "version": 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_entities": 0}, "data.num_entities=0 must be above 0"),
        ({"num_entities": 10**6}, r"data.num_entities=1000000 must be in 256..4096"),
        ({"vocab_size": 100}, "data.vocab_size=100 is too small for this language; it needs "),
        ({"share_facts": 0.9}, "make it 1"),
        ({"share_facts": -0.1}, "must not be negative"),
        ({"held_out_fraction": 0.0}, "must lie in"),
        ({"num_templates": 1}, "at least 2"),
        ({"num_values": 3}, "at least 4"),
        ({"modulus": 2}, "at least 4"),
        ({"max_operand": 32}, "data.max_operand=32 must be in 1..31"),
        ({"max_hops": 1100}, r"data.max_hops=1100 makes documents of 1103 tokens"),
        ({"num_places": 3}, r"data.num_places=3 must be at least 4"),
        ({"num_moves": 1}, "one move alone always commutes"),
        ({"max_pairs": 20}, "no key two pairs"),
        ({"max_pairs": 600, "num_keys": 600}, r"makes documents of 1206 tokens"),
        ({"held_out_fraction": 1e-7}, r"must lie in \[0.01, 0.5\]"),
        ({"num_classes": 1}, "each class needs a noun"),
        ({"sharefacts": 1.0}, "unknown key data.sharefacts"),
        ({"source": "wiki"}, "data.source=wiki is not a choice; choose one of huggingface, text, world"),
        ({"world_seed": 0.5}, "must be a whole number"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(config, change, message):
    with pytest.raises(ValueError, match=message):
        parse_data({**to_plain(config), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_hops": 1}, "data.share_hops=.* is held out"),
        ({"level_zipf": 60.0}, "data.share_hops=.* is held out"),
        ({"max_operators": 1, "max_operand": 1}, "data.share_arithmetic=.* is held out"),
        (
            {"num_places": 4, "num_moves": 2, "max_hops": 2, "held_out_fraction": 0.01},
            "data.share_hops=.* is held out",
        ),
        (
            {"max_operators": 1, "max_operand": 1, "held_out_fraction": 0.5, "world_seed": 19},
            "data.share_arithmetic=.* is left to train on",
        ),
    ],
    ids=str,
)
def test_a_family_with_nothing_on_one_side_of_the_split_is_refused_when_it_is_planned(
    config, change, message
):
    """Whoever trained on it or evaluated it would look for its documents for ever."""
    parsed = parse_data({**to_plain(config), **change})
    with pytest.raises(ValueError, match=message):
        data_identity(parsed)


def test_a_batch_too_small_for_every_family_is_still_full(world):
    shapes = {world.batch(0, step, 1, 8).shape for step in range(400)}
    assert shapes == {(1, 9)}
