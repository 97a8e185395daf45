"""From text to ids and back: bytes, or subwords of a `tokenizer.json`. tokenizers is imported when used."""

import hashlib
import heapq
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moe.data.documents import Document, unreadable
from moe.plain import check

BYTES, BPE = "bytes", "bpe"
FILE_NAME = "tokenizer.json"
SEPARATOR = "<|endoftext|>"
# What a given tokenizer may already have for the end of a document, the most telling first.
SEPARATORS = (SEPARATOR, "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "[SEP]")
SAMPLE_BYTES = 16 << 20  # of text that a BPE is trained on
_PIECE_CHARS = 1 << 20  # longer texts are encoded in pieces
_MAX_WORDS = 1 << 19  # kept with their ids


class Tokenizer(Protocol):
    """`separator` is an id of its own, that no text encodes to; ids lie in [0, num_ids)."""

    num_ids: int
    separator: int

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The ids of UTF-8 texts, without separators; each depends on its own text alone."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids; the separator and ids that stand for no text are left out."""
        ...


class ByteTokenizer:
    num_ids = 257
    separator = 256

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(text, np.uint8) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(token for token in map(int, tokens) if 0 <= token < 256).decode(errors="replace")


class SubwordTokenizer:
    """A `tokenizer.json` of the tokenizers library, without what it adds around a text.

    Special tokens spelt in a text are text. A text above a million characters is encoded in pieces, cut at
    single spaces between words.
    """

    def __init__(self, path: Path) -> None:
        self._inner = _load(path)
        self._inner.encode_special_tokens = True
        self._inner.no_truncation()
        self._inner.no_padding()
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        last = max(vocabulary.values(), default=-1)
        special = {
            token.content for token in self._inner.get_added_tokens_decoder().values() if token.special
        }
        own = [vocabulary[name] for name in SEPARATORS if name in special]
        self.separator = own[0] if own else last + 1
        self.num_ids = max(last, self.separator) + 1
        self._words = _Words(self._inner) if _splits_as_gpt2(self._inner) else None

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        pieces = [list(_pieces(text.decode())) for text in texts]
        flat = list(chain.from_iterable(pieces))
        if self._words is not None:
            encoded = iter([self._words.encode(piece) for piece in flat])
        else:
            batch = self._inner.encode_batch_fast(flat, add_special_tokens=False)
            encoded = iter([np.array(one.ids, np.uint32) for one in batch])
        empty = np.zeros(0, np.uint32)
        return [np.concatenate([empty, *(next(encoded) for _ in own)]) for own in pieces]

    def decode(self, tokens: Iterable[int]) -> str:
        ids = [token for token in map(int, tokens) if 0 <= token < self.num_ids and token != self.separator]
        return self._inner.decode(ids, skip_special_tokens=False)


def open_tokenizer(file: Path | None) -> Tokenizer:
    """Bytes, or the tokenizer of a file; ValueError if it is none."""
    return ByteTokenizer() if file is None else SubwordTokenizer(file)


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer as Inner

    try:
        inner = Inner.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more telling than Exception
        raise ValueError(
            f"data.tokenizer={path} cannot be read as a tokenizer.json of the tokenizers library ({error}); "
            "give another file"
        ) from None
    dropout = getattr(inner.model, "dropout", None) or 0.0
    check(
        dropout == 0.0,
        f"data.tokenizer={path} has a dropout of {dropout:g}: no text has the same ids twice; set it to 0",
    )
    return inner


# --------------------------------------------------------------------------------------------------------
# Words: each is encoded once


# Unicode's white space, as the tokenizers library sees it; Python's \s has four control characters more.
_SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
_OTHER = "(?![^\\x00-\\x7f])"  # the next character is ASCII, so that a class of ASCII says where a word ends
_WORD = re.compile(
    f"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]++{_OTHER}| ?[0-9]++{_OTHER}"
    f"| ?[^{_SPACE}A-Za-z0-9\\x80-\\U0010ffff]++{_OTHER}"
    f"|[{_SPACE}]+(?![^{_SPACE}])| ?[^{_SPACE}]+|[{_SPACE}]+"
)


class _Words(dict[str, list[int]]):
    """The ids of words of GPT-2's pattern, kept while they fit: most of a text is a few words.

    ASCII words are cut as that pattern cuts them. Where others stand, a run up to the next white space is
    one word here, which the library cuts further; there GPT-2's pattern always cuts.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner

    def encode(self, text: str) -> np.ndarray:
        if len(self) > _MAX_WORDS:
            self.clear()
        ids = chain.from_iterable(map(self.__getitem__, _WORD.findall(text)))
        return np.fromiter(ids, np.uint32)

    def __missing__(self, word: str) -> list[int]:
        (encoding,) = self._inner.encode_batch_fast([word], add_special_tokens=False)
        ids = self[word] = encoding.ids
        return ids


def _splits_as_gpt2(inner: Any) -> bool:
    """Whether a tokenizer treats each word of GPT-2's pattern by itself."""
    plain = json.loads(inner.to_str())
    before, own = plain["pre_tokenizer"] or {}, [t for t in plain["added_tokens"] if not t["special"]]
    return (
        plain["normalizer"] is None
        and not own
        and plain["model"]["type"] == "BPE"
        and before.get("type") == "ByteLevel"
        and before.get("use_regex", True)
        and not before["add_prefix_space"]
    )


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARS:
        end = start + _PIECE_CHARS
        cut = text.rfind(" ", start + 1, end - 1)
        while cut > 0 and (text[cut - 1].isspace() or text[cut + 1].isspace()):
            cut = text.rfind(" ", start + 1, cut)
        end = cut if cut > 0 else end
        yield text[start:end]
        start = end
    yield text[start:]


# --------------------------------------------------------------------------------------------------------
# Which tokenizer


def check_vocabulary(tokenizer: str, vocab_size: int) -> None:
    """ValueError if `vocab_size` is too small for bytes, or for any BPE of bytes."""
    check(bool(tokenizer), "data.tokenizer='' is no choice; choose bytes, bpe or a tokenizer.json")
    if tokenizer == BYTES:
        check(
            vocab_size > 256,
            f"data.vocab_size={vocab_size} is too small for bytes and a separator; it needs 257",
        )
    if tokenizer == BPE:
        check(
            vocab_size > 257,
            f"data.vocab_size={vocab_size} is too small for data.tokenizer=bpe: 256 bytes and a separator "
            "come first; choose more than 257, such as 4096",
        )


def tokenizer_file(tokenizer: str) -> Path | None:
    """The file that `data.tokenizer` names, if it names one; ValueError if it is not there."""
    if tokenizer in (BYTES, BPE):
        return None
    path = Path(tokenizer).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    check(
        file.is_file(),
        f"data.tokenizer={tokenizer} is neither bytes, bpe, a tokenizer.json nor a folder that holds one; "
        "choose one of these",
    )
    return file.resolve()


def tokenizer_identity(tokenizer: str, vocab_size: int) -> dict[str, Any]:
    """Its kind; of a BPE to be trained the release that trains it, of a file the SHA-256.

    ValueError if a file cannot be read or has more ids than allowed.
    """
    file = tokenizer_file(tokenizer)
    if file is None:
        trains = {"tokenizers": importlib.metadata.version("tokenizers")}  # another may merge otherwise
        return {"kind": tokenizer, **(trains if tokenizer == BPE else {})}
    try:
        stat = file.stat()
        sha256, num_ids = _of_file(file, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise unreadable(f"data.tokenizer={tokenizer}", error) from error
    check(
        num_ids <= vocab_size,
        f"data.vocab_size={vocab_size} is too small for data.tokenizer={tokenizer}, whose ids and separator "
        f"are {num_ids}; set data.vocab_size={num_ids}",
    )
    return {"kind": "file", "sha256": sha256}


@lru_cache(maxsize=16)
def _of_file(file: Path, size: int, mtime_ns: int) -> tuple[str, int]:
    return hashlib.sha256(file.read_bytes()).hexdigest(), SubwordTokenizer(file).num_ids


# --------------------------------------------------------------------------------------------------------
# Training


class Sample:
    """At most `SAMPLE_BYTES` of text: the documents with the smallest digests, so no order of files matters.

    The last of them is cut. Held in memory: that much and one document.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, bytes]] = []  # the largest digest first
        self._bytes = 0

    def add(self, document: Document, digest: bytes) -> None:
        key = -int.from_bytes(digest[8:16], "big")  # the first 8 bytes say who is held out
        if self._bytes >= SAMPLE_BYTES and key <= self._heap[0][0]:
            return
        content = document.content[:SAMPLE_BYTES]
        heapq.heappush(self._heap, (key, content))
        self._bytes += len(content)
        while self._bytes - len(self._heap[0][1]) >= SAMPLE_BYTES:
            self._bytes -= len(heapq.heappop(self._heap)[1])

    def texts(self) -> Iterator[str]:
        left = SAMPLE_BYTES
        for _, content in sorted(self._heap, key=lambda entry: (-entry[0], entry[1])):
            yield from _pieces(content[:left].decode(errors="ignore"))
            left -= len(content)
            if left <= 0:
                return


def train_bpe(texts: Iterable[str], vocab_size: int, file: Path) -> None:
    """Writes a byte-level BPE of `vocab_size` ids, its separator id 0; equal texts give equal bytes.

    ValueError if the texts give fewer ids.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer=trainer)
    given = inner.get_vocab_size()
    check(
        given == vocab_size,
        f"data.vocab_size={vocab_size} is more than this corpus gives: a BPE of its training text has "
        f"{given} ids; set data.vocab_size={given} or less, or give more varied text",
    )
    file.write_text(inner.to_str(pretty=True), encoding="utf-8")
