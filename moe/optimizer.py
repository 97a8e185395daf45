"""AdamW over named parameters, its moments plain tensors."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from moe.config import ModelConfig, TrainConfig
from moe.growth import Moments, Tensors


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101) by torch's fused kernel: the bits of `torch.optim.AdamW`.

    Decay acts on matrices alone. A layer's gradient shrinks with its residual multiplier, and ε with it
    (arXiv 2505.01618), so that the update does not. The kernel is called through torch's functional form:
    the class around it imports torch's compiler, 1.4 s of every process that trains.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], model: ModelConfig, train: TrainConfig):
        self._parameters, self._train = dict(parameters), train
        self._multiplier = model.residual_multiplier
        self._first: Tensors = {}
        self._second: Tensors = {}
        self._counts: Tensors = {}

    @property
    def moments(self) -> Moments:
        """References, not copies; none before the first step of a start without moments."""
        counts = {int(count) for count in self._counts.values()}
        assert len(counts) <= 1, f"tensors disagree on the optimizer's step: {counts}"
        return Moments(step=counts.pop() if counts else 0, first=dict(self._first), second=dict(self._second))

    def load(self, moments: Moments) -> None:
        """Goes on from copies of `moments`, all parameters' or none."""
        for name, first in moments.first.items():
            device = self._parameters[name].device
            self._first[name] = first.to(device, copy=True)
            self._second[name] = moments.second[name].to(device, copy=True)
            self._counts[name] = torch.tensor(float(moments.step), device=device)

    def step(self, lr: float) -> None:
        """One update by the gradients, which are dropped."""
        step_together([(self, lr)])

    def rows(self, names: list[str]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Parameter, gradient, moments and count of those that have a gradient; moments begin at zero."""
        for name in names:
            parameter = self._parameters[name]
            if parameter.grad is None:
                continue
            if name not in self._first:
                self._first[name] = torch.zeros_like(parameter)
                self._second[name] = torch.zeros_like(parameter)
                self._counts[name] = torch.zeros((), device=parameter.device)
            yield parameter, parameter.grad, self._first[name], self._second[name], self._counts[name]

    def drop_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    @property
    def betas(self) -> tuple[float, float]:
        return self._train.beta1, self._train.beta2

    def groups(self) -> dict[tuple[float, float], list[str]]:
        """The names of parameters by their weight decay and ε."""
        groups: dict[tuple[float, float], list[str]] = {}
        for name, parameter in self._parameters.items():
            decay = self._train.weight_decay if parameter.ndim >= 2 else 0.0
            scale = self._multiplier if name.startswith("layers.") else 1.0
            groups.setdefault((decay, self._train.eps * scale), []).append(name)
        return groups


@torch.no_grad()
def step_together(steps: Sequence[tuple[AdamW, float]]) -> None:
    """`step` of each at its own rate, the tensors of equal settings in one call of the kernel."""
    calls: dict[tuple[float, ...], list[tuple[Tensor, ...]]] = {}
    for optimizer, lr in steps:
        for (decay, eps), names in optimizer.groups().items():
            for row in optimizer.rows(names):
                calls.setdefault((lr, decay, eps, *optimizer.betas), []).append(row)
    for (lr, decay, eps, beta1, beta2), rows in calls.items():
        parameters, gradients, first, second, counts = (list(column) for column in zip(*rows, strict=True))
        adamw(
            parameters,
            gradients,
            first,
            second,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=decay,
            eps=eps,
            maximize=False,
        )
    for optimizer, _ in steps:
        optimizer.drop_gradients()
