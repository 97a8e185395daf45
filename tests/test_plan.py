"""The plan: what is shared, what is stored, what is left to do."""

import itertools

import pytest
import tiny

from moe.plain import digest
from sweeps.cell import all_cells
from sweeps.config import Control
from sweeps.plan import make_plan
from sweeps.row import row, unique_tokens
from sweeps.trajectory import Kind, from_identity


class Held(tiny.Nothing):
    """A store that holds the given steps, all evaluated."""

    def __init__(self, steps: dict[str, list[int]], evals=(), diverged=(), passing=()):
        self.steps, self.evals, self.bad, self.passing = steps, set(evals), dict(diverged), set(passing)

    def stored_steps(self, trajectory_id):
        return sorted(self.steps.get(trajectory_id, []))

    def kept_steps(self, trajectory_id):
        return [s for s in self.stored_steps(trajectory_id) if (trajectory_id, s) not in self.passing]

    def evaluated(self, trajectory_id):
        return {(step, eval_id) for id, step, eval_id in self.evals if id == trajectory_id}

    def diverged(self, trajectory_id):
        return self.bad.get(trajectory_id)


def grid(steps=(4, 8, 16), methods=("stack", "interposition"), **fields):
    fields = {"growth__width_method": "none", **fields}
    return [tiny.cell(growth__step=s, growth__method=m, **fields) for s in steps for m in methods]


def finished(plan):
    """A store as it would be after the plan ran."""
    steps, evals = {}, []
    for cell in plan.cells.values():
        for role, address in cell.states().items():
            steps.setdefault(address.trajectory.id, []).append(address.step)
            evals.append((*address.key, cell.suite_at(role).eval_id))
    return Held(steps, evals)


def test_a_trunk_shared_by_many_branches_is_trained_once():
    plan = make_plan(grid(steps=(16, 32, 48), trunk__steps=48), tiny.Nothing())
    trunk = plan.requested[0].trunk
    tasks = [task for task in plan.tasks.values() if task.trajectory.id == trunk.id]
    spans = sorted((task.start, task.step) for task in tasks)
    assert spans[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))  # end to end, no overlap
    assert plan.flops_todo == pytest.approx(plan.flops_shared)
    assert plan.flops_naive == pytest.approx(sum(cell.leaf.flops for cell in plan.cells.values()))
    assert plan.flops_naive > 2 * plan.flops_shared


def test_only_final_states_are_asked_the_full_suite():
    plan = make_plan(grid(), tiny.Nothing())
    asked = {task.id: {suite.name for suite in task.evaluations} for task in plan.tasks.values()}
    ends = {str(cell.leaf) for cell in plan.cells.values()}
    assert {id for id, names in asked.items() if "full" in names} == ends
    others = {str(a) for cell in plan.cells.values() for a in cell.states().values()} - ends
    assert others
    assert all(asked[id] == {"probe"} for id in others)


def test_a_branch_starts_before_its_trunk_ends():
    plan = make_plan(grid(), tiny.Nothing())
    trunk = plan.requested[0].trunk
    starts = [task for task in plan.tasks.values() if task.trajectory.kind is Kind.BRANCH and task.step == 0]
    assert {task.needs for task in starts} == {(f"{trunk.id}@4",), (f"{trunk.id}@8",), (f"{trunk.id}@16",)}


def test_a_finished_study_has_nothing_to_do():
    plan = make_plan(grid(), tiny.Nothing())
    again = make_plan(grid(), finished(plan))
    assert again.tasks == {}
    assert again.cached_tasks == len(plan.tasks)


def test_adding_a_growth_step_trains_nothing_twice():
    before = make_plan(grid(), tiny.Nothing())
    wider = make_plan(grid(steps=(4, 8, 12, 16)), finished(before))
    old = set(before.trajectories)
    again = [task for task in wider.tasks.values() if task.trajectory.id in old and not task.rewind]
    # Of what existed, only the trunk's state at 12 is derived again, from 11, a continuation's tap.
    rewinds = [task for task in wider.tasks.values() if task.rewind]
    assert {(task.start, task.step) for task in rewinds if task.step == 12} == {(11, 12)}
    assert all(task.start >= 16 or task.rewind for task in again)
    assert wider.flops_rewind <= 8 * before.requested[0].trunk.flops_per_step


