"""Training speed beside transformers' MoE models of equal shape, and a dense model of ours, in one run.

    python benchmarks/throughput.py [--models nano micro] [--threads 1] [--rounds 5]

Prints tokens/s (median over rounds, contenders interleaved) and the share of the machine's fp32 GEMM peak,
measured in the same run; then what each part of our step takes alone, forward and backward. The dense model
has the activated parameters and no router: what routing costs. Peers need the extra `[bench]`.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peers import EXPERTS, PEERS, peer_step

from moe import flops
from moe.config import LearningRate, ModelConfig, Schedule, TrainConfig
from moe.model import MoE
from moe.plain import parse
from moe.process import prepare_process
from moe.router import route
from moe.token_loss import token_loss
from moe.train import Trainer, initial_state

CONF = Path(__file__).resolve().parent.parent / "conf"
VOCAB_SIZE = 512
Step = Callable[[], object]


def load(model: str) -> tuple[ModelConfig, TrainConfig]:
    """A preset of conf/model with the default training."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"model={model}", f"model.vocab_size={VOCAB_SIZE}"])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return parse(ModelConfig, plain["model"]), parse(TrainConfig, plain["train"])


def trainer_of(model: ModelConfig, train: TrainConfig, tokens: np.ndarray) -> Trainer:
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=train.lr)
    return Trainer(model, train, rate, lambda step: tokens, initial_state(model, 0))


def ours(model: ModelConfig, train: TrainConfig, tokens: np.ndarray) -> Step:
    """One training step through the product's own loop."""
    trainer = trainer_of(model, train, tokens)
    return lambda: list(trainer.steps(trainer.step + 1))


def dense(model: ModelConfig) -> ModelConfig:
    """The same with one feed-forward a layer, as large as the experts that a token goes to."""
    size = model.top_k * model.expert_hidden_size
    return dataclasses.replace(model, num_dense_layers=model.num_layers, dense_hidden_size=size)


def parts(model: ModelConfig, train: TrainConfig, tokens: np.ndarray) -> dict[str, tuple[Step, int]]:
    """Each part of a step alone, forward and backward, and how many of it a step has."""
    trainer = trainer_of(model, train, tokens)
    list(trainer.steps(1))
    network, num_tokens = trainer.model, train.batch_size * train.seq_len
    moe = network.moe_layers()[0]
    attention = network.layers[0].attention
    rope = network._rope_tables(train.seq_len, torch.device("cpu"))
    x_BTD = torch.randn(train.batch_size, train.seq_len, model.hidden_size, requires_grad=True)
    x_ND = torch.randn(num_tokens, model.hidden_size, requires_grad=True)
    targets_N = torch.from_numpy(tokens[:, 1:].reshape(-1).copy())
    _, routing = moe(x_BTD.detach())
    routing = routing._replace(gates_Nk=routing.gates_Nk.detach().requires_grad_())
    gradient_ND = torch.randn(num_tokens, model.hidden_size)
    gradients = [torch.randn_like(parameter) for parameter in network.parameters()]

    def attend() -> None:
        attention(x_BTD, rope).backward(gradient_ND.view_as(x_BTD))

    def route_all() -> None:
        gates_Nk, balance, z = _routes(moe, x_ND)
        (gates_Nk.sum() + balance + z).backward()

    def experts() -> None:
        moe.experts(x_ND, routing).backward(gradient_ND)

    def head() -> None:
        token_loss(x_ND, network.head.weight, targets_N).backward()

    def optimise() -> None:
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.grad_clip)
        trainer.optimizer.step(1e-3)

    layers = model.num_layers
    return {
        "attention": (attend, layers),
        "router": (route_all, layers),
        "experts": (experts, layers),
        "head and loss": (head, 1),
        "clipping and AdamW": (optimise, 1),
    }


def _routes(moe: MoE, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    routing = route(torch.nn.functional.linear(x_ND, moe.router.weight), moe.config)
    return routing.gates_Nk, routing.load_balance_loss, routing.z_loss


def gemm_peak_flops(size: int = 1536) -> float:
    """FLOP/s of a large fp32 matrix product: the machine's practical ceiling."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(measure(lambda: a @ b, 1) for _ in range(8))


def measure(step: Step, steps: int) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def interleaved(steps: dict[str, Step], rounds: int, count: int) -> dict[str, float]:
    """The median seconds of each, all of them once a round."""
    for step in steps.values():
        measure(step, 2)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(measure(step, count))
    return {name: statistics.median(times) for name, times in seconds.items()}


def contenders(model: ModelConfig, train: TrainConfig, tokens: np.ndarray) -> dict[str, Step]:
    steps: dict[str, Step] = {
        "regrow": ours(model, train, tokens),
        "regrow, dense of equal N_a": ours(dense(model), train, tokens),
    }
    try:
        for peer in PEERS:
            for experts in EXPERTS:
                batch = tokens[:, :-1].copy()
                steps[f"transformers {peer}, {experts}"] = peer_step(peer, model, train, batch, experts)
    except ImportError:
        print("transformers is not installed: pip install -e '.[bench]' for the comparison")
    return steps


def report(name: str, threads: int, rounds: int, count: int) -> None:
    model, train = load(name)
    shape = (train.batch_size, train.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, shape)
    peak = gemm_peak_flops()
    seconds = interleaved(contenders(model, train, tokens), rounds, count)
    peak = statistics.median([peak, gemm_peak_flops(), gemm_peak_flops()])
    sizes = f"{flops.activated_params(model):,} activated of {flops.total_params(model):,} parameters"
    print(f"\n{name}: {sizes}; {train.batch_size} x {train.seq_len} tokens a step; {threads} threads")
    print(f"torch {torch.__version__}, fp32 GEMM peak {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'':34}{'tokens/s':>10}{'of peak':>10}{'regrow is':>12}")
    for contender, each in seconds.items():
        own = dense(model) if "dense" in contender else model
        rate = train.tokens_per_step / each
        share = rate * flops.train_flops_per_token(own, train.seq_len) / peak
        print(f"{contender:34}{rate:10,.0f}{share:10.1%}{each / seconds['regrow']:11.2f}x")
    whole, alone = seconds["regrow"], parts(model, train, tokens)
    taken = interleaved({part: step for part, (step, _) in alone.items()}, rounds, count)
    print(f"\n{'part of a step, alone':34}{'ms':>10}{'of step':>10}")
    for part, each in taken.items():
        spent = each * alone[part][1]
        print(f"{part:34}{1e3 * spent:10.1f}{spent / whole:10.1%}")
    rest = whole - sum(each * alone[part][1] for part, each in taken.items())
    print(f"{'norms, residuals, logging, rest':34}{1e3 * rest:10.1f}{rest / whole:10.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["nano", "micro"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    prepare_process(args.threads)
    for name in args.models:
        report(name, args.threads, args.rounds, args.steps)


if __name__ == "__main__":
    main()
