"""Chains of growths: trunk → depth → train → width → train is an ordinary cell whose ledger adds up."""

import pandas as pd
import pytest
import tiny

from analysis.arms import add_arms
from moe.files import read_json
from sweeps.cell import resolve
from sweeps.config import Control, parse_sweep
from sweeps.plan import make_plan
from sweeps.row import row
from sweeps.store import Store
from sweeps.study import run_study
from sweeps.trajectory import Kind

AFTER = {"growth__then__after_extra_flops": 2e7}
BUDGET = {"budget__extra_flops": 8e7}


def chain(name="chain", **fields):
    return tiny.cell(f"growth={name}", **{**AFTER, **BUDGET, **fields})


def refuse(match: str, **fields) -> None:
    with pytest.raises(ValueError, match=match):
        resolve(parse_sweep(tiny.mapping("growth=chain", **{**AFTER, **BUDGET, **fields})))


def test_a_chains_ledger_adds_up():
    cell = chain()
    facts = row(cell, True)
    spent = [(p["to_step"] - p["from_step"]) * p["flops_per_step"] for p in facts["path"]]
    assert facts["sunk_flops"] == pytest.approx(spent[0])
    assert facts["extra_flops"] == pytest.approx(sum(spent[1:]))
    assert facts["total_flops"] == facts["sunk_flops"] + facts["extra_flops"]
    assert 8e7 - cell.leaf.trajectory.flops_per_step < facts["extra_flops"] <= 8e7
    assert facts["then_after_flops"] == pytest.approx(spent[1])
    assert 2e7 - cell.start.trajectory.flops_per_step < spent[1] <= 2e7


def test_its_parts_are_a_trunk_two_branches_and_an_anneal():
    kinds = [trajectory.kind for trajectory, _ in chain().leaf.segments()]
    assert kinds == [Kind.TRUNK, Kind.BRANCH, Kind.BRANCH, Kind.ANNEAL]
    assert list(chain().states()) == ["base", "start", "base_2", "start_2", "stable", "final"]


@pytest.mark.parametrize(("name", "growth"), [
    ("chain", "interposition → duplicate"), ("width_then_depth", "duplicate → interposition"),
])  # fmt: skip
def test_both_orders_end_in_the_same_architecture_as_scratch(name, growth):
    cell = chain(name, controls=["scratch_extra", "scratch_total", "continued", "sham"])
    final = tiny.cell("growth=orthogonal", **BUDGET).leaf.trajectory.model
    assert cell.leaf.trajectory.model == final
    for control in (Control.SCRATCH_EXTRA, Control.SCRATCH_TOTAL):
        assert cell.controls[control].leaf.trajectory.model == final
    assert cell.controls[Control.CONTINUED].leaf.trajectory.model == cell.trunk.model
    facts = row(cell, True)
    assert (facts["growth"], facts["depth_factor"], facts["width_factor"]) == (growth, 2, 2)


def test_controls_spend_what_the_chain_spent():
    cell = chain(controls=["scratch_extra", "scratch_total", "continued", "sham"])
    extra = cell.total_flops - cell.base.flops
    for name, budget in (
        ("scratch_extra", extra),
        ("scratch_total", cell.total_flops),
        ("continued", cell.total_flops),
    ):
        control = cell.controls[Control(name)].leaf
        assert 0 <= budget - control.flops < 1.001 * control.trajectory.flops_per_step
    annealed = cell.leaf.flops - cell.stable.flops
    assert annealed == pytest.approx(0.2 * extra, abs=cell.leaf.trajectory.flops_per_step)


def test_the_first_growth_of_a_chain_is_the_branch_of_that_growth_alone():
    alone = tiny.cell("growth=depth")
    assert chain().start.trajectory.id == alone.start.trajectory.id
    plan = make_plan([chain(controls=[]), tiny.cell("growth=depth", controls=[])], tiny.Nothing())
    assert sum(t.kind is Kind.BRANCH for t in plan.trajectories.values()) == 2


def test_each_growth_of_a_chain_draws_from_a_stream_of_its_own():
    twice = chain(growth__width_method="duplicate", growth__method="none")
    first, second = (start.trajectory.operator for _, start in twice.growths)
    assert first.seed != second.seed
    assert twice.leaf.trajectory.model.num_experts == 4 * twice.trunk.model.num_experts
    same = chain(
        growth__width_method="duplicate", growth__method="none", growth__seed=7, growth__then__seed=7
    )
    first, second = (start.trajectory.operator for _, start in same.growths)
    assert first.seed != second.seed  # else the copies of a copy would be exact twins, noise or not


def test_a_further_growth_trains_as_the_first_unless_told_otherwise():
    same, other = chain(growth__lr=1e-3), chain(growth__lr=1e-3, growth__then__lr=2e-3)
    rates = [start.trajectory.learning_rate.peak for _, start in same.growths]
    assert rates == [1e-3, 1e-3]
    assert [start.trajectory.learning_rate.peak for _, start in other.growths] == [1e-3, 2e-3]


