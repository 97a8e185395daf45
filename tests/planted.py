"""Writes a store with a known answer: plain files, no training, every accuracy chosen beforehand.

A branch's expected final accuracy is `level + slope · sunk/F_c`, shifted by its seed; *continued* expects
`net` less than that. Evaluation noise is binomial over `items`, drawn from a fixed generator. With
`Effect.loss` the expected final *loss* is planted instead, and accuracy follows from it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

LEVELS = {"facts": 5, "hops": 4, "arithmetic": 3, "recall": 2, "grammar": 5}  # counted from 0
FAMILIES = tuple(LEVELS)
TRUNK_PARAMS = 120_000
F_C = 120 * TRUNK_PARAMS**2
CHANCE = 0.25


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What is planted. Accuracies are fractions, `slope` per F_c of sunk FLOPs, steps those of the trunk."""

    name: str = "planted"
    seeds: tuple[int, ...] = (0,)
    growth_steps: tuple[int, ...] = (100, 200, 400, 800)
    methods: tuple[str, ...] = ("stack", "interposition")
    level: float = 0.45
    slope: float = 0.0
    net: float = 0.0
    method_gain: float = 0.0
    seed_spread: float = 0.01
    items: int = 5000
    extra_steps: int = 200
    tokens_per_step: int = 8192
    fixed_total: bool = False
    controls: tuple[str, ...] = ("continued", "scratch_extra", "scratch_total")
    status: dict[tuple[int, str], str] = field(default_factory=dict)
    scratch_requested: bool = False
    trunk_params: int = TRUNK_PARAMS
    loss: Callable[[str, float, float], float] | None = None  # of arm, sunk / F_c, extra / F_c
    # By name in `methods`: columns of the row, accuracy added, cost of a step in those of the trunk's, and
    # who grows once more halfway.
    settings: dict[str, dict] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    step_cost: dict[str, float] = field(default_factory=dict)
    chained: tuple[str, ...] = ()


def plant(root: Path, effect: Effect) -> Path:
    """Writes the study under `root` and returns `root`; the same effect gives the same bytes."""
    writer = _Writer(root, effect)
    for seed in effect.seeds:
        writer.add_seed(seed)
    study = root / "studies" / effect.name
    study.mkdir(parents=True, exist_ok=True)
    shared = sum(row["extra_flops"] or 0.0 for row in writer.cells)
    plan = {
        "cells": sum(row["requested"] for row in writer.cells),
        "controls": sum(not row["requested"] for row in writer.cells),
        "trajectories": len(writer.written),
        "tasks": 3 * len(writer.written),
        "cached_tasks": 0,
        "flops_naive": sum(row["total_flops"] for row in writer.cells),
        "flops_shared": shared,
        "flops_rewind": 0.0,
        "flops_todo": 0.0,
    }
    statuses = [row["status"] for row in writer.cells]
    summary = {name: statuses.count(name) for name in ("done", "failed", "blocked", "diverged")}
    summary |= {
        "cached": 0,
        "spent_flops": shared,
        "wall_s": 61.0,
        "versions": {"python": "3.12", "torch": "2.11"},
    }
    for name, value in (
        ("cells", {"study": effect.name, "cells": writer.cells}),
        ("plan", plan),
        ("summary", summary),
    ):
        (study / f"{name}.json").write_text(json.dumps(value))
    return root


def edit_cells(root: Path, change, name: str = "planted") -> None:
    """Applies `change` to each stored row of the study's cells."""
    path = root / "studies" / name / "cells.json"
    study = json.loads(path.read_text())
    for row in study["cells"]:
        change(row)
    path.write_text(json.dumps(study))


def edit_evals(root: Path, change) -> None:
    """Applies `change` to each stored evaluation."""
    for path in (root / "trajectories").glob("*/evals.jsonl"):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        for line in lines:
            change(line)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


JUMPS = {
    "stack": {"depth copy": 1.5},
    "interposition": {"depth copy": 0.125},
    "duplicate": {"width copy": 0.0, "expert noise": 2e-6, "router noise": -5e-6},
}
TWINS = {  # per layer; the first is dense
    "twin_cosine": [None, 0.9, 0.7],
    "twin_distance": [None, 0.1, 0.3],
    "co_routing": [None, 0.75, 0.25],
    "expert_load_entropy": [None, 1.0, 0.5],
}


