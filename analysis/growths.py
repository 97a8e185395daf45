"""What each growth of a study did, and how what it copied came apart, as tidy tables."""

import json
from typing import Any

import numpy as np
import pandas as pd

from analysis.table import cells_table, stored_rows
from sweeps.store import Store

PARTS = ("depth copy", "width copy", "expert noise", "router noise")
JUMPS = tuple(part.replace(" ", "_") for part in PARTS)
_SIZES = ("num_layers", "num_experts", "top_k", "total_params", "activated_params", "train_flops_per_token")
_MEASURED = (
    *("loss_before", "loss_after", "max_logit_change", "probe_tokens", *JUMPS),
    *("effective_alpha_experts", "effective_alpha_router", "unchanged"),
    *(f"{size}_{when}" for size in _SIZES for when in ("before", "after")),
)
GROWTHS = (
    *("cell_id", "arm", "replicate", "seed", "growth_step", "nth", "trajectory_id", "parent", "growth"),
    *("operator", "exactness", *_MEASURED),
)
_PER_LAYER = ("twin_cosine", "twin_distance", "co_routing", "expert_load_entropy")
_PER_LINE = ("first_moment_cosine", "second_moment_cosine")
TWINS = (
    *("cell_id", "arm", "replicate", "seed", "growth_step", "nth", "trajectory_id", "phase", "step"),
    *("extra_flops", "grown_at_flops", "strangers", *_PER_LAYER, *_PER_LINE),
)


def starts(row: dict[str, Any]) -> list[str]:
    """The branch trajectories of a stored row, in the order of its growths."""
    states = row.get("states") or {}
    names = ["start", *(f"start_{nth}" for nth in range(2, len(states) + 1))]
    return [states[name][0] for name in names if states.get(name)]


def growths(store: Store, study: str) -> pd.DataFrame:
    """One row per growth of each grown cell, columns as `GROWTHS`; what was not measured is NaN.

    Losses in nats per token and the largest logit change are those of the growth's own probe batch; a jump
    column is the change of that loss by one part, NaN for parts that did nothing. Growths of cells that
    share a trajectory are listed with each of them.
    """
    rows = []
    for cell, row in grown_cells(store, study):
        words = str(cell["growth"]).split(" → ")
        for nth, trajectory in enumerate(starts(row), start=1):
            record = store.growth(trajectory) or {}
            known = {name: cell[name] for name in ("cell_id", "arm", "replicate", "seed", "growth_step")}
            known |= {"nth": nth, "trajectory_id": trajectory, "parent": record.get("parent") or ""}
            name = words[nth - 1] if nth <= len(words) else ""
            known |= {"growth": _in_words(record.get("operator")) or name}
            rows.append(known | _recorded(record))
    table = pd.DataFrame(rows, columns=list(GROWTHS))
    for name in ("seed", "growth_step", "nth", *_MEASURED):
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    return table


