"""The harness says what moe.evaluate says: its own evaluator, offline, on tiny trained states."""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from moe.checkpoint import Description, load_description, load_weights, save_state
from moe.data import Items, data_identity, open_data, parse_data, prepare_data
from moe.evaluate import VERSION, evaluate
from moe.files import read_json, write_json
from moe.lm_eval.__main__ import _parser, main
from moe.lm_eval.export import export
from moe.model import MoETransformer
from moe.train import Trainer, initial_state
from sweeps.study import run_study

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.tasks._index import TaskIndex

from moe.lm_eval.adapter import Adapter
from moe.lm_eval.harness import run_tasks

READ = 48  # tokens; above every item of the embedded language
WORDS = [
    "the",
    "of",
    "naïve",
    "to",
    "in",
    "is",
    "that",
    "déjà",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
]


def world():
    return open_data(data_identity(tiny_data("world")))


def tiny_data(source, **changes):
    section = tiny.composed(f"data={source}")["data"]
    return parse_data({key: value for key, value in section.items() if key != "at_growth"} | changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Bytes of documents, some of them outside ASCII; a choice may begin in the middle of a character."""
    root, draws = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    (root / "texts").mkdir()
    for i in range(40):
        (root / "texts" / f"{i:02}.txt").write_text(" ".join(draws.choice(WORDS, 60)) + f" number {i}\n")
    config = tiny_data("text", path=str(root / "texts"), held_out_fraction=0.3)
    identity = data_identity(config)
    prepare_data(config, identity, str(root / "corpora"), lambda *told: None)
    return open_data(identity, str(root / "corpora"))


@pytest.fixture(scope="module")
def model():
    data = world()
    rate = tiny.constant(1e-2)
    trainer = Trainer(
        tiny.model(), tiny.train(), rate, lambda i: data.batch(0, i, 2, 32), initial_state(tiny.model(), 0)
    )
    assert len(list(trainer.steps(30))) == 30
    return trainer.model.eval()


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The last state of the trunk of a study."""
    root = tmp_path_factory.mktemp("study") / "store"
    assert run_study([tiny.mapping(launch__store=str(root), controls=[])]).exit_code == 0
    return sorted(root.glob("trajectories/trunk-*/states/step_*"))[-1]


@pytest.fixture
def few_tasks(monkeypatch):
    """The harness's real list of tasks takes 20 seconds to read."""
    listed = TaskIndex._iter_yaml_files

    def some(root):
        return listed(root / "arc") if (root / "arc").is_dir() else listed(root)

    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", staticmethod(some))


def asked(*args):
    return Instance(request_type="", doc={}, arguments=args, idx=0)


def plain_nats(model, context, continuation, cut=False):
    """One sequence, nothing padded: (nats of the continuation, whether it is the greedy one)."""
    read = context + continuation
    read = read[:-1] if cut else [*read, 0]  # the last token is only predicted
    with torch.no_grad():
        log_p = F.log_softmax(model(torch.tensor([read]))[0, : len(context + continuation) - 1].double(), -1)
    chosen = torch.tensor(continuation)
    log_p = log_p[len(context) - 1 :]
    return log_p.gather(1, chosen[:, None]).sum().item(), bool((log_p.argmax(1) == chosen).all())


FIELDS = ("context", "context_length", "choices", "answer", "level")


class Fixed:
    """Items that are given, as a source of data."""

    def __init__(self, families):
        self.families = families

    def items(self, questions):
        return self.families

    def held_out(self, num_sequences, seq_len):
        return {items.family: np.arange(seq_len + 1)[None] for items in self.families}


def rows_of(items, name, rows, **changes):
    return type(items)(family=name, **{f: getattr(items, f)[rows] for f in FIELDS} | changes)


def our_log_p(model, items):
    """Per item the log of the probability of each choice among the choices, as moe.evaluate gives it."""
    N, C = items.choices.shape[:2]
    single = [
        rows_of(items, f"{i}.{c}", slice(i, i + 1), answer=np.array([c])) for i in range(N) for c in range(C)
    ]
    asked = tiny.questions(1, *(each.family for each in single))
    families = evaluate(model, Fixed(single), asked, seq_len=4)["families"]
    return np.log([[families[f"{i}.{c}"]["prob_right"] for c in range(C)] for i in range(N)])


def kept(data, questions, folder):
    """The questions' items without those that an export left out."""
    families = []
    for items in data.items(questions):
        lines = (folder / f"regrow_{items.family}.jsonl").read_text().splitlines()
        families.append(rows_of(items, items.family, sorted(json.loads(line)["item"] for line in lines)))
    return Fixed(families)


@pytest.mark.parametrize("source", ["world", "text"])
def test_exported_tasks_are_scored_as_moe_evaluate_scores_the_same_items(source, model, request, tmp_path):
    data = world() if source == "world" else request.getfixturevalue("corpus")
    families = () if source == "world" else ("text",)
    questions = tiny.questions(
        130 if source == "world" else 600, *families, context_length=30, continuation_length=8
    )
    told = export(data, questions, tmp_path, seq_len=READ)
    assert [family.num_left_out > 0 for family in told] == [source == "text"] * len(told)
    path = tmp_path / f"{told[0].task}.jsonl"  # families of different size weigh the same
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:70]))
    adapter = Adapter(model, data, max_length=READ)
    results = run_tasks(adapter, ["regrow"], include_path=tmp_path, log_samples=True)
    for items in data.items(questions):
        log_p = our_log_p(model, items)
        for sample in results["samples"][f"regrow_{items.family}"]:
            i = sample["doc"]["item"]
            theirs = np.array([nats for nats, _ in sample["filtered_resps"]])
            assert theirs - theirs[0] == pytest.approx(log_p[i] - log_p[i, 0], abs=1e-4)
            assert sample["acc"] == (items.level[i], log_p[i].argmax() == items.answer[i])
    ours = evaluate(model, kept(data, questions, tmp_path), questions, seq_len=32)
    assert 0.2 < ours["acc"] < 0.9
    group = results["groups"]["regrow"]
    assert group["acc,none"] == pytest.approx(ours["acc"])
    assert group["acc_stderr,none"] == pytest.approx(ours["acc_se"])
    for name, family in ours["families"].items():
        theirs = results["results"][f"regrow_{name}"]
        assert (theirs["acc,none"], theirs["sample_len"]) == (pytest.approx(family["acc"]), family["n"])
        assert results["versions"][f"regrow_{name}"] == VERSION


