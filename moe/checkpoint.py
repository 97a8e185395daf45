"""States on disk: safetensors and JSON, written beside and renamed, never half there."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes

from moe.config import ModelConfig
from moe.files import atomic_directory, read_json, read_whole_json, write_bytes, write_json
from moe.growth import Moments, Tensors
from moe.plain import check, parse, to_plain

DONE = "DONE.json"
_SETTLED_S = 1.0  # a file that changed later may change again within one tick of its clock


class CorruptState(Exception):
    """A stored state whose bytes are not those that were written."""


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """Weights, AdamW moments and the step, counted from the trajectory's own start, they belong to."""

    step: int
    weights: Tensors
    moments: Moments


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """What a state is a state of: enough to run it and to read its tokens without the study it came from."""

    model: ModelConfig
    data: dict[str, Any]  # the identity of the data
    seq_len: int  # tokens of a training sequence


def save_state(directory: Path, state: State, description: Description | None = None, **record: Any) -> None:
    """Writes `directory` whole or not at all; `record` (plain JSON) goes into its DONE.json.

    A state without a `description` can be trained on, but not loaded by itself.
    """
    with atomic_directory(directory) as draft:
        save_file(_plain(state.weights), draft / "model.safetensors")
        moments = {f"first.{name}": tensor for name, tensor in state.moments.first.items()}
        moments |= {f"second.{name}": tensor for name, tensor in state.moments.second.items()}
        save_file(_plain(moments), draft / "optimizer.safetensors")
        numbers = {"step": state.step, "optimizer_step": state.moments.step}
        described = {} if description is None else to_plain(description)
        write_json(draft / "state.json", numbers | described)
        files = sorted(path.name for path in draft.iterdir())
        digests = {name: _sha256(draft / name) for name in files}
        write_json(draft / DONE, {"sha256": digests, **record})


def save_tensors(path: Path, tensors: Tensors) -> None:
    """Writes one safetensors file whole or not at all."""
    write_bytes(path, to_bytes(_plain(tensors)))


def load_tensors(path: Path) -> Tensors:
    return load_file(path)


def promote_state(directory: Path) -> None:
    """Makes a checkpoint that was to be replaced one that stays."""
    write_json(directory / DONE, {**read_json(directory / DONE), "transient": False})


def load_state(directory: Path) -> State:
    """Reads a state after checking every digest; raises CorruptState naming the file that differs.

    A file that this process has checked is hashed again only once it was touched: many branches start from
    one state.
    """
    _check_digests(directory, digest=_known_sha256)
    numbers = read_json(directory / "state.json")
    moments: dict[str, Tensors] = {"first": {}, "second": {}}
    for name, tensor in load_file(directory / "optimizer.safetensors").items():
        order, parameter = name.split(".", 1)
        moments[order][parameter] = tensor
    return State(
        step=numbers["step"],
        weights=load_file(directory / "model.safetensors"),
        moments=Moments(step=numbers["optimizer_step"], **moments),
    )


def load_weights(directory: Path) -> Tensors:
    """The weights of a state without its moments; raises CorruptState if they are not what was written."""
    _check_digests(directory, "model.safetensors")
    return load_file(directory / "model.safetensors")


def check_state(directory: Path) -> None:
    """Reads every file of a state; raises CorruptState naming one that is not what was written."""
    _check_digests(directory)


def load_description(directory: Path) -> Description:
    """What the state in `directory` describes itself as; ValueError if it is no state, or an older one."""
    check(
        (directory / DONE).is_file() and (directory / "state.json").is_file(),
        f"state={directory} is not a stored state: no {DONE} and state.json in it; "
        "give a folder such as store/trajectories/NAME/states/step_00000400",
    )
    _check_digests(directory, "state.json")
    stored = read_json(directory / "state.json")
    check(
        {"model", "data", "seq_len"} <= stored.keys(),
        f"state={directory} does not say what its model and data are, as states of this release do; "
        "train it again in another store",
    )
    model = parse(ModelConfig, stored["model"], "model")
    return Description(model=model, data=stored["data"], seq_len=stored["seq_len"])


def _check_digests(directory: Path, *names: str, digest: Callable[[Path], str] | None = None) -> None:
    """Of all files of a state, or of those named; what does not say its digests is no state either."""
    done = read_whole_json(directory / DONE)
    if done is None or not isinstance(done.get("sha256"), dict):
        raise CorruptState(f"{directory / DONE} is not what was written")
    digest = digest or _sha256
    for name, expected in done["sha256"].items():
        path = directory / name
        if (not names or name in names) and (not path.exists() or digest(path) != expected):
            raise CorruptState(f"{path} is not what was written")


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_known: dict[str, tuple[tuple[int, ...], str]] = {}  # path: what its file was when it was hashed, the digest


def _known_sha256(path: Path) -> str:
    """`_sha256`, of a file that is still the one that was hashed without reading it."""
    before = os.stat(path)
    identity = (before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    known, digest = _known.get(str(path), ((), ""))
    if known == identity:
        return digest
    digest = _sha256(path)
    if time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED_S:
        _known[str(path)] = (identity, digest)
    return digest
