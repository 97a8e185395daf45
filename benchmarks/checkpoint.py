"""Storing and loading a state of ours beside `cp` of the same files: bytes a second, in one run.

    python benchmarks/checkpoint.py [--model small] [--rounds 5] [--folder /tmp]

Both writes end with their bytes on the disk. Loading hashes every file; again in the same process, as the
branches of one state do, it does not. Every tensor that was loaded is read.
"""

import argparse
import dataclasses
import os
import shutil
import tempfile
import time
from pathlib import Path

from configuration import load
from section import Section, table
from timing import Step, interleaved

from moe.checkpoint import State, load_state, save_state
from moe.growth import Moments
from moe.process import prepare_process
from moe.train import initial_state

SETTLED_S = 1.5  # a state as old as this is known again


def section(model: str = "small", rounds: int = 5, where: Path | None = None) -> Section:
    prepare_process(1)
    state = initial_state(load(model)[0], 0)
    moments = [{name: tensor.clone() for name, tensor in state.weights.items()} for _ in range(2)]
    state = dataclasses.replace(state, moments=Moments(step=1, first=moments[0], second=moments[1]))
    with tempfile.TemporaryDirectory(dir=where) as folder:
        stored = Path(folder) / "state"
        save_state(stored, state)
        num_bytes = sum(path.stat().st_size for path in stored.iterdir())
        time.sleep(SETTLED_S)
        seconds = interleaved(_contenders(state, stored, Path(folder)), rounds, warm_up=1)
    rows = [
        [name, f"{1e3 * each:.0f}", f"{num_bytes / 1e6 / each:.0f}", f"{seconds['cp, fsync'] / each:.2f}"]
        for name, each in seconds.items()
    ]
    words = f"A state of `{model}`, {num_bytes / 1e6:.0f} MB; medians of {rounds} interleaved rounds.\n\n"
    return Section("Checkpoints", words + table(["", "ms", "MB/s", "speed of cp"], rows))


def _contenders(state: State, stored: Path, folder: Path) -> dict[str, Step]:
    touched = folder / "touched"
    shutil.copytree(stored, touched)

    def save() -> None:
        save_state(folder / "saved", state)

    def copy() -> None:
        shutil.rmtree(folder / "copied", ignore_errors=True)
        os.system(f"cp -r '{stored}' '{folder}/copied' && sync '{folder}/copied'/*")

    def read(directory: Path) -> None:
        loaded = load_state(directory)
        for tensors in (loaded.weights, loaded.moments.first, loaded.moments.second):
            for tensor in tensors.values():
                tensor.sum()

    def first() -> None:
        for path in touched.iterdir():
            path.touch()  # what was touched is hashed
        read(touched)

    return {"save": save, "cp, fsync": copy, "load": first, "load again": lambda: read(stored)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    print(section(args.model, args.rounds, args.folder).text)


if __name__ == "__main__":
    main()
