"""What `recycle.py` is asked, strictly parsed."""

import os
import re
from dataclasses import dataclass
from enum import StrEnum

from moe.operator import Operator
from moe.operator_config import OperatorConfig
from moe.plain import check

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Task(StrEnum):
    GROW = "grow"
    VERIFY = "verify"
    NORMS = "norms"
    LINEAGE = "lineage"
    EXPORT = "export"

    @property
    def needs(self) -> tuple[str, ...]:
        """The folders that it takes."""
        alone = {Task.LINEAGE: ("target",), Task.NORMS: ("source",)}
        return alone.get(self, ("source", "target"))


@dataclass(frozen=True, kw_only=True, slots=True)
class RecycleGrowth(OperatorConfig):
    """The growth section; a chain is two calls, so `then` must be null."""

    then: None

    def __post_init__(self) -> None:
        self.check_operator()


@dataclass(frozen=True, kw_only=True, slots=True)
class RecycleConfig:
    """The keys of conf/recycle/config.yaml. Sizes are bytes, or numbers with a unit such as 2GiB."""

    do: Task
    source: str | None
    target: str | None
    plan: str | None
    growth: RecycleGrowth
    seed: int
    revision: str | None
    sunk_tokens: float | None
    sunk_flops: float | None
    verify: bool
    shard_size: str
    memory_limit: str
    threads: int | None

    def __post_init__(self) -> None:
        check(self.plan in (None, "only"), f"plan={self.plan} is not a choice; choose only or null")
        for name in self.do.needs:
            needed = not (name == "target" and self.plan == "only")
            check(
                getattr(self, name) is not None or not needed,
                f"{name} is missing; try python recycle.py do={self.do} "
                + " ".join(f"{key}=DIR" for key in self.do.needs),
            )
        for name in ("sunk_tokens", "sunk_flops"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name}={value} must be above 0, or null")
        check(self.threads is None or self.threads > 0, f"threads={self.threads} must be above 0, or null")
        for name in ("shard_size", "memory_limit"):
            num_bytes(name, getattr(self, name))

    @property
    def operator(self) -> Operator:
        return self.growth.operator(self.seed)

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


def num_bytes(name: str, text: str) -> int:
    """ "2GiB" in bytes; ValueError naming the key."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    known = match is not None and match[2].upper() in _UNITS
    check(known, f"{name}={text} is no size; write bytes or a number with KB, MB, GB, KiB, MiB or GiB")
    assert match is not None
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    check(size > 0, f"{name}={text} must be above 0")
    return size
