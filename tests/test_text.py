"""Text in files as data: its identity is the contents, its split is by document, its epochs are whole."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
from filelock import FileLock, Timeout
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers

from moe.data import data_identity, open_data, parse_data, preparation, prepare_data, shards, tokenizer
from moe.data.documents import documents, find_files
from moe.data.permutation import Permutation
from moe.data.shards import corpus_folder
from moe.data.text import TextSource
from moe.data.tokenizer import SubwordTokenizer, train_bpe
from moe.files import read_json, write_json

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his"]
SEPARATOR = 256


def texts(num_documents: int = 60, num_words: int = 60) -> list[str]:
    draws = np.random.default_rng(0)
    return [" ".join(draws.choice(WORDS, num_words)) + f" number {i}\n" for i in range(num_documents)]


def write_corpus(folder) -> None:
    for i, text in enumerate(texts()):
        file = folder / f"part{i % 3}" / f"{i:03}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def write_jsonl(file, rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mapping(folder, **changes) -> dict:
    section = {key: value for key, value in tiny.composed("data=text")["data"].items() if key != "at_growth"}
    return {**section, "path": str(folder), "held_out_fraction": 0.2, **changes}


def identity_of(folder, **changes):
    return data_identity(parse_data(mapping(folder, **changes)))


def prepared(path, corpora, **changes):
    """The identity of a corpus that has been prepared in `corpora`, and what the observer was told."""
    config, told = parse_data(mapping(path, **changes)), []
    identity = data_identity(config)
    prepare_data(config, identity, str(corpora), lambda *what: told.append(what))
    return identity, told


def opened(path, corpora, **changes):
    return open_data(prepared(path, corpora, **changes)[0], str(corpora))


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def corpora(tmp_path):
    return tmp_path / "store" / "corpora"


def split(data, name: str) -> np.ndarray:
    tokens = getattr(data._prepared, name)
    return tokens.rows([0], len(tokens))[0]


def documents_in(data, name: str) -> list[str]:
    tokens = split(data, name)
    ends = np.flatnonzero(tokens == data.tokenizer.separator)
    assert ends[-1] == len(tokens) - 1
    return [data.decode(part) for part in np.split(tokens, ends + 1)[:-1]]


# --------------------------------------------------------------------------------------------------------
# What is read


def test_every_document_is_either_trained_on_or_held_out(corpus, corpora):
    data = opened(corpus, corpora)
    train, held = documents_in(data, "train"), documents_in(data, "held_out")
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(texts())
    assert data.unique_tokens == sum(len(d) + 1 for d in train)


def test_copies_of_a_document_fall_on_the_same_side(corpus, corpora):
    for file in list(corpus.rglob("*.txt")):
        (corpus / f"copy-{file.name}").write_bytes(file.read_bytes())
    data = opened(corpus, corpora)
    assert not set(documents_in(data, "train")) & set(documents_in(data, "held_out"))


def test_files_lines_and_rows_of_the_same_text_are_the_same_documents(corpus, corpora, tmp_path):
    rows = [{"body": text, "n": i} for i, text in enumerate(texts())]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=7)
    read = [
        opened(tmp_path / name, corpora, text_field="body") for name in ("rows.jsonl", "rows.parquet", "text")
    ]
    for name in ("train", "held_out"):
        assert documents_in(read[0], name) == documents_in(read[1], name)
        assert sorted(documents_in(read[0], name)) == sorted(documents_in(read[2], name))


def test_only_matching_files_outside_skipped_folders_are_read(corpus):
    before = identity_of(corpus)
    for name in ("site-packages/a.py", "deep/__pycache__/b.txt", "image.png"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text("not read")
    assert identity_of(corpus) == before
    assert identity_of(corpus, skip=[]) != before


def test_bad_bytes_are_reported_and_replaced(corpus, corpora):
    (corpus / "bad.txt").write_bytes(b"caf\xe9 " * 40)
    with pytest.warns(UserWarning, match=r"1 of 61 files .* not UTF-8, the first is bad.txt"):
        data = opened(corpus, corpora)
    read = documents_in(data, "train") + documents_in(data, "held_out")
    assert "caf\N{REPLACEMENT CHARACTER} " * 40 in read


def test_a_mark_of_the_byte_order_before_the_first_record_is_no_part_of_it(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    (read,) = documents(find_files(tmp_path, ("*.jsonl",), ()), "text")
    assert read.content == b"a"


def test_half_a_surrogate_pair_and_an_empty_document_do_no_harm(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n\n{"text": ""}\n')
    (read,) = documents(find_files(tmp_path, ("*.jsonl",), ()), "text")
    assert read.content.decode() == "a\N{REPLACEMENT CHARACTER}b"


# --------------------------------------------------------------------------------------------------------
# Identity


def test_the_identity_is_the_contents_and_never_the_path(corpus, tmp_path):
    write_corpus(tmp_path / "elsewhere")
    identity = identity_of(corpus)
    assert identity_of(tmp_path / "elsewhere", patterns=["*.txt"], skip=[], text_field="body") == identity
    assert str(tmp_path) not in str(identity)
    assert set(identity) == {
        "version", "source", "tokenizer", "vocab_size", "held_out_fraction", "manifest"
    }  # fmt: skip


@pytest.mark.parametrize("change", ["content", "name", "new file"])
def test_files_that_change_after_planning_are_refused(corpus, corpora, change):
    config = parse_data(mapping(corpus))
    identity = data_identity(config)
    file = corpus / "part0" / "000.txt"
    match change:
        case "content":
            file.write_text(file.read_text() + "!")
        case "name":
            file.rename(file.with_name("zero.txt"))
        case "new file":
            (corpus / "more.md").write_text("more")
    assert data_identity(config)["manifest"] != identity["manifest"]
    with pytest.raises(ValueError, match="holds other files than this study was planned with"):
        prepare_data(config, identity, str(corpora), lambda *_: None)
    assert not list(corpora.glob("*"))


def test_files_that_change_while_they_are_read_are_refused(corpus):
    config = parse_data(mapping(corpus))
    source = TextSource(config, data_identity(config))
    reading = source.documents()
    next(reading)
    (corpus / "part0" / "000.txt").write_text("other")  # it is behind already
    with pytest.raises(ValueError, match="holds other files than this study was planned with"):
        list(reading)


def test_a_change_that_keeps_size_and_time_is_refused(corpus, corpora):
    config, file = parse_data(mapping(corpus)), corpus / "part0" / "000.txt"
    identity, before = data_identity(config), file.stat()
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system ticks slowly
        file.write_text(file.read_text()[::-1])
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(ValueError, match="holds other files than this study was planned with"):
        prepare_data(config, identity, str(corpora), lambda *_: None)


@pytest.mark.parametrize("gone", [True, False])
def test_a_tokenizer_that_changes_after_planning_is_refused_and_not_blamed_on_the_store(
    corpus, corpora, bpe, tmp_path, gone
):
    file = Path(shutil.copy(bpe, tmp_path / "own.json"))
    config = parse_data(mapping(corpus, tokenizer=str(file), vocab_size=512))
    identity = data_identity(config)
    source = TextSource(config, identity)
    file.unlink() if gone else file.write_text(file.read_text() + " ")
    message = (
        r"own.json cannot be read \(No such file" if gone else "own.json has changed since this was planned"
    )
    with pytest.raises(ValueError, match=f"data.tokenizer=.*{message}"):
        preparation.prepare(corpora, identity, source, lambda *_: None)


def test_a_folder_that_cannot_be_looked_into_is_refused_by_name(corpus, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "part1":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"part1 cannot be read \(Permission denied\); leave it out"):
        identity_of(corpus)
    identity_of(corpus, skip=["part1"])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_fails_while_it_is_read_is_named(tmp_path, name):
    (tmp_path / name).write_text('{"text": "some"}\n')
    files = find_files(tmp_path, ("*",), ())
    (tmp_path / name).unlink()
    with pytest.raises(
        ValueError, match=rf"{name} cannot be read \(No such file or directory\); leave it out"
    ):
        list(documents(files, "text"))


@pytest.mark.parametrize(
    "change",
    [{"tokenizer": "bpe", "vocab_size": 300}, {"vocab_size": 258}, {"held_out_fraction": 0.1}],
    ids=str,
)
def test_what_the_files_are_cut_into_and_how_they_are_split_is_identity(corpus, change):
    assert identity_of(corpus, **change) != identity_of(corpus)


def test_the_field_of_records_is_identity_where_there_are_records(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "body": "b"}])
    assert identity_of(tmp_path) != identity_of(tmp_path, text_field="body")


# --------------------------------------------------------------------------------------------------------
# Batches


def test_an_epoch_reads_every_token_once_and_the_next_in_another_order(corpus, corpora):
    data = opened(corpus, corpora)
    seq_len, batch_size = 16, 4
    num_windows = (data.unique_tokens - 1) // seq_len
    rows = np.concatenate(
        [data.batch(7, step, batch_size, seq_len) for step in range(2 * num_windows // batch_size)]
    )
    first, second = rows[:num_windows], rows[num_windows : 2 * num_windows]
    train = split(data, "train")
    expected = sorted(train[i * seq_len : (i + 1) * seq_len + 1].tolist() for i in range(num_windows))
    assert sorted(first.tolist()) == expected
    assert not np.array_equal(first[: len(second)], second)
    assert {*map(tuple, second.tolist())} <= {*map(tuple, expected)}


def test_a_batch_is_a_pure_function_of_its_arguments(corpus, corpora):
    data = opened(corpus, corpora)
    batch = data.batch(1, 9, 4, 16)
    data.batch(1, 0, 2, 8)
    assert batch.shape == (4, 17)
    assert batch.dtype == np.int64
    assert np.array_equal(batch, data.batch(1, 9, 4, 16))
    assert not np.array_equal(batch, data.batch(2, 9, 4, 16))


def test_how_many_shards_there_are_changes_nothing_that_is_read(corpus, tmp_path, monkeypatch):
    whole = opened(corpus, tmp_path / "whole")
    monkeypatch.setattr(preparation, "SHARD_TOKENS", 100)
    parts = opened(corpus, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*/train-*.tokens"))) > 50
    for name in ("train", "held_out"):
        assert np.array_equal(split(whole, name), split(parts, name))
    assert np.array_equal(whole.batch(0, 3, 4, 150), parts.batch(0, 3, 4, 150))


def test_ids_beyond_two_bytes_take_four(corpus, tmp_path):
    narrow, wide = (opened(corpus, tmp_path / str(size), vocab_size=size) for size in (65536, 65537))
    assert [data._prepared.index["dtype"] for data in (narrow, wide)] == ["uint16", "uint32"]
    assert np.array_equal(narrow.batch(0, 0, 4, 16), wide.batch(0, 0, 4, 16))


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 4097, 99_991])
def test_an_order_names_every_place_once(size):
    order = Permutation(size, "epoch", 0, size)(np.arange(size))
    assert np.array_equal(np.sort(order), np.arange(size))


def test_an_order_is_fixed_by_its_key_and_looks_shuffled():
    place = np.arange(20_000)
    order = Permutation(20_000, "epoch", 3, 1)(place)
    assert order[:4].tolist() == [18370, 13341, 454, 5576]  # the same on every machine
    assert abs(np.corrcoef(place, order)[0, 1]) < 0.03
    assert 0.25 < (np.diff(order) > 0).mean() < 0.75
    assert abs((order == place).sum() - 1) < 6
    assert not np.array_equal(order, Permutation(20_000, "epoch", 3, 2)(place))


def test_a_corpus_larger_than_memory_is_read_without_reading_it_all(corpora):
    """2^38 tokens that lie nowhere: sparse files of 512 GiB with a few tokens written into them."""
    identity = {
        "version": 2, "source": "text", "tokenizer": {"kind": "bytes"}, "vocab_size": 257,
        "held_out_fraction": 0.2, "manifest": "0",
    }  # fmt: skip
    folder, num_tokens, shard_tokens = corpus_folder(corpora, identity), 1 << 38, 1 << 34
    folder.mkdir(parents=True)
    names = [f"train-{i:05d}.tokens" for i in range(16)]
    sizes = {**dict.fromkeys(names, 2 * shard_tokens), "held_out-00000.tokens": 800, "held_out.documents": 16}
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
    counts = {"documents": 1, "tokens": num_tokens}, {"documents": 1, "tokens": 400}
    index = {"version": 1, "identity": identity, "splits": dict(zip(shards.SPLITS, counts, strict=True))}
    index |= {"dtype": "uint16", "shard_tokens": shard_tokens, "separator": 256, "num_ids": 257}
    write_json(folder / "corpus.json", index)
    files = {name: {"bytes": size} for name, size in sizes.items()}
    write_json(folder / "DONE.json", {"files": files})
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    data = open_data(identity, str(corpora))
    for step in (0, 10**6, 10**9):
        assert data.batch(0, step, 64, 512).shape == (64, 513)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert time.process_time() - start < 5


# --------------------------------------------------------------------------------------------------------
# Questions


@pytest.mark.parametrize("cut", [{}, {"tokenizer": "bpe", "vocab_size": 300}], ids=["bytes", "bpe"])
def test_the_right_continuation_continues_its_context_and_the_others_come_from_elsewhere(
    corpus, corpora, cut
):
    data = opened(corpus, corpora, **cut)
    asked = tiny.questions(40, "text")
    (items,) = data.items(asked)
    held = documents_in(data, "held_out")
    assert (items.family, items.chance, len(items)) == ("text", 0.25, 40)
    assert items.context.shape == (40, asked.context_length)
    assert items.choices.shape == (40, 4, asked.continuation_length)
    assert len(set(items.answer.tolist())) == 4
    for context, choices, answer in zip(items.context, items.choices, items.answer, strict=True):
        wholes = [data.decode(np.concatenate([context, choice])) for choice in choices]
        assert any(wholes[answer] in document for document in held)
        assert len(set(wholes)) == 4
        assert not any(whole in d for whole in wholes if whole != wholes[answer] for d in held)
    assert np.array_equal(items.context, opened(corpus, corpora, **cut).items(asked)[0].context)


def lettered(folder, length: int = 24) -> dict[int, str]:
    """Documents that share no letter, some of them ten times over; gives each one's text by its letter."""
    folder.mkdir()
    documents = {}
    for i in range(40):
        letter, mark = 65 + i, np.random.default_rng(i).integers(128, 250, length // 2)
        documents[letter] = "".join(chr(letter) + chr(m) for m in mark)
        for copy in range(10 if i % 4 == 0 else 1):
            (folder / f"{letter}-{copy}.txt").write_text(documents[letter], encoding="utf-8")
    return documents


def test_an_item_stays_in_its_document_its_wrong_choices_in_others_and_copies_count_once(tmp_path, corpora):
    documents = lettered(tmp_path / "letters")
    data = opened(tmp_path / "letters", corpora, held_out_fraction=0.3)
    asked = tiny.questions(10**4, "text", context_length=9, continuation_length=4)
    (items,) = data.items(asked)
    held = {ord(text[0]) for text in documents_in(data, "held_out")}
    assert any(letter % 4 == 1 for letter in held)  # some of them have copies
    assert len(items) == sum(len(documents[letter].encode()) - 9 - 4 + 1 for letter in held)

    def letter_of(tokens) -> int:
        (letter,) = {token for token in tokens.tolist() if token < 128}
        return letter

    for context, choices, answer in zip(items.context, items.choices, items.answer, strict=True):
        letters = [letter_of(choice) for choice in choices]
        assert letters[answer] == letter_of(context)
        assert all(letters[c] != letters[answer] for c in range(4) if c != answer)
        assert bytes([*context.tolist(), *choices[answer].tolist()]) in documents[letters[answer]].encode()


def test_held_out_sequences_are_held_out_text(corpus, corpora):
    data = opened(corpus, corpora)
    tokens = data.held_out(8, 32)["text"]
    assert tokens.shape == (8, 33)
    windows = np.lib.stride_tricks.sliding_window_view(split(data, "held_out"), 33)
    places = [int(np.flatnonzero((windows == row).all(axis=1))[0]) for row in tokens]
    assert places == sorted(set(places))
    last = (len(split(data, "held_out")) - 1) // 32 - 1
    assert (places[0], places[-1]) == (0, 32 * last)  # spread over all of it


def test_a_few_items_come_from_many_documents(corpus, corpora):
    data = opened(corpus, corpora)
    (items,) = data.items(tiny.questions(8, "text"))
    held = documents_in(data, "held_out")
    shown = [data.decode(context) for context in items.context]
    assert len({next(i for i, text in enumerate(held) if part in text) for part in shown}) >= 4


# --------------------------------------------------------------------------------------------------------
# Tokenizers

HARD = [
    "don't stop,he'll  go\n\n   now \t", "naïve café’s Ünïcode—dash ²³ x²y", "日本語 text 語、mixed",
    "a\u00a0\n  b\u2028 c\x1c\x1d d\x85e", "😀👍🏽 'sé 'll", "<|endoftext|> is text here", "   ", "\r\n",
    "_a__9b",
]  # fmt: skip


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe([*texts(), *HARD], 320, file)
    return file


def test_words_that_are_kept_give_the_ids_that_the_library_gives(bpe):
    """The oracle is the library's own encoding of the whole text."""
    inner = Tokenizer.from_file(str(bpe))
    inner.encode_special_tokens = True
    own = SubwordTokenizer(bpe)
    assert own._words is not None
    draws = np.random.default_rng(1)
    letters = [
        *"ab'sdlv 9_.-\n\t\r\x0b\x1c\x85\u00a0\u2003\u3000é語²’😀ſ",
        "'ll",
        "'re",
        "  ",
        "<|endoftext|>",
    ]
    random = ["".join(draws.choice(letters, 40)) for _ in range(1500)]
    for text in [*HARD, *texts(4), *random]:
        (ids,) = own.encode([text.encode()])
        assert ids.tolist() == inner.encode(text, add_special_tokens=False).ids, repr(text)
        assert own.decode(ids) == text
        assert own.separator not in ids


def test_texts_are_cut_where_no_token_is(bpe, monkeypatch):
    text = " ".join(texts())
    (whole,) = SubwordTokenizer(bpe).encode([text.encode()])
    monkeypatch.setattr(tokenizer, "_PIECE_CHARS", 200)
    assert len(list(tokenizer._pieces(text))) > 50
    assert "".join(tokenizer._pieces("x" * 999)) == "x" * 999
    assert np.array_equal(SubwordTokenizer(bpe).encode([text.encode()])[0], whole)


def test_two_processes_train_the_same_bpe(corpus, tmp_path):
    code = (
        "import sys; from pathlib import Path; from moe.data import *\n"
        "import json; config = parse_data(json.loads(sys.argv[1]))\n"
        "prepare_data(config, data_identity(config), sys.argv[2], lambda *_: None)"
    )
    for place in ("a", "b"):
        arguments = [json.dumps(mapping(corpus, tokenizer="bpe", vocab_size=300)), str(tmp_path / place)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tiny.ROOT)
    files = [{p.name: p.read_bytes() for p in (tmp_path / place).glob("*/*")} for place in ("a", "b")]
    assert files[0] == files[1]
    shards = {"train-00000.tokens", "held_out-00000.tokens", "held_out.documents"}
    assert set(files[0]) == {"tokenizer.json", "corpus.json", "DONE.json", *shards}


def test_a_bpe_is_trained_on_the_training_documents_alone_in_whatever_order_they_come(
    corpus, corpora, tmp_path
):
    for i in range(10):
        (corpus / f"{i}.txt").write_text(f"z{chr(97 + i)}q " * 500)
    identity, _ = prepared(corpus, corpora, tokenizer="bpe", vocab_size=305)
    write_jsonl(
        tmp_path / "rows.jsonl", [{"text": f.read_text()} for f in sorted(corpus.rglob("*.txt"))[::-1]]
    )
    other, _ = prepared(tmp_path / "rows.jsonl", corpora, tokenizer="bpe", vocab_size=305)
    trained = [(corpus_folder(corpora, i) / "tokenizer.json").read_text() for i in (identity, other)]
    assert trained[0] == trained[1]
    data = open_data(identity, str(corpora))
    kept = {text[:3] for text in documents_in(data, "train") if text[2] == "q"}
    vocabulary = SubwordTokenizer(corpus_folder(corpora, identity) / "tokenizer.json")._inner.get_vocab()
    assert 0 < len(kept) < 10
    learnt = {name.lstrip("Ġ") for name in vocabulary}
    learnt = {name for name in learnt if len(name) == 3 and name[0] + name[2] == "zq"}
    assert learnt
    assert learnt <= kept


def test_a_corpus_with_few_places_is_asked_each_once_and_no_more(tmp_path, corpora):
    for i in range(40):
        letters = np.random.default_rng(i).integers(97, 123, 63)
        (tmp_path / f"{i}.txt").write_bytes(bytes(letters.tolist()))
    data = open_data(prepared(tmp_path, corpora, held_out_fraction=0.2)[0], str(corpora))
    (items,) = data.items(tiny.questions(1000, "text"))
    assert 4 < len(items) < 100
    assert len({tuple(row) for row in items.context.tolist()}) == len(items)


def test_a_tokenizer_that_drops_merges_is_refused(tmp_path, corpora, corpus):
    identity, _ = prepared(corpus, corpora, tokenizer="bpe", vocab_size=300)
    plain = json.loads((corpus_folder(corpora, identity) / "tokenizer.json").read_text())
    plain["model"]["dropout"] = 0.1
    (tmp_path / "drops.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"has a dropout of 0.1: no text has the same ids twice"):
        prepared(corpus, corpora, tokenizer=str(tmp_path / "drops.json"), vocab_size=300)


def test_the_sample_is_bounded_and_the_same_in_any_order(monkeypatch):
    monkeypatch.setattr(tokenizer, "SAMPLE_BYTES", 1000)
    found = []
    for order in (1, -1):
        sample = tokenizer.Sample()
        for text in texts()[::order]:
            document = tokenizer.Document(text.encode(), 0)
            sample.add(document, document.digest)
        assert sample._bytes < 1500
        found.append("".join(sample.texts()))
    assert found[0] == found[1]
    assert len(found[0]) == 1000


def test_a_tokenizer_file_is_used_and_known_by_its_contents(corpus, corpora, bpe, tmp_path):
    shutil.copy(bpe, tmp_path / "other-name.json")
    given = [bpe, bpe.parent, tmp_path / "other-name.json"]
    first, *others = [identity_of(corpus, tokenizer=str(path), vocab_size=512) for path in given]
    assert [first, first] == others
    assert str(tmp_path) not in str(first)
    data = opened(corpus, corpora, tokenizer=str(bpe), vocab_size=512)
    assert sorted(documents_in(data, "train") + documents_in(data, "held_out")) == sorted(texts())
    assert data.unique_tokens < sum(map(len, texts())) / 2
    assert data.decode(data.encode("the number 7")) == "the number 7"


def test_a_tokenizer_without_a_separator_gets_one_id_more(tmp_path):
    words = Tokenizer(models.WordLevel({"the": 0, "of": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.enable_truncation(2)
    words.save(str(tmp_path / "tokenizer.json"))
    own = SubwordTokenizer(tmp_path / "tokenizer.json")
    assert (own.separator, own.num_ids) == (3, 4)
    assert own.encode([b"the of of the"])[0].tolist() == [0, 1, 1, 0]  # not truncated
    words.add_special_tokens(["[SEP]"])
    words.save(str(tmp_path / "tokenizer.json"))
    assert (SubwordTokenizer(tmp_path / "tokenizer.json").separator, own.num_ids) == (3, 4)


# --------------------------------------------------------------------------------------------------------
# Prepared once


def test_a_corpus_is_prepared_once_and_then_needs_no_files(corpus, corpora):
    config = parse_data(mapping(corpus))
    identity, told = prepared(corpus, corpora)
    assert {what[0] for what in told} == {"encoding"}
    before = {path: path.stat().st_mtime_ns for path in corpora.rglob("*")}
    shutil.rmtree(corpus)
    prepare_data(config, identity, str(corpora), lambda *_: pytest.fail("prepared again"))
    assert {path: path.stat().st_mtime_ns for path in corpora.rglob("*")} == before
    assert open_data(identity, str(corpora)).batch(0, 0, 2, 16).shape == (2, 17)


@pytest.mark.parametrize("cut", [{}, {"tokenizer": "bpe", "vocab_size": 300}], ids=["bytes", "bpe"])
def test_an_interrupted_preparation_leaves_nothing_that_counts(corpus, corpora, cut, monkeypatch):
    config = parse_data(mapping(corpus, **cut))
    identity = data_identity(config)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_facts", stop)  # the last thing before DONE.json
    with pytest.raises(KeyboardInterrupt):
        prepare_data(config, identity, str(corpora), lambda *_: None)
    monkeypatch.undo()
    assert [path.suffix for path in corpora.iterdir()] == [".lock"]
    killed = corpora / f".{corpus_folder(corpora, identity).name}.1.draft"
    killed.mkdir()
    (killed / "train-00000.tokens").write_bytes(b"half")
    with pytest.raises(ValueError, match="has no prepared corpus"):
        open_data(identity, str(corpora))
    data = opened(corpus, corpora, **cut)
    assert not killed.exists()
    assert len(documents_in(data, "train")) > 30


def test_who_waits_for_a_run_that_is_refused_takes_a_lock_of_its_own(tmp_path):
    path, told = tmp_path / ".a.lock", []
    held = FileLock(path)
    held.acquire()

    def refuse(*what):
        told.append(what)
        path.unlink()
        held.release()

    with preparation._locked(path, refuse):
        assert told == [("waiting for another run", 0, None)]
        with pytest.raises(Timeout):
            FileLock(path).acquire(timeout=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer.json", "tokenizer.json is a tokenizer that does not match the shards"),
        ("train-00000.tokens", "train-00000.tokens is a file that does not match the shards"),
        ("corpus.json", "corpus.json is a file that does not match"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(corpus, corpora, name, message):
    identity, _ = prepared(corpus, corpora, tokenizer="bpe", vocab_size=300)
    file = corpus_folder(corpora, identity) / name
    file.write_bytes(file.read_bytes()[:-2] + (b"" if "tokens" in name else b" \n"))
    with pytest.raises(ValueError, match=message):
        open_data(identity, str(corpora))


def test_the_tokenizer_of_another_corpus_is_refused_even_with_its_own_digest(corpus, corpora, bpe):
    identity, _ = prepared(corpus, corpora, tokenizer=str(bpe), vocab_size=512)
    folder = corpus_folder(corpora, identity)
    other, _ = prepared(corpus, corpora, tokenizer="bpe", vocab_size=300)
    strange = corpus_folder(corpora, other)
    shutil.copy(strange / "tokenizer.json", folder / "tokenizer.json")
    done = read_json(folder / "DONE.json")
    done["files"]["tokenizer.json"] = read_json(strange / "DONE.json")["files"]["tokenizer.json"]
    write_json(folder / "DONE.json", done)
    with pytest.raises(ValueError, match="a tokenizer that does not match the shards; remove"):
        open_data(identity, str(corpora))


# --------------------------------------------------------------------------------------------------------
# What is refused


def test_a_disjoint_stream_of_a_finite_corpus_is_refused(corpus, corpora):
    with pytest.raises(ValueError, match=r"data.at_growth=disjoint .* choose continue or replay"):
        opened(corpus, corpora).batch(0, 0, 1, 8, stream="disjoint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, "data.path is missing; give a folder of text files"),
        ({"path": "/nowhere/at/all"}, "data.path=/nowhere/at/all is not there"),
        ({"patterns": ["*.rst"]}, r"holds no file that matches data.patterns=\['\*.rst'\]"),
        (
            {"tokenizer": "/nowhere.json"},
            "data.tokenizer=/nowhere.json is neither bytes, bpe, a tokenizer.json",
        ),
        (
            {"tokenizer": __file__},
            "test_text.py cannot be read as a tokenizer.json of the tokenizers library",
        ),
    ],
)
def test_files_that_cannot_serve_are_refused(corpus, changes, message):
    with pytest.raises(ValueError, match=message):
        identity_of(corpus, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, "data.vocab_size=256 is too small for bytes and a separator; it needs 257"),
        ({"tokenizer": "bpe"}, "data.vocab_size=257 is too small for data.tokenizer=bpe"),
        ({"tokenizer": ""}, "data.tokenizer='' is no choice"),
        ({"held_out_fraction": 0.9}, "must lie in"),
        ({"patterns": []}, "matches no file"),
        ({"patterns": "*.txt"}, "must be a list"),
        ({"max_files": 3}, "unknown key data.max_files"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_data(mapping("anywhere", **changes))


def test_a_vocabulary_too_small_for_a_tokenizer_file_is_refused_with_the_number_it_needs(corpus, bpe):
    with pytest.raises(ValueError, match=r"whose ids and separator are 320; set data.vocab_size=320"):
        identity_of(corpus, tokenizer=str(bpe), vocab_size=319)


def test_a_bpe_larger_than_the_corpus_gives_is_refused_with_what_it_gives(corpus, corpora):
    with pytest.raises(
        ValueError, match=r"training text has (\d+) ids; set data.vocab_size=\1 or less"
    ) as told:
        prepared(corpus, corpora, tokenizer="bpe", vocab_size=9000)
    given = int(str(told.value).split("set data.vocab_size=")[1].split()[0])
    assert opened(corpus, corpora, tokenizer="bpe", vocab_size=given).vocab_size == given


def test_binary_files_are_refused_by_name(corpus):
    (corpus / "image.txt").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(
        ValueError, match=r"image.txt is no text: it has NUL bytes; .* data.patterns or data.skip"
    ):
        identity_of(corpus)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"a.jsonl line 3 has no field text; set data.text_field to one of .* body"),
        ("[1]", "a.jsonl line 3 has no field text"),
        ("{oops", "a.jsonl line 3 is not JSON"),
        ('{"text": null}', "a.jsonl line 3: data.text_field holds null, not text"),
        ('{"text": 7}', "a.jsonl line 3: data.text_field holds int, not text"),
    ],
)
def test_bad_lines_are_refused_with_file_and_number(tmp_path, corpora, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n' + line)
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, corpora)
    assert not corpora.parent.exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "x"}], "a.parquet has no column text; set data.text_field to one of its columns: body"),
        ([{"text": 7}], "a.parquet: data.text_field=text holds int64, not text"),
        (None, r"a.parquet \(Parquet\) cannot be read \(.*\); leave it out, allow it or restore it"),
    ],
)
def test_bad_parquet_is_refused_when_it_is_planned(tmp_path, rows, message):
    if rows is None:
        (tmp_path / "a.parquet").write_bytes(b"PAR?" * 9)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        identity_of(tmp_path)


