"""Where tokens come from: `world`, a synthetic language; `text`, files; `huggingface`, datasets. No torch.

A corpus (of files or a dataset) is prepared once, as shards of tokens in a folder; see `moe.data.shards`.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe.data import corpus, text, world
from moe.data.corpus import Corpus
from moe.data.entropy import held_out_entropy
from moe.data.huggingface import HuggingFaceConfig, HuggingFaceSource, huggingface_identity
from moe.data.items import Data, Items, Questions
from moe.data.language import ABRUPT, FAMILIES, WorldConfig, vocabulary
from moe.data.preparation import Observer, prepare
from moe.data.shards import is_prepared
from moe.data.text import TextConfig, TextSource, text_identity
from moe.data.tokenizer import BPE
from moe.data.world import World
from moe.plain import canonical_json, parse, to_plain

__all__ = [
    "Data",
    "DataConfig",
    "HuggingFaceConfig",
    "Items",
    "Observer",
    "Questions",
    "TextConfig",
    "WorldConfig",
    "averaged_of",
    "data_identity",
    "entropy_floor",
    "families_of",
    "is_corpus",
    "open_data",
    "parse_data",
    "prepare_data",
    "vocabulary_of",
]

DataConfig = WorldConfig | TextConfig | HuggingFaceConfig

_CONFIGS = {"huggingface": HuggingFaceConfig, "text": TextConfig, "world": WorldConfig}
_VERSIONS = {"huggingface": text.VERSION, "text": text.VERSION, "world": world.VERSION}


def parse_data(mapping: Any, path: str = "data") -> DataConfig:
    """Makes the configuration that `source` names, strictly: see `moe.config.parse`."""
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}={mapping!r} must be a group of keys")
    choices = ", ".join(_CONFIGS)
    if "source" not in mapping:
        raise ValueError(f"missing key {path}.source; choose one of {choices}")
    source = mapping["source"]
    if not isinstance(source, str) or source not in _CONFIGS:
        raise ValueError(f"{path}.source={source} is not a choice; choose one of {choices}")
    return parse(_CONFIGS[source], mapping, path)


def data_identity(config: DataConfig) -> dict[str, Any]:
    """What is read, as plain JSON data: generator parameters, or contents and tokenizer of a corpus; no path.

    Reads the files of a corpus once in a process, or asks the hub for a commit, and writes nothing;
    ValueError for what can be known then to be wrong with them.
    """
    match config:
        case WorldConfig():
            World(config)  # refuses what it could not make
            return {"version": world.VERSION, **to_plain(config)}
        case TextConfig():
            return text_identity(config)
        case HuggingFaceConfig():
            return huggingface_identity(config)


def families_of(identity: dict[str, Any]) -> tuple[str, ...]:
    """The families that this data trains, in their order; an evaluation asks all of them."""
    if identity["source"] == "world":
        return tuple(name for name in FAMILIES if identity[f"share_{name}"] > 0)
    return (corpus.FAMILY,)


def averaged_of(identity: dict[str, Any]) -> tuple[str, ...]:
    """The families whose mean is the accuracy unless another list is given: those that rise by degrees."""
    known = families_of(identity)
    return tuple(name for name in known if name not in ABRUPT) or known


def vocabulary_of(identity: dict[str, Any]) -> Any:
    """What the ids of this data stand for, as plain data: equal ids mean equal tokens if it is equal.

    The words of the embedded language, or a corpus's tokenizer; one trained on it is that corpus's own.
    """
    if identity["source"] == "world":
        parameters = {name: value for name, value in identity.items() if name != "version"}
        return {"version": identity["version"], "words": vocabulary(parse(WorldConfig, parameters))[0]}
    tokenizer = identity["tokenizer"]
    return identity if tokenizer["kind"] == BPE else tokenizer


def entropy_floor(config: DataConfig, families: Sequence[str]) -> float | None:
    """The entropy E of held-out tokens in nats, the mean over `families`; None where it is not known.

    What it is exactly and what it neglects: `moe.data.entropy`.
    """
    match config:
        case WorldConfig():
            found = held_out_entropy(config, tuple(families))
            return None if found is None else round(found, 6)
        case _:
            return None


def is_corpus(identity: dict[str, Any]) -> bool:
    """Whether it has to be prepared before it is opened."""
    return identity["source"] != "world"


def prepare_data(config: DataConfig, identity: dict[str, Any], corpora: str, observe: Observer) -> None:
    """Prepares the corpus that `config` leads to below the folder `corpora`; nothing to do if it is there.

    `observe` is told the stage, the bytes done and those in all. ValueError if the documents cannot serve.
    """
    if is_prepared(Path(corpora), identity):
        return
    match config:
        case WorldConfig():
            return
        case TextConfig():
            source = TextSource(config, identity)
        case HuggingFaceConfig():
            source = HuggingFaceSource(config, identity)
    prepare(Path(corpora), identity, source, observe)


def open_data(identity: dict[str, Any], corpora: str | None = None) -> Data:
    """The data an identity describes, one object per process; a corpus was prepared in the folder `corpora`.

    ValueError if it was not, if its files do not belong together, or if another version made it.
    """
    return _open(canonical_json(identity), corpora)


@functools.lru_cache(maxsize=4)
def _open(identity_json: str, corpora: str | None) -> Data:
    identity = json.loads(identity_json)
    version, reads = identity["version"], _VERSIONS[identity["source"]]
    if version != reads:
        raise ValueError(
            f"data.version={version} was written by another release; this one reads version "
            f"{reads}: use the release that wrote it, or train anew"
        )
    if is_corpus(identity):
        assert corpora is not None, "a corpus is opened in a folder"
        return Corpus(Path(corpora), identity)
    del identity["version"]
    return World(parse(WorldConfig, identity, "data"))
