"""The CPU's own path against torch's operations, in fp64 where the oracle should be better than both."""

import contextlib
import functools
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from moe import cpu, kernels
from moe.config import Gate, ModelConfig, NormPlacement
from moe.model import Attention, Block, MoETransformer, RMSNorm
from moe.router import Experts, route
from moe.train import Trainer, initial_state, language_loss

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="there is no C compiler")


def assert_near(ours, theirs, atol: float = 1e-6, msg: str | None = None) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=atol, msg=msg)


def seeded(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def oracle(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "library", lambda: None)
        yield


def relative(ours: torch.Tensor, exact: torch.Tensor, floor: float = 1e-3) -> float:
    """Of the norms; a gradient that vanishes is not held against its rounding."""
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(floor)).item()


def loss_and_gradients(config: ModelConfig, dtype=torch.float32, seed: int = 0, batch=(3, 40)):
    model = MoETransformer(config).initialise(seed).to(dtype)
    tokens = torch.randint(0, config.vocab_size, (batch[0], batch[1] + 1), generator=tiny_generator(seed))
    loss, routings = language_loss(model, tokens)
    balance = sum(r.load_balance_loss for r in routings) + sum(r.z_loss for r in routings)
    (loss + 0.01 * balance).backward()
    chosen = [r.experts_Nk.sort(-1).values for r in routings]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, chosen


def tiny_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CONFIGS = {
    "plain": {},
    "wide heads": {"hidden_size": 48, "num_heads": 3, "num_kv_heads": 3, "head_dim": 32},
    "heads that fill no vector": {"head_dim": 6, "num_heads": 4, "num_kv_heads": 2},
    "hidden that fills no vector": {"expert_hidden_size": 21, "hidden_size": 20},
    "many choices": {"num_experts": 24, "top_k": 7},
    "gates as they are": {"gate": Gate.SOFTMAX},
    "sigmoid gates": {"gate": Gate.SIGMOID_RENORMALISED},
    "scaled gates": {"route_scale": 2.5},
    "capacity": {"capacity_factor": 1.0},
    "shared and dense": {"num_shared_experts": 1, "num_dense_layers": 1, "dense_hidden_size": 40},
    "norms behind": {"norm_placement": NormPlacement.POST},
    "odd vocabulary": {"vocab_size": 83},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_every_gradient_are_those_of_torch_in_double_precision(monkeypatch, name, seed):
    config = tiny.model(**CONFIGS[name])
    loss, gradients, chosen = loss_and_gradients(config, seed=seed)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # what the model keeps in fp32 too
        exact, expected, exactly_chosen = loss_and_gradients(config, torch.float64, seed)
    for ours, theirs in zip(chosen, exactly_chosen, strict=True):
        assert torch.equal(ours, theirs)  # else a tie was broken otherwise, and the rest says nothing
    assert abs(loss.item() - exact.item()) <= 1e-6 * exact.item()
    assert {name: relative(gradients[name], grad) for name, grad in expected.items()} == pytest.approx(
        dict.fromkeys(expected, 0.0), abs=1e-5
    )


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 33])
def test_attention_of_any_length(monkeypatch, length):
    config = tiny.model(num_heads=4, num_kv_heads=2, head_dim=16, hidden_size=24)
    model = MoETransformer(config).initialise(0)
    attention, rope = block(model, 0).attention, model.rope_tables(length, torch.device("cpu"))
    for norm in (attention.query_norm, attention.key_norm):
        norm.weight.data.uniform_(0.5, 2.0, generator=tiny_generator(1))
    x, d = seeded(2, length, 24), seeded(2, length, 24, seed=2)
    found = run(attention, x, rope, d)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        expected = run(attention.double(), x.double(), rope, d.double())
    assert max(relative(*pair, floor=1.0) for pair in zip(found, expected, strict=True)) < 5e-6


def block(model: MoETransformer, nth: int) -> Block:
    layer = model.layers[nth]
    assert isinstance(layer, Block)
    return layer


def run(attention: Attention, x: torch.Tensor, rope, d: torch.Tensor):
    x = x.clone().requires_grad_()
    y = attention(x, rope)
    return y, *torch.autograd.grad(y, [x, *attention.parameters()], d)


