"""docs/data.md holds: its commands plan, its keys are those of conf/data, its layout is what is written."""

import re
import shlex
from types import SimpleNamespace

import pytest
import tiny
import yaml
from huggingface_hub import HfApi
from test_text import prepared, write_corpus, write_jsonl

from moe.data import huggingface
from moe.data.tokenizer import SEPARATORS, train_bpe
from sweeps.cell import resolve
from sweeps.config import parse_sweep

PAGE = (tiny.ROOT / "docs" / "data.md").read_text()
COMMANDS = re.findall(r"^python sweep.py .*$", PAGE, flags=re.MULTILINE)
CONF = {
    name: yaml.safe_load((tiny.ROOT / f"conf/data/{name}.yaml").read_text())
    for name in ("text", "huggingface")
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_plans(command, tmp_path, monkeypatch):
    write_corpus(tmp_path / "text")
    for name in ("a.tex", "b.rst"):
        (tmp_path / "text" / name).write_text("text")
    write_jsonl(tmp_path / "file.jsonl", [{"body": "text"}])
    train_bpe(["the of and to in is"] * 9, 258, tmp_path / "tokenizer.json")
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="0" * 40))
    huggingface._commit.cache_clear()
    places = {"FOLDER": "text", "FILE.jsonl": "file.jsonl", "TOKENIZER.json": "tokenizer.json"}
    for word, place in places.items():
        command = command.replace(f"={word}", f"={tmp_path / place}")
    overrides = [word for word in shlex.split(command)[2:] if word != "+plan=only"]
    assert resolve(parse_sweep(tiny.composed(*overrides))).trunk.id


def test_every_key_it_names_is_one_and_every_key_is_named():
    known = set().union(*CONF.values())
    named = set(re.findall(r"data\.([a-z_]+)", PAGE.replace("data.md", "")))
    assert named == known - {"source"}
    assert all(f"`{pattern}`" in PAGE for pattern in CONF["text"]["patterns"])
    escaped = PAGE.replace("\\|", "|")
    assert all(f"`{name}`" in escaped for name in SEPARATORS)


def test_the_layout_is_what_is_written(tmp_path):
    write_corpus(tmp_path / "text")
    prepared(tmp_path / "text", tmp_path / "corpora", tokenizer="bpe", vocab_size=290)
    layout = PAGE.split("```\n<launch.store>")[1].split("```")[0]
    names = {path.name for path in (tmp_path / "corpora").glob("*/*")}
    assert names == set(re.findall(r"[\w-]+(?:\.tokens|\.documents|\.json)\b", layout))
