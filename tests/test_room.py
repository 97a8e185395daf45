"""How many runs find room, by GPUs that are only counted here: arithmetic, no Ray."""

import pytest
import tiny

from sweeps.config import parse_sweep
from sweeps.room import need, room, runs_per_gpu, slots, this_machine

TWO_GPUS = {"CPU": 16.0, "GPU": 2.0}


def launch(**fields):
    return parse_sweep(tiny.mapping("launch=ray", launch__executor="ray", **fields)).launch


def fit(nodes, **fields):
    given = {f"launch__{key}": value for key, value in fields.items()}
    config = launch(train__batch_size=12, **given)
    return room(need(config, sum(node["GPU"] for node in nodes)), nodes)


@pytest.mark.parametrize(("share", "runs"), [
    (1, 2), (0.5, 4), (0.25, 8), (1 / 3, 6), (0.4, 4), (0.6, 2), (0.1, 16),
])  # fmt: skip
def test_a_share_of_a_gpu_never_spans_two(share, runs):
    """0.4 fits twice on each of two GPUs, not five times on both; 0.1 is bounded by 16 cores."""
    assert fit([TWO_GPUS], gpus_per_run=share) == runs


def test_each_node_gives_room_by_what_it_lacks_most():
    nodes = [{"CPU": 2.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 0.0}]
    assert fit(nodes, threads=1) == 3
    assert fit(nodes, threads=2) == 2
    assert fit(nodes, device="cpu", threads=2) == 1 + 32 + 4


@pytest.mark.parametrize(("ranks", "runs"), [(2, 2), (3, 1), (4, 1), (6, 0)])
def test_a_run_of_several_gpus_may_take_them_from_several_nodes(ranks, runs):
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 3.0}]
    assert fit(nodes, gpus_per_run=ranks) == runs


def test_the_clusters_gpus_decide_and_not_the_drivers():
    assert need(launch(), num_gpus=4).device == "cuda"
    assert need(launch(), num_gpus=4).gpus == 1
    assert need(launch(), num_gpus=0).device == "cpu"
    assert need(launch(launch__gpus_per_run=0), num_gpus=4).device == "cpu"


def test_a_rehearsal_reserves_gpus_and_computes_on_cpus():
    half = need(launch(launch__device="cpu", launch__gpus_per_run=0.5), num_gpus=0)
    assert (half.device, half.gpus, half.ranks) == ("cpu", 0.5, 1)
    config = launch(launch__device="cpu", launch__gpus_per_run=2, launch__workers=3)
    node = this_machine(config, need(config, 0), num_cpus=2, num_gpus=0)
    assert node == {"CPU": 6, "GPU": 6}
    assert slots(config, need(config, 0), [node]) == 3


@pytest.mark.parametrize(("fields", "words"), [
    ({"gpus_per_run": 2}, "launch.gpus_per_run=2: a run takes 1 CPU and 1 GPU for each of 2 ranks, "),
    ({"workers": 3}, "launch.workers=3, with 1 CPU and 1 GPU a run, and there is room for 1 on 1 node"),
    ({"threads": 9}, "lower it or launch.threads"),
    ({"device": "cuda", "gpus_per_run": 0}, "gives launch.device=cuda no GPU"),
])  # fmt: skip
def test_more_than_there_is_room_for_is_refused_with_what_there_is(fields, words):
    config = launch(**{f"launch__{key}": value for key, value in fields.items()})
    with pytest.raises(ValueError, match=words):
        slots(config, need(config, 1), [{"CPU": 8.0, "GPU": 1.0}])


@pytest.mark.parametrize(("fields", "words"), [
    ({"launch__gpus_per_run": 3}, "launch.gpus_per_run=3 does not divide train.batch_size=2"),
    ({"launch__gpus_per_run": 1.5}, "must be a share of one GPU"),
    ({"launch__gpus_per_run": -1}, "must be a share of one GPU"),
    ({"launch__gpus_per_run": 2, "model__capacity_factor": 1.5}, "depends on the whole batch"),
    ({"launch__gpus_per_run": 2, "launch__executor": "serial"}, "launch=serial has one"),
])  # fmt: skip
def test_a_run_that_cannot_be_split_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        parse_sweep(tiny.mapping(**{"launch__executor": "ray", **fields}))


def test_n_shares_of_an_nth_fill_a_gpu():
    assert [runs_per_gpu(1 / count) for count in range(1, 50)] == list(range(1, 50))
