"""Our states leave as Qwen3-MoE checkpoints, and such checkpoints come in: both compute the same function."""

import json
import subprocess
import sys

import checkpoints
import pytest
import tiny
import torch
from checkpoints import edit_config, load, logits, rewrite, tensors_of
from test_recycle import asked

from moe.checkpoint import Description, load_weights, save_state
from moe.growth import grow_weights
from moe.model import MoETransformer
from moe.operator import DepthMethod, Operator, WidthMethod
from moe.recycle.interchange import export_state, open_qwen3_moe, read_weights
from moe.recycle.run import grow
from moe.train import initial_state

TOKENS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))


def stored(folder, **fields):
    """A state of random weights whose gains are not all one; (its folder, its model)."""
    model = tiny.model(vocab_size=64, rope_theta=5e3, **fields)
    state = initial_state(model, seed=3)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in state.weights.items():
        if "norm" in name:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)
        elif "router" in name:
            tensor.mul_(4.0)  # so that which experts are chosen, and how far, shows
    save_state(folder, state, Description(model, {"source": "world"}, 32))
    return folder, model


def ours(model, weights):
    network = MoETransformer(model)
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(TOKENS)


@pytest.mark.parametrize("fields", [
    {},
    {"gate": "softmax"},
    {"gate": "topk_softmax"},
    {"num_dense_layers": 1, "dense_hidden_size": 12},
    {"route_scale": 2.5, "residual_base_layers": 1, "num_dense_layers": 1, "dense_hidden_size": 12},
    {"num_kv_heads": 2, "head_dim": 4},
], ids=str)  # fmt: skip
def test_transformers_computes_the_logits_of_an_exported_state(fields, tmp_path):
    source, model = stored(tmp_path / "state", **fields)
    export_state(source, tmp_path / "out")
    expected = ours(model, load_weights(source))
    assert torch.allclose(logits(load(tmp_path / "out")), expected, rtol=1e-4, atol=1e-5)
    _, read = open_qwen3_moe(tmp_path / "out")
    assert ours(read, read_weights(*open_qwen3_moe(tmp_path / "out"))).allclose(
        expected, rtol=1e-4, atol=1e-5
    )


def test_there_and_back_keeps_every_byte_and_the_model(tmp_path):
    source, model = stored(tmp_path / "state", num_dense_layers=1, dense_hidden_size=12)
    export_state(source, tmp_path / "out")
    checkpoint, read = open_qwen3_moe(tmp_path / "out")
    assert read == model
    before, after = load_weights(source), read_weights(checkpoint, read)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("changes", [
    {},
    {"norm_topk_prob": False, "mlp_only_layers": [0]},
    {"tie_word_embeddings": True},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rms_norm_eps": 1e-5},
], ids=str)  # fmt: skip
def test_a_checkpoint_of_transformers_computes_here_what_it_does_there(changes, tmp_path):
    folder = checkpoints.make(tmp_path / "hf", "qwen3_moe", **changes)
    checkpoint, model = open_qwen3_moe(folder)
    assert ours(model, read_weights(checkpoint, model)).allclose(logits(load(folder)), rtol=1e-4, atol=1e-5)


def test_experts_may_be_fused_on_disk(tmp_path):
    folder = checkpoints.make(tmp_path / "hf", "qwen3_moe")
    one_by_one = read_weights(*open_qwen3_moe(folder))
    tensors = tensors_of(folder)
    for layer in range(3):
        at = f"model.layers.{layer}.mlp.experts"
        parts = {
            name: torch.stack([tensors.pop(f"{at}.{e}.{name}.weight") for e in range(4)])
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        tensors[f"{at}.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
        tensors[f"{at}.down_proj"] = parts["down_proj"]
    rewrite(folder, tensors)
    fused = read_weights(*open_qwen3_moe(folder))
    assert all(torch.equal(fused[name], tensor) for name, tensor in one_by_one.items())


def test_growing_the_exported_is_exporting_the_grown(tmp_path):
    source, model = stored(tmp_path / "state")
    export_state(source, tmp_path / "hf")
    operator = {"method": "interposition", "width_method": "duplicate", "width_factor": 2}
    target = grow(asked(tmp_path / "hf", tmp_path / "grown", **operator)).target
    checkpoint, grown = open_qwen3_moe(target)
    by_us = Operator(
        method=DepthMethod.INTERPOSITION, depth_factor=2, width_method=WidthMethod.DUPLICATE, width_factor=2
    )
    assert grown == by_us.apply_to(model)
    expected, found = grow_weights(model, by_us, load_weights(source)), read_weights(checkpoint, grown)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("fields", "named"), [
    ({"norm_placement": "post"}, "norm_placement=post"),
    ({"gate": "sigmoid"}, "gate=sigmoid"),
    ({"selection_bias_rate": 0.01}, "selection_bias_rate=0.01"),
    ({"num_groups": 2, "top_k_groups": 2}, "num_groups=2"),
    ({"capacity_factor": 1.5}, "capacity_factor=1.5"),
    ({"num_shared_experts": 1}, "num_shared_experts=1"),
])  # fmt: skip
def test_what_the_layout_cannot_say_is_refused_by_name(fields, named, tmp_path):
    source, _ = stored(tmp_path / "state", **fields)
    with pytest.raises(ValueError, match=f"model.{named} .*; export a model trained with model."):
        export_state(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "named"), [
    ({"attention_bias": True}, "attention_bias=True"),
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"decoder_sparse_step": 2}, "the layers \\[0, 2\\]"),
    ({"model_type": "mixtral"}, "model_type 'mixtral'"),
    ({"rms_norm_eps": None}, "lacks rms_norm_eps"),
    ({"num_hidden_layers": 2}, "no place for 21 tensors"),
    ({"num_hidden_layers": 4}, "model.layers.3.input_layernorm.weight is missing"),
    ({"moe_intermediate_size": 16}, "mlp.experts.0.gate_proj.weight is F32 \\[24, 32\\]"),
])  # fmt: skip
def test_what_our_model_cannot_express_is_refused_by_name(changes, named, qwen3, tmp_path):
    (tmp_path / "hf").mkdir()
    for path in qwen3.iterdir():
        (tmp_path / "hf" / path.name).symlink_to(path)
    config = json.loads((qwen3 / "config.json").read_text())
    (tmp_path / "hf" / "config.json").unlink()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    edit_config(tmp_path / "hf", **changes)
    with pytest.raises(ValueError, match=f"^trunk.source.*{named}"):
        open_qwen3_moe(tmp_path / "hf", "trunk.source")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return checkpoints.make(tmp_path_factory.mktemp("hf") / "hf", "qwen3_moe")


def test_the_command_exports_and_what_is_there_is_not_replaced(tmp_path):
    source, _ = stored(tmp_path / "state")
    command = [sys.executable, "recycle.py", "do=export", f"source={source}", f"target={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT, check=True)
    assert "a qwen3_moe of 2 layers, 4 experts" in done.stdout
    with pytest.raises(ValueError, match="is there; give another folder, or remove it"):
        export_state(source, tmp_path / "out")


def test_what_is_no_whole_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a stored state"):
        export_state(tmp_path, tmp_path / "out")
    source, _ = stored(tmp_path / "state")
    (source / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was written; give another state"):
        export_state(source, tmp_path / "out")
