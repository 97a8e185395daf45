"""The loop: AdamW against torch's own, resuming bitwise, divergence."""

import math
import os

import numpy as np
import pytest
import tiny
import torch

from moe import checkpoint
from moe.checkpoint import CorruptState, State, load_state, save_state
from moe.config import LearningRate, Schedule
from moe.growth import Moments, grow_moments
from moe.model import MoETransformer
from moe.operator import OptimizerState
from moe.train import Diverged, Trainer, initial_state, language_loss

RATE = LearningRate(schedule=Schedule.CONSTANT, peak=3e-3, warmup_steps=2)


def batches(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 400, (2, 33))


def trainer(state: State, rate: LearningRate = RATE, **train) -> Trainer:
    return Trainer(tiny.model(), tiny.train(**train), rate, batches, state)


def advance(state: State, to_step: int, **kwargs) -> tuple[State, list[dict]]:
    run = trainer(state, **kwargs)
    lines = list(run.steps(to_step))
    return run.state(), lines


def same_bytes(a: State, b: State) -> bool:
    pairs = [(a.weights, b.weights), (a.moments.first, b.moments.first), (a.moments.second, b.moments.second)]
    return a.moments.step == b.moments.step and all(
        x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in pairs
    )


def test_resuming_equals_never_stopping(tmp_path):
    whole, lines = advance(initial_state(tiny.model(), 0), 7)
    half, first = advance(initial_state(tiny.model(), 0), 3)
    save_state(tmp_path / "state", half)
    resumed, second = advance(load_state(tmp_path / "state"), 7)
    assert same_bytes(whole, resumed)
    assert lines == first + second


def test_one_step_is_torch_adamw_on_clipped_gradients():
    train = tiny.train(load_balance_coef=0.0, z_loss_coef=0.0, grad_clip=0.1)
    start = initial_state(tiny.model(), 0)
    ours, _ = advance(start, 1, load_balance_coef=0.0, z_loss_coef=0.0, grad_clip=0.1)
    network = MoETransformer(tiny.model())
    network.load_state_dict(start.weights)
    language_loss(network, torch.from_numpy(batches(0)))[0].backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=RATE.at(0), betas=(train.beta1, train.beta2), foreach=False).step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(ours.weights[name], parameter.detach(), atol=1e-6, rtol=1e-5)


def test_the_loss_falls_on_a_repeated_batch():
    run = Trainer(tiny.model(), tiny.train(), RATE, lambda step: batches(0), initial_state(tiny.model(), 0))
    losses = [line["loss"] for line in run.steps(30)]
    assert losses[-1] < losses[0] - 0.5


def test_lines_count_tokens_and_flops_of_the_trajectory():
    _, lines = advance(initial_state(tiny.model(), 0), 20)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["tokens"] == 20 * 2 * 32
    assert lines[-1]["flops"] == pytest.approx(20 * lines[0]["flops"])
    assert len(lines[-1]["expert_weight_norm"]) == 2
    assert "expert_weight_norm" not in lines[0]
    assert all(0 < entropy <= 1 for entropy in lines[-1]["expert_load_entropy"])


def test_a_run_that_blows_up_is_diverged_and_says_where():
    hot = LearningRate(schedule=Schedule.CONSTANT, peak=100.0)
    with pytest.raises(Diverged, match="at step") as caught:
        advance(initial_state(tiny.model(), 0), 20, rate=hot)
    assert 1 < caught.value.step <= 20
    assert not caught.value.loss < 3 * math.log(512)


def test_moments_with_a_reset_counter_are_bias_corrected():
    """After a reset the first update is as large as the very first one: the counter went with the moments."""
    state, _ = advance(initial_state(tiny.model(), 0), 5)
    moments = grow_moments(
        tiny.model(), tiny.cell().start.trajectory.operator, OptimizerState.RESET, state.moments
    )
    reset = State(step=0, weights={n: t.clone() for n, t in state.weights.items()}, moments=moments)
    after, _ = advance(reset, 1, rate=LearningRate(schedule=Schedule.CONSTANT, peak=1e-3))
    name = "layers.0.attention.query.weight"
    moved = (after.weights[name] - state.weights[name] * (1 - 1e-3 * 0.1)).abs().median().item()
    assert moved == pytest.approx(1e-3, rel=0.05)