def test_an_export_says_how_many_items_are_too_long_and_begins_with_all_levels(tmp_path):
    data, questions = world(), tiny.questions(40)
    told = export(data, questions, tmp_path, seq_len=8)
    for family, items in zip(told, data.items(questions), strict=True):
        assert family.num_long == np.sum(items.context_length > 8)
        lines = [json.loads(line) for line in (tmp_path / f"{family.task}.jsonl").read_text().splitlines()]
        levels = np.unique(items.level).tolist()
        assert [line["level"] for line in lines[: len(levels)]] == levels
        assert sorted(line["item"] for line in lines) == list(range(40))
    assert sum(family.num_long for family in told) > 40


def test_an_item_that_the_harness_would_cut_elsewhere_is_left_out(tmp_path):
    """It encodes a context without its last space, and here that is another token."""
    pieces = ["a ", "a", "b", "c", "d", "e"]
    items = Items(
        family="pieces",
        context=np.array([[0], [1]]),
        context_length=np.array([1, 1]),
        choices=np.array([[[2], [3], [4], [5]]] * 2),
        answer=np.array([0, 1]),
        level=np.array([0, 0]),
    )
    data = Fixed([items])
    data.encode = lambda text: [pieces.index(piece) for piece in re.findall("a |.", text)]
    data.decode = lambda tokens: "".join(pieces[token] for token in tokens)
    (told,) = export(data, tiny.questions(2), tmp_path, seq_len=32)
    assert (told.num_items, told.num_left_out) == (1, 1)
    (line,) = (tmp_path / "regrow_pieces.jsonl").read_text().splitlines()
    assert json.loads(line) == {"item": 1, "context": "a", "choices": list("bcde"), "answer": 1, "level": 0}


