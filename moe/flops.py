"""Parameters, FLOPs per token, and what a budget buys. Pure arithmetic, no torch.

The convention: a multiply-add is 2 FLOPs, training is 3× the forward pass. Counted are the matrix products
on a token's path (activated experts, router, head) and attention with its causal half counted once; not
counted are embedding look-ups, norms and softmax.
"""

from moe.config import ModelConfig


def attention_params(model: ModelConfig) -> int:
    """Projection weights of one attention layer."""
    return 2 * model.hidden_size * model.head_dim * (model.num_heads + model.num_kv_heads)


def expert_params(model: ModelConfig) -> int:
    """Weights of one SwiGLU expert."""
    return 3 * model.hidden_size * model.expert_hidden_size


def _layers_params(model: ModelConfig, num_experts: int) -> int:
    """Weights of all layers, norms left out, with `num_experts` routed experts counted in each."""
    router = model.num_experts * model.hidden_size
    experts = (num_experts + model.num_shared_experts) * expert_params(model)
    dense = 3 * model.hidden_size * model.dense_hidden_size
    return (
        model.num_layers * attention_params(model)
        + model.num_moe_layers * (router + experts)
        + model.num_dense_layers * dense
    )


def _norm_params(model: ModelConfig) -> int:
    return model.num_layers * (2 * model.hidden_size + 2 * model.head_dim) + model.hidden_size


def total_params(model: ModelConfig) -> int:
    """All trained weights of the model."""
    vocabulary = 2 * model.vocab_size * model.hidden_size
    return _layers_params(model, model.num_experts) + vocabulary + _norm_params(model)


def activated_params(model: ModelConfig) -> int:
    """N_a: weights on one token's path, both vocabulary tables counted (the paper's 2.1B comes out so)."""
    vocabulary = 2 * model.vocab_size * model.hidden_size
    return _layers_params(model, model.top_k) + vocabulary + _norm_params(model)


def activated_matmul_params(model: ModelConfig) -> int:
    """Weights that one token multiplies: the head but not the embedding, no norms."""
    return _layers_params(model, model.top_k) + model.vocab_size * model.hidden_size


def forward_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Mean forward FLOPs of a token in a sequence of `seq_len`, the causal half of attention counted once."""
    attention = 2 * model.num_heads * model.head_dim * seq_len  # scores and values: 2·(2·T/2)·Q·C
    return float(2 * activated_matmul_params(model) + model.num_layers * attention)


def train_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Forward and backward: 3× the forward pass."""
    return 3.0 * forward_flops_per_token(model, seq_len)


def whole_steps(budget_flops: float, flops_per_step: float) -> int:
    """How many whole steps a budget buys; never overspent."""
    steps = int(budget_flops // flops_per_step)
    return steps if steps * flops_per_step <= budget_flops else steps - 1  # floats beyond 2^53 round up


def chinchilla_flops(activated: int) -> float:
    """F_c = 6·N_a·(20·N_a) = 120·N_a²: the paper's unit of sunk FLOPs (arXiv 2510.08008 §4)."""
    return 120.0 * activated**2


def paper_flops(activated: int, tokens: float) -> float:
    """6·N_a·D, the paper's count; kept in a column of its own and never on one axis with ours."""
    return 6.0 * activated * tokens
