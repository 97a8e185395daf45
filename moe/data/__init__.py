"""Where tokens come from: `world`, a synthetic language, or `text`, a folder of files. No torch here."""

import functools
import json
from typing import Any

from moe.data import text, world
from moe.data.items import Data, Items, Questions
from moe.data.text import Text, TextConfig
from moe.data.world import World, WorldConfig
from moe.plain import canonical_json, parse, to_plain

__all__ = [
    "Data",
    "DataConfig",
    "Items",
    "Questions",
    "TextConfig",
    "WorldConfig",
    "data_identity",
    "families_of",
    "open_data",
    "parse_data",
]

DataConfig = WorldConfig | TextConfig

_CONFIGS = {"text": TextConfig, "world": WorldConfig}


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
    """What is read, as plain JSON data: every generator parameter, or the digest of a corpus; never a path.

    For a corpus this reads all files once; ValueError if the folder cannot serve as one.
    """
    if isinstance(config, WorldConfig):
        return {"version": world.VERSION, **to_plain(config)}
    fields = {key: value for key, value in to_plain(config).items() if key != "path"}
    corpus = text.read(config)
    Text(config, corpus)  # refuses what cannot be split or asked about
    return {"version": text.VERSION, "tokenizer": text.TOKENIZER, **fields, "manifest": corpus.manifest}


def families_of(identity: dict[str, Any]) -> tuple[str, ...]:
    """The families that this data trains, in their order; an evaluation may ask of these."""
    if identity["source"] == "world":
        return tuple(name for name in world.FAMILIES if identity[f"share_{name}"] > 0)
    return (text.FAMILY,)


def open_data(identity: dict[str, Any], path: str | None = None) -> Data:
    """The data an identity describes, one object per process; a corpus is read from the folder `path`.

    ValueError if the folder's files are not the ones the identity was made of, or another version made it.
    """
    return _open(canonical_json(identity), path)


@functools.lru_cache(maxsize=4)
def _open(identity_json: str, path: str | None) -> Data:
    identity = json.loads(identity_json)
    module = {"text": text, "world": world}[identity["source"]]
    version = identity.pop("version")
    if version != module.VERSION:
        raise ValueError(
            f"data.version={version} was written by another release; this one reads version "
            f"{module.VERSION}: use the release that wrote it, or train anew"
        )
    if identity["source"] == "world":
        return World(parse(WorldConfig, identity, "data"))
    manifest, tokenizer = identity.pop("manifest"), identity.pop("tokenizer")
    assert tokenizer == text.TOKENIZER, tokenizer
    config = parse(TextConfig, {**identity, "path": path}, "data")
    corpus = text.read(config)
    if corpus.manifest != manifest:
        raise ValueError(
            f"data.path={path} holds other files than this study was planned with (manifest "
            f"{corpus.manifest[:12]}, not {manifest[:12]}); restore the files or plan the study again"
        )
    return Text(config, corpus)
