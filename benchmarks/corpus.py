"""What preparing a corpus costs: python benchmarks/corpus.py [MB]

Text: the standard library's own sources and texts, again and again until there are 100 MB; each time round
other words (one in four of those above four letters) have their letters shifted, so that words that were seen
do not answer for all. Each tokenizer is measured in a process of its own, on one core; its peak RSS is of
the whole process, Python and NumPy included.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "bytes": {"tokenizer": "bytes", "vocab_size": 257},
    "bpe": {"tokenizer": "bpe", "vocab_size": 8192},
}
CASES["file"] = {"tokenizer": "{file}", "vocab_size": 8192}  # the same BPE, given as a tokenizer.json
CASES["other"] = {"tokenizer": "{other}", "vocab_size": 8192}  # the same merges after another cut into words
BATCH_SIZE, SEQ_LEN, BATCHES = 16, 512, 200


def main(megabytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        written = write_text(folder / "text", megabytes * 10**6)
        print(f"{written / 1e6:.0f} MB of text in {time.perf_counter() - begin:.0f} s")
        for case in CASES:
            command = [sys.executable, __file__, case, str(folder)]
            subprocess.run(command, check=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})


def write_text(folder: Path, size: int) -> int:
    """Writes files of about `size` bytes in all; says how many there are."""
    folder.mkdir()
    library, written, turn = Path(os.__file__).parent, 0, 0
    sources = [p for p in sorted(library.rglob("*")) if p.suffix in (".py", ".txt") and p.is_file()]
    while written < size:
        for number, source in enumerate(p for p in sources if "site-packages" not in p.parts):
            text = varied(source.read_text(errors="replace"), turn).encode()
            (folder / f"{turn:02d}-{number:05d}.txt").write_bytes(text)
            written += len(text)
            if written >= size:
                break
        turn += 1
    return written


def varied(text: str, turn: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    shifted = str.maketrans(letters, letters[turn:] + letters[:turn])

    def replace(found: re.Match) -> str:
        word = found[0]
        return word.translate(shifted) if (sum(map(ord, word)) + turn) % 4 == 0 else word

    return re.sub(r"[A-Za-z]{5,}", replace, text) if turn else text


def measure(case: str, folder: Path) -> None:
    from moe.data import data_identity, open_data, parse_data, prepare_data

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    files = {"file": folder / "trained.json", "other": folder / "other.json"}
    section = {**CASES[case], "tokenizer": CASES[case]["tokenizer"].format(**files)}
    section |= {
        "source": "text",
        "path": str(folder / "text"),
        "text_field": "text",
        "held_out_fraction": 0.05,
    }
    config = parse_data({**section, "patterns": ["*.txt"], "skip": []})
    size = sum(path.stat().st_size for path in (folder / "text").iterdir())
    begin = time.perf_counter()
    identity = data_identity(config)
    planned = time.perf_counter()
    stages: dict[str, float] = {}

    def observe(stage: str, done: int, total: int | None) -> None:
        stages.setdefault(stage, time.perf_counter())

    prepare_data(config, identity, str(folder / "corpora"), observe)
    ended = time.perf_counter()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    names, times = list(stages), [*stages.values(), ended]
    parts = ", ".join(f"{name} {times[i + 1] - times[i]:.1f} s" for i, name in enumerate(names))
    if case == "bpe":
        keep_tokenizers(folder, files)
    data = open_data(identity, str(folder / "corpora"))
    print(
        f"{case}: {ended - begin:.1f} s, {size / 1e6 / (ended - begin):.1f} MB/s, peak RSS {peak_mb:.0f} MiB "
        f"(identity {planned - begin:.1f} s, {parts}); {data.unique_tokens / 1e6:.1f}M training tokens"
    )
    begin = time.perf_counter()
    for step in range(BATCHES):
        data.batch(0, step, BATCH_SIZE, SEQ_LEN)
    rate = BATCHES * BATCH_SIZE * SEQ_LEN / (time.perf_counter() - begin)
    print(f"{case}: batch of {BATCH_SIZE} x {SEQ_LEN}: {rate / 1e6:.1f}M tokens/s")


def keep_tokenizers(folder: Path, files: dict[str, Path]) -> None:
    """Copies the trained BPE, as it is and with digits cut one by one, which is not GPT-2's way."""
    (trained,) = folder.glob("corpora/*/tokenizer.json")
    plain = json.loads(trained.read_text())
    files["file"].write_text(json.dumps(plain))
    digits = {"type": "Digits", "individual_digits": True}
    plain["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, plain["pre_tokenizer"]]}
    files["other"].write_text(json.dumps(plain))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 100)