def test_scores_far_apart_neither_overflow_nor_vanish(monkeypatch):
    x_BTHC = seeded(1, 20, 3, 16).requires_grad_()
    gains = torch.full((16,), 60.0), torch.full((16,), 60.0)  # scores of ±14,000
    tables = torch.ones(20, 16), torch.zeros(20, 16)
    y = cpu.CausalAttention.apply(x_BTHC, *gains, *tables, 1, 1e-6)
    (gradient,) = torch.autograd.grad(y.sum(), x_BTHC)
    assert torch.isfinite(y).all()
    assert torch.isfinite(gradient).all()
    q, k, v = x_BTHC[0].double().unbind(1)
    q, k = (60 * F.rms_norm(z, (16,), eps=1e-6) for z in (q, k))
    expected = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)
    assert relative(y, expected) < 1e-4


@pytest.mark.parametrize("part", ["attend", "attend_back"])
def test_attention_without_memory_is_an_error(monkeypatch, part):
    c = cpu._c()
    x_BTHC, gains, tables = seeded(1, 5, 3, 6).requires_grad_(), [torch.ones(6)] * 2, [torch.ones(5, 6)] * 2
    functions = {"attend": c.attend, "attend_back": c.attend_back, part: lambda *given: 1}
    monkeypatch.setattr(cpu, "_c", lambda: SimpleNamespace(**functions))
    y_BTX = functools.partial(cpu.CausalAttention.apply, x_BTHC, *gains, *tables, 1, 1e-6)
    with pytest.raises(MemoryError, match=r"train\.seq_len"):
        y_BTX().sum().backward()


@pytest.mark.parametrize("shape", [(1, 5), (3, 16), (2, 7, 40)])
def test_rms_norm(monkeypatch, shape):
    norm = RMSNorm(shape[-1], eps=1e-6)
    norm.weight.data = seeded(shape[-1], seed=1)
    x, d = seeded(*shape).requires_grad_(), seeded(*shape, seed=2)
    found = norm(x), *torch.autograd.grad(norm(x), (x, norm.weight), d)
    y = F.rms_norm(x.double(), shape[-1:], norm.weight.double(), eps=1e-6)
    expected = y, *torch.autograd.grad(y, (x, norm.weight), d.double())
    for ours, exact in zip(found, expected, strict=True):
        assert relative(ours, exact.double()) < 1e-6


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_experts_equal_the_dense_oracle(top_k):
    config = tiny.model(num_experts=5, top_k=top_k, hidden_size=12, expert_hidden_size=19)
    experts = Experts(5, 12, 19)
    experts.w_in_EGD.data, experts.w_out_EDH.data = seeded(5, 38, 12, seed=1), seeded(5, 12, 19, seed=2)
    routing = route(seeded(30, 5, seed=3), config)
    leaves = [seeded(30, 12).requires_grad_(), routing.gates_Nk.detach().requires_grad_()]
    routing = routing._replace(gates_Nk=leaves[1])
    leaves += experts.parameters()
    d = seeded(30, 12, seed=4)
    for ours, dense in zip(
        torch.autograd.grad(experts(leaves[0], routing), leaves, d),
        torch.autograd.grad(experts.dense(leaves[0], routing), leaves, d),
        strict=True,
    ):
        assert_near(ours, dense, atol=1e-5)
    assert_near(experts(leaves[0], routing), experts.dense(leaves[0], routing))


def test_nothing_is_kept_where_nothing_learns():
    experts = Experts(5, 12, 19)
    experts.w_in_EGD.data, experts.w_out_EDH.data = seeded(5, 38, 12, seed=1), seeded(5, 12, 19, seed=2)
    x, routing = seeded(30, 12), route(seeded(30, 5, seed=3), tiny.model(num_experts=5, top_k=2))
    with torch.no_grad():
        found = experts(x, routing)
    assert torch.equal(found, experts(x, routing))
    assert not found.requires_grad


LAID = {  # what is called on a tensor of these sizes
    "norm": (lambda x: cpu.RMSNorm.apply(x, torch.ones(6), 1e-6), (5, 6)),
    "attention": (
        lambda x: cpu.CausalAttention.apply(x, *[torch.ones(6)] * 2, *[torch.ones(9, 6)] * 2, 2, 1e-6),
        (2, 9, 4, 6),
    ),
    "router": (lambda x: cpu.Router.apply(x, 2, 0)[0], (5, 6)),
    "experts": (
        lambda x: cpu.Experts.apply(
            x,
            torch.ones(5, 1),
            torch.ones(5, 1, dtype=torch.long),
            torch.ones(2, 8, 6),
            torch.ones(2, 6, 4),
            True,
        ),
        (5, 6),
    ),
}


