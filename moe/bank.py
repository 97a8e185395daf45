"""A bank: R trainers of one shape whose forward and backward are those of one model, for the price of few.

Small models leave a GPU waiting for its next kernel; R of them in one kernel leave it waiting no longer. Each
run's parameters are a row of a stack [R, …]. Dense products are batched over the runs, and their experts are
one layer of R·E experts that sees R·N tokens. Clipping, rates, decay and lines are each run's own.

Shape letters: router.py, and R runs.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moe.growth import Tensors
from moe.model import Block, MoETransformer, RMSNormFunction, RotaryFunction, causal_attention
from moe.optimizer import step_together
from moe.router import Routing, choose, counts_of, sorted_experts, within_capacity
from moe.token_loss import token_loss
from moe.train import Learnt, Line, Trainer, autocast


class Bank:
    """Trainers that take their next steps together; each is what it would be alone, up to rounding.

    They share model, batch size, sequence length, precision and device, and may differ in everything else.
    Their parameters become views: a trainer may leave at any time, and goes on alone or in another bank.
    """

    def __init__(self, trainers: Sequence[Trainer]):
        shapes = {
            (t.model.config, t.train.batch_size, t.train.seq_len, t.train.precision, t.device, t.ranks.size)
            for t in trainers
        }
        assert len(shapes) == 1, f"trainers of {len(shapes)} shapes in one bank"
        assert trainers[0].ranks.size == 1, "a run on several ranks in a bank"
        self.trainers = list(trainers)
        self.model = FusedModel([trainer.model for trainer in trainers])
        settings = [(t.train.load_balance_coef, t.train.z_loss_coef, t.train.grad_clip) for t in trainers]
        self._settings_3R = torch.tensor(settings, device=trainers[0].device).T

    def advance(self, tokens: Sequence[np.ndarray]) -> list[Line | Exception]:
        """One update of each by its own tokens [B, T+1]: its line, or what went wrong in it alone."""
        learnt, of_runs = self._learn(tokens)
        norm_R = self._clip()
        step_together([(each.optimizer, each.learning_rate.at(each.step)) for each in self.trainers])
        numbers = torch.stack([learnt.loss, norm_R, learnt.load_balance, learnt.z], dim=1).tolist()
        results: list[Line | Exception] = []
        for trainer, routings, own in zip(self.trainers, of_runs, numbers, strict=True):
            try:
                trainer.settle(routings)
                results.append(trainer.line(own, routings))
            except Exception as error:  # the others have their own
                results.append(error)
        return results

    def _learn(self, tokens: Sequence[np.ndarray]) -> tuple[Learnt, list[list[Routing]]]:
        """Forward and backward, every field [R, …], and each run's routings; the gradients are in place."""
        first = self.trainers[0]
        tokens_RBT1 = torch.from_numpy(np.stack(tokens)).to(first.device)
        with autocast(first.train.precision, first.device):
            loss_R, routings = self.model.language_losses(tokens_RBT1)
            balance_R, z_R = _router_losses(routings, loss_R)
        balance_coef_R, z_coef_R, _ = self._settings_3R
        self._back((loss_R + balance_coef_R * balance_R + z_coef_R * z_R).sum())
        of_layers = [_apart(routing) for routing in routings]
        of_runs = [[of_layer[r] for of_layer in of_layers] for r in range(len(tokens))]
        return Learnt(loss_R.detach(), balance_R.detach(), z_R.detach(), routings), of_runs

    def _back(self, total: Tensor) -> None:
        """A run's loss depends on its own rows alone, so that the gradient of their sum is each one's own."""
        weights = self.model.weights
        gradients = torch.autograd.grad(total, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            gradient = gradient.contiguous()  # AdamW's kernel takes gradients to lie as their parameters do
            for parameter, row in zip(self.model.rows[name], gradient.unbind(), strict=True):
                parameter.grad = row

    @torch.no_grad()
    def _clip(self) -> Tensor:
        """`clip_grad_norm_` of every run; their norms before it [R]."""
        own_P = [[p.grad for p in t.model.parameters() if p.grad is not None] for t in self.trainers]
        norms = torch._foreach_norm([gradient for own in own_P for gradient in own])  # pyright: ignore
        norm_R = torch.stack(norms).view(len(own_P), -1).norm(dim=1)
        scale_R = (self._settings_3R[2] / (norm_R + 1e-6)).clamp(max=1.0)
        for own, scale in zip(own_P, scale_R.unbind(), strict=True):
            torch._foreach_mul_(own, scale)  # pyright: ignore
        return norm_R


class FusedModel:
    """MoETransformers of one configuration as one, their tensors rows of `weights` and `buffers`: [R, …]."""

    def __init__(self, models: Sequence[MoETransformer]):
        self.one = models[0]  # its structure; weights are read from the stacks
        self.config = self.one.config
        own = [model.state_dict(keep_vars=True) for model in models]
        self.rows = {name: [tensors[name] for tensors in own] for name in own[0]}
        self.weights: Tensors = {}
        self.buffers: Tensors = {}
        for name, rows in self.rows.items():
            with torch.no_grad():
                stack = torch.stack(rows)
                for tensor, row in zip(rows, stack.unbind(), strict=True):
                    tensor.data = row
            if rows[0].requires_grad:
                self.weights[name] = stack.requires_grad_()
            else:
                self.buffers[name] = stack

    def language_losses(self, tokens_RBT1: Tensor) -> tuple[Tensor, list[Routing]]:
        """Each run's mean next-token cross-entropy [R], and each layer's routing, its fields [R, …]."""
        x_RND, routings = self.hidden(tokens_RBT1[..., :-1])
        targets_RN = tokens_RBT1[..., 1:].flatten(1)
        return token_loss(x_RND, self.weights["head.weight"], targets_RN), routings

    def hidden(self, tokens_RBT: Tensor) -> tuple[Tensor, list[Routing]]:
        """`MoETransformer.hidden` of every run: [R, N, D]."""
        R, B, T = tokens_RBT.shape
        first_R11 = torch.arange(R, device=tokens_RBT.device).mul_(self.config.vocab_size)[:, None, None]
        embedding_VD = self.weights["embedding.weight"].flatten(0, 1)
        x_RND = F.embedding(tokens_RBT + first_R11, embedding_VD).view(R, B * T, -1)
        rope, routings = self.one.rope_tables(T, tokens_RBT.device), []
        for nth, layer in enumerate(self.one.layers):
            assert isinstance(layer, Block)
            x_RND = self._layer(f"layers.{nth}", layer, x_RND, (B, T), rope, routings)
        return self._norm("final_norm")(x_RND), routings

    def _layer(
        self,
        name: str,
        layer: Block,
        x_RND: Tensor,
        shape: tuple[int, int],
        rope: tuple[Tensor, Tensor],
        routings: list[Routing],
    ) -> Tensor:
        def attend(x_RND: Tensor) -> Tensor:
            return self._attention(f"{name}.attention", x_RND, shape, rope)

        def feed_forward(x_RND: Tensor) -> Tensor:
            if layer.dense is not None:
                return self._swiglu(f"{name}.dense", x_RND)
            y_RND, routing = self._moe(f"{name}.moe", x_RND)
            routings.append(routing)
            return y_RND

        x_RND = layer.add_branch(x_RND, attend, self._norm(f"{name}.attention_norm"))  # pyright: ignore
        return layer.add_branch(x_RND, feed_forward, self._norm(f"{name}.moe_norm"))  # pyright: ignore

    def _norm(self, name: str) -> Callable[[Tensor], Tensor]:
        gain_R1D = self.weights[f"{name}.weight"].unsqueeze(1)
        return lambda x_RND: RMSNormFunction.apply(x_RND.float(), gain_R1D, self.config.norm_eps)

    def _linear(self, name: str, x_RND: Tensor) -> Tensor:
        return _linear(x_RND, self.weights[f"{name}.weight"])

    def _swiglu(self, name: str, x_RND: Tensor) -> Tensor:
        gate, up = self._linear(f"{name}.gate", x_RND), self._linear(f"{name}.up", x_RND)
        return self._linear(f"{name}.output", F.silu(gate) * up)

    def _attention(
        self, name: str, x_RND: Tensor, shape: tuple[int, int], rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Sequences of all runs side by side, once each run's own matrices have made heads of them."""
        Q, K, C = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        (R, N, _), (B, T) = x_RND.shape, shape
        weights = [self.weights[f"{name}.{part}.weight"] for part in ("query", "key", "value")]
        x_RNHC = _linear(x_RND, torch.cat(weights, dim=1)).view(R, N, Q + 2 * K, C)
        q_gain_RC, k_gain_RC = (self.weights[f"{name}.{part}_norm.weight"] for part in ("query", "key"))
        gain_RHC = torch.cat([q_gain_RC[:, None].expand(R, Q, C), k_gain_RC[:, None].expand(R, K, C)], dim=1)
        normed_RNHC = RMSNormFunction.apply(
            x_RNHC[:, :, : Q + K].float(), gain_RHC[:, None], self.config.norm_eps
        )
        turned_BTHC = RotaryFunction.apply(normed_RNHC.reshape(R * B, T, Q + K, C), *rope)
        v_BTKC = x_RNHC[:, :, Q + K :].unflatten(1, (B, T)).flatten(0, 1)
        y_BTX = causal_attention(turned_BTHC, v_BTKC)
        return self._linear(f"{name}.output", y_BTX.view(R, N, Q * C))

    def _moe(self, name: str, x_RND: Tensor) -> tuple[Tensor, Routing]:
        kind = x_RND.device.type
        with torch.autocast(kind, enabled=False):  # the routers stay in fp32
            logits_RNE = _linear(x_RND.float(), self.weights[f"{name}.router.weight"].float())
            routing, experts_Mk = self._route(logits_RNE, self.buffers.get(f"{name}.selection_bias_E"))
        if torch.is_autocast_enabled(kind):
            x_RND = x_RND.to(torch.get_autocast_dtype(kind))
        y_MD = sorted_experts(
            x_RND.flatten(0, 1),
            routing.gates_Nk.flatten(0, 1),
            experts_Mk,
            self.weights[f"{name}.experts.w_in_EGD"].flatten(0, 1),
            self.weights[f"{name}.experts.w_out_EDH"].flatten(0, 1),
        )
        y_RND = y_MD.view_as(x_RND)
        if self.config.num_shared_experts:
            y_RND = y_RND + self._swiglu(f"{name}.shared", x_RND)
        return y_RND, routing

    def _route(self, logits_RNE: Tensor, bias_RE: Tensor | None) -> tuple[Routing, Tensor]:
        """`route` of every run, its fields [R, …]; and the experts of all M = R·N tokens among all R·E."""
        (R, N, E), factor = logits_RNE.shape, self.config.capacity_factor
        bias_ME = None if bias_RE is None else bias_RE[:, None].expand(R, N, E).flatten(0, 1)
        gates_Mk, own_Mk, probs_ME, total_M1 = choose(logits_RNE.flatten(0, 1), self.config, bias_ME)
        own_RNk = own_Mk.view(R, N, -1)
        first_R11 = torch.arange(R, device=own_Mk.device).mul_(E)[:, None, None]
        experts_Mk = (own_RNk + first_R11).flatten(0, 1)
        if factor is not None:
            gates_Mk = gates_Mk * within_capacity(experts_Mk, R * E, factor)
        load_RE = counts_of(experts_Mk.reshape(-1), R * E).view(R, E) / own_RNk[0].numel()
        probs_RE = probs_ME.view(R, N, E).mean(1)
        entropy_M = -torch.special.xlogy(probs_ME.detach(), probs_ME.detach()).sum(-1)
        routing = Routing(
            gates_Nk=gates_Mk.view(R, N, -1),
            experts_Nk=own_RNk,
            load_balance_loss=E * (load_RE * probs_RE).sum(1),
            z_loss=(total_M1 - math.log(E)).square().view(R, N).mean(1),
            load_E=load_RE,
            probs_E=probs_RE,
            entropy=entropy_M.view(R, N).mean(1),
        )
        return routing, experts_Mk


def _linear(x_RND: Tensor, w_ROD: Tensor) -> Tensor:
    return torch.bmm(x_RND, w_ROD.transpose(1, 2))


def _apart(routing: Routing) -> list[Routing]:
    """That of each run; of gradients nobody asks any more."""
    return [Routing(*fields) for fields in zip(*(field.detach().unbind() for field in routing), strict=True)]


def _router_losses(routings: list[Routing], loss_R: Tensor) -> tuple[Tensor, Tensor]:
    """Load-balance and z-loss of each run, means over layers [R]; zero for a model without experts."""
    if not routings:
        return torch.zeros_like(loss_R), torch.zeros_like(loss_R)
    balance_LR = torch.stack([routing.load_balance_loss for routing in routings])
    return balance_LR.mean(0), torch.stack([routing.z_loss for routing in routings]).mean(0)
