"""Which evaluation a study is read by: accuracies of different questions are not held against each other."""

import pandas as pd


def main_evaluation(cells: pd.DataFrame) -> str:
    """The `eval_id` of the most finished cells, then of the most cells, then the first; "" of none."""
    named = cells[cells["eval_id"] != ""]
    counts = (named["status"] == "done").groupby(named["eval_id"]).agg(["sum", "size"])
    return (
        str(counts.sort_values(["sum", "size"], ascending=False, kind="stable").index[0])
        if len(counts)
        else ""
    )


def comparable(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the study's main evaluation, and those that name none."""
    return cells[cells["eval_id"].isin([main_evaluation(cells), ""])]


def mixture(cells: pd.DataFrame) -> str | None:
    """What to say of a study whose cells were asked different questions; None where all were asked alike."""
    counts = cells.loc[cells["eval_id"] != "", "eval_id"].value_counts()
    if len(counts) < 2:
        return None
    main = main_evaluation(cells)
    others = ", ".join(f"{name} ({n})" for name, n in sorted(counts.drop(main).items()))
    return (
        f"The cells were evaluated by different suites. Statistics and figures are of evaluation {main} "
        f"({_cells(counts[main])}) alone; left out: {others}."
    )


def _cells(n: int) -> str:
    return f"{n} cell{'s' if n != 1 else ''}"
