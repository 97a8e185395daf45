"""Figures of the paper and beyond, by their tables: planted truth, captions, refusals."""

import json
import re
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import tiny
from planted import Effect, norm_at, plant, plant_norms
from scipy import stats

from analysis.curves import curves
from analysis.figures.budgets import budget_map, recycling_efficiency
from analysis.figures.catalogue import FIGURES, StudyTables, draw, drawable
from analysis.figures.cosines import moment_and_update_cosines
from analysis.figures.gaps import gap_by_depth_factor, gap_by_growth_timing, method_gaps
from analysis.figures.lineage import MAX_ROWS, lineage_tree
from analysis.figures.mediation import mediation_panel
from analysis.figures.methods import (
    growth_orders,
    stack_and_interposition,
    stack_and_interposition_at_the_larger_size,
    top_k_variants,
)
from analysis.figures.noise import noise_scales
from analysis.figures.norms import norm_profiles, norms_over_training, seam_norms_beside_the_paper
from analysis.figures.recovery import recovery_cost
from analysis.figures.style import themed
from analysis.figures.sunk import main_effect_with_sunk_area
from analysis.figures.totals import chain_along_total_flops, fixed_total
from analysis.figures.trunk import trunk_with_growth_points
from analysis.growths import TWINS
from analysis.recovery import recovery_costs
from analysis.updates import COLUMNS as UPDATES
from sweeps.store import Store

SEEDS, SMALL, LAYERS = (0, 1, 2), {"seeds": (0, 1, 2), "extra_steps": 80}, 4
WIDTHS = ("duplicate", "experts_only", "top_k_only", "split")
COSTS = {"duplicate": 1.45, "experts_only": 1.01, "top_k_only": 1.44, "split": 1.0}
ALPHAS = {"none": 0.0, "little": 1e-3, "much": 1e-1}
DEEP = {f"{method}{g}": (method, g) for method in ("stack", "interposition") for g in (2, 3, 4)}
WIDE = {"method": "none", "width_factor": 2, "depth_factor": 1}
BOTH = {"method": "interposition", "width_method": "duplicate", "width_factor": 2}
CHAINS = {"dw": "interposition → duplicate", "wd": "duplicate → interposition"}
STUDIES = {
    "timing": Effect(
        name="timing", **SMALL, growth_steps=(40, 100, 300), net=0.02, method_gain=0.03, items=200_000
    ),
    "total": Effect(
        name="total",
        **SMALL,
        growth_steps=(40, 100),
        methods=("interposition",),
        fixed_total=True,
        controls=("continued", "scratch_total"),
    ),
    "factors": Effect(
        name="factors",
        **SMALL,
        growth_steps=(100,),
        methods=tuple(DEEP),
        settings={name: {"method": method, "depth_factor": g} for name, (method, g) in DEEP.items()},
        gains={f"interposition{g}": 0.02 * g for g in (2, 3, 4)},
        items=200_000,
    ),
    "noise": Effect(
        name="noise",
        **SMALL,
        growth_steps=(100,),
        methods=(*ALPHAS, "random"),
        settings={name: WIDE | {"width_method": "duplicate", "noise_scale": a} for name, a in ALPHAS.items()}
        | {"random": WIDE | {"width_method": "random_experts"}},
        gains={"much": -0.05, "random": -0.1},
    ),
    "widths": Effect(
        name="widths",
        **SMALL,
        growth_steps=(100,),
        methods=WIDTHS,
        settings={name: WIDE | {"width_method": name} for name in WIDTHS},
        step_cost=COSTS,
    ),
    "orders": Effect(
        name="orders",
        **SMALL,
        growth_steps=(100,),
        methods=("interposition", "dw", "wd"),
        chained=tuple(CHAINS),
        settings={name: BOTH | {"growth": growth} for name, growth in CHAINS.items()},
        step_cost={"dw": 2.0, "wd": 2.0},
    ),
}


