"""Are a grown checkpoint's tensors those that were planned, and those that transformers' class has."""

import copy
import json
from collections.abc import Iterable, Iterator, Set

import torch

from moe.recycle.architecture import architecture_of, place_of
from moe.recycle.checkpoint import Checkpoint
from moe.recycle.layerwise import quiet
from moe.recycle.plan import Plan

_NAMED = 4  # tensors in one line


def not_as_planned(plan: Plan, grown: Checkpoint) -> Iterator[str]:
    """What is wrong with names, shapes, dtypes and config.json."""
    planned = {target.name: target for target in plan.targets}
    for what, names in (
        ("lacks", planned.keys() - grown.tensors.keys()),
        ("has, and should not,", grown.tensors.keys() - planned.keys()),
    ):
        if names:
            yield f"target {what} {_listed(names)}"
    for name, stored in grown.tensors.items():
        target = planned.get(name)
        if target is not None and (stored.shape, stored.dtype) != (target.shape, target.dtype):
            yield f"{name} is {stored.dtype} {stored.shape}; it should be {target.dtype} {target.shape}"
    expected = json.loads(json.dumps(plan.config))
    for key in sorted(expected.keys() | grown.config.keys()):
        if expected.get(key) != grown.config.get(key):
            yield f"config.json: {key}={grown.config.get(key)}; it should be {expected.get(key)}"


def not_as_transformers(grown: Checkpoint) -> Iterator[str]:
    """What is wrong with names and shapes for the class that config.json names, made on the meta device.

    Blocks of multi-token prediction are left out: the classes have none. Needs transformers.
    """
    found = {name: stored.shape for name, stored in grown.tensors.items() if _is_of_class(grown, name)}
    expected = _shapes_of_class(grown, found.keys())
    if grown.config.get("tie_word_embeddings") and "lm_head.weight" not in found:
        expected.pop("lm_head.weight", None)
    if lacks := expected.keys() - found.keys():
        yield f"transformers' class has, and target lacks, {_listed(lacks)}"
    if more := found.keys() - expected.keys():
        yield f"target has, and transformers' class lacks, {_listed(more)}"
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            yield f"{name} is {found[name]}; transformers' class has {expected[name]}"


def _listed(names: Set[str]) -> str:
    return f"{len(names)} tensors: {', '.join(sorted(names)[:_NAMED])}"


def _is_of_class(grown: Checkpoint, name: str) -> bool:
    place = place_of(architecture_of(grown.config), name)
    is_behind = (
        place is not None
        and place.layer is not None
        and place.layer >= int(grown.config["num_hidden_layers"])
    )
    return not is_behind and not name.endswith("rotary_emb.inv_freq")


def _shapes_of_class(grown: Checkpoint, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """As transformers would save them; as it holds them where some of `names` are held so, experts fused."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(grown.config)))
        held = model.state_dict()
        saved = revert_weight_conversion(model, dict(held))
    fused = held.keys() - saved.keys()
    chosen = held if fused & set(names) else saved
    return {name: tuple(tensor.shape) for name, tensor in chosen.items()}
