"""The checkpoint that a trunk starts from, opened and checked: one of our own states, or a Qwen3-MoE.

No torch until there is one.
"""

import dataclasses
import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.config import ModelConfig
from moe.data import vocabulary_of
from moe.files import read_whole_json
from moe.plain import canonical_json, check, to_plain
from sweeps.config import SweepConfig
from sweeps.store import Store
from sweeps.trajectory import Address, Source

if TYPE_CHECKING:  # both are torch's
    from moe.checkpoint import State

_DONE, _OWN, _THEIRS = "DONE.json", "regrow", "qwen3_moe"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint as it lies there. `data` is the identity of what one of our states was trained on,
    `origin` its address where it lies in a store; None for others."""

    directory: Path
    model: ModelConfig
    sha256: str
    has_moments: bool
    data: dict[str, Any] | None = None
    origin: Address | None = None


def source_of(config: SweepConfig, data: str) -> Source | None:
    """The start of a configuration's trunk; None for random init. `data` is what is read, as canonical JSON.

    ValueError, naming the field, for what is no checkpoint or does not fit the configuration. Every file of
    it is read once in a process while size and time stay the same.
    """
    asked = config.trunk.source
    if asked is None:
        return None
    opened = open_source(asked)
    _check_model(opened, config.model)
    check(
        opened.data is None or _share_vocabulary(canonical_json(opened.data), data),
        f"trunk.source={asked} was trained on another vocabulary than that of data={config.data.source}; "
        "choose the data or the data.tokenizer that it was trained with",
    )
    sunk_flops = config.trunk.sunk_flops or (opened.origin.flops if opened.origin else None)
    if sunk_flops is None:
        what = "a state outside its store" if opened.data else "a Hugging Face checkpoint"
        raise ValueError(
            f"trunk.sunk_flops is missing: {what} does not say what it cost; give the FLOPs that went into "
            "it, or roughly 6·N·D with trunk.sunk_flops=1.2e21"
        )
    return Source(
        sha256=opened.sha256,
        has_moments=opened.has_moments,
        data_start=_data_start(opened.origin, config, data),
        sunk_flops=sunk_flops,
        path=str(opened.directory),
    )


def open_source(directory: str) -> Opened:
    """ValueError, naming what is wrong, unless it is whole and of a layout that is known."""
    path = Path(directory).expanduser().absolute()
    check(path.is_dir(), f"trunk.source={directory} is no folder; give a checkpoint's, or null")
    if (path / _DONE).is_file():
        return _own(path, _files(path))
    check(
        (path / "config.json").is_file(),
        f"trunk.source={directory} has neither config.json, as a Hugging Face checkpoint has, nor "
        f"{_DONE}, as one of our states has; give a folder with one of them",
    )
    return _theirs(path, _files(path))


def state_of(source: Source) -> "State":
    """What the trunk of `source` starts from, at step 0; ValueError if it is not what was planned with."""
    from moe.checkpoint import CorruptState, State, load_state
    from moe.growth import Moments

    opened = open_source(source.path)
    check(
        opened.sha256 == source.sha256,
        f"trunk.source={source.path} has changed since this study was planned; run the command again",
    )
    if opened.data is not None:
        try:
            return dataclasses.replace(load_state(opened.directory), step=0)
        except CorruptState as corrupt:
            raise ValueError(f"trunk.source: {corrupt}") from None
    from moe.recycle.interchange import open_qwen3_moe, read_weights

    weights = read_weights(*open_qwen3_moe(opened.directory, "trunk.source"))
    return State(step=0, weights=weights, moments=Moments(step=0, first={}, second={}))


Files = tuple[tuple[str, int, int], ...]  # name, size and time of each


def _files(path: Path) -> Files:
    stats = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=64)
def _own(path: Path, files: Files) -> Opened:
    """A state of ours whose every file is what was written."""
    from moe.checkpoint import CorruptState, check_state, load_description

    try:
        check_state(path)
        description = load_description(path)
    except (CorruptState, ValueError) as error:
        raise ValueError(f"trunk.source: {error}") from None
    numbers = read_whole_json(path / "state.json") or {}
    done = read_whole_json(path / _DONE) or {}
    sha256 = {name: done["sha256"][name] for name in ("model.safetensors", "optimizer.safetensors")}
    count = numbers["optimizer_step"]
    return Opened(
        directory=path,
        model=description.model,
        sha256=_digest([_OWN, count, sha256]),
        has_moments=count > 0,
        data=description.data,
        origin=_origin(path, numbers["step"]),
    )


@lru_cache(maxsize=64)
def _theirs(path: Path, files: Files) -> Opened:
    from moe.recycle.interchange import is_tied, open_qwen3_moe

    try:
        checkpoint, model = open_qwen3_moe(path, "trunk.source")
    except ValueError as error:
        raise ValueError(f"trunk.source: {str(error).removeprefix('trunk.source: ')}") from None
    if is_tied(checkpoint):
        warnings.warn(
            f"trunk.source={path} has one matrix as embedding and head; here each has a copy of its own, "
            "equal at the start",
            stacklevel=4,
        )
    sha256 = {}
    for file in checkpoint.files:
        with file.open("rb") as stream:
            sha256[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    digest = _digest([_THEIRS, is_tied(checkpoint), sha256])
    return Opened(directory=path, model=model, sha256=digest, has_moments=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _origin(path: Path, step: int) -> Address | None:
    """The address of a state that lies in a store; what was copied out of one has none."""
    folder = path.parent.parent
    if path.parent.name != "states" or read_whole_json(folder / "spec.json") is None:
        return None
    try:
        return Store(folder.parent.parent).load(folder.name.rsplit("-", 1)[-1]).at(step)
    except (ValueError, KeyError, AssertionError):  # no store, or one that is damaged
        return None


def _check_model(opened: Opened, model: ModelConfig) -> None:
    """Every field of `model` is that of the checkpoint; ValueError lists what to give instead."""
    wanted, given = (
        {f.name: getattr(m, f.name) for f in dataclasses.fields(ModelConfig)} for m in (opened.model, model)
    )
    other = [name for name in wanted if wanted[name] != given[name]]
    if other:
        first = other[0]
        overrides = " ".join(f"model.{name}={_word(wanted[name])}" for name in other)
        raise ValueError(
            f"model.{first}={_word(given[first])}, and trunk.source={opened.directory} has {first}="
            f"{_word(wanted[first])}; give {overrides}"
        )


def _word(value: Any) -> str:
    return "null" if value is None else str(to_plain(value))


@lru_cache(maxsize=64)
def _share_vocabulary(data: str, other: str) -> bool:
    return vocabulary_of(json.loads(data)) == vocabulary_of(json.loads(other))


def _data_start(origin: Address | None, config: SweepConfig, data: str) -> int:
    """Behind what the state has read, if this trunk reads the same stream; else its beginning."""
    if origin is None:
        return 0
    root = origin.trajectory.root
    same = (
        root.data == data
        and root.seed == config.seed
        and (root.train.batch_size, root.train.seq_len) == (config.train.batch_size, config.train.seq_len)
    )
    read = [t.data_start + steps for t, steps in origin.segments() if t.stream == root.stream]
    return max(read) if same else 0
