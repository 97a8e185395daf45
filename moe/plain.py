"""Dataclasses from plain YAML data, strictly, and back to canonical JSON and its digest. No torch here."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from enum import StrEnum
from functools import lru_cache
from typing import Any


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_positive(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        check(value > 0, f"{section}.{name}={value} must be above 0")


# --------------------------------------------------------------------------------------------------------
# Strict parsing


def parse(cls: Any, value: Any, path: str = "") -> Any:
    """Makes a `cls` of plain YAML data; an unknown or missing key or a wrong type is an error with its path.

    An int widens to a float field; a float never narrows to an int, nor a bool to either.
    """
    where = path or "the configuration"
    if type(value) is cls and cls in (int, str, bool):
        return value
    if dataclasses.is_dataclass(cls):
        return _parse_dataclass(cls, value, path)
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        assert len(options) == 1, f"{where}: only optional fields are unions here, not {cls}"
        return parse(options[0], value, path)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}={value!r} must be a list")
        return tuple(parse(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(cls, type) and issubclass(cls, StrEnum):
        try:
            return cls(value)
        except ValueError:
            choices = ", ".join(member.value for member in cls)
            message = f"{where}={value} is not a choice; choose one of {choices}"
            raise ValueError(message) from None
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not cls:
        raise ValueError(f"{where}={value!r} is {_kind(value)}; it must be {_KINDS[cls]}")
    if cls is float and not math.isfinite(value):
        raise ValueError(f"{where}={value} must be a finite number")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _kind(value: Any) -> str:
    return _KINDS.get(
        type(value), {type(None): "missing (null)", dict: "a group of keys"}.get(type(value), "a list")
    )


def _parse_dataclass(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{path or 'the configuration'}={value!r} must be a group of keys")
    hints, required = _hints(cls)
    names = list(hints)
    unknown = [key for key in value if key not in names]
    if unknown:
        dotted = ", ".join(f"{path}.{key}".lstrip(".") for key in unknown)
        raise ValueError(f"unknown key {dotted}; {path or 'the top level'} has: {', '.join(names)}")
    missing = [name for name in required if name not in value]
    if missing:
        raise ValueError(f"missing key {', '.join(f'{path}.{name}'.lstrip('.') for name in missing)}")
    return cls(**{key: parse(hints[key], item, f"{path}.{key}".lstrip(".")) for key, item in value.items()})


@lru_cache(maxsize=64)
def _hints(cls: Any) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass's fields in their order, and the names of those without a default."""
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    required = [f.name for f in fields if f.default is dataclasses.MISSING]
    return {f.name: hints[f.name] for f in fields}, required


# --------------------------------------------------------------------------------------------------------
# Identity


def added(absent: Any) -> Any:
    """A field added after a release: at this value, the old behaviour, it is no part of an identity."""
    return dataclasses.field(default=absent, metadata={"absent": absent})


def to_plain(value: Any) -> Any:
    """Dataclasses and enums as plain JSON data.

    A field added after a release declares `metadata={"absent": old_behaviour}` and is left out while it
    equals that constant, so that ids made before it existed stay what they were.
    """
    if value is None or type(value) in _KINDS:
        return value
    if isinstance(value, StrEnum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for name, absent in _identity_fields(type(value)):
            item = getattr(value, name)
            if absent is dataclasses.MISSING or item != absent:
                plain[name] = to_plain(item)
        return plain
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


@lru_cache(maxsize=64)
def _identity_fields(cls: Any) -> list[tuple[str, Any]]:
    fields = dataclasses.fields(cls)
    return [(f.name, f.metadata.get("absent", dataclasses.MISSING)) for f in fields]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and floats by `repr`; NaN and anything that is not plain data are refused."""
    return _ENCODER.encode(value)


def _plain_dataclass(value: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} has no canonical form: it is {type(value).__name__}, not plain data")
    return to_plain(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain_dataclass)


def digest(value: Any) -> str:
    """The first 12 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]
