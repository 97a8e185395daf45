"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import ray

from sweeps.config import LaunchConfig
from sweeps.room import Need, Node, need, slots, this_machine

PROBE_S = 5.0  # ray.init hangs for minutes on an address where nobody listens


def join(launch: LaunchConfig, num_cpus: int, num_gpus: int) -> tuple[Need, int]:
    """Connects to `launch.address`; `local` is a Ray of these CPUs and GPUs that ends with this process.

    What a run takes and how many there is room for. ValueError if nobody answers, or no run has room.
    """
    if launch.address == "local":
        each = need(launch, num_gpus)
        nodes = [this_machine(launch, each, num_cpus, num_gpus)]
        wanted = slots(launch, each, nodes)
        _init("local", num_cpus=nodes[0]["CPU"], num_gpus=nodes[0]["GPU"], include_dashboard=False)
        return each, wanted
    _probe(launch.address)
    _init(launch.address)
    try:
        nodes: list[Node] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        each = need(launch, sum(node.get("GPU", 0) for node in nodes), where="the cluster")
        return each, slots(launch, each, nodes)
    except ValueError:
        ray.shutdown()
        raise


def _init(address: str, **settings: Any) -> None:
    # Workers must import what the driver imports, wherever it was started. Those of a Ray that starts here
    # inherit it; an environment of their own would make Ray end the ones it has started and start others.
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, *filter(None, [inherited])])
    if address == "local":
        os.environ["PYTHONPATH"] = path
    else:
        settings["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **settings,
        )
    except ConnectionError as error:
        raise ValueError(
            f"launch.address={address}: no Ray cluster was found ({error}); start one, or use local"
        ) from error
    except Exception as error:  # Ray's own, of many kinds: a port that is taken, a node that is too slow
        ray.shutdown()
        raise ValueError(
            f"launch.address={address}: Ray did not start ({_line(error)}); free the machine and try again, "
            "or use launch=serial"
        ) from error
    finally:
        for name, handler in before.items():  # ray.init takes SIGTERM for itself
            signal.signal(name, handler)
        if inherited is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = inherited


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _probe(address: str) -> None:
    """Refuses an address where nobody listens; `auto` is what RAY_ADDRESS says, if it says anything."""
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if ":" not in named:
        return
    host, _, port = named.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_S):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"launch.address={address}: nobody answers at {named} ({error}); start a Ray head, or use local"
        ) from error
