"""Learning rates chosen fairly: one grid for every arm, and for each trunk the rate best on the others.

The optimum differs between growing, continuing and starting over, so a comparison at one rate may only show
whom that rate suits. Leaving the trunk itself out keeps the choice apart from what is reported with it.
"""

import numpy as np
import pandas as pd

from analysis.arms import arms_at_any_rate, budget_rule, levels

CONTINUED, SCRATCH = "continued", "scratch"
_SCRATCH_KINDS = ("scratch", "scratch_extra")
_PLACE = ["growth_step", "start_phase", "level", "replicate"]
_WAY = ["arm", *_PLACE[:3]]


def rate_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm, growth step and rate: means over trunks of final loss and accuracy.

    `best`: the lowest mean loss of its arm; `at_edge`: that at an end of the grid, beyond which the optimum
    may lie. `diverged` counts trunks; a rate at which one diverged is never best. `flops` is what all trunks
    spent on the rate after growth. Arms with one rate have no row.
    """
    rows = []
    for way, own in _candidates(cells).groupby(_WAY, sort=True):
        if own["rate"].nunique() < 2:
            continue
        losses = own.groupby("rate")["loss"].mean()
        for rate, at in own.groupby("rate"):
            ended = at[np.isfinite(at["loss"])]
            best = bool(rate == losses.idxmin() and np.isfinite(losses.min()))
            rows.append(
                {
                    **dict(zip(_WAY, way, strict=True)),
                    "rate": rate,
                    "n_trunks": at["replicate"].nunique(),
                    "diverged": len(at) - len(ended),
                    **{"final_loss": ended["loss"].mean(), "final_loss_se": _error(ended, "loss")},
                    **{"final_acc": ended["acc"].mean(), "final_acc_se": _error(ended, "acc")},
                    "flops": float(at["flops"].sum()),
                    "best": best,
                    "at_edge": best and rate in (losses.index.min(), losses.index.max()),
                }
            )
    columns = [*_WAY, "rate", "n_trunks", "diverged", "final_loss", "final_loss_se", "final_acc"]
    return pd.DataFrame(rows, columns=[*columns, "final_acc_se", "flops", "best", "at_edge"])


def at_tuned_rates(cells: pd.DataFrame) -> pd.DataFrame:
    """The grown cells of arms with several rates: for each trunk the one at the rate best on the others.

    `continued_acc` and `net` are those of continuing at its own best rate where the study has several (its
    controls *continued* and *sham*), chosen alike. `growth_lr` becomes NaN, so that pairs form across rates.
    Empty without two trunks and two rates.
    """
    chosen = _best_on_the_others(_candidates(cells))
    accuracy = chosen[chosen["arm"] == CONTINUED].set_index(_PLACE)["acc"].rename("own")
    grown = cells[cells["kind"] == "branch"].drop(columns=["arm", "growth_lr"])
    tuned = grown.merge(chosen[["cell_id", "arm", "level"]], on="cell_id").join(accuracy, on=_PLACE)
    continued = tuned.pop("own").fillna(tuned["continued_acc"])
    return tuned.assign(growth_lr=np.nan, continued_acc=continued, net=tuned["final_acc"] - continued)


def _best_on_the_others(candidates: pd.DataFrame) -> pd.DataFrame:
    """Of each arm and trunk the row at the rate of lowest mean loss over all other trunks."""
    places = []
    for _, own in candidates.groupby(_WAY, sort=False):
        losses = own.pivot(index="replicate", columns="rate", values="loss")
        for trunk in losses.index if len(losses) > 1 and losses.shape[1] > 1 else []:
            others = losses.drop(index=trunk).mean(skipna=False)
            if np.isfinite(others).any():
                places += list(own.index[(own["replicate"] == trunk) & (own["rate"] == others.idxmin())])
    return candidates.loc[places]


def _candidates(cells: pd.DataFrame) -> pd.DataFrame:
    """What a rate is chosen among: a row for each branch, each way to continue it, each start from scratch.

    `loss` is the final one, infinite where the run diverged; what has not ended is left out.
    """
    grown, scratch = cells[cells["kind"] == "branch"], cells[cells["kind"].isin(_SCRATCH_KINDS)]
    at = grown[["replicate", "growth_step", "start_phase"]]
    at = at.assign(level=budget_rule(cells)[1].loc[grown.index], flops=grown["extra_flops"])
    over = scratch[["replicate"]].assign(growth_step=0.0, start_phase="", flops=scratch["extra_flops"])
    over = over.assign(level=levels(scratch["extra_flops"].astype(float)))
    rows = pd.concat(
        [
            at.assign(arm=arms_at_any_rate(grown), rate=grown["growth_lr"], cell_id=grown["cell_id"]),
            at.assign(arm=CONTINUED, rate=grown["growth_lr"], cell_id=grown["sham_id"]),
            at.assign(arm=CONTINUED, rate=grown["train_lr"], cell_id=grown["continued_id"]),
            over.assign(arm=SCRATCH, rate=scratch["train_lr"], cell_id=scratch["cell_id"]),
        ],
        ignore_index=True,
    )
    diverged = cells["status"] == "diverged"
    loss = cells["final_loss"].where(~diverged, np.inf)
    ended = cells.assign(loss=loss, acc=cells["final_acc"])[diverged | (cells["status"] == "done")]
    rows = rows.merge(ended[["cell_id", "loss", "acc"]].dropna(subset="loss"), on="cell_id")
    return rows.drop_duplicates([*_WAY, "replicate", "rate"], ignore_index=True)


def _error(at: pd.DataFrame, name: str) -> float:
    """Of the mean over trunks; NaN for one."""
    return float(at[name].std(ddof=1) / np.sqrt(len(at))) if len(at) > 1 else np.nan
