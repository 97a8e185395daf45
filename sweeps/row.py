"""A cell as the row that a table has of it: what the plan knows before anything is measured."""

import math
from collections.abc import Iterable
from typing import Any

from moe import flops
from moe.data import entropy_floor
from moe.operator import DepthMethod, Operator, WidthMethod
from moe.plain import to_plain
from sweeps.cell import BRANCH, SCRATCH, Cell, operators_of
from sweeps.config import Control
from sweeps.trajectory import Address, Kind, Trajectory


def row(cell: Cell, requested: bool) -> dict[str, Any]:
    """What the plan knows of a cell, in the vocabulary's columns; a missing value is None."""
    config, leaf = cell.config, cell.leaf
    model, trunk_params = leaf.trajectory.model, flops.activated_params(config.model)
    path = _path(leaf, num_sunk=len(cell.base.segments()) if cell.base else 0)
    tokens = sum((part["to_step"] - part["from_step"]) * part["tokens_per_step"] for part in path)
    at_step = cell.kind in (BRANCH, SCRATCH, Control.SHAM)
    branch, asked = cell.start.trajectory if cell.start else None, cell.full.questions
    source = leaf.trajectory.root.source
    return {
        "cell_id": cell.id,
        "kind": str(cell.kind),
        "requested": requested,
        "controls": {str(name): control.id for name, control in cell.controls.items()},
        "trajectory_id": leaf.trajectory.id,
        "trunk_id": cell.trunk.id,
        "growth_step": config.growth.step if at_step else None,
        **_growth_columns(cell),
        "optimizer_state": branch.optimizer_state.value if branch else None,
        "growth_lr": branch.learning_rate.peak if branch else None,
        "growth_warmup_steps": branch.learning_rate.warmup_steps if branch else None,
        "seed": config.seed,
        "train_lr": config.train.lr,
        "weight_decay": config.train.weight_decay,
        "norm_placement": config.model.norm_placement.value,
        "residual_base_layers": config.model.residual_base_layers,
        "trunk_layers": config.model.num_layers,
        "sunk_flops": cell.sunk_flops,
        "extra_flops": cell.extra_flops,
        "total_flops": cell.total_flops,
        "source_flops": source.sunk_flops if source else None,
        "paper_flops": None
        if source
        else sum(
            flops.paper_flops(flops.activated_params(t.model), n * t.train.tokens_per_step)
            for t, n in leaf.segments()
        ),
        "chinchilla_multiple": _chinchilla_multiple(cell, trunk_params),
        "tokens": tokens,
        "activated_params": flops.activated_params(model),
        "activated_matmul_params": flops.activated_matmul_params(model),
        "total_params": flops.total_params(model),
        "trunk_activated_params": trunk_params,
        "inference_flops_per_token": flops.forward_flops_per_token(model, config.train.seq_len),
        "data": config.data.source,
        "entropy_floor": entropy_floor(config.data, asked.averaged or asked.families),
        "at_growth": config.at_growth.value,
        "decay_fraction": config.budget.decay_fraction,
        "eval_id": cell.eval_id,
        "probe_eval_id": cell.probe.eval_id,
        "path": path,
        "states": {role: list(address.key) for role, address in cell.states().items()},
    }


