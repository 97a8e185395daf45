"""Our ModelConfig as config.json of a Qwen3-MoE, and back: what one cannot say of the other is refused."""

from collections.abc import Mapping
from typing import Any

from moe.config import Gate, ModelConfig, NormPlacement
from moe.plain import check

MODEL_TYPE = "qwen3_moe"
_SOFTMAX = (Gate.SOFTMAX, Gate.SOFTMAX_RENORMALISED, Gate.TOPK_SOFTMAX)
_NEEDED = (
    *("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("num_experts_per_tok", "moe_intermediate_size", "rms_norm_eps"),
)
_MUST_BE: dict[str, tuple[Any, str]] = {  # of config.json, where it says so: what our model has
    "attention_bias": (False, "attention without biases"),
    "use_sliding_window": (False, "attention to every token before"),
    "hidden_act": ("silu", "SwiGLU experts"),
    "rope_scaling": (None, "RoPE without scaling"),
    "quantization_config": (None, "weights of 16 or 32 bits"),
}


def config_json_of(model: ModelConfig, seq_len: int) -> dict[str, Any]:
    """config.json for transformers' Qwen3MoeForCausalLM; ValueError naming what that layout cannot say.

    The residual multiplier and `route_scale` are not in it: they are folded into weights.
    """
    for name, fits, why, remedy in (
        ("norm_placement", model.norm_placement is NormPlacement.PRE, "has norms before", "pre"),
        ("gate", model.gate in _SOFTMAX, "has a softmax router", "softmax_renormalised"),
        ("selection_bias_rate", model.selection_bias_rate == 0, "has no selection bias", "0"),
        ("num_groups", model.num_groups == 1, "has no groups of experts", "1"),
        ("capacity_factor", model.capacity_factor is None, "drops no token", "null"),
        ("num_shared_experts", model.num_shared_experts == 0, "has no shared experts", "0"),
        ("num_dense_layers", model.num_moe_layers > 0, "has layers with experts", "less than all"),
    ):
        value = getattr(model, name)
        check(
            fits,
            f"source: model.{name}={value} has no place in a {MODEL_TYPE}, which {why}; export a model "
            f"trained with model.{name}={remedy}",
        )
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "num_experts": model.num_experts,
        "num_experts_per_tok": model.top_k,
        "norm_topk_prob": model.gate is not Gate.SOFTMAX,  # a softmax of the chosen is a renormalised one
        "moe_intermediate_size": model.expert_hidden_size,
        "intermediate_size": model.dense_hidden_size or model.expert_hidden_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(model.num_dense_layers)),
        "rope_theta": model.rope_theta,
        "rms_norm_eps": model.norm_eps,
        "max_position_embeddings": seq_len,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def model_of(config: Mapping[str, Any], key: str) -> ModelConfig:
    """The ModelConfig that computes what a Qwen3-MoE of this config.json does.

    ValueError, naming `key` and the field, for what our model cannot express. Tied embeddings are for the
    weights to untie.
    """
    kind = config.get("model_type")
    check(
        kind == MODEL_TYPE,
        f"{key}: model_type {kind!r} of config.json is no layout that our model can hold; give a "
        f"{MODEL_TYPE}, or one of our own states",
    )
    for name, (value, what) in _MUST_BE.items():
        check(
            config.get(name, value) == value,
            f"{key}: {name}={config.get(name)!r} of config.json is not what our model has, {what}; it must "
            f"be {value!r}: give another checkpoint",
        )
    missing = [name for name in _NEEDED if not isinstance(config.get(name), int | float)]
    check(not missing, f"{key}: config.json lacks {', '.join(missing)}; fetch it again")
    num_dense = _num_dense(config, key)
    num_heads = int(config["num_attention_heads"])
    return ModelConfig(
        vocab_size=int(config["vocab_size"]),
        num_layers=int(config["num_hidden_layers"]),
        hidden_size=int(config["hidden_size"]),
        num_heads=num_heads,
        num_kv_heads=int(config["num_key_value_heads"]),
        head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // num_heads),
        num_experts=_num_experts(config, key),
        top_k=int(config["num_experts_per_tok"]),
        expert_hidden_size=int(config["moe_intermediate_size"]),
        rope_theta=_rope_theta(config, key),
        norm_eps=float(config["rms_norm_eps"]),
        gate=Gate.SOFTMAX_RENORMALISED if config.get("norm_topk_prob") else Gate.SOFTMAX,
        num_dense_layers=num_dense,
        dense_hidden_size=int(config["intermediate_size"]) if num_dense else 0,
    )


def _num_experts(config: Mapping[str, Any], key: str) -> int:
    found = [config[name] for name in ("num_experts", "num_local_experts") if name in config]
    check(bool(found), f"{key}: config.json has neither num_experts nor num_local_experts; fetch it again")
    return int(found[0])


def _rope_theta(config: Mapping[str, Any], key: str) -> float:
    """The base of RoPE: `rope_theta`, or in `rope_parameters` since transformers 5."""
    told = config.get("rope_parameters") or {}
    kind, turned = told.get("rope_type", "default"), told.get("partial_rotary_factor", 1.0)
    check(
        kind == "default" and turned == 1.0,
        f"{key}: rope_parameters={told} of config.json is not what our model has, RoPE of whole heads "
        "without scaling; give another checkpoint",
    )
    theta = told.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise ValueError(f"{key}: config.json has no rope_theta; fetch it again")
    return float(theta)


def _num_dense(config: Mapping[str, Any], key: str) -> int:
    """How many layers have no experts; they must be the first ones."""
    only, every = set(config.get("mlp_only_layers") or ()), int(config.get("decoder_sparse_step", 1))
    layers = range(int(config["num_hidden_layers"]))
    dense = [i for i in layers if i in only or (i + 1) % every != 0]
    check(
        dense == list(range(len(dense))),
        f"{key}: the layers {dense} of config.json have no experts (mlp_only_layers, decoder_sparse_step="
        f"{every}), and in our model those are the first ones; give another checkpoint",
    )
    return len(dense)
