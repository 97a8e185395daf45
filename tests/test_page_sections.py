"""Sections of the study's page below the page: what is printed is what was computed."""

import json

import numpy as np
import pandas as pd
import pytest
from planted import F_C, Effect, plant

from analysis.arm_laws import CONTINUED
from analysis.correlation import correlate
from analysis.downloads import downloads
from analysis.laws_section import laws_section
from analysis.provenance import machines, paper_provenance, study_provenance
from analysis.statistics_section import statistics_rows
from analysis.table import cells_table
from sweeps.store import Store

SLOPE, NET, RHO, EIGHT = 0.01, 0.03, 0.5, tuple(range(8))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("sections")
    small = {"growth_steps": (100, 200, 400), "extra_steps": 20, "tokens_per_step": 65536, "seeds": EIGHT}
    plant(root, Effect(slope=SLOPE, net=NET, items=200_000, **small))

    def loss(arm, sunk, extra):
        return 1.5 + 0.9 * ((1.0 if arm == CONTINUED else RHO) * sunk + extra) ** -0.3

    few = small | {"seeds": (0, 1, 2), "seed_spread": 0.0005, "growth_steps": (50, 100, 200, 400)}
    plant(root, Effect(name="law", loss=loss, methods=("stack",), items=2_000_000, **few))
    return Store(root)


@pytest.fixture(scope="module")
def statistics(store):
    return statistics_rows(correlate(cells_table(store, "planted")))


def number(text):
    return float(text.replace("−", "-"))


def ends(text):
    low, high = text.split(" to ")
    return number(low), number(high)


@pytest.mark.parametrize("interval", ["interval", "mixed_interval", "bootstrap"])
def test_every_interval_of_the_slope_holds_the_planted_one(statistics, interval):
    rows = [row for row in statistics["slopes"] if row["y"] == "final accuracy"]
    planted = 100 * SLOPE * 1e12 / F_C
    assert {row["arm"] for row in rows} == {"stack", "interposition", "all ways"}
    for row in rows:
        low, high = ends(row[interval])
        assert low - 0.02 * planted < planted < high + 0.02 * planted
        assert high - low < 0.1 * planted


def test_means_of_net_hold_the_planted_net_and_are_above_the_least_to_be_seen(statistics):
    rows = [row for row in statistics["means"] if row["y"] == "net"]
    assert len(rows) == 3
    for row in rows:
        low, high = ends(row["interval"])
        assert low - 0.05 < 100 * NET < high + 0.05
        assert 0 < number(row["least"]) < 100 * NET
        assert row["p"] == "< .001"


def test_with_eight_trunks_no_interval_is_refused_and_with_three_two_kinds_are(store, statistics):
    assert statistics["why"] == []
    few = cells_table(store, "planted")
    few = few[few["seed"] < 3]
    assert statistics_rows(correlate(few))["why"] == [
        "No mixed model: it takes 6 trunks with 3 cells and 2 values of x.",
        "No cluster bootstrap: it takes 8.",
    ]


def test_one_way_of_growing_is_not_shown_twice(store):
    rows = statistics_rows(correlate(cells_table(store, "law")))
    assert [row["arm"] for row in rows["coefficients"] if row["y"] == "net"] == ["stack"]


@pytest.fixture(scope="module")
def laws(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("laws")
    return laws_section(cells_table(store, "law"), folder, resamples=40), pd.read_csv(folder / "laws.csv")


def test_the_laws_section_recovers_the_planted_efficiency(laws):
    section, table = laws
    assert not section.refused
    found = table[(table["parameter"] == "ρ") & (table["law"] == "effective")].iloc[0]
    assert found["value"] == pytest.approx(RHO, abs=0.05)
    assert found["low"] - 0.03 < RHO < found["high"] + 0.03
    shown = [row["rho"] for row in section.rows if row["rho"] != "–"]
    assert f"{found['value']:.3g} (" in " ".join(shown)
    assert section.rows[-1]["arm"] == CONTINUED


def test_the_error_at_the_latest_start_is_small_where_the_law_is_the_planted_one(laws):
    _, table = laws
    effective = table[table["law"] == "effective"]
    assert (effective["left_out_error"] < 0.01).all()
    assert np.isfinite(table["value"]).all()


def test_provenance_names_seeds_trajectories_evaluations_and_machines(store):
    cells = cells_table(store, "planted")
    trunk = cells.loc[cells["kind"] == "branch", "trunk_id"].iloc[0]
    attempt = store.folder(trunk) / "attempts" / "01"
    attempt.mkdir(parents=True)
    line = {"task": "a@1", "wall_s": 1.0, "processor": "Chip, 2 cores", "device": "cpu", "threads": 1}
    (attempt / "timing.jsonl").write_text((json.dumps(line) + "\n") * 2)
    assert machines(store, [trunk, trunk[::-1]]) == "Chip, 2 cores on cpu, 1 thread (2 tasks)"
    for found in (
        study_provenance(store, "planted", cells, "python report.py"),
        paper_provenance(store, {"planted": cells}, "python report.py"),
    ):
        facts = found["facts"]
        assert facts["seeds"] == "0, 1, 2, 3, 4, 5, 6, 7"
        assert facts["evaluations (eval_id)"] == "full00000000"
        assert facts["machines"] == "Chip, 2 cores on cpu, 1 thread (2 tasks)"
        assert facts["command"] == "python report.py"
        assert trunk in found["trunks"]
        assert str(store.root) not in json.dumps(found)


def test_downloads_leave_out_figures_that_were_not_drawn():
    figures = [{"file": "figures/a", "pictures": {"light": ""}}, {"file": "figures/b", "pictures": {}}]
    found = downloads(["cells.csv"], figures)
    assert found["figures"] == ["figures/a"]
    assert [name for name, _ in found["files"]] == ["cells.csv"]