@pytest.mark.parametrize("name", LAID)
def test_inputs_and_gradients_may_lie_in_any_way(name):
    """The gradient of a sum is one number seen as many."""
    call, (*outer, rows, columns) = LAID[name]
    turned = seeded(*outer, columns, rows).mT.requires_grad_()
    plain = turned.detach().contiguous().requires_grad_()
    ours, theirs = call(turned), call(plain)
    assert torch.equal(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.sum(), turned)
    assert torch.equal(gradient, *torch.autograd.grad(theirs, plain, torch.ones_like(theirs)))


def test_the_router_is_torchs(monkeypatch):
    config = tiny.model(num_experts=6, top_k=3)
    logits = seeded(50, 6, scale=3.0).requires_grad_()
    ours = route(logits, config)
    with oracle(monkeypatch):
        theirs = route(logits, config)
    for name, one, other in zip(ours._fields, ours, theirs, strict=True):
        assert_near(one, other, msg=name)

    def gradient(routing):
        total = (routing.gates_Nk * seeded(50, 3, seed=1)).sum()
        return torch.autograd.grad(total + routing.load_balance_loss + 0.3 * routing.z_loss, logits)

    assert_near(gradient(ours), gradient(theirs))


def test_of_a_routing_what_is_only_looked_at_has_no_gradient(monkeypatch):
    for context in (contextlib.nullcontext(), oracle(monkeypatch)):
        with context:
            routing = route(seeded(5, 6).requires_grad_(), tiny.model(num_experts=6, top_k=3))
        assert not any(t.requires_grad for t in (routing.experts_Nk, routing.load_E, routing.entropy))


@pytest.mark.parametrize("target", [-1, 50])
def test_a_target_outside_the_vocabulary_is_an_error(target):
    with pytest.raises(IndexError, match="vocabulary's 50"):
        cpu.cross_entropy_(torch.zeros(3, 50), torch.tensor([0, target, 1]), 1.0)


def test_of_equal_logits_the_first_experts_are_chosen():
    routing = route(torch.zeros(4, 6), tiny.model(num_experts=6, top_k=3))
    assert routing.experts_Nk.tolist() == [[0, 1, 2]] * 4


@pytest.mark.parametrize("place", ["attention", "experts", "router", "norm", "loss"])
def test_what_is_not_a_number_stays_one(place):
    """A diverged run must be seen to be one."""
    model = MoETransformer(tiny.model()).initialise(0)
    layer = block(model, 0)
    assert layer.moe is not None
    weight = {
        "attention": layer.attention.key.weight,
        "experts": layer.moe.experts.w_in_EGD,
        "router": layer.moe.router.weight,
        "norm": layer.attention_norm.weight,
        "loss": model.head.weight,
    }[place]
    weight.data.view(-1)[3:].fill_(math.nan)
    loss, _ = language_loss(model, torch.zeros(1, 9, dtype=torch.long))
    assert math.isnan(loss.item())


