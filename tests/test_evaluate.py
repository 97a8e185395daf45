"""Scores are what they say: chance for a model that knows nothing, 1 for one that knows the answers."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from torch.nn import functional as F

from moe.config import EvaluateConfig, ModelConfig
from moe.data import Items, Questions, averaged_of, data_identity, open_data, parse_data
from moe.data.language import FAMILIES
from moe.evaluate import _summary, evaluate, suite_of
from moe.model import MoETransformer
from moe.plain import parse, to_plain

CONF = Path(__file__).parents[1] / "conf" / "data"


@pytest.fixture(scope="module")
def world():
    return open_data(data_identity(parse_data(yaml.safe_load((CONF / "world.yaml").read_text()))))


class Table(torch.nn.Module):
    """A model whose next-token logits are read from a table by the tokens before: {prefix: token}."""

    def __init__(self, vocab_size: int, following: dict[tuple, int]):
        super().__init__()
        self.head = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        torch.nn.init.eye_(self.head.weight)
        self.following = following

    def hidden(self, tokens_BT):
        x_BTD = torch.zeros(*tokens_BT.shape, self.head.weight.shape[0])
        for b, row in enumerate(tokens_BT.tolist()):
            for t in range(len(row)):
                if (token := self.following.get(tuple(row[: t + 1]))) is not None:
                    x_BTD[b, t, token] = 20.0
        return x_BTD, []


def knowing(data, questions: Questions) -> Table:
    following = {}
    for items in data.items(questions):
        for i in range(len(items)):
            tokens = [*items.context[i, : items.context_length[i]], *items.choices[i, items.answer[i]]]
            for k in range(items.choices.shape[2]):
                end = items.context_length[i] + k
                following[tuple(int(t) for t in tokens[:end])] = int(tokens[end])
    return Table(data.vocab_size, following)


def small_model(vocab_size: int) -> MoETransformer:
    required = (f.name for f in dataclasses.fields(ModelConfig) if f.default is dataclasses.MISSING)
    sizes: dict = dict.fromkeys(required, 2)
    sizes |= {"vocab_size": vocab_size, "hidden_size": 16, "head_dim": 8, "expert_hidden_size": 8}
    sizes |= {"num_experts": 4, "num_heads": 2, "num_kv_heads": 1, "rope_theta": 1e4, "norm_eps": 1e-6}
    return MoETransformer(ModelConfig(**sizes)).initialise(0)


class Phrases:
    """Two families with continuations of three tokens and contexts of two lengths."""

    vocab_size, unique_tokens = 12, None

    def items(self, questions: Questions) -> list[Items]:
        num_items = questions.num_items
        draws = np.random.default_rng(num_items)
        length = np.array([4, 6] * (num_items // 2))
        context = draws.integers(0, 12, (num_items, 6)) * (np.arange(6) < length[:, None])
        return [
            Items(
                family=family,
                context=context,
                context_length=length,
                choices=draws.integers(0, 12, (num_items, 5, 3)),
                answer=draws.integers(0, 5, num_items),
                level=length // 2,
            )
            for family in questions.families
        ]

    def held_out(self, num_sequences: int, seq_len: int) -> dict[str, np.ndarray]:
        tokens = np.random.default_rng(0).integers(0, 12, (num_sequences, seq_len + 1))
        return {"one": tokens, "two": tokens}


PHRASES = tiny.questions(20, "one", "two")


def test_a_model_that_knows_the_answers_scores_one(world):
    result = evaluate(knowing(world, tiny.questions(60)), world, tiny.questions(60), seq_len=16)
    assert result["acc"] == 1.0
    assert result["acc_se"] == 0.0
    assert result["prob_right"] == pytest.approx(1.0, abs=1e-6)


def test_a_model_that_knows_the_continuations_scores_one():
    data = Phrases()
    result = evaluate(knowing(data, PHRASES), data, PHRASES, seq_len=8)
    assert result["acc"] == 1.0


def test_all_families_are_asked_and_the_score_is_the_mean_of_those_averaged(world):
    model, asked = small_model(world.vocab_size), tiny.questions(40)
    whole = evaluate(model, world, asked, seq_len=16)
    part = evaluate(model, world, dataclasses.replace(asked, averaged=("grammar", "hops")), seq_len=16)
    assert part["families"] == whole["families"]
    assert (whole["averaged"], part["averaged"]) == (list(FAMILIES), ["grammar", "hops"])
    two = [part["families"][name] for name in ("grammar", "hops")]
    for name in ("acc", "prob_right", "loss", "acc_above_chance"):
        assert part[name] == sum(family[name] for family in two) / 2
    assert part["acc_se"] == pytest.approx(math.hypot(two[0]["se"], two[1]["se"]) / 2)
    assert part["n"] == 80


def test_unless_told_the_score_leaves_out_what_is_learned_at_once():
    identity = data_identity(parse_data(yaml.safe_load((CONF / "world.yaml").read_text())))
    assert averaged_of(identity) == ("facts", "grammar", "arithmetic", "hops")
    alone = {name: value * (name == "share_recall") for name, value in identity.items() if "share" in name}
    assert averaged_of({**identity, **alone}) == ("recall",)
    assert averaged_of({"source": "text"}) == ("text",)


def test_a_constant_model_scores_chance(world):
    result = evaluate(Table(world.vocab_size, {}), world, tiny.questions(1000), seq_len=128)
    assert result["acc"] == pytest.approx(result["chance"], abs=4 * result["acc_se"])
    assert result["prob_right"] == pytest.approx(0.25)
    for family in result["families"].values():
        assert family["acc"] == pytest.approx(0.25, abs=4 * family["se"])
        assert family["loss"] == pytest.approx(math.log(world.vocab_size), abs=1e-5)


@pytest.mark.parametrize("kind", ["one token", "three tokens"])
def test_scores_equal_those_of_one_unpadded_pass_per_choice(world, kind):
    data = world if kind == "one token" else Phrases()
    model = small_model(data.vocab_size)
    questions = tiny.questions(20) if data is world else PHRASES
    result = evaluate(model, data, questions, seq_len=16)
    for items in data.items(questions):
        right = []
        for i in range(len(items)):
            context = torch.from_numpy(items.context[i, : items.context_length[i]])
            scores = []
            for choice in torch.from_numpy(items.choices[i]):
                tokens = torch.cat([context, choice])[None]
                log_p = F.log_softmax(model(tokens)[0, :-1], -1)[len(context) - 1 :]
                scores.append(float(log_p.gather(1, choice[:, None]).detach().sum()))
            right.append(int(np.argmax(scores)) == items.answer[i])
        levels = result["families"][items.family]["levels"]
        for level in np.unique(items.level):
            assert levels[str(level)] == pytest.approx(np.mean(np.array(right)[items.level == level]))


def test_the_loss_is_the_mean_cross_entropy_of_the_held_out_sequences(world):
    model = small_model(world.vocab_size)
    result = evaluate(model, world, tiny.questions(20), seq_len=16)
    for family, tokens in world.held_out(3, 16).items():
        tokens = torch.from_numpy(tokens)
        expected = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        assert result["families"][family]["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_mean_weighs_families_and_levels_alike_and_its_error_is_binomial(world):
    result = evaluate(small_model(world.vocab_size), world, tiny.questions(200), seq_len=16)
    families = result["families"].values()
    assert result["acc"] == pytest.approx(np.mean([f["acc"] for f in families]))
    assert result["n"] == sum(f["n"] for f in families)
    for family in families:
        assert family["acc"] == pytest.approx(np.mean(list(family["levels"].values())))
        assert family["se"] == pytest.approx(
            math.sqrt(family["acc"] * (1 - family["acc"]) / family["n"]), rel=0.2
        )
    assert result["acc_se"] == pytest.approx(math.sqrt(sum(f["se"] ** 2 for f in families)) / 5)


def test_a_summary_is_what_is_counted_by_hand():
    """Level 0: two of three right; level 1: one of one. Two choices; the first is always the right one."""
    items = Items(
        family="one",
        context=np.zeros((4, 1), np.int64),
        context_length=np.ones(4, np.int64),
        choices=np.zeros((4, 2, 1), np.int64),
        answer=np.zeros(4, np.int64),
        level=np.array([0, 0, 0, 1]),
    )
    score_NC = np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    found = _summary(items, score_NC, 1.5)
    assert found["acc"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["acc_above_chance"] == pytest.approx(2 * (2 / 3 + 1) / 2 - 1)
    assert found["prob_right"] == pytest.approx(((0.9 + 0.6 + 0.2) / 3 + 0.7) / 2)
    assert found["se"] == pytest.approx(math.sqrt(2 / 3 * (1 / 3) / 3) / 2)
    assert (found["n"], found["chance"], found["loss"]) == (4, 0.5, 1.5)
    assert found["levels"] == pytest.approx({"0": 2 / 3, "1": 1.0})
    right = np.unpackbits(np.frombuffer(bytes.fromhex(found["right"]), np.uint8))[: found["n"]]
    assert right.tolist() == [1, 1, 0, 1]


def test_evaluating_twice_is_the_same_plain_json_and_leaves_the_model_alone(world):
    model = small_model(world.vocab_size).train()
    result = evaluate(model, world, tiny.questions(40), seq_len=16)
    assert evaluate(model, world, tiny.questions(40), seq_len=16) == result
    assert json.loads(json.dumps(result)) == result
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_eval_id_names_what_is_asked_and_needs_no_torch():
    config = parse(EvaluateConfig, tiny.mapping()["evaluate"] | {"items": 1000, "probe_items": 100})
    identity = data_identity(parse_data(yaml.safe_load((CONF / "world.yaml").read_text())))

    def id_of(suite: str = "full", data: dict = identity, seq_len: int = 128, **changes) -> str:
        return suite_of(dataclasses.replace(config, **changes), data, suite, seq_len=seq_len).eval_id

    full = id_of()
    assert full == id_of(probe_items=7, probe_every=9, context_length=5, families=averaged_of(identity)[::-1])
    others = [id_of(items=999), id_of("probe", probe_items=1000), id_of(families=FAMILIES[1:])]
    others += [id_of(data={**identity, "world_seed": 1}), id_of(seq_len=64)]
    assert len({full, *others}) == 6
    with pytest.raises(ValueError, match="suite=all is not a choice; choose one of full, probe"):
        id_of("all")
    code = "import sys, moe.evaluate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONF.parents[1])


def test_a_model_plain_json_round_trip_of_the_shipped_configurations():
    for name in ("world", "text"):
        mapping = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        assert json.loads(json.dumps(to_plain(parse_data(mapping)))) == mapping


def test_only_families_that_are_trained_can_be_asked_for():
    identity = data_identity(parse_data(yaml.safe_load((CONF / "world.yaml").read_text())))
    config = parse(EvaluateConfig, tiny.mapping()["evaluate"])
    without = {**identity, "share_hops": 0.0}
    asked = suite_of(config, without, "full", seq_len=32).questions
    assert asked.families == ("facts", "grammar", "arithmetic", "recall")
    assert asked.averaged == ("facts", "grammar", "arithmetic")
    for data, name in ((without, "hops"), (identity, "text"), ({"source": "text"}, "facts")):
        with pytest.raises(ValueError, match=f"evaluate.families has {name}, which data="):
            suite_of(dataclasses.replace(config, families=(name,)), data, "full", seq_len=32)
    with pytest.raises(ValueError, match="must name each family once, and at least one"):
        dataclasses.replace(config, families=("facts", "facts"))
