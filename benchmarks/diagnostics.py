"""What the diagnostics along training cost: steps with and without them, alternating, in one run.

    python benchmarks/diagnostics.py [--model nano] [--threads 1] [--rounds 12]

The model is the grown one (depth and experts doubled), whose twins and moments are watched: the dearest case.
"""

import argparse

import numpy as np
import torch
from configuration import VOCAB_SIZE, load
from section import Section
from timing import interleaved

from moe.config import LearningRate, Schedule
from moe.diagnostics import DIAGNOSE_EVERY, diagnose, moment_cosines, sample_moments
from moe.growth import OptimizerState, grow_moments, grow_weights
from moe.operator import DepthMethod, Operator, WidthMethod
from moe.process import prepare_process
from moe.train import State, Trainer, initial_state, language_loss


def grown_trainer(model_name: str) -> Trainer:
    """A trainer just after growth, with a few steps done so that there are moments."""
    model, train = load(model_name)
    shape = (train.batch_size, train.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, shape)
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=train.lr)
    trunk = Trainer(model, train, rate, lambda step: tokens, initial_state(model, 0))
    list(trunk.steps(3))
    operator = Operator(
        method=DepthMethod.INTERPOSITION,
        depth_factor=2,
        width_method=WidthMethod.DUPLICATE,
        width_factor=2,
        noise_scale=0.01,
        seed=0,
    )
    source = trunk.state()
    weights = grow_weights(model, operator, source.weights)
    moments = grow_moments(model, operator, OptimizerState.COPY, source.moments)
    before = sample_moments(model, operator, source.moments)
    state = State(step=0, weights=weights, moments=moments)
    grown = operator.apply_to(model)
    return Trainer(grown, train, rate, lambda step: tokens, state, num_copies=2, moments_before=before)


def section(model: str = "nano", threads: int = 1, rounds: int = 12) -> Section:
    prepare_process(threads)
    trainer = grown_trainer(model)
    assert trainer.moments_before
    routings = language_loss(trainer.model, torch.from_numpy(trainer.batches(0)))[1]

    def plain() -> None:
        trainer.step = 0  # steps 1 to 4 carry no diagnostics
        list(trainer.steps(4))

    def diagnosed() -> None:
        assert trainer.moments_before
        diagnose(trainer.model, routings, trainer.num_copies)
        moment_cosines(trainer.moments_before, trainer.state().moments)

    seconds = interleaved({"step": plain, "diagnostics": diagnosed}, rounds, warm_up=1)
    step, cost = seconds["step"] / 4, seconds["diagnostics"]
    text = f"`{model}`, grown: a step {1e3 * step:.1f} ms, diagnostics {1e3 * cost:.1f} ms; every "
    text += f"{DIAGNOSE_EVERY} steps, **{cost / DIAGNOSE_EVERY / step:.1%} of a step**.\n"
    return Section("Diagnostics along training", text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    print(section(args.model, args.threads, args.rounds).text)


if __name__ == "__main__":
    main()
