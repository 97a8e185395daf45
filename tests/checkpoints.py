"""Tiny Hugging Face checkpoints of every architecture, made by transformers' own classes."""

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from moe.recycle.layerwise import quiet

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,  # so that a change of the function shows
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_DENSE_FIRST = {
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 2,
    "topk_group": 1,
}
SHAPES = {
    "mixtral": {"intermediate_size": 24, "num_local_experts": 4},
    "olmoe": {"intermediate_size": 24, "num_experts": 4},
    "qwen2_moe": {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "num_experts": 4,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "head_dim": 8,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {**_DENSE_FIRST, **_LATENT, "q_lora_rank": None, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**_DENSE_FIRST, **_LATENT, "q_lora_rank": 16},
    "glm4_moe": {**_DENSE_FIRST, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "dots1": {**_DENSE_FIRST, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "gpt_oss": {"intermediate_size": 24, "num_local_experts": 4, "head_dim": 8, "sliding_window": 16},
    "granitemoe": {"intermediate_size": 24, "num_local_experts": 4, "residual_multiplier": 0.5},
}


def make(directory: Path, model_type: str, **changes) -> Path:
    """Saves a checkpoint of random weights, every bias among them; returns its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        config = AutoConfig.for_model(model_type, **(_COMMON | SHAPES[model_type] | changes))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "bias" in name or "sinks" in name:
                torch.nn.init.normal_(tensor, std=0.05)
        model.save_pretrained(directory)
    return directory


def load(directory: Path):
    """The checkpoint as transformers loads it, in fp32, with nothing missing and nothing unexpected."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model, found = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not found[what], (what, found[what])
    return model.eval()


def logits(model) -> torch.Tensor:
    tokens = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whatever its files."""
    out: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        out |= load_file(path)
    return out


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The checkpoint's only file anew."""
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors"
    )


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header_only(directory: Path, config: dict, shapes: dict[str, list[int]]) -> Path:
    """A checkpoint of bf16 tensors that takes no room: its file is a header and a hole."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return directory


def qwen3(hidden_size: int, num_layers: int, num_experts: int, expert_size: int, vocab_size: int):
    """config.json and shapes of a Qwen3-MoE with four times as many queries as keys, heads left out."""
    config = {"model_type": "qwen3_moe", "vocab_size": vocab_size, "hidden_size": hidden_size}
    config |= {"num_hidden_layers": num_layers, "num_experts": num_experts}
    config |= {"num_experts_per_tok": max(1, num_experts // 16), "moe_intermediate_size": expert_size}
    shapes = {name: [vocab_size, hidden_size] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    rows = {"q": hidden_size, "k": hidden_size // 4, "v": hidden_size // 4, "o": hidden_size}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{part}_proj.weight": [n, hidden_size] for part, n in rows.items()}
        shapes[f"{prefix}mlp.gate.weight"] = [num_experts, hidden_size]
        for expert in range(num_experts):
            own = f"{prefix}mlp.experts.{expert}."
            shapes |= {f"{own}{part}_proj.weight": [expert_size, hidden_size] for part in ("gate", "up")}
            shapes[f"{own}down_proj.weight"] = [hidden_size, expert_size]
    return config, shapes


def random_weights(directory: Path, config: dict, shapes: dict[str, list[int]]) -> Path:
    """A checkpoint of random bf16 tensors, made without transformers."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    rewrite(directory, {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()})
    return directory
