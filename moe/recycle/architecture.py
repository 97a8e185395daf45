"""What is known of each architecture, as data: where its parts are on disk, and which keys count them.

Names and keys are those of transformers 5 and of the checkpoints published for it. A layer's tensors are
matched by their names after `model.layers.{i}.`; what no pattern matches is refused, never guessed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from moe.config import Gate
from moe.plain import check


class Role(StrEnum):
    """What a tensor is to growth."""

    PLAIN = "plain"  # copied with its layer
    OUTPUT = "output"  # plain, and the last factor of a residual branch
    ROUTER = "router"  # one row of logits an expert
    ROUTER_BIAS = "router_bias"  # one logit an expert
    SELECTION_BIAS = "selection_bias"  # one an expert, for the choice alone
    EXPERT_IN = "expert_in"  # gate and up of an expert
    EXPERT_OUT = "expert_out"  # its way back
    EXPERT_IN_BIAS = "expert_in_bias"
    EXPERT_OUT_BIAS = "expert_out_bias"


class Layout(StrEnum):
    """How one expert's block holds its matrices and its hidden units."""

    ROWS = "rows"  # one matrix, hidden units are rows
    COLUMNS = "columns"  # one matrix, hidden units are columns
    ROW_HALVES = "row_halves"  # gate above up
    COLUMN_PAIRS = "column_pairs"  # gate and up columns by turns


@dataclass(frozen=True)
class Pattern:
    """A regular expression for names within a layer. `stacked`: the first axis is that of the experts; else
    the group `expert` is the number of one."""

    regex: str
    role: Role
    layout: Layout = Layout.ROWS
    stacked: bool = False


@dataclass(frozen=True)
class Architecture:
    """One model_type. `num_experts` and the like are the keys of config.json that hold them."""

    model_type: str
    patterns: tuple[Pattern, ...]
    num_experts: tuple[str, ...]
    expert_size: str
    gate: Gate | None = None  # None: as `norm_topk_prob` says
    sigmoid: bool = False
    aux_loss: str | None = "router_aux_loss_coef"
    route_scale: str | None = None
    groups: bool = False
    shared_experts: str | None = None  # counts shared experts of `expert_size` each
    dense_prefix: str | None = None
    dense_list: bool = False  # mlp_only_layers and decoder_sparse_step
    norm_topk_prob: bool = False  # where config.json does not say

    def gate_of(self, config: Mapping[str, Any]) -> Gate:
        if self.gate is not None:
            return self.gate
        renormalised = bool(config.get("norm_topk_prob", self.norm_topk_prob))
        if self.sigmoid:
            return Gate.SIGMOID_RENORMALISED if renormalised else Gate.SIGMOID
        return Gate.SOFTMAX_RENORMALISED if renormalised else Gate.SOFTMAX

    def experts_key(self, config: Mapping[str, Any]) -> str:
        known = [key for key in self.num_experts if key in config]
        check(
            bool(known),
            f"config.json of a {self.model_type} has none of {', '.join(self.num_experts)}; it must say how "
            "many experts there are",
        )
        return known[0]


_ATTENTION = (
    Pattern(r"self_attn\.(o_proj|dense)\.(weight|bias)", Role.OUTPUT),
    Pattern(r"self_attn\.[a-z_]+(\.(weight|bias|inv_freq))*", Role.PLAIN),
    Pattern(r"self_attn\.rotary_emb\.inv_freq", Role.PLAIN),
    Pattern(r"(input|post_attention)_layernorm\.weight", Role.PLAIN),
)
_DENSE = (
    Pattern(r"mlp\.down_proj\.(weight|bias)", Role.OUTPUT),
    Pattern(r"mlp\.(gate|up)_proj\.(weight|bias)", Role.PLAIN),
)
_ROUTER = (
    Pattern(r"mlp\.gate\.weight", Role.ROUTER),
    Pattern(r"mlp\.gate\.e_score_correction_bias", Role.SELECTION_BIAS),
)
_EXPERTS = (
    Pattern(r"mlp\.experts\.(?P<expert>\d+)\.(gate|up)_proj\.weight", Role.EXPERT_IN),
    Pattern(r"mlp\.experts\.(?P<expert>\d+)\.down_proj\.weight", Role.EXPERT_OUT, Layout.COLUMNS),
    Pattern(r"mlp\.experts\.gate_up_proj", Role.EXPERT_IN, Layout.ROW_HALVES, stacked=True),
    Pattern(r"mlp\.experts\.down_proj", Role.EXPERT_OUT, Layout.COLUMNS, stacked=True),
)
_SHARED = (
    Pattern(r"mlp\.shared_experts?\.down_proj\.weight", Role.OUTPUT),
    Pattern(r"mlp\.shared_experts?\.(gate|up)_proj\.weight", Role.PLAIN),
    Pattern(r"mlp\.shared_expert_gate\.weight", Role.PLAIN),
)
_NEXT_TOKEN = (  # of multi-token prediction: a block behind the decoder, with a head of its own
    Pattern(r"(enorm|hnorm|eh_proj|embed_tokens)\.weight", Role.PLAIN),
    Pattern(r"shared_head\.(norm|head)\.weight", Role.PLAIN),
)
_USUAL = (*_ATTENTION, *_ROUTER, *_EXPERTS, *_DENSE)


