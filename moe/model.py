"""The decoder-only Mixture-of-Experts transformer. Shape letters are in router.py."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.config import ModelConfig
from moe.router import Experts, Routing, route
from moe.seeds import derive_seed


class MoETransformer(nn.Module):
    """Pre-norm blocks of grouped-query attention (RoPE, QK-norm) and dropless top-k SwiGLU experts.

    Parameters are uninitialised until `initialise(seed)` or a state is loaded: no draw is ever wasted.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = _linear(config.hidden_size, config.vocab_size)
        self._rope: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def initialise(self, seed: int) -> "MoETransformer":
        """Draws every matrix from N(0, 1/fan_in), each from its own stream; returns self.

        Projections back to the residual stream are divided by √(2·layers), as in GPT-2. The fan-in of a
        stacked expert is that of one expert.
        """
        back = math.sqrt(2 * self.config.num_layers)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim < 2:
                    weight.fill_(1.0)
                    continue
                std = weight.shape[-1] ** -0.5
                if name.endswith(("attention.output.weight", "experts.w_out_EDH")):
                    std /= back
                generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
        return self

    def hidden(self, tokens_BT: Tensor) -> tuple[Tensor, list[Routing]]:
        """The normed residual stream [B, T, D] and each layer's routing."""
        x_BTD = self.embedding(tokens_BT)
        rope = self._rope_tables(tokens_BT.shape[1], tokens_BT.device)
        routings = []
        for layer in self.layers:
            x_BTD, routing = layer(x_BTD, rope)
            routings.append(routing)
        return self.final_norm(x_BTD), routings

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Next-token logits [B, T, V]."""
        return self.head(self.hidden(tokens_BT)[0])

    def _rope_tables(self, seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (seq_len, device)
        if key not in self._rope:
            half = torch.arange(0, self.config.head_dim, 2, device=device, dtype=torch.float32)
            frequency_C = self.config.rope_theta ** (-half / self.config.head_dim)
            angle_TC = torch.arange(seq_len, device=device, dtype=torch.float32)[:, None] * frequency_C
            cos_TC, sin_TC = angle_TC.cos(), angle_TC.sin()
            self._rope[key] = (torch.cat([cos_TC, cos_TC], -1), torch.cat([-sin_TC, sin_TC], -1))
        return self._rope[key]


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config)
        self.moe_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.moe = MoE(config)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Routing]:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rope)
        y_BTD, routing = self.moe(self.moe_norm(x_BTD))
        return x_BTD + y_BTD, routing


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
        q_BTQC = _Turn.apply(self.query_norm(self.query(x_BTD).view(B, T, Q, C)), *rope)
        k_BTKC = _Turn.apply(self.key_norm(self.key(x_BTD).view(B, T, K, C)), *rope)
        v_BTKC = self.value(x_BTD).view(B, T, K, C)
        y_BQTC = F.scaled_dot_product_attention(
            q_BTQC.transpose(1, 2),
            k_BTKC.transpose(1, 2).to(q_BTQC.dtype),
            v_BTKC.transpose(1, 2).to(q_BTQC.dtype),
            is_causal=True,
            enable_gqa=Q != K,
        )
        return self.output(y_BQTC.transpose(1, 2).reshape(B, T, Q * C))


class MoE(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.top_k
        self.router = _linear(config.hidden_size, config.num_experts)
        self.experts = Experts(config.num_experts, config.hidden_size, config.expert_hidden_size)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        with torch.autocast(x_ND.device.type, enabled=False):  # the router stays in fp32
            routing = route(F.linear(x_ND.float(), self.router.weight.float()), self.top_k)
        if torch.is_autocast_enabled(x_ND.device.type):
            x_ND = x_ND.to(torch.get_autocast_dtype(x_ND.device.type))
        return self.experts(x_ND, routing).view_as(x_BTD), routing


class RMSNorm(nn.Module):
    """x / rms(x) · gain over the last axis, in fp32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x.float(), self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """Its own backward: on CPU torch's norm is a chain of small operations, four times the passes."""

    @staticmethod
    def forward(ctx: Any, x, gain, eps):
        inverse = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        )
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (dy,) = grads
        x, gain, inverse = ctx.saved_tensors
        normed = x * inverse
        dgain = (dy * normed).flatten(0, -2).sum(0)
        dnormed = dy * gain
        along = (dnormed * normed).mean(-1, keepdim=True)
        return dnormed.sub_(normed.mul_(along)).mul_(inverse), dgain, None


class _Turn(torch.autograd.Function):
    """RoPE (arXiv 2104.09864) on the halves of each head; its gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x_BTHC, cos_TC, sin_TC):
        ctx.save_for_backward(cos_TC, sin_TC)
        return _turn(x_BTHC, cos_TC, sin_TC)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        cos_TC, sin_TC = ctx.saved_tensors
        return _turn(grads[0], cos_TC, -sin_TC), None, None


def _turn(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Tables as wide as a head, the sine's first half negated."""
    swapped_BTHC = torch.cat(x_BTHC.chunk(2, dim=-1)[::-1], dim=-1)
    return (x_BTHC * cos_TC[:, None]).addcmul_(swapped_BTHC, sin_TC[:, None])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    device = torch.get_default_device()
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, device=device)
    assert isinstance(linear, nn.Linear)
    return linear