def test_bf16_trains_beside_fp32():
    _fp32, lines = advance(initial_state(tiny.model(), 0), 4)
    bf16, rounded = advance(initial_state(tiny.model(), 0), 4, precision="bf16")
    assert all(tensor.dtype == torch.float32 for tensor in bf16.weights.values())
    assert rounded[-1]["loss"] == pytest.approx(lines[-1]["loss"], abs=0.05)
    assert rounded[-1]["loss"] != lines[-1]["loss"]


def test_a_stored_state_comes_back_bit_for_bit(tmp_path):
    state, _ = advance(initial_state(tiny.model(), 0), 2)
    save_state(tmp_path / "state", state)
    assert same_bytes(state, load_state(tmp_path / "state"))


def test_the_same_state_has_the_same_bytes_on_disk(tmp_path):
    state, _ = advance(initial_state(tiny.model(), 0), 2)
    for name in ("a", "b"):
        save_state(tmp_path / name, state)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_harmed_state_is_never_read(tmp_path, harm):
    save_state(tmp_path / "state", initial_state(tiny.model(), 0))
    path = tmp_path / "state" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    match harm:
        case "flip":
            path.write_bytes(content)
        case "truncate":
            path.write_bytes(content[:-10])
        case "remove":
            path.unlink()
    with pytest.raises(CorruptState, match=r"model\.safetensors"):
        load_state(tmp_path / "state")


def test_a_file_is_hashed_again_once_it_was_touched(tmp_path, monkeypatch):
    """A state that many branches start from is hashed once, and harm after that is noticed."""
    monkeypatch.setattr("moe.checkpoint._SETTLED_S", -1.0)
    hashed = []
    sha256 = checkpoint._sha256
    monkeypatch.setattr("moe.checkpoint._sha256", lambda path: hashed.append(path.name) or sha256(path))
    save_state(tmp_path / "state", initial_state(tiny.model(), 0))
    hashed.clear()
    for _ in range(2):
        load_state(tmp_path / "state")
    assert sorted(hashed) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    path = tmp_path / "state" / "model.safetensors"
    content, before = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # its inode, size and time are as before
    with pytest.raises(CorruptState, match=r"model\.safetensors"):
        load_state(tmp_path / "state")


def test_a_file_that_just_changed_is_hashed_each_time(tmp_path, monkeypatch):
    """Within one tick of the disk's clock a second change could not be told from the first."""
    save_state(tmp_path / "state", initial_state(tiny.model(), 0))
    monkeypatch.setattr("moe.checkpoint._SETTLED_S", 1e6)
    load_state(tmp_path / "state")
    assert str(tmp_path / "state" / "model.safetensors") not in checkpoint._known


def test_a_state_that_was_not_finished_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("moe.checkpoint.save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "state", initial_state(tiny.model(), 0))
    assert list(tmp_path.iterdir()) == []


def test_moments_are_not_shared_with_the_state_they_came_from():
    state, _ = advance(initial_state(tiny.model(), 0), 2)
    kept = Moments(
        step=state.moments.step,
        first={n: t.clone() for n, t in state.moments.first.items()},
        second={n: t.clone() for n, t in state.moments.second.items()},
    )
    frozen = State(step=state.step, weights={n: t.clone() for n, t in state.weights.items()}, moments=kept)
    copy = State(step=2, weights=dict(frozen.weights), moments=kept)
    advance(copy, 4)
    assert same_bytes(frozen, copy)


def test_a_selection_bias_moves_by_its_rate_towards_an_even_load():
    """b += u·sign(mean load − load), arXiv 2408.15664; it is part of the state and no gradient reaches it."""
    config = tiny.model(num_layers=1, selection_bias_rate=0.01, gate="sigmoid")
    run = Trainer(config, tiny.train(), RATE, batches, initial_state(config, 0))
    with torch.no_grad():
        _, (routing,) = language_loss(run.model, torch.from_numpy(batches(0)))
    list(run.steps(1))
    bias_E = run.state().weights["layers.0.moe.selection_bias_E"]
    torch.testing.assert_close(bias_E, 0.01 * (routing.load_E.mean() - routing.load_E).sign())


def test_a_selection_bias_evens_the_load_and_no_bias_does_not():
    def imbalance(rate: float) -> float:
        config = tiny.model(num_layers=1, selection_bias_rate=rate, gate="sigmoid", num_experts=8)
        train = tiny.train(load_balance_coef=0.0, lr=1e-4)
        run = Trainer(config, train, RATE, batches, initial_state(config, 0))
        loads = [line["expert_load"][0] for line in run.steps(400) if "expert_load" in line]
        return float(np.std(np.mean(loads[-10:], axis=0)))

    assert imbalance(0.005) < 0.5 * imbalance(0.0)
