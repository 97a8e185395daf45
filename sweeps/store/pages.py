"""What the store's answers look like: tables as wide as the console, plain where it is no terminal."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sweeps.store.garbage import Garbage
from sweeps.store.inventory import STATUSES

WIDTH = 100  # columns where there is no terminal
MAX_STEPS = 4  # of a trajectory's steps that are written out
MAX_MISSING, MAX_NEW = 40, 20  # lines and trajectories of an explanation


class Pages:
    """Prints one answer each to a console."""

    def __init__(self, console: Console | None = None):
        found = Console(highlight=False)
        self.console = console or (found if found.is_terminal else Console(highlight=False, width=WIDTH))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Columns marked > are numbers, those marked ~ are folded where they are too long; none is cut."""
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        for name in columns:
            justify = "right" if name.startswith(">") else "left"
            table.add_column(name.lstrip(">~"), justify=justify, overflow="fold", no_wrap=name[0] != "~")
        for row in rows:
            table.add_row(*("–" if item is None else _escaped(item) for item in row))
        self.console.print(table)

    # -- ls ----------------------------------------------------------------------------------------------

    def studies(self, studies: list[dict[str, Any]], trajectories: list[dict[str, Any]]) -> None:
        columns = ["study", ">cells", *(f">{status}" for status in STATUSES), ">FLOPs spent", "last run"]
        names = ["study", "cells", *STATUSES]
        self.table(
            columns,
            ([*(row[n] for n in names), f"{row['spent_flops']:.3g}", row["last_run"]] for row in studies),
        )
        self.say("")
        self.table(
            ["kind", "~trajectory", "id", "~steps stored", ">size", "~studies"],
            (
                [
                    row["kind"],
                    row["slug"],
                    row["trajectory_id"],
                    _steps(row["steps"]),
                    size(row["bytes"]),
                    ", ".join(row["studies"]) or None,
                ]
                for row in trajectories
            ),
        )
        total = sum(row["bytes"] for row in trajectories)
        self.say(f"{_count(len(trajectories), 'trajectory', 'trajectories')}, {size(total)}")

    def cells(self, cells: list[dict[str, Any]]) -> None:
        columns = ["cell", "kind", "status", ">growth.step", "~growth", ">seed", ">total FLOPs", ">final acc"]
        self.table(
            columns,
            (
                [
                    *(c[n] for n in ("cell_id", "kind", "status", "growth_step", "growth", "seed")),
                    f"{c['total_flops']:.3g}",
                    _acc(c["final_acc"]),
                ]
                for c in cells
            ),
        )

    # -- show --------------------------------------------------------------------------------------------

    def trajectory(self, found: dict[str, Any]) -> None:
        at = "" if found["step"] is None else f"@{found['step']}"
        self.say(f"{found['kind']} {found['trajectory_id']}{at}, made {found['created']}")
        self.say(f"{found['folder']}\n")
        self._identity(found["identity"])
        given = found["ledger"][0]["operator"] == "source"
        self.say(f"\nFrom {'a checkpoint' if given else 'random init'}")
        names = ("operator", "kind", "trajectory_id", "steps", "tokens")
        self.table(
            ["~begins with", "kind", "trajectory", ">steps", ">tokens", ">FLOPs", ">cumulative FLOPs"],
            (
                [*(part[n] for n in names), f"{part['flops']:.4g}", f"{part['cumulative_flops']:.4g}"]
                for part in found["ledger"]
            ),
        )
        self._stored(found)
        counts = (f"{name} ({_count(n, 'cell')})" for name, n in found["studies"].items())
        self.say(f"\nNeeded by {', '.join(counts) or 'no study'}")

    def _identity(self, identity: dict[str, Any]) -> None:
        table = Table.grid(padding=(0, 2))
        for name, value in identity.items():
            if isinstance(value, dict):
                value = " ".join(f"{key}={_plain(item)}" for key, item in value.items())
            table.add_row(name, _escaped(_plain(value)))
        self.console.print(table)

    def _stored(self, found: dict[str, Any]) -> None:
        self.say("\nStates")
        self.table(
            [">step", ">size", "kept", "commit"],
            (
                [s["step"], size(s["bytes"]), "until the next" if s["transient"] else "yes", s["git_commit"]]
                for s in found["states"]
            ),
        )
        self.say("\nEvaluations")
        self.table(
            [">step", "suite", "eval_id", ">accuracy", ">± se", ">items", ">loss"],
            (
                [
                    e["step"],
                    e["suite"],
                    e["eval_id"],
                    _acc(e["acc"]),
                    _acc(e["acc_se"]),
                    e["n"],
                    _acc(e["loss"]),
                ]
                for e in found["evaluations"]
            ),
        )
        if found["diverged"] is not None:
            self.say(f"\nDiverged at step {found['diverged']}")
        self.say("\nAttempts")
        self.table(
            ["attempt", ">tasks", ">steps", ">seconds", "~error"],
            (
                [a["attempt"], a["tasks"], a["steps"], f"{a['wall_s']:.1f}", a["error"]]
                for a in found["attempts"]
            ),
        )

    # -- why ---------------------------------------------------------------------------------------------

    def explanation(self, found: dict[str, Any]) -> None:
        self.table(
            ["cell", "kind", ">growth.step", "~growth", ">seed", "asked for as", "status"],
            (
                [
                    *(c[n] for n in ("cell_id", "kind", "growth_step", "growth", "seed")),
                    "cell" if c["requested"] else "control",
                    c["status"],
                ]
                for c in found["cells"]
            ),
        )
        missing = [(cell, lack) for cell in found["cells"] for lack in cell["missing"]]
        if not missing:
            self.say("Everything is cached: nothing would be trained or evaluated.")
            return
        self.say("\nMissing")
        self.table(
            ["cell", "role", "state", "~lacks", "~suite", "~evaluated so far by"],
            (
                [
                    *(cell["cell_id"], lack["role"], lack["address"], lack["lacks"]),
                    f"{lack['suite']} {lack['eval_id']}",
                    "; ".join(lack["evaluated_by"]) or None,
                ]
                for cell, lack in missing[:MAX_MISSING]
            ),
        )
        self._more(len(missing) - MAX_MISSING)
        for new in found["new"][:MAX_NEW]:
            self._new(new)
        self._more(len(found["new"]) - MAX_NEW)

    def _more(self, number: int) -> None:
        if number > 0:
            self.say(f"… and {number} more")

    def _new(self, new: dict[str, Any]) -> None:
        self.say(f"\nNot stored: {new['kind']} {new['slug']} {new['trajectory_id']}")
        if new["parent_is_new"]:
            self.say(f"It starts from {new['parent']}, which is not stored either.")
        if new["nearest"] is None:
            self.say(f"No {new['kind']} is stored that it could be compared with.")
        elif not new["diff"]:
            self.say(f"It differs from {new['nearest']} in what it starts from alone.")
        else:
            self.say(f"The nearest stored is {new['nearest']}:")
            self.table(
                ["  field", "~wanted", "~stored"],
                ([f"  {row['field']}", row["wanted"], row["stored"]] for row in new["diff"]),
            )

    # -- gc ----------------------------------------------------------------------------------------------

    def garbage(self, garbage: list[Garbage], root: Path) -> None:
        if not garbage:
            self.say("Nothing to remove: all that is stored is needed.")
            return
        places: dict[tuple[str, Path], list[Garbage]] = {}
        for item in garbage:
            is_part = item.path.parent.name == "states"
            place = item.path.parents[1] if is_part else item.path
            places.setdefault((item.reason, place), []).append(item)
        self.table(
            ["~what", ">pieces", ">size", "~where"],
            (
                [reason, len(items), size(sum(item.bytes for item in items)), place.relative_to(root)]
                for (reason, place), items in sorted(places.items())
            ),
        )


def size(count: int) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _steps(steps: list[int]) -> str | None:
    """Steps in a few words: "0 4 8", or the first three and the last of many, and how many they are."""
    if len(steps) > MAX_STEPS:
        return f"{' '.join(map(str, steps[: MAX_STEPS - 1]))} … {steps[-1]} ({len(steps)})"
    return " ".join(map(str, steps)) or None


def _acc(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)


def _escaped(item: Any) -> str:
    return str(item).replace("[", r"\[")
