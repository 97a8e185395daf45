"""Checkpoints of every architecture grow, load in transformers and compute what was promised."""

import copy
import errno
import hashlib
import itertools
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import checkpoints
import pandas as pd
import pytest
import scipy.stats
import torch
from checkpoints import edit_config, load, logits, tensors_of

from analysis.figures.checkpoint_norms import checkpoint_norms
from moe.operator import DepthMethod, Exactness, Operator, WidthMethod
from moe.plain import parse
from moe.recycle.architecture import ARCHITECTURES, Layout
from moe.recycle.block import changed
from moe.recycle.checkpoint import Reader, open_checkpoint
from moe.recycle.layerwise import Layerwise
from moe.recycle.norms import COLUMNS, norm_rows, seams_of
from moe.recycle.plan import Change, make_plan
from moe.recycle.plan_text import plan_lines
from moe.recycle.prediction import Speeds, measured_speeds, predicted_seconds
from moe.recycle.run import grow, planned
from moe.recycle.settings import RecycleConfig
from moe.recycle.structure import not_as_transformers
from moe.recycle.verify import Verdict, verdict_lines, verify
from moe.recycle.writer import draft_of

OPERATOR = {
    "method": "none",
    "depth_factor": 2,
    "keep_first": 0,
    "keep_last": 0,
    "layer_map": None,
    "copies": "exact",
    "width_method": "none",
    "width_factor": 2,
    "noise_scale": 0.0,
    "router_noise_scale": None,
    "drop_fraction": 0.5,
    "then": None,
}


def asked(source: Path, target: Path, *, threads=2, shard_size="5GB", seed=0, **growth) -> RecycleConfig:
    given = {"do": "grow", "source": str(source), "target": str(target), "plan": None, "seed": seed}
    given |= {"revision": None, "sunk_tokens": None, "sunk_flops": None, "shard_size": shard_size}
    given |= {"verify": True, "memory_limit": "4GiB", "threads": threads, "growth": OPERATOR | growth}
    return parse(RecycleConfig, given)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder for each architecture."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: checkpoints.make(folder / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def before(sources):
    return {name: logits(load(folder)) for name, folder in sources.items()}


def grown(source: Path, target: Path, **settings) -> Path:
    return grow(asked(source, target, **settings)).target


# -- every architecture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "growth",
    [
        {"width_method": "duplicate"},
        {"width_method": "duplicate", "width_factor": 3},
        {"width_method": "split"},
        {"method": "interposition", "copies": "zeroed", "width_method": "duplicate"},
    ],
    ids=lambda growth: " ".join(map(str, growth.values())),
)
def test_what_is_promised_to_be_exact_keeps_every_logit(sources, before, tmp_path, name, growth):
    config = asked(sources[name], tmp_path / "grown", **growth)
    assert planned(config).exactness is Exactness.EXACT
    after = logits(load(grow(config).target))
    torch.testing.assert_close(after, before[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["stack", "interposition"])
def test_depth_is_that_of_the_model_with_its_layers_copied_in_memory(sources, tmp_path, name, method):
    """The oracle copies modules of the loaded model, not names of tensors."""
    dense = 1 if ARCHITECTURES[name].dense_prefix else 0
    model = load(sources[name])
    order = [0, 1, 2] * 2 if method == "stack" else [0, 0, 1, 1, 2, 2]
    if dense and method == "stack":
        order = [0, 1, 2, 1, 2]
    layers = torch.nn.ModuleList(copy.deepcopy(model.model.layers[old]) for old in order)
    for new, layer in enumerate(layers):
        layer.self_attn.layer_idx = new
    model.model.layers = layers
    model.config.num_hidden_layers = model.model.config.num_hidden_layers = len(order)
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        model.config.layer_types = [kinds[old] for old in order]
    keep = {"keep_first": 1} if dense and method == "stack" else {}
    after = load(grown(sources[name], tmp_path / "grown", method=method, **keep))
    torch.testing.assert_close(logits(after), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_grown_model_generates_with_its_cache_what_it_computes_without(sources, tmp_path, name):
    model = load(grown(sources[name], tmp_path / "grown", method="interposition", width_method="duplicate"))
    tokens = torch.tensor([[5, 9, 20, 33]])
    made = model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=True)
    for length in range(4, 8):
        with torch.no_grad():
            row = model(made[:, :length]).logits[0, -1]
        row[2] = -torch.inf  # the end is forbidden by min_new_tokens
        assert int(row.argmax()) == int(made[0, length])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_noise_is_on_copies_alone_and_of_the_size_that_was_asked_for(sources, tmp_path, name):
    """σ is that of the matrix that was copied; sources, shared experts and biases stay as they were."""
    target = grown(sources[name], tmp_path / "grown", width_method="duplicate", noise_scale=0.1)
    old, new = tensors_of(sources[name]), tensors_of(target)
    ratios = []
    for key, tensor in new.items():
        number = re.search(r"experts\.(\d+)\.", key)
        if number:
            source = old[key.replace(number[0], f"experts.{int(number[1]) % 4}.")]
            if int(number[1]) < 4:
                assert torch.equal(tensor, source)
            else:
                ratios.append((tensor - source).std() / source.std())
        elif tensor.shape == old[key].shape:
            assert torch.equal(tensor, old[key])
        else:
            own, copied = tensor.chunk(2)
            assert torch.equal(own, old[key])
            if key.endswith("bias"):
                assert torch.equal(copied, own)
            elif own.ndim == 2:
                ratios.append((copied - own).std() / own.std())
            else:
                ratios += [(c - o).std() / o.std() for c, o in zip(copied, own, strict=True)]
    assert 0.095 < torch.stack(ratios).mean() < 0.105
    assert torch.stack(ratios).min() > 0.05


def test_gate_and_up_have_a_sigma_each_where_they_share_a_tensor(sources, tmp_path):
    for name, parts in (
        ("granitemoe", lambda w: (w[:24], w[24:])),
        ("gpt_oss", lambda w: (w[:, 0::2], w[:, 1::2])),
    ):
        folder = checkpoints.make(tmp_path / name, name)
        tensors = tensors_of(folder)
        key = next(key for key in tensors if "input_linear" in key or key.endswith("gate_up_proj"))
        parts(tensors[key][1])[1].mul_(100)
        checkpoints.rewrite(folder, tensors)
        target = grown(folder, tmp_path / f"{name} grown", width_method="duplicate", noise_scale=0.1)
        noise = tensors_of(target)[key][4 + 1] - tensors[key][1]
        for part, source in zip(parts(noise), parts(tensors[key][1]), strict=True):
            assert 0.085 < part.std() / source.std() < 0.115


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "gpt_oss", "granitemoe"])
def test_the_auxiliary_loss_weighs_what_it_weighed(sources, tmp_path, name):
    tokens = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))

    def auxiliary(folder: Path) -> float:
        model = load(folder)
        with torch.no_grad():
            found = model(tokens, labels=tokens, output_router_logits=True)
        return model.router_aux_loss_coef * float(found.aux_loss)

    target = grown(sources[name], tmp_path / "grown", width_method="duplicate")
    assert auxiliary(target) == pytest.approx(auxiliary(sources[name]), rel=1e-5)