def _growth_columns(cell: Cell) -> dict[str, Any]:
    """The growths in columns: factors multiply along a chain, other settings are the first that has them.

    Factors are those of the cell's own shape: 1 for what never grows. `growth` names the operators in order.
    """
    operators = operators_of(cell.config)
    grows = cell.kind == BRANCH
    in_grown_shape = cell.kind not in (Control.CONTINUED, Control.SHAM)
    shown = operators if grows else [Operator()]
    deep = next((o for o in shown if o.deepens), Operator())
    wide = next((o for o in shown if o.widens), Operator())
    layers = cell.leaf.trajectory.model.num_layers / cell.config.model.num_layers
    later = cell.growths[1:]
    return {
        "growth": cell.growth if grows else None,
        "growth_flops": [base.flops for base, _ in cell.growths] if grows else [],
        "method": _in_order(o.method for o in shown),
        "depth_factor": (
            layers if any(o.layer_map for o in operators) else math.prod(o.depth_factor for o in operators)
        )
        if in_grown_shape
        else 1,
        "keep_first": deep.keep_first,
        "keep_last": deep.keep_last,
        "layer_map": " ".join(map(str, deep.layer_map)) if deep.layer_map else None,
        "copies": deep.copies.value if deep.deepens else None,
        "width_method": _in_order(o.width_method for o in shown),
        "width_factor": math.prod(o.width_factor for o in operators) if in_grown_shape else 1,
        "noise_scale": wide.noise_scale if grows else None,
        "router_noise_scale": wide.router_noise if grows else None,
        "drop_fraction": wide.drop_fraction if wide.drop_fraction else None,
        "growth_seed": next((o.seed for o in shown if o.seed is not None), None),
        "then": " ".join(_settings(cell.start, start) for _, start in later) if later else None,
        "then_after_flops": later[0][0].flops - cell.growths[0][0].flops if later else None,
    }


def _settings(first: Address | None, later: Address) -> str:
    """How a further growth was done, in words that compare: "width_factor=2 noise_scale=0.01 lr=0.004".

    Seeds tell replicates apart and are left out; so is what trains as after the first growth.
    """
    settings = to_plain(later.trajectory.operator)
    settings = {name: value for name, value in settings.items() if name != "seed"}
    trained = [_training(at.trajectory) for at in (first, later) if at is not None]
    if (
        not later.trajectory.operator.width_method.shares_gradient
        and trained[0]["optimizer_state"] == "rescale"
    ):
        trained[0]["optimizer_state"] = "copy"  # what rescaling is where nothing is to be rescaled
    settings |= {name: value for name, value in trained[-1].items() if value != trained[0][name]}
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in settings.items())


def _training(branch: Trajectory) -> dict[str, Any]:
    rate = branch.learning_rate
    return {
        "optimizer_state": branch.optimizer_state.value,
        "lr": rate.peak,
        "warmup_steps": rate.warmup_steps,
    }


def _in_order(methods: Iterable[DepthMethod | WidthMethod]) -> str:
    names = [method.value for method in methods if method.value != "none"]
    return " → ".join(dict.fromkeys(names)) or "none"


def _chinchilla_multiple(cell: Cell, trunk_params: int) -> float | None:
    """Tokens the trunk had seen at growth, in units of 20·N_a; not known of a checkpoint's."""
    if cell.base is None or cell.trunk.source is not None:
        return None
    tokens = sum(t.train.tokens_per_step * n for t, n in cell.base.segments())
    return tokens / (20.0 * trunk_params)


def _path(leaf: Address, num_sunk: int) -> list[dict[str, Any]]:
    """The parts of a path; the first `num_sunk`, an anneal grown out of included, are the trunk's."""
    phases = {Kind.TRUNK: "trunk", Kind.SCRATCH: "stable", Kind.BRANCH: "stable", Kind.ANNEAL: "anneal"}
    return [
        {
            "trajectory_id": trajectory.id,
            "from_step": 0,
            "to_step": steps,
            "phase": "trunk" if nth < num_sunk else phases[trajectory.kind],
            "flops_per_step": trajectory.flops_per_step,
            "tokens_per_step": trajectory.train.tokens_per_step,
            "data_start": trajectory.data_start,
            "stream": trajectory.stream,
        }
        for nth, (trajectory, steps) in enumerate(leaf.segments())
    ]


def unique_tokens(path: list[dict[str, Any]], corpus_tokens: int | None) -> int:
    """Distinct tokens read along a path: stream positions read once, and no more than the corpus holds."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for part in path:
        span = (part["data_start"], part["data_start"] + part["to_step"] - part["from_step"])
        spans.setdefault(part["stream"], []).append(span)
    steps = 0
    for parts in spans.values():
        end = 0
        for first, last in sorted(parts):
            steps += max(0, last - max(first, end))
            end = max(end, last)
    tokens = steps * path[0]["tokens_per_step"]
    return tokens if corpus_tokens is None else min(tokens, corpus_tokens)
