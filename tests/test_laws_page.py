"""docs/laws.md holds: its example is what the code says, its refusals are quoted, what it names exists."""

import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import tiny
from planted import plant
from test_budget import STUDY, loss
from test_laws import GOOD

from analysis.advice import advise
from analysis.advice_text import text
from analysis.arm_laws import fit_arms
from analysis.budget import recycling_efficiency
from analysis.laws import ACCURACY, CHINCHILLA, EFFECTIVE, POWER, SUNK_LAWS
from analysis.laws.fitting import fit
from analysis.table import cells_table
from sweeps.store import Store

PAGE = (tiny.ROOT / "docs" / "laws.md").read_text()
NUMBER = re.compile(r"(?<![\w_])[+−]?\d[\d.]*(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    effect = replace(STUDY, loss=loss, extra_steps=60, items=100_000)
    return cells_table(Store(plant(tmp_path_factory.mktemp("page"), effect)), "planted")


def numbers(words):
    return np.array([float(found.replace("−", "-").rstrip(".")) for found in NUMBER.findall(words)])


def test_the_example_is_what_the_command_says(cells):
    (shown,) = re.findall(r"```console\n\$ [^\n]*do=advise [^\n]*\n(.*?)```", PAGE, flags=re.DOTALL)
    found = advise(cells, sunk_flops=3.4e12, activated_params=120_000, extra_flops=1.7e12)
    said = text(found, "planted")
    assert NUMBER.sub("#", said).split() == NUMBER.sub("#", shown).split()
    assert numbers(said) == pytest.approx(numbers(shown), rel=0.05, abs=0.003)


def test_every_form_is_on_the_page():
    for law in (*SUNK_LAWS, POWER, CHINCHILLA, ACCURACY):
        assert f"| {law.name}" in PAGE
        assert law.formula in PAGE


def test_every_function_it_names_exists():
    (table,) = re.findall(r"\| function \| says \|\n(.*?)\n\n", PAGE, flags=re.DOTALL)
    names = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines()))
    assert len(names) >= 6
    assert all(callable(getattr(import_module("analysis.budget"), name)) for name in names)


def test_every_refusal_is_quoted_word_for_word(cells):
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    refused = {
        "no finished cell": lambda: fit_arms(cells[cells["status"] == "todo"]),
        "continued control": lambda: fit_arms(cells[cells["kind"] != "continued"]),
        "at least 6 points": lambda: fit(EFFECTIVE, GOOD.where(np.arange(5))),
        "the same in all": lambda: fit(EFFECTIVE, replace(GOOD, sunk=np.ones(len(GOOD)))),
        "sizes N": lambda: fit(
            CHINCHILLA, replace(GOOD, activated_params=np.where(np.arange(len(GOOD)) % 2, 1e5, 1e6))
        ),
        "least loss": lambda: fit(EFFECTIVE, GOOD, fixed={"E": 9.0}),
        "arm=up": lambda: recycling_efficiency(
            fit_arms(cells[cells["method"] != "stack"], resamples=0), "up"
        ),
        "sunk_flops=-1": lambda: advise(cells, sunk_flops=-1.0, activated_params=1e5, extra_flops=1.0),
    }
    lines = block.splitlines()
    assert len(lines) == len(refused)
    for line, (words, question) in zip(lines, refused.items(), strict=True):
        assert words in line
        with pytest.raises(ValueError, match=re.escape(line)) as error:
            question()
        assert str(error.value) == line
