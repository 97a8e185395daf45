"""R runs as one model (`launch.fuse=R`) beside the same runs one after another.

    python benchmarks/fused.py [--models pico nano] [--runs 1 4 16] [--device cuda] [--precision bf16]

Prints tokens/s of all runs together, the median over rounds in which both ways take turns, and their ratio.
Batches are drawn before: making them costs a run as much either way. On CPU one thread.
"""

import argparse
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from throughput import load
from timing import interleaved

from moe.bank import Bank
from moe.config import LearningRate, ModelConfig, Precision, Schedule, TrainConfig
from moe.process import prepare_process
from moe.train import Trainer, initial_state


def trainers(model: ModelConfig, train: TrainConfig, num_runs: int, device: str) -> list[Trainer]:
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=train.lr)
    shape = (num_runs, train.batch_size, train.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, shape)
    return [
        Trainer(model, train, rate, lambda step, r=r: tokens[r], initial_state(model, r), device)
        for r in range(num_runs)
    ]


def separate(runs: list[Trainer]) -> None:
    for run in runs:
        run.advance(run.read())


def fused(runs: list[Trainer]) -> Callable[[], None]:
    bank = Bank(runs)

    def step() -> None:
        for line in bank.advance([run.read() for run in runs]):
            assert isinstance(line, dict), line

    return step


def report(name: str, num_runs: int, args: argparse.Namespace) -> None:
    model, train = load(name)
    train = dataclasses.replace(train, precision=Precision(args.precision))
    alone = trainers(model, train, num_runs, args.device)
    ways = {
        "separate": lambda: separate(alone),
        "fused": fused(trainers(model, train, num_runs, args.device)),
    }
    # each step ends by reading its losses, so that a GPU has nothing left to do
    middle = interleaved(ways, args.rounds, args.steps)
    rates = {way: num_runs * train.tokens_per_step / each for way, each in middle.items()}
    ratio = middle["separate"] / middle["fused"]
    print(f"{name:8}{num_runs:6}{rates['separate']:14,.0f}{rates['fused']:14,.0f}{ratio:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["pico", "nano"])
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    prepare_process(1)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, one thread"
    print(f"torch {torch.__version__}, {where}, {args.precision}; tokens/s of all runs together")
    print(f"{'model':8}{'runs':>6}{'separate':>14}{'fused':>14}{'fused/':>9}")
    for name in args.models:
        for num_runs in args.runs:
            report(name, num_runs, args)


if __name__ == "__main__":
    main()
