"""How well a study's smaller sizes foretell its largest: the error that advice for a larger model admits."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.arm_laws import CONTINUED, fit_arms
from analysis.arms import ways_of_growing
from analysis.budget import gain
from analysis.floor import Asked


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Errors on the largest size by laws of the smaller ones; all None and `because` where none was held out.

    `net_error` is the RMS of predicted − measured net in nats, `same_sign` the branches whose net has the
    sign that was predicted. `loss_error` (RMS, relative) needs two smaller sizes: one says nothing of N_a.
    """

    activated_params: float | None = None
    n_branches: int = 0
    net_error: float | None = None
    same_sign: int = 0
    loss_error: float | None = None
    because: str = ""


def largest_held_out(cells: pd.DataFrame, floor: Asked = None) -> HeldOut:
    """Fits all sizes but the largest, predicts that one's branches at their own ratios."""
    branches = cells[(cells["kind"] == "branch") & (cells["status"] == "done") & cells["final_loss"].notna()]
    sizes = sorted(branches["trunk_activated_params"].unique())
    if len(sizes) < 2:
        return HeldOut(because=f"the study has one size, N_a = {sizes[0]:.3g}")
    smaller = cells[cells["trunk_activated_params"] != sizes[-1]]
    try:
        laws = fit_arms(smaller, floor=floor, resamples=0)
    except ValueError as error:
        return HeldOut(because=f"the smaller sizes have no law: {error}")
    losses = cells.set_index("cell_id")["final_loss"]
    tested = branches.assign(
        way=ways_of_growing(branches),
        net_loss=branches["continued_id"].map(losses) - branches["final_loss"],
    )
    tested = tested[tested["trunk_activated_params"] == sizes[-1]]
    tested = tested[tested["way"].isin(laws.grown) & tested["net_loss"].notna()]
    if tested.empty:
        return HeldOut(because=f"no branch at N_a = {sizes[-1]:.3g} has a law and a *continued* control")
    predicted, loss_errors = [], []
    for arm, own in tested.groupby("way", sort=False):
        sunk, extra = own["sunk_f_c"].to_numpy(float), own["extra_f_c"].to_numpy(float)
        nets, _ = gain(laws, str(arm), CONTINUED, sunk, extra, sizes[-1])
        expected = laws.arm(str(arm)).best.predict(laws.at(sunk, extra, sizes[-1]))
        predicted.append(pd.Series(nets, own.index))
        loss_errors.append(np.log(expected / own["final_loss"].to_numpy(float)))
    nets, measured = pd.concat(predicted).reindex(tested.index), tested["net_loss"]
    return HeldOut(
        activated_params=float(sizes[-1]),
        n_branches=len(tested),
        net_error=float(np.sqrt(((nets - measured) ** 2).mean())),
        same_sign=int((np.sign(nets) == np.sign(measured)).sum()),
        loss_error=float(np.sqrt(np.mean(np.concatenate(loss_errors) ** 2))) if len(sizes) > 2 else None,
    )
