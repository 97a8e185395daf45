"""Room: what one run takes of a machine or a cluster, and how many runs fit at once. Arithmetic alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.config import LaunchConfig

Node = Mapping[str, float]  # what one node has, as Ray counts it: {"CPU": 8.0, "GPU": 2.0, …}


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a run takes: `ranks` processes of `threads` CPUs and `gpus` GPUs each, tensors on `device`."""

    device: str
    threads: int
    gpus: float
    ranks: int

    def __str__(self) -> str:
        parts = [f"{self.threads} CPU"] + ([f"{self.gpus:g} GPU"] if self.gpus else [])
        return " and ".join(parts) + (f" for each of {self.ranks} ranks" if self.ranks > 1 else "")


def need(launch: LaunchConfig, num_gpus: float, where: str = "torch") -> Need:
    """What a run of `launch` takes where `where` finds `num_gpus` GPUs; ValueError if they are not there.

    `launch.device=cpu` with `launch.gpus_per_run` is a rehearsal: reserved as GPUs, computed on CPUs.
    """
    given = launch.gpus_per_run
    if launch.device == "cuda" and num_gpus == 0:
        raise ValueError(f"launch.device=cuda, but {where} finds no GPU; choose auto or cpu")
    if launch.device == "auto" and num_gpus == 0 and given:
        raise ValueError(
            f"launch.gpus_per_run={given:g}, but {where} finds no GPU and runs go to the CPU here; "
            "set it to 0 or null"
        )
    if launch.device == "cuda" and given == 0:
        raise ValueError("launch.gpus_per_run=0 gives launch.device=cuda no GPU; set it to null, or above 0")
    uses_gpu = launch.device == "cuda" or (launch.device == "auto" and num_gpus > 0 and given != 0)
    gpus = given if given is not None else float(uses_gpu)
    return Need(
        device="cuda" if uses_gpu else "cpu",
        threads=launch.threads,
        gpus=min(gpus, 1.0),
        ranks=launch.ranks,
    )


def room(need: Need, nodes: Sequence[Node]) -> int:
    """How many runs fit. A rank stays on one node, a share of a GPU on one GPU; ranks may be on several."""
    return sum(_places(need, node) for node in nodes) // need.ranks


def _places(need: Need, node: Node) -> int:
    by_cpu = int(node.get("CPU", 0) // need.threads)
    if need.gpus == 0:
        return by_cpu
    return min(by_cpu, int(node.get("GPU", 0)) * runs_per_gpu(need.gpus))


def runs_per_gpu(gpus: float) -> int:
    """Ray gives out a GPU in ten-thousandths: a third of one, three times, fits."""
    return math.floor(1 / gpus + 1e-6)


def slots(launch: LaunchConfig, need: Need, nodes: Sequence[Node]) -> int:
    """As many runs as `launch.workers` says, or as fit; ValueError if that is none, or more than fit."""
    fit = room(need, nodes)
    if fit == 0:
        raise ValueError(
            f"launch.gpus_per_run={need.gpus * need.ranks:g}: a run takes {need}, and there is no such room "
            f"on {_described(nodes)}; lower it or launch.threads, or add nodes"
        )
    if launch.workers is not None and launch.workers > fit:
        raise ValueError(
            f"launch.workers={launch.workers}, with {need} a run, and there is room for {fit} on "
            f"{_described(nodes)}; lower launch.workers"
        )
    return launch.workers or fit


def this_machine(launch: LaunchConfig, need: Need, num_cpus: int, num_gpus: int) -> Node:
    """What Ray is told that it has here: CPUs may be shared among `launch.workers`, real GPUs may not."""
    each = need.threads * need.ranks
    cpus = each * launch.workers if launch.workers else max(num_cpus, each)
    if need.device == "cuda" or need.gpus == 0:
        return {"CPU": cpus, "GPU": num_gpus}
    runs = cpus // each  # a rehearsal has as many GPUs as it needs
    return {"CPU": cpus, "GPU": math.ceil(runs * need.ranks / runs_per_gpu(need.gpus))}


def _described(nodes: Sequence[Node]) -> str:
    each = ", ".join(f"{node.get('CPU', 0):g} CPU + {node.get('GPU', 0):g} GPU" for node in nodes[:8])
    return f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} of {each}" + (", …" * (len(nodes) > 8))