def grown_cells(store: Store, study: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(row of the cells' table, stored row) of each grown cell."""
    cells = cells_table(store, study)
    stored = {row["cell_id"]: row for row in stored_rows(store, study)}
    return [(cell, stored[cell["cell_id"]]) for cell in records(cells[cells["kind"] == "branch"])]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, column names as text."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _in_words(operator: dict[str, Any] | None) -> str:
    names = [(operator or {}).get(name, "none") for name in ("method", "width_method")]
    return " + ".join(name for name in names if name != "none")


def _recorded(record: dict[str, Any]) -> dict[str, Any]:
    alpha = record.get("effective_noise_scale") or {}
    jump = {part["part"]: part.get("loss_change") for part in record.get("jump") or []}
    operator = record.get("operator")
    out = {name: record.get(name) for name in ("loss_before", "loss_after", "max_logit_change")}
    out |= {"probe_tokens": record.get("probe_tokens"), "exactness": record.get("exactness") or ""}
    out |= {column: jump.get(part) for column, part in zip(JUMPS, PARTS, strict=True)}
    out |= {f"effective_alpha_{name}": alpha.get(name) for name in ("experts", "router")}
    out |= {"unchanged": alpha.get("unchanged")}
    out |= {"operator": json.dumps(operator, sort_keys=True) if operator else ""}
    for when in ("before", "after"):
        out |= {f"{size}_{when}": (record.get(when) or {}).get(size) for size in _SIZES}
    return out


def distinct(growths: pd.DataFrame) -> pd.DataFrame:
    """One row per recorded growth that differs from all others in its parents or its operator.

    The function just after growth does not depend on the optimizer, and a chain begins like the growth that
    it goes on from: arms that share such growths share the row. `title` names it, `arms` lists them, numbers
    are means over trunks. Rows are in order of growth step, then as the arms come.
    """
    recorded = growths[growths["exactness"] != ""]
    groups: dict[Any, list[tuple[str, float, float]]] = {}
    own: dict[Any, pd.DataFrame] = {}
    for _, rows in recorded.groupby(["arm", "growth_step", "nth"], sort=False):
        key = frozenset(zip(rows["parent"], rows["operator"], strict=True))
        arm, step, nth = rows.iloc[0][["arm", "growth_step", "nth"]]
        groups.setdefault(key, []).append((arm, step, nth))
        own[key] = rows
    out = []
    for key, members in groups.items():
        rows, (_, step, nth) = own[key], members[0]
        means = rows.groupby("replicate")[list(_MEASURED)].mean().mean()
        one = {"title": _title(members, str(rows["growth"].iloc[0])), "arms": [arm for arm, *_ in members]}
        one |= {"growth_step": step, "nth": nth, "growth": rows["growth"].iloc[0]}
        one |= {"exactness": rows["exactness"].iloc[0], "replicates": sorted(set(rows["replicate"]))}
        out.append(one | {str(name): value for name, value in means.items()})
    columns = ["title", "arms", "growth_step", "nth", "growth", "exactness", "replicates", *_MEASURED]
    table = pd.DataFrame(out, columns=columns)
    twice = table.duplicated(["title", "growth_step"], keep=False)
    table.loc[twice, "title"] = [" / ".join(arms) for arms in table.loc[twice, "arms"]]
    return table.sort_values("growth_step", kind="stable", ignore_index=True)


_ORDINALS = ("1st", "2nd", "3rd")


def _title(members: list[tuple[str, float, float]], growth: str) -> str:
    """The operators, then the settings that all these arms (the unchained, if any are) have in common."""
    nth = int(members[0][2])
    ordinal = _ORDINALS[nth - 1] if nth <= len(_ORDINALS) else f"{nth}th"
    arms = [arm.split(", ") for arm, *_ in members]
    alone = [arm for arm in arms if " → " not in arm[0]]
    shown = alone or arms
    names = {arm[0] for arm in shown}
    name = names.pop() if len(names) == 1 else growth
    settings = [word for word in shown[0][1:] if all(word in arm for arm in shown)]
    return ", ".join([name if alone else f"{name} ({ordinal} growth)", *settings])


def seam_norms(store: Store, growths: pd.DataFrame) -> pd.DataFrame:
    """Mean expert weight norms (Frobenius/√numel) around the seam of each growth in depth, over trunks.

    Table 2 of arXiv 2510.08008: `base_first`, `base_last` of the parent; `above` and `below` the seam, the
    grown layers L−1 and L (less what `keep_last` keeps), at growth and on the branch's last diagnosed line.
    """
    deep = growths[growths["num_layers_after"] > growths["num_layers_before"]]
    deep = deep.sort_values("nth", kind="stable").drop_duplicates("trajectory_id")
    rows = [
        {name: row[name] for name in ("arm", "growth_step", "nth", "replicate", "seed")}
        | _around_seam(store, row["trajectory_id"], int(row["num_layers_before"]))
        for row in records(deep)
    ]
    names = ["seam", "base_first", "base_last", "above", "below", "end_step", "end_above", "end_below"]
    keys = ["arm", "growth_step", "nth"]
    table = pd.DataFrame(rows, columns=[*keys, "replicate", "seed", *names])
    per_trunk = table.groupby([*keys, "replicate"], sort=False)[names].mean()
    return per_trunk.groupby(keys, sort=False).mean().reset_index()


def _around_seam(store: Store, trajectory: str, num_layers: int) -> dict[str, float]:
    record = store.growth(trajectory) or {}
    norms = record.get("expert_weight_norm") or {}
    before, after = norms.get("before") or [], norms.get("after") or []
    seam = num_layers - int((record.get("operator") or {}).get("keep_last") or 0)
    lines = [line for line in store.metrics(trajectory) if line.get("expert_weight_norm")]
    end = lines[-1]["expert_weight_norm"] if lines else []
    return {
        "seam": seam,
        "base_first": _at(before, 0),
        "base_last": _at(before, len(before) - 1),
        "above": _at(after, seam - 1),
        "below": _at(after, seam),
        "end_step": lines[-1]["step"] if lines else float("nan"),
        "end_above": _at(end, seam - 1),
        "end_below": _at(end, seam),
    }


def _at(values: list[float | None], index: int) -> float:
    value = values[index] if 0 <= index < len(values) else None
    return float("nan") if value is None else value


def twins(store: Store, study: str) -> pd.DataFrame:
    """One row per diagnosed line after the first growth of each grown cell, columns as `TWINS`.

    Means over layers with experts; NaN where a trajectory has no twins. `extra_flops` counts from the first
    growth, `grown_at_flops` is that of the newest one, and `strangers` is k/E, about the co-routing rate of
    experts that have nothing in common. A line that several cells share stands with the least grown of them.
    """
    paths = []
    for cell, row in grown_cells(store, study):
        branches = starts(row)
        own = [part["trajectory_id"] for part in row["path"]]
        if branches and branches[0] in own:
            paths.append((len(branches), -cell["extra_flops"], cell, row["path"][own.index(branches[0]) :]))
    rows, seen = [], set()
    for _, _, cell, path in sorted(paths, key=lambda found: found[:2]):
        flops, grown_at, nth, strangers = 0.0, 0.0, 0, float("nan")
        for part in path:
            trajectory = part["trajectory_id"]
            if part["phase"] == "stable":
                grown_at, nth = flops, nth + 1
                after = (store.growth(trajectory) or {}).get("after") or {}
                strangers = after["top_k"] / after["num_experts"] if after else strangers
            known = {name: cell[name] for name in ("cell_id", "arm", "replicate", "seed", "growth_step")}
            known |= {"nth": nth, "trajectory_id": trajectory, "phase": part["phase"]}
            known |= {"grown_at_flops": grown_at, "strangers": strangers}
            for line in store.metrics(trajectory):
                step = line["step"]
                if (trajectory, step) in seen or not _diagnosed(line) or step > part["to_step"]:
                    continue
                seen.add((trajectory, step))
                spent = flops + (step - part["from_step"]) * part["flops_per_step"]
                rows.append(known | {"step": step, "extra_flops": spent} | _means(line))
            flops += (part["to_step"] - part["from_step"]) * part["flops_per_step"]
    return pd.DataFrame(rows, columns=list(TWINS))


def _diagnosed(line: dict[str, Any]) -> bool:
    return any(name in line for name in (*_PER_LAYER, *_PER_LINE))


def _means(line: dict[str, Any]) -> dict[str, float]:
    out = {name: float("nan") if line.get(name) is None else line[name] for name in _PER_LINE}
    for name in _PER_LAYER:
        values = [value for value in line.get(name) or [] if value is not None]
        out[name] = float(np.mean(values)) if values else float("nan")
    return out


__all__ = ["JUMPS", "PARTS", "distinct", "grown_cells", "growths", "records", "seam_norms", "starts", "twins"]
