"""The report's place in docs/measurements.md: one section of each machine. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from section import Section

PATH = Path(__file__).resolve().parent.parent / "docs" / "measurements.md"
_DATE = r"\d{4}-\d{2}-\d{2}"


def written(page: str, date: str, machine: str, described: str, sections: Sequence[Section]) -> str:
    """The page with `sections` in the machine's own part of it.

    They replace those of the same titles, which the others outlive with their dates; a machine that has no
    part yet gets the first one, as the newest stand first.
    """
    heading = f"`make bench` on {machine}"
    parts = re.split(r"(?m)^(?=## )", page)
    ours = [
        place for place, part in enumerate(parts) if re.match(rf"## {_DATE}: {re.escape(heading)}\n", part)
    ]
    earlier = _sections(parts[ours[0]]) if ours else {}
    texts = earlier | {each.title: f"### {each.title} ({date})\n\n{each.text.strip()}\n" for each in sections}
    part = "\n".join([f"## {date}: {heading}\n", f"{described}.\n", *texts.values()]) + "\n"
    if ours:
        parts[ours[0]] = part
    else:
        parts.insert(1, part)
    return "".join(parts)


def _sections(part: str) -> dict[str, str]:
    """Their text by title, without the date."""
    found = re.split(r"(?m)^(?=### )", part)[1:]
    titles = [re.match(rf"### (.*?)(?: \({_DATE}\))?\n", text) for text in found]
    return {title[1]: text.strip() + "\n" for title, text in zip(titles, found, strict=True) if title}
