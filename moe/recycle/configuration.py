"""What growth does to config.json: the shape it describes, and the grown one, key by key."""

from collections.abc import Mapping
from typing import Any

from moe.config import ModelConfig
from moe.operator import Operator
from moe.plain import check
from moe.recycle.architecture import Architecture

_UNSET = (None, 0, False)


def shape_of(architecture: Architecture, config: Mapping[str, Any], dense: frozenset[int]) -> ModelConfig:
    """What of a checkpoint matters to an operator, in this project's own terms.

    `dense` are its layers without experts. Attention is not described: growth leaves it alone.
    """
    groups = int(config.get("n_group") or 1) if architecture.groups and _limits_groups(config) else 1
    prefix = len(dense) if architecture.dense_prefix else 0
    return ModelConfig(
        vocab_size=int(config["vocab_size"]),
        num_layers=int(config["num_hidden_layers"]),
        hidden_size=int(config["hidden_size"]),
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        num_experts=int(config[architecture.experts_key(config)]),
        top_k=int(config["num_experts_per_tok"]),
        expert_hidden_size=int(config[architecture.expert_size]),
        rope_theta=1.0,
        norm_eps=1.0,
        gate=architecture.gate_of(config),
        route_scale=float(config.get(architecture.route_scale or "", 1.0) or 1.0),
        num_groups=groups,
        top_k_groups=int(config.get("topk_group") or 1) if groups > 1 else 1,
        num_shared_experts=int(config.get(architecture.shared_experts or "", 0) or 0),
        num_dense_layers=prefix,
        dense_hidden_size=int(config.get("intermediate_size") or 1) if prefix else 0,
    )


def _limits_groups(config: Mapping[str, Any]) -> bool:
    return config.get("topk_method") not in ("greedy",)


def grown_config(
    architecture: Architecture,
    config: Mapping[str, Any],
    operator: Operator,
    dense: frozenset[int],
) -> tuple[dict[str, Any], float]:
    """The config.json of the grown model, and what its experts' way back is multiplied by.

    That factor is 1 where config.json has a key for the scale of routed experts, which then changes instead.
    ValueError for a growth that the architecture does not allow.
    """
    before = shape_of(architecture, config, dense)
    after = operator.apply_to(before)
    sources = operator.layer_sources(before.num_layers)
    out = dict(config)
    out["num_hidden_layers"] = after.num_layers
    if operator.deepens:
        out |= _per_layer(config, sources)
        if architecture.dense_prefix:
            out[architecture.dense_prefix] = after.num_dense_layers
        if architecture.dense_list and dense:
            out["decoder_sparse_step"] = 1
            out["mlp_only_layers"] = [new for new, old in enumerate(sources) if old in dense]
        _check_window(config)
    if not operator.widens:
        return out, 1.0
    out[architecture.experts_key(config)] = after.num_experts
    out["num_experts_per_tok"] = after.top_k
    out[architecture.expert_size] = after.expert_hidden_size
    if architecture.shared_experts and config.get(architecture.shared_experts):
        out[architecture.shared_experts] = after.num_shared_experts
    if before.num_groups > 1:
        out["n_group"], out["topk_group"] = after.num_groups, after.top_k_groups
    aux = architecture.aux_loss
    if aux and config.get(aux) not in _UNSET and operator.width_method.multiplies_top_k:
        out[aux] = config[aux] / operator.width_factor  # its f is summed over the k slots
    factor = after.route_scale / before.route_scale
    if factor != 1.0 and architecture.route_scale in config:
        out[str(architecture.route_scale)] = after.route_scale
        factor = 1.0
    return out, factor


def _per_layer(config: Mapping[str, Any], sources: list[int]) -> dict[str, Any]:
    """Every list with an entry a layer; and gpt_oss's turns of attention, where they were left to a rule."""
    num_layers = int(config["num_hidden_layers"])
    lists = {
        key: [value[old] for old in sources]
        for key, value in config.items()
        if "layer" in key
        and isinstance(value, list)
        and len(value) == num_layers
        and key != "mlp_only_layers"
    }
    if config.get("model_type") == "gpt_oss" and not config.get("layer_types"):
        turns = ("sliding_attention", "full_attention")
        lists["layer_types"] = [turns[old % 2] for old in sources]
    return lists


def _check_window(config: Mapping[str, Any]) -> None:
    """A window that begins at a layer's number, without a list that says so for each, would move."""
    check(
        not config.get("use_sliding_window") or bool(config.get("layer_types")),
        "config.json has use_sliding_window without layer_types: from layer max_window_layers="
        f"{config.get('max_window_layers')} on attention is windowed, and growth moves layers; write "
        "layer_types into it, one entry a layer",
    )