def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path, corpora):
    rows = [{"text": text} for text in texts()]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="snappy")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[60 : len(content) // 2] = b"\xa5" * (len(content) // 2 - 60)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a.parquet \(Parquet\) cannot be read \((?!None).*\); leave it out"
    ):
        prepared(tmp_path, corpora)


def test_a_row_without_text_is_refused_by_number(tmp_path, corpora):
    parquet.write_table(pa.Table.from_pylist([{"text": "x"}, {"text": None}]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet row 2: data.text_field holds null, not text"):
        prepared(tmp_path, corpora)


def test_a_corpus_without_text_is_refused(tmp_path, corpora):
    (tmp_path / "only.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds only empty files \(1 match data.patterns\)"):
        identity_of(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [{"text": ""}])
    with pytest.raises(ValueError, match="the corpus has no text: every document is empty"):
        prepared(tmp_path, corpora)


def test_a_split_without_a_document_is_refused(tmp_path, corpora):
    (tmp_path / "only.txt").write_text("short")
    with pytest.raises(ValueError, match=r"1 documents, 0 of them held out .* give more text"):
        prepared(tmp_path, corpora)


def test_a_document_too_large_to_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("moe.data.documents.MAX_DOCUMENT_BYTES", 9)
    (tmp_path / "big.txt").write_text("x" * 10)
    with pytest.raises(ValueError, match=r"big.txt is one document of more than .* cut it into documents"):
        identity_of(tmp_path)


def test_too_few_long_documents_for_one_item_are_refused(tmp_path, corpora):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(f"short {i}")
    with pytest.raises(ValueError, match=r"an item needs 2: give more text or raise data.held_out_fraction"):
        opened(tmp_path, corpora, held_out_fraction=0.5).items(tiny.questions(4, "text"))


def test_a_sequence_or_a_batch_longer_than_the_corpus_is_refused(corpus, corpora):
    data = opened(corpus, corpora)
    with pytest.raises(ValueError, match=r"train.seq_len=1000000 is above the \d+ training tokens"):
        data.batch(0, 0, 1, 10**6)
    num_windows = (data.unique_tokens - 1) // 100
    assert data.batch(0, 0, num_windows, 100).shape == (num_windows, 101)
    with pytest.raises(
        ValueError, match=rf"train.batch_size={num_windows + 1} asks for more .* the {num_windows} of"
    ):
        data.batch(0, 0, num_windows + 1, 100)
    with pytest.raises(ValueError, match=r"too few for one sequence of train.seq_len=1000000"):
        data.held_out(1, 10**6)


@pytest.mark.filterwarnings("ignore:.*are not UTF-8")
def test_the_standard_library_is_prepared_in_seconds(corpora):
    start = time.process_time()
    library = Path(os.__file__).parent
    data = opened(library, corpora, held_out_fraction=0.05, patterns=["*.txt", "*.md", "*.py"])
    data.items(tiny.questions(200, "text"))
    data.batch(0, 0, 16, 128)
    assert time.process_time() - start < 20
    assert data.unique_tokens > 5_000_000