def test_experts_fused_on_disk_grow_to_what_single_ones_do(sources, tmp_path):
    folder = checkpoints.make(tmp_path / "fused", "qwen3_moe")
    tensors = tensors_of(folder)
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp.experts."
        own = {
            part: [tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(4)]
            for part in ("gate", "up", "down")
        }
        pairs = zip(own["gate"], own["up"], strict=True)
        tensors[f"{prefix}gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        tensors[f"{prefix}down_proj"] = torch.stack(own["down"])
    checkpoints.rewrite(folder, tensors)
    for growth in ({"width_method": "duplicate"}, {"width_method": "split"}):
        one = grown(sources["qwen3_moe"], tmp_path / f"single {growth['width_method']}", **growth)
        fused = grown(folder, tmp_path / f"fused {growth['width_method']}", **growth)
        found, expected = tensors_of(fused), tensors_of(one)
        for e in range(8):
            gate_up = found["model.layers.1.mlp.experts.gate_up_proj"][e]
            names = [f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for part in ("gate", "up")]
            assert torch.equal(gate_up, torch.cat([expected[name] for name in names]))


def test_blocks_of_multi_token_prediction_stay_behind_the_layers_and_are_widened_with_them(sources, tmp_path):
    folder = checkpoints.make(tmp_path / "with", "deepseek_v3")
    tensors = tensors_of(folder)
    behind = {k.replace("layers.2.", "layers.3."): v.clone() for k, v in tensors.items() if "layers.2." in k}
    behind |= {
        "model.layers.3.eh_proj.weight": torch.randn(32, 64),
        "model.layers.3.enorm.weight": torch.ones(32),
    }
    behind["model.layers.3.shared_head.head.weight"] = torch.randn(64, 32)
    checkpoints.rewrite(folder, tensors | behind)
    found = tensors_of(grown(folder, tmp_path / "grown", method="interposition", width_method="duplicate"))
    assert torch.equal(found["model.layers.6.eh_proj.weight"], behind["model.layers.3.eh_proj.weight"])
    assert "model.layers.6.mlp.experts.7.up_proj.weight" in found
    assert not any("eh_proj" in key and "layers.6." not in key for key in found)


# -- bytes -----------------------------------------------------------------------------------------------

ORTHOGONAL = {"method": "interposition", "width_method": "duplicate", "noise_scale": 0.01}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_numbers_do_not_depend_on_threads_or_files(sources, tmp_path):
    found = [
        tensors_of(grown(sources["gpt_oss"], tmp_path / f"{nth}", **settings, **ORTHOGONAL))
        for nth, settings in enumerate([{"threads": 1}, {"threads": 4}, {"threads": 3, "shard_size": "60KB"}])
    ]
    assert all(found[0].keys() == other.keys() for other in found[1:])
    for key, other in itertools.product(found[0], found[1:]):
        assert torch.equal(found[0][key], other[key])
    again = tensors_of(grown(sources["gpt_oss"], tmp_path / "other seed", seed=1, **ORTHOGONAL))
    assert any(not torch.equal(found[0][key], again[key]) for key in again)


def test_what_is_drawn_is_normal_and_a_stream_of_its_own_for_every_name():
    count = (1 << 18) + 5
    first = changed(torch.zeros(1, count), Change(new=2.0, key="one"), seed=0).view(-1)
    assert torch.equal(first, changed(torch.ones(1, count), Change(new=2.0, key="one"), seed=0).view(-1))
    for other in (Change(new=2.0, key="two"), Change(new=2.0, key="one", scale=0.5)):
        changed_too = changed(torch.zeros(1, count), other, seed=0).view(-1)
        assert abs(float(torch.corrcoef(torch.stack([first, changed_too]))[0, 1])) == pytest.approx(
            1.0 if other.key == "one" else 0.0, abs=0.01
        )
    assert scipy.stats.kstest(first.numpy() / 2, "norm").pvalue > 0.01
    assert float(first.std()) == pytest.approx(2.0, rel=5e-3)
    lag = torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]
    assert abs(float(lag)) < 0.01


