"""A checkpoint's function, computed by transformers one layer at a time, its experts in groups if need be."""

import contextlib
import copy
import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe.plain import check
from moe.recycle.architecture import Place, Role, architecture_of, place_of
from moe.recycle.checkpoint import Checkpoint, Reader, Stored
from moe.recycle.plan import Piece, Target, split_shape, whole
from moe.recycle.shards import shards_of
from moe.recycle.writer import write_pieces

_ROUTERS = ("mlp.gate", "mlp.router", "block_sparse_moe.gate", "block_sparse_moe.router")
_OF_ROUTER = (Role.ROUTER, Role.ROUTER_BIAS, Role.SELECTION_BIAS)
_WEIGHTS = 1 << 22  # of a vocabulary at a time
_BYTES_A_WEIGHT = (
    16  # four in fp32: its file's pages, itself, stacked, and gate beside up; bf16: 12.7 measured
)
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


class Layerwise:
    """Runs `checkpoint` in fp32 in about `room` bytes; needs transformers (`regrow[hf]`).

    One layer is held at a time. Of a layer larger than `room` all is held but the experts, and of these as
    many at a time as fit.
    """

    def __init__(self, checkpoint: Checkpoint, room: int = sys.maxsize) -> None:
        self.checkpoint, self.room, self.reader = checkpoint, room, Reader()
        self.architecture = architecture_of(checkpoint.config)
        self.num_layers = int(checkpoint.config["num_hidden_layers"])
        self.num_experts = int(checkpoint.config[self.architecture.experts_key(checkpoint.config)])
        self._by_layer: dict[int, list[tuple[Place, Stored]]] = {}
        self._routers: dict[int, dict[Role, Stored]] = {}
        for name, stored in checkpoint.tensors.items():
            place = place_of(self.architecture, name)
            if place is not None and place.layer is not None:
                self._by_layer.setdefault(place.layer, []).append((place, stored))
                if place.pattern.role in _OF_ROUTER:
                    self._routers.setdefault(place.layer, {})[place.pattern.role] = stored

    @property
    def least_bytes(self) -> int:
        """The least `room` in which every layer runs."""
        ways = (1, self.num_experts)
        return max(min(self._bytes(layer, way) for way in ways) for layer in range(self.num_layers))

    def experts_at_once(self, layer: int) -> int:
        """How many experts of a layer are held together; all of them where the layer fits."""
        return max(
            (n for n in range(1, self.num_experts + 1) if self._bytes(layer, n) <= self.room), default=1
        )

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
            _free(network)

    def logits(self, x_BTD: Tensor) -> Iterator[Tensor]:
        """Logits [B·T, some of V] of a final residual stream, the vocabulary in parts."""
        gain = self.reader.block(self.checkpoint.tensors["model.norm.weight"])
        config = self.checkpoint.config
        eps = float(config.get("rms_norm_eps") or 1e-6)
        x_ND = nn.functional.rms_norm(x_BTD.flatten(0, 1), gain.shape, gain, eps)
        x_ND = x_ND / float(config.get("logits_scaling") or 1.0)
        tensors = self.checkpoint.tensors
        name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
        size, width = tensors[name].shape
        step = max(1, _WEIGHTS // width)
        for first in range(0, size, step):
            yield x_ND @ self.reader.rows(tensors[name], first, min(first + step, size)).T

    def close(self) -> None:
        self.reader.close()

    def _bytes(self, layer: int, at_once: int) -> int:
        """Memory for a layer of which `at_once` experts are held."""
        own = self._by_layer[layer]
        experts = sum(stored.numel for place, stored in own if _of_experts(place))
        others = sum(stored.numel for _, stored in own) - experts
        if at_once >= self.num_experts or not experts:
            return _BYTES_A_WEIGHT * (others + experts)
        hollow = experts // int(self.checkpoint.config[self.architecture.expert_size])
        return _BYTES_A_WEIGHT * (2 * others + hollow + at_once * experts // self.num_experts)

    def _network(self, layer: int) -> tuple[Any, nn.Module | None]:
        """A model of this layer alone, and its router."""
        at_once = self.experts_at_once(layer)
        if layer not in self._routers or at_once >= self.num_experts:
            network = self._loaded(layer, list(self._targets(layer, range(self.num_experts))), {})
            return network, _router(network)[1]
        network = self._loaded(layer, self._hollow(layer), self._hollow_keys())
        block, router = _router(network)
        block.experts = _Groups(lambda own: self._experts(layer, own), self.num_experts, at_once)
        return network, router

    def _experts(self, layer: int, own: range) -> nn.Module:
        """transformers' module for some of a layer's experts."""
        config = self.checkpoint.config
        keys: dict[str, Any] = {self.architecture.experts_key(config): len(own)}
        keys["num_experts_per_tok"] = min(len(own), int(config["num_experts_per_tok"]))
        if self.architecture.groups:
            keys |= {"n_group": 1, "topk_group": 1}
        network = self._loaded(layer, list(self._targets(layer, own)), keys)
        block, _ = _router(network)
        experts, block.experts = block.experts, nn.Identity()
        _free(network)
        return experts

    def _targets(self, layer: int, own: range) -> Iterator[Target]:
        """A layer's tensors as those of layer 0, with some of its experts."""
        for place, stored in self._by_layer[layer]:
            name = f"model.layers.0.{place.rest}"
            if place.expert is not None:
                if place.expert in own:
                    name = name.replace(f"experts.{place.expert}.", f"experts.{place.expert - own.start}.", 1)
                    yield Target(name, stored.dtype, stored.shape, whole(stored))
            elif place.pattern.stacked or place.pattern.role in _OF_ROUTER:
                shape = (len(own), *stored.shape[1:])
                yield Target(name, stored.dtype, shape, (Piece(stored, own.start, len(own)),))
            else:
                yield Target(name, stored.dtype, stored.shape, whole(stored))

    def _hollow(self, layer: int) -> list[Target]:
        """A layer's tensors, its experts of one hidden unit, 0: a hole at the end of the file."""
        targets = list(self._targets(layer, range(self.num_experts)))
        kept, holes = [], []
        for (place, stored), target in zip(self._by_layer[layer], targets, strict=True):
            if not _of_experts(place):
                kept.append(target)
                continue
            shape, layout = stored.shape, place.pattern.layout
            size = int(self.checkpoint.config[self.architecture.expert_size])
            if place.pattern.role is not Role.EXPERT_OUT_BIAS:
                stack = shape[:1] if place.pattern.stacked else ()
                shape = (*stack, *split_shape(shape[len(stack) :], layout, size))
            holes.append(Target(target.name, target.dtype, shape, ()))
        return kept + holes

    def _hollow_keys(self) -> dict[str, Any]:
        """Of config.json where experts have one hidden unit; shared ones keep theirs."""
        config, shared = self.checkpoint.config, self.architecture.shared_experts
        size = int(config[self.architecture.expert_size])
        keys: dict[str, Any] = {self.architecture.expert_size: 1}
        return keys | ({shared: size * int(config[shared])} if shared and config.get(shared) else {})

    def _loaded(self, layer: int, targets: list[Target], keys: dict[str, Any]) -> Any:
        """transformers' model of these tensors. transformers itself names what is missing."""
        from transformers import AutoConfig, AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder, quiet():
            (shard,) = shards_of(targets, 1 << 62, {"format": "pt"})
            write_pieces(Path(folder) / shard.name, shard, self.reader)
            AutoConfig.for_model(**(self._config(layer) | keys)).save_pretrained(folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        network, found = loaded
        lacks = {key for key in found["missing_keys"] if ".layers." in key} | set(found["unexpected_keys"])
        lacks |= {key for key, *_ in found["mismatched_keys"]}
        check(not lacks, f"transformers finds layer {layer} not as it should be: {', '.join(sorted(lacks))}")
        network.eval().model.norm = nn.Identity()
        return network

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


class _Groups(nn.Module):
    """Experts that are loaded in groups, one in memory at a time, for the tokens that chose them."""

    def __init__(self, load: Callable[[range], nn.Module], num_experts: int, at_once: int) -> None:
        super().__init__()
        self.load, self.num_experts, self.at_once = load, num_experts, at_once

    def forward(self, x: Tensor, choices_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        out_ND = torch.zeros_like(x_ND)
        for first in range(0, self.num_experts, self.at_once):
            own = range(first, min(first + self.at_once, self.num_experts))
            token, slot = torch.where((choices_Nk >= own.start) & (choices_Nk < own.stop))
            if len(token):
                choices, weights = (tensor[token, slot].unsqueeze(1) for tensor in (choices_Nk, weights_Nk))
                experts = self.load(own)
                out_ND.index_add_(0, token, experts(x_ND[token], choices - first, weights))
                _free(experts)
        return out_ND.view_as(x)


def _free(module: nn.Module) -> None:
    """Gives its weights back to the system, whoever still refers to it: models do so in circles."""
    for parameter in module.parameters():
        parameter.data = torch.empty(0)
    if _TRIM is not None:
        _TRIM(0)


def _of_experts(place: Place) -> bool:
    return place.expert is not None or place.pattern.stacked


def _router(network: Any) -> tuple[Any, nn.Module | None]:
    """The module that a one-layer model's router is in, and the router; None where there is none."""
    modules = dict(network.model.layers[0].named_modules())
    name = next((name for name in _ROUTERS if name in modules), None)
    return (None, None) if name is None else (modules[name.rpartition(".")[0]], modules[name])


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
