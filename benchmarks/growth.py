"""Time to grow a state beside the time to copy the grown bytes, in one run.

    python benchmarks/growth.py [--model small] [--threads 2] [--rounds 7]

Medians over interleaved rounds. The copy (`clone` of every grown tensor) is the least that any growth must
do: each grown byte is written once. `draw` is the least that noise adds: its normal numbers alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from configuration import load

from moe.config import ModelConfig
from moe.growth import Moments, Tensors, grow_moments, grow_weights
from moe.operator import Copies, DepthMethod, Operator, OptimizerState, WidthMethod
from moe.train import initial_state

DEEP = {"method": DepthMethod.INTERPOSITION, "depth_factor": 2}
WIDE = {"width_method": WidthMethod.DUPLICATE, "width_factor": 2}
NOISE = {"noise_scale": 0.01, "seed": 0}
OPERATORS = {
    "interposition": Operator(**DEEP),
    "interposition, zeroed": Operator(**DEEP, copies=Copies.ZEROED),
    "duplicate, α = 0": Operator(**WIDE),
    "split": Operator(width_method=WidthMethod.SPLIT, width_factor=2),
    "duplicate, α = 0.01": Operator(**WIDE, **NOISE),
    "both, α = 0.01": Operator(**DEEP, **WIDE, **NOISE),
}


def contenders(model: ModelConfig, operator: Operator, weights: Tensors) -> dict[str, Callable[[], object]]:
    """What is timed: copying and growing the weights, then both with AdamW's moments; drawing the noise."""
    moments = Moments(step=1, first=weights, second={n: t.square() for n, t in weights.items()})
    grown = grow_weights(model, operator, weights)
    grown_moments = grow_moments(model, operator, OptimizerState.COPY, moments)
    state = [*grown.values(), *grown_moments.first.values(), *grown_moments.second.values()]
    copied = [t for n, t in grown.items() if ".moe.router." in n or ".moe.experts." in n]
    noise = [torch.empty(t.numel() - t.numel() // operator.width_factor) for t in copied]

    def grow_state() -> None:
        grow_weights(model, operator, weights)
        grow_moments(model, operator, OptimizerState.COPY, moments)

    return {
        "copy": lambda: [t.clone() for t in grown.values()],
        "grow": lambda: grow_weights(model, operator, weights),
        "copy state": lambda: [t.clone() for t in state],
        "grow state": grow_state,
        "draw": lambda: [t.normal_() for t in noise] if operator.noise_scale else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, _ = load(args.model)
    weights = initial_state(model, 0).weights
    print(f"{args.model}: {sum(t.numel() for t in weights.values()):,} weights; {args.threads} threads\n")
    print(f"{'':22}{'copy':>10}{'draw':>10}{'grow':>10}{'ratio':>8}{'with moments':>14}")
    for name, operator in OPERATORS.items():
        seconds: dict[str, list[float]] = {}
        timed = contenders(model, operator, weights)
        for _ in range(args.rounds):
            for part, work in timed.items():
                begin = time.perf_counter()
                work()
                seconds.setdefault(part, []).append(time.perf_counter() - begin)
        t = {part: statistics.median(values) for part, values in seconds.items()}
        row = "".join(f"{1e3 * t[part]:7.1f} ms" for part in ("copy", "draw", "grow"))
        print(f"{name:22}{row}{t['grow'] / t['copy']:7.2f}x{t['grow state'] / t['copy state']:13.2f}x")


if __name__ == "__main__":
    main()
