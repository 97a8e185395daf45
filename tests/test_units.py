"""Amounts in F_c: the same configuration for every size of model."""

import pytest
import tiny

from moe import flops
from sweeps.config import parse_sweep


def mapping(**fields):
    return tiny.mapping(trunk__steps="8 F_c", growth__step="0.5F_c", budget__extra_flops="0.25F_c", **fields)


@pytest.mark.parametrize("hidden_size", [16, 32])
def test_amounts_in_f_c_are_those_of_the_trunks_model(hidden_size):
    config = parse_sweep(mapping(model__hidden_size=hidden_size, model__expert_hidden_size=hidden_size))
    f_c = 120 * flops.activated_params(config.model) ** 2
    train = config.train
    per_step = flops.train_flops_per_token(config.model, train.seq_len) * train.batch_size * train.seq_len
    assert config.budget.extra_flops == pytest.approx(0.25 * f_c)
    assert config.trunk.steps * per_step == pytest.approx(8 * f_c, abs=per_step / 2)
    assert config.growth.step * per_step == pytest.approx(0.5 * f_c, abs=per_step / 2)


def test_what_is_above_0_is_at_least_a_step_and_0_is_0():
    config = parse_sweep(mapping(evaluate__probe_every="1e-9F_c", growth__warmup_steps="0F_c"))
    assert (config.evaluate.probe_every, config.growth.warmup_steps) == (1, 0)


def test_a_second_growth_takes_f_c_too():
    then = {**tiny.mapping()["growth"], "after_extra_flops": "0.1F_c", "then": None}
    then = {k: v for k, v in then.items() if k != "step"}
    config = parse_sweep(mapping(growth__then=then))
    assert config.growth.then is not None
    assert config.growth.then.after_extra_flops == pytest.approx(0.4 * config.budget.extra_flops)


@pytest.mark.parametrize(("fields", "words"), [
    ({"growth__step": "halfF_c"}, "growth.step=halfF_c is no amount; write a number before F_c"),
    ({"growth__step": "-1F_c"}, "growth.step=-1F_c is no amount"),
    ({"train__lr": "1F_c"}, "train.lr"),
    ({"growth__step": "9F_c"}, "is beyond trunk.steps"),
])  # fmt: skip
def test_what_is_no_amount_is_refused_by_name(fields, words):
    with pytest.raises(ValueError, match=words):
        parse_sweep(mapping() | tiny.mapping(**{"trunk__steps": "8F_c", **fields}))
