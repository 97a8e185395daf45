"""Running the harness's tasks on an adapter; what is wrong with a request is a ValueError of one line."""

import difflib
import fnmatch
import logging
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table, setup_logging

from moe.lm_eval.adapter import Adapter
from moe.plain import check

_NUM_CLOSE = 5


def run_tasks(
    adapter: Adapter,
    names: list[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """The harness's own results of tasks, groups, tags or patterns of names.

    ValueError if a name is unknown, a data set cannot be had, or a text has no tokens.
    """
    _quieten()
    manager, known = _manager(names, include_path)
    tasks = _load(manager, known)
    results = simple_evaluate(
        model=adapter,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        log_samples=log_samples,
        device=str(adapter.device),
    )
    assert results is not None, "one process has rank 0"
    return dict(results)


def tables(results: dict[str, Any]) -> str:
    """The harness's own tables: of tasks, and of groups if there are any."""
    columns = ["results", *(["groups"] if results.get("groups") else [])]
    return "\n".join(make_table(results, column) for column in columns)


def _quieten() -> None:
    """Leaves of the harness's log its warnings, but for one that every task with a loader gives."""
    setup_logging(logging.WARNING)
    logging.getLogger("lm_eval.api.task").addFilter(_is_no_hint)


def _is_no_hint(record: logging.LogRecord) -> bool:
    return "Custom kwargs can be passed" not in str(record.msg)


def _manager(names: list[str], include_path: Path | None) -> tuple[TaskManager, list[str]]:
    """Where tasks are found, and the names that patterns stand for.

    The harness's own 14 thousand tasks take seconds to list: only if `include_path` is not enough.
    """
    check(
        include_path is None or include_path.is_dir(),
        f"include_path={include_path} is not a folder; give one with task files",
    )
    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(fnmatch.filter(manager.all_tasks, name) for name in names):
            return manager, manager.match_tasks(names)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in names:
        if not fnmatch.filter(manager.all_tasks, name):
            close = difflib.get_close_matches(name, manager.all_tasks, _NUM_CLOSE)
            hint = f"close ones are {', '.join(close)}" if close else "none is close"
            where = "the harness" if include_path is None else f"the harness and {include_path}"
            raise ValueError(f"tasks={name} is not a task of {where}; {hint} (--include_path adds a folder)")
    return manager, manager.match_tasks(names)


def _load(manager: TaskManager, names: list[str]) -> list[Any]:
    """Groups and tasks that are in none, with their data sets."""
    try:
        loaded = manager.load(names)
    except ImportError as error:
        raise ValueError(f"tasks={','.join(names)} need another package: {error}; install it") from None
    except OSError as error:
        raise ValueError(
            f"tasks={','.join(names)}: a data set is not in the cache and cannot be fetched "
            f"({str(error).splitlines()[0]}); run the command once where the hub can be reached"
        ) from None
    groups = loaded.get("groups", {})
    inside = {child for group in groups.values() for child in group.child_names}
    return [value for name, value in {**loaded["tasks"], **groups}.items() if name not in inside]
