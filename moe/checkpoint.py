"""States on disk: safetensors and JSON, written beside and renamed, never half there."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes

from moe.files import atomic_directory, read_json, write_bytes, write_json
from moe.growth import Moments, Tensors

DONE = "DONE.json"


class CorruptState(Exception):
    """A stored state whose bytes are not those that were written."""


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """Weights, AdamW moments and the step, counted from the trajectory's own start, they belong to."""

    step: int
    weights: Tensors
    moments: Moments


def save_state(directory: Path, state: State, **record: Any) -> None:
    """Writes `directory` whole or not at all; `record` (plain JSON) goes into its DONE.json."""
    with atomic_directory(directory) as draft:
        save_file(_plain(state.weights), draft / "model.safetensors")
        moments = {f"first.{name}": tensor for name, tensor in state.moments.first.items()}
        moments |= {f"second.{name}": tensor for name, tensor in state.moments.second.items()}
        save_file(_plain(moments), draft / "optimizer.safetensors")
        write_json(draft / "state.json", {"step": state.step, "optimizer_step": state.moments.step})
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
    """Reads a state after checking every digest; raises CorruptState naming the file that differs."""
    done = read_json(directory / DONE)
    for name, expected in done["sha256"].items():
        path = directory / name
        if not path.exists() or _sha256(path) != expected:
            raise CorruptState(f"{path} is not what was written")
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


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
