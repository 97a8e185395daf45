"""Hugging Face datasets as data: real ones, in folders; the hub is only ever asked through a stand-in."""

import json
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pytest
import tiny
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from test_text import documents_in, texts

from moe.data import data_identity, documents, huggingface, open_data, parse_data, prepare_data
from moe.data.huggingface import HuggingFaceSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def mapping(name, **changes) -> dict:
    section = tiny.composed("data=huggingface")["data"]
    section = {key: value for key, value in section.items() if key != "at_growth"}
    return {**section, "name": None if name is None else str(name), "held_out_fraction": 0.2, **changes}


def identity_of(name, **changes):
    return data_identity(parse_data(mapping(name, **changes)))


def opened(name, corpora, **changes):
    config = parse_data(mapping(name, **changes))
    identity = data_identity(config)
    prepare_data(config, identity, str(corpora), lambda *_: None)
    return open_data(identity, str(corpora))


def read(data) -> list[str]:
    return documents_in(data, "train") + documents_in(data, "held_out")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Every test starts offline."""

    def refuse(*_, **__):
        raise OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    huggingface._commit.cache_clear()


@pytest.fixture
def rows():
    return [{"body": text, "n": i} for i, text in enumerate(texts())]


@pytest.fixture(params=["saved", "saved splits", "jsonl", "parquet"])
def dataset(request, rows, tmp_path):
    """A folder as people have them."""
    folder, table = tmp_path / "dataset", datasets.Dataset.from_list(rows)
    datasets.disable_progress_bars()
    match request.param:
        case "saved":
            table.save_to_disk(folder)
        case "saved splits":
            datasets.DatasetDict({"train": table, "test": table.select(range(5))}).save_to_disk(folder)
        case "jsonl":
            folder.mkdir()
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "parquet":
            folder.mkdir()
            table.to_parquet(folder / "train.parquet")
    return folder


def test_a_folder_is_read_whole_and_known_by_its_contents(dataset, tmp_path):
    data = opened(dataset, tmp_path / "corpora", text_field="body")
    assert sorted(read(data)) == sorted(texts())
    identity = identity_of(dataset, text_field="body")
    assert "name" not in identity
    assert str(tmp_path) not in str(identity)
    before = identity["manifest"]
    (dataset / "more.jsonl").write_text('{"body": "more", "n": 1}\n')
    assert identity_of(dataset, text_field="body")["manifest"] != before


def test_the_first_documents_alone_are_read_if_so_asked(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "_ROWS", 10)
    data = opened(dataset, tmp_path / "corpora", text_field="body", max_documents=25)
    assert sorted(read(data)) == sorted(texts()[:25])


def test_the_split_that_is_named_is_the_one_that_is_read(rows, tmp_path):
    table = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": table, "test": table.select(range(40, 60))}).save_to_disk(tmp_path / "two")
    data = opened(tmp_path / "two", tmp_path / "corpora", text_field="body", split="test")
    assert sorted(read(data)) == sorted(texts()[40:])


def test_the_configuration_that_is_named_is_the_one_that_is_read_as_subwords_too(rows, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    parts = {"en": rows[:20], "de": rows[20:]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    configs = [f"- config_name: {name}\n  data_files: {name}.jsonl" for name in parts]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    given = {"text_field": "body", "config": "de", "tokenizer": "bpe", "vocab_size": 290}
    data = opened(folder, tmp_path / "corpora", **given)
    assert sorted(read(data)) == sorted(texts()[20:])
    assert data.unique_tokens < sum(map(len, texts()[20:]))


def test_empty_rows_are_no_documents_and_hidden_files_no_part_of_a_folder(rows, tmp_path):
    (tmp_path / "folder").mkdir()
    lines = [{"body": text} for text in ["", *texts(), ""]]
    (tmp_path / "folder" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = identity_of(tmp_path / "folder")
    (tmp_path / "folder" / ".cache").mkdir()
    (tmp_path / "folder" / ".cache" / "b.jsonl").write_text('{"body": "no"}\n')
    assert identity_of(tmp_path / "folder") == before
    data = opened(tmp_path / "folder", tmp_path / "corpora", text_field="body")
    assert sorted(read(data)) == sorted(texts())


def test_a_folder_without_the_field_is_refused_with_the_fields_it_has(dataset, tmp_path):
    with pytest.raises(
        ValueError, match=r"data.text_field=text is not in .*; set it to one of its fields: body, n"
    ):
        opened(dataset, tmp_path / "corpora")


def test_an_unknown_split_is_refused(dataset, tmp_path):
    with pytest.raises(
        ValueError, match=r"data.split=(nope is not in|nope cannot be read \(Bad split: nope)"
    ):
        opened(dataset, tmp_path / "corpora", text_field="body", split="nope")


def test_an_unknown_configuration_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"data.config=nope(:|, data.split=train cannot be read) "):
        opened(dataset, tmp_path / "corpora", text_field="body", config="nope")


def test_a_row_without_text_is_refused_by_its_number(tmp_path):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([{"text": "a"}, {"text": None}]).save_to_disk(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"split train row 2: data.text_field holds null, not text"):
        opened(tmp_path / "dataset", tmp_path / "corpora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "data.name is missing; give the name of a dataset on the hub, or a folder"),
        ({"name": "./nowhere"}, r"data.name=./nowhere is not a folder"),
        (
            {"name": "some/dataset"},
            r"some/dataset could not be asked for on the hub \(.*offline.*\); go online",
        ),
    ],
)
def test_a_dataset_that_is_not_there_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        data_identity(parse_data(mapping("x") | changes))


def test_a_name_that_the_hub_cannot_have_is_refused_as_one(monkeypatch):
    monkeypatch.undo()  # the hub's client refuses it before it asks anyone
    with pytest.raises(ValueError, match=r"data.name=a b/c/d is no name of a dataset \(.*\); correct it"):
        identity_of("a b/c/d")


def test_a_folder_that_changes_while_it_is_read_is_refused(dataset, tmp_path):
    config = parse_data(mapping(dataset, text_field="body"))
    identity = data_identity(config)
    reading = HuggingFaceSource(config, identity).documents()
    next(reading)
    (dataset / "more.jsonl").write_text('{"body": "more", "n": 1}\n')
    with pytest.raises(ValueError, match=r"data.name=.* changed while it was read; run the command again"):
        list(reading)


def test_no_room_for_temporary_files_is_not_blamed_on_the_store(dataset, tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(28, "No space left on device", "/tmp/regrow-x")

    monkeypatch.setattr(huggingface.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ValueError, match=r"no folder for temporary files .*No space left.*; set TMPDIR"):
        opened(dataset, tmp_path / "corpora", text_field="body")


def test_an_empty_folder_and_a_revision_of_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder without data; give another"):
        identity_of(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"data.revision=main is of the hub, and .* is a folder"):
        identity_of(tmp_path, revision="main")


@pytest.mark.parametrize(
    "changes", [{"max_documents": 0}, {"held_out_fraction": 0}, {"vocab_size": 7}], ids=str
)
def test_a_bad_value_is_refused_with_its_name(changes):
    with pytest.raises(ValueError, match=f"data.{next(iter(changes))}="):
        parse_data(mapping("x", **changes))


def test_a_missing_library_is_named_with_what_installs_it(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setattr(documents.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the library datasets, .* run: pip install 'regrow\[hf\]'"):
        identity_of(tmp_path)


def test_a_dataset_of_the_hub_is_known_by_its_commit(monkeypatch):
    asked = []

    def answer(self, name, *, revision, timeout):
        asked.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(HfApi, "dataset_info", answer)
    newest, again = identity_of("some/dataset"), identity_of("some/dataset")
    assert newest == again == identity_of("some/dataset", revision="main")
    assert asked == [("some/dataset", None), ("some/dataset", "main")]  # once in a process
    assert identity_of("some/dataset", revision=COMMIT) == newest
    assert len(asked) == 2  # a commit is what it is
    assert (newest["name"], newest["revision"]) == ("some/dataset", COMMIT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("config", "en"), ("split", "test"), ("text_field", "body"), ("max_documents", 7)),
        *(("held_out_fraction", 0.1), ("vocab_size", 300), ("tokenizer", "bpe"), ("name", "another/dataset")),
    ],
)
def test_every_field_of_a_dataset_changes_its_identity(field, value):
    given = {"name": "some/dataset", "revision": COMMIT, "vocab_size": 299}
    assert identity_of(**{**given, field: value}) != identity_of(**given)


def test_an_unknown_dataset_of_the_hub_is_refused(monkeypatch):
    response = SimpleNamespace(headers={}, status_code=404, request=None)

    def missing(*_, **__):
        error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        HfHubHTTPError.__init__(error, "404: not found", response=response)
        raise error

    monkeypatch.setattr(HfApi, "dataset_info", missing)
    with pytest.raises(ValueError, match=r"data.name=no/such is not on the hub, or private; correct"):
        identity_of("no/such")


def test_a_prepared_dataset_of_a_given_commit_needs_no_hub(rows, tmp_path, monkeypatch):
    """The stream itself is a stand-in for what load_dataset gives; the second time nobody is asked."""
    config = parse_data(mapping("some/dataset", revision=COMMIT, text_field="body"))
    identity = data_identity(config)
    corpora = str(tmp_path / "corpora")
    with pytest.raises(ValueError, match="could not be asked for on the hub"):
        prepare_data(config, identity, corpora, lambda *_: None)
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **more: asked.append(more) or stream)
    prepare_data(config, identity, corpora, lambda *_: None)
    assert [more["revision"] for more in asked] == [COMMIT]
    monkeypatch.undo()
    prepare_data(config, identity, corpora, lambda *_: pytest.fail("prepared again"))
    assert sorted(read(open_data(identity, corpora))) == sorted(texts())


def test_nothing_is_said_or_written_outside_the_prepared_folder(rows, tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = (
        "import json, sys; from moe.data import *\n"
        "config = parse_data(json.loads(sys.argv[1]))\n"
        "prepare_data(config, data_identity(config), sys.argv[2], lambda *_: None)"
    )
    section = json.dumps(mapping(tmp_path / "dataset", text_field="body"))
    environment = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, section, str(tmp_path / "corpora")],
        capture_output=True, text=True, check=False, cwd=tiny.ROOT, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpora", "dataset"]
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == ["train.jsonl"]
