"""One training loop: a state goes in, metrics come out a step at a time, a later state is taken."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moe import flops
from moe.checkpoint import State
from moe.config import LearningRate, ModelConfig, Precision, TrainConfig
from moe.diagnostics import DIAGNOSE_EVERY, diagnose, moment_cosines
from moe.growth import Moments, Tensors
from moe.model import MoETransformer
from moe.optimizer import AdamW
from moe.parallel import ALONE, Ranks
from moe.router import Routing
from moe.token_loss import token_loss


class Diverged(Exception):
    """A loss or gradient is not finite, or the loss is above three times that of a uniform guess."""

    def __init__(self, step: int, loss: float, rule: str):
        super().__init__(f"diverged at step {step} with loss {loss:.4g}: {rule}")
        self.step, self.loss = step, loss


Line = dict[str, Any]  # a step's metrics


class Learnt(NamedTuple):
    """What a forward and backward gave beside the gradients; the losses are scalars, one routing a layer."""

    loss: Tensor
    load_balance: Tensor
    z: Tensor
    routings: list[Routing]


class Trainer:
    """AdamW on one trajectory; bitwise reproducible on CPU at a fixed number of threads and ranks.

    `batches(step)` gives the tokens [B, T+1] of update `step` (from 0), of which each of `ranks` takes its
    rows; weights, moments and lines are the same on all. For the diagnostics, `num_copies` says how many
    experts have one origin, and `moments_before` is what `sample_moments` kept at growth.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        learning_rate: LearningRate,
        batches: Callable[[int], np.ndarray],
        state: State,
        device: str = "cpu",
        num_copies: int = 1,
        moments_before: Tensors | None = None,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        self.num_copies, self.moments_before = num_copies, moments_before
        self.train, self.learning_rate, self.batches, self.device = train, learning_rate, batches, device
        self.step = state.step
        self.model = MoETransformer(model).to(device)
        self.model.load_state_dict(state.weights)
        self.optimizer = AdamW(dict(self.model.named_parameters()), model, train)
        self.optimizer.load(state.moments)
        self._tokens = self.step * train.tokens_per_step
        self._flops_per_token = flops.train_flops_per_token(model, train.seq_len)
        self._bound = 3 * math.log(model.vocab_size)

    def steps(self, to_step: int) -> Iterator[Line]:
        """Trains up to `to_step`, yielding each step's metrics line; raises Diverged."""
        while self.step < to_step:
            yield self.advance(self.read())

    def read(self) -> np.ndarray:
        """The tokens [B, T+1] of the next update, of which several ranks have their rows."""
        return self.ranks.rows(self.batches(self.step))

    def advance(self, tokens_BT1: np.ndarray) -> Line:
        """One update by the tokens that were `read`; raises Diverged."""
        learnt = self._learn(tokens_BT1)
        return self.line(self.update(learnt).tolist(), learnt.routings)

    def state(self) -> State:
        """The weights and moments as they stand (references, not copies)."""
        weights = dict(self.model.state_dict())
        return State(step=self.step, weights=weights, moments=self.optimizer.moments)

    # -- the parts of a step: a bank has its own way to the gradients and shares the rest ------------------

    def _learn(self, tokens_BT1: np.ndarray) -> Learnt:
        """Forward and backward; the gradients are the parameters'."""
        tokens = torch.from_numpy(tokens_BT1).to(self.device)
        with autocast(self.train.precision, self.device):
            loss, routings = language_loss(self.model, tokens)
            routings = self.ranks.whole(routings)
            load_balance, z = _router_losses(routings, loss)
        total = loss + self.train.load_balance_coef * load_balance + self.train.z_loss_coef * z
        total.backward()
        self.ranks.average_([p.grad for p in self.model.parameters() if p.grad is not None])
        loss, load_balance, z = loss.detach(), load_balance.detach(), z.detach()
        self.ranks.average_([loss, load_balance, z])
        return Learnt(loss, load_balance, z, routings)

    def update(self, learnt: Learnt) -> Tensor:
        """Clips, steps and balances; gives loss, gradient norm, load-balance and z-loss, unread: [4]."""
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.grad_clip)
        self.optimizer.step(self.learning_rate.at(self.step))
        self.settle(learnt.routings)
        return torch.stack([learnt.loss, grad_norm, learnt.load_balance, learnt.z])

    @torch.no_grad()
    def settle(self, routings: list[Routing]) -> None:
        """What follows the optimizer's step: the selection biases move, and the step counts."""
        for moe, routing in zip(self.model.moe_layers(), routings, strict=True):
            moe.balance(routing)
        self.step += 1
        self._tokens += self.train.tokens_per_step

    def line(self, numbers: list[float], routings: list[Routing]) -> Line:
        """The metrics of the update just done, of which `update` gave the numbers; raises Diverged."""
        _, grad_norm, load_balance, z = map(_finite, numbers)
        line: Line = {
            "step": self.step,
            "loss": round(numbers[0], 6),  # finite, or diverged
            "lr": self.learning_rate.at(self.step - 1),
            "grad_norm": grad_norm,
            "load_balance_loss": load_balance,
            "z_loss": z,
            "tokens": self._tokens,
            "flops": self._tokens * self._flops_per_token,
        }
        if not line["loss"] < self._bound:
            rule = f"not below the bound {self._bound:.4g} (3·ln vocabulary)"
            raise Diverged(self.step, line["loss"], rule)
        if grad_norm is None:
            raise Diverged(self.step, line["loss"], "the gradient is not finite")
        if self.step % DIAGNOSE_EVERY == 0:
            line |= diagnose(self.model, routings, self.num_copies)
            if self.moments_before:
                line |= moment_cosines(self.moments_before, self.optimizer.moments)
        return line


def initial_state(model: ModelConfig, seed: int) -> State:
    """Random weights of `seed` and no moments, at step 0."""
    weights = dict(MoETransformer(model).initialise(seed).state_dict())
    return State(step=0, weights=weights, moments=Moments(step=0, first={}, second={}))


def language_loss(model: MoETransformer, tokens_BT1: Tensor) -> tuple[Tensor, list[Routing]]:
    """Mean next-token cross-entropy in nats, in fp32, and each layer's routing."""
    x_BTD, routings = model.hidden(tokens_BT1[:, :-1])
    return token_loss(x_BTD.flatten(0, 1), model.head.weight, tokens_BT1[:, 1:].flatten()), routings


def _router_losses(routings: list[Routing], loss: Tensor) -> tuple[Tensor, Tensor]:
    """Load-balance and z-loss, means over layers; zero for a model without experts."""
    if not routings:
        return loss.new_zeros(()), loss.new_zeros(())
    load_balance = torch.stack([r.load_balance_loss for r in routings]).mean()
    return load_balance, torch.stack([r.z_loss for r in routings]).mean()


def autocast(precision: Precision, device: str) -> contextlib.AbstractContextManager:
    """bf16 for matrix products with fp32 masters, or nothing."""
    if precision is Precision.FP32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def _finite(number: float) -> float | None:
    """A missing measurement is missing: JSON has no infinity."""
    return round(number, 6) if math.isfinite(number) else None