@pytest.fixture(scope="module")
def read(store):
    """A study's tables, each read once."""
    return lru_cache(lambda study: StudyTables(store, study))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    for effect in STUDIES.values():
        plant(root, effect)
    plant(root, Effect(name="norms", seeds=SEEDS, growth_steps=(100,), extra_steps=80))
    return Store(plant_norms(root, LAYERS, "norms"))


@pytest.fixture(autouse=True)
def theme():
    with themed():
        yield


def step_flops(study: str) -> float:
    return 6.0 * STUDIES[study].trunk_params * STUDIES[study].tokens_per_step


def test_every_figure_of_the_list_is_in_the_catalogue_with_studies_that_exist():
    wanted = [*(f"F{i}" for i in range(1, 15)), "T1", "T2", *(f"N{i}" for i in range(1, 9))]
    assert list(FIGURES) == wanted
    assert len({entry.name for entry in FIGURES.values()}) == len(FIGURES)
    for entry in FIGURES.values():
        assert entry.studies
        for study in entry.studies:
            assert (tiny.ROOT / "conf" / "study" / f"{study}.yaml").is_file()


def test_a_study_without_cells_leaves_out_every_figure_and_says_why(tmp_path):
    (tmp_path / "studies" / "bare").mkdir(parents=True)
    found = list(drawable(StudyTables(Store(tmp_path), "bare")))
    assert len(found) == len(FIGURES)
    for entry, drawing in found:
        assert isinstance(drawing, str), entry.id
        assert drawing.endswith("."), entry.id


def test_of_one_cell_only_what_one_cell_can_show_is_drawn(tmp_path):
    one = Effect(growth_steps=(60,), methods=("stack",), extra_steps=60)
    found = list(drawable(StudyTables(Store(plant(tmp_path, one)), "planted")))
    assert [entry.id for entry, drawing in found if not isinstance(drawing, str)] == [
        *("F10", "F11", "N6", "N7")
    ]


def test_a_table_that_no_store_holds_is_asked_for_by_name(read):
    with pytest.raises(ValueError, match="budget_map was not given"):
        draw(FIGURES["N1"], read("timing"))


def test_the_main_effect_has_the_area_of_what_was_sunk_below_it(read):
    cells = read("timing")["cells"]
    table, figure = main_effect_with_sunk_area(cells)
    grown = cells[(cells["kind"] == "branch") & (cells["arm"] == "stack")]
    line = table[table["series"] == "stack"].set_index("sunk_flops")["mean_pct"]
    assert np.allclose(line, 100 * grown.groupby("sunk_flops")["final_acc"].mean())
    assert "18 grown cells" in table.attrs["caption"]
    assert "3 trunks (seeds 0, 1, 2)" in table.attrs["caption"]
    sunk, extra = (area.get_paths()[0].vertices for area in figure.axes[1].collections)
    assert sunk[:, 1].max() * 1e12 == pytest.approx(grown["sunk_flops"].max())
    assert extra[:, 1].max() * 1e12 == pytest.approx((grown["sunk_flops"] + grown["extra_flops"]).max())


def test_the_main_effect_is_refused_where_the_extra_budget_varies(read):
    with pytest.raises(ValueError, match="one fixed extra budget"):
        main_effect_with_sunk_area(read("total")["cells"])


def test_stack_and_interposition_stand_side_by_side_at_each_growth_step(read):
    points = read("timing")["curves"]
    table, figure = stack_and_interposition(points)
    assert len(figure.axes) == 6
    assert set(table["series"]) == {"stack", "interposition", "continued", "scratch"}
    end = table[(table["source"] == "full") & (table["kind"] == "branch")]
    cells = read("timing")["cells"]
    wanted = cells[cells["kind"] == "branch"].groupby(["sunk_flops", "arm"], sort=True)["final_acc"].mean()
    assert np.allclose(sorted(end["acc"]), sorted(wanted))
    assert (end["n_trunks"] == 3).all()
    assert "18 grown cells, 3 trunks (seeds 0, 1, 2)" in table.attrs["caption"]
    with pytest.raises(ValueError, match="by stack and by interposition"):
        stack_and_interposition(points[points["method"] != "stack"])


