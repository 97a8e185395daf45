"""Text of a Hugging Face dataset, streamed from the hub or a folder. datasets is imported when used."""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from moe.data.documents import Document, File, check_library, find_files, manifest_of, utf8
from moe.data.text import VERSION, check_held_out
from moe.data.tokenizer import check_vocabulary, tokenizer_file, tokenizer_identity
from moe.plain import check

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 20.0
_ROWS = 256  # taken from a dataset together


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceConfig:
    """Which dataset, which part of it, what it is cut into, and how it is split."""

    source: str
    name: str | None  # on the hub, or a folder
    config: str | None
    split: str
    text_field: str
    revision: str | None  # of the hub; null: the newest
    max_documents: int | None  # the first so many; null: all
    tokenizer: str
    vocab_size: int
    held_out_fraction: float

    def __post_init__(self) -> None:
        check(self.source == "huggingface", f"data.source={self.source} must be huggingface here")
        check(
            self.max_documents is None or self.max_documents > 0,
            f"data.max_documents={self.max_documents} must be above 0, or null for all",
        )
        check_held_out(self.held_out_fraction)
        check_vocabulary(self.tokenizer, self.vocab_size)

    @property
    def folder(self) -> Path | None:
        """The folder that `name` is; None if it is a dataset of the hub."""
        path = Path(self.name or "").expanduser()
        return path.resolve() if self.name and path.is_dir() else None


def huggingface_identity(config: HuggingFaceConfig) -> dict[str, Any]:
    """The commit of a dataset on the hub, or the manifest of a folder, and the part that is read.

    Asks the hub only where `revision` is not a commit; ValueError if it does not answer.
    """
    check_library("datasets", "data=huggingface")
    return {
        "version": VERSION,
        "source": "huggingface",
        "tokenizer": tokenizer_identity(config.tokenizer, config.vocab_size),
        "vocab_size": config.vocab_size,
        "held_out_fraction": config.held_out_fraction,
        "config": config.config,
        "split": config.split,
        "text_field": config.text_field,
        "max_documents": config.max_documents,
        **_what(config),
    }


def _what(config: HuggingFaceConfig) -> dict[str, str]:
    if config.folder is not None:
        check(
            config.revision is None,
            f"data.revision={config.revision} is of the hub, and data.name={config.name} is a folder; set it "
            "to null",
        )
        return {"manifest": manifest_of(_files(config.folder))}
    name = config.name or ""
    check(bool(name), "data.name is missing; give the name of a dataset on the hub, or a folder")
    check(
        name[:1] not in (".", "/", "~"),
        f"data.name={config.name} is not a folder; give a folder, or the name of a dataset on the hub",
    )
    revision = config.revision or ""
    commit = revision if _COMMIT.fullmatch(revision) else _commit(name, config.revision)
    return {"name": name, "revision": commit}


def _files(folder: Path) -> list[File]:
    found = find_files(folder, ("*",), ())
    shown = [file for file in found if not any(part.startswith(".") for part in file.name.split("/"))]
    check(any(file.size for file in shown), f"data.name={folder} is a folder without data; give another")
    return shown


