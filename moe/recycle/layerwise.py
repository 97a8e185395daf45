"""A checkpoint's function, computed by transformers one layer at a time."""

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe.plain import check
from moe.recycle.architecture import Role, architecture_of, place_of
from moe.recycle.checkpoint import Checkpoint, Reader, Stored
from moe.recycle.plan import Target, whole
from moe.recycle.shards import shards_of
from moe.recycle.writer import write_pieces

_ROUTERS = ("mlp.gate", "mlp.router", "block_sparse_moe.gate", "block_sparse_moe.router")
_ROWS = 4096  # of a vocabulary at a time
_TIMES_A_LAYER = 3  # its file's pages, its weights in fp32, and what fusing experts holds beside them


class Layerwise:
    """Runs `checkpoint` in fp32, holding one layer at a time; needs transformers (`regrow[hf]`)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.reader = checkpoint, Reader()
        self.architecture = architecture_of(checkpoint.config)
        self.num_layers = int(checkpoint.config["num_hidden_layers"])
        self._by_layer: dict[int, dict[str, Stored]] = {}
        self._routers: dict[int, dict[Role, Stored]] = {}
        for name, stored in checkpoint.tensors.items():
            place = place_of(self.architecture, name)
            if place is not None and place.layer is not None:
                self._by_layer.setdefault(place.layer, {})[place.rest] = stored
                if place.pattern.role in (Role.ROUTER, Role.ROUTER_BIAS, Role.SELECTION_BIAS):
                    self._routers.setdefault(place.layer, {})[place.pattern.role] = stored

    @property
    def layer_bytes(self) -> int:
        """Memory that the largest layer takes while it runs."""
        sizes = (sum(stored.numel for stored in own.values()) for own in self._by_layer.values())
        return 4 * _TIMES_A_LAYER * max(sizes)

    def hidden(self, tokens_BT: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """After each layer the residual stream [B, T, D], before the final norm, and the experts that the
        layer's router likes best [B·T, k]; None for a layer without."""
        config = self.checkpoint.config
        embedding = self.checkpoint.tensors["model.embed_tokens.weight"]
        rows = [self.reader.block(embedding, int(token)) for token in tokens_BT.flatten()]
        x_BTD = torch.stack(rows).view(*tokens_BT.shape, -1) * float(
            config.get("embedding_multiplier") or 1.0
        )
        for layer in range(self.num_layers):
            network, module = self._network(layer)
            seen: list[Tensor] = []
            if module is not None:
                module.register_forward_pre_hook(_into(seen))
            with torch.no_grad():
                x_BTD = network.model(inputs_embeds=x_BTD, use_cache=False).last_hidden_state
            yield x_BTD, self._chosen(layer, seen[0]) if seen else None
            del network, module

    def logits(self, x_BTD: Tensor) -> Iterator[Tensor]:
        """Logits [B·T, some of V] of a final residual stream, the vocabulary in parts."""
        gain = self.reader.block(self.checkpoint.tensors["model.norm.weight"])
        config = self.checkpoint.config
        eps = float(config.get("rms_norm_eps") or 1e-6)
        x_ND = nn.functional.rms_norm(x_BTD.flatten(0, 1), gain.shape, gain, eps)
        x_ND = x_ND / float(config.get("logits_scaling") or 1.0)
        tensors = self.checkpoint.tensors
        name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
        size = tensors[name].shape[0]
        for first in range(0, size, _ROWS):
            yield x_ND @ self.reader.rows(tensors[name], first, min(first + _ROWS, size)).T

    def close(self) -> None:
        self.reader.close()

    def _network(self, layer: int) -> tuple[Any, nn.Module | None]:
        """A model of this layer alone, and its router. transformers itself names what is missing."""
        from transformers import AutoConfig, AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder, quiet():
            own = self._by_layer[layer]
            targets = [
                Target(f"model.layers.0.{rest}", stored.dtype, stored.shape, whole(stored))
                for rest, stored in own.items()
            ]
            (shard,) = shards_of(targets, 1 << 62, {"format": "pt"})
            write_pieces(Path(folder) / shard.name, shard, self.reader)
            AutoConfig.for_model(**self._config(layer)).save_pretrained(folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        network, found = loaded
        lacks = {key for key in found["missing_keys"] if ".layers." in key} | set(found["unexpected_keys"])
        lacks |= {key for key, *_ in found["mismatched_keys"]}
        check(not lacks, f"transformers finds layer {layer} not as it should be: {', '.join(sorted(lacks))}")
        network.eval().model.norm = nn.Identity()
        modules = dict(network.model.layers[0].named_modules())
        return network, next((modules[name] for name in _ROUTERS if name in modules), None)

    def _config(self, layer: int) -> dict[str, Any]:
        """config.json for this layer alone; what comes before and after the layers is done here."""
        config = copy.deepcopy(self.checkpoint.config)
        is_dense = layer not in self._routers
        for key, value in self.checkpoint.config.items():
            if "layer" in key and isinstance(value, list) and len(value) == self.num_layers:
                config[key] = [value[layer]]
        config |= {"num_hidden_layers": 1, "vocab_size": 8, "pad_token_id": None}
        if self.architecture.dense_prefix:
            config[self.architecture.dense_prefix] = int(is_dense)
        if self.architecture.dense_list:
            config |= {"decoder_sparse_step": 1, "mlp_only_layers": [0] if is_dense else []}
        if "embedding_multiplier" in config:
            config["embedding_multiplier"] = 1.0
        return config

    def _chosen(self, layer: int, x: Tensor) -> Tensor:
        """The experts of highest score for each token, limits of groups left out."""
        parts = {role: self.reader.block(stored) for role, stored in self._routers[layer].items()}
        scores_NE = x.flatten(0, -2).float() @ parts[Role.ROUTER].T
        if Role.ROUTER_BIAS in parts:
            scores_NE = scores_NE + parts[Role.ROUTER_BIAS]
        if Role.SELECTION_BIAS in parts:
            scores_NE = scores_NE.sigmoid() + parts[Role.SELECTION_BIAS]
        return scores_NE.topk(int(self.checkpoint.config["num_experts_per_tok"]), dim=-1).indices


def _into(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach())

    return keep


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers says of models that are not whole on purpose."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
