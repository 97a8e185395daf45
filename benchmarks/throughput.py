"""Training speed beside transformers' MoE models of equal shape, and a dense model of ours, in one run.

    python benchmarks/throughput.py [--models nano micro small] [--threads 1] [--rounds 5] [--steps 5]

Prints tokens/s (medians over rounds in which a contender takes turns with ours, each in a process of its own;
ratios are medians of those within a turn) and the share of the machine's fp32 GEMM peak; then what each part
of our step takes alone, forward and backward. Ours runs as a worker of a sweep does, peers with their number
of threads set and nothing else. The dense model has the activated parameters and no router: what routing
costs. Peers need the extra `[bench]`.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from alone import alone
from computer import gemm_peak_flops
from configuration import VOCAB_SIZE, load
from parts import part_seconds
from peers import EXPERTS, PEERS, peer_step
from section import Section, table
from timing import Step
from turns import Pace, in_turns

from moe import flops
from moe.config import LearningRate, ModelConfig, Precision, Schedule, TrainConfig
from moe.process import prepare_process
from moe.train import Trainer, initial_state

OURS, BF16, DENSE = "regrow", "regrow, bf16 autocast", "regrow, dense of equal N_a"
PEER = "transformers"
# (rounds, steps a round): about a minute each on one core
EFFORT = {"pico": (9, 8), "nano": (9, 4), "micro": (7, 2), "small": (3, 1)}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of one model: the pace of each contender, and seconds a step of each part of ours."""

    name: str
    model: ModelConfig
    train: TrainConfig
    peak: float  # FLOP/s
    paces: Mapping[str, Pace]
    parts: Mapping[str, float]

    def tokens_per_s(self, contender: str) -> float:
        return self.train.tokens_per_step / self.paces[contender].seconds

    def share(self, contender: str) -> float:
        """Of the GEMM peak."""
        model = dense(self.model) if contender == DENSE else self.model
        per_token = flops.train_flops_per_token(model, self.train.seq_len)
        return self.tokens_per_s(contender) * per_token / self.peak

    def fastest_peer(self) -> str | None:
        peers = [name for name in self.paces if name.startswith(PEER)]
        return min(peers, key=lambda name: self.paces[name].of_first, default=None)


def random_tokens(train: TrainConfig) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, (train.batch_size, train.seq_len + 1))


def trainer_of(model: ModelConfig, train: TrainConfig, tokens: np.ndarray) -> Trainer:
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=train.lr)
    return Trainer(model, train, rate, lambda step: tokens, initial_state(model, 0))


def step_of(trainer: Trainer) -> Step:
    """One training step through the product's own loop."""
    return lambda: list(trainer.steps(trainer.step + 1))


def dense(model: ModelConfig) -> ModelConfig:
    """The same with one feed-forward a layer, as large as the experts that a token goes to."""
    size = model.top_k * model.expert_hidden_size
    return dataclasses.replace(model, num_dense_layers=model.num_layers, dense_hidden_size=size)


def our_step(model: ModelConfig, train: TrainConfig, tokens: np.ndarray, threads: int) -> Step:
    """In a process as a worker of a sweep sets it up."""
    prepare_process(threads)
    return step_of(trainer_of(model, train, tokens))


def their_step(
    peer: str, model: ModelConfig, train: TrainConfig, tokens: np.ndarray, experts: str, threads: int
) -> Step:
    """In a process as a script would set it up."""
    torch.set_num_threads(threads)
    return peer_step(peer, model, train, tokens[:, :-1].copy(), experts)


def contenders(
    model: ModelConfig, train: TrainConfig, tokens: np.ndarray, threads: int
) -> dict[str, Callable[[], Step]]:
    bf16 = dataclasses.replace(train, precision=Precision.BF16)
    makers: dict[str, Callable[[], Step]] = {
        OURS: partial(our_step, model, train, tokens, threads),
        BF16: partial(our_step, model, bf16, tokens, threads),
        DENSE: partial(our_step, dense(model), train, tokens, threads),
    }
    for peer in PEERS:
        for experts in EXPERTS:
            make = partial(their_step, peer, model, train, tokens, experts, threads)
            makers[f"{PEER} {peer}, {experts}"] = make
    return makers


def speeds(name: str, threads: int, rounds: int, count: int) -> Speeds:
    model, train = load(name)
    tokens = random_tokens(train)
    before = alone(_peak, threads)
    paces = in_turns(contenders(model, train, tokens, threads), rounds, count, warm_up=2)
    peak = statistics.median([before, alone(_peak, threads), alone(_peak, threads)])
    taken = alone(_part_seconds, model, train, tokens, threads, rounds, count)
    if not any(contender.startswith(PEER) for contender in paces):
        print("transformers is not installed: pip install -e '.[bench]' for the comparison")
    return Speeds(name, model, train, peak, paces, taken)


def _peak(threads: int) -> float:
    torch.set_num_threads(threads)
    return gemm_peak_flops()


def _part_seconds(
    model: ModelConfig, train: TrainConfig, tokens: np.ndarray, threads: int, rounds: int, count: int
) -> dict[str, float]:
    prepare_process(threads)
    return part_seconds(trainer_of(model, train, tokens), tokens, rounds, count)


def section(
    models: list[str], threads: int = 1, rounds: int | None = None, steps: int | None = None
) -> Section:
    found = []
    for name in models:
        usual = EFFORT.get(name, (3, 1))
        found.append(speeds(name, threads, rounds or usual[0], steps or usual[1]))
    ratios = {}
    for each in found:
        peer = each.fastest_peer()
        if peer is not None:
            ratios[f"{each.name}: ours ÷ fastest transformers"] = each.paces[peer].of_first
    text = "\n".join([*(_speed_text(each, threads) for each in found), _parts_text(found)])
    return Section("Training speed", text, ratios)


def _speed_text(s: Speeds, threads: int) -> str:
    sizes = f"{flops.activated_params(s.model):,} activated of {flops.total_params(s.model):,} parameters"
    words = f"`{s.name}`: {sizes}, {s.train.batch_size} × {s.train.seq_len} tokens a step, "
    words += f"{threads} {'thread' if threads == 1 else 'threads'}, "
    words += f"fp32 GEMM peak {s.peak / 1e9:.0f} GFLOP/s.\n\n"
    rows = [
        [name, f"{s.tokens_per_s(name):,.0f}", f"{s.share(name):.1%}", f"{pace.of_first:.2f}×"]
        for name, pace in s.paces.items()
    ]
    return words + table(["", "tokens/s", "of peak", "regrow is"], rows)


def _parts_text(found: list[Speeds]) -> str:
    """Shares of the parts in a step with its data; what no part has is the rest."""
    names = list(dict.fromkeys(part for each in found for part in each.parts))
    whole = {each.name: each.paces[OURS].seconds + each.parts.get("data", 0.0) for each in found}

    def cell(each: Speeds, seconds: float | None) -> str:
        return "" if seconds is None else f"{1e3 * seconds:.1f} ms, {seconds / whole[each.name]:.1%}"

    rows = [[part, *(cell(each, each.parts.get(part)) for each in found)] for part in names]
    rest = ["norms, residuals, logging, rest"]
    rest += [cell(each, whole[each.name] - sum(each.parts.values())) for each in found]
    heads = ["part of a step, alone", *(each.name for each in found)]
    return "Each part alone, forward and backward.\n\n" + table(heads, [*rows, rest])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["nano", "micro", "small"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="by default what the model allows in a minute")
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    print(section(args.models, args.threads, args.rounds, args.steps).text)


if __name__ == "__main__":
    main()
