"""A run killed at each named point of its writing is completed by the next to the same bytes."""

import injection
import pytest
import wreck


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The store of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("calm") / "store"
    status, output = wreck.run(wreck.study(root))
    assert status == 0, output
    return root


POINTS = {
    "a trajectory has no spec yet": ("before", "replace trajectories/trunk-*/spec.json"),
    "a study's files are half replaced": ("before", "replace studies/adhoc/plan.json"),
    "a state's digests are written and the state is still a draft": (
        "before",
        "rename */states/step_00000004",
    ),
    "a draft lacks its digests": ("before", "replace *.draft/DONE.json"),
    "a state is stored and not evaluated": ("after", "rename trajectories/trunk-*/states/step_00000004"),
    "a checkpoint is half removed": ("after", "unlink */states/step_*/DONE.json"),
    "lines are written and their state is not": ("after", "fsync trajectories/trunk-*/metrics.jsonl"),
    "an evaluation is written": ("after", "fsync trajectories/branch-*/evals.jsonl"),
    "a growth is recorded and its state is not": ("after", "replace *growth.json"),
    "all is trained and not summarised": ("before", "replace studies/adhoc/summary.json"),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_when(calm, tmp_path, point):
    root = tmp_path / "store"
    when, pattern = POINTS[point]
    often = {"launch__checkpoint_s": 1e-9 if "checkpoint" in point else 1e9}
    status, _ = wreck.run(wreck.study(root, **often), wreck.watched(root, injection.kill_at(when, pattern)))
    assert status == -9, "the point was not reached"
    stored, evaluated = wreck.stored(root), wreck.evaluated(root)
    status, output = wreck.run(wreck.study(root))
    assert status == 0, output
    assert wreck.differing(wreck.science(root), wreck.science(calm)) == []
    assert stored.items() <= wreck.stored(root).items(), "what was stored was trained again"
    assert evaluated <= wreck.evaluated(root)
    assert not wreck.litter(root)