def test_a_changed_evaluation_trains_nothing():
    before = make_plan(grid(), tiny.Nothing())
    plan = make_plan(grid(evaluate__items=32), finished(before))
    assert plan.flops_todo == plan.flops_rewind == 0
    assert plan.tasks
    assert all(task.start == task.step and task.evaluations for task in plan.tasks.values())


def test_a_diverged_trunk_blocks_what_lies_beyond_and_nothing_else():
    cells = grid(steps=(4, 16), methods=("stack",), controls=[])
    trunk = cells[0].trunk
    plan = make_plan(cells, Held({trunk.id: [4]}, diverged={trunk.id: 10}))
    planned = {task.trajectory.id for task in plan.tasks.values()}
    assert cells[0].leaf.trajectory.id in planned
    assert cells[1].leaf.trajectory.id not in planned
    assert cells[1].leaf.key in plan.diverged


def test_total_flops_is_sunk_plus_extra():
    cell = tiny.cell(controls=["continued", "scratch_extra", "scratch_total", "sham"])
    for one in (cell, *cell.controls.values()):
        facts = row(one, True)
        if one.kind == Control.CONTINUED:  # shared by branches of different sunk FLOPs
            assert facts["sunk_flops"] is facts["extra_flops"] is None
        else:
            assert facts["total_flops"] == facts["sunk_flops"] + facts["extra_flops"]
        assert facts["total_flops"] == pytest.approx(
            sum((p["to_step"] - p["from_step"]) * p["flops_per_step"] for p in facts["path"])
        )


def test_controls_never_spend_more_than_the_branch_and_at_most_a_step_less():
    cell = tiny.cell(controls=["continued", "scratch_extra", "scratch_total", "sham"])
    extra = cell.total_flops - cell.base.flops
    for name, spent in ((Control.CONTINUED, cell.total_flops), (Control.SCRATCH_TOTAL, cell.total_flops)):
        control = cell.controls[name].leaf
        assert 0 <= spent - control.flops < control.trajectory.flops_per_step * 1.001
    for name in (Control.SCRATCH_EXTRA, Control.SHAM):
        control = cell.controls[name]
        spent = control.total_flops - (control.base.flops if control.base else 0)
        assert 0 <= extra - spent < control.leaf.trajectory.flops_per_step * 1.001


def test_controls_are_annealed_with_the_flops_of_their_branch():
    cell = tiny.cell(budget__extra_flops=4e8, controls=["continued", "sham", "scratch_total"])
    annealed = cell.leaf.flops - cell.stable.flops
    for control in cell.controls.values():
        spent = control.leaf.flops - control.stable.flops
        assert 0 <= annealed - spent < control.leaf.trajectory.flops_per_step * 1.001
        assert control.leaf.trajectory.kind is Kind.ANNEAL


def test_step_zero_is_scratch_in_the_grown_shape():
    scratch, grown = tiny.cell(growth__step=0), tiny.cell(controls=["scratch_extra"])
    assert scratch.kind == "scratch"
    assert scratch.leaf.trajectory.model == grown.leaf.trajectory.model
    assert scratch.id == grown.controls[Control.SCRATCH_EXTRA].id
    assert len(all_cells([scratch, grown])) == 2


def test_growth_beyond_decay_from_starts_from_the_trunks_anneal_and_its_flops_are_sunk():
    annealed = tiny.cell(growth__step=14, trunk__decay_from=10)
    stable = tiny.cell(growth__step=14)
    assert annealed.base.trajectory.kind is Kind.ANNEAL
    assert annealed.base.step == 4
    assert annealed.sunk_flops == stable.sunk_flops
    assert tiny.cell(growth__step=10, trunk__decay_from=10).id == tiny.cell(growth__step=10).id