@pytest.mark.parametrize("layout", Layout)
def test_noise_of_a_block_of_many_chunks_is_scaled_by_the_sigma_of_each_matrix(layout):
    """Far from 0 and in bf16; gate is a hundred times up where they share a block."""
    block = torch.randn(600, 1000, generator=torch.Generator().manual_seed(0)) + 3
    scaled = {Layout.ROW_HALVES: block[:300], Layout.COLUMN_PAIRS: block[:, 0::2]}.get(layout, block)
    scaled.mul_(100)
    other = {Layout.ROW_HALVES: block[300:], Layout.COLUMN_PAIRS: block[:, 1::2]}.get(layout, block)
    noise = changed(block, Change(layout=layout, noise=0.1, key="x"), seed=0) - block
    parts = {
        Layout.ROW_HALVES: (noise[:300], noise[300:]),
        Layout.COLUMN_PAIRS: (noise[:, ::2], noise[:, 1::2]),
    }
    for found, source in zip(parts.get(layout, (noise, noise)), (scaled, other), strict=True):
        assert float(found.std() / (0.1 * source.std())) == pytest.approx(1.0, abs=0.01)
    short = block.bfloat16()
    in_bf16 = changed(short, Change(layout=layout, noise=0.1, key="x"), seed=0)
    assert in_bf16.dtype is torch.bfloat16
    assert torch.equal(
        in_bf16, changed(short.float(), Change(layout=layout, noise=0.1, key="x"), 0).bfloat16()
    )


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_copies_are_the_same_where_the_kernel_does_not_copy_between_files(
    sources, tmp_path, monkeypatch, number
):
    whole = grown(sources["mixtral"], tmp_path / "one" / "grown", method="interposition")

    def refuse(*_):
        raise OSError(number, "not here")

    monkeypatch.setattr("moe.recycle.checkpoint._READ_BYTES", 1000)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert bytes_of(
        grown(sources["mixtral"], tmp_path / "two" / "grown", method="interposition")
    ) == bytes_of(whole)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize(
    "change",
    [
        {"noise": 0.1},
        {"new": 2.0, "scale": 0.5},
        {"dropped": 0.5, "units": "u"},
        {"noise": 0.1, "part": (1, 2)},
        {"scale": 0.0},
    ],
    ids=" ".join,
)
def test_a_block_that_gives_its_place_becomes_what_it_would_have_become(layout, change):
    block = torch.randn(60, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    change = Change(layout=layout, key="x", **change)
    expected = changed(block, change, seed=0)
    given = block.clone()
    found = changed(given, change, seed=0, in_place=True)
    assert torch.equal(found, expected)
    if change.part is None:
        assert found.data_ptr() == given.data_ptr()


def test_a_thread_reads_every_block_to_the_same_place(sources):
    source, reader = open_checkpoint(sources["mixtral"]), Reader()
    space = memoryview(bytearray(1 << 20))
    matrices = [stored for name, stored in source.tensors.items() if "experts" in name]
    places = {reader.own_block(stored, None, space).data_ptr() for stored in matrices}
    assert len(places) == 1
    assert torch.equal(reader.own_block(matrices[0], None, space), reader.own_block(matrices[0]))
    reader.close()


def test_a_file_goes_to_the_disk_while_the_next_is_written(sources, tmp_path, monkeypatch):
    """The disk of the first file waits here for bytes of the second."""
    second, sync, waited = threading.Event(), os.fsync, []

    def fsync(file: int) -> None:
        if not waited and os.fstat(file).st_size > 50_000:
            waited.append(second.wait(30))
        sync(file)

    def progress(done: int, total: int) -> None:
        if done > 60_000:
            second.set()

    monkeypatch.setattr(os, "fsync", fsync)
    config = asked(sources["mixtral"], tmp_path / "grown", shard_size="60KB", **ORTHOGONAL)
    assert grow(config, progress).written.num_shards > 2
    assert waited == [True]


def test_a_disk_that_fails_at_the_end_leaves_nothing_that_counts(sources, tmp_path, monkeypatch):
    config = asked(sources["mixtral"], tmp_path / "grown", shard_size="60KB", **ORTHOGONAL)
    sync = os.fsync

    def fsync(file: int) -> None:
        if os.fstat(file).st_size > 50_000:
            raise OSError(errno.EIO, "broken")
        sync(file)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="broken"):
            grow(config)
    assert not Path(config.target).exists()
    assert not list(draft_of(Path(config.target)).glob("*.safetensors"))
    whole = grown(sources["mixtral"], tmp_path / "whole", shard_size="60KB", **ORTHOGONAL)
    assert bytes_of(grow(config).target) == bytes_of(whole)


