"""How exported items are read and scored; lm-evaluation-harness loads the copy beside the task files."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any


def load(file: str, **metadata: Any) -> dict[str, Any]:
    """The items of a .jsonl file in this file's folder, as the split `test`."""
    from datasets import Dataset

    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def score(item: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """(level, right) of one item: the likeliest of its choices, which are all of the same length."""
    likelihoods = [likelihood for likelihood, _ in results]
    right = (item["level"], likelihoods.index(max(likelihoods)) == item["answer"])
    # The harness knows no error of a mean over levels; what is called acc_stderr here takes its place there.
    return {"acc": right, "acc_stderr": right}


def mean_over_levels(scores: list[tuple[int, bool]]) -> float:
    """Accuracy in which levels weigh the same, whatever number of items each has."""
    levels = _by_level(scores)
    return sum(sum(right) / len(right) for right in levels) / len(levels)


def error_over_levels(scores: list[tuple[int, bool]]) -> float:
    """The binomial standard error of `mean_over_levels`."""
    levels = _by_level(scores)
    acc = [sum(right) / len(right) for right in levels]
    variance = sum(p * (1 - p) / len(right) for p, right in zip(acc, levels, strict=True))
    return math.sqrt(variance) / len(levels)


def _by_level(scores: list[tuple[int, bool]]) -> list[list[bool]]:
    levels = defaultdict(list)
    for level, right in scores:
        levels[level].append(right)
    return list(levels.values())