def test_two_threads_give_what_one_does(monkeypatch):
    config = tiny.model()
    alone, gradients, _ = loss_and_gradients(config)
    monkeypatch.setattr(cpu, "_LEAST_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    shared, others, _ = loss_and_gradients(config)
    torch.testing.assert_close(shared, alone)
    assert_near(others, gradients)


def test_threads_are_made_once_however_many_parts_there_are(monkeypatch):
    monkeypatch.setattr(cpu, "_LEAST_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    cpu._pool.cache_clear()
    assert [len(cpu._share(count, 1, lambda begin, end: None)) for count in (2, 5, 2)] == [2, 3, 2]
    assert cpu._pool.cache_info().misses == 1


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    """It would wait for ever for those of its parent."""
    monkeypatch.setattr(cpu, "_LEAST_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu._pool.cache_clear()
    for process in (1, 1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        cpu._share(2, 1, lambda begin, end: None)
    assert cpu._pool.cache_info().misses == 2


def test_no_thread_goes_on_after_an_error_in_another(monkeypatch):
    """It would write to what its caller has freed."""
    monkeypatch.setattr(cpu, "_LEAST_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    begun, ended = threading.Event(), []

    def part(begin: int, end: int) -> None:
        if begin == 0:
            assert begun.wait(5)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.05)
        ended.append(begin)

    with pytest.raises(KeyboardInterrupt):
        cpu._share(2, 1, part)
    assert ended == [1]


def test_fifty_steps_stay_within_the_noise_of_rounding(monkeypatch):
    """Kernels against torch part no further than torch does from itself with its batch in another order."""
    config, train = tiny.model(), tiny.train()
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (50, train.batch_size, train.seq_len + 1))

    def losses(batches) -> np.ndarray:
        trainer = Trainer(config, train, tiny.constant(3e-3), batches, initial_state(config, 0))
        return np.array([line["loss"] for line in trainer.steps(50)])

    ours = losses(lambda step: rows[step])
    with oracle(monkeypatch):
        theirs, turned = losses(lambda step: rows[step]), losses(lambda step: rows[step][::-1].copy())
    assert theirs[-1] < theirs[0]
    noise = np.abs(turned - theirs).max()
    assert np.abs(ours - theirs).max() <= max(3 * noise, 2e-5)


def test_other_dtypes_and_devices_go_through_torch():
    assert cpu.serves(torch.zeros(2))
    assert not cpu.serves(torch.zeros(2, dtype=torch.float64))
    assert not cpu.serves(torch.zeros(2, device="meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not cpu.serves(torch.zeros(2))


def found_in(cache, monkeypatch, **environment: str):
    for name, value in {"XDG_CACHE_HOME": str(cache), **environment}.items():
        monkeypatch.setenv(name, value)
    kernels.library.cache_clear()
    try:
        return kernels.library()
    finally:
        kernels.library.cache_clear()


def test_kernels_are_compiled_once_and_found_again(tmp_path, monkeypatch):
    assert found_in(tmp_path, monkeypatch) is not None
    (made,) = (tmp_path / "regrow").iterdir()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert found_in(tmp_path, monkeypatch) is not None
    assert [made] == list((tmp_path / "regrow").iterdir())


def test_without_a_compiler_or_a_cache_torch_does_it_all(tmp_path, monkeypatch):
    assert found_in(tmp_path, monkeypatch, CC="none") is None
    assert found_in(tmp_path, monkeypatch, CC="false") is None  # a compiler that fails
    (tmp_path / "file").write_text("")
    assert found_in(tmp_path / "file", monkeypatch) is None
    assert not (tmp_path / "regrow").exists() or not list((tmp_path / "regrow").iterdir())


def test_unlike_processors_and_compilers_have_kernels_of_their_own(tmp_path, monkeypatch):
    """A home folder may be shared: those of another processor would end with an illegal instruction."""
    compiler = tmp_path / "cc"
    compiler.write_text("one")
    keys = [kernels._key((str(compiler),))]
    compiler.write_text("another")
    keys.append(kernels._key((str(compiler),)))
    monkeypatch.setattr(kernels, "_processor", lambda: "another")
    keys.append(kernels._key((str(compiler),)))
    assert len(set(keys)) == 3


def test_a_user_without_a_home_has_torch_do_it_all(monkeypatch):
    """As in a container that is run by a number nobody has."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kernels.Path, "home", homeless)
    assert found_in("", monkeypatch) is None


def test_a_library_that_lost_its_end_is_made_anew(tmp_path, monkeypatch):
    assert found_in(tmp_path, monkeypatch) is not None
    (made,) = (tmp_path / "regrow").iterdir()
    (tmp_path / "half").write_bytes(made.read_bytes()[:1000])
    (tmp_path / "half").rename(made)  # the one that is open stays whole
    assert found_in(tmp_path, monkeypatch) is not None


def test_a_compiler_may_have_options(tmp_path, monkeypatch):
    assert found_in(tmp_path, monkeypatch, CC="cc -DNDEBUG") is not None
    assert found_in(tmp_path, monkeypatch, CC="cc --no-such-option") is None


def test_workers_that_compile_at_once_do_not_harm_each_other(tmp_path):
    command = [sys.executable, "-c", "from moe.kernels import library; assert library() is not None"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    workers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert len(list((tmp_path / "regrow").iterdir())) == 1


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_source_compiles_without_a_warning(tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    flags = ["-Wall", "-Wextra", "-Werror", *kernels._FLAGS]
    subprocess.run([compiler, *flags, "-o", tmp_path / "k.so", kernels._SOURCE, "-lm"], check=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of another kind")
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_nor_for_processors_with_narrower_vectors(tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    flags = ["-Wall", "-Wextra", "-Werror", *kernels._FLAGS, "-O1", "-march=haswell"]
    subprocess.run([compiler, *flags, "-o", tmp_path / "k.so", kernels._SOURCE, "-lm"], check=True)


def test_gradients_keep_their_meaning_where_parts_are_frozen():
    model = MoETransformer(replace(tiny.model(), num_layers=2)).initialise(0)
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    loss, _ = language_loss(model, torch.randint(0, 50, (2, 9), generator=tiny_generator(0)))
    loss.backward()
    assert all(p.grad is None for p in model.layers[0].parameters())
    for parameter in model.layers[1].parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
