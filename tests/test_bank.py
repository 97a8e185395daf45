"""A bank of runs is the runs one by one: losses, every gradient, curves; and runs come, go and diverge."""

import numpy as np
import pytest
import tiny
import torch

from moe.bank import Bank
from moe.config import LearningRate, Schedule
from moe.train import Diverged, Trainer, initial_state

RUNS = 3
# A case a choice of ModelConfig that the fused forward has to follow.
MODELS = {
    "default": {},
    "softmax": {"gate": "softmax", "route_scale": 2.0},
    "topk_softmax": {"gate": "topk_softmax", "norm_placement": "post"},
    "sigmoid": {"gate": "sigmoid", "selection_bias_rate": 0.01, "norm_placement": "output"},
    "groups": {"gate": "sigmoid_renormalised", "num_experts": 8, "num_groups": 4, "top_k_groups": 2},
    "shared and dense": {"num_shared_experts": 1, "num_dense_layers": 1, "dense_hidden_size": 24},
    "dense alone": {"num_dense_layers": 2, "dense_hidden_size": 24},
    "capacity": {"capacity_factor": 0.75},
    "residual": {"residual_base_layers": 1, "num_kv_heads": 2},
}


def batches_of(seed: int):
    return lambda step: np.random.default_rng([seed, step]).integers(0, 400, (2, 33))


def trainer(model, seed: int, lr: float = 3e-3, device: str = "cpu", **train) -> Trainer:
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=lr, warmup_steps=2)
    given = {"load_balance_coef": 0.1, "z_loss_coef": 0.01, **train}
    state = initial_state(model, seed)
    for name, bias_E in state.weights.items():
        if name.endswith("selection_bias_E"):  # as after some steps: of one size, else it chooses nothing
            bias_E.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.1)
    return Trainer(model, tiny.train(**given), rate, batches_of(seed), state, device)


def three(model, device: str = "cpu", **train) -> list[Trainer]:
    return [trainer(model, seed, device=device, **train) for seed in range(RUNS)]


def gradients(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}


def assert_learns_alike(separate: list[Trainer], fused: list[Trainer], rel: float) -> None:
    """Losses and, over its norm, each gradient."""
    together, of_runs = Bank(fused)._learn([run.read() for run in fused])
    for r, (ours, theirs, routings) in enumerate(zip(fused, separate, of_runs, strict=True)):
        alone = theirs._learn(theirs.read())
        for a_R, b in zip(together[:3], alone[:3], strict=True):
            torch.testing.assert_close(a_R[r], b, rtol=rel, atol=1e-7)
        for a, b in zip(routings, alone.routings, strict=True):
            assert torch.equal(a.experts_Nk, b.experts_Nk)
            assert torch.equal(a.load_E, b.load_E)
            torch.testing.assert_close(a.entropy, b.entropy, rtol=rel, atol=1e-7)
        own, other = gradients(ours), gradients(theirs)
        assert own.keys() == other.keys() == dict(theirs.model.named_parameters()).keys()
        for name, gradient in own.items():
            error = (gradient - other[name]).norm() / other[name].norm()
            assert error < rel, f"{name}: {error}"


@pytest.mark.parametrize("case", MODELS)
def test_losses_and_every_gradient_are_those_of_separate_runs(case):
    model = tiny.model(**MODELS[case])
    assert_learns_alike(three(model), three(model), rel=1e-5)


def test_in_bf16_too():
    """Both round to 8 bits, in other places: a hundredth, and the same experts on these seeds."""
    model = tiny.model()
    assert_learns_alike(three(model, precision="bf16"), three(model, precision="bf16"), rel=1e-2)


def differing(runs: int = RUNS) -> list[Trainer]:
    """Runs that share nothing but their shape: seed, data, rate, clipping, decay, coefficients."""
    model = tiny.model(gate="sigmoid_renormalised", selection_bias_rate=0.001)
    each = [
        {"lr": 1e-3},
        {"lr": 4e-3, "grad_clip": 0.1, "weight_decay": 0.0},
        {"lr": 2e-3, "load_balance_coef": 0.0, "z_loss_coef": 0.5, "beta1": 0.8},
    ]
    return [trainer(model, seed, **fields) for seed, fields in enumerate(each[:runs])]


