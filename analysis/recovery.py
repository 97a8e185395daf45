"""What a growth costs before the model is as good again as the state that was grown."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.growths import grown_cells, starts
from analysis.lines import Metrics
from sweeps.store import Store

WINDOW = 20  # steps in a mean of the loss: those before the growth, and each of the running mean after it
COLUMNS = (
    *("cell_id", "arm", "replicate", "seed", "growth_step", "sunk_flops", "f_c", "loss_before"),
    *("lowest_loss", "regained", "recovery_flops", "seen_flops"),
)


def recovery_costs(store: Store, study: str) -> pd.DataFrame:
    """One row per grown cell: FLOPs after its first growth until the training loss is back at `loss_before`.

    `loss_before` is the mean over the last `WINDOW` steps before the growth; the loss after it is a running
    mean over as many steps that end where it is read. Read at the constant rate alone, up to the next growth
    or the anneal: `seen_flops`. Never regained there is NaN, and `regained` False. Nats per token.
    """
    metrics = Metrics(store)
    rows = [
        found
        for cell, row in grown_cells(store, study)
        if (found := _recovery(cell, row, metrics)) is not None
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _recovery(cell: dict[str, Any], row: dict[str, Any], metrics: Metrics) -> dict[str, Any] | None:
    path, branches = row["path"], starts(row)
    at = next((i for i, part in enumerate(path) if branches and part["trajectory_id"] == branches[0]), None)
    if not at:
        return None
    before = np.concatenate([metrics.within(part) for part in path[:at]])[-WINDOW:, 1]
    lines = metrics.within(path[at])
    if len(before) < WINDOW or len(lines) < WINDOW:
        return None
    smoothed = np.convolve(lines[:, 1], np.full(WINDOW, 1 / WINDOW), mode="valid")
    flops = (lines[WINDOW - 1 :, 0] - path[at]["from_step"]) * path[at]["flops_per_step"]
    regained = np.flatnonzero(smoothed <= before.mean())
    names = ("cell_id", "arm", "replicate", "seed", "growth_step", "sunk_flops", "f_c")
    return {name: cell[name] for name in names} | {
        "loss_before": float(before.mean()),
        "lowest_loss": float(smoothed.min()),
        "regained": bool(len(regained)),
        "recovery_flops": float(flops[regained[0]]) if len(regained) else float("nan"),
        "seen_flops": float(flops[-1]),
    }
