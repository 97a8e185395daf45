"""Strict parsing and bad input: field, value, rule, remedy, before any work."""

import dataclasses

import pytest
import tiny

from moe.config import LearningRate, ModelConfig, Schedule
from moe.plain import canonical_json, digest, parse
from sweeps.cell import resolve
from sweeps.config import parse_sweep


def refuse(match: str, *groups: str, **fields) -> None:
    with pytest.raises(ValueError, match=match):
        resolve(parse_sweep(tiny.mapping(*groups, **fields)))


def test_a_growth_step_beyond_the_trunk_is_refused():
    refuse(r"growth.step=96 is beyond trunk.steps=16; choose 0..16 or raise trunk.steps", growth__step=96)


def test_a_negative_step_is_refused():
    refuse(r"growth.step=-4 must not be negative", growth__step=-4)


def test_a_fractional_step_is_refused():
    refuse(r"growth.step=0.5 is a number; it must be a whole number", growth__step=0.5)


def test_a_bool_is_not_a_number():
    refuse(r"seed=True is true or false; it must be a whole number", seed=True)


def test_an_unknown_method_is_refused_with_the_choices():
    refuse(
        r"growth.method=zip is not a choice; choose one of stack, interposition, layer_map, random, none",
        growth__method="zip",
    )


@pytest.mark.parametrize(
    ("field", "group"), [("depth_factor", "growth=depth"), ("width_factor", "growth=width")]
)
def test_a_factor_below_two_is_refused_where_growth_is_asked(field, group):
    refuse(rf"growth.{field}=1 must be at least 2", group, **{f"growth__{field}": 1})


def test_growing_nothing_is_refused():
    refuse("grow nothing", growth__method="none", growth__width_method="none")


def test_more_active_experts_than_experts_are_refused():
    refuse(r"model.top_k=9 is above model.num_experts=4; choose 1..4", model__top_k=9)


def test_a_budget_that_buys_no_step_is_refused():
    refuse(r"budget.extra_flops=1000 leaves .* less than one step", budget__extra_flops=1e3)


def test_a_total_budget_below_the_sunk_flops_is_refused():
    refuse("leaves 0 FLOPs", budget__extra_flops=None, budget__total_flops=1e6)


def test_two_budgets_or_none_are_refused():
    refuse("exactly one", budget__total_flops=1e9)
    refuse("exactly one", budget__extra_flops=None)


def test_a_misspelt_key_is_refused_with_the_known_ones():
    refuse(r"unknown key growth.stpe; growth has: method, depth_factor, .*, step", growth__stpe=3)
    with pytest.raises(ValueError, match="unknown key groth; the top level has"):
        parse_sweep({**tiny.mapping(), "groth": {}})


def test_a_missing_key_is_named():
    mapping = tiny.mapping()
    del mapping["train"]["lr"]
    with pytest.raises(ValueError, match=r"missing key train\.lr"):
        parse_sweep(mapping)


def test_a_wrong_type_is_refused():
    refuse(r"train.lr='fast' is text; it must be a number", train__lr="fast")
    refuse(r"controls=.continued. must be a list", controls="continued")


def test_negative_and_unbounded_noise_are_refused():
    refuse(r"growth.noise_scale=-0.1 must not be negative", growth__noise_scale=-0.1)
    refuse(r"growth.noise_scale=nan must be a finite number", growth__noise_scale=float("nan"))


def test_a_missing_text_folder_is_refused(tmp_path):
    refuse(r"data.path", "data=text", data__path=str(tmp_path / "nowhere"))


def test_an_empty_text_folder_is_refused(tmp_path):
    refuse(r"data.path", "data=text", data__path=str(tmp_path))


def test_text_has_no_disjoint_tokens(tmp_path):
    refuse(r"data.at_growth=disjoint", "data=text", data__path=str(tmp_path), data__at_growth="disjoint")


def test_an_int_widens_to_a_float_field_and_hashes_alike():
    assert digest(parse(float, 0)) == digest(parse(float, 0.0))


def test_nan_has_no_canonical_form():
    with pytest.raises(ValueError, match=r"JSON compliant"):
        canonical_json({"x": float("nan")})


def test_a_field_added_later_leaves_old_ids_alone():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later:
        lr: float
        flavour: str = dataclasses.field(default="plain", metadata={"absent": "plain"})

    assert digest(Later(lr=1.0)) == digest({"lr": 1.0})
    assert digest(Later(lr=1.0, flavour="hot")) != digest({"lr": 1.0})


def test_a_constant_rate_warms_up_and_stays():
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=1.0, warmup_steps=4)
    assert [rate.at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_decay_falls_linearly_to_zero():
    rate = LearningRate(schedule=Schedule.DECAY, peak=2.0, total_steps=4)
    assert [rate.at(step) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_a_cosine_falls_to_a_tenth():
    rate = LearningRate(schedule=Schedule.COSINE, peak=1.0, total_steps=10)
    assert rate.at(0) == pytest.approx(1.0)
    assert rate.at(10) == pytest.approx(0.1)


def test_every_model_field_is_checked():
    for field in dataclasses.fields(ModelConfig):
        may_be_zero = field.default == 0
        wrong = -1 if may_be_zero else 0
        with pytest.raises(ValueError, match=field.name):
            tiny.model(**{field.name: float(wrong) if "float" in str(field.type) else wrong})


@pytest.mark.parametrize(("fields", "match"), [
    ({"growth__noise_scale": -0.1}, r"growth.noise_scale=-0.1 must not be negative"),
    ({"growth__noise_scale": float("nan")}, r"growth.noise_scale=nan must be a finite number"),
    ({"growth__router_noise_scale": -1.0}, r"growth.router_noise_scale=-1.0 must not be negative"),
    ({"growth__keep_first": -1}, r"growth.keep_first=-1 must not be negative"),
    ({"growth__keep_first": 1, "growth__keep_last": 1}, r"keep_first=1 and growth.keep_last=1 keep all"),
    ({"growth__method": "layer_map"}, r"layer_map=null with growth.method=layer_map.*set both or neither"),
    ({"growth__layer_map": [0, 1, 1]}, r"layer_map=\[0, 1, 1\] with growth.method=interposition"),
    ({"growth__method": "layer_map", "growth__layer_map": [0, 1, 2]}, r"layer_map holds 2, but"),
    ({"growth__method": "layer_map", "growth__layer_map": [0, 1]}, r"has 2 entries.*give at least 3"),
    ({"growth__width_method": "drop_upcycle", "growth__drop_fraction": 0.0}, r"drop_fraction=0.0 must lie"),
    ({"model__num_dense_layers": 2, "model__dense_hidden_size": 8}, r"needs layers with experts"),
    ({"model__capacity_factor": 1.25}, r"model.capacity_factor=1.25.*set model.capacity_factor=null"),
    ({"model__num_groups": 2, "model__top_k_groups": 3}, r"model.top_k_groups=3 of model.num_groups=2"),
    ({"model__num_groups": 3}, r"model.num_groups=3 must divide model.num_experts=4"),
    ({"model__dense_hidden_size": 8}, r"dense_hidden_size=8 with model.num_dense_layers=0"),
])  # fmt: skip
def test_a_growth_that_cannot_be_is_refused_before_any_work(fields, match):
    refuse(match, **fields)
