"""The table of claims outside the page: LaTeX for a paper, Markdown for a repository."""

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.verdict import points


def label(row: Mapping[str, Any]) -> str:
    """What a row of the claims table is called: C3, or "C3, tuned rates, text"."""
    more = ["tuned rates"] * (row["rates"] == "tuned") + ["text"] * (row["data"] == "text")
    return ", ".join([row["id"], *more])


def ours(row: Mapping[str, Any]) -> str:
    """Our number in percentage points, with its 95 % interval where there is one."""
    if row["effect"] is None:
        return "–"
    interval = row["interval"]
    between = f" ({points(interval[0])} to {points(interval[1])})" if interval else ""
    return points(row["effect"]) + between


def least(row: Mapping[str, Any]) -> str:
    """The least effect to be seen, in points."""
    value = row["minimum_detectable"]
    return "–" if value is None else f"{100 * value:.1f}"


def latex(claims: Iterable[Mapping[str, Any]]) -> str:
    """booktabs, one row a claim."""
    lines = [r"\begin{tabular}{llrrl}", r"\toprule"]
    lines += [r"claim & verdict & effect (95\,\% interval), points & trunks & the paper \\", r"\midrule"]
    for row in claims:
        low, high = (f"{100 * end:+.1f}" for end in row["interval"]) if row["interval"] else ("", "")
        effect = "--" if row["effect"] is None else f"{100 * row['effect']:+.1f}"
        number = f"${effect}$ (${low}$ to ${high}$)" if low else effect
        paper = row["paper"].replace("%", r"\%").replace("→", r"$\to$")
        verdict = row["verdict"].replace("±δ", r"$\pm\delta$")
        lines.append(rf"{label(row)} & {verdict} & {number} & {row['n_trunks']} & {paper} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def markdown(claims: Iterable[Mapping[str, Any]]) -> str:
    """A row for each claim, and below the table why, a line each."""
    claims = list(claims)
    columns = ["", "claim", "verdict here", "ours, points (95 % interval)", "trunks"]
    columns += ["least effect to be seen", "the paper"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in claims:
        cells = [label(row), row["statement"], f"**{row['verdict']}**", ours(row), str(row["n_trunks"])]
        lines.append(
            "| " + " | ".join(cell.replace("|", r"\|") for cell in [*cells, least(row), row["paper"]]) + " |"
        )
    why = [f"- **{label(row)}**: {row['why']}" for row in claims]
    return "\n".join([*lines, "", *why, ""])
