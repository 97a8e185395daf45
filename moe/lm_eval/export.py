"""Our own items as tasks of lm-evaluation-harness: a folder that can be moved, without this package."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moe.data import Data, Items, Questions
from moe.evaluate import VERSION
from moe.files import write_bytes
from moe.plain import check

GROUP = "regrow"
_EXPORTED = re.compile(rf"{GROUP}\.yaml|{GROUP}_\w+\.(yaml|jsonl|py)")
_SCORING = Path(__file__).with_name("regrow_items.py")


class _Function(str):
    """`module.function`, written as the harness reads it."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of one family's items."""

    task: str
    num_items: int
    num_left_out: int  # their text does not come back as the tokens that were asked
    num_long: int  # with their right choice longer than a sequence of training


def export(data: Data, questions: Questions, folder: Path, *, seq_len: int) -> list[Exported]:
    """Writes regrow.yaml and, per family, regrow_FAMILY.yaml and .jsonl, with the scoring beside them.

    ValueError if the folder holds other things than an export, or if no item of a family can be exported.
    """
    families, done = data.items(questions), []
    _clear(folder)
    for items in families:
        task = f"{GROUP}_{items.family}"
        lines = [line for i in _spread(items.level) if (line := _line(data, items, i)) is not None]
        check(
            bool(lines),
            f"family={items.family}: none of its {len(items)} items comes back from text as the same tokens; "
            "this tokenizer's items cannot be exported",
        )
        write_bytes(folder / f"{task}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        _write_yaml(folder / f"{task}.yaml", _task(task))
        num_long = int((items.context_length + items.choices.shape[2] > seq_len + 1).sum())
        done.append(Exported(task, len(lines), len(items) - len(lines), num_long))
    _write_yaml(folder / f"{GROUP}.yaml", _group([family.task for family in done]))
    write_bytes(folder / _SCORING.name, _SCORING.read_bytes())
    return done


def _clear(folder: Path) -> None:
    """Makes the folder, or empties it of an earlier export; ValueError if it holds anything else."""
    check(not folder.exists() or folder.is_dir(), f"export={folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = [path for path in folder.iterdir() if path.name != "__pycache__"]
    others = [path.name for path in files if not _EXPORTED.fullmatch(path.name)]
    other = ", ".join(others[:1])
    check(not others, f"export={folder} holds {other}, which is no export; give an empty folder")
    for path in files:
        path.unlink()


def _spread(level: np.ndarray) -> np.ndarray:
    """The order of items in which the first few are of all levels, as --limit takes the first few."""
    rank = np.zeros(len(level), np.int64)
    for here in (level == value for value in np.unique(level)):
        rank[here] = np.arange(here.sum())
    return np.lexsort((level, rank))


def _line(data: Data, items: Items, i: int) -> dict[str, Any] | None:
    """An item as text; None if the harness would not read the tokens of the context and of each choice."""
    context = items.context[i, : items.context_length[i]].tolist()
    text = data.decode(np.array(context))
    wholes = [[*context, *choice] for choice in items.choices[i].tolist()]
    texts = [data.decode(np.array(whole)) for whole in wholes]
    # The harness encodes the context without its last white space, which it counts to the choice.
    bare = data.encode(text.rstrip())
    survives = (
        len(bare) > 0
        and context[: len(bare)] == bare
        and data.encode(text) == context
        and all(whole.startswith(text) for whole in texts)
        and all(data.encode(text) == whole for text, whole in zip(texts, wholes, strict=True))
    )
    if not survives:
        return None
    return {
        "item": int(i),
        "context": text,
        "choices": [whole[len(text) :] for whole in texts],
        "answer": int(items.answer[i]),
        "level": int(items.level[i]),
    }


def _task(task: str) -> dict[str, Any]:
    module = _SCORING.stem
    metrics = {"acc": "mean_over_levels", "acc_stderr": "error_over_levels"}
    return {
        "task": task,
        "custom_dataset": _Function(f"{module}.load"),
        "dataset_kwargs": {"file": f"{task}.jsonl"},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",  # a choice begins with its own space
        "num_fewshot": 0,  # the harness lets nobody overwrite 0: these are the items of moe.evaluate
        "process_results": _Function(f"{module}.score"),
        "metric_list": [
            {
                "metric": metric,
                "aggregation": _Function(f"{module}.{function}"),
                "higher_is_better": metric == "acc",
            }
            for metric, function in metrics.items()
        ],
        "metadata": {"version": VERSION},
    }


def _group(tasks: list[str]) -> dict[str, Any]:
    """Families weigh the same, as in moe.evaluate."""
    return {
        "group": GROUP,
        "task": tasks,
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}],
        "metadata": {"version": VERSION},
    }


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    write_bytes(path, yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode())
