"""What each part of a training step takes alone, forward and backward.

Modules are timed on the inputs that they saw in a forward pass of the whole model, so that nothing is
assumed of how they are called; a part that the model does without calling its module is left out.
"""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from configuration import cells
from timing import Step, interleaved, measure
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from moe.data import data_identity, open_data, parse_data
from moe.train import Trainer, language_loss

BATCHES = 128  # the language is made in blocks of 64 batches: single ones would tell of no block
_seeds = itertools.count()  # a block that was made stays


def part_seconds(trainer: Trainer, tokens: np.ndarray, rounds: int, count: int) -> dict[str, float]:
    """Seconds that a step spends in each part, all layers together; parts that cannot be told are not there.

    The router is what a layer of experts takes beyond its experts.
    """
    alone = _parts(trainer, torch.from_numpy(tokens))
    taken = interleaved({part: step for part, (step, _) in alone.items()}, rounds, count, warm_up=1)
    found = {part: seconds * alone[part][1] for part, seconds in taken.items()}
    if "experts" in found:
        found["router"] = max(0.0, found.pop("router and experts") - found["experts"])
    order = ["attention", "router", "router and experts", "experts"]
    found = {part: found[part] for part in [*order, *found] if part in found}
    return found | {"data": data_seconds(trainer)}


def data_seconds(trainer: Trainer) -> float:
    """Seconds to make one batch of the embedded language."""
    (plain,) = cells([])
    del plain["data"]["at_growth"]
    data, train = open_data(data_identity(parse_data(plain["data"]))), trainer.train
    seed, steps = next(_seeds), itertools.count(1)
    data.batch(seed, 0, train.batch_size, train.seq_len)
    return measure(lambda: data.batch(seed, next(steps), train.batch_size, train.seq_len), BATCHES)


def _parts(trainer: Trainer, tokens_BT1: Tensor) -> dict[str, tuple[Step, int]]:
    """Each part's step, and how many of it a training step has."""
    list(trainer.steps(1))  # moments are there
    network: Any = trainer.model
    calls = _calls(network, tokens_BT1)
    found: dict[str, tuple[Step, int]] = {}
    for part, path in {
        "attention": "attention",
        "router and experts": "moe",
        "experts": "moe.experts",
    }.items():
        modules = [_at(layer, path) for layer in network.layers]
        called = [module for module in modules if module in calls]
        if called:
            found[part] = (_again(called[0], *calls[called[0]]), len(called))
    found["head and loss"] = (_head(network, tokens_BT1), 1)
    found["clipping and AdamW"] = (_update(trainer), 1)
    return found


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _calls(network: Any, tokens_BT1: Tensor) -> dict[nn.Module, tuple[tuple, dict]]:
    """The arguments that each module was called with in a forward pass."""
    calls: dict[nn.Module, tuple[tuple, dict]] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls[module] = (args, kwargs)

    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in network.layers.modules()]
    try:
        language_loss(network, tokens_BT1)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _again(module: nn.Module, args: tuple, kwargs: dict) -> Step:
    """The same call with inputs of its own, and the gradients of what is differentiable: the output by a
    random one, losses by 1."""
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad), (args, kwargs)
    )
    leaves = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor) and t.requires_grad]
    gradients: list[Tensor] = []

    def run() -> None:
        for leaf in [*leaves, *module.parameters()]:
            leaf.grad = None
        tensors = [t for t in tree_flatten(module(*args, **kwargs))[0] if isinstance(t, Tensor)]
        outputs = [tensors[0], *(t for t in tensors[1:] if t.requires_grad and t.ndim == 0)]
        if not gradients:
            gradients.extend(torch.randn_like(t) if t.ndim else torch.ones_like(t) for t in outputs)
        torch.autograd.backward(outputs, gradients)

    return run


def _head(network: Any, tokens_BT1: Tensor) -> Step:
    x_BTD = network.hidden(tokens_BT1[:, :-1])[0].detach().requires_grad_()
    stub: Any = SimpleNamespace(hidden=lambda tokens_BT: (x_BTD, []), head=network.head)

    def run() -> None:
        x_BTD.grad = network.head.weight.grad = None
        language_loss(stub, tokens_BT1)[0].backward()

    return run


def _update(trainer: Trainer) -> Step:
    parameters = list(trainer.model.parameters())
    gradients = [torch.randn_like(parameter) for parameter in parameters]

    def run() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, trainer.train.grad_clip)
        trainer.optimizer.step(1e-3)

    return run
