"""A folder of text as data: its identity is the contents, its split is by document, its epochs are whole."""

import os
import time

import numpy as np
import pytest
import tiny

from moe.data import data_identity, open_data, parse_data
from moe.data.text import SEPARATOR, read

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his"]


def write_corpus(folder, num_documents: int = 60, num_words: int = 60) -> None:
    draws = np.random.default_rng(0)
    for i in range(num_documents):
        file = folder / f"part{i % 3}" / f"{i:03}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(" ".join(draws.choice(WORDS, num_words)) + f" number {i}\n")


def mapping(folder, **changes) -> dict:
    plain = {
        "source": "text",
        "path": None if folder is None else str(folder),
        "vocab_size": 257,
        "patterns": ["*.txt", "*.md", "*.py"],
        "skip": ["site-packages", "__pycache__"],
        "held_out_fraction": 0.2,
    }
    return {**plain, **changes}


def opened(folder, **changes):
    config = parse_data(mapping(folder, **changes))
    return open_data(data_identity(config), str(folder))


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path)
    return tmp_path


def documents_in(tokens: np.ndarray) -> set[bytes]:
    text = "".join(chr(token) for token in tokens.tolist())
    return {part.encode("latin-1") for part in text.split(chr(SEPARATOR)) if part}


def test_every_document_is_either_trained_on_or_held_out(corpus):
    data = opened(corpus)
    train, held = documents_in(data._train), documents_in(data._held)
    assert not train & held
    assert train | held == {file.read_bytes() for file in corpus.rglob("*.txt")}
    assert data.unique_tokens == sum(len(d) + 1 for d in train)


def test_copies_of_a_document_fall_on_the_same_side(corpus):
    for file in list(corpus.rglob("*.txt")):
        (corpus / f"copy-{file.name}").write_bytes(file.read_bytes())
    data = opened(corpus)
    assert not documents_in(data._train) & documents_in(data._held)