def test_a_disk_that_fails_to_copy_is_not_read_around(sources, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with pytest.raises(OSError, match="broken"):
        grown(sources["mixtral"], tmp_path / "grown", method="interposition")


def test_the_memory_that_is_reported_is_the_most_that_the_process_ever_held(sources, tmp_path):
    """Of the kernel's account, by another of its doors."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    written = grow(asked(sources["mixtral"], tmp_path / "grown", **ORTHOGONAL)).written
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    slack = 4 << 20  # the kernel counts by processor and adds up now and then
    assert before - slack <= written.peak_bytes <= after + slack


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_a_growth_stopped_anywhere_goes_on_and_ends_with_the_same_bytes(sources, tmp_path, share):
    whole = grown(sources["mixtral"], tmp_path / "whole", shard_size="60KB", **ORTHOGONAL)
    config = asked(sources["mixtral"], tmp_path / "whole2", shard_size="60KB", **ORTHOGONAL)

    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(config, stop)
    assert not Path(config.target).exists()
    done = {
        path.name: path.stat().st_mtime_ns for path in draft_of(Path(config.target)).glob("*.safetensors")
    }
    assert grow(config).written.num_shards == len(list(whole.glob("*.safetensors"))) - len(done)
    assert bytes_of(Path(config.target)) == bytes_of(whole)
    assert all((Path(config.target) / name).stat().st_mtime_ns == at for name, at in done.items())
    assert not draft_of(Path(config.target)).exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_recycle import ORTHOGONAL, asked, grow

def kill(done, total):
    if done > {share} * total:
        os.kill(os.getpid(), signal.SIGKILL)

grow(asked(Path({source!r}), Path({target!r}), shard_size="60KB", **ORTHOGONAL), kill)
"""


def test_a_growth_killed_in_the_middle_goes_on_and_ends_with_the_same_bytes(sources, tmp_path):
    whole = grown(sources["mixtral"], tmp_path / "whole", shard_size="60KB", **ORTHOGONAL)
    target, tests = tmp_path / "killed", str(Path(__file__).parent)
    program = KILLED.format(tests=tests, share=0.6, source=str(sources["mixtral"]), target=str(target))
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    written = grow(asked(sources["mixtral"], target, shard_size="60KB", **ORTHOGONAL)).written
    assert 0 < written.num_shards < len(list(whole.glob("*.safetensors")))
    assert bytes_of(target) == bytes_of(whole)


@pytest.mark.parametrize("moment", ["rename", "unlink"])
def test_a_growth_stopped_at_its_very_end_is_whole_after_the_next_call(
    sources, tmp_path, monkeypatch, moment
):
    whole = grown(sources["mixtral"], tmp_path / "whole", **ORTHOGONAL)
    config = asked(sources["mixtral"], tmp_path / "stopped", **ORTHOGONAL)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(*((os, "rename") if moment == "rename" else (Path, "unlink")), stop)
        with pytest.raises(KeyboardInterrupt):
            grow(config)
    again = grow(config).written
    assert again is None if moment == "unlink" else again.num_shards == 0
    assert bytes_of(Path(config.target)) == bytes_of(whole)


def test_a_growth_that_is_stopped_does_not_wait_for_the_digests_of_its_source(sources, tmp_path, monkeypatch):
    stopped = []
    monkeypatch.setattr("moe.recycle.run.digest_of", lambda path, stop: stopped.append(stop.wait(60)))
    with pytest.raises(KeyboardInterrupt):
        grow(asked(sources["mixtral"], tmp_path / "grown", **ORTHOGONAL), _interrupt)
    assert stopped == [True]


def test_the_source_is_left_as_it_was_and_a_second_call_writes_nothing(sources, tmp_path):
    before = bytes_of(sources["olmoe"])
    target = grown(sources["olmoe"], tmp_path / "grown", **ORTHOGONAL)
    there = bytes_of(target)
    assert grow(asked(sources["olmoe"], target, **ORTHOGONAL)).written is None
    assert bytes_of(target) == there
    assert bytes_of(sources["olmoe"]) == before


def test_growing_twice_chains_the_lineage_and_the_card_tells_it(sources, tmp_path):
    source = checkpoints.make(tmp_path / "base", "mixtral")
    (source / "README.md").write_text("# Base\n\nWhat it is.\n")
    (source / "tokenizer.json").write_text("{}")
    first = grown(source, tmp_path / "deep", method="interposition")
    second = grown(first, tmp_path / "wide", width_method="duplicate", noise_scale=0.01)
    growths = json.loads((second / "growth.json").read_text())["growths"]
    assert [growth["label"] for growth in growths] == ["interposition", "duplicate"]
    assert [growth["source"] for growth in growths] == ["base", "deep"]
    weights = (first / "model.safetensors").read_bytes()
    assert growths[1]["source_sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    card = (second / "README.md").read_text()
    assert card.startswith("# Base\n\nWhat it is.\n")
    assert card.count("## Grown with Regrow") == 1
    assert "2. duplicate, noise 0.01, seed 0: deep" in card
    assert (second / "tokenizer.json").read_text() == "{}"


# -- verification ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_function_is_what_transformers_computes_at_once(sources, name):
    """Layer by layer and in one go, the same numbers."""
    tokens = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    layerwise = Layerwise(open_checkpoint(sources[name]))
    *_, (last, _) = layerwise.hidden(tokens)
    found = torch.cat(list(layerwise.logits(last)), 1)
    torch.testing.assert_close(found, logits(load(sources[name])).flatten(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_experts_that_are_run_in_groups_compute_what_all_do_at_once(sources, name, monkeypatch):
    """Three of four leave a group of one; group limits, shared experts and biases among what is run."""
    source = open_checkpoint(sources[name])
    monkeypatch.setattr(Layerwise, "experts_at_once", lambda self, layer: 3)
    tokens = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    layerwise = Layerwise(source)
    *_, (last, _) = layerwise.hidden(tokens)
    found = torch.cat(list(layerwise.logits(last)), 1)
    torch.testing.assert_close(found, logits(load(sources[name])).flatten(0, 1), rtol=0, atol=1e-5)


def verified(source: Path, target: Path, memory_limit: int = 4 << 30) -> Verdict:
    return verify(source, target, memory_limit=memory_limit)


def test_a_sound_growth_holds_and_says_how_far_the_function_moved(sources, tmp_path):
    exact = grown(sources["deepseek_v3"], tmp_path / "exact", width_method="duplicate")
    verdict = verified(sources["deepseek_v3"], exact)
    assert verdict.holds
    assert verdict.compared_bytes == sum(t.numel() * 4 for t in tensors_of(exact).values())
    assert verdict.function.max_change < 1e-5
    assert verdict.function.divergence < 1e-6
    assert verdict.function.agreement == 1.0
    noisy = grown(sources["deepseek_v3"], tmp_path / "noisy", width_method="duplicate", noise_scale=0.05)
    verdict = verified(sources["deepseek_v3"], noisy)
    assert verdict.holds
    assert 0.9 < verdict.noise_ratio < 1.1
    assert verdict.function.max_change > 1e-4
    assert 0.5 < verdict.function.agreement < 1.0


def test_an_honest_jump_is_that_of_the_whole_models(sources, tmp_path):
    target = grown(sources["olmoe"], tmp_path / "deep", method="stack")
    function = verified(sources["olmoe"], target).function
    tokens = torch.randint(0, 64, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p, q = (load(folder)(tokens).logits.log_softmax(-1) for folder in (sources["olmoe"], target))
    assert function.divergence == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert function.agreement is None


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            lambda t: t["model.layers.0.mlp.experts.1.up_proj.weight"].view(-1)[7:8].add_(1),
            "experts.1.up_proj",
        ),
        (
            lambda t: t["model.layers.0.mlp.experts.6.up_proj.weight"].mul_(1.001),
            "is not what its seed draws",
        ),
        (lambda t: t.pop("model.layers.1.mlp.gate.weight"), "target lacks 1 tensors"),
        (lambda t: t.update(more=torch.zeros(1)), "target has, and should not, 1 tensors: more"),
    ],
)
def test_what_is_not_as_it_was_written_is_named(sources, tmp_path, damage, match):
    target = grown(sources["olmoe"], tmp_path / "grown", width_method="duplicate", noise_scale=0.01)
    tensors = tensors_of(target)
    damage(tensors)
    checkpoints.rewrite(target, tensors)
    verdict = verified(sources["olmoe"], target)
    assert not verdict.holds
    assert match in "\n".join(verdict_lines(verdict))


def test_a_config_that_was_changed_is_named(sources, tmp_path):
    target = grown(sources["olmoe"], tmp_path / "grown", width_method="duplicate")
    edit_config(target, num_experts_per_tok=2)
    assert "num_experts_per_tok=2; it should be 4" in verified(sources["olmoe"], target).problems[0]


def test_what_memory_does_not_hold_is_not_looked_at_and_that_is_said(sources, tmp_path, monkeypatch):
    target = grown(sources["olmoe"], tmp_path / "grown", width_method="duplicate")
    verdict = verified(sources["olmoe"], target, memory_limit=1)
    assert verdict.holds
    assert verdict.function is None
    assert "Python, torch and transformers take memory_limit=" in verdict.skipped[0]
    monkeypatch.setattr(Layerwise, "least_bytes", 1 << 50)
    verdict = verified(sources["olmoe"], target)
    assert verdict.fits_class
    assert verdict.function is None
    assert "a layer with one expert at a time, in fp32, takes memory_limit=" in verdict.skipped[0]
    assert f"memory: at most {verdict.peak_bytes >> 20} MiB" in verdict_lines(verdict)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_grown_checkpoint_has_the_tensors_of_transformers_class(sources, tmp_path, name):
    target = grown(sources[name], tmp_path / "grown", method="interposition", width_method="duplicate")
    assert list(not_as_transformers(open_checkpoint(target))) == []


def test_a_tensor_that_the_source_lacks_already_is_missed_in_transformers_class(tmp_path):
    """The plan has it as little as the source, so that target and plan agree."""
    source = checkpoints.make(tmp_path / "source", "qwen3_moe")
    tensors = tensors_of(source)
    tensors.pop("model.layers.1.self_attn.q_norm.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:60]
    checkpoints.rewrite(source, tensors)
    verdict = verified(source, grown(source, tmp_path / "grown", method="interposition"))
    assert not verdict.fits_class
    assert verdict.problems == [
        "transformers' class has, and target lacks, 2 tensors: model.layers.2.self_attn.q_norm.weight, "
        "model.layers.3.self_attn.q_norm.weight",
        "lm_head.weight is (60, 32); transformers' class has (64, 32)",
    ]


def test_as_many_experts_are_held_as_there_is_room_for(tmp_path):
    source = open_checkpoint(checkpoints.make(tmp_path / "source", "olmoe", num_experts=16))
    least, expert = Layerwise(source).least_bytes, 16 * 3 * 32 * 24
    for room, held in ((None, 16), (least, 1), (least + expert, 2), (least + 4 * expert - 1, 4)):
        layerwise = Layerwise(source) if room is None else Layerwise(source, room)
        assert [layerwise.experts_at_once(layer) for layer in range(3)] == [held] * 3


LARGE = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from moe.recycle.layerwise import Layerwise
from moe.recycle.verify import verify
from moe.recycle.writer import peak_bytes

held = Layerwise.experts_at_once
seen = set()
Layerwise.experts_at_once = lambda self, layer: seen.add(held(self, layer)) or held(self, layer)
verdict = verify(Path({source!r}), Path({target!r}), memory_limit={limit})
print(verdict.holds, verdict.function is not None, max(seen), peak_bytes())
"""


def test_the_function_of_a_layer_larger_than_the_limit_is_looked_at_within_it(tmp_path):
    """A layer of 128 experts takes 1.5 GiB to load; 600 MiB hold Python, torch and transformers too."""
    sizes = {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 64, "num_hidden_layers": 1}
    source = checkpoints.make(tmp_path / "source", "qwen3_moe", dtype="bfloat16", **sizes)
    target = grown(source, tmp_path / "target", width_method="duplicate")
    tests, limit = str(Path(__file__).parent), 600 << 20
    program = LARGE.format(tests=tests, source=str(source), target=str(target), limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    holds, looked_at, most, peak = done.stdout.split()
    assert (holds, looked_at) == ("True", "True")
    assert int(most) < 64
    assert int(peak) <= limit


def test_a_folder_that_was_not_grown_or_not_from_this_source_is_refused(sources, tmp_path):
    with pytest.raises(ValueError, match=r"has no growth\.json"):
        verified(sources["olmoe"], sources["mixtral"])
    target = grown(sources["olmoe"], tmp_path / "grown", width_method="duplicate")
    with pytest.raises(ValueError, match="was grown from olmoe, not from"):
        verified(sources["mixtral"], target)


# -- norms -----------------------------------------------------------------------------------------------


def norms_of(folder: Path) -> dict[tuple[int, str], dict]:
    rows = [row for own in norm_rows(open_checkpoint(folder)) for row in own]
    assert all(row.keys() == set(COLUMNS) for row in rows)
    return {(row["layer"], row["part"]): row for row in rows}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_are_those_of_the_loaded_models_parameters(sources, name):
    """transformers fuses every layout into [experts, …]; which names are which is said here once more."""
    found = norms_of(sources[name])
    for layer, network in enumerate(load(sources[name]).model.layers):
        own = dict(network.named_parameters())
        parts = {
            "gate_up": [w for n, w in own.items() if n.endswith(("gate_up_proj", "input_linear.weight"))],
            "down": [w for n, w in own.items() if n.endswith(("down_proj", "output_linear.weight"))],
            "router": [w for n, w in own.items() if re.search(r"(\.gate|router)(\.layer)?\.weight$", n)],
        }
        parts = {part: [w for w in tensors if len(w) == 4] for part, tensors in parts.items()}
        if not parts["router"]:
            assert not any(at == layer for at, _ in found)
            continue
        parts["expert"] = [torch.cat([parts[part][0].flatten(1) for part in ("gate_up", "down")], 1)]
        for part, (weight,) in parts.items():
            single = weight.detach().double().flatten(1).square().mean(1).sqrt()
            row = found[layer, part]
            assert row["norm"] == pytest.approx(float(single.square().mean().sqrt()), rel=1e-12)
            assert (row["min"], row["max"]) == pytest.approx((float(single.min()), float(single.max())))
            assert row["num_experts"] == 4
    assert len(found) >= 8


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "granitemoe"])
def test_norms_never_read_more_than_one_experts_matrix_at_once(sources, monkeypatch, name):
    sizes = []
    read = Reader.content

    def noted(self, stored, first, size, space=None):
        sizes.append(size)
        return read(self, stored, first, size, space)

    monkeypatch.setattr(Reader, "content", noted)
    norms_of(sources[name])
    assert max(sizes) == 4 * 32 * 24 * (1 if name == "mixtral" else 2)


def test_seams_are_where_a_stacks_copies_meet_through_later_growths(sources, tmp_path):
    stack = grown(sources["olmoe"], tmp_path / "stack", method="stack", depth_factor=3)
    assert seams_of(open_checkpoint(stack)) == [3, 6]
    wide = grown(stack, tmp_path / "wide", width_method="duplicate")
    assert seams_of(open_checkpoint(wide)) == [3, 6]
    deep = grown(wide, tmp_path / "deep", method="interposition")
    assert seams_of(open_checkpoint(deep)) == [6, 12]
    assert seams_of(open_checkpoint(sources["olmoe"])) == []
    once = norms_of(sources["olmoe"])
    assert all(
        norms_of(stack)[layer, "expert"]["norm"] == once[layer % 3, "expert"]["norm"] for layer in range(9)
    )


def test_the_figure_of_norms_draws_its_table_and_the_seams(sources, tmp_path):
    rows = [row for own in norm_rows(open_checkpoint(sources["deepseek_v2"])) for row in own]
    table, figure = checkpoint_norms(pd.DataFrame(rows, columns=list(COLUMNS)), [2])
    experts = figure.axes[0]
    assert list(table.columns) == list(COLUMNS)
    assert torch.tensor(experts.lines[0].get_ydata()).isnan().tolist() == [True, False, False]  # dense first
    assert list(experts.lines[1].get_xdata()) == [1.5, 1.5]
    assert "the seam before layer 2" in table.attrs["caption"]
    with pytest.raises(ValueError, match="no layer has experts"):
        checkpoint_norms(pd.DataFrame(columns=list(COLUMNS)), [])


# -- plans -----------------------------------------------------------------------------------------------


def seventeen(tmp_path: Path) -> Path:
    """The paper's 17B in the layout of Qwen3-MoE, sizes that are not published chosen to match."""
    sizes = {"hidden_size": 2048, "num_layers": 28, "num_experts": 96, "expert_size": 1024}
    return checkpoints.header_only(tmp_path / "17B", *checkpoints.qwen3(**sizes, vocab_size=184_320))


def test_the_papers_17b_becomes_its_35b_and_70b(tmp_path):
    """arXiv 2510.08008 §5: 18.0, 35.2, 69.0B in all; 2.1, 3.5, 5.6B activated."""
    source = open_checkpoint(seventeen(tmp_path))
    deep = Operator(method=DepthMethod.INTERPOSITION, depth_factor=2)
    both = Operator(
        method=DepthMethod.INTERPOSITION, depth_factor=2, width_method=WidthMethod.DUPLICATE, width_factor=2
    )
    plans = [make_plan(source, deep), make_plan(source, both)]
    sizes = [plans[0].before, plans[0].after, plans[1].after]
    assert [size.total_params / 1e9 for size in sizes] == pytest.approx([18.0, 35.2, 69.0], rel=0.01)
    assert [size.activated_params / 1e9 for size in sizes] == pytest.approx([2.1, 3.5, 5.6], rel=0.01)
    assert plans[1].after.num_bytes == 2 * plans[1].after.total_params


def test_the_predicted_time_is_that_of_what_is_hashed_written_and_changed(sources):
    source = open_checkpoint(sources["mixtral"])
    wide = Operator(width_method=WidthMethod.DUPLICATE, width_factor=2, noise_scale=0.01, seed=0)
    plan = make_plan(source, wide)
    hashed, written, changed_ones = (
        predicted_seconds(plan, Speeds(hash_s=h, write_s=w, change_s=c), threads=1)
        for h, w, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    assert hashed == (sources["mixtral"] / "model.safetensors").stat().st_size
    assert written == plan.after.num_bytes
    assert changed_ones == 3 * (4 * 3 * 32 * 24 + 4 * 32)  # a copy of each expert and of its router's row
    speeds = measured_speeds()
    assert min(speeds.hash_s, speeds.write_s, speeds.change_s) > 0
    assert predicted_seconds(plan, speeds, 2) == predicted_seconds(plan, speeds, 1) / 2
    assert "time to write: 4 s on 2 cores of its own, if the disk takes" in "\n".join(
        plan_lines(plan, 4.0, 2)
    )


def test_every_target_is_covered_by_its_pieces(sources):
    for name, folder in sources.items():
        for method in set(WidthMethod) - {WidthMethod.TOP_K_ONLY}:
            drop = 0.5 if method is WidthMethod.DROP_UPCYCLE else 0.0
            factor = 1 if method is WidthMethod.NONE else 2
            plan = make_plan(
                open_checkpoint(folder),
                Operator(
                    method=DepthMethod.RANDOM,
                    depth_factor=2,
                    width_method=method,
                    width_factor=factor,
                    drop_fraction=drop,
                    seed=0,
                ),
            )
            for target in plan.targets:
                assert sum(piece.num_bytes for piece in target.pieces) == target.num_bytes, (
                    name,
                    target.name,
                )


def test_dropped_units_are_the_same_in_all_matrices_of_an_expert(sources, tmp_path):
    growth = {"width_method": "drop_upcycle", "drop_fraction": 0.25}
    old = tensors_of(sources["olmoe"])
    new = tensors_of(grown(sources["olmoe"], tmp_path / "grown", **growth))
    name = "model.layers.1.mlp.experts.{}.{}_proj.weight"
    rows = [(new[name.format(5, p)] != old[name.format(1, p)]).any(1) for p in ("gate", "up")]
    columns = (new[name.format(5, "down")] != old[name.format(1, "down")]).any(0)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], columns)
    assert int(columns.sum()) == 6


# -- bad input -------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    return checkpoints.make(tmp_path / "broken", "mixtral")


def refused(source: Path, match: str, **growth) -> None:
    target = source.parent / "target"
    with pytest.raises(ValueError, match=match):
        grow(asked(source, target, **(growth or {"width_method": "duplicate"})))
    assert not target.exists()
    assert not draft_of(target).exists()


def test_an_unknown_architecture_is_refused_with_those_that_are_known(broken):
    edit_config(broken, model_type="llama")
    refused(broken, "'llama' of config.json is not known; there are mixtral, olmoe")


def test_a_tensor_that_no_pattern_matches_is_named(broken):
    checkpoints.rewrite(broken, tensors_of(broken) | {"model.layers.1.adapter.weight": torch.zeros(2)})
    refused(broken, r"1 tensors are not known in a mixtral: model\.layers\.1\.adapter\.weight")


def test_a_missing_file_is_named(broken):
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(broken, "model-00001-of-00002.safetensors is missing")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[:-10], "model.safetensors is cut short: "),
        (lambda content: content[:5], "model.safetensors has no safetensors header"),
        (
            lambda content: content[:20] + b"\x00" * 20 + content[40:],
            "model.safetensors has a damaged safetensors header",
        ),
        (lambda content: b"\xff" * 8 + content[8:], "model.safetensors has no safetensors header"),
        (
            lambda content: content.replace(b'"data_offsets"', b'"data_0ffsets"', 1),
            "model.safetensors has a damaged safetensors header",
        ),
        (
            lambda content: content.replace(b'"shape":[24,32]', b'"shape":[23,32]', 1),
            "model.safetensors has a damaged safetensors header",
        ),
        (
            lambda content: struct.pack("<Q", 2) + b"[]" + content,
            "model.safetensors has a damaged safetensors header",
        ),
    ],
)
def test_a_damaged_file_is_named(broken, damage, match):
    path = broken / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(broken, match)


