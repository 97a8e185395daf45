"""A corpus: any folder of text files, read as bytes. Its identity is what they hold, not where they lie."""

import fnmatch
import functools
import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe.data.draws import Draws
from moe.data.items import Items, Questions
from moe.plain import canonical_json, check

VERSION = 1
TOKENIZER = "bytes"
SEPARATOR = 256  # follows every document
NUM_CHOICES = 4
FAMILY = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Which files of a folder are read, how they are split, and how long the questions about them are."""

    source: str
    path: str | None
    vocab_size: int
    patterns: tuple[str, ...]  # of file names
    skip: tuple[str, ...]  # names of folders left out
    held_out_fraction: float  # of the documents

    def __post_init__(self) -> None:
        check(self.source == "text", f"data.source={self.source} must be text here")
        check(bool(self.patterns), "data.patterns=[] matches no file; give at least one, such as '*.txt'")
        check(
            0 < self.held_out_fraction <= 0.5,
            f"data.held_out_fraction={self.held_out_fraction} must lie in (0, 0.5]",
        )
        check(
            self.vocab_size > SEPARATOR,
            f"data.vocab_size={self.vocab_size} is too small for bytes and a separator; "
            f"it needs {SEPARATOR + 1}",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """The documents of a folder in the order of their paths, and the digest of paths and contents.

    `draws` has a number in [0, 1) per document, made of its content: equal documents have equal ones.
    """

    documents: tuple[bytes, ...]
    draws: tuple[float, ...]
    manifest: str


def read(config: TextConfig) -> Corpus:
    """Reads every matching file, once while none changes; ValueError if the folder cannot serve."""
    if config.path is None:
        raise ValueError("data.path is missing; give a folder of text files")
    root = Path(config.path).expanduser().resolve()
    check(root.is_dir(), f"data.path={config.path} is not a folder; give a folder of text files")
    files = _files(root, config)
    check(
        bool(files),
        f"data.path={config.path} holds no file that matches data.patterns={list(config.patterns)}; "
        "give another folder or pattern",
    )
    return _read(root, tuple(files))


def _files(root: Path, config: TextConfig) -> list[tuple[str, int, int]]:
    """(path relative to the root, size, time of the last change), sorted."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in config.skip]
        for name in names:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.patterns):
                file = Path(folder, name)
                if file.is_file():
                    stat = file.stat()
                    found.append((file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns))
    return sorted(found)


@functools.lru_cache(maxsize=2)
def _read(root: Path, files: tuple[tuple[str, int, int], ...]) -> Corpus:
    documents, draws, entries, bad = [], [], [], []
    for name, _, _ in files:
        content = (root / name).read_bytes()
        digest = hashlib.sha256(content)
        entries.append([name, digest.hexdigest()])
        try:
            content.decode()
        except UnicodeDecodeError:
            bad.append(name)
            content = content.decode(errors="replace").encode()
        if content:
            documents.append(content)
            draws.append((int.from_bytes(digest.digest()[:8], "big") >> 11) * 2.0**-53)
    if bad:
        warnings.warn(
            f"{len(bad)} of {len(files)} files under {root} are not UTF-8, the first is {bad[0]}; "
            "their bad bytes are read as U+FFFD",
            stacklevel=4,
        )
    manifest = hashlib.sha256(canonical_json(entries).encode()).hexdigest()
    return Corpus(tuple(documents), tuple(draws), manifest)


