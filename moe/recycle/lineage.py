"""Where a grown checkpoint comes from, written with it and chained: growth.json, headers, model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe.files import read_whole_json
from moe.plain import check, digest, to_plain
from moe.recycle.plan import Plan, Size

FILE = "growth.json"
_HEADING = "## Grown with Regrow"


def identity_of(plan: Plan, shard_bytes: int) -> str:
    """What a draft must be a draft of to be gone on with: source files as they lie there, growth, shards."""
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in plan.source.files}
    return digest({"operator": to_plain(plan.operator), "files": files, "shard_bytes": shard_bytes})


def entry_of(plan: Plan, given: Mapping[str, Any], version: str) -> dict[str, Any]:
    """One growth as it is recorded; `given` are revision, sunk_tokens and sunk_flops, as the user said."""
    return {
        "operator": to_plain(plan.operator),
        "label": plan.operator.label,
        "exactness": plan.exactness.value,
        "source": plan.source.directory.name,
        **given,
        "before": _plain(plan.before),
        "after": _plain(plan.after),
        "regrow": version,
    }


def chained(source: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The growths of `source`, if it was grown, and this one."""
    return {"growths": [*growths_of(source), dict(entry)]}


def growths_of(directory: Path) -> list[dict[str, Any]]:
    """Every growth of a checkpoint, the first one first; none where it was not grown."""
    stored = read_whole_json(directory / FILE)
    return [] if stored is None else list(stored.get("growths", []))


def metadata_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """What goes into the header of every shard."""
    told = {name: entry[name] for name in ("operator", "source", "regrow")}
    return {"format": "pt", "regrow.growth": json.dumps(told, sort_keys=True)}


def card_of(source: Path, lineage: Mapping[str, Any]) -> str:
    """The model card of `source` with a section on how this one was grown, in the place of an older one."""
    path = source / "README.md"
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    before = card.split(_HEADING)[0].rstrip()
    return "\n".join(filter(None, [before, "" if before else None, _HEADING, "", *lines(lineage)])) + "\n"


def lines(lineage: Mapping[str, Any]) -> list[str]:
    """One line for each growth, in words."""
    out = []
    for nth, growth in enumerate(lineage["growths"], start=1):
        before, after = growth["before"], growth["after"]
        sunk = [f"{growth['sunk_tokens']:.3g} tokens"] if growth.get("sunk_tokens") else []
        sunk += [f"{growth['sunk_flops']:.3g} FLOPs"] if growth.get("sunk_flops") else []
        revision = f" at {growth['revision']}" if growth.get("revision") else ""
        operator = growth["operator"]
        drawn = f", noise {operator['noise_scale']:g}" if operator.get("noise_scale") else ""
        drawn += f", seed {operator['seed']}" if operator.get("seed") is not None else ""
        out.append(
            f"{nth}. {growth['label']}{drawn}: {growth['source']}{revision}"
            f"{', after ' + ' and '.join(sunk) if sunk else ''}; "
            f"{before['layers']} → {after['layers']} layers, {before['experts']} → {after['experts']} "
            f"experts, top-{before['top_k']} → top-{after['top_k']}, {before['total_params'] / 1e9:.3g}B → "
            f"{after['total_params'] / 1e9:.3g}B parameters; function: {growth['exactness']} "
            f"(regrow {growth['regrow']})"
        )
    return out


def read_lineage(directory: Path) -> dict[str, Any]:
    """growth.json of a grown checkpoint; ValueError where there is none."""
    check((directory / FILE).is_file(), f"target={directory} has no {FILE}: it was not grown by this tool")
    stored = read_whole_json(directory / FILE)
    check(stored is not None and "growths" in stored, f"{directory / FILE} is damaged")
    assert stored is not None
    return stored


def _plain(size: Size) -> dict[str, Any]:
    return {
        name: getattr(size, name)
        for name in ("layers", "experts", "top_k", "total_params", "activated_params")
    }
