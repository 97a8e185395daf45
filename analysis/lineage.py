"""The tree of a study's trajectories: which state came out of which, at how many FLOPs."""

from typing import Any

import pandas as pd

from analysis.table import cells_table, stored_rows
from sweeps.store import Store

COLUMNS = (
    *("node", "parent", "trajectory_id", "kind", "arm", "replicate", "seed", "growth_step"),
    *("from_flops", "to_flops", "f_c", "cells", "status"),
)


def lineage(store: Store, study: str) -> pd.DataFrame:
    """One row per trajectory of the study, parents before children, columns as `COLUMNS`.

    `kind` is "trunk", "branch", "scratch" or "anneal"; FLOPs count from random init, `from_flops` being those
    of the parent's state that it leaves. `cells` is the number of cells whose path uses it; `arm` that of the
    first of them, empty for a trunk. A `parent` of "" is random init.
    """
    cells = {str(cell["cell_id"]): cell for cell in cells_table(store, study).to_dict("records")}
    nodes: dict[str, dict[str, Any]] = {}
    for row in stored_rows(store, study):
        cell = cells[row["cell_id"]]
        parent, flops = "", 0.0
        for part in row["path"]:
            trajectory = part["trajectory_id"]
            end = flops + (part["to_step"] - part["from_step"]) * part["flops_per_step"]
            kind = part["phase"]
            if kind == "stable":
                kind = "branch" if parent else "scratch"
            if kind == "trunk" and parent:
                kind = "anneal"  # an annealed trunk that was grown
            shared = kind == "trunk"
            node = nodes.setdefault(
                trajectory,
                {"node": trajectory, "parent": parent, "trajectory_id": trajectory, "kind": kind}
                | {"arm": "" if shared else cell["arm"], "replicate": cell["replicate"], "seed": cell["seed"]}
                | {"growth_step": float("nan") if shared else cell["growth_step"], "from_flops": flops}
                | {"to_flops": end, "f_c": cell["f_c"], "cells": 0, "status": cell["status"]},
            )
            node["to_flops"] = max(node["to_flops"], end)
            node["cells"] += 1
            parent, flops = trajectory, end
    return pd.DataFrame(list(nodes.values()), columns=list(COLUMNS))
