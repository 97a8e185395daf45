"""Training speed of one model beside transformers' Mixtral of equal shape, in one run.

    python benchmarks/throughput.py [--model nano] [--threads 2] [--rounds 5]

Prints tokens/s (median over rounds, contenders interleaved) and the share of the machine's fp32 GEMM peak,
measured in the same run. Install the extra `[bench]` for the comparison.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe import flops
from moe.config import LearningRate, ModelConfig, Schedule, TrainConfig
from moe.plain import parse
from moe.process import prepare_process
from moe.train import Trainer, initial_state

CONF = Path(__file__).resolve().parent.parent / "conf"
VOCAB_SIZE = 512


def load(model: str) -> tuple[ModelConfig, TrainConfig]:
    """A preset of conf/model with the default training."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"model={model}", f"model.vocab_size={VOCAB_SIZE}"])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return parse(ModelConfig, plain["model"]), parse(TrainConfig, plain["train"])


def ours(model: ModelConfig, train: TrainConfig, tokens: np.ndarray) -> Callable[[], None]:
    """One training step through the product's own loop."""
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=train.lr)
    trainer = Trainer(model, train, rate, lambda step: tokens, initial_state(model, 0))

    def step() -> None:
        for _ in trainer.steps(trainer.step + 1):
            pass

    return step


def mixtral(model: ModelConfig, train: TrainConfig, tokens: np.ndarray, experts: str) -> Callable[[], None]:
    """The same step with transformers: same shape, loss, clipping and AdamW."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.expert_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        num_local_experts=model.num_experts,
        num_experts_per_tok=model.top_k,
        output_router_logits=True,
        router_aux_loss_coef=train.load_balance_coef,
        use_cache=False,
    )
    network = MixtralForCausalLM._from_config(config, experts_implementation=experts)
    optimizer = torch.optim.AdamW(network.parameters(), lr=train.lr, fused=True)
    batch = torch.from_numpy(tokens)

    def step() -> None:
        network(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def gemm_peak_flops(size: int = 1536) -> float:
    """FLOP/s of a large fp32 matrix product: the machine's practical ceiling."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


def measure(step: Callable[[], None], steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    prepare_process(args.threads)
    model, train = load(args.model)
    shape = (train.batch_size, train.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, shape)
    contenders = {"regrow": ours(model, train, tokens)}
    try:
        for experts in ("eager", "grouped_mm"):
            name = f"transformers Mixtral, {experts}"
            contenders[name] = mixtral(model, train, tokens[:, :-1].copy(), experts)
    except ImportError:
        print("transformers is not installed: pip install -e '.[bench]' for the comparison")
    for step in contenders.values():
        measure(step, 2)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks = []
    for _ in range(args.rounds):
        peaks.append(gemm_peak_flops())
        for name, step in contenders.items():
            seconds[name].append(measure(step, args.steps))
    peak = statistics.median(peaks)
    per_token = flops.train_flops_per_token(model, train.seq_len)
    first = statistics.median(seconds["regrow"])
    sizes = f"{flops.activated_params(model):,} activated of {flops.total_params(model):,} parameters"
    print(f"{args.model}: {sizes}; {args.threads} threads, torch {torch.__version__}")
    print(f"{train.batch_size} x {train.seq_len} tokens a step")
    print(f"fp32 GEMM peak {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'':34}{'tokens/s':>10}{'of peak':>10}{'regrow is':>12}")
    for name, times in seconds.items():
        rate = train.tokens_per_step / statistics.median(times)
        ratio = statistics.median(times) / first
        print(f"{name:34}{rate:10,.0f}{rate * per_token / peak:10.1%}{ratio:11.2f}x")


if __name__ == "__main__":
    main()
