"""A real Ray cluster of three nodes on this machine, joined as any other; its GPUs are only counted.

With launch.device=cpu and launch.gpus_per_run runs are placed by GPUs and computed on CPUs.
"""

import time

import pytest
from test_executors import mappings, science

from moe.files import read_lines
from sweeps.config import parse_sweep
from sweeps.executors import Executors
from sweeps.store import Store
from sweeps.study import Refused, run_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def on_gpus(root, address: str, gpus_per_run: float = 1, **fields):
    """Cells whose runs are placed by GPUs that Ray only counts."""
    fields = {"launch__address": address, "launch__device": "cpu", "launch__workers": None, **fields}
    return mappings(str(root), "ray", launch__gpus_per_run=gpus_per_run, **fields)


@pytest.fixture
def cluster():
    """Three nodes, each of 2 CPUs and one GPU that is not there."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(2):
        cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def executors(monkeypatch):
    monkeypatch.setattr("sweeps.ray.START_S", 120.0)  # six times torch on a busy machine
    executors = Executors()
    yield executors
    executors.close()


def test_a_sweep_joins_a_cluster_and_takes_its_room(tmp_path, cluster, executors, monkeypatch):
    calm, root, auto = (tmp_path / name for name in ("calm", "root", "auto"))
    assert run_study(mappings(str(calm), "serial")).exit_code == 0
    joined = on_gpus(root, cluster.address)
    assert run_study(joined, executors).exit_code == 0
    assert executors.get(parse_sweep(joined[0]).launch).slots == 3  # GPUs of the cluster, not of the driver
    assert science(root) == science(calm)

    executors.close()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    halves = on_gpus(auto, "auto", gpus_per_run=0.5)
    assert run_study(halves, executors).exit_code == 0
    assert executors.get(parse_sweep(halves[0]).launch).slots == 6
    assert science(auto) == science(calm)


def test_the_work_of_a_lost_node_is_done_on_those_that_are_left(tmp_path, cluster, executors, monkeypatch):
    """Two slots on three nodes. One node is killed: its worker finds room on the third. Another is: it does
    not, and the sweep ends with one worker, and with the bytes of an undisturbed one."""
    from sweeps.ray import RayExecutor

    calm, root, killed = tmp_path / "calm", tmp_path / "root", []
    more = {"trunk__steps": 160, "budget__extra_flops": 1e9}
    original = RayExecutor.wait

    def wait(self, timeout_s):
        outcomes = original(self, timeout_s)
        spared = [cluster.head_node.node_id, *killed]
        busy = [slot for slot in self._busy if slot.nodes[0] not in spared]
        if len(killed) == 2 or not busy or not any(root.glob("trajectories/*/metrics.jsonl")):
            return outcomes
        (node,) = [node for node in cluster.worker_nodes if node.node_id == busy[0].nodes[0]]
        killed.append(node.node_id)
        cluster.remove_node(node, allow_graceful=False)
        begin = time.monotonic()
        while len(killed) == 1 and not (self._idle and killed[0] not in self._idle[-1].nodes):
            outcomes += original(self, 0.2)  # until another has taken its place
            assert time.monotonic() - begin < 120
        return outcomes

    monkeypatch.setattr(RayExecutor, "wait", wait)
    result = run_study(on_gpus(root, cluster.address, launch__workers=2, **more), executors)
    assert len(killed) == 2
    assert [cell.status for cell in result.cells] == ["done"] * 4
    warnings = Store(root).study("adhoc")["summary"]["warnings"]
    assert sum("a worker was lost" in warning for warning in warnings) == 2
    run_study(mappings(str(calm), "serial", **more))
    assert science(root) == science(calm)


def test_what_a_cluster_cannot_do_is_refused(tmp_path, cluster, executors):
    root = tmp_path / "store"
    more = {"train__batch_size": 12, "budget__extra_flops": 2e8}
    with pytest.raises(Refused, match=r"takes 1 CPU and 1 GPU for each of 4 ranks, and there is no such"):
        run_study(on_gpus(root, cluster.address, gpus_per_run=4, **more), executors)
    with pytest.raises(Refused, match=r"launch.workers=4, with 1 CPU and 1 GPU a run, and .* room for 3"):
        run_study(on_gpus(root, cluster.address, launch__workers=4), executors)
    assert not root.exists()
    launch = parse_sweep(on_gpus(root, cluster.address)[0]).launch
    executor = executors.get(launch)
    with pytest.raises(ValueError, match=r"launch.store=.* is not visible on node .*; put it on a file"):
        executor.start()  # the file that the driver makes there does not exist


def test_a_cluster_that_is_lost_ends_the_sweep_with_what_is_missing(tmp_path, executors, monkeypatch, capsys):
    """The only node with room dies: tasks fail by name, none is waited for for ever."""
    from ray.cluster_utils import Cluster

    from sweeps.ray import RayExecutor

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    original = RayExecutor.start

    def start(self):
        original(self)
        cluster.remove_node(node, allow_graceful=False)
        monkeypatch.setattr("sweeps.ray.START_S", 5.0)

    monkeypatch.setattr(RayExecutor, "start", start)
    try:
        cells = on_gpus(tmp_path / "store", cluster.address, launch__max_attempts=1)
        result = run_study(cells, executors)
    finally:
        executors.close()
        cluster.shutdown()
    assert result.exit_code == 1
    assert Store(tmp_path / "store").study("adhoc")["summary"]["done"] == 0
    assert "no worker is left" in capsys.readouterr().out


def test_a_run_on_two_ranks_survives_one_of_them(tmp_path, executors, monkeypatch):
    """Two processes a run, placed as on two GPUs; the second is killed while both train."""
    import ray

    from sweeps.ray import RayExecutor

    calm, root, killed = tmp_path / "calm", tmp_path / "root", []
    more = {"train__batch_size": 4, "budget__extra_flops": 8e7}
    original = RayExecutor.wait

    def wait(self, timeout_s):
        if not killed and self._busy and any(root.glob("trajectories/*/metrics.jsonl")):
            killed.append(self._busy[0].workers[1])
            ray.kill(killed[0], no_restart=True)
        return original(self, timeout_s)

    monkeypatch.setattr(RayExecutor, "wait", wait)
    result = run_study(on_gpus(root, "local", gpus_per_run=2, launch__workers=1, **more), executors)
    assert killed
    assert [cell.status for cell in result.cells] == ["done"] * 4
    assert run_study(mappings(str(calm), "serial", **more)).exit_code == 0
    for folder in (calm / "trajectories").iterdir():
        ours, theirs = (
            read_lines(at / "trajectories" / folder.name / "metrics.jsonl") for at in (root, calm)
        )
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        losses = [[line["loss"] for line in lines] for lines in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)