def test_an_export_can_be_made_again_but_not_over_other_files(tmp_path):
    export(world(), tiny.questions(4), tmp_path, seq_len=32)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    export(world(), tiny.questions(4), tmp_path, seq_len=32)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "regrow.txt").touch()
    with pytest.raises(ValueError, match=r"holds regrow\.txt, which is no export"):
        export(world(), tiny.questions(4), tmp_path, seq_len=32)
    assert len(list(tmp_path.iterdir())) == len(before) + 1


def test_loglikelihoods_are_those_of_plain_passes_whatever_the_batch(model, corpus, caplog):
    adapter, long = Adapter(model, corpus, max_length=READ), "on the naïve path that was his for the day " * 3
    pairs = [
        ("the", " naïve"),
        ("", "of that"),
        ("the ", "on"),
        (" \n", "is"),
        (long, "with his"),
        ("to", " in"),
    ]
    texts = [("".join(pair)).encode() for pair in pairs]
    starts = [len(context.rstrip().encode()) for context, _ in pairs]
    found = adapter.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    for text, start, (nats, is_greedy) in zip(texts, starts, found, strict=True):
        context = list(text[:start]) or [256]
        continuation = list(text[start:])
        cut = context[-(READ + 1 - len(continuation)) :]
        assert (nats, is_greedy) == (pytest.approx(plain_nats(model, cut, continuation)[0], abs=1e-3), False)
    assert "1 of 6 texts are longer than max_length=48" in caplog.text
    with pytest.raises(ValueError, match="a continuation of 49 tokens is longer than max_length=48"):
        adapter.loglikelihood([asked("the", "x" * 49)], disable_tqdm=True)


def test_texts_do_not_reach_each_other_in_a_model_that_drops_tokens(model):
    data, dropping = world(), MoETransformer(tiny.model(capacity_factor=0.5))
    dropping.load_state_dict(model.state_dict())
    adapter = Adapter(dropping, data, max_length=READ)
    pairs = [("facts: has-d0 Pa", " Goson"), ("hops: @4 go1 go3", " @2"), ("arithmetic: 10 -", " 8")]
    together = adapter.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (nats, _) in zip(pairs, together, strict=True):
        expected = plain_nats(dropping, data.encode(context), data.encode(continuation), cut=True)
        assert nats == pytest.approx(expected[0], abs=1e-3)


