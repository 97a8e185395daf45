"""Laws of the model: causality, the expert path against its dense oracle, gradients by finite differences."""

import pytest
import tiny
import torch
from torch.nn import functional as F

from moe.model import MoETransformer, RMSNorm, RMSNormFunction, RotaryFunction
from moe.router import Experts, route


def gates(top_k, num_experts=4, **fields):
    return tiny.model(num_experts=num_experts, top_k=top_k, **fields)


def random_experts(num_experts=4, size=6, hidden=5, dtype=torch.float64):
    experts = Experts(num_experts, size, hidden).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for weight in experts.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=dtype)
    return experts


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_sorted_experts_equal_the_dense_oracle_in_value_and_gradient(top_k):
    experts = random_experts()
    x_ND = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    logits_NE = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    probe_ND = torch.randn(20, 6, dtype=torch.float64)
    results = []
    for path in (experts.forward, experts.dense):
        y_ND = path(x_ND, route(logits_NE, gates(top_k)))
        gradients = torch.autograd.grad((y_ND * probe_ND).sum(), [x_ND, logits_NE, *experts.parameters()])
        results.append((y_ND, *gradients))
    for ours, oracle in zip(*results, strict=True):
        torch.testing.assert_close(ours, oracle, atol=1e-6, rtol=1e-5)


def test_an_expert_that_nobody_chooses_gets_no_gradient():
    experts, x_ND = random_experts(), torch.randn(8, 6, dtype=torch.float64)
    logits_NE = torch.zeros(8, 4).index_fill(1, torch.tensor([3]), -50.0)
    experts(x_ND, route(logits_NE, gates(1))).sum().backward()
    assert experts.w_in_EGD.grad is not None
    assert experts.w_in_EGD.grad[3].abs().max() == 0


def test_gates_sum_to_one_and_a_balanced_load_costs_one():
    logits_NE = torch.eye(4).repeat(3, 1) * 5
    routing = route(logits_NE, gates(1))
    torch.testing.assert_close(routing.gates_Nk.sum(-1), torch.ones(12))
    assert routing.load_E.tolist() == [0.25] * 4
    assert routing.load_balance_loss.item() == pytest.approx(1.0)


def test_router_losses_do_not_see_exact_duplication():
    """E→2E, k→2k: the load-balance loss is normalised by k and z by ln E."""
    logits_NE = torch.randn(50, 4)
    before = route(logits_NE, gates(2))
    after = route(logits_NE.repeat(1, 2), gates(4, num_experts=8))
    torch.testing.assert_close(before.load_balance_loss, after.load_balance_loss)
    torch.testing.assert_close(before.z_loss, after.z_loss)


def test_rms_norm_equals_torch_and_its_gradient_finite_differences():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, gain: RMSNormFunction.apply(x, gain, 1e-6), (x, gain))
    of_heads = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, gain: RMSNormFunction.apply(x, gain, 1e-6), (x, of_heads))
    norm = RMSNorm(8, 1e-6)
    norm.weight.data = gain.detach().float()
    torch.testing.assert_close(norm(x.float()), F.rms_norm(x.float(), (8,), gain.float(), 1e-6))


def test_rope_keeps_lengths_and_sees_only_distances():
    network = MoETransformer(tiny.model())
    cos_TC, sin_TC = network.rope_tables(16, torch.device("cpu"))
    x_BTHC = torch.randn(1, 1, 1, 8).expand(1, 16, 1, 8)
    turned_TC = RotaryFunction.apply(x_BTHC, cos_TC, sin_TC)[0, :, 0]
    torch.testing.assert_close(turned_TC.norm(dim=-1), x_BTHC[0, :, 0].norm(dim=-1))
    torch.testing.assert_close(turned_TC[3] @ turned_TC[5], turned_TC[9] @ turned_TC[11])
    x = torch.randn(1, 16, 2, 8, dtype=torch.float64, requires_grad=True)
    tables = (cos_TC.double(), sin_TC.double())
    assert torch.autograd.gradcheck(lambda x: RotaryFunction.apply(x, *tables), (x,))


def test_no_token_sees_the_future():
    network = MoETransformer(tiny.model()).initialise(0)
    tokens_BT = torch.randint(0, 400, (2, 12))
    changed_BT = tokens_BT.clone()
    changed_BT[:, 8:] = torch.randint(0, 400, (2, 4))
    with torch.no_grad():
        torch.testing.assert_close(network(tokens_BT)[:, :8], network(changed_BT)[:, :8])


def test_a_fresh_model_is_nearly_as_unsure_as_a_uniform_guess():
    config = tiny.model()
    network, tokens_BT = MoETransformer(config).initialise(0), torch.randint(0, 400, (4, 32))
    loss = F.cross_entropy(network(tokens_BT).flatten(0, 1), tokens_BT.flatten())
    assert loss.item() == pytest.approx(torch.log(torch.tensor(config.vocab_size)).item(), abs=1.0)


def test_initial_weights_depend_on_the_seed_and_the_name_alone():
    few, many = tiny.model(num_layers=2), tiny.model(num_layers=4)
    a, b = MoETransformer(few).initialise(3), MoETransformer(many).initialise(3)
    name = "layers.1.attention.query.weight"
    assert torch.equal(a.state_dict()[name], b.state_dict()[name])
    assert not torch.equal(a.state_dict()[name], MoETransformer(few).initialise(4).state_dict()[name])


def test_stacked_experts_are_initialised_with_the_fan_in_of_one_expert():
    network = MoETransformer(tiny.model(hidden_size=64, expert_hidden_size=64)).initialise(0)
    assert network.layers[0].moe.experts.w_in_EGD.std().item() == pytest.approx(64**-0.5, rel=0.05)