@pytest.mark.parametrize(("fields", "match"), [
    ({"growth__then__after_extra_flops": 0.0}, r"after_extra_flops=0.0 precedes growth.step.*choose above 0"),
    ({"growth__then__after_extra_flops": -1e6}, r"after_extra_flops=-1000000.0 precedes growth.step"),
    ({"growth__then__after_extra_flops": 9e7}, r"after_extra_flops=9e\+07 is not below the 8e\+07 FLOPs"),
    ({"growth__then__after_extra_flops": 10.0}, r"after_extra_flops=10 leaves no whole step"),
    ({"growth__then__width_factor": 1}, r"growth.then.width_factor=1 must be at least 2"),
    ({"growth__then__width_method": "top_k_only", "growth__then__width_factor": 9},
     r"growth.then.width_factor=9 asks for top_k=18 of 4 experts"),
    ({"train__schedule": "cosine", "budget__decay_fraction": 0.0}, r"growth.then needs train.schedule=const"),
])  # fmt: skip
def test_a_chain_that_makes_no_sense_is_refused(fields, match):
    refuse(match, **fields)


def test_a_third_growth_may_not_precede_the_second():
    third = {**tiny.composed("growth=chain")["growth"]["then"], "after_extra_flops": 1e7}
    refuse(
        r"growth.then.then.after_extra_flops=10000000.0 precedes the growth before it",
        growth__then__then=third,
    )


THEN = {
    "lr": (1e-3, 2e-3),
    "warmup_steps": (2, 7),
    "optimizer_state": ("reset", "copy"),
    "noise_scale": (0.01, 0.1),
    "router_noise_scale": (0.01, 0.1),
    "width_factor": (2, 3),
}


@pytest.mark.parametrize("field", THEN)
def test_each_setting_of_a_further_growth_makes_an_arm_of_its_own(field):
    """Else a report would average two treatments."""
    rows = [row(chain(**{f"growth__then__{field}": value}), True) for value in THEN[field]]
    arms = add_arms(pd.DataFrame(rows))["arm"]
    assert arms.nunique() == 2
    assert all(arm.startswith("interposition → duplicate") for arm in arms)


def test_rescaling_where_nothing_is_rescaled_is_no_setting():
    """A depth growth after a width growth copies its moments, whatever was asked for."""
    rows = [
        row(chain("width_then_depth", growth__optimizer_state=rule), True) for rule in ("reset", "rescale")
    ]
    arms = add_arms(pd.DataFrame(rows))["arm"]
    assert set(arms) == {f"duplicate → interposition, moments {rule}" for rule in ("reset", "rescale")}


def test_noise_seeds_of_a_chain_are_replicates_of_one_arm():
    rows = [row(chain(growth__seed=seed), True) for seed in (1, 2)]
    assert add_arms(pd.DataFrame(rows))["arm"].nunique() == 1


def test_a_third_growth_is_named_where_it_stands():
    third = {**tiny.composed("growth=chain")["growth"]["then"], "width_factor": 1}
    refuse(r"growth.then.then.width_factor=1 must be at least 2", growth__then__then=third)


def test_a_growth_without_a_place_takes_the_middle_of_what_is_left():
    third = {**tiny.composed("growth=chain")["growth"]["then"], "after_extra_flops": None}
    cell = chain(growth__then__then=third, growth__then__after_extra_flops=4e7, budget__extra_flops=1.2e8)
    flops = [base.flops - cell.base.flops for base, _ in cell.growths]
    assert flops[2] == pytest.approx((flops[1] + 1.2e8) / 2, abs=cell.leaf.trajectory.flops_per_step)


def test_growths_divide_the_extra_budget_evenly_unless_told_otherwise():
    cell = tiny.cell("growth=chain", **BUDGET)
    after = row(cell, True)["then_after_flops"]
    assert 0 <= 4e7 - after < cell.start.trajectory.flops_per_step


def test_a_chain_runs_and_tells_what_each_growth_did(store_root):
    mapping = tiny.mapping("growth=chain", **AFTER, **BUDGET, launch__store=store_root)
    study = run_study([mapping])
    assert study.exit_code == 0
    store, cell = Store(store_root), chain()
    for nth, part in ((0, "depth copy"), (1, "width copy")):
        trajectory = cell.growths[nth][1].trajectory
        report = read_json(store.folder(trajectory.id) / "states" / "growth.json")
        assert report["jump"][0]["part"] == part
        base, start = cell.growths[nth]
        losses = [
            next(e["loss"] for e in store.evals(at.trajectory.id) if e["step"] == at.step)
            for at in (base, start)
        ]
        assert (losses[0] == pytest.approx(losses[1], abs=1e-2)) == (nth == 1)
    assert store.evals(cell.leaf.trajectory.id)[-1]["step"] == cell.leaf.step
