"""A training step beside its own matrix products, alone: what everything else in it costs.

    python benchmarks/replay.py [--models nano micro small] [--threads 1] [--rounds 7]

Every mm, addmm, bmm and baddbmm of one step is recorded with its shapes and strides and done again on random
numbers, in its order, through torch and nothing between. The replay's buffers are shared by products of one
shape, so that they are warmer in the cache than those of a step: it is a ceiling. Attention's own products
(QKᵀ, PV and their four gradients, the causal half) follow from the model's sizes, whatever kernel does them.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from computer import gemm_peak_flops
from configuration import load
from section import Section, table
from throughput import random_tokens, step_of, trainer_of
from timing import Step, interleaved
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe import flops
from moe.config import ModelConfig, TrainConfig
from moe.process import prepare_process

# The product's name, and where its first factor stands
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
EFFORT = {"pico": (9, 8), "nano": (9, 5), "micro": (7, 2), "small": (5, 1)}  # rounds, steps a round


@dataclass(frozen=True, slots=True)
class Layout:
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    @classmethod
    def plain(cls, *shape: int, turned: bool = False) -> "Layout":
        """fp32 and contiguous, or the transpose of such a one."""
        tensor = torch.empty(*shape[:-2], shape[-1], shape[-2], device="meta").mT if turned else None
        return cls.of(torch.empty(*shape, device="meta") if tensor is None else tensor)

    def tensor(self) -> Tensor:
        size = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return torch.randn(size).to(self.dtype).as_strided(self.shape, self.strides)


@dataclass(frozen=True, slots=True)
class Product:
    """a·b into `out`, or added to what is there."""

    a: Layout
    b: Layout
    out: Layout
    accumulates: bool = False

    @property
    def flops(self) -> int:
        return 2 * torch.Size(self.a.shape).numel() * self.b.shape[-1]


class Recorder(TorchDispatchMode):
    """Keeps every matrix product of its block, in order, those of attention left out."""

    def __init__(self, model: ModelConfig, train: TrainConfig):
        super().__init__()
        self.products: list[Product] = []
        self._of_attention = {train.seq_len, model.head_dim}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in PRODUCTS:
            first = PRODUCTS[name]
            a, b = args[first : first + 2]
            accumulates = first == 1 and (kwargs or {}).get("beta", 1) != 0
            product = Product(Layout.of(a), Layout.of(b), Layout.of(result), accumulates)
            if product.flops and not self._is_attention(product):
                self.products.append(product)
        return result

    def _is_attention(self, product: Product) -> bool:
        """A batch of products whose sizes are tokens of a sequence and channels of a head alone."""
        sizes = {*product.a.shape[-2:], *product.b.shape[-2:]}
        return len(product.a.shape) == 3 and sizes <= self._of_attention


def step_products(model: ModelConfig, train: TrainConfig) -> list[Product]:
    """Those of one training step, attention's last."""
    trainer = trainer_of(model, train, random_tokens(train))
    list(trainer.steps(2))  # what is made once is made
    with Recorder(model, train) as recorder:
        list(trainer.steps(3))
    return recorder.products + model.num_layers * attention_products(model, train)


def attention_products(model: ModelConfig, train: TrainConfig) -> list[Product]:
    """Of one layer: of each query the half of the keys that it sees on average."""
    heads, T, C = train.batch_size * model.num_heads, train.seq_len, model.head_dim
    half = T // 2

    def product(m: int, k: int, n: int, a_turned: bool = False, b_turned: bool = False) -> Product:
        a = Layout.plain(heads, m, k, turned=a_turned)
        return Product(a, Layout.plain(heads, k, n, turned=b_turned), Layout.plain(heads, m, n))

    scores, values = product(T, C, half, b_turned=True), product(T, half, C)
    of_scores, of_queries = product(T, C, half, b_turned=True), product(T, half, C)
    of_keys = of_values = product(half, T, C, a_turned=True)
    return [scores, values, of_values, of_scores, of_queries, of_keys]


def replay(products: list[Product]) -> Step:
    """All of them once, each in buffers that equal ones share."""
    buffers = {p: (p.a.tensor(), p.b.tensor(), p.out.tensor()) for p in dict.fromkeys(products)}
    calls = [(*buffers[product], product.accumulates) for product in products]

    def run() -> None:
        for a, b, out, accumulates in calls:
            if accumulates:  # halved each time, so that numbers stay numbers
                (out.addmm_ if a.ndim == 2 else out.baddbmm_)(a, b, beta=0.5)
            else:
                (torch.mm if a.ndim == 2 else torch.bmm)(a, b, out=out)

    return run


def section(
    models: list[str], threads: int = 1, rounds: int | None = None, steps: int | None = None
) -> Section:
    prepare_process(threads)
    rows, ratios = [], {}
    for name in models:
        model, train = load(name)
        products = step_products(model, train)
        usual = EFFORT.get(name, (5, 1))
        timed = {"step": step_of(trainer_of(model, train, random_tokens(train))), "replay": replay(products)}
        seconds = interleaved(timed, rounds or usual[0], steps or usual[1])
        peak, total = gemm_peak_flops(), sum(product.flops for product in products)
        counted = flops.train_flops_per_token(model, train.seq_len) * train.tokens_per_step
        ratios[f"{name}: step speed ÷ its GEMMs"] = seconds["replay"] / seconds["step"]
        rows.append(
            [
                f"`{name}`",
                f"{len(products):,} ({len(Counter(products)):,})",
                f"{total / 1e9:.2f} ({total / counted:.0%})",
                f"{1e3 * seconds['replay']:.1f}",
                f"{total / seconds['replay'] / peak:.1%}",
                f"{1e3 * seconds['step']:.1f}",
                f"{seconds['replay'] / seconds['step']:.1%}",
            ]
        )
    heads = ["", "products (distinct)", "GFLOP (of what a step counts)", "replay, ms", "replay, of peak"]
    text = table([*heads, "step, ms", "step speed, of the replay"], rows)
    words = "The matrix products of one step, done again alone, beside the step; "
    words += f"{threads} {'thread' if threads == 1 else 'threads'}.\n\n"
    return Section("A step beside its matrix products", words + text, ratios)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["nano", "micro", "small"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    print(section(args.models, args.threads, args.rounds, args.steps).text)


if __name__ == "__main__":
    main()