def test_an_epoch_reads_every_token_once_and_the_next_in_another_order(corpus):
    data = opened(corpus)
    seq_len, batch_size = 16, 4
    num_windows = (data.unique_tokens - 1) // seq_len
    rows = np.concatenate(
        [data.batch(7, step, batch_size, seq_len) for step in range(2 * num_windows // batch_size)]
    )
    first, second = rows[:num_windows], rows[num_windows : 2 * num_windows]
    expected = sorted(data._train[i * seq_len : (i + 1) * seq_len + 1].tolist() for i in range(num_windows))
    assert sorted(first.tolist()) == expected
    assert not np.array_equal(first[: len(second)], second)
    assert sorted(map(tuple, second.tolist())) <= sorted(map(tuple, expected)) or len(second) < num_windows


def test_a_batch_is_a_pure_function_of_its_arguments(corpus):
    data = opened(corpus)
    batch = data.batch(1, 9, 4, 16)
    data.batch(1, 0, 2, 8)
    assert batch.shape == (4, 17)
    assert batch.dtype == np.int64
    assert np.array_equal(batch, data.batch(1, 9, 4, 16))
    assert not np.array_equal(batch, data.batch(2, 9, 4, 16))


def test_the_identity_is_the_contents_and_never_the_path(corpus, tmp_path_factory):
    identity = data_identity(parse_data(mapping(corpus)))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_corpus(elsewhere)
    assert data_identity(parse_data(mapping(elsewhere))) == identity
    assert "path" not in identity
    assert str(corpus) not in str(identity)
    assert (identity["tokenizer"], len(identity["manifest"])) == ("bytes", 64)


@pytest.mark.parametrize("change", ["content", "name", "new file"])
def test_changed_files_are_refused(corpus, change):
    identity = data_identity(parse_data(mapping(corpus)))
    file = corpus / "part0" / "000.txt"
    match change:
        case "content":
            file.write_text(file.read_text() + "!")
        case "name":
            file.rename(file.with_name("zero.txt"))
        case "new file":
            (corpus / "more.md").write_text("more")
    assert data_identity(parse_data(mapping(corpus)))["manifest"] != identity["manifest"]
    with pytest.raises(ValueError, match="holds other files than this study was planned with"):
        open_data(identity, str(corpus))


def test_only_matching_files_outside_skipped_folders_are_read(corpus):
    before = read(parse_data(mapping(corpus))).manifest
    for name in ("site-packages/a.py", "deep/__pycache__/b.txt", "image.png"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text("not read")
    assert read(parse_data(mapping(corpus))).manifest == before
    assert read(parse_data(mapping(corpus, skip=[]))).manifest != before


def test_bad_bytes_are_reported_and_replaced(corpus):
    (corpus / "bad.txt").write_bytes(b"caf\xe9 " * 40)
    with pytest.warns(UserWarning, match=r"1 of 61 files .* not UTF-8, the first is bad.txt"):
        corpus_read = read(parse_data(mapping(corpus)))
    assert "caf\N{REPLACEMENT CHARACTER} ".encode() * 40 in corpus_read.documents


def test_the_right_continuation_continues_its_context_and_the_others_come_from_elsewhere(corpus):
    data = opened(corpus)
    (items,) = data.items(tiny.questions(40, "text"))
    held = list(documents_in(data._held))
    assert (items.family, items.chance, len(items)) == ("text", 0.25, 40)
    assert items.context.shape == (40, 48)
    assert items.choices.shape == (40, 4, 12)
    for context, choices, answer in zip(items.context, items.choices, items.answer, strict=True):
        texts = [bytes(choice.tolist()) for choice in choices]
        whole = bytes(context.tolist()) + texts[answer]
        assert any(whole in document for document in held)
        assert len(set(texts)) == 4
        assert not any(bytes(context.tolist()) + t in d for t in texts if t != texts[answer] for d in held)
    assert np.array_equal(items.context, opened(corpus).items(tiny.questions(40, "text"))[0].context)


def test_held_out_sequences_are_held_out_text(corpus):
    data = opened(corpus)
    tokens = data.held_out(8, 32)["text"]
    assert tokens.shape == (8, 33)
    held = data._held.astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(held, 33)
    assert all((windows == row).all(axis=1).any() for row in tokens)


def test_a_disjoint_stream_of_a_finite_corpus_is_refused(corpus):
    with pytest.raises(ValueError, match=r"data.at_growth=disjoint .* choose continue or replay"):
        opened(corpus).batch(0, 0, 1, 8, stream="disjoint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, "data.path is missing; give a folder of text files"),
        ({"path": "/nowhere/at/all"}, "data.path=/nowhere/at/all is not a folder"),
        ({"patterns": ["*.rst"]}, r"holds no file that matches data.patterns=\['\*.rst'\]"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused(corpus, changes, message):
    with pytest.raises(ValueError, match=message):
        data_identity(parse_data(mapping(corpus, **changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, "data.vocab_size=256 is too small for bytes and a separator; it needs 257"),
        ({"held_out_fraction": 0.9}, "must lie in"),
        ({"patterns": []}, "matches no file"),
        ({"patterns": "*.txt"}, "must be a list"),
        ({"max_files": 3}, "unknown key data.max_files"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_data(mapping("anywhere", **changes))


def test_a_corpus_too_short_for_one_item_is_refused(tmp_path):
    (tmp_path / "only.txt").write_text("short")
    with pytest.raises(ValueError, match=r"an item needs 2: give more text or raise data.held_out_fraction"):
        opened(tmp_path).items(tiny.questions(4, "text"))
    (tmp_path / "only.txt").write_text("")
    with pytest.raises(ValueError, match="give more text"):
        data_identity(parse_data(mapping(tmp_path)))


def test_a_sequence_longer_than_the_corpus_is_refused(corpus):
    data = opened(corpus)
    with pytest.raises(ValueError, match=r"train.seq_len=1000000 is above the \d+ training tokens"):
        data.batch(0, 0, 1, 10**6)
    with pytest.raises(ValueError, match=r"too few for one sequence of train.seq_len=1000000"):
        data.held_out(1, 10**6)


@pytest.mark.filterwarnings("ignore:.*are not UTF-8")
def test_the_standard_library_is_read_in_seconds():
    start = time.perf_counter()
    data = opened(os.path.dirname(os.__file__), held_out_fraction=0.05)
    data.items(tiny.questions(200, "text"))
    data.batch(0, 0, 16, 128)
    assert time.perf_counter() - start < 20
    assert data.unique_tokens > 5_000_000