def _deepseek_like(model_type: str, *, norm_topk_prob: bool = True) -> Architecture:
    return Architecture(
        model_type,
        (*_USUAL, *_SHARED, *_NEXT_TOKEN),
        ("n_routed_experts", "num_local_experts"),
        "moe_intermediate_size",
        sigmoid=True,
        aux_loss=None,
        route_scale="routed_scaling_factor",
        groups=True,
        shared_experts="n_shared_experts",
        dense_prefix="first_k_dense_replace",
        norm_topk_prob=norm_topk_prob,
    )


ARCHITECTURES = {
    known.model_type: known
    for known in (
        Architecture(
            "mixtral",
            (
                *_ATTENTION,
                Pattern(r"block_sparse_moe\.gate\.weight", Role.ROUTER),
                Pattern(
                    r"block_sparse_moe\.experts\.(?P<expert>\d+)\.w2\.weight",
                    Role.EXPERT_OUT,
                    Layout.COLUMNS,
                ),
                Pattern(r"block_sparse_moe\.experts\.(?P<expert>\d+)\.w[13]\.weight", Role.EXPERT_IN),
                *_ROUTER,
                *_EXPERTS,
            ),
            ("num_local_experts", "num_experts"),
            "intermediate_size",
            gate=Gate.SOFTMAX_RENORMALISED,
        ),
        Architecture("olmoe", _USUAL, ("num_experts", "num_local_experts"), "intermediate_size"),
        Architecture(
            "qwen2_moe",
            (*_USUAL, *_SHARED),
            ("num_experts", "num_local_experts"),
            "moe_intermediate_size",
            dense_list=True,
        ),
        Architecture(
            "qwen3_moe",
            _USUAL,
            ("num_experts", "num_local_experts"),
            "moe_intermediate_size",
            dense_list=True,
        ),
        Architecture(
            "deepseek_v2",
            (*_USUAL, *_SHARED),
            ("n_routed_experts", "num_local_experts"),
            "moe_intermediate_size",
            gate=Gate.SOFTMAX,
            aux_loss="aux_loss_alpha",
            route_scale="routed_scaling_factor",
            groups=True,
            shared_experts="n_shared_experts",
            dense_prefix="first_k_dense_replace",
        ),
        _deepseek_like("deepseek_v3"),
        _deepseek_like("glm4_moe"),
        _deepseek_like("dots1", norm_topk_prob=False),
        Architecture(
            "gpt_oss",
            (
                *_ATTENTION,
                Pattern(r"mlp\.router\.weight", Role.ROUTER),
                Pattern(r"mlp\.router\.bias", Role.ROUTER_BIAS),
                Pattern(r"mlp\.experts\.gate_up_proj", Role.EXPERT_IN, Layout.COLUMN_PAIRS, stacked=True),
                Pattern(r"mlp\.experts\.down_proj", Role.EXPERT_OUT, Layout.ROWS, stacked=True),
                Pattern(
                    r"mlp\.experts\.gate_up_proj_bias",
                    Role.EXPERT_IN_BIAS,
                    Layout.COLUMN_PAIRS,
                    stacked=True,
                ),
                Pattern(r"mlp\.experts\.down_proj_bias", Role.EXPERT_OUT_BIAS, stacked=True),
            ),
            ("num_local_experts", "num_experts"),
            "intermediate_size",
            gate=Gate.TOPK_SOFTMAX,
        ),
        Architecture(
            "granitemoe",
            (
                *_ATTENTION,
                Pattern(r"block_sparse_moe\.router\.layer\.weight", Role.ROUTER),
                Pattern(
                    r"block_sparse_moe\.input_linear\.weight", Role.EXPERT_IN, Layout.ROW_HALVES, stacked=True
                ),
                Pattern(
                    r"block_sparse_moe\.output_linear\.weight", Role.EXPERT_OUT, Layout.COLUMNS, stacked=True
                ),
                Pattern(r"shared_mlp\.output_linear\.weight", Role.OUTPUT),
                Pattern(r"shared_mlp\.input_linear\.weight", Role.PLAIN),
            ),
            ("num_local_experts", "num_experts"),
            "intermediate_size",
            gate=Gate.TOPK_SOFTMAX,
        ),
    )
}
_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_OUTSIDE = re.compile(r"^(model\.embed_tokens\.weight|model\.norm\.weight|lm_head\.weight)$")


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that config.json names; ValueError for one that is not in the table."""
    model_type = config.get("model_type")
    check(
        model_type in ARCHITECTURES,
        f"source: model_type {model_type!r} of config.json is not known; there are "
        f"{', '.join(ARCHITECTURES)}",
    )
    return ARCHITECTURES[str(model_type)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs: `layer` is None outside the layers, `expert` one expert's number where it has a
    tensor of its own."""

    pattern: Pattern
    layer: int | None
    rest: str
    expert: int | None


def place_of(architecture: Architecture, name: str) -> Place | None:
    """What a tensor of this name is; None if no pattern matches."""
    if _OUTSIDE.match(name):
        return Place(Pattern(name, Role.PLAIN), None, name, None)
    layer = _LAYER.match(name)
    found = _matched(architecture.model_type, layer[2]) if layer else None
    return Place(found[0], int(layer[1]), layer[2], found[1]) if layer and found else None


@lru_cache(maxsize=1 << 14)
def _matched(model_type: str, rest: str) -> tuple[Pattern, int | None] | None:
    """The pattern and the expert of a name within a layer. Kept, as they are the same in every layer."""
    for pattern in ARCHITECTURES[model_type].patterns:
        match = re.fullmatch(pattern.regex, rest)
        if match:
            expert = match.groupdict().get("expert")
            return pattern, None if expert is None else int(expert)
    return None
