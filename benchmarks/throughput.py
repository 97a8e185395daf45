"""Training speed beside transformers' MoE models of equal shape, and a dense model of ours, in one run.

    python benchmarks/throughput.py [--models nano micro small] [--threads 1] [--rounds 5] [--steps 5]

Prints tokens/s (median over rounds, contenders interleaved) and the share of the machine's fp32 GEMM peak,
measured in the same run; then what each part of our step takes alone, forward and backward. The dense model
has the activated parameters and no router: what routing costs. Peers need the extra `[bench]`.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from computer import gemm_peak_flops
from configuration import VOCAB_SIZE, load
from parts import part_seconds
from peers import EXPERTS, PEERS, peer_step
from section import Section, table
from timing import Step, interleaved

from moe import flops
from moe.config import LearningRate, ModelConfig, Precision, Schedule, TrainConfig
from moe.process import prepare_process
from moe.train import Trainer, initial_state

OURS, BF16, DENSE = "regrow", "regrow, bf16 autocast", "regrow, dense of equal N_a"
PEER = "transformers"
# (rounds, steps a round): about a minute each on one core
EFFORT = {"pico": (5, 8), "nano": (5, 5), "micro": (3, 2), "small": (3, 1)}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of one model: seconds a step of each contender, and of each part of ours."""

    name: str
    model: ModelConfig
    train: TrainConfig
    peak: float  # FLOP/s
    seconds: Mapping[str, float]
    parts: Mapping[str, float]

    def tokens_per_s(self, contender: str) -> float:
        return self.train.tokens_per_step / self.seconds[contender]

    def share(self, contender: str) -> float:
        """Of the GEMM peak."""
        model = dense(self.model) if contender == DENSE else self.model
        per_token = flops.train_flops_per_token(model, self.train.seq_len)
        return self.tokens_per_s(contender) * per_token / self.peak

    def fastest_peer(self) -> str | None:
        peers = [name for name in self.seconds if name.startswith(PEER)]
        return min(peers, key=self.seconds.__getitem__, default=None)


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


def contenders(model: ModelConfig, train: TrainConfig, tokens: np.ndarray) -> dict[str, Step]:
    bf16 = dataclasses.replace(train, precision=Precision.BF16)
    steps = {
        OURS: step_of(trainer_of(model, train, tokens)),
        BF16: step_of(trainer_of(model, bf16, tokens)),
        DENSE: step_of(trainer_of(dense(model), train, tokens)),
    }
    try:
        for peer in PEERS:
            for experts in EXPERTS:
                batch = tokens[:, :-1].copy()
                steps[f"{PEER} {peer}, {experts}"] = peer_step(peer, model, train, batch, experts)
    except ImportError:
        print("transformers is not installed: pip install -e '.[bench]' for the comparison")
    return steps


def speeds(name: str, rounds: int, count: int) -> Speeds:
    model, train = load(name)
    tokens = random_tokens(train)
    before = gemm_peak_flops()
    seconds = interleaved(contenders(model, train, tokens), rounds, count, warm_up=2 if count > 1 else 1)
    peak = statistics.median([before, gemm_peak_flops(), gemm_peak_flops()])
    taken = part_seconds(trainer_of(model, train, tokens), tokens, rounds, count)
    return Speeds(name, model, train, peak, seconds, taken)


def section(
    models: list[str], threads: int = 1, rounds: int | None = None, steps: int | None = None
) -> Section:
    prepare_process(threads)
    found = []
    for name in models:
        usual = EFFORT.get(name, (3, 1))
        found.append(speeds(name, rounds or usual[0], steps or usual[1]))
    ratios = {}
    for each in found:
        peer = each.fastest_peer()
        if peer is not None:
            ratios[f"{each.name}: ours ÷ fastest transformers"] = each.seconds[peer] / each.seconds[OURS]
    text = "\n".join([*(_speed_text(each, threads) for each in found), _parts_text(found)])
    return Section("Training speed", text, ratios)


def _speed_text(s: Speeds, threads: int) -> str:
    sizes = f"{flops.activated_params(s.model):,} activated of {flops.total_params(s.model):,} parameters"
    words = f"`{s.name}`: {sizes}, {s.train.batch_size} × {s.train.seq_len} tokens a step, "
    words += f"{threads} {'thread' if threads == 1 else 'threads'}, "
    words += f"fp32 GEMM peak {s.peak / 1e9:.0f} GFLOP/s.\n\n"
    rows = [
        [name, f"{s.tokens_per_s(name):,.0f}", f"{s.share(name):.1%}", f"{each / s.seconds[OURS]:.2f}×"]
        for name, each in s.seconds.items()
    ]
    return words + table(["", "tokens/s", "of peak", "regrow is"], rows)


def _parts_text(found: list[Speeds]) -> str:
    """Shares of the parts in a step with its data; what no part has is the rest."""
    names = list(dict.fromkeys(part for each in found for part in each.parts))
    whole = {each.name: each.seconds[OURS] + each.parts.get("data", 0.0) for each in found}

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
