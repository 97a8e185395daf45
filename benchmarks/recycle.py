"""Time to grow a checkpoint beside the time of `cp` for the same bytes, on one disk, in one run.

    python benchmarks/recycle.py [--folder /tmp] [--gb 3.4] [--rounds 3] [--memory-limit 320MiB] [--threads N]

A bf16 checkpoint of random weights in the layout of Qwen3-MoE, ten times the memory limit, is made first and
removed at the end, as is all that grows of it: five times its size has to be free. 17 GB and about four
minutes as it stands. Medians over interleaved rounds. Both end with their bytes on the disk: growing calls
fsync, `cp` is followed by `sync`. Memory is the most that the growing process ever held, by the kernel's own
account (ru_maxrss).
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import ceil, prod
from pathlib import Path

import numpy as np  # and not torch: a child's ru_maxrss begins at what this process holds
from section import Section, table

SHARD_BYTES = 1 << 30
ROOT = Path(__file__).parents[1]
SHAPE = {"model_type": "qwen3_moe", "vocab_size": 16_384, "hidden_size": 2048, "num_experts": 32}
SHAPE |= {"num_experts_per_tok": 4, "moe_intermediate_size": 768, "norm_topk_prob": True}
GROWTHS = {
    "width ×2, α = 0.01": ["growth=width", "growth.noise_scale=0.01"],
    "depth ×2": ["growth=depth"],
}


def shapes(num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, size = SHAPE["hidden_size"], SHAPE["moe_intermediate_size"]
    yield "model.embed_tokens.weight", (SHAPE["vocab_size"], hidden)
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        for part, rows in (("q", hidden), ("k", hidden // 4), ("v", hidden // 4), ("o", hidden)):
            yield f"{prefix}self_attn.{part}_proj.weight", (rows, hidden)
        yield f"{prefix}mlp.gate.weight", (SHAPE["num_experts"], hidden)
        for expert in range(SHAPE["num_experts"]):
            for part in ("gate", "up"):
                yield f"{prefix}mlp.experts.{expert}.{part}_proj.weight", (size, hidden)
            yield f"{prefix}mlp.experts.{expert}.down_proj.weight", (hidden, size)
    yield "lm_head.weight", (SHAPE["vocab_size"], hidden)


def make(folder: Path, num_bytes: float) -> int:
    """Writes a checkpoint of at least `num_bytes`, one matrix at a time; returns its size."""
    of = {layers: sum(2 * prod(shape) for _, shape in shapes(layers)) for layers in (0, 1)}
    num_layers = ceil((num_bytes - of[0]) / (of[1] - of[0]))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SHAPE | {"num_hidden_layers": num_layers}))
    rng = np.random.default_rng(0)
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, shape in shapes(num_layers):
        if sum(2 * prod(shape) for _, shape in files[-1]) > SHARD_BYTES:
            files.append([])
        files[-1].append((name, shape))
    index = {}
    for nth, tensors in enumerate(files, start=1):
        path = folder / f"model-{nth:05d}-of-{len(files):05d}.safetensors"
        index |= {name: path.name for name, _ in tensors}
        write(path, tensors, rng)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return of[0] + num_layers * (of[1] - of[0])


def write(path: Path, tensors: list[tuple[str, tuple[int, ...]]], rng: np.random.Generator) -> None:
    header, place = {}, 0
    for name, shape in tensors:
        end = place + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors:
            for rows in np.array_split(np.arange(shape[0]), ceil(prod(shape) / 2**21)):
                numbers = rng.standard_normal((len(rows), *shape[1:]), dtype=np.float32) * np.float32(0.02)
                file.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())  # bf16, cut off
        file.flush()
        os.fsync(file.fileno())


def run(words: list[str], folder: Path) -> tuple[float, float, int, str]:
    """Seconds, those of processors, most bytes of memory and the output of a process."""
    with (folder / "said").open("w+") as said:
        begin = time.perf_counter()
        child = subprocess.Popen(words, stdout=said, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if child.returncode:
        sys.exit(f"{' '.join(words)} ended with {child.returncode}: {text}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10, text


def measure(source: Path, folder: Path, growth: list[str], options: list[str]) -> dict[str, float]:
    """One growth of `source` and one `cp` of what grew; both are removed."""
    target, copy = folder / "grown", folder / "copy"
    words = [sys.executable, "recycle.py", f"source={source}", f"target={target}", *growth, *options]
    command, cpu, peak, said = run(words, folder)
    told = re.search(r"in ([\d.]+) s \(.*at most (\d+) MiB", said)
    assert told, said
    num_bytes = sum(path.stat().st_size for path in target.iterdir())
    copying, cp_cpu, _, _ = run(["bash", "-c", f"cp -r '{target}' '{copy}' && sync '{copy}'/*"], folder)
    shutil.rmtree(target)
    shutil.rmtree(copy)
    found = {"bytes": num_bytes, "command": command, "grow": float(told[1]), "cp": copying, "peak": peak}
    return found | {"told": float(told[2]) * 2**20, "cpu": cpu, "cp_cpu": cp_cpu}


def compared(gb: float, rounds: int, memory_limit: str, where: Path | None, threads: str) -> Section:
    """Every growth in turn, `rounds` times, of a source of `gb` GB below the folder `where`."""
    needed, free = 5e9 * gb, shutil.disk_usage(where or tempfile.gettempdir()).free
    if free < needed:
        raise ValueError(
            f"{needed / 1e9:.0f} GB must be free, and {free / 1e9:.0f} GB are; give --folder or less --gb"
        )
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        size = make(folder / "source", 1e9 * gb)
        options = [f"memory_limit={memory_limit}", f"threads={threads}", "verify=false"]
        found: dict[str, list[dict[str, float]]] = {growth: [] for growth in GROWTHS}
        for _ in range(rounds):
            for growth, words in GROWTHS.items():
                found[growth].append(measure(folder / "source", folder, words, options))
                print(growth, {k: round(v, 1) for k, v in found[growth][-1].items()}, file=sys.stderr)
    words = f"A bf16 source of {size / 1e9:.2f} GB, `memory_limit={memory_limit}`, `cp -r` and `sync` beside "
    words += f"each growth; medians of {rounds} interleaved rounds.\n\n"
    return Section("Growing a checkpoint on disk", words + _text(found))


def section(gb: float = 1.0, rounds: int = 2) -> Section:
    return compared(gb, rounds, "320MiB", None, "null")


def _text(rounds: dict[str, list[dict[str, float]]]) -> str:
    heads = ["", "GB", "grow, MB/s", "cp, MB/s", "grow ÷ cp", "whole command ÷ cp", "processor s", "of cp"]
    rows = []
    for growth, found in rounds.items():
        t = {key: statistics.median(one[key] for one in found) for key in found[0]}
        ratio = {key: statistics.median(one["cp"] / one[key] for one in found) for key in ("grow", "command")}
        peak, told = (max(one[key] for one in found) / 2**20 for key in ("peak", "told"))
        speed = [f"{t['bytes'] / 1e6 / t[key]:.0f}" for key in ("grow", "cp")]
        values = [f"{t['bytes'] / 1e9:.2f}", *speed, f"{ratio['grow']:.2f}", f"{ratio['command']:.2f}"]
        values += [f"{t['cpu']:.1f}", f"{t['cp_cpu']:.1f}", f"{peak:.0f} ({told:.0f})"]
        rows.append([growth, *values])
    return table([*heads, "most MiB (as told)"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=3.4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-limit", default="320MiB")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", default="null")
    args = parser.parse_args()
    try:
        print(compared(args.gb, args.rounds, args.memory_limit, args.folder, args.threads).text)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