@lru_cache(maxsize=64)
def _commit(name: str, revision: str | None) -> str:
    """The commit that the hub's dataset is at; ValueError if the hub does not say."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = "" if revision is None else f" (data.revision={revision})"
    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT_S).sha
    except GatedRepoError:
        rule, remedy = "is gated", "accept its terms on the hub and log in with: hf auth login"
    except RepositoryNotFoundError:
        rule, remedy = "is not on the hub, or private", "correct the name, or log in with: hf auth login"
    except RevisionNotFoundError:
        rule, remedy = "has no such revision", "give a commit, branch or tag of it"
    except HFValidationError as error:
        rule, remedy = f"is no name of a dataset ({_first_line(error)})", "correct it, or give a folder"
    except Exception as error:  # the hub's client raises its transport's errors, which differ by release
        rule = f"could not be asked for on the hub ({_first_line(error)})"
        remedy = "go online, give a folder, or give the full commit of a corpus prepared before"
    else:
        assert commit is not None, name
        return commit
    raise ValueError(f"data.name={name}{at} {rule}; {remedy}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class HuggingFaceSource:
    """The documents that an identity names."""

    def __init__(self, config: HuggingFaceConfig, identity: dict[str, Any]) -> None:
        self._config, self._identity = config, identity
        self.total_bytes: int | None = None  # nobody knows before the end
        self.tokenizer_file = tokenizer_file(config.tokenizer)

    def documents(self) -> Iterator[Document]:
        """Every document that is not empty; ValueError naming the row of what is not text."""
        behind = 0
        where = f"data.name={self._config.name} split {self._config.split}"
        for row, value in enumerate(self._values(), start=1):
            content = utf8(value, f"{where} row {row}")
            behind += len(content)
            if content:
                yield Document(content, behind)
        if self._config.folder is not None:
            check(
                _what(self._config)["manifest"] == self._identity["manifest"],
                f"data.name={self._config.name} changed while it was read; run the command again",
            )

    def _values(self) -> Iterator[Any]:
        left = self._config.max_documents
        with _temporary_folder() as cache:
            for values in self._batches(cache):
                values = values if left is None else values[:left]
                yield from values
                if left is not None:
                    left -= len(values)
                    if left == 0:
                        return

    def _batches(self, cache: str) -> Iterator[list[Any]]:
        config = self._config
        try:
            dataset = _open(config, self._identity.get("revision"), cache)
            fields = dataset.column_names
            if fields is not None:
                _check_field(config, list(fields))
                dataset = dataset.select_columns([config.text_field])
            for batch in dataset.iter(batch_size=_ROWS):
                _check_field(config, list(batch))
                yield batch[config.text_field]
        except ValueError as error:
            if str(error).startswith("data."):
                raise
            raise ValueError(_unreadable(config, error)) from error
        except Exception as error:  # datasets raises whatever its readers and the network raise
            raise ValueError(_unreadable(config, error)) from error


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="regrow-")
    except OSError as error:
        raise ValueError(
            f"no folder for temporary files can be made ({error.strerror}); set TMPDIR to one that has room"
        ) from error


def _unreadable(config: HuggingFaceConfig, error: Exception) -> str:
    return (
        f"data.name={config.name}, data.config={config.config}, data.split={config.split} cannot be read "
        f"({_first_line(error)}); correct these keys, or run the command again if the network failed"
    )


def _check_field(config: HuggingFaceConfig, fields: list[str]) -> None:
    check(
        config.text_field in fields,
        f"data.text_field={config.text_field} is not in data.name={config.name}; set it to one of its "
        f"fields: {', '.join(fields)}",
    )


def _open(config: HuggingFaceConfig, revision: str | None, cache: str) -> Any:
    """The split as a dataset that has `column_names`, `select_columns` and `iter`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()  # what is prepared has a bar of its own
    folder = config.folder
    if folder is not None and any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        return _saved(config, datasets.load_from_disk(str(folder)))
    if folder is None:
        _commit(str(config.name), revision)  # fails at once where load_dataset tries for half a minute
    return datasets.load_dataset(
        str(folder or config.name),
        config.config,
        split=config.split,
        revision=revision,
        streaming=True,
        cache_dir=cache,
        download_config=datasets.DownloadConfig(cache_dir=cache, disable_tqdm=True),
    )


def _saved(config: HuggingFaceConfig, dataset: Any) -> Any:
    """The split of what `save_to_disk` wrote."""
    check(
        config.config is None,
        f"data.config={config.config}: data.name={config.name} was written by save_to_disk and has no "
        "configurations; set it to null",
    )
    splits = dataset if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}
    check(
        config.split in splits,
        f"data.split={config.split} is not in data.name={config.name}; choose of {', '.join(splits)}",
    )
    return splits[config.split]
