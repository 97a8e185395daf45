"""transformers' MoE models of our shape: the same attention, experts, loss, clipping and AdamW."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from moe.config import ModelConfig, TrainConfig

PEERS = ("Mixtral", "OLMoE", "Qwen3-MoE")
EXPERTS = ("eager", "grouped_mm")


def peer_step(
    peer: str, model: ModelConfig, train: TrainConfig, tokens: np.ndarray, experts: str
) -> Callable[[], None]:
    """One training step of a peer on the same tokens."""
    network = _network(peer, model, train, experts)
    optimizer = torch.optim.AdamW(network.parameters(), lr=train.lr, fused=True)
    batch = torch.from_numpy(tokens)

    def step() -> None:
        network(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _network(peer: str, model: ModelConfig, train: TrainConfig, experts: str) -> Any:
    import transformers

    shared: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "num_experts_per_tok": model.top_k,
        "output_router_logits": True,
        "router_aux_loss_coef": train.load_balance_coef,
        "use_cache": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    size = model.expert_hidden_size
    match peer:
        case "Mixtral":
            shared |= {"intermediate_size": size, "num_local_experts": model.num_experts}
            config = transformers.MixtralConfig(head_dim=model.head_dim, **shared)
            kind = transformers.MixtralForCausalLM
        case "OLMoE":
            shared |= {"intermediate_size": size, "num_experts": model.num_experts, "norm_topk_prob": True}
            config, kind = transformers.OlmoeConfig(**shared), transformers.OlmoeForCausalLM
        case "Qwen3-MoE":
            shared |= {"moe_intermediate_size": size, "num_experts": model.num_experts}
            shared |= {"head_dim": model.head_dim, "norm_topk_prob": True}
            config, kind = transformers.Qwen3MoeConfig(**shared), transformers.Qwen3MoeForCausalLM
        case _:
            raise ValueError(f"peer={peer} is not one of {', '.join(PEERS)}")
    return kind._from_config(config, experts_implementation=experts)
