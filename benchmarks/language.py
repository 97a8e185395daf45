"""What the study `language` says of the embedded language, as tables: `python benchmarks/language.py STORE`.

Learning curves of each family, means over trunks; how smooth they are; exposures and stored bits of facts;
and what each growth gave each family over *continued*.
"""

import json
import math
import sys
from collections import defaultdict
from typing import Any

import numpy as np

from analysis.table import cells_table
from moe import flops
from moe.config import ModelConfig
from moe.data import WorldConfig, parse_data
from moe.data.families import Facts
from moe.plain import parse
from sweeps.store import Store

MARKS = [0.1 * 2 ** (i / 2) for i in range(11)]  # F_c, half octaves up to 3.2
LAST = 4.0


def main(root: str, study: str = "language") -> None:
    store = Store(root)
    cells = cells_table(store, study)
    trunks = sorted(cells["trunk_id"].unique())
    spec = json.loads((store.folder(trunks[0]) / "spec.json").read_text())["identity"]
    model, f_c = parse(ModelConfig, spec["model"]), float(cells["f_c"].iloc[0])
    per_token = flops.train_flops_per_token(model, spec["train"]["seq_len"])
    per_step = per_token * spec["train"]["seq_len"] * spec["train"]["batch_size"]
    curves = curve_means(store, trunks, per_step / f_c)
    print(f"{len(trunks)} trunks, F_c = {f_c:.3g} FLOPs = {f_c / per_token / 1e6:.2f}M tokens\n")
    print_curves(curves)
    print_facts(
        parse_data({k: v for k, v in spec["data"].items() if k != "version"}), curves, model, f_c / per_token
    )
    print_growths(cells)


def curve_means(store: Store, trunks: list[str], f_c_per_step: float) -> dict[float, dict[str, Any]]:
    """{FLOPs in F_c: {"mean" or a family: accuracy, "facts levels": {level: accuracy}}}, over all trunks."""
    found: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for trunk in trunks:
        for line in store.evals(trunk):
            if line["suite"] == "probe" and line["step"] * f_c_per_step <= LAST + 0.02:
                found[line["step"] * f_c_per_step].append(line)
    means = {}
    for at, lines in sorted(found.items()):
        if len(lines) == len(trunks):
            row: dict[str, Any] = {"mean": np.mean([line["acc"] for line in lines])}
            for name in lines[0]["families"]:
                row[name] = np.mean([line["families"][name]["acc"] for line in lines])
            levels = [line["families"]["facts"]["levels"] for line in lines]
            row["facts levels"] = {level: np.mean([each[level] for each in levels]) for level in levels[0]}
            means[at] = row
    return means


def print_curves(curves: dict[float, dict[str, Any]]) -> None:
    names = [name for name in next(iter(curves.values())) if name != "facts levels"]
    print("| trunk FLOPs / F_c | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    at = np.array(list(curves))
    shown = [float(at[np.argmin(abs(at - mark))]) for mark in [*MARKS, LAST]]
    for mark in dict.fromkeys(shown):
        print(f"| {mark:.2f} | " + " | ".join(f"{curves[mark][name]:.3f}" for name in names) + " |")
    from_here = [m for m in curves if m >= 0.095]
    for what, marks in (
        ("neighbouring probes", from_here),
        ("half octaves", list(dict.fromkeys(shown[:-1]))),
    ):
        steps = np.diff([curves[mark]["mean"] for mark in marks])
        place = int(np.argmax(abs(steps)))
        print(
            f"\nlargest step of the mean between {what}: {steps[place]:+.3f}, from {marks[place]:.2f} to "
            f"{marks[place + 1]:.2f} F_c ({len(marks)} points)"
        )


def print_facts(config: Any, curves: dict[float, dict[str, Any]], model: ModelConfig, tokens: float) -> None:
    assert isinstance(config, WorldConfig)
    facts, total = Facts(config), flops.total_params(model)
    print(
        "\n| FLOPs / F_c | stratum | facts | tellings of a fact | accuracy told | never told so |\n"
        + "|---" * 6
        + "|"
    )
    at = np.array(list(curves))
    for mark in (0.5, 1.0, 2.0, LAST):
        here, bits = float(at[np.argmin(abs(at - mark))]), 0.0
        for stratum in range(config.num_strata):
            first, last = facts.stratum(stratum)
            num_facts = (last - first) * config.num_relations
            told = curves[here]["facts levels"][str(stratum)]
            other = curves[here]["facts levels"][str(stratum + config.num_strata)]
            bits += num_facts * max(0.0, (told - 0.25) / 0.75) * math.log2(config.num_values)
            times = facts.exposures(stratum, here * tokens)
            print(f"| {here:.2f} | {stratum} | {num_facts} | {times:.1f} | {told:.2f} | {other:.2f} |")
        print(f"| {here:.2f} | all | | | {bits:.0f} bits, {bits / total:.4f} a parameter | |")


def print_growths(cells: Any) -> None:
    """Final accuracy less that of *continued*, in points; mean over trunks ± standard error."""
    names = [c.removeprefix("final_acc_se_") for c in cells.columns if c.startswith("final_acc_se_")]
    grown = cells[(cells["kind"] == "branch") & cells["final_acc"].notna()]
    controls = cells.set_index("cell_id")
    print(
        "\n| growth | step | sunk / F_c | net | "
        + " | ".join(names)
        + " |\n"
        + "|---" * (len(names) + 4)
        + "|"
    )
    for (growth, step), own in grown.groupby(["growth", "growth_step"]):
        own = own[own["continued_id"].map(lambda id: id in controls.index)]
        row = [f"{growth}", f"{step}", f"{own['sunk_f_c'].mean():.2f}"]
        for name in ("final_acc", *(f"final_acc_{name}" for name in names)):
            gaps = 100 * (own[name] - own["continued_id"].map(controls[name])).dropna()
            error = gaps.std(ddof=1) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
            row.append(f"{gaps.mean():+.1f} ± {error:.1f}")
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
