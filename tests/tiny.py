"""The smallest real configurations: composed by Hydra from conf/, then shrunk."""

import copy
import functools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe.config import LearningRate, ModelConfig, Schedule, TrainConfig
from moe.data import Questions
from moe.data.language import FAMILIES
from moe.plain import parse
from sweeps.cell import Cell, resolve
from sweeps.config import parse_sweep

ROOT = Path(__file__).parent.parent

SHRINK = {
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 8,
    "model.num_experts": 4,
    "model.top_k": 2,
    "model.expert_hidden_size": 8,
    "train.batch_size": 2,
    "train.seq_len": 32,
    "train.warmup_steps": 2,
    "trunk.steps": 16,
    "growth.step": 8,
    "growth.warmup_steps": 2,
    "budget.extra_flops": 4e7,
    "evaluate.items": 16,
    "evaluate.probe_items": 8,
    "evaluate.probe_every": 4,
    "launch.keep_every": 1000,
    "launch.executor": "serial",
    "launch.threads": 1,
    "launch.speed_file": "no-such-file",
}


@functools.lru_cache(maxsize=8)
def composed(*overrides: str) -> dict[str, Any]:
    """The configuration that `sweep.py` would see."""
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain


def mapping(*groups: str, **fields: Any) -> dict[str, Any]:
    """A tiny configuration; `fields` are dotted keys with `__` for the dot."""
    plain = copy.deepcopy(composed(*groups))
    given = {key.replace("__", "."): value for key, value in fields.items()}
    for dotted, value in (SHRINK | given).items():
        *path, last = dotted.split(".")
        section = plain
        for name in path:
            section = section[name]
        section[last] = value
    return plain


def cell(*groups: str, **fields: Any) -> Cell:
    return resolve(parse_sweep(mapping(*groups, **fields)))


def model(**fields: Any) -> ModelConfig:
    section = {**mapping()["model"], **fields}
    return parse(ModelConfig, section, "model")


def train(**fields: Any) -> TrainConfig:
    return parse(TrainConfig, {**mapping()["train"], **fields}, "train")


def questions(num_items: int, *families: str, **lengths: int) -> Questions:
    """Asked of the embedded language's families, if none is named."""
    given = {"context_length": 48, "continuation_length": 12} | lengths
    return Questions(num_items=num_items, families=families or FAMILIES, **given)


class Nothing:
    """A store that holds nothing."""

    def stored_steps(self, trajectory_id: str) -> list[int]:
        return []

    def kept_steps(self, trajectory_id: str) -> list[int]:
        return []

    def evaluated(self, trajectory_id: str) -> set[tuple[int, str]]:
        return set()

    def diverged(self, trajectory_id: str) -> int | None:
        return None


def constant(peak: float) -> LearningRate:
    return LearningRate(schedule=Schedule.CONSTANT, peak=peak)
