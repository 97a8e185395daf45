"""Two studies, or two arms, side by side: paired by trunk, and by item where both were asked the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.findings import finished
from analysis.intervals import equivalence
from analysis.lines import Measures
from analysis.paired import paired_by_item, paired_by_trunk
from analysis.table import cells_table, stored_rows
from analysis.verdict import shown, verdict_of
from moe.plain import check
from sweeps.store import Store

_MATCH = ("seed", "growth_step", "sunk_f_c")


def write_comparison(store: Store, study: str, against: str, directory: str | Path, *, delta: float) -> str:
    """Writes comparison.json into `directory` and returns it in words; if refused, nothing is written.

    `study` and `against` are names of studies, or STUDY:ARM for one arm of a study.
    """
    found = compare(store, study, against, delta=delta)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "comparison.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return text(found)


def compare(store: Store, first: str, second: str, *, delta: float) -> dict[str, Any]:
    """Final accuracy of `first` less that of `second` where trunk and growth step are the same.

    `by_trunk` has the t interval, its p-value and the equivalence test within ±`delta` (two one-sided t tests
    at 5 %); `by_item` is null where the two were not asked the same questions. ValueError if no cell of one
    has a partner in the other.
    """
    sides = [_side(store, name, place) for place, name in enumerate((first, second))]
    cells = pd.concat(sides, ignore_index=True)
    match = [name for name in _MATCH if cells[name].notna().all()]
    by_trunk = paired_by_trunk(
        cells, ("0", "1"), "final_acc", arm="side", trunk="pair", match=match, se="final_acc_se"
    )
    if not by_trunk["n_pairs"]:
        raise ValueError(
            f"study={first} and against={second} have no finished cells of one seed and growth step; "
            "run both on the same trunks"
        )
    values = list(by_trunk["per_trunk"].values())
    interval = by_trunk["interval"]
    return {
        "first": first,
        "second": second,
        "delta": delta,
        "by_trunk": {key: value for key, value in by_trunk.items() if key not in ("arms", "y")},
        "equivalence": equivalence(values, delta),
        "verdict": verdict_of(interval, delta).value if interval else "undecided",
        "by_item": _by_item(cells, match),
    }


def text(found: dict[str, Any]) -> str:
    """The comparison in a few lines for a terminal."""
    trunk, item = found["by_trunk"], found["by_item"]
    lines = [
        f"{found['first']} minus {found['second']}: {shown(trunk['mean'], trunk['interval'])}, "
        f"{trunk['n_pairs']} pairs of cells from {trunk['n_trunks']} trunks.",
        f"That the first ends higher: {found['verdict']} (δ = {100 * found['delta']:g} points).",
    ]
    equal = found["equivalence"]
    if equal["p"] is not None:
        word = "equal" if equal["equivalent"] else "not shown to be equal"
        lines.append(f"Within ±δ they are {word} (two one-sided t tests, p = {equal['p']:.2g}).")
    if trunk["no_interval_because"]:
        lines.append(trunk["no_interval_because"])
    if item is None:
        lines.append(
            "Not paired by item: the two were not asked the same questions, or before answers were kept."
        )
    else:
        lines.append(
            f"Of {item['n_items']} answers to the same items, {item['only_first']} are right in the first "
            f"alone and {item['only_second']} in the second alone: {100 * item['difference']:+.2f} ± "
            f"{100 * item['se']:.2f} points (unpaired ± {100 * item['unpaired_se']:.2f})."
        )
    return "\n".join(lines)


def _side(store: Store, name: str, place: int) -> pd.DataFrame:
    """The finished grown cells of a side, with the answers of each: `right`, a bit an item."""
    study, _, arm = name.partition(":")
    cells = finished(cells_table(store, study))
    arms = sorted(set(cells["arm"]))
    check(not arm or arm in arms, f"arm {arm} is not in study {study}; it has: {'; '.join(arms)}")
    cells = cells[cells["arm"] == arm] if arm else cells
    check(len(cells) > 0, f"study {study} has no finished grown cell")
    measures, rows = Measures(store), {row["cell_id"]: row for row in stored_rows(store, study)}
    answers = [_answers(measures, rows[cell]) for cell in cells["cell_id"]]
    pair = "seed " + cells["seed"].map("{:g}".format)
    right = pd.Series(answers, index=cells.index, dtype=object)
    return cells.assign(side=str(place), pair=pair, right=right)


def _answers(measures: Measures, row: dict[str, Any]) -> np.ndarray | None:
    line = measures.at(row["states"]["final"], "full", row.get("eval_id"))
    families = [
        line["families"][name] for name in line.get("averaged", []) if "right" in line["families"][name]
    ]
    if not families:
        return None
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(f["right"]), np.uint8))[: f["n"]] for f in families]
    return np.concatenate(bits)


def _by_item(cells: pd.DataFrame, match: list[str]) -> dict[str, Any] | None:
    """All pairs' answers together; cells of one side that share a key are left out with their partner."""
    sides = [own.set_index(["pair", *match]) for _, own in cells.groupby("side", sort=True)]
    first, second = (own[~own.index.duplicated(keep=False)] for own in sides)
    both = [(first.loc[key], second.loc[key]) for key in first.index.intersection(second.index)]
    same = [
        (a["right"], b["right"])
        for a, b in both
        if a["right"] is not None and b["right"] is not None and a["eval_id"] == b["eval_id"]
    ]
    if not same:
        return None
    return paired_by_item(np.concatenate([a for a, _ in same]), np.concatenate([b for _, b in same]))
