"""Real runs, harmed at random: whatever happens, the next run completes to the bytes of an undisturbed one.

The places are drawn from a seeded generator, so that a failure can be repeated. `make fault` runs this.
"""

import json
import random
import shutil
from pathlib import Path

import injection
import pytest
import tiny
import wreck

from moe.files import append_lines, read_lines, to_line

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

METHODS = ("stack", "interposition")
CONTROLS = {"controls": ["continued"], "launch__max_attempts": 1}


def full(root: Path):
    return wreck.study(root, *METHODS, **CONTROLS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A store that nothing disturbed and every durable operation that made it, in its order."""
    folder = tmp_path_factory.mktemp("calm")
    root, moments = folder / "store", folder / "moments"
    status, output = wreck.run(full(root), wreck.watched(root, injection.record(moments)))
    assert status == 0, output
    return root, [json.loads(line) for line in moments.read_text().splitlines()]


@pytest.fixture(scope="module")
def calm(undisturbed):
    return undisturbed[0]


@pytest.fixture(scope="module")
def moments(undisturbed):
    return undisturbed[1]


def completes(root: Path, calm: Path, gone: str = "nothing") -> None:
    """Runs the study again, undisturbed, and holds what was stored before, and the calm store, against it.

    A state whose name has `gone` in it may be missing."""
    stored, evaluated = wreck.stored(root), wreck.evaluated(root)
    status, output = wreck.run(full(root))
    assert status == 0, output
    missing = [name for name in wreck.science(calm) if gone in name and not (root / name).exists()]
    assert wreck.differing(wreck.science(root), wreck.science(calm)) == sorted(missing)
    assert stored.items() <= wreck.stored(root).items(), "what was stored was trained again"
    assert evaluated <= wreck.evaluated(root)
    assert not wreck.litter(root)
    assert not wreck.half_states(root)


@pytest.mark.parametrize("seed", range(16))
def test_a_run_killed_at_any_moment_is_completed(calm, moments, tmp_path, seed):
    """Up to three kills, one after another, before a run is left in peace."""
    generator, root = random.Random(seed), tmp_path / "store"
    for _ in range(1 + seed % 3):
        decide = injection.kill_at_place(generator.randrange(len(moments)))
        status, output = wreck.run(full(root), wreck.watched(root, decide))
        assert status in (-9, 0), output
    completes(root, calm)


@pytest.mark.parametrize("seed", range(10))
def test_a_disk_that_fills_up_fails_what_it_must_and_says_so(calm, moments, tmp_path, seed):
    generator, root = random.Random(100 + seed), tmp_path / "store"
    place = generator.randrange(len(moments))
    fault = injection.fill_disk_at_place(place, generator.choice([1, 5, 10_000]))
    status, output = wreck.run(full(root), wreck.watched(root, fault))
    assert status in (0, 1, 2), output
    if status:
        assert "No space left on device" in output, "the cause was not named"
    completes(root, calm)


@pytest.mark.parametrize("seed", range(8))
def test_files_that_may_not_grow_are_never_half_there(calm, tmp_path, seed):
    """The kernel ends each write at a size drawn from those of the calm run's files."""
    sizes = sorted({p.stat().st_size for p in calm.rglob("*") if p.is_file() and p.stat().st_size > 300})
    limit, root = random.Random(200 + seed).choice(sizes[:-1]), tmp_path / "store"
    status, output = wreck.run(full(root), lambda: injection.limit_files(limit))
    assert status in (1, 2), output
    assert "File too large" in output, "the cause was not named"
    completes(root, calm)


@pytest.mark.parametrize("seed", range(6))
def test_a_line_cut_short_by_a_kill_is_written_once(calm, tmp_path, seed):
    root, count = tmp_path / "store", random.Random(300 + seed).randrange(1, 12)

    def tear():
        import sweeps.derivation

        lines = []

        def append(path: Path, values):
            values = list(values)
            lines.extend(values)
            if len(lines) < count:
                return append_lines(path, values)
            with path.open("a") as file:
                file.write("".join(map(to_line, values))[:-7])
            injection.kill()

        sweeps.derivation.append_lines = append

    assert wreck.run(full(root), tear)[0] == -9
    completes(root, calm)


# -- stored files that a disk damaged ----------------------------------------------------------------------


def wider(root: Path):
    """A study that goes on from what `full` stored: more growth steps and a longer budget."""
    more = {"growth__depth_factor": 3, "budget__extra_flops": 8e7, **CONTROLS}
    return [
        *wreck.study(root, *METHODS, **more),
        *wreck.study(root, *METHODS, budget__extra_flops=8e7, **CONTROLS),
    ]


@pytest.fixture(scope="module")
def calm_wider(calm, tmp_path_factory):
    root = tmp_path_factory.mktemp("wider") / "store"
    shutil.copytree(calm, root)
    status, output = wreck.run(wider(root))
    assert status == 0, output
    return root


HARMED = {
    "the trunk's model": "trajectories/trunk-*/states/step_00000004/model.safetensors",
    "the trunk's moments": "trajectories/trunk-*/states/step_00000004/optimizer.safetensors",
    "the trunk's digests": "trajectories/trunk-*/states/step_00000004/DONE.json",
    "the trunk's numbers": "trajectories/trunk-*/states/step_00000004/state.json",
    "a branch's model": "trajectories/branch-*/states/step_00000004/model.safetensors",
    "a branch's digests": "trajectories/branch-*/states/step_00000004/DONE.json",
    "the trunk's metrics": "trajectories/trunk-*/metrics.jsonl",
    "a branch's metrics": "trajectories/branch-*/metrics.jsonl",
    "a trunk's evaluations": "trajectories/trunk-*/evals.jsonl",
    "a spec": "trajectories/trunk-*/spec.json",
    "a record of growth": "trajectories/branch-*/states/growth.json",
    "moments before growth": "trajectories/branch-*/states/moments_before.safetensors",
    "a study's cells": "studies/adhoc/cells.json",
    "a study's summary": "studies/adhoc/summary.json",
}


NOT_ASKED_FOR_AGAIN = ("a branch's model", "a branch's digests", "the trunk's metrics", "a branch's metrics")


def flip(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for place in generator.sample(range(len(content)), 16):
        content[place] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path, generator: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def evaluations(root: Path) -> dict[tuple[str, int, str], str]:
    """Scores by what was evaluated; whether it was along the way or of a tap is no part of them."""
    return {
        (path.parent.name, line["step"], line["eval_id"]): json.dumps({**line, "tap": None}, sort_keys=True)
        for path in root.glob("trajectories/*/evals.jsonl")
        for line in read_lines(path)
    }


def without_evaluations(root: Path) -> dict[str, bytes]:
    return {name: text for name, text in wreck.science(root).items() if not name.endswith("evals.jsonl")}


@pytest.mark.parametrize("harm", [flip, truncate])
@pytest.mark.parametrize("harmed", HARMED)
def test_what_a_disk_damaged_is_derived_again(calm, calm_wider, tmp_path, harm, harmed):
    """Every file that the wider study has is the same. A state that was evaluated and from which nothing
    starts may be gone, and with its file an evaluation along the way: neither is asked for again."""
    root = tmp_path / "store"
    shutil.copytree(calm, root)
    path = sorted(root.glob(HARMED[harmed]))[0]
    harm(path, random.Random(harmed))
    status, output = wreck.run(wider(root))
    assert status == 0, output
    ours, theirs = without_evaluations(root), without_evaluations(calm_wider)
    assert ours.items() <= theirs.items()
    trajectory = "/".join(path.relative_to(root).parts[:2])
    may_be_gone = f"{trajectory}/states/step_" if harmed in NOT_ASKED_FOR_AGAIN else "nothing"
    assert all(may_be_gone in name for name in theirs.keys() - ours.keys())
    assert evaluations(root).items() <= evaluations(calm_wider).items()
    assert "evaluations" in harmed or evaluations(root) == evaluations(calm_wider)
    assert not wreck.half_states(root)
    assert not wreck.litter(root)


NAMED = (
    "the trunk's model",
    "the trunk's digests",
    "a branch's model",
    "the trunk's metrics",
    "a study's cells",
)


@pytest.mark.parametrize("harmed", NAMED)
def test_what_a_disk_damaged_is_named(calm, tmp_path, harmed):
    root = tmp_path / "store"
    shutil.copytree(calm, root)
    path = sorted(root.glob(HARMED[harmed]))[0]
    truncate(path, random.Random(harmed))
    _, output = wreck.run(wider(root))
    warnings = json.loads((root / "studies/adhoc/summary.json").read_text())["warnings"]
    named = "no line of metrics" if "metrics" in harmed else path.name
    assert named in "".join([output, *warnings])


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [("trunk-*/states/step_00000004", "nothing"), ("branch-*/states/step_00000000", "states/step_00000000")],
)
def test_a_state_removed_while_it_is_needed_is_derived_again(calm, tmp_path, pattern, gone):
    """It goes as soon as it is there, before anything can start from it. What was evaluated and is the start
    of nothing more is not asked for again."""
    root, removed = tmp_path / "store", []

    def decide(when: str, operation: str) -> None:
        for folder in root.glob(f"trajectories/{pattern}"):
            if when == "after" and operation.startswith("rename") and not removed:
                removed.append(folder)
                shutil.rmtree(folder)

    status, output = wreck.run(full(root), wreck.watched(root, decide))
    assert status == 0, output
    completes(root, calm, gone)


# -- failures and results ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["branch", "anneal"])
def test_a_trajectory_that_raises_stops_no_sibling_and_is_named(calm, tmp_path, kind):
    root = tmp_path / "store"

    def break_one():
        import sweeps.worker

        class Broken(sweeps.worker.Derivation):
            def run(self):
                lineage = [
                    self.trajectory,
                    *([self.trajectory.parent.trajectory] if self.trajectory.parent else []),
                ]
                if self.trajectory.kind == kind and any("stack" in ancestor.slug for ancestor in lineage):
                    raise RuntimeError("this one cannot be trained")
                return super().run()

        sweeps.worker.Derivation = Broken

    status, output = wreck.run(full(root), break_one)
    summary = json.loads((root / "studies/adhoc/summary.json").read_text())
    assert status == 1, output
    assert summary["failed"] + summary["blocked"] == 1
    assert summary["done"] == len(json.loads((root / "studies/adhoc/cells.json").read_text())["cells"]) - 1
    assert "this one cannot be trained" in output
    assert "To try again what failed" in output
    (error,) = root.glob("trajectories/*/attempts/01/error.txt")
    assert "RuntimeError: this one cannot be trained" in error.read_text()
    completes(root, calm)


@pytest.mark.parametrize("kind", ["trunk", "branch"])
def test_a_loss_that_is_not_a_number_is_a_result_and_stays_one(tmp_path, kind):
    root = tmp_path / "store"

    def poison():
        import moe.train

        original = moe.train.Trainer.update

        def update(self, learnt):
            numbers = original(self, learnt)
            grown = self.model.config.num_layers > tiny.SHRINK["model.num_layers"]
            if self.step == 3 and grown == (kind == "branch"):
                numbers[0] = float("nan")
            return numbers

        moe.train.Trainer.update = update

    status, output = wreck.run(full(root), poison)
    assert status == 0, output
    assert "diverged" in output
    before = wreck.science(root)
    status, output = wreck.run(full(root))
    assert status == 0, output
    assert "0 FLOPs trained" in output
    assert wreck.differing(wreck.science(root), before) == []