def test_the_larger_size_is_the_largest_trunk_and_no_small_one(read, tmp_path):
    with pytest.raises(ValueError, match="study=timing at model=micro"):
        stack_and_interposition_at_the_larger_size(read("timing")["curves"])
    large = Effect(growth_steps=(40,), extra_steps=40, trunk_params=1_000_000)
    table, _ = stack_and_interposition_at_the_larger_size(curves(Store(plant(tmp_path, large)), "planted"))
    assert table.attrs["caption"].startswith("At N_a = 1e+06.")


def test_gaps_are_paired_per_trunk_and_their_interval_is_that_of_t(read):
    cells = read("timing")["cells"]
    gaps = method_gaps(cells)
    assert len(gaps) == 9
    assert gaps["accuracy_gap"].mean() == pytest.approx(3.0, abs=0.3)
    table, _ = gap_by_growth_timing(cells)
    means = table[table["mean_gap"].notna() & (table["panel"] == "accuracy gap")]
    for _, row in means.iterrows():
        own = gaps.loc[np.isclose(gaps["sunk_f_c"], row["sunk_f_c"]), "accuracy_gap"]
        low, high = stats.t.interval(0.95, 2, own.mean(), stats.sem(own))
        assert (row["mean_gap"], row["low"], row["high"]) == pytest.approx((own.mean(), low, high))
    assert "95 %, t over 3 trunks" in table.attrs["caption"]


def test_settings_of_one_trunk_do_not_narrow_the_interval_of_the_gap(read):
    cells = read("timing")["cells"]
    once, _ = gap_by_growth_timing(cells)
    again = cells.assign(growth_lr=0.01, cell_id=cells["cell_id"] + "again")
    twice, _ = gap_by_growth_timing(pd.concat([cells, again]))
    pd.testing.assert_frame_equal(once[["low", "high"]], twice[["low", "high"]])


def test_two_trunks_have_a_gap_without_an_interval(read):
    cells = read("timing")["cells"]
    table, _ = gap_by_growth_timing(cells[cells["seed"] < 2])
    assert table["mean_gap"].notna().any()
    assert table["low"].isna().all()
    assert "No interval" in table.attrs["caption"]


def test_one_growth_step_has_no_timing(read):
    with pytest.raises(ValueError, match="two growth steps"):
        gap_by_growth_timing(read("factors")["cells"])


def test_the_gap_by_factor_is_what_was_planted(read):
    points, cells = read("factors")["curves"], read("factors")["cells"]
    table, figure = gap_by_depth_factor(points, cells)
    means = table[(table["panel"] == "accuracy gap") & table["mean_gap"].notna()]
    assert means["depth_factor"].tolist() == [2, 3, 4]
    assert means["mean_gap"].to_numpy() == pytest.approx([4.0, 6.0, 8.0], abs=0.3)
    assert len(figure.axes) == 8
    two = cells[(cells["kind"] != "branch") | (cells["depth_factor"] == 2)]
    with pytest.raises(ValueError, match="two depth factors"):
        gap_by_depth_factor(points, two)


def test_noise_scales_end_where_their_cells_do_beside_random_experts_and_continued(read):
    cells = read("noise")["cells"]
    table, _ = noise_scales(read("noise")["curves"], cells)
    ends = table[(table["panel"] == "end") & (table["quantity"] == "final_acc")].set_index("series")["mean"]
    grown = cells[cells["kind"] == "branch"]
    for alpha, name in ((0.0, "α = 0"), (1e-3, "α = 0.001"), (1e-1, "α = 0.1")):
        own = grown[(grown["width_method"] == "duplicate") & (grown["noise_scale"] == alpha)]
        assert ends[name] == pytest.approx(100 * own["final_acc"].mean())
    random = grown.loc[grown["width_method"] == "random_experts", "final_acc"]
    assert ends["random experts"] == pytest.approx(100 * random.mean())
    assert ends["continued"] == pytest.approx(
        100 * cells.loc[cells["kind"] == "continued", "final_acc"].mean()
    )
    with pytest.raises(ValueError, match="fewer than two noise scales"):
        noise_scales(read("widths")["curves"], cells)


