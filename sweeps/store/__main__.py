"""`python -m sweeps.store ls|show|why|verify|gc`: what a person asks a store. See docs/store.md.

Exit codes: 0, 1 if verify finds something wrong, 2 if the question is refused (one line).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sweeps.store import Store
from sweeps.store.garbage import collect, garbage_of
from sweeps.store.inventory import list_cells, list_studies, list_trajectories, needs_of
from sweeps.store.lineage import describe
from sweeps.store.pages import Pages, size
from sweeps.store.verification import verify


def main(arguments: list[str] | None = None) -> int:
    """Answers one question on standard output and gives the exit code."""
    given = _parser().parse_args(arguments)
    try:
        return given.answer(given)
    except json.JSONDecodeError as error:
        message = f"a file of the store does not parse ({error}); python -m sweeps.store verify names it"
    except ValueError as error:
        message = str(error)
    print(f"refused: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.store", description="What is in a store, and why."
    )
    commands = parser.add_subparsers(required=True, metavar="ls|show|why|verify|gc")
    in_store = argparse.ArgumentParser(add_help=False)
    in_store.add_argument("--store", default="store", metavar="DIR", help="the store's folder (store)")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON instead of tables")

    ls = commands.add_parser("ls", parents=[in_store, as_json], help="studies and trajectories")
    ls.add_argument("study", nargs="?", help="list the cells of this study")
    ls.set_defaults(answer=_ls)
    show = commands.add_parser("show", parents=[in_store, as_json], help="one trajectory, state or cell")
    show.add_argument("id", metavar="ID", help="an id, ID@STEP or a cell's id; the first digits are enough")
    show.set_defaults(answer=_show)
    why = commands.add_parser("why", help="why cells are not cached; arguments as for sweep.py")
    why.add_argument("overrides", nargs=argparse.REMAINDER, metavar="OVERRIDE")
    why.set_defaults(answer=_why)
    check = commands.add_parser("verify", parents=[in_store], help="check every digest, line and id")
    check.set_defaults(answer=_verify)
    gc = commands.add_parser("gc", parents=[in_store], help="what no study needs")
    gc.add_argument("--delete", action="store_true", help="remove it; without this it is only listed")
    gc.add_argument("--keep-between", action="store_true", help="keep all states of needed trunks")
    gc.set_defaults(answer=_gc)
    return parser


def _opened(given: argparse.Namespace) -> Store:
    root = Path(given.store)
    if not (root / "trajectories").is_dir():
        raise ValueError(f"--store {root} is no store: it has no folder trajectories; give a store's folder")
    return Store(root)


def _ls(given: argparse.Namespace) -> int:
    store = _opened(given)
    needs = needs_of(store)
    if given.study is not None:
        cells = list_cells(store, needs, given.study)
        _print_json(cells) if given.json else Pages().cells(cells)
        return 0
    studies, trajectories = list_studies(store, needs), list_trajectories(store, needs)
    if given.json:
        _print_json({"studies": studies, "trajectories": trajectories})
    else:
        Pages().studies(studies, trajectories)
    return 0


def _show(given: argparse.Namespace) -> int:
    store = _opened(given)
    found = describe(store, needs_of(store), given.id)
    _print_json(found) if given.json else Pages().trajectory(found)
    return 0


def _why(given: argparse.Namespace) -> int:
    from sweeps.store.explanation import explain
    from sweeps.store.request import mappings_of
    from sweeps.study import plan_study

    _, store, plan = plan_study(mappings_of(given.overrides))
    Pages().explanation(explain(store, plan))
    return 0


def _verify(given: argparse.Namespace) -> int:
    store = _opened(given)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading")
        progress.disable = not progress.console.is_terminal

        def observe(name: str, done: int, total: int) -> None:
            progress.update(bar, description=name, completed=done, total=total)

        problems = verify(store, observe)
    pages = Pages()
    for path, text in problems:
        pages.say(f"{path}: {text}")
    pages.say(f"{len(problems)} wrong" if problems else "all that is stored is what was written")
    return 1 if problems else 0


def _gc(given: argparse.Namespace) -> int:
    store, pages = _opened(given), Pages()
    if not given.delete:
        garbage = garbage_of(store, needs_of(store), keep_between=given.keep_between)
        pages.garbage(garbage, store.root)
        if garbage:
            total = size(sum(item.bytes for item in garbage))
            pages.say(f"{total} would be removed; nothing was. Add --delete to remove it.")
        return 0
    removed, held = collect(store, keep_between=given.keep_between)
    pages.garbage(removed, store.root)
    if removed:
        pages.say(f"{size(sum(item.bytes for item in removed))} removed")
    for item in held:
        pages.say(f"kept {item.path.relative_to(store.root)}: another process holds its lock")
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    sys.exit(main())