def test_codes_are_not_weights(broken):
    edit_config(broken, quantization_config={"quant_method": "mxfp4"})
    refused(broken, r"quantization_config \(mxfp4\)")
    edit_config(broken, quantization_config=None)
    tensors = tensors_of(broken)
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    checkpoints.rewrite(broken, tensors | {name: tensors[name].to(torch.float8_e4m3fn)})
    refused(broken, rf"{re.escape(name)} in model.safetensors is F8_E4M3")


def test_a_config_that_counts_other_experts_is_refused(broken):
    edit_config(broken, num_local_experts=8)
    refused(broken, "layer 0 does not have the 8 experts")


def test_a_folder_that_is_there_is_not_written_over(broken):
    target = broken.parent / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    with pytest.raises(ValueError, match="is there and is not this growth"):
        grow(asked(broken, target, width_method="duplicate"))
    assert [path.name for path in target.iterdir()] == ["precious"]
    other = broken.parent / "other"
    grow(asked(broken, other, width_method="duplicate"))
    with pytest.raises(ValueError, match="is there and is not this growth"):
        grow(asked(broken, other, width_method="duplicate", noise_scale=0.01))


def test_a_draft_of_another_growth_is_not_gone_on_with(broken):
    target = broken.parent / "target"
    with pytest.raises(KeyboardInterrupt):
        grow(asked(broken, target, width_method="duplicate"), _interrupt)
    with pytest.raises(ValueError, match="is the draft of another growth"):
        grow(asked(broken, target, width_method="split"))