def test_curves_stay_within_the_noise_of_equal_mathematics():
    """Fifty steps: fused runs are no further from separate ones, ten times over, than those are from runs
    that read the rows of each batch in the other order."""
    separate = [list(run.steps(50)) for run in differing()]
    fused, turned = differing(), differing()
    bank = Bank(fused)
    together = [bank.advance([run.read() for run in fused]) for _ in range(50)]
    for run in turned:
        run.batches = lambda step, read=run.batches: read(step)[::-1].copy()
    noise = max(
        abs(a["loss"] - b["loss"])
        for alone, run in zip(separate, turned, strict=True)
        for a, b in zip(alone, run.steps(50), strict=True)
    )
    assert noise < 1e-3
    for alone, lines in zip(separate, zip(*together, strict=True), strict=True):
        for ours, theirs in zip(lines, alone, strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=10 * max(noise, 1e-6))
            assert [ours[name] for name in ("step", "lr", "tokens", "flops")] == [
                theirs[name] for name in ("step", "lr", "tokens", "flops")
            ]
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


def test_a_run_leaves_a_bank_joins_another_and_goes_on_alone():
    separate, runs = differing(), differing()
    for run in separate:
        list(run.steps(9))
    for members in (runs, runs[1:], runs[::2]):
        bank = Bank(members)
        for _ in range(3):
            bank.advance([run.read() for run in members])
    list(runs[1].steps(9))
    for run in (runs[0], runs[2]):
        list(run.steps(9))
    for ours, theirs in zip(runs, separate, strict=True):
        assert ours.step == 9
        state, other = ours.state(), theirs.state()
        for mine, alone in ((state.weights, other.weights), (state.moments.first, other.moments.first)):
            for name, tensor in mine.items():
                torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-5)


def test_a_run_that_diverges_leaves_the_lines_of_the_others_as_they_were():
    model = tiny.model()
    runs = [trainer(model, 0), trainer(model, 1, lr=1e6), trainer(model, 2)]
    alone = [list(trainer(model, seed).steps(8)) for seed in (0, 2)]
    bank, seen = Bank(runs), []
    while not any(isinstance(result, Exception) for result in (seen[-1] if seen else [])):
        seen.append(bank.advance([run.read() for run in runs]))
        assert len(seen) < 8
    assert [type(result) for result in seen[-1]] == [dict, Diverged, dict]
    for place, lines in zip((0, 2), alone, strict=True):
        ours = [results[place]["loss"] for results in seen]
        assert ours == pytest.approx([line["loss"] for line in lines[: len(ours)]], abs=1e-5)


def test_a_line_that_cannot_be_made_harms_no_neighbour(monkeypatch):
    runs = differing()
    monkeypatch.setattr(runs[1], "line", lambda numbers, routings: 1 / 0)
    results = Bank(runs).advance([run.read() for run in runs])
    assert [type(result) for result in results] == [dict, ZeroDivisionError, dict]


def test_runs_of_two_shapes_are_no_bank():
    with pytest.raises(AssertionError, match="2 shapes"):
        Bank([trainer(tiny.model(), 0), trainer(tiny.model(num_layers=3), 0)])


def test_a_step_of_a_bank_reads_its_numbers_at_once(monkeypatch, torch_alone):
    """`tolist` and `item` are where a GPU is waited for; the loop over experts reads its counts besides."""
    reads = []
    for name in ("tolist", "item"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, original=original: reads.append(self.shape) or original(self)
        )
    monkeypatch.setattr("moe.grouped.may_group", lambda x_ND, w_in_EGD: True)
    runs = three(tiny.model(hidden_size=16, expert_hidden_size=8))
    Bank(runs).advance([run.read() for run in runs])
    assert reads == [(RUNS, 4)]
    reads.clear()
    runs[0].advance(runs[0].read())
    assert reads == [(4,)]


def test_a_run_that_is_not_a_number_leaves_its_neighbours_to_the_bit():
    runs, well = three(tiny.model(capacity_factor=0.75)), three(tiny.model(capacity_factor=0.75))
    with torch.no_grad():
        runs[1].model.embedding.weight.fill_(torch.nan)
    for _ in range(2):
        results = Bank(runs).advance([run.read() for run in runs])
        expected = Bank(well).advance([run.read() for run in well])
        assert [type(result) for result in results] == [dict, Diverged, dict]
        assert results[::2] == expected[::2]
