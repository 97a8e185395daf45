"""Configurations of conf/, composed as Hydra would for the command line."""

import itertools
import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe.config import ModelConfig, TrainConfig
from moe.plain import parse

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
VOCAB_SIZE = 512


def load(model: str) -> tuple[ModelConfig, TrainConfig]:
    """A preset of conf/model with the default training."""
    (plain,) = cells([f"model={model}", f"model.vocab_size={VOCAB_SIZE}"])
    return parse(ModelConfig, plain["model"]), parse(TrainConfig, plain["train"])


def cells(words: list[str]) -> list[dict[str, Any]]:
    """The resolved configuration of each cell of the grid that `words` (study=… among them) ask for.

    A word with several values is an axis, in place of the study's own of that name.
    """
    given = dict(word.split("=", 1) for word in words)
    own = {key: values for key, values in given.items() if "," in values and values[0] not in "[{"}
    fixed = [f"{key}={value}" for key, value in given.items() if key not in own]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        whole = compose("config", overrides=fixed, return_hydra_config=True)
        of_study = {k: str(v) for k, v in (whole.hydra.sweeper.params or {}).items() if k not in given}
        axes = [[f"{k}={value}" for value in values.split(",")] for k, values in (of_study | own).items()]
        found = [compose("config", overrides=[*fixed, *values]) for values in itertools.product(*axes)]
    return [json.loads(json.dumps(OmegaConf.to_container(cell, resolve=True))) for cell in found]
