"""The paper's claims C1–C11 (arXiv 2510.08008) and the verdict on each from stored studies."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.findings import (
    annealed_gains_less,
    both_beat_one,
    chain_beats_both,
    finished,
    gain_at_equal_total,
    gap_by_factor,
    interposition_over_stack,
    noise_helps,
    norms_rise_and_stack_steps,
    order_is_moot,
    rise_with_sunk,
    stable_under_both_norms,
)
from analysis.intervals import holm
from analysis.rates import at_tuned_rates
from analysis.verdict import Finding, Verdict, judged, numbers

TEXT = "_text"  # ends the name of a study that is the same on real text
DECIDED = (Verdict.AGREES, Verdict.DISAGREES, Verdict.NO_DIFFERENCE)


@dataclass(frozen=True)
class Claim:
    """`paper` is the paper's own number with its place; `studies` those of conf/study that are about it, and
    `tuned` those with a grid of rates, on which it is also measured at the best rate of each arm."""

    id: str
    statement: str
    paper: str
    studies: tuple[str, ...]
    measure: Callable[[pd.DataFrame], Finding | None]
    tuned: tuple[str, ...] = ()


def judge(cells: pd.DataFrame, correlation: dict[str, Any], delta: float) -> list[dict[str, Any]]:
    """Claims that the study's cells touch: id, statement, verdict, why, and the numbers behind them.

    `delta` (accuracy as a fraction) is the difference that counts as none. One trunk: all undecided.
    """
    found = [(claim, claim.measure(cells)) for claim in CLAIMS]
    n = int(finished(cells)["replicate"].nunique())
    return [_row(claim, finding, delta, n) for claim, finding in found if finding is not None]


def _row(claim: Claim, finding: Finding, delta: float, trunks_run: int) -> dict[str, Any]:
    verdict, why = judged(finding, delta, trunks_run)
    about = {"id": claim.id, "statement": claim.statement, "verdict": verdict.value, "why": why}
    return about | {"paper": claim.paper, "studies": list(claim.studies)} | numbers(finding)


def judge_together(studies: Mapping[str, pd.DataFrame], delta: float) -> list[dict[str, Any]]:
    """Every claim, on the first study made for it that touches it, p-values adjusted for all (Holm).

    A claim has a second row at the rate that was best on the other trunks (`rates` is then "tuned", else
    "fixed"), and further ones (`data` is then "text", else "synthetic") for studies named STUDY_text. A
    verdict for or against it stands only where the adjusted p-value is below .05, and is mixed where the two
    kinds of data differ. `study` is null for a claim that no study here touches.
    """
    rows = [
        row
        for claim in CLAIMS
        for rates in ("fixed", "tuned")
        for data in ("synthetic", "text")
        for row in _rows(claim, studies, delta, rates=rates, data=data)
    ]
    adjusted = holm({_name(row): row["p_value"] for row in rows if row["p_value"] is not None})
    return _agreed([_adjusted(row, adjusted) for row in rows])


def _rows(
    claim: Claim, studies: Mapping[str, pd.DataFrame], delta: float, *, rates: str, data: str
) -> Iterator[dict[str, Any]]:
    """The row of a claim on one kind of data at one choice of rates; none for text that was not run."""
    names = claim.studies if rates == "fixed" else claim.tuned
    names = tuple(f"{name}{TEXT}" for name in names) if data == "text" else names
    tables = {name: studies[name] for name in names if name in studies}
    if rates == "tuned":
        tables = {name: at_tuned_rates(table) for name, table in tables.items()}
    found = ((name, claim.measure(table)) for name, table in tables.items())
    study, finding = next(((name, f) for name, f in found if f is not None), (None, None))
    if finding is None and names and data == "synthetic":
        finding = Finding(per_trunk=(), what="", covered=False, needs=_not_run(names))
    if finding is not None:
        n = int(finished(studies[study])["replicate"].nunique()) if study else 0
        yield _row(claim, finding, delta, n) | {"rates": rates, "data": data, "study": study}


def _agreed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts that differ between the synthetic language and text become mixed, in both rows."""
    decided: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["verdict"] in DECIDED:
            decided.setdefault((row["id"], row["rates"]), {})[row["data"]] = row["verdict"]
    out = []
    for row in rows:
        found = decided.get((row["id"], row["rates"]), {})
        if row["data"] in found and len(set(found.values())) > 1:
            said = "; ".join(f"{data}: {verdict}" for data, verdict in found.items())
            row = row | {"verdict": Verdict.MIXED.value, "why": f"{row['why']} By data: {said}."}
        out.append(row)
    return out


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['id']} {row['rates']} {row['data']}"


