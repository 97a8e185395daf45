"""The corpora of a study: prepared in its store before the first FLOP, or refused with nothing else done."""

import io
import json
import signal
import subprocess
import sys

import commands
import pytest
import tiny
from rich.console import Console
from test_text import mapping as text_mapping
from test_text import write_corpus

from moe.data import prepare_data
from sweeps import preparation
from sweeps.preparation import _observing
from sweeps.store import Store
from sweeps.study import Refused, run_study

BPE = {"data__tokenizer": "bpe", "data__vocab_size": 290, "data__held_out_fraction": 0.2}
SHORT = {"evaluate__context_length": 8, "evaluate__continuation_length": 3}


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "text")
    return tmp_path / "text"


def mapping(corpus, store_root, **fields):
    given = (
        {"data__path": str(corpus), "model__vocab_size": 512, "launch__store": store_root}
        | BPE
        | SHORT
        | fields
    )
    return tiny.mapping("data=text", "growth=depth", **given)


def files(root) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_a_study_of_text_as_subwords_runs_and_a_rerun_prepares_nothing(corpus, store_root, capfd):
    request = mapping(corpus, store_root)
    done = run_study([request])
    assert (done.exit_code, done.cells[0].status) == (0, "done")
    (folder,) = [path for path in (Store(store_root).root / "corpora").iterdir() if path.is_dir()]
    tokens = json.loads((folder / "corpus.json").read_text())["splits"]["train"]["tokens"]
    (row, *_) = Store(store_root).study("adhoc")["cells"]["cells"]
    assert row["epochs"] == pytest.approx(row["tokens"] / tokens)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run_study([request])
    assert "0 FLOPs trained" in capfd.readouterr().out
    assert again.cells[0].final_acc == done.cells[0].final_acc
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_planning_alone_tokenizes_and_writes_nothing(corpus, store_root, tmp_path):
    assert run_study([mapping(corpus, store_root, plan="only")]).planned_only
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__seq_len": 10**6}, r"train.seq_len=1000000 is above the \d+ training tokens"),
        (
            {"train__batch_size": 999},
            r"train.batch_size=999 asks for more sequences of train.seq_len=32 than",
        ),
        ({"train__seq_len": 900}, "too few for one sequence of train.seq_len=900"),
        ({"evaluate__context_length": 600}, "an item needs 2: give more text"),
        ({"evaluate__context_length": 600, "evaluate__probe_items": 2}, "an item needs 2"),
    ],
)
def test_a_corpus_too_short_for_what_will_be_read_is_refused_before_training(
    corpus, store_root, tmp_path, fields, message
):
    fields = {"budget__extra_flops": 1e15, **fields}
    with pytest.raises(Refused, match=message):
        run_study([mapping(corpus, store_root, **fields)])
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["corpora"]
    assert "DONE.json" in files(tmp_path / "store")


def test_a_corpus_that_cannot_be_prepared_leaves_nothing(corpus, store_root, tmp_path):
    with pytest.raises(Refused, match="is more than this corpus gives"):
        run_study([mapping(corpus, store_root, data__vocab_size=500)])
    assert not (tmp_path / "store").exists()
    (tmp_path / "store" / "corpora").mkdir(parents=True)
    with pytest.raises(Refused, match="is more than this corpus gives"):
        run_study([mapping(corpus, store_root, data__vocab_size=500)])
    assert list((tmp_path / "store" / "corpora").iterdir()) == []  # the user's own folders stay


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_preparation_that_is_interrupted_ends_the_run_as_one(corpus, store_root, monkeypatch, signum):
    def stop(config, identity, corpora, observe):
        def kill(*what):
            signal.raise_signal(signum)

        prepare_data(config, identity, corpora, kill)

    monkeypatch.setattr(preparation, "prepare_data", stop)
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = signal.signal(
        signum, handlers[signum]
    )  # a shell starts what is in its background without SIGINT
    try:
        assert run_study([mapping(corpus, store_root)]).exit_code == 130
        assert signal.getsignal(signum) is handlers[signum]
    finally:
        signal.signal(signum, before)
    assert [name.endswith(".lock") for name in files(Store(store_root).root)] == [True]


def test_the_command_refuses_in_one_line(corpus, tmp_path):
    given = {**tiny.SHRINK, "model.vocab_size": 512, "train.seq_len": 900, "budget.extra_flops": 1e15}
    given |= {key.replace("__", "."): value for key, value in (BPE | SHORT).items()}
    given |= {"data.path": corpus, "launch.store": tmp_path / "store", "hydra.run.dir": tmp_path}
    words = [f"{key}={value}" for key, value in given.items()]
    refused = commands.run(tiny.ROOT / "sweep.py", "data=text", *words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "too few for one sequence of train.seq_len=900" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["corpora"]


def test_of_two_drivers_one_prepares_and_the_other_waits(corpus, tmp_path):
    code = (
        "import json, sys; from moe.data import *; told = []\n"
        "config = parse_data(json.loads(sys.argv[1])); identity = data_identity(config)\n"
        "print('ready', flush=True); input()\n"
        "prepare_data(config, identity, sys.argv[2], lambda *what: told.append(what))\n"
        "print('encoding' in {what[0] for what in told}, open_data(identity, sys.argv[2]).unique_tokens)"
    )
    section = json.dumps(text_mapping(corpus, tokenizer="bpe", vocab_size=290))
    command = [sys.executable, "-c", code, section, str(tmp_path / "corpora")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tiny.ROOT}
    drivers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [driver.stdout.readline() for driver in drivers] == ["ready\n"] * 2
    for driver in drivers:
        driver.stdin.write("go\n")
        driver.stdin.flush()
    said = sorted(driver.communicate(timeout=60)[0].split() for driver in drivers)
    assert [words[0] for words in said] == ["False", "True"]
    assert said[0][1] == said[1][1]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_what_takes_longer_than_a_second_is_shown(is_terminal, monkeypatch):
    shown = []
    for seconds in (0.2, 5.0):
        clock = iter([0.0, *[seconds] * 100])
        monkeypatch.setattr(preparation.time, "monotonic", lambda clock=clock: next(clock))
        out = io.StringIO()
        with _observing(Console(file=out, force_terminal=is_terminal, width=100)) as observe:
            observe("encoding", 50_000_000, 100_000_000)
        shown.append(out.getvalue())
    assert shown[0] == ""
    assert "preparing the corpus: encoding, 50 MB of 100 MB" in shown[1]
