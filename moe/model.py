"""The decoder-only Mixture-of-Experts transformer. Shape letters are in router.py."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe import cpu
from moe.config import ModelConfig, NormPlacement
from moe.router import Experts, Routing, route
from moe.seeds import derive_seed


class MoETransformer(nn.Module):
    """Blocks of grouped-query attention (RoPE, QK-norm) and top-k SwiGLU experts.

    Parameters are uninitialised until `initialise(seed)` or a state is loaded: no draw is ever wasted.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        dense = config.num_dense_layers
        self.layers = nn.ModuleList(Block(config, is_dense=i < dense) for i in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = _linear(config.hidden_size, config.vocab_size)
        self._rope: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def initialise(self, seed: int) -> "MoETransformer":
        """Gives every tensor its `initial_value`; returns self."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(initial_value(self.config, name, tensor.shape, seed))
        return self

    def hidden(self, tokens_BT: Tensor) -> tuple[Tensor, list[Routing]]:
        """The normed residual stream [B, T, D] and the routing of each layer with experts."""
        x_BTD = self.embedding(tokens_BT)
        rope = self.rope_tables(tokens_BT.shape[1], tokens_BT.device)
        routings = []
        for layer in self.layers:
            x_BTD, routing = layer(x_BTD, rope)
            if routing is not None:
                routings.append(routing)
        return self.final_norm(x_BTD), routings

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Next-token logits [B, T, V]."""
        return self.head(self.hidden(tokens_BT)[0])

    def moe_layers(self) -> "list[MoE]":
        """The layers with experts, in order; `hidden` gives one routing for each."""
        return [layer.moe for layer in self.layers if isinstance(layer, Block) and layer.moe is not None]

    def rope_tables(self, seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (seq_len, device)
        if key not in self._rope:
            half = torch.arange(0, self.config.head_dim, 2, device=device, dtype=torch.float32)
            frequency_C = self.config.rope_theta ** (-half / self.config.head_dim)
            angle_TC = torch.arange(seq_len, device=device, dtype=torch.float32)[:, None] * frequency_C
            cos_TC, sin_TC = angle_TC.cos(), angle_TC.sin()
            self._rope[key] = (torch.cat([cos_TC, cos_TC], -1), torch.cat([-sin_TC, sin_TC], -1))
        return self._rope[key]


# Projections back to the residual stream, by the end of their names.
OUTPUT_PROJECTIONS = (
    "attention.output.weight",
    "experts.w_out_EDH",
    "shared.output.weight",
    "dense.output.weight",
)


def initial_value(config: ModelConfig, name: str, shape: torch.Size, seed: int) -> Tensor:
    """A matrix from N(0, 1/fan_in), drawn from a stream of its own name; a gain of 1; a selection bias of 0.

    Projections back to the residual stream are divided by √(2·layers), as in GPT-2, or by √(2·L₀) with a
    residual multiplier L₀/L, which does the rest. The fan-in of a stacked expert is that of one expert.
    """
    if name.endswith("selection_bias_E"):
        return torch.zeros(shape)
    if len(shape) < 2:
        return torch.ones(shape)
    std = shape[-1] ** -0.5
    if name.endswith(OUTPUT_PROJECTIONS):
        std /= math.sqrt(2 * (config.residual_base_layers or config.num_layers))
    generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
    return torch.randn(shape, generator=generator).mul_(std)


class Block(nn.Module):
    """Attention, then experts or one dense feed-forward, each on a residual branch."""

    def __init__(self, config: ModelConfig, is_dense: bool):
        super().__init__()
        self.placement, self.multiplier = config.norm_placement, config.residual_multiplier
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config)
        self.moe_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.moe = None if is_dense else MoE(config)
        self.dense = SwiGLU(config.hidden_size, config.dense_hidden_size) if is_dense else None

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Routing | None]:
        def attend(x_BTD: Tensor) -> Tensor:
            return self.attention(x_BTD, rope)

        def feed_forward(x_BTD: Tensor) -> Tensor:
            nonlocal routing
            if self.dense is not None:
                return self.dense(x_BTD)
            assert self.moe is not None
            y_BTD, routing = self.moe(x_BTD)
            return y_BTD

        routing = None
        x_BTD = self.add_branch(x_BTD, attend, self.attention_norm)
        return self.add_branch(x_BTD, feed_forward, self.moe_norm), routing

    def add_branch(self, x_BTD: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        match self.placement:
            case NormPlacement.PRE:
                return x_BTD.add(branch(norm(x_BTD)), alpha=self.multiplier)
            case NormPlacement.POST:
                return norm(x_BTD.add(branch(x_BTD), alpha=self.multiplier))
            case NormPlacement.OUTPUT:
                return x_BTD.add(norm(branch(x_BTD)), alpha=self.multiplier)


class SwiGLU(nn.Module):
    """(silu(x·gate) ⊙ x·up)·output: a dense layer's feed-forward, or the shared experts as one."""

    def __init__(self, size: int, hidden_size: int):
        super().__init__()
        self.gate = _linear(size, hidden_size)
        self.up = _linear(size, hidden_size)
        self.output = _linear(hidden_size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Causal grouped-query attention; queries and keys are normed per head, then turned by RoPE."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = _linear(config.hidden_size, query_size)
        self.key = _linear(config.hidden_size, kv_size)
        self.value = _linear(config.hidden_size, kv_size)
        self.output = _linear(query_size, config.hidden_size)
        self.query_norm = RMSNorm(config.head_dim, eps=config.norm_eps)
        self.key_norm = RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        B, T, _ = x_BTD.shape
        Q, K, C = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        weights = [self.query.weight, self.key.weight, self.value.weight]
        x_BTHC = F.linear(x_BTD, torch.cat(weights)).view(B, T, Q + 2 * K, C)  # one product for all heads
        if cpu.serves(x_BTHC):
            gains = self.query_norm.weight, self.key_norm.weight
            return self.output(cpu.CausalAttention.apply(x_BTHC, *gains, *rope, Q, self.config.norm_eps))
        gain_HC = torch.cat([self.query_norm.weight.expand(Q, C), self.key_norm.weight.expand(K, C)])
        normed_BTHC = RMSNormFunction.apply(x_BTHC[:, :, : Q + K].float(), gain_HC, self.config.norm_eps)
        turned_BTHC = RotaryFunction.apply(normed_BTHC, *rope)
        return self.output(causal_attention(turned_BTHC, x_BTHC[:, :, Q + K :]))


def causal_attention(turned_BTHC: Tensor, v_BTKC: Tensor) -> Tensor:
    """[B, T, Q·C] of queries and keys, side by side as RoPE left them, and values."""
    (B, T, H, C), K = turned_BTHC.shape, v_BTKC.shape[2]
    Q = H - K
    q_BTQC, k_BTKC = turned_BTHC.split([Q, K], dim=2)
    y_BQTC = F.scaled_dot_product_attention(
        q_BTQC.transpose(1, 2),
        k_BTKC.transpose(1, 2).to(q_BTQC.dtype),
        v_BTKC.transpose(1, 2).to(q_BTQC.dtype),
        is_causal=True,
        enable_gqa=Q != K,
    )
    return y_BQTC.transpose(1, 2).reshape(B, T, Q * C)


class MoE(nn.Module):
    """Routed experts, and shared ones that every token goes to."""

    selection_bias_E: Tensor | None

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.router = _linear(config.hidden_size, config.num_experts)
        self.experts = Experts(config.num_experts, config.hidden_size, config.expert_hidden_size)
        bias_E = torch.empty(config.num_experts) if config.selection_bias_rate else None
        self.register_buffer("selection_bias_E", bias_E)
        shared_size = config.num_shared_experts * config.expert_hidden_size
        self.shared = SwiGLU(config.hidden_size, shared_size) if shared_size else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        with torch.autocast(x_ND.device.type, enabled=False):  # the router stays in fp32
            logits_NE = F.linear(x_ND.float(), self.router.weight.float())
            routing = route(logits_NE, self.config, self.selection_bias_E)
        if torch.is_autocast_enabled(x_ND.device.type):
            x_ND = x_ND.to(torch.get_autocast_dtype(x_ND.device.type))
        y_ND = self.experts(x_ND, routing)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return y_ND.view_as(x_BTD), routing

    def balance(self, routing: Routing) -> None:
        """Moves the selection bias of each expert by its rate, towards an even load (arXiv 2408.15664)."""
        if self.selection_bias_E is not None:
            error_E = routing.load_E.mean() - routing.load_E
            self.selection_bias_E.add_(error_E.sign(), alpha=self.config.selection_bias_rate)


class RMSNorm(nn.Module):
    """x / rms(x) · gain over the last axis, in fp32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        if cpu.serves(x):
            return cpu.RMSNorm.apply(x, self.weight, self.eps)
        return RMSNormFunction.apply(x.float(), self.weight, self.eps)


class RMSNormFunction(torch.autograd.Function):
    """Its own backward, in few passes: on CPU torch's norm is a chain of small operations.

    The gain is [size], or wider where heads or runs (moe/bank.py) each have their own.
    """

    @staticmethod
    def forward(ctx: Any, x, gain, eps):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (dy,) = grads
        x, gain, inverse = ctx.saved_tensors
        dgain = (dy * x).mul_(inverse).sum_to_size(gain.shape)
        dx = dy * gain
        along = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(inverse.square()).div_(-x.shape[-1])
        return dx.addcmul_(x, along).mul_(inverse), dgain, None


class RotaryFunction(torch.autograd.Function):
    """RoPE (arXiv 2104.09864) on the halves of each head; its gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x_BTHC, cos_TC, sin_TC):
        ctx.save_for_backward(cos_TC, sin_TC)
        return _rotate(x_BTHC, cos_TC, sin_TC)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        cos_TC, sin_TC = ctx.saved_tensors
        return _rotate(grads[0], cos_TC, -sin_TC), None, None


def _rotate(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Tables as wide as a head, the sine's first half negated."""
    half = x_BTHC.shape[-1] // 2
    sin_T1C = sin_TC[:, None]
    turned_BTHC = x_BTHC * cos_TC[:, None]
    turned_BTHC[..., :half].addcmul_(x_BTHC[..., half:], sin_T1C[..., :half])
    turned_BTHC[..., half:].addcmul_(x_BTHC[..., :half], sin_T1C[..., half:])
    return turned_BTHC


class _Linear(nn.Linear):
    """Uninitialised: `skip_init` goes through meta tensors, which took a seventh of a tiny run."""

    def reset_parameters(self) -> None:
        pass


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return _Linear(inputs, outputs, bias=False)