def test_a_continuation_that_is_the_likeliest_is_greedy(model):
    data = world()
    context = "facts: has-d0 Pa"
    token = model(torch.tensor([data.encode(context)]))[0, -1].argmax().item()
    words = [data.decode(np.array([word])) for word in (token, (token + 1) % 100)]
    adapter = Adapter(model, data, max_length=READ)
    found = adapter.loglikelihood([asked(context, f" {word}") for word in words], disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


@pytest.mark.parametrize("num_words", [0, 5, 60])
def test_rolling_loglikelihoods_predict_every_token_once(model, corpus, num_words):
    text = " ".join(np.random.default_rng(num_words).choice(WORDS, num_words))
    (found,) = Adapter(model, corpus, max_length=READ).loglikelihood_rolling([asked(text)])
    tokens, expected = list(text.encode()), 0.0
    for end in range(0, len(tokens), READ):  # windows as the harness cuts them: the last one reaches back
        piece = tokens[end : end + READ]
        before = [256, *tokens][: end + 1] if end == 0 else tokens[:end]
        context = before[-(READ + 1 - len(piece)) :]
        expected += plain_nats(model, context, piece)[0]
    assert found == pytest.approx(expected, abs=1e-3)


def greedy(model, tokens, num_tokens):
    tokens = list(tokens)
    for _ in range(num_tokens):
        with torch.no_grad():
            tokens.append(model(torch.tensor([tokens[-READ:]]))[0, -1].argmax().item())
    return tokens[-num_tokens:]


def test_generation_is_greedy_and_stops_at_until(corpus):
    model = MoETransformer(tiny.model()).initialise(3)
    with torch.no_grad():
        model.head.weight[128:] = 0.0  # characters alone; zeros are below the greatest of the others
    adapter = Adapter(model, corpus, max_length=READ)
    contexts = ["the", "that was his day", "of " * 30]
    tokens = [greedy(model, context.encode(), 30) for context in contexts]
    texts = [bytes(row).decode() for row in tokens]
    asks = [asked(context, {"until": [], "max_gen_toks": 30}) for context in contexts]
    assert adapter.generate_until(asks) == texts
    stop = texts[0][4:6]
    (cut,) = adapter.generate_until([asked(contexts[0], {"until": ["", stop], "max_gen_toks": 30})])
    assert cut == texts[0].split(stop)[0] != texts[0]
    assert adapter.generate_until([asked("the", {"until": stop, "max_gen_toks": 0})]) == [""]
    with pytest.raises(ValueError, match="only greedy generation is"):
        adapter.generate_until([asked("the", {"do_sample": True, "temperature": 1.0})])


def test_generation_in_the_embedded_language_is_words_of_it():
    data, model = world(), MoETransformer(tiny.model()).initialise(0)
    with torch.no_grad():
        model.head.weight[len(data.words) :] *= 100.0  # ids that are no word are the likeliest
    (text,) = Adapter(model, data, max_length=READ).generate_until([asked("", {"max_gen_toks": 5})])
    assert len(data.encode(text)) == 5


def test_generation_stops_at_a_separator():
    data = SimpleNamespace(
        vocab_size=128,
        encode=lambda text: list(text.encode()),
        decode=lambda tokens: bytes(tokens.tolist()).decode(),
        num_ids=128,
        separator=7,
    )

    class Countdown(torch.nn.Module):  # after token t comes t - 1
        def __init__(self):
            super().__init__()
            self.config = tiny.model()
            self.head = torch.nn.Linear(128, 128, bias=False)
            self.head.weight.data = torch.eye(128)

        def hidden(self, tokens_BT):
            return 50.0 * F.one_hot((tokens_BT - 1) % 128, 128), []

    adapter = Adapter(Countdown(), data, max_length=8)  # pyright: ignore[reportArgumentType]
    assert adapter.eot_token_id == 7
    asks = [asked("ab\x0b", {"until": ["!"]}), asked("e", {"until": ["a"]})]
    assert adapter.generate_until(asks) == ["\x0a\x09\x08", "dcb"]


def command(*args):
    done = commands.run("-m", "moe.lm_eval", *args, cwd=tiny.ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_export_and_evaluate_a_stored_state(state, tmp_path, capsys):
    folder, output = tmp_path / "tasks", tmp_path / "results.json"
    assert main([str(state), "--export", str(folder), "--items", "12"]) == 0
    said = capsys.readouterr().out
    assert "regrow_hops: 12 items" in said
    assert f"--tasks regrow --include_path {folder}" in said
    moved = folder.rename(tmp_path / "moved")  # an export holds no path
    table = command(state, "--tasks", "regrow", "--include_path", moved, "--limit", 8, "--output", output)
    assert "| - regrow_facts" in table
    assert "|Groups|" in table
    results = read_json(output)
    data, described = world(), load_description(state)
    network = MoETransformer(described.model)
    network.load_state_dict(load_weights(state))
    questions = tiny.questions(12, "recall")
    assert results["n-samples"]["regrow_recall"] == {"original": 12, "effective": 8}
    assert results["state"]["max_length"] == described.seq_len == 32
    in_process = run_tasks(Adapter(network, data, max_length=32), ["regrow_recall"], include_path=moved)
    ours = evaluate(network, data, questions, seq_len=32)["acc"]
    assert in_process["results"]["regrow_recall"]["acc,none"] == pytest.approx(ours)


def test_states_describe_themselves_and_the_same_state_has_the_same_bytes(state, tmp_path):
    described = load_description(state)
    assert described.model == tiny.cell().trunk.model
    assert described.data == tiny.cell().trunk.root.identity["data"]
    reordered = dict(reversed(described.data.items()))
    for name, data in (("a", described.data), ("b", reordered)):
        save_state(tmp_path / name, initial_state(tiny.model(), 0), Description(described.model, data, 32))
    assert (tmp_path / "a" / "state.json").read_bytes() == (tmp_path / "b" / "state.json").read_bytes()
    assert load_description(tmp_path / "a") == described


def refused(capsys, *args):
    assert main([str(arg) for arg in args]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


def test_what_is_no_state_is_refused(state, tmp_path, capsys):
    assert "is not a stored state: no DONE.json" in refused(capsys, tmp_path, "--tasks", "regrow")
    save_state(tmp_path / "old", initial_state(tiny.model(), 0))
    assert "does not say what its model and data are" in refused(capsys, tmp_path / "old", "--export", "x")
    harmed = Path(shutil.copytree(state, tmp_path / "harmed"))
    write_json(harmed / "state.json", {**read_json(harmed / "state.json"), "seq_len": 64})
    assert "state.json is not what was written" in refused(capsys, harmed, "--tasks", "regrow")
    assert "give either --tasks NAMES" in refused(capsys, state)


def test_a_corpus_that_is_not_there_is_asked_for(tmp_path, capsys):
    described = Description(tiny.model(), {"source": "text"}, 32)
    save_state(tmp_path / "state", initial_state(tiny.model(), 0), described)
    assert "give --corpora DIR" in refused(capsys, tmp_path / "state", "--export", tmp_path / "tasks")


def test_an_unknown_task_is_refused_with_its_neighbours(state, tmp_path, capsys, few_tasks):
    said = refused(capsys, state, "--tasks", "arc_easi")
    assert said.startswith(
        "moe.lm_eval: tasks=arc_easi is not a task of the harness; close ones are arc_easy"
    )
    assert "is not a folder" in refused(capsys, state, "--tasks", "x", "--include_path", tmp_path / "none")


def test_a_data_set_that_cannot_be_fetched_is_said_in_one_line(
    state, tmp_path, capsys, monkeypatch, few_tasks
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    said = refused(capsys, state, "--tasks", "arc_easy")
    assert said.startswith(
        "moe.lm_eval: tasks=arc_easy: a data set is not in the cache and cannot be fetched"
    )
    assert "ai2_arc" in said


def test_a_word_outside_the_language_is_named(state, tmp_path, capsys):
    export(world(), tiny.questions(4, "facts"), tmp_path, seq_len=32)
    path = tmp_path / "regrow_facts.jsonl"
    path.write_text(path.read_text().replace("facts:", "Which", 1))
    said = refused(capsys, state, "--tasks", "regrow", "--include_path", tmp_path)
    assert "'Which' is not in this language" in said
    assert "the tasks that --export writes" in said


def test_without_the_extra_one_line_says_what_to_install(state, capsys, monkeypatch):
    monkeypatch.setattr("moe.lm_eval.__main__.find_spec", lambda name: None)
    assert "pip install -e '.[lm_eval]'" in refused(capsys, state, "--tasks", "regrow")


def test_bad_options_are_refused(state, tmp_path, capsys):
    given = (state, "--tasks", "regrow")
    assert "device=tpu9 cannot be used" in refused(capsys, *given, "--device", "tpu9")
    assert "has no folder to be written in" in refused(capsys, *given, "--output", tmp_path / "no" / "x.json")
    for option, value in (("--limit", "0"), ("--num_fewshot", "-1"), ("--items", "many")):
        with pytest.raises(SystemExit, match="2"):
            main([str(state), "--tasks", "regrow", option, value])
        assert f"argument {option}: invalid number" in capsys.readouterr().err


def test_lm_eval_is_imported_in_one_place():
    users = set()
    for path in [
        *tiny.ROOT.glob("*.py"),
        *(tiny.ROOT / "moe").rglob("*.py"),
        *(tiny.ROOT / "sweeps").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            users |= {path.parent.relative_to(tiny.ROOT) for name in names if name.split(".")[0] == "lm_eval"}
    assert users == {Path("moe/lm_eval")}


def test_the_commands_of_the_documentation_are_understood():
    page = (tiny.ROOT / "docs" / "benchmarks.md").read_text()
    commands = [line for block in page.split("```bash\n")[1:] for line in block.split("```")[0].splitlines()]
    ours = [shlex.split(line)[3:] for line in commands if line.startswith("python -m moe.lm_eval ")]
    assert len(ours) >= 4
    for words in ours:
        given = _parser().parse_args(words)
        assert (given.tasks is None) != (given.export is None)
