"""Any table of measurements, read for one question: y against x, over trunks."""

import warnings
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.table import SCRATCH_KINDS

TRUNK = "_trunk"  # our own column; `cluster` names the table's
FLAGS = ("read_off_plot", "flag")
PHASES = ("phase", "start_phase")
CONTROLS = ("continued", "sham")
NO_CLUSTER = (
    "No --cluster was given, so all rows count as one trunk: they are not independent of each other, and no "
    "interval can be given."
)
NO_BUDGET = (
    "The table does not say which budget its rows hold equal (no extra_flops, no total_flops): with equal "
    "total FLOPs the sign can differ."
)
TOLERANCE = 0.1  # whole steps: budgets meant to be equal may differ by a step


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a table: columns by name; a standard error is a column or one number for all rows."""

    x: str
    y: str
    given: tuple[str, ...] = ()
    given_se: str | float | None = None
    y_se: str | float | None = None
    cluster: str | None = None
    phase: str | None = None
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class Observations:
    """The rows that can answer, with columns `_trunk`, `_x` and `_se`, and notes on all that was left out."""

    rows: pd.DataFrame
    n_rows: int
    scratch: pd.Series
    phase: str | None
    flag: str | None
    notes: list[str] = field(default_factory=list)


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV file as a table; lines that begin with # are comments. What cannot be read is a `ValueError`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"FILE={path} is no file; give a CSV file with a line of column names")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        with warnings.catch_warnings():
            # Rows with more values than names: without this the first column would become an index.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(StringIO(text), index_col=False)
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())
    except pd.errors.ParserWarning:
        reason = "rows have more values than there are names"
    raise ValueError(f"FILE={path} is no CSV table ({reason}); its first line names the columns")


def observe(table: pd.DataFrame, question: Question) -> Observations:
    """The rows of `table` that can answer; a column that is not there or holds text is a `ValueError`.

    Left out, each with a note: controls (`kind` continued or sham), rows without x or y, infinite values, and
    with `log_x` rows whose x is not above 0.
    """
    q = question
    rows, notes = _numeric(table, q), []
    if q.cluster is None:
        notes.append(NO_CLUSTER)
    elif (unnamed := rows[q.cluster].isna()).any():
        rows = rows[~unnamed]
        notes.append(f"{_rows(unnamed)} left out: no {q.cluster}, so no trunk.")
    rows = rows.assign(**{TRUNK: rows[q.cluster].astype(str) if q.cluster else "the only trunk"})
    rows["_se"] = _errors(rows, q, notes)
    rows = _without_controls(rows, q, notes)
    missing = rows[[q.x, q.y]].isna().any(axis=1)
    if missing.any():
        notes.append(f"{_rows(missing)} left out: {q.x} or {q.y} is missing.")
    rows = rows[~missing]
    scratch = _scratch(rows, q.x)
    rows, scratch = _of_one_budget(rows, scratch, q, notes)
    rows, scratch = _with_x(rows, scratch, q, notes)
    flag = next((name for name in FLAGS if name in rows and _flagged(rows[name]).any()), None)
    if flag:
        notes.append(f"{_rows(_flagged(rows[flag]))} flagged {flag}: see the column without them.")
    phase = q.phase or next((name for name in PHASES if name in rows and rows[name].nunique() > 1), None)
    return Observations(rows=rows, n_rows=len(table), scratch=scratch, phase=phase, flag=flag, notes=notes)


def without_flagged(rows: pd.DataFrame, flag: str) -> pd.DataFrame:
    return rows[~_flagged(rows[flag])]


def _numeric(table: pd.DataFrame, q: Question) -> pd.DataFrame:
    """The table with the columns that are asked for as finite numbers or NaN."""
    errors = [("--given-se", q.given_se), ("--y-se", q.y_se)]
    numbers = [("--x", q.x), ("--y", q.y), *(("--given", name) for name in q.given)]
    numbers += [(option, name) for option, name in errors if isinstance(name, str)]
    labels = [("--cluster", q.cluster), ("--phase", q.phase)]
    for option, name in [*numbers, *((o, n) for o, n in labels if n is not None)]:
        if name not in table.columns:
            known = ", ".join(map(str, table.columns))
            raise ValueError(f"{option}={name} is no column of the table; choose one of {known}")
    if q.x == q.y or q.x in q.given or q.y in q.given:
        raise ValueError(f"--x={q.x}, --y={q.y} and --given={', '.join(q.given)} must be different columns")
    rows = table.copy()
    for option, name in numbers:
        as_number = pd.to_numeric(rows[name], errors="coerce")
        text = rows[name].notna() & as_number.isna()
        if text.any():
            shown = repr(rows[name][text].iloc[0])
            raise ValueError(f"{option}={name} holds {shown}, which is no number; give a column of numbers")
        rows[name] = as_number.astype(float).replace([np.inf, -np.inf], np.nan)
    return rows


def _errors(rows: pd.DataFrame, q: Question, notes: list[str]) -> pd.Series:
    """Standard errors of y: as given, else from `<y>_se`, else binomial from `n` items, else unknown."""
    if q.y_se is not None:
        errors = rows[q.y_se] if isinstance(q.y_se, str) else pd.Series(float(q.y_se), index=rows.index)
        if (errors < 0).any():
            raise ValueError(f"--y-se={q.y_se} is below 0; a standard error is 0 or more")
        return errors
    if f"{q.y}_se" in rows:
        notes.append(f"Evaluation errors from the column {q.y}_se.")
        return pd.to_numeric(rows[f"{q.y}_se"], errors="coerce")
    scale = accuracy_scale(rows, q.y)
    if scale and "n" in rows:
        notes.append("Evaluation errors: binomial, from n items; families and levels would weigh in too.")
        share, n = (rows[q.y] / scale).clip(0, 1), pd.to_numeric(rows["n"], errors="coerce")
        return scale * np.sqrt(share * (1 - share) / n.where(n >= 1))
    notes.append(f"Evaluation errors of {q.y} are not in the table (no {q.y}_se): give --y-se.")
    return pd.Series(np.nan, index=rows.index)


def accuracy_scale(rows: pd.DataFrame, name: str) -> float | None:
    """1 for accuracies as fractions, 100 for per cent, None for what is no accuracy by its name."""
    if "acc" not in name or rows[name].isna().all():
        return None
    return 1.0 if rows[name].abs().max() <= 1 else 100.0


def _without_controls(rows: pd.DataFrame, q: Question, notes: list[str]) -> pd.DataFrame:
    """Without rows that serve others; scratch has sunk nothing."""
    if "kind" not in rows:
        return rows
    control = rows["kind"].isin(CONTROLS)
    if control.any():
        notes.append(
            f"{_rows(control)} left out: controls ({', '.join(sorted(set(rows['kind'][control])))})."
        )
    if q.x == "sunk_flops":
        rows = rows.assign(sunk_flops=rows["sunk_flops"].mask(rows["kind"].isin(SCRATCH_KINDS), 0.0))
    return rows[~control]


def _scratch(rows: pd.DataFrame, x: str) -> pd.Series:
    if "kind" in rows:
        return rows["kind"].isin(SCRATCH_KINDS)
    if "growth_step" in rows:
        return pd.to_numeric(rows["growth_step"], errors="coerce") == 0
    return (rows[x] == 0) if x.startswith("sunk") else pd.Series(False, index=rows.index)


def _with_x(
    rows: pd.DataFrame, scratch: pd.Series, q: Question, notes: list[str]
) -> tuple[pd.DataFrame, pd.Series]:
    if not q.log_x:
        return rows.assign(_x=rows[q.x]), scratch
    positive = rows[q.x] > 0
    if not positive.all():
        notes.append(f"{_rows(~positive)} left out by --log-x: {q.x} is not above 0.")
    rows = rows[positive]
    return rows.assign(_x=np.log10(rows[q.x])), scratch[positive]


def _flagged(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values, errors="coerce").fillna(0) != 0


def _of_one_budget(
    rows: pd.DataFrame, scratch: pd.Series, q: Question, notes: list[str]
) -> tuple[pd.DataFrame, pd.Series]:
    """Says which budget the grown rows hold equal, and keeps the scratch rows that have it too.

    The sign of a headline on sunk FLOPs depends on the budget.
    """
    if not q.x.startswith("sunk") or rows.empty:
        return rows, scratch
    known = [name for name in ("extra_flops", "total_flops") if name in rows]
    if not known:
        notes.append(NO_BUDGET)
    for name in known:
        values = pd.to_numeric(rows[name], errors="coerce")
        grown = values[~scratch].dropna()
        if len(grown) and grown.min() > 0 and grown.max() <= (1 + TOLERANCE) * grown.min():
            notes.append(
                f"The rows hold {name} equal (within 10 %); with the other budget the sign can differ."
            )
            other = scratch & ~values.between((1 - TOLERANCE) * grown.min(), (1 + TOLERANCE) * grown.max())
            if other.any():
                notes.append(f"{_rows(other)} left out: scratch with other {name}.")
            return rows[~other], scratch[~other]
    if known:
        differ = " and ".join(known)
        notes.append(f"The rows differ in {differ} as well as in {q.x}: the two cannot be told apart.")
    return rows, scratch


def _rows(mask: pd.Series) -> str:
    return f"{int(mask.sum())} of {len(mask)} rows"
