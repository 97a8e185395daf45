"""The weight norm of each layer's experts along a study's trunks and branches, as a tidy table."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.growths import grown_cells, starts
from sweeps.store import Store

COLUMNS = (
    *("arm", "method", "growth_step", "replicate", "seed", "part", "trajectory_id", "step", "flops"),
    *("layer", "num_layers", "norm"),
)


def layer_norms(store: Store, study: str) -> pd.DataFrame:
    """One row per layer of each line that carries norms, along trunks and grown branches once each.

    `norm` is Frobenius/√numel of the layer's experts (of its dense feed-forward where it has none). `part` is
    "trunk", "branch" or "anneal"; `flops` counts from random init. A branch's step 0, from the growth's own
    record, is the grown state before any training; there the trunk's last line is the state before it.
    """
    seen: set[tuple[str, int]] = set()
    rows = [row for cell, stored in grown_cells(store, study) for row in _of_cell(store, cell, stored, seen)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["part", "arm", "trajectory_id", "step", "layer"], ignore_index=True)


def _of_cell(
    store: Store, cell: dict[str, Any], stored: dict[str, Any], seen: set[tuple[str, int]]
) -> Iterator[dict[str, Any]]:
    """Lines that another cell gave already are left out; a trunk's are nobody's own, so it has no arm."""
    flops, branches = 0.0, starts(stored)
    for path in stored["path"]:
        trajectory = path["trajectory_id"]
        part = {"stable": "branch"}.get(path["phase"], path["phase"])
        known = {name: cell[name] for name in ("arm", "method", "growth_step", "replicate", "seed")}
        if part == "trunk":
            known |= {"arm": "", "method": "", "growth_step": float("nan")}
        known |= {"part": part, "trajectory_id": trajectory}
        record = (store.growth(trajectory) or {}) if trajectory in branches else {}
        after = (record.get("expert_weight_norm") or {}).get("after")
        lines = [{"step": 0, "expert_weight_norm": after}] if after else []
        for line in [*lines, *store.metrics(trajectory)]:
            norms, step = line.get("expert_weight_norm"), line["step"]
            if not norms or step > path["to_step"] or (trajectory, step) in seen:
                continue
            seen.add((trajectory, step))
            at = {"step": step, "flops": flops + (step - path["from_step"]) * path["flops_per_step"]}
            for layer, norm in enumerate(norms):
                yield known | at | {"layer": layer, "num_layers": len(norms), "norm": norm}
        flops += (path["to_step"] - path["from_step"]) * path["flops_per_step"]
