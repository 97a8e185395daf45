"""F_c as a unit of a configuration: with `growth.step=0.5F_c` a study fits every size of model."""

import re
from typing import Any

from moe import flops
from moe.config import ModelConfig
from moe.plain import check

_STEPS = (
    *("trunk.steps", "trunk.decay_from", "growth.step", "growth.warmup_steps"),
    *("evaluate.probe_every", "launch.keep_every"),
)
_FLOPS = ("budget.extra_flops", "budget.total_flops", "budget.max_flops", "trunk.sunk_flops")
_SECTIONS = {path.split(".")[0] for path in (*_STEPS, *_FLOPS)}
_THEN = "after_extra_flops"  # of a growth at any depth of growth.then
_NUMBER = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?) ?F_c")


def counts_in_f_c(mapping: dict[str, Any]) -> bool:
    """Whether a configuration names an amount in F_c anywhere."""
    return any("F_c" in str(mapping.get(section)) for section in _SECTIONS)


def resolve_f_c(mapping: dict[str, Any], model: ModelConfig, tokens_per_step: int, seq_len: int) -> dict:
    """The configuration with steps and FLOPs for its amounts in F_c = 120·N_a² of the trunk's `model`.

    Steps are rounded to whole ones of the trunk, at least 1 of what is above 0. What is no such amount, or
    stands where none can, is left for the parser to refuse.
    """
    f_c = flops.chinchilla_flops(flops.activated_params(model))
    per_step = flops.train_flops_per_token(model, seq_len) * tokens_per_step
    resolved = {key: dict(value) if isinstance(value, dict) else value for key, value in mapping.items()}
    for path in (*_STEPS, *_FLOPS):
        section, field = path.split(".")
        amount = _amount(resolved.get(section), field, path)
        if amount is not None:
            steps = max(round(amount * f_c / per_step), 1 if amount else 0)
            resolved[section][field] = steps if path in _STEPS else amount * f_c
    growth, path = resolved.get("growth"), "growth"
    while isinstance(growth, dict) and isinstance(growth.get("then"), dict):
        growth["then"] = dict(growth["then"])
        growth, path = growth["then"], f"{path}.then"
        amount = _amount(growth, _THEN, f"{path}.{_THEN}")
        if amount is not None:
            growth[_THEN] = amount * f_c
    return resolved


def _amount(section: Any, field: str, path: str) -> float | None:
    value = section.get(field) if isinstance(section, dict) else None
    if not isinstance(value, str) or "F_c" not in value:
        return None
    found = _NUMBER.fullmatch(value.strip())
    check(found is not None, f"{path}={value} is no amount; write a number before F_c, as in 0.5F_c")
    assert found is not None
    return float(found[1])
