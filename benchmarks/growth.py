"""Time to grow a state beside the time to copy the grown bytes, in one run.

    python benchmarks/growth.py [--model small] [--threads 2] [--rounds 7]

Medians over interleaved rounds. The copy (`clone` of every grown tensor) is the least that any growth must
do: each grown byte is written once. `draw` is the least that noise adds: its normal numbers alone.
"""

import argparse

import torch
from configuration import load
from section import Section, table
from timing import Step, interleaved

from moe.config import ModelConfig
from moe.growth import Moments, Tensors, grow_moments, grow_weights
from moe.operator import Copies, DepthMethod, Operator, OptimizerState, WidthMethod
from moe.process import prepare_process
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


def contenders(model: ModelConfig, operator: Operator, weights: Tensors) -> dict[str, Step]:
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


def section(model: str = "small", threads: int = 2, rounds: int = 5) -> Section:
    prepare_process(threads)
    config, _ = load(model)
    weights = initial_state(config, 0).weights
    rows = []
    for name, operator in OPERATORS.items():
        t = interleaved(contenders(config, operator, weights), rounds, warm_up=1)
        row = [f"{1e3 * t[part]:.1f}" for part in ("copy", "draw", "grow")]
        ratios = [f"{t['grow'] / t['copy']:.2f}×", f"{t['grow state'] / t['copy state']:.2f}×"]
        rows.append([name, *row, *ratios])
    words = f"`{model}`, {sum(t.numel() for t in weights.values()):,} weights, {threads} threads. "
    words += "Copying is `clone` of every grown tensor; drawing is the noise's normal numbers alone.\n\n"
    heads = ["", "copy, ms", "draw, ms", "grow, ms", "grow ÷ copy", "with moments"]
    return Section("Growing a state in memory", words + table(heads, rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(section(args.model, args.threads, args.rounds).text)


if __name__ == "__main__":
    main()
