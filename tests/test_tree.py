"""The tree of trajectories: its names, and the laws of folding."""

import random
from collections import Counter

import pytest
import tiny

from sweeps.execute import Status
from sweeps.plan import make_plan
from sweeps.tree import Fold, Standing, Tree, standing


@pytest.fixture(scope="module")
def tree():
    cells = [
        tiny.cell(growth__method=method, growth__step=step, growth__noise_scale=noise, seed=seed)
        for method in ("stack", "interposition")
        for step in (4, 8, 12)
        for noise in (0.0, 0.01)
        for seed in (0, 1)
    ]
    return Tree(make_plan(cells, tiny.Nothing()).trajectories.values())


def some_standings(tree, seed):
    draw = random.Random(seed)
    weights = [draw.choice((0, 1, 10)) for _ in Standing]
    weights[-1] += 1
    return {id: draw.choices(list(Standing), weights)[0] for id in tree.trajectories}


def test_every_trajectory_is_counted_once_and_the_lines_fit(tree):
    for seed in range(60):
        standings, room = some_standings(tree, seed), random.Random(seed).randint(1, 40)
        lines = tree.lines(standings, room)
        shown = [line.what for line in lines if not isinstance(line.what, Fold)]
        folds = [line.what for line in lines if isinstance(line.what, Fold)]
        assert len(lines) <= room
        assert len(shown) == len(set(shown))
        counted = sum((fold.standings for fold in folds), Counter(standings[id] for id in shown))
        assert counted == Counter(standings.values())
        assert len(shown) + sum(fold.count for fold in folds) == len(tree.trajectories)


def test_with_room_for_all_nothing_is_folded(tree):
    lines = tree.lines(some_standings(tree, 0), len(tree.trajectories))
    assert sorted(line.what for line in lines) == sorted(tree.trajectories)


def test_one_that_failed_is_always_shown_below_what_it_comes_from(tree):
    for id in tree.trajectories:
        standings = dict.fromkeys(tree.trajectories, Standing.RUNNING) | {id: Standing.FAILED}
        shown = [line.what for line in tree.lines(standings, room=4)]
        assert id in shown
        parent = tree.trajectories[id].parent
        assert parent is None or shown.index(parent.trajectory.id) < shown.index(id)


def test_what_runs_is_shown_before_what_is_done(tree):
    running = set(random.Random(0).sample(sorted(tree.trajectories), 4))
    standings = {id: Standing.RUNNING if id in running else Standing.DONE for id in tree.trajectories}
    assert running <= {line.what for line in tree.lines(standings, room=12) if isinstance(line.what, str)}


def test_no_fold_holds_a_single_trajectory_if_folds_hang_below_their_parents(tree):
    for room in range(12, len(tree.trajectories)):
        standings = dict.fromkeys(tree.trajectories, Standing.DONE)
        folds = [line.what for line in tree.lines(standings, room) if isinstance(line.what, Fold)]
        assert all(fold.count > 1 for fold in folds)


def test_a_fold_says_how_many_of_what_and_how_they_stand(tree):
    standings = dict.fromkeys(tree.trajectories, Standing.DONE)
    (line,) = tree.lines(standings, room=1)
    assert str(line.what) == "2 trunks, 2 scratches, 24 branches, 32 anneals done"
    one = next(iter(tree.trajectories))
    (line,) = tree.lines(standings | {one: Standing.FAILED}, room=1)
    assert str(line.what).endswith(": 1 failed, 59 done")


def test_siblings_differ_in_name_by_the_settings_that_differ(tree):
    for ids in tree.children.values():
        assert len({tree.labels[id] for id in ids}) == len(ids)
    (trunk, *_) = tree.children[None]
    names = [tree.labels[id] for id in tree.children[trunk] if tree.labels[id].startswith("@4 ")]
    assert sorted(names) == sorted(
        f"@4 {method} noise_scale={noise}" for method in ("stack", "interposition") for noise in ("0", "0.01")
    )


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], Standing.CACHED),
        ([Status.DONE, Status.DONE], Standing.DONE),
        ([Status.DONE, Status.TODO], Standing.TODO),
        ([Status.DONE, Status.RUNNING, Status.TODO], Standing.RUNNING),
        ([Status.DONE, Status.FAILED, Status.BLOCKED], Standing.FAILED),
        ([Status.DONE, Status.BLOCKED], Standing.BLOCKED),
        ([Status.DIVERGED, Status.DIVERGED], Standing.DIVERGED),
        ([Status.WAITING, Status.TODO], Standing.WAITING),
    ],
)
def test_a_trajectory_stands_as_the_chain_of_its_tasks(statuses, expected):
    assert standing(statuses) is expected
