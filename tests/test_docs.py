"""docs/growth.md holds: its commands plan, its code runs, its refusals are quoted, its table is computed.
So does docs/language.md: its examples are printed, its shares are those of the configuration.

A ```console block quotes refusals: a line `$ python sweep.py …`, then what it prints.
"""

import re
import shlex
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from moe import flops
from moe.data import WorldConfig, entropy_floor, parse_data
from moe.data.__main__ import main as print_language
from moe.data.entropy import entropies, mixture_entropy
from moe.data.language import ABRUPT, vocabulary
from moe.growth import grow_weights
from moe.growth_report import growth_report
from moe.operator import Operator, WidthMethod
from moe.train import initial_state
from sweeps.cell import Cell, operators_of, resolve
from sweeps.config import parse_sweep
from sweeps.plan import make_plan

DOCS = tiny.ROOT / "docs"
sys.path.insert(0, str(DOCS))
import draw_growth  # noqa: E402

PAGE = (DOCS / "growth.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
CONSOLE = "".join(block for kind, block in BLOCKS if kind == "console")
REFUSALS = re.findall(r"^\$ (.*)\nrefused: (.*)$", CONSOLE, flags=re.MULTILINE)
OVERVIEW = re.findall(r"^\| `(growth=.+?)`.*?\|.*\| (\w+) \|(.*)\|[^|]*\|$", PAGE, flags=re.MULTILINE)


def cells(command: str) -> list[Cell]:
    """What `sweep.py` would ask for, its sweeps over commas expanded."""
    program, script, *words = shlex.split(command)
    assert (program, script) == ("python", "sweep.py")
    words = [word for word in words if word not in ("-m", "+plan=only")]
    axes = []
    for given in OverridesParser.create().parse_overrides(words):
        swept = given.is_sweep_override()
        key, values = given.get_key_element(), given.sweep_string_iterator if swept else None
        axes.append([f"{key}={value}" for value in values()] if values else [given.input_line])
    return [resolve(parse_sweep(tiny.composed(*overrides))) for overrides in product(*axes)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_plans(command):
    asked = cells(command)
    assert len({cell.id for cell in asked}) == len(asked) > ("-m" in command)
    assert make_plan(asked, tiny.Nothing()).flops_todo > 0


@pytest.mark.parametrize(("command", "message"), REFUSALS)
def test_every_refusal_is_quoted_word_for_word(command, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        cells(command)
    assert str(refused.value) == message


def test_nothing_on_the_page_is_overlooked():
    assert len(COMMANDS) >= 12
    assert len(OVERVIEW) == PAGE.count("\n| `growth=")
    assert CONSOLE.count("$ ") == len(REFUSALS) >= 8


@pytest.mark.parametrize(("overrides", "exactness", "costs"), OVERVIEW)
def test_the_overview_says_what_the_code_does(overrides, exactness, costs):
    (cell,) = cells(f"python sweep.py {overrides}")
    (operator,), model, T = operators_of(cell.config), cell.config.model, cell.config.train.seq_len
    counts = [flops.total_params, flops.activated_params, lambda m: flops.train_flops_per_token(m, T)]
    assert operator.exactness(model) == exactness
    ratios = [f"{count(operator.apply_to(model)) / count(model):.2f}" for count in counts]
    assert ratios == [cost.strip() for cost in costs.split("|")]


def test_every_python_example_runs():
    names: dict[str, Any] = {}
    for block in (block for kind, block in BLOCKS if kind == "python"):
        exec(block, names)


def test_the_report_has_the_keys_that_the_page_shows():
    (shown,) = (yaml.safe_load(block) for kind, block in BLOCKS if kind == "json")
    model, twice = tiny.model(), Operator(width_method=WidthMethod.DUPLICATE, width_factor=2)
    source = initial_state(model, 0).weights
    grown, tokens_BT1 = grow_weights(model, twice, source), torch.zeros(1, 9, dtype=torch.long)
    report = growth_report(model, twice, source, grown, tokens_BT1)
    assert set(shown) == set(report) | {"parent", "operator", "optimizer_state", "sunk_flops"}
    assert all(set(shown[key]) == set(report[key]) for key in report if isinstance(report[key], dict))


def test_every_picture_and_key_it_names_exists():
    pictures = re.findall(r"\]\(((?!http)[^)]+)\)", PAGE)
    assert len(pictures) >= 4
    assert all((DOCS / picture).exists() for picture in pictures)
    conf = tiny.ROOT / "conf"
    files = [conf / "growth/base/operator.yaml", conf / "growth/base/then.yaml"]
    known = {key for file in files for key in yaml.safe_load(file.read_text())}
    known |= set(yaml.safe_load((conf / "config.yaml").read_text())["growth"])
    spans = " ".join(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", PAGE))
    named = {key for path in re.findall(r"(?<![\w/@])growth\.([a-z_.]+)", spans) for key in path.split(".")}
    assert named >= {"noise_scale", "lr", "after_extra_flops"}
    assert named <= known


def test_the_pictures_show_what_numpy_says():
    rows = {name: [bar.source for bar in bars] for name, bars in draw_growth.depth_rows().items()}
    assert rows["stack"] == np.tile(np.arange(4), 2).tolist()
    assert rows["interposition"] == np.repeat(np.arange(4), 2).tolist()
    assert [bar.height for bar in draw_growth.copies_rows()["scaled"]] == pytest.approx([0.5] * 8)
    assert [bar.source for bar in draw_growth.width_rows()["duplicate, α > 0"]] == [0, 1, 2, 3] * 2


LANGUAGE = (DOCS / "language.md").read_text()


def test_every_example_of_the_language_is_printed_by_the_command_it_names(capsys):
    (examples,) = re.findall(r"```text\n(.*?)```", LANGUAGE, flags=re.DOTALL)
    assert print_language([str(tiny.ROOT / "conf/data/world.yaml")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(shown := [line for line in examples.splitlines() if line]) >= 12
    assert set(shown) <= set(printed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0 arguments, and it needs one; give conf/data/world.yaml"),
        (
            ["nowhere.yaml"],
            "nowhere.yaml cannot be read (No such file or directory); give conf/data/world.yaml",
        ),
        (["text.yaml"], "text.yaml has data.source=text, and this prints data=world"),
        (["{", "x"], "2 arguments, and it needs one"),
        (["bad.yaml"], "bad.yaml is not YAML ("),
        (["other.yaml"], "missing key data.vocab_size"),
    ],
)
def test_what_is_no_language_is_refused_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.yaml").write_text((tiny.ROOT / "conf/data/text.yaml").read_text())
    (tmp_path / "bad.yaml").write_text("[1\n")
    (tmp_path / "other.yaml").write_text("source: world\n")
    assert print_language(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"moe.data: {message}")
    assert len(said.err.splitlines()) == 1


def test_the_shares_of_the_language_are_those_of_its_configuration():
    config = yaml.safe_load((tiny.ROOT / "conf/data/world.yaml").read_text())
    shares = dict(re.findall(r"^\| (\w+) \| (\d+) % \|", LANGUAGE, flags=re.MULTILINE))
    assert {f"share_{name}": float(share) / 100 for name, share in shares.items()} == {
        key: value for key, value in config.items() if key.startswith("share_")
    }
    words = len(vocabulary(parse_data(config))[0])
    assert f"a closed language of {words} words" in LANGUAGE


def test_the_entropies_of_the_language_are_those_that_are_computed():
    config = parse_data(yaml.safe_load((tiny.ROOT / "conf/data/world.yaml").read_text()))
    assert isinstance(config, WorldConfig)
    (table,) = re.findall(r"\| family \| training stream \|.*\n\|[-|]+\n((?:\|.*\n)+)", LANGUAGE)
    rows = [line.replace("*", "").strip("| ").split(" | ") for line in table.splitlines()]
    shown = {name: numbers for name, *numbers in rows}
    found = entropies(config)
    computed = {name: [e.training, e.held_out, e.least] for name, e in found.items()}
    averaged = [name for name in found if name not in ABRUPT]
    least = sum(found[name].least for name in averaged) / len(averaged)
    computed["mixture"] = [mixture_entropy(config), None, None]
    computed["mean but for recall"] = [None, entropy_floor(config, averaged), least]
    assert shown == {
        name: ["–" if value is None else f"{value:.3f}" for value in values]
        for name, values in computed.items()
    }
    assert f"ln {config.vocab_size} = {np.log(config.vocab_size):.3f}" in LANGUAGE
