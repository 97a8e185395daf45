"""Whether two ways of growing one state learn the same: the cosine of their summed weight updates.

Table 1 of arXiv 2510.08008. Reads stored weights tensor by tensor; needs no torch.
"""

import itertools
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from safetensors import safe_open

from analysis.growths import grown_cells, starts
from moe.operator import Operator, WidthMethod
from moe.plain import parse
from sweeps.store import Store

MAX_PAIRS = 20
MAX_BYTES = 10**9  # of one file: a larger state takes minutes to compare, and a report should take seconds
GROUPS = ("overall", "expert_ffn", "attention", "embedding")
COLUMNS = (
    *("replicate", "seed", "growth_step", "parent", "tap", "arm_a", "arm_b", "trajectory_a", "trajectory_b"),
    *("step_a", "step_b", "group", "cosine", "num_params"),
)
_EXPERTS, _ROUTER, _BIAS = ".moe.experts.", ".moe.router.", "selection_bias_E"


def update_cosines(store: Store, study: str) -> pd.DataFrame:
    """One row per pair of arms grown from one state and per group of parameters, columns as `COLUMNS`.

    An update is a branch's weights at a tap less those at its step 0, over the parameters that the parent
    had: of a copied layer the first appearance, of duplicated experts and router rows the first E. `cosine`
    is NaN where nothing moved or nothing is shared. `attrs["left_out"]` says what was not compared, and why.
    """
    pairs, left_out = _pairs(_taps(store, study)), []
    if len(pairs) > MAX_PAIRS:
        left_out.append(f"{len(pairs) - MAX_PAIRS} of {len(pairs)} pairs are not compared: {MAX_PAIRS} are.")
    rows, absent, large = [], 0, 0
    for a, b in pairs[:MAX_PAIRS]:
        files = [path for tap in (a, b) for path in _files(store, tap)]
        if not all(path.is_file() for path in files):
            absent += 1
        elif max(path.stat().st_size for path in files) > MAX_BYTES:
            large += 1
        else:
            rows += _compared(store, a, b)
    for number, why in (
        (absent, "weights are not stored"),
        (large, f"a state is above {MAX_BYTES:.0e} bytes"),
    ):
        if number:
            left_out.append(f"{number} pair{'s are' if number > 1 else ' is'} not compared: {why}.")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.attrs["left_out"] = left_out
    return table


def _taps(store: Store, study: str) -> list[dict[str, Any]]:
    """The stored steps beyond 0 of each branch, once each, with the least grown cell that has them."""
    taps: dict[tuple[str, int], dict[str, Any]] = {}
    for cell, row in sorted(grown_cells(store, study), key=lambda found: len(starts(found[1]))):
        branches = starts(row)
        for role, address in (row.get("states") or {}).items():
            if not address or address[0] not in branches or address[1] == 0:
                continue
            known = {name: cell[name] for name in ("replicate", "seed", "growth_step", "arm")}
            known |= {"trajectory": address[0], "step": int(address[1])}
            known |= {"tap": "before the next growth" if role.startswith("base") else role}
            record = store.growth(address[0]) or {}
            known |= {name: record.get(name) for name in ("parent", "operator", "before")}
            taps.setdefault((address[0], known["step"]), known)
    return [tap for tap in taps.values() if tap["parent"] and tap["operator"] and tap["before"]]


def _pairs(taps: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        (a, b)
        for a, b in itertools.combinations(taps, 2)
        if (a["parent"], a["tap"], a["seed"]) == (b["parent"], b["tap"], b["seed"])
        and a["arm"] != b["arm"]
        and a["trajectory"] != b["trajectory"]
    ]


def _files(store: Store, tap: dict[str, Any]) -> list[Path]:
    """The weights just after growth and at the tap."""
    folders = (store.state_folder(tap["trajectory"], step) for step in (0, tap["step"]))
    return [folder / "model.safetensors" for folder in folders]


def _compared(store: Store, a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    known = {name: a[name] for name in ("replicate", "seed", "growth_step", "parent", "tap")}
    for mark, tap in (("a", a), ("b", b)):
        known |= {f"{name}_{mark}": tap[name] for name in ("arm", "trajectory", "step")}
    sums: dict[str, np.ndarray] = {group: np.zeros(3) for group in GROUPS}
    counts: dict[str, int] = dict.fromkeys(GROUPS, 0)
    with _Update(store, a) as one, _Update(store, b) as other:
        for name in sorted(one.names.keys() & other.names.keys()):
            x, y = one.of(name), other.of(name)
            dots = np.array([x @ y, x @ x, y @ y])
            for group in filter(None, ("overall", _group(name, one.ndim(name)))):
                sums[group] += dots
                counts[group] += len(x)
    rows = []
    for group, (dot, a_square, b_square) in sums.items():
        size = math.sqrt(a_square * b_square)
        cosine = float(np.clip(dot / size, -1.0, 1.0)) if size > 0 else float("nan")
        rows.append(known | {"group": group, "cosine": cosine, "num_params": counts[group]})
    return rows


def _group(name: str, ndim: int) -> str | None:
    if _EXPERTS in name:
        return "expert_ffn"
    if ".attention." in name and ndim >= 2:
        return "attention"
    return "embedding" if name.startswith("embedding.") else None


class _Update:
    """The summed update of a branch from its step 0 to a tap, by the parent's parameter names."""

    def __init__(self, store: Store, tap: dict[str, Any]) -> None:
        # From the record of the growth, which every release can read, and not from the trajectory's identity.
        self.operator, self.paths = parse(Operator, tap["operator"], "operator"), _files(store, tap)
        self.num_layers, self.num_experts = tap["before"]["num_layers"], tap["before"]["num_experts"]
        self.stack = ExitStack()

    def __enter__(self) -> "_Update":
        # The library types this handle as opaque.
        self.start, self.end = (
            cast(Any, self.stack.enter_context(safe_open(path, framework="numpy"))) for path in self.paths
        )
        self.names = shared_names(self.operator, self.num_layers, list(self.end.keys()))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def of(self, name: str) -> np.ndarray:
        """Flat, in float64; experts and router rows those of the parent alone."""
        rows = slice(self.num_experts if _EXPERTS in name or _ROUTER in name else None)
        start, end = (handle.get_slice(self.names[name])[rows] for handle in (self.start, self.end))
        return (end.astype(np.float64) - start.astype(np.float64)).ravel()

    def ndim(self, name: str) -> int:
        return len(self.end.get_slice(self.names[name]).get_shape())


def shared_names(operator: Operator, num_layers: int, grown_names: list[str]) -> dict[str, str]:
    """{the parent's name of a parameter: its name in the grown model}, layers by their first appearance.

    Split experts hold other units than their source, and a selection bias is no trained weight: left out.
    """
    sources = operator.layer_sources(num_layers)
    first = {new: old for new, old in enumerate(sources) if old not in sources[:new]}
    split = operator.width_method is WidthMethod.SPLIT
    shared = {}
    for name in grown_names:
        if name.endswith(_BIAS) or (split and _EXPERTS in name):
            continue
        layer, index, rest = (*name.split(".", 2), "", "")[:3]
        if layer != "layers":
            shared[name] = name
        elif int(index) in first:
            shared[f"layers.{first[int(index)]}.{rest}"] = name
    return shared


__all__ = ["COLUMNS", "GROUPS", "MAX_PAIRS", "shared_names", "update_cosines"]