def test_all_that_was_spent_before_the_growth_is_the_trunks_phase():
    path = row(tiny.cell(growth__step=14, trunk__decay_from=10), True)["path"]
    assert [part["phase"] for part in path] == ["trunk", "trunk", "stable", "anneal"]


def test_a_trajectory_of_an_older_version_keeps_its_id():
    leaf = tiny.cell().leaf.trajectory
    old = {**leaf.parent.trajectory.identity, "version": 1}
    again = from_identity(old, Kind.BRANCH, leaf.root)
    assert again.identity == old
    assert again.id == digest(old) != leaf.parent.trajectory.id


def test_a_cosine_shares_no_trunk_between_horizons():
    a = tiny.cell(train__schedule="cosine", budget__decay_fraction=0.0, trunk__steps=32)
    assert a.controls[Control.CONTINUED].leaf.trajectory.id != a.trunk.id
    assert a.stable is None


def test_the_plan_says_how_much_sharing_a_cosine_costs():
    cosine = grid(train__schedule="cosine", budget__decay_fraction=0.0)
    constant = grid(budget__decay_fraction=0.0)
    plan = make_plan(cosine, tiny.Nothing())
    assert plan.flops_lost_to_cosine > 0
    expected = plan.flops_shared - make_plan(constant, tiny.Nothing()).flops_shared
    assert plan.flops_lost_to_cosine == pytest.approx(expected)
    assert make_plan(constant, tiny.Nothing()).flops_lost_to_cosine == 0


@pytest.mark.parametrize(("at_growth", "start", "stream", "unique"), [
    ("continue", 8, "train", "all"), ("replay", 0, "train", "trunk"), ("disjoint", 8, "disjoint", "all")
])  # fmt: skip
def test_a_branch_reads_the_tokens_it_was_told_to(at_growth, start, stream, unique):
    cell = tiny.cell(data__at_growth=at_growth)
    branch, path = cell.start.trajectory, row(cell, True)["path"]
    assert (branch.data_start, branch.stream) == (start, stream)
    tokens = sum((p["to_step"] - p["from_step"]) * p["tokens_per_step"] for p in path)
    trunk = max(8, sum(p["to_step"] for p in path[1:])) * path[0]["tokens_per_step"]
    assert unique_tokens(path, None) == (tokens if unique == "all" else trunk)
    assert unique_tokens(path, 100) == 100


def test_a_trajectory_is_rebuilt_from_its_identity():
    leaf = tiny.cell("growth=orthogonal").leaf.trajectory
    branch, trunk = leaf.parent.trajectory, leaf.root
    again = from_identity(trunk.identity, Kind.TRUNK, None)
    again = from_identity(branch.identity, Kind.BRANCH, again)
    again = from_identity(leaf.identity, Kind.ANNEAL, again)
    assert again.id == leaf.id
    assert again.model == leaf.model


def test_the_longest_path_of_work_goes_first():
    plan = make_plan(grid(steps=(4,), methods=("stack",)), tiny.Nothing())
    trunk_first = plan.tasks[f"{plan.requested[0].trunk.id}@4"]
    assert max(plan.remaining_flops.values()) == plan.remaining_flops[trunk_first.id]


def test_a_checkpoint_that_passes_is_where_training_begins_and_is_no_stored_tap():
    """The growth step happens to be a checkpoint: it must become a state that stays, for no FLOPs."""
    cell = tiny.cell(growth__step=8)
    key = f"{cell.trunk.id}@8"
    evals = [e for e in finished(make_plan([cell], tiny.Nothing())).evals if e[0] == cell.trunk.id]
    task = make_plan([cell], Held({cell.trunk.id: [8]}, evals, passing=[(cell.trunk.id, 8)])).tasks[key]
    assert (task.start, task.step, task.flops) == (8, 8, 0)
    assert key not in make_plan([cell], Held({cell.trunk.id: [8]}, evals)).tasks