def _not_run(studies: tuple[str, ...]) -> str:
    return f"No finished cells of study {' or '.join(studies)} are here."


def _adjusted(row: dict[str, Any], adjusted: Mapping[str, float]) -> dict[str, Any]:
    p = adjusted.get(_name(row))
    row |= {"p_holm": p}
    if p is None or p < 0.05 or row["verdict"] not in (Verdict.AGREES, Verdict.DISAGREES):
        return row
    if row["none_claimed"]:  # its verdict rests on the interval lying within ±δ, or beyond
        return row
    why = f"{row['why']} Among {len(adjusted)} claims that is no finding (p = {p:.2g} by Holm)."
    return row | {"verdict": Verdict.UNDECIDED.value, "why": why}


CLAIMS = (
    Claim(
        "C1",
        "With a fixed extra budget, final accuracy rises with sunk FLOPs.",
        "38.79 (scratch) to 48.99 % over 0 to 27 F_c, one trunk (Table 2)",
        ("fixed_extra", "timing"),
        rise_with_sunk,
    ),
    Claim(
        "C2",
        "With a fixed total budget, growing matches or beats scratch.",
        "45.03 % (scratch) against 46.12 to 48.53 % (Fig. 12)",
        ("fixed_total",),
        gain_at_equal_total,
    ),
    Claim(
        "C3",
        "Interposition beats stack once more than about 1 F_c is sunk, and not before.",
        "Fig. 3 and 5, no table",
        ("timing",),
        interposition_over_stack,
        tuned=("growth_lr",),
    ),
    Claim("C4", "The gap widens with factor 4.", "Fig. 4, no table", ("factor4",), gap_by_factor),
    Claim(
        "C5",
        "Expert weight norms rise with depth; stack makes a cliff at its seam, interposition none.",
        "norms rise by 10 % over 20 layers, stack falls by 9 % at its seam (§3.1)",
        ("norms",),
        norms_rise_and_stack_steps,
    ),
    Claim(
        "C6",
        "Duplicates with noise of α = 0.01 beat exact ones.",
        "about 1 point at equal loss (Fig. 7)",
        ("noise",),
        noise_helps,
    ),
    Claim(
        "C7",
        "Experts and top-k doubled together beat either alone.",
        "Fig. 8, no table",
        ("topk_variants",),
        both_beat_one,
    ),
    Claim(
        "C8",
        "Depth then width and width then depth end alike.",
        "Fig. 9, no table",
        ("order",),
        order_is_moot,
    ),
    Claim(
        "C9",
        "Annealed starts gain less than stable ones.",
        "last rows of Table 2, at one rate for all",
        ("annealed_starts",),
        annealed_gains_less,
        tuned=("annealed_starts",),
    ),
    Claim(
        "C10",
        "Trunk → depth → width beats scratch at equal extra FLOPs, and continuing at equal total FLOPs.",
        "64.17 against 57.99 and 61.21 % (§5)",
        ("chain",),
        chain_beats_both,
    ),
    Claim(
        "C11",
        "Growing is stable under pre-norm and post-norm.",
        "no table",
        ("norm_placement",),
        stable_under_both_norms,
    ),
)