class Text:
    """A corpus as tokens: bytes, and a separator after each document; see `moe.data.Data`.

    A document is held out if the hash of its content says so: copies of a file fall on the same side.
    """

    def __init__(self, config: TextConfig, corpus: Corpus) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        split = list(zip(corpus.documents, corpus.draws, strict=True))
        self._train_documents = [d for d, draw in split if draw >= config.held_out_fraction]
        self._held_documents = [d for d, draw in split if draw < config.held_out_fraction]
        self._manifest = corpus.manifest
        self.unique_tokens: int | None = sum(len(d) + 1 for d in self._train_documents)
        self._where = (
            f"data.path={config.path} has {len(corpus.documents)} documents, {len(self._held_documents)} "
            f"of them held out (data.held_out_fraction={config.held_out_fraction})"
        )
        check(self.unique_tokens > 0, f"{self._where}; none is left to train on: give more text")

    @functools.cached_property
    def _train(self) -> np.ndarray:
        return _tokens(self._train_documents)

    @functools.cached_property
    def _held(self) -> np.ndarray:
        return _tokens(self._held_documents)

    def batch(
        self, seed: int, data_step: int, batch_size: int, seq_len: int, *, stream: str = "train"
    ) -> np.ndarray:
        """Windows [batch_size, seq_len + 1] of the training text, each once per epoch in a new order.

        A window's last token is the next one's first, so that every token is predicted once per epoch.
        """
        check(
            stream == "train",
            f"data.at_growth={stream} asks for text that nobody else reads, and this corpus is finite; "
            "choose continue or replay",
        )
        num_windows = (len(self._train) - 1) // seq_len
        check(
            num_windows > 0,
            f"train.seq_len={seq_len} is above the {len(self._train) - 1} training tokens of "
            f"data.path={self.config.path}; give more text or lower train.seq_len",
        )
        number = data_step * batch_size + np.arange(batch_size)
        epoch, place = np.divmod(number, num_windows)
        first = np.empty(batch_size, np.int64)
        for e in np.unique(epoch):
            here = epoch == e
            first[here] = seq_len * _epoch_order(seed, int(e), num_windows)[place[here]]
        return self._train[first[:, None] + np.arange(seq_len + 1)].astype(np.int64)

    def held_out(self, num_sequences: int, seq_len: int) -> dict[str, np.ndarray]:
        """Sequences [n, seq_len + 1] spread evenly over the held-out text; fewer if it is too short."""
        num_windows = (len(self._held) - 1) // seq_len
        check(
            num_windows > 0,
            f"{self._where}: {len(self._held)} held-out tokens are too few for one sequence of "
            f"train.seq_len={seq_len}; give more text or raise data.held_out_fraction",
        )
        window = np.unique(np.linspace(0, num_windows - 1, min(num_sequences, num_windows)).astype(np.int64))
        return {"text": self._held[seq_len * window[:, None] + np.arange(seq_len + 1)].astype(np.int64)}

    def items(self, questions: Questions) -> list[Items]:
        """A held-out context and four continuations, its own and three from other held-out documents.

        Documents are drawn by the number of places they offer; the four continuations differ. One level, 0.
        """
        num_items, shown = questions.num_items, questions.context_length
        item_length = shown + questions.continuation_length
        askable = [d for d in dict.fromkeys(self._held_documents) if len(d) >= item_length]
        check(
            len(askable) >= 2,
            f"{self._where}, of which {len(askable)} reach {item_length} bytes "
            "(evaluate.context_length + evaluate.continuation_length); an item needs 2: "
            "give more text or raise data.held_out_fraction",
        )
        draws = Draws("items", self._manifest, num_items)
        places = np.cumsum([len(d) - item_length + 1 for d in askable])
        ends = np.concatenate([[0], places])

        def draw() -> tuple[int, bytes]:
            place = int(draws.below(int(places[-1]), 1)[0])
            document = int(np.searchsorted(places, place, side="right"))
            first = place - int(ends[document])
            return document, askable[document][first : first + item_length]

        contexts, choices = [], []
        tries = 0
        while len(contexts) < num_items:
            document, item = draw()
            options = [item[shown:]]
            while len(options) < NUM_CHOICES:
                tries += 1
                check(
                    tries <= 100 * NUM_CHOICES * num_items,
                    f"{self._where}: they repeat themselves too much for four different continuations of "
                    f"evaluate.continuation_length={questions.continuation_length}; give more varied text",
                )
                other, distractor = draw()
                if other != document and distractor[shown:] not in options:
                    options.append(distractor[shown:])
            contexts.append(item[:shown])
            choices.append(b"".join(options))
        order = draws.orders(num_items, NUM_CHOICES)
        shape = (num_items, NUM_CHOICES, questions.continuation_length)
        return [
            Items(
                family=FAMILY,
                context=_ids(b"".join(contexts)).reshape(num_items, shown),
                context_length=np.full(num_items, shown),
                choices=np.take_along_axis(_ids(b"".join(choices)).reshape(shape), order[:, :, None], axis=1),
                answer=np.argmin(order, axis=1),
                level=np.zeros(num_items, np.int64),
            )
        ]


def _tokens(documents: list[bytes]) -> np.ndarray:
    tokens = np.empty(sum(map(len, documents)) + len(documents), np.uint16)
    end = 0
    for document in documents:
        start, end = end, end + len(document) + 1
        tokens[start : end - 1] = np.frombuffer(document, np.uint8)
        tokens[end - 1] = SEPARATOR
    return tokens


def _ids(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int64)


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    order = np.argsort(Draws("epoch", seed, epoch).raw(num_windows), kind="stable")
    order.setflags(write=False)
    return order
