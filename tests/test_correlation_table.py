"""`python -m analysis.correlation FILE.csv`: the paper's rows, a study's cells, whatever else is given."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from planted import Effect, plant
from scipy import stats

from analysis.correlation.__main__ import main
from analysis.correlation.observations import Question
from analysis.correlation.table_report import table_report
from analysis.table import cells_table
from sweeps.store import Store

PAPER = tiny.ROOT / "analysis" / "paper" / "sunk_fixed_extra.csv"
ASKED = ["--x", "sunk_flops", "--y", "end_acc", "--given", "start_acc"]
X = np.arange(1.0, 7.0)


def ask(table: pd.DataFrame, **question) -> dict:
    report = table_report(table, Question(**{"x": "x", "y": "y", **question}))
    json.dumps(report, allow_nan=False)
    return report


def trunks(n: int, slope: float = 1.0, **columns) -> pd.DataFrame:
    random = np.random.default_rng(n)
    rows = pd.DataFrame({"x": np.tile(X, n), "t": np.repeat(np.arange(n), len(X))})
    rows["y"] = (
        50 + slope * rows["x"] + random.normal(size=n)[rows["t"]] + 0.3 * random.normal(size=len(rows))
    )
    return rows.assign(**columns)


@pytest.fixture(scope="module")
def of_paper(tmp_path_factory):
    out = tmp_path_factory.mktemp("paper") / "report.json"
    assert main([str(PAPER), *ASKED, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_the_papers_table_gives_the_published_correlations_with_and_without_scratch(of_paper):
    rows = pd.read_csv(PAPER)
    grown = rows[rows.growth_step > 0]
    for name, own in (("with scratch", rows), ("without scratch", grown)):
        found = of_paper["sets"][name]
        assert found["n_cells"] == len(own)
        assert found["pearson"] == pytest.approx(stats.pearsonr(own.sunk_flops, own.end_acc).statistic)
        assert found["kendall"] == pytest.approx(stats.kendalltau(own.sunk_flops, own.end_acc).statistic)
        slope = stats.theilslopes(own.end_acc, own.sunk_flops / found["theil_sen"]["per"])[0]
        assert found["theil_sen"]["slope"] == pytest.approx(slope)
        assert found["theil_sen"]["unit"] == "points per 1e21 sunk_flops"
    assert of_paper["sets"]["without read_off_plot"]["n_cells"] == 8


def test_the_papers_table_is_one_trunk_and_its_r_is_what_a_random_rise_gives(of_paper):
    found = of_paper["sets"]["without scratch"]
    assert of_paper["n_trunks"] == 1
    assert found["interval"] is found["cluster_bootstrap"] is found["mixed_model"] is None
    assert found["monotone_null"]["median"] == pytest.approx(0.98, abs=0.005)
    assert found["monotone_null"]["share_above"] > 0.95
    assert any("all rows count as one trunk" in note for note in of_paper["notes"])
    assert any("which budget" in note for note in of_paper["notes"])


def test_end_minus_start_is_flagged_as_no_finding(of_paper):
    (given,) = of_paper["given"]
    assert given["difference"]["pearson"] == pytest.approx(-0.91, abs=0.005)
    assert given["difference"]["if_all_y_were_equal"] == pytest.approx(-0.975, abs=0.0005)
    assert "is no finding" in given["difference"]["why"]
    assert "one trunk" in given["partial"]["refused"]


def test_what_the_terminal_shows_is_what_the_page_quotes(capsys):
    page = (tiny.ROOT / "docs" / "statistics.md").read_text()
    ((command, quoted),) = re.findall(
        r"```console\n\$ python -m analysis\.correlation ([^\n]*)\n(.*?)```", page, re.S
    )
    assert main([str(tiny.ROOT / part) if part.endswith(".csv") else part for part in command.split()]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    assert shown == quoted.strip().splitlines()


def test_eight_trunks_get_every_interval_and_the_planted_slope_is_inside():
    (found,) = ask(trunks(8), cluster="t")["sets"].values()
    intervals = [
        found["interval"]["theil_sen_slope"],
        found["mixed_model"]["slope_interval"],
        found["cluster_bootstrap"]["slope_within"],
    ]
    assert all(low < 1.0 < high for low, high in intervals)


@pytest.mark.parametrize(("n", "has"), [(2, []), (3, ["interval"]), (6, ["interval", "mixed_model"])])
def test_fewer_trunks_get_fewer_intervals_and_the_reason(n, has):
    (found,) = ask(trunks(n), cluster="t")["sets"].values()
    for name in ("interval", "mixed_model", "cluster_bootstrap"):
        assert (found[name] is not None) == (name in has)
        assert (found[f"no_{name}_because"] is None) == (name in has)


def test_phases_of_the_learning_rate_are_shown_apart():
    table = trunks(3).assign(phase=lambda rows: np.where(rows["x"] > 3, "annealed", "stable"))
    sets = ask(table, cluster="t")["sets"]
    assert {name: part["n_cells"] for name, part in sets.items()} == {
        "all rows": 18,
        "phase annealed": 9,
        "phase stable": 9,
    }


def test_a_logarithm_leaves_out_what_has_none_and_says_so():
    report = ask(pd.DataFrame({"x": [0.0, 1, 10, 100], "y": [5.0, 1, 2, 3]}), log_x=True)
    (found,) = report["sets"].values()
    assert found["pearson"] == pytest.approx(1)
    assert found["theil_sen"] == {"slope": pytest.approx(1), "per": 1, "unit": "y per factor of 10 in x"}
    assert any("1 of 4 rows left out by --log-x" in note for note in report["notes"])


def test_the_cells_of_a_report_read_as_the_report_itself(tmp_path):
    cells = cells_table(Store(plant(tmp_path, Effect(seeds=(0, 1, 2), methods=("stack",)))), "planted")
    cells.to_csv(tmp_path / "cells.csv", index=False)
    out = tmp_path / "out.json"
    words = ["--x", "sunk_flops", "--y", "final_acc", "--cluster", "replicate", "--json", str(out)]
    assert main([str(tmp_path / "cells.csv"), *words]) == 0
    report = json.loads(out.read_text())
    grown = cells[cells["kind"] == "branch"]
    assert report["sets"]["without scratch"]["pearson"] == pytest.approx(
        stats.pearsonr(grown["sunk_flops"], grown["final_acc"]).statistic
    )
    assert report["net"]["mean"] == pytest.approx(grown["net"].mean())
    scratch = report["sets"]["with scratch"]["n_cells"] - len(grown)
    assert scratch == 3  # one per trunk: those with the branches' extra budget
    assert any("controls (continued)" in note for note in report["notes"])


def test_errors_of_the_evaluation_come_from_items_where_no_column_has_them():
    table = pd.DataFrame({"x": X, "acc": [0.5, 0.4, 0.6, 0.5, 0.7, 0.5], "n": 100})
    report = ask(table, y="acc")
    error = np.sqrt(np.mean(table["acc"] * (1 - table["acc"]) / 100))
    assert report["sets"]["all rows"]["minimum_detectable"]["evaluation_se"] == pytest.approx(error)
    given = ask(table, y="acc", y_se=0.01)["sets"]["all rows"]["minimum_detectable"]
    assert given["evaluation_se"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (trunks(1).head(0), "Too few measured cells (0)"),
        (trunks(1).head(1), "Too few measured cells (1)"),
        (trunks(1, x=2.0), "All cells have the same x"),
        (trunks(1, y=2.0), "end at the same value"),
        (trunks(1, y=np.nan), "Too few measured cells (0)"),
        (trunks(1, eval_id=list("aabbbb")), "different suites (eval_id a, b)"),
    ],
)
def test_what_cannot_be_correlated_still_gets_a_report(table, reason, capsys, tmp_path):
    (found,) = ask(table)["sets"].values()
    assert reason in found["refused"]
    assert found["pearson"] is found["theil_sen"] is found["cluster_bootstrap"] is None
    table.to_csv(tmp_path / "table.csv", index=False)
    assert main([str(tmp_path / "table.csv"), "--x", "x", "--y", "y"]) == 0
    assert reason in " ".join(capsys.readouterr().out.split())


def test_missing_and_infinite_values_are_left_out_and_counted():
    report = ask(trunks(1, y=[1.0, np.nan, 2, np.inf, 4, 3]))
    assert report["n_cells"] == 4
    assert any("2 of 6 rows left out: x or y is missing" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--x", "sunk", "--y", "end_acc"],
            "--x=sunk is no column of the table; choose one of growth_step, sunk",
        ),
        (["--x", "sunk_flops", "--y", "end_acc", "--cluster", "seed"], "--cluster=seed is no column"),
        (["--x", "end_acc", "--y", "end_acc"], "must be different columns"),
        ([*ASKED, "--given-se", "-1"], "--given-se=-1 must be a standard error"),
    ],
)
def test_a_wrong_column_is_refused_in_one_line(words, message, capsys):
    assert main([str(PAPER), *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no CSV table"),
        ("# nothing but a comment\n", "is no CSV table"),
        ('x,y\n1,"a\n', "is no CSV table"),
        ("x,y\n1,2,3\n2,3,4\n", "rows have more values"),
        ("x,y\n1,high\n2,3\n", "--y=y holds 'high', which is no number"),
        (None, "is no file"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(text, message, tmp_path, capsys):
    path = Path(tmp_path / "table.csv")
    if text is not None:
        path.write_text(text)
    assert main([str(path), "--x", "x", "--y", "y"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_comment_lines_are_not_rows(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("# from a run\nx,y\n1,2\n# half way\n2,4\n3,5\n")
    out = tmp_path / "out.json"
    assert main([str(path), "--x", "x", "--y", "y", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["n_cells"] == 3