def _interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(broken, monkeypatch):
    from moe.recycle import run

    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    refused(broken, "needs .* GB more, and .* has 1e-06 GB free")


def test_memory_that_is_too_small_is_found_before_anything_is_written(broken):
    from dataclasses import replace

    target = broken.parent / "target"
    small = replace(asked(broken, target, width_method="duplicate", noise_scale=0.1), memory_limit="10MiB")
    with pytest.raises(ValueError, match=r"memory_limit=10 MiB does not hold the program .* give at least"):
        grow(small)
    assert not draft_of(target).exists()


@pytest.mark.parametrize(
    ("growth", "match"),
    [
        ({"method": "none", "width_method": "none"}, "grow nothing"),
        ({"method": "interposition", "depth_factor": 1}, "growth.depth_factor=1 must be at least 2"),
        ({"width_method": "duplicate", "noise_scale": -1.0}, "growth.noise_scale=-1.0 must not be negative"),
    ],
)
def test_a_growth_that_is_none_is_refused(broken, growth, match):
    with pytest.raises(ValueError, match=match):
        asked(broken, broken.parent / "target", **growth)


def test_stacking_over_a_dense_first_layer_says_what_to_keep(sources, tmp_path):
    with pytest.raises(ValueError, match=r"set growth\.keep_first=1, or choose interposition"):
        grow(asked(sources["deepseek_v3"], tmp_path / "target", method="stack"))


# -- docs/recycle.md -------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "recycle.md").read_text()
CHANGES = re.findall(r"^\| `(\w+)` \| (`num_hidden_layers.*) \| (.*) \|$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "depth", "width"), CHANGES)
def test_the_page_says_which_keys_change(sources, name, depth, width):
    source = open_checkpoint(sources[name])
    deep = Operator(method=DepthMethod.INTERPOSITION, depth_factor=2)
    wide = Operator(width_method=WidthMethod.DUPLICATE, width_factor=2)
    for operator, said in ((deep, depth), (wide, width)):
        config = make_plan(source, operator).config
        changes = {key for key in config if config[key] != source.config.get(key)}
        assert changes == set(re.findall(r"`(\w+)`", said))


def test_the_page_names_every_architecture_and_every_column():
    assert [name for name, _, _ in CHANGES] == list(ARCHITECTURES)
    assert all(f"`{column}`" in PAGE for column in COLUMNS)