def test_top_k_variants_compare_at_equal_flops_and_at_the_tokens_that_all_reach(read):
    table, _ = top_k_variants(read("widths")["curves"])
    tokens, per_step = table[table["x_is"] == "extra_tokens"], STUDIES["widths"].tokens_per_step
    budget = STUDIES["widths"].extra_steps
    ends = tokens[tokens["source"] == "full"].set_index("series")["x"]
    assert ends["duplicate: 2E and 2k"] == int(budget / 1.45) * per_step
    assert ends["split: 2E and 2k, half as wide"] == budget * per_step
    steps = int(budget / 1.45)
    assert tokens["shared_tokens"].unique() == [(steps - steps // 5) * per_step]
    flops = table[(table["x_is"] == "extra_flops") & (table["source"] == "full")]["x"]
    assert flops.max() / flops.min() < 1.03
    with pytest.raises(ValueError, match="Fewer than two ways of widening"):
        top_k_variants(read("noise")["curves"])


def test_arms_of_one_width_but_other_settings_are_not_drawn_as_one(read):
    points = read("widths")["curves"]
    moved = points.assign(arm=points["arm"] + ", rate 0.1", cell_id=points["cell_id"] + "b")
    table, _ = top_k_variants(pd.concat([points, moved[moved["kind"] == "branch"]]))
    assert {"top-k only: 2k", "top-k only: 2k, rate 0.1"} <= set(table["series"])


def test_orders_mark_the_second_growth_of_each_chain(read):
    table, figure = growth_orders(read("orders")["curves"])
    assert set(CHAINS.values()) <= set(table["series"])
    steps = int(STUDIES["orders"].extra_steps / 2.0)
    second = (steps - steps // 5) // 2 * 2.0 * step_flops("orders")
    verticals = [line for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    scale = 10 ** (3 * int(np.log10(table["x"].max()) / 3))
    assert len(verticals) == 2
    for line in verticals:
        assert line.get_xdata()[0] * scale == pytest.approx(second, rel=0.03)
    with pytest.raises(ValueError, match="in two orders"):
        growth_orders(read("timing")["curves"])


def test_under_one_total_scratch_stands_at_share_zero_and_continued_at_one(read):
    cells = read("total")["cells"]
    table, _ = fixed_total(read("total")["curves"], read("total")["trunks"], cells)
    shares = table[table["panel"] == "share"].set_index("series")
    assert shares.loc["scratch, equal total", "sunk_share"] == 0
    assert shares.loc["continued, never grown", "sunk_share"] == 1
    grown = cells[cells["kind"] == "branch"]
    wanted = (grown["sunk_flops"] / grown["total_flops"]).groupby(grown["growth_step"]).mean()
    assert shares.loc["interposition", "sunk_share"].tolist() == pytest.approx(wanted.tolist())
    with pytest.raises(ValueError, match="one total budget"):
        fixed_total(read("timing")["curves"], read("timing")["trunks"], read("timing")["cells"])


def test_the_chain_is_drawn_from_the_trunk_on_with_both_growths(read):
    table, _ = chain_along_total_flops(read("orders")["curves"], read("orders")["trunks"])
    events = table[table["series"] == "growth"]
    assert events["total_flops"].iloc[0] == pytest.approx(100 * step_flops("orders"))
    assert set(events["grown"]) == {"trunk", *CHAINS.values()}
    assert {"trunk", "interposition", "continued", "scratch"} <= set(table["series"])
    trunk = table[table["series"] == "trunk"]
    assert trunk["total_flops"].max() <= 1.001 * 100 * step_flops("orders")
    assert events["extra_flops"].iloc[0] == 0
    assert trunk["extra_flops"].isna().all()
    own = table[table["kind"].notna() & (table["series"] != "trunk")]
    sunk = np.where(own["series"] == "scratch", 0.0, events["total_flops"].iloc[0])
    assert own["extra_flops"].tolist() == pytest.approx((own["total_flops"] - sunk).tolist())
    with pytest.raises(ValueError, match="no chain"):
        chain_along_total_flops(read("timing")["curves"], read("timing")["trunks"])


def test_the_trunk_figure_draws_the_learning_rate_that_was_logged(read):
    table, figure = trunk_with_growth_points(read("timing")["trunks"], read("timing")["cells"])
    rate = table[table["quantity"] == "learning rate"].set_index("flops")["mean"]
    assert len(figure.axes) == 3
    for flops, value in rate.items():
        assert value == pytest.approx(0.004 * min(1.0, flops / step_flops("timing") / 20))


def test_a_stacked_profile_repeats_the_trunk_and_falls_at_the_seam(read):
    table, _ = norm_profiles(read("norms")["norms"])
    base = norm_at(100, LAYERS)
    after = table[table["when"] == "just after growth"].set_index(["series", "layer"])["norm"]
    assert after["stack"].tolist() == pytest.approx([*base, *base])
    assert after["interposition"].tolist() == pytest.approx(np.repeat(base, 2).tolist())
    before = table[table["when"] == "before growth"]
    assert before["norm"].tolist() == pytest.approx(base)
    assert (table["n_trunks"] == 3).all()
    assert "6 grown cells, 3 trunks (seeds 0, 1, 2)" in table.attrs["caption"]
    with pytest.raises(ValueError, match="no profile to draw"):
        norm_profiles(read("timing")["norms"])


def test_norms_over_training_begin_with_the_grown_state_and_end_with_the_last_line(read):
    table, figure = norms_over_training(read("norms")["norms"])
    trunk = table[table["series"] == "trunk"].set_index(["step", "layer"])["norm"]
    for step in (20, 100):
        assert trunk[step].tolist() == pytest.approx(norm_at(step, LAYERS))
    stack = table[table["series"] == "stack"]
    assert stack["step"].min() == 0
    assert stack["since_flops"].min() == 0
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == ["trunk", "interposition", "stack"]


def test_the_seam_table_holds_ours_beside_the_numbers_of_the_paper(read):
    table, _ = seam_norms_beside_the_paper(read("norms")["norms"])
    paper = pd.read_csv(tiny.ROOT / "analysis" / "paper" / "seam_norms.csv").set_index("layer")
    theirs = table[table["source"] == "the paper"].set_index(["series", "when", "layer"])["norm"]
    for layer in paper.index:
        assert theirs["stack", "just after growth", layer] == paper.loc[layer, "stack_at_growth"]
        assert theirs["interposition", "at the end", layer] == paper.loc[layer, "interposition_after_16k"]
    ours = table[table["source"] == "ours"].set_index(["series", "when", "layer"])["norm"]
    base = norm_at(100, LAYERS)
    assert ours["stack", "just after growth", LAYERS] == pytest.approx(base[0])
    assert ours["interposition", "just after growth", LAYERS] == pytest.approx(base[LAYERS // 2])


def moments(**columns) -> pd.DataFrame:
    one = dict.fromkeys(TWINS, np.nan) | {"arm": "stack", "growth_step": 100.0, "nth": 1.0, "seed": 0.0}
    return pd.DataFrame([one | columns])


def test_cosines_are_means_over_trunks_beside_those_of_the_paper():
    parts = [
        moments(replicate=name, step=20.0, first_moment_cosine=first)
        for name, first in (("a", 0.2), ("b", 0.4))
    ]
    pair = {"replicate": "a", "seed": 0.0, "growth_step": 100.0, "tap": "final", "step_a": 40, "step_b": 60}
    pair |= {"arm_a": "stack", "arm_b": "duplicate", "group": "attention", "cosine": 0.7}
    updates = pd.DataFrame([dict.fromkeys(UPDATES, np.nan) | pair])
    table, _ = moment_and_update_cosines(pd.concat(parts), updates)
    ours = table[table["source"] == "ours"].set_index("series")
    assert ours.loc["stack", "cosine"] == pytest.approx(0.3)
    assert ours.loc["attention", ["cosine", "steps_after_growth"]].tolist() == pytest.approx([0.7, 50])
    assert len(table[table["source"] == "the paper"]) == 8 + 8
    with pytest.raises(ValueError, match="no cosine to draw"):
        moment_and_update_cosines(parts[0][:0], updates[:0])


def test_the_budget_map_draws_the_grid_and_the_contours_where_it_crosses_zero():
    share, total = np.meshgrid([0.25, 0.5, 0.75], [1e12, 1e13, 1e14])
    gain = np.log10(total.ravel() / 1e13)
    grid = pd.DataFrame({"sunk_share": share.ravel(), "total_flops": total.ravel(), "difference": gain})
    grid = grid.assign(low=gain - 0.5, high=gain + 5.0)
    table, figure = budget_map(grid)
    assert table["difference"].tolist() == gain.tolist()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["grown = scratch", "95 % interval of that"]
    assert "ahead (33 % of the map)" in table.attrs["caption"]
    assert "excludes zero on 33 %" in table.attrs["caption"]
    with pytest.raises(ValueError, match="two sunk shares"):
        budget_map(grid[grid["sunk_share"] == 0.5])
    with pytest.raises(ValueError, match="lacks low, high"):
        budget_map(grid.drop(columns=["low", "high"]))


def test_an_efficiency_without_an_interval_is_drawn_as_a_point_alone():
    found = pd.DataFrame(
        [("stack", "stable", 0.6, 0.4, 0.8), ("stack", "annealed", 0.3, np.nan, np.nan)],
        columns=["arm", "phase", "rho", "low", "high"],
    )
    table, figure = recycling_efficiency(found)
    assert table["rho"].tolist() == [0.6, 0.3]
    spans = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in spans if line.get_xdata()[0] == 0.4] == [[0.4, 0.8]]
    assert "1 without one" in table.attrs["caption"]
    with pytest.raises(ValueError, match="nothing to draw"):
        recycling_efficiency(found.assign(rho=np.nan))


def test_mediation_draws_each_cell_once_with_the_error_of_its_base(read):
    cells = read("timing")["cells"]
    table, _ = mediation_panel(cells)
    grown = cells[cells["kind"] == "branch"].set_index("cell_id")
    assert sorted(table["cell_id"]) == sorted(grown.index)
    own = table.set_index("cell_id")
    assert np.allclose(own["base_acc"], 100 * grown["base_acc"].reindex(own.index))
    assert np.allclose(own["net"], 100 * grown["net"].reindex(own.index))
    assert (own["base_acc_se"] > 0).all()
    with pytest.raises(ValueError, match="one growth step"):
        mediation_panel(read("factors")["cells"])


@pytest.fixture
def falling(tmp_path):
    """One trunk whose loss is 2 all along; stack falls from 3 by 0.05 a step, interposition never does."""
    effect = Effect(growth_steps=(60,), extra_steps=120)
    plant(tmp_path, effect)
    cells = json.loads((tmp_path / "studies" / "planted" / "cells.json").read_text())["cells"]
    method = {row["states"]["start"][0]: row["method"] for row in cells if row["kind"] == "branch"}
    for path in (tmp_path / "trajectories").glob("*/metrics.jsonl"):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        for line in lines:
            falls = method.get(path.parent.name[-12:])
            line["loss"] = {"stack": 3 - 0.05 * line["step"], "interposition": 3.0, None: 2.0}[falls]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Store(tmp_path)


def test_recovery_is_counted_up_to_the_step_where_the_mean_loss_is_back(falling):
    table = recovery_costs(falling, "planted").set_index("arm")
    step = 1.9 * 6.0 * Effect().trunk_params * Effect().tokens_per_step
    # 3 − 0.05·(n − 9.5) ≤ 2 first at n = 30
    assert table.loc["stack", "recovery_flops"] == pytest.approx(30 * step)
    assert table["regained"].to_dict() == {"stack": True, "interposition": False}
    assert table["loss_before"].tolist() == [2.0, 2.0]


def test_a_loss_that_is_never_regained_is_said_so_and_has_no_cost(falling):
    table, figure = recovery_cost(recovery_costs(falling, "planted"))
    never = table[table["arm"] == "interposition"]
    assert never["recovery_flops"].isna().all()
    assert never["never"].tolist() == [1]
    assert [text.get_text() for text in figure.axes[0].texts] == ["↑ 1 of 1 never"]
    assert "1 cell never regained it" in table.attrs["caption"]


def test_a_trunk_that_never_regains_its_loss_counts_as_infinite_in_the_median(falling):
    one = recovery_costs(falling, "planted")
    stack, never = one[one["arm"] == "stack"], one[one["arm"] != "stack"].assign(arm="stack")
    parts = [stack.assign(replicate="a"), stack.assign(replicate="b"), never.assign(replicate="c")]
    most, _ = recovery_cost(pd.concat(parts))
    assert most["recovery_flops"].tolist() == stack["recovery_flops"].tolist()
    few, _ = recovery_cost(pd.concat([parts[0], never.assign(replicate="b"), parts[2]]))
    assert few["recovery_flops"].isna().all()


def test_trees_of_seeds_that_are_alike_are_drawn_once(read):
    nodes = read("timing")["lineage"]
    table, _ = lineage_tree(nodes)
    one, _ = lineage_tree(nodes[nodes["seed"] == 0])
    assert len(table) == len(one)
    assert (table["folded"] == 3).all()
    assert table["folded"].sum() == len(nodes)
    assert "alike in every seed" in table.attrs["caption"]
    assert "alike" not in one.attrs["caption"]


def test_a_branch_leaves_its_trunk_at_the_flops_that_were_sunk(read):
    nodes = read("timing")["lineage"].set_index("trajectory_id")
    cells = read("timing")["cells"]
    branches = nodes[nodes["kind"] == "branch"]
    assert sorted(branches["from_flops"]) == pytest.approx(
        sorted(cells.loc[cells["kind"] == "branch", "sunk_flops"])
    )
    assert (nodes["kind"][branches["parent"]] == "trunk").all()
    ends = nodes[nodes["kind"] == "anneal"].groupby("arm")["to_flops"].max()
    totals = cells[cells["kind"] != "branch"].groupby("arm")["total_flops"].max()
    assert ends["continued"] == pytest.approx(totals["continued"])


def test_a_large_tree_folds_the_arms_that_leave_at_one_place(read):
    nodes = read("timing")["lineage"]
    leaf = nodes[nodes["kind"] == "branch"].iloc[0]
    parts = [
        leaf.to_frame().T.assign(trajectory_id=f"t{i}", node=f"t{i}", arm=f"arm {i}")
        for i in range(MAX_ROWS + 1)
    ]
    table, _ = lineage_tree(pd.concat([nodes, *parts], ignore_index=True))
    assert "arms of one growth step together" in table.attrs["caption"]
    assert table["folded"].sum() == len(nodes) + MAX_ROWS + 1
    assert any("arms" in arm for arm in table["arm"])


def test_the_page_lists_every_figure_with_its_studies_and_columns(read):
    text = (tiny.ROOT / "docs" / "figures.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [FTN]\d", line)]
    assert [row[0] for row in rows] == list(FIGURES)
    for name, _, studies, columns in rows:
        assert set(FIGURES[name].studies) == set(re.findall(r"`(\w+)`", studies))
        if name in ("F1", "F5", "N2", "N6", "N7"):
            drawn, _ = draw(FIGURES[name], read("timing"))
            assert columns.split(", ") == [f"`{column}`" for column in drawn.columns]
