"""One of our stored states as a Qwen3-MoE checkpoint that transformers loads, and such a checkpoint as ours.

Both compute the same function. What config.json of that layout cannot say is folded into weights (the
residual multiplier, `route_scale`) or refused by name.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from moe.checkpoint import CorruptState, load_description, load_weights
from moe.config import ModelConfig
from moe.files import atomic_directory, write_json
from moe.growth import Tensors
from moe.model import MoETransformer
from moe.plain import check
from moe.recycle.checkpoint import DTYPES, Checkpoint, Reader, open_checkpoint
from moe.recycle.interchange_config import MODEL_TYPE, config_json_of, model_of

_LAYER = {  # within a layer: ours, theirs
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "moe_norm.weight": "post_attention_layernorm.weight",
    "moe.router.weight": "mlp.gate.weight",
    "dense.gate.weight": "mlp.gate_proj.weight",
    "dense.up.weight": "mlp.up_proj.weight",
    "dense.output.weight": "mlp.down_proj.weight",
}
_OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_IN, _OUT = "moe.experts.w_in_EGD", "moe.experts.w_out_EDH"


def export_state(source: Path, target: Path) -> ModelConfig:
    """Writes the state in the folder `source` as the new folder `target`, whole or not at all; in fp32.

    transformers' logits are ours up to rounding; without a residual multiplier or `route_scale` every weight
    keeps its bytes. ValueError, before anything is written, for what the layout cannot say.
    """
    check(not target.exists(), f"target={target} is there; give another folder, or remove it")
    try:
        description = load_description(source)
        config = config_json_of(description.model, description.seq_len)
        weights = load_weights(source)
    except CorruptState as corrupt:
        raise ValueError(f"source: {corrupt}; give another state") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target) as draft:
        save_file(to_qwen3_moe(description.model, weights), draft / "model.safetensors", {"format": "pt"})
        write_json(draft / "config.json", config)
    return description.model


def export_lines(source: str | None, target: str | None) -> str:
    """`export_state`, and what it wrote in words."""
    if source is None or target is None:
        raise ValueError("an export needs source=STATE and target=DIR, and has no plan; give both")
    model = export_state(Path(source), Path(target))
    folded = {"residual multiplier": model.residual_multiplier, "route_scale": model.route_scale}
    what = [f"{name} {factor:g}" for name, factor in folded.items() if factor != 1.0]
    return f"{target}: a {MODEL_TYPE} of {model.num_layers} layers, {model.num_experts} experts, in fp32" + (
        f"; folded into weights: {', '.join(what)}" if what else ""
    )


def to_qwen3_moe(model: ModelConfig, weights: Tensors) -> Tensors:
    """Our weights by their names in a Qwen3-MoE, a tensor an expert; factors of the branches are folded."""
    branch, routed = model.residual_multiplier, model.residual_multiplier * model.route_scale
    factors = {"attention.output.weight": branch, "dense.output.weight": branch, _OUT: routed}
    theirs: Tensors = {}
    for name, tensor in weights.items():
        if name in _OUTSIDE:
            theirs[_OUTSIDE[name]] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        at, factor = f"model.layers.{layer}", factors.get(rest, 1.0)
        tensor = tensor * factor if factor != 1.0 else tensor
        match rest:
            case "moe.experts.w_in_EGD":
                for expert, w_in_GD in enumerate(tensor):
                    gate_HD, up_HD = w_in_GD.chunk(2)
                    theirs[f"{at}.mlp.experts.{expert}.gate_proj.weight"] = gate_HD.contiguous()
                    theirs[f"{at}.mlp.experts.{expert}.up_proj.weight"] = up_HD.contiguous()
            case "moe.experts.w_out_EDH":
                for expert, w_out_DH in enumerate(tensor):
                    theirs[f"{at}.mlp.experts.{expert}.down_proj.weight"] = w_out_DH.contiguous()
            case _:
                theirs[f"{at}.{_LAYER[rest]}"] = tensor
    return theirs


def open_qwen3_moe(directory: Path, key: str = "source") -> tuple[Checkpoint, ModelConfig]:
    """The headers of a checkpoint and the model that computes what it does; no weight is read.

    ValueError, naming `key`, for what is not whole or what our model cannot express.
    """
    checkpoint = open_checkpoint(directory, key)
    model = model_of(checkpoint.config, key)
    _check_tensors(checkpoint, model, key)
    return checkpoint, model


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the embedding is the head as well; `read_weights` gives each its own copy of it."""
    return bool(checkpoint.config.get("tie_word_embeddings", False))


def read_weights(checkpoint: Checkpoint, model: ModelConfig) -> Tensors:
    """Our weights, in fp32, of a checkpoint that `open_qwen3_moe` opened."""
    reader = Reader()
    try:
        return {
            name: _joined(
                [reader.block(checkpoint.tensors[part]) for part in _parts(checkpoint, name, shape)]
            )
            .view(shape)
            .contiguous()
            for name, shape in _shapes(model)
        }
    finally:
        reader.close()


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors, with their shapes, that stand above each other in one of ours; experts may be fused."""
    if name == "head.weight" and is_tied(checkpoint):
        name = "embedding.weight"
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: shape}
    _, layer, rest = name.split(".", 2)
    at = f"model.layers.{layer}"
    if rest not in (_IN, _OUT):
        return {f"{at}.{_LAYER[rest]}": shape}
    fused = f"{at}.mlp.experts.{'gate_up_proj' if rest == _IN else 'down_proj'}"
    if fused in checkpoint.tensors:
        return {fused: shape}
    num_experts, rows, columns = shape
    names = ("gate_proj", "up_proj") if rest == _IN else ("down_proj",)
    return {
        f"{at}.mlp.experts.{expert}.{part}.weight": (rows // len(names), columns)
        for expert in range(num_experts)
        for part in names
    }


def _check_tensors(checkpoint: Checkpoint, model: ModelConfig, key: str) -> None:
    """Every tensor that our model needs is there in its shape, and no other."""
    left = set(checkpoint.tensors)
    if is_tied(checkpoint):
        left.discard(_OUTSIDE["head.weight"])
    for name, shape in _shapes(model):
        for part, needed in _parts(checkpoint, name, shape).items():
            stored = checkpoint.tensors.get(part)
            check(stored is not None, f"{key}: {part} is missing, and config.json needs it; fetch it again")
            assert stored is not None
            check(
                stored.shape == needed and stored.dtype in DTYPES,
                f"{key}: {part} is {stored.dtype} {list(stored.shape)}; by config.json it must be "
                f"{list(needed)}, of {', '.join(DTYPES)}",
            )
            left.discard(part)
    check(
        not left,
        f"{key}: our model has no place for {len(left)} tensors, such as {min(left, default='')}; give "
        "another checkpoint",
    )


def _shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each of our tensors."""
    with torch.device("meta"):
        for name, tensor in MoETransformer(model).state_dict().items():
            yield name, tuple(tensor.shape)