def plant_growths(root: Path, name: str = "planted") -> Path:
    """Adds what growths leave behind, and to each interposition cell a chain that goes on from it at step 20.

    The chain duplicates experts, trains 40 steps and ends there, without an evaluation.
    """
    path = root / "studies" / name / "cells.json"
    study = json.loads(path.read_text())
    for row in [row for row in study["cells"] if row["kind"] == "branch"]:
        row["growth"] = row["method"]
        base, start = row["states"]["base"], row["states"]["start"]
        plant_growth(root, start[0], f"{base[0]}@{base[1]}", row["method"])
        if row["method"] == "interposition":
            study["cells"].append(_chain(root, row))
    path.write_text(json.dumps(study))
    return root


def plant_norms(root: Path, num_layers: int = 6, name: str = "planted") -> Path:
    """Adds per-layer norms on every 20th line: those of a trunk rise with depth, `norm_at` says how."""
    cells = json.loads((root / "studies" / name / "cells.json").read_text())["cells"]
    branches = [row for row in cells if row["kind"] == "branch"]
    for trunk, top in {(row["trunk_id"], max(r["growth_step"] for r in branches)) for row in branches}:
        _add_norms(root, trunk, lambda step: norm_at(step, num_layers), top)
    for row in branches:
        base = norm_at(row["growth_step"], num_layers)
        sources = range(2 * num_layers)
        order = [i // 2 if row["method"] == "interposition" else i % num_layers for i in sources]
        start = [base[i] for i in order]
        norms = {"before": base, "after": start}
        plant_growth(root, row["states"]["start"][0], "", row["method"], expert_weight_norm=norms)
        for part in row["path"][1:]:
            _add_norms(
                root, part["trajectory_id"], lambda step, start=start: [n + step * 1e-5 for n in start]
            )
    return root


def norm_at(step: int, num_layers: int) -> list[float]:
    """The planted trunk's norms at a step, by layer."""
    return [round(0.03 + 0.001 * layer * (1 - np.exp(-step / 200)), 6) for layer in range(num_layers)]


def _add_norms(root: Path, trajectory: str, norms, top: float = np.inf) -> None:
    path = next((root / "trajectories").glob(f"*-{trajectory}")) / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        if line["step"] % 20 == 0 and line["step"] <= top:
            line["expert_weight_norm"] = norms(line["step"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def plant_growth(root: Path, trajectory: str, parent: str, method: str, **more) -> None:
    """Writes the growth.json of a planted branch: loss 2.5 before, and after what `JUMPS` adds to it."""
    jump = JUMPS[method]
    deep = method != "duplicate"
    none = {"method": "none", "depth_factor": 1, "width_method": "none", "width_factor": 1}
    own = {"method": method, "depth_factor": 2} if deep else {"width_method": method, "width_factor": 2}
    before = {"num_layers": 2 if deep else 4, "num_experts": 2, "top_k": 1, "total_params": 100}
    before |= {"activated_params": 50, "train_flops_per_token": 300.0}
    after = before | {"num_layers": 4, "num_experts": 2 if deep else 4, "top_k": 1 if deep else 2}
    record = {
        "parent": parent,
        "operator": none | own | {"noise_scale": 0.0 if deep else 0.01, "seed": None if deep else 0},
        "exactness": "changed" if deep else "perturbed",
        "probe_tokens": 640,
        "loss_before": 2.5,
        "loss_after": 2.5 + sum(jump.values()),
        "max_logit_change": 4.0,
        "jump": [{"part": p, "loss_change": c, "max_logit_change": 1.0} for p, c in jump.items()],
        "effective_noise_scale": None if deep else {"experts": 0.0101, "router": 0.0099, "unchanged": 0.0},
        "expert_weight_norm": {"before": [0.3, 0.5], "after": [0.3, 0.5, 0.3, 0.5]},
        "before": before,
        "after": after,
    }
    folder = next((root / "trajectories").glob(f"*-{trajectory}"))
    (folder / "states").mkdir(exist_ok=True)
    (folder / "states" / "growth.json").write_text(json.dumps(record | more))


def _chain(root: Path, row: dict) -> dict:
    trunk, first, _ = row["path"]
    trajectory = identity("chain", row["cell_id"])
    folder = root / "trajectories" / f"branch-planted-{trajectory}"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({"kind": "branch"}))
    lines = [{"step": step, "loss": 2.0} | (TWINS if step == 20 else {}) for step in range(1, 41)]
    lines[19] |= {"first_moment_cosine": 0.25, "second_moment_cosine": 0.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plant_growth(root, trajectory, f"{first['trajectory_id']}@20", "duplicate")
    second = first | {"trajectory_id": trajectory, "to_step": 40, "flops_per_step": 2e9}
    states = row["states"] | {"base_2": [first["trajectory_id"], 20], "start_2": [trajectory, 0]}
    return row | {
        "cell_id": identity("chain cell", row["cell_id"]),
        "growth": "interposition → duplicate",
        "trajectory_id": trajectory,
        "path": [trunk, first | {"to_step": 20}, second],
        "states": states | {"stable": [trajectory, 40], "final": [trajectory, 40]},
    }


def identity(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class _Writer:
    def __init__(self, root: Path, effect: Effect) -> None:
        self.root, self.effect = root, effect
        self.cells: list[dict] = []
        self.written: set[str] = set()
        self.random = np.random.default_rng(7)
        self.f_c = 120 * effect.trunk_params**2
        self.trunk_step_flops = 6.0 * effect.trunk_params * effect.tokens_per_step
        self.grown_step_flops = 1.9 * self.trunk_step_flops

    def add_seed(self, seed: int) -> None:
        e = self.effect
        shift = e.seed_spread * np.random.default_rng(seed + 100).normal()
        trunk = identity(e.name, "trunk", seed)
        longest = max(e.growth_steps)
        total = (longest + e.extra_steps) * self.trunk_step_flops
        scratch_extra = None
        if "scratch_extra" in e.controls:
            extra = total - min(e.growth_steps) * self.trunk_step_flops if e.fixed_total else None
            steps = self._grown_steps(extra or e.extra_steps * self.trunk_step_flops)
            kind = "scratch" if e.scratch_requested else "scratch_extra"
            scratch_extra = self._fresh(seed, kind, steps, e.level + shift, e.scratch_requested)
        self._trajectory(
            "trunk", trunk, longest + e.extra_steps, self.trunk_step_flops, e.level + shift, seed
        )
        for s in e.growth_steps:
            sunk = s * self.trunk_step_flops
            extra = total - sunk if e.fixed_total else e.extra_steps * self.trunk_step_flops
            grown = e.level + e.slope * sunk / F_C + shift
            controls = {"scratch_extra": scratch_extra} if scratch_extra else {}
            if "continued" in e.controls:
                controls["continued"] = self._continued(seed, trunk, s, extra, grown - e.net)
            if "scratch_total" in e.controls:
                whole = self._grown_steps(sunk + extra)
                controls["scratch_total"] = self._fresh(seed, "scratch_total", whole, e.level + shift, False)
            for i, method in enumerate(e.methods):
                gain = e.gains.get(method, i * e.method_gain)
                self._branch(seed, trunk, s, method, extra, grown + gain, controls)

    def _level(self, arm: str, sunk: float, extra: float, acc: float, seed: int) -> float:
        """The accuracy whose loss is the planted one, shifted by the seed; `acc` where no loss is planted."""
        e = self.effect
        if e.loss is None:
            return acc
        shift = e.seed_spread * np.random.default_rng(seed + 100).normal()
        return (3.4 - e.loss(arm, sunk / self.f_c, extra / self.f_c)) / 2.0 + shift

    def _grown_steps(self, flops: float) -> int:
        return int(flops // self.grown_step_flops)

    def _branch(self, seed, trunk, s, method, extra, acc, controls) -> None:
        cost = self.effect.step_cost.get(method, 1.9) * self.trunk_step_flops
        steps = int(extra // cost)
        branch, anneal = (identity(self.effect.name, seed, s, method, steps, part) for part in "ba")
        acc = self._level(method, s * self.trunk_step_flops, steps * self.grown_step_flops, acc, seed)
        status = self.effect.status.get((s, method), "done")
        decay = steps // 5
        path = [
            self._segment(trunk, s, "trunk", self.trunk_step_flops),
            self._segment(branch, steps - decay, "stable", cost),
            self._segment(anneal, decay, "anneal", cost),
        ]
        if status in ("done", "diverged"):
            self._trajectory("branch", branch, steps - decay, cost, acc - 0.02, seed)
        if status == "done":
            self._trajectory("anneal", anneal, decay, cost, acc, seed, end=True)
        again = {}
        if method in self.effect.chained:
            second, half = identity(branch, "again"), (steps - decay) // 2
            path[1:2] = [
                self._segment(branch, half, "stable", cost),
                self._segment(second, steps - decay - half, "stable", cost),
            ]
            self._trajectory("branch", second, steps - decay - half, cost, acc - 0.01, seed)
            again = {"base_2": [branch, half], "start_2": [second, 0]}
        sunk = s * self.trunk_step_flops
        states = {
            "base": [trunk, s],
            "start": [branch, 0],
            "stable": [path[-2]["trajectory_id"], path[-2]["to_step"]],
            "final": [anneal, decay],
        }
        own = self.effect.settings.get(method, {})
        self._cell(
            *("branch", seed, trunk, path, states | again, True, sunk, steps * cost, controls, s, method),
            status,
        )
        self.cells[-1].update(own)

    def _continued(self, seed, trunk, s, extra, acc) -> str:
        steps = int(extra // self.trunk_step_flops)
        acc = self._level("continued", 0.0, (s + steps) * self.trunk_step_flops, acc, seed)
        decay = steps // 5
        anneal = identity(self.effect.name, seed, s, "continued", steps)
        path = [
            self._segment(trunk, s + steps - decay, "trunk", self.trunk_step_flops),
            self._segment(anneal, decay, "anneal", self.trunk_step_flops),
        ]
        self._trajectory("anneal", anneal, decay, self.trunk_step_flops, acc, seed, end=True)
        states = {"base": None, "start": None, "stable": [trunk, s + steps - decay], "final": [anneal, decay]}
        return self._cell("continued", seed, trunk, path, states, False, None, None, {}, None, "none", "done")

    def _fresh(self, seed, kind, steps, acc, requested) -> str:
        acc = self._level("scratch", 0.0, steps * self.grown_step_flops, acc, seed)
        scratch, anneal = (identity(self.effect.name, seed, kind, steps, part) for part in "sa")
        decay = steps // 5
        path = [
            self._segment(scratch, steps - decay, "stable", self.grown_step_flops),
            self._segment(anneal, decay, "anneal", self.grown_step_flops),
        ]
        self._trajectory("scratch", scratch, steps - decay, self.grown_step_flops, acc - 0.02, seed)
        self._trajectory("anneal", anneal, decay, self.grown_step_flops, acc, seed, end=True)
        states = {"base": None, "start": None, "stable": [scratch, steps - decay], "final": [anneal, decay]}
        extra = steps * self.grown_step_flops
        return self._cell(kind, seed, scratch, path, states, requested, 0.0, extra, {}, None, "none", "done")

    def _segment(self, trajectory: str, to_step: int, phase: str, flops: float) -> dict:
        return {
            "trajectory_id": trajectory,
            "from_step": 0,
            "to_step": to_step,
            "phase": phase,
            "flops_per_step": flops,
            "tokens_per_step": self.effect.tokens_per_step,
        }

    def _cell(
        self, kind, seed, trunk, path, states, requested, sunk, extra, controls, growth_step, method, status
    ) -> str:
        cell_id = identity(kind, path[-1]["trajectory_id"])
        if any(row["cell_id"] == cell_id for row in self.cells):
            return cell_id
        tokens = sum(p["to_step"] * p["tokens_per_step"] for p in path)
        total = sum(p["to_step"] * p["flops_per_step"] for p in path)
        params = self.effect.trunk_params * (1 if kind == "continued" else 2)
        self.cells.append(
            {
                "cell_id": cell_id,
                "kind": kind,
                "requested": requested,
                "controls": controls,
                "status": status,
                "trajectory_id": path[-1]["trajectory_id"],
                "trunk_id": trunk,
                "growth_step": growth_step,
                "method": method,
                "depth_factor": 1 if kind == "continued" else 2,
                "width_method": "none",
                "width_factor": 1,
                "noise_scale": 0.0,
                "optimizer_state": "reset",
                "growth_lr": None,
                "seed": seed,
                "growth_seed": seed,
                "sunk_flops": sunk,
                "extra_flops": extra,
                "total_flops": total,
                "paper_flops": total,
                "chinchilla_multiple": tokens / (20 * params),
                "tokens": tokens,
                "unique_tokens": None,
                "epochs": 1.0,
                "activated_params": params,
                "activated_matmul_params": params // 2,
                "total_params": 3 * params,
                "trunk_activated_params": self.effect.trunk_params,
                "inference_flops_per_token": 2.0 * params,
                "data": "world",
                "at_growth": "continue",
                "decay_fraction": 0.2,
                "eval_id": "full00000000",
                "probe_eval_id": "probe0000000",
                "path": path,
                "states": states,
            }
        )
        return cell_id

    def _trajectory(self, kind, trajectory, steps, step_flops, acc, seed, end=False) -> None:
        if trajectory in self.written:
            return
        self.written.add(trajectory)
        folder = self.root / "trajectories" / f"{kind}-planted-{trajectory}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps({"kind": kind, "seed": seed}))
        floor = 3.4 - 2.0 * acc
        noise = self.random.normal(0, 0.05, steps)
        lines = []
        start = 0.25 if kind == "branch" else 1.6
        for step in range(1, steps + 1):
            fade = 0.1 * (1 - step / steps) if end else start * np.exp(-step / 60) + 0.1
            lr = 0.004 * (1 - step / steps if end else min(1.0, step / 20))
            line = {"step": step, "loss": floor + fade + noise[step - 1], "lr": lr, "grad_norm": 0.5}
            line |= {"load_balance_loss": 1.0, "z_loss": 0.1, "tokens": step * self.effect.tokens_per_step}
            lines.append(json.dumps(line | {"flops": step * step_flops}))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        taps = {steps} | ({0} if kind == "branch" else set())
        taps |= set(self.effect.growth_steps) if kind == "trunk" else set()
        marks = sorted(taps | (set() if end else set(range(20, steps, 20))))
        evals = []
        for step in marks:
            gap = 0.3 if kind == "branch" else 1.0
            level = acc if end else acc - gap * (acc - CHANCE) * np.exp(-step / 80)
            line = self._evaluation(step, *(("full", self.effect.items) if end else ("probe", 100)), level)
            evals.append(line | ({"tap": True} if step in taps else {}))
        (folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))

    def _evaluation(self, step: int, suite: str, items: int, acc: float) -> dict:
        share = items // len(FAMILIES)
        families = {}
        for i, name in enumerate(FAMILIES):
            hit = self.random.binomial(share, np.clip(acc + 0.06 * (i - 2), 0.02, 0.98)) / share
            families[name] = {
                "acc": hit,
                "n": share,
                "se": float(np.sqrt(hit * (1 - hit) / share)),
                "chance": CHANCE,
                "acc_above_chance": (hit - CHANCE) / (1 - CHANCE),
                "prob_right": hit * 0.9,
                "loss": 3.4 - 2.0 * hit,
                "levels": _levels(hit, LEVELS[name]),
            }
        mean = float(np.mean([f["acc"] for f in families.values()]))
        return {
            "step": step,
            "eval_id": f"{suite}00000000"[:12],
            "suite": suite,
            "acc": mean,
            "acc_se": float(np.sqrt(sum(f["se"] ** 2 for f in families.values())) / len(FAMILIES)),
            "n": share * len(FAMILIES),
            "chance": CHANCE,
            "acc_above_chance": (mean - CHANCE) / (1 - CHANCE),
            "prob_right": 0.9 * mean,
            "loss": 3.4 - 2.0 * mean,
            "families": families,
        }


def _levels(acc: float, num_levels: int) -> dict[str, float]:
    """Accuracies that fall evenly with the level, whose mean is `acc`."""
    reach = min(0.2, acc, 1 - acc)
    places = np.linspace(reach, -reach, num_levels)
    return {str(level): acc + float(place) for level, place in enumerate(places)}
