import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import commands
import pandas as pd
import pytest
import tiny
from planted import Effect, plant

from analysis.claims import judge
from analysis.completeness import missing
from analysis.correlation import correlate
from analysis.opening import opening
from analysis.report import Report, write_report
from analysis.table import cells_table
from analysis.verdict import Verdict, verdict_of
from sweeps.store import Store
from sweeps.study import run_study

ROOT = Path(__file__).parents[1]
FIVE = (0, 1, 2, 3, 4)


def said(root, effect):
    cells = cells_table(Store(plant(root, effect)), effect.name)
    correlation = correlate(cells)
    return opening(cells, correlation), judge(cells, correlation, 0.01)


_PROGRAM = ROOT / "report.py"


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """Where the command ran, and the lines that it printed."""
    place = tmp_path_factory.mktemp("planted")
    plant(place / "store", Effect(slope=0.02, net=0.02, tokens_per_step=2048))
    done = commands.run(_PROGRAM, "study=planted", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done.stdout.splitlines()


@pytest.fixture(scope="module")
def written(commanded):
    place, (page, sentence) = commanded
    return Report(page=place / page, opening=sentence), (place / page).parent


def test_the_page_stands_alone_and_opens_with_the_sentence(written):
    report, folder = written
    page = report.page.read_text()
    first = re.search(r'<p class="lead">(.*?)</p>', page).group(1)
    assert re.sub(r"<sub>(.)</sub>", r"_\1", first) == report.opening
    assert not re.search(r"(src|href|srcset)=\"(https?:)?//", page)
    assert not re.search(r"<script[^>]+src", page)
    words = re.sub(r"base64,[\w+/=]+|<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "nan" not in words.lower().replace("provenance", "")
    names = {"accuracy_against_sunk_flops", "loss_and_accuracy_by_sunk_flops", "trunk_with_growth_points"}
    for name in names | {"accuracy_by_family", "learning_curves_by_family"}:
        assert all((folder / "figures" / f"{name}.{kind}").stat().st_size for kind in ("png", "pdf", "csv"))


def test_the_families_learning_curves_follow_the_trunks(written):
    page = written[0].page.read_text()
    places = [
        page.index(f"figures/{name}.csv") for name in ("trunk_with_growth_points", "accuracy_by_family")
    ]
    assert places[0] < page.index("figures/learning_curves_by_family.csv") < places[1]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page was not opened in a browser")
def test_a_real_browser_shows_the_page_and_asks_no_network(written, tmp_path):
    report, folder = written
    page = report.page.read_text()
    for target in re.findall(r'(?:src|href|srcset)="([^"]*)"', page):
        assert target.startswith("data:image/png;base64,") or (folder / target).is_file(), target[:80]
    assert not re.search(r"url\(|@import|<(script [^>]*src|link|iframe)|fetch\(|XMLHttp", page)
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, *quiet, f"--user-data-dir={tmp_path}", "--dump-dom", report.page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "<title>planted · Regrow</title>" in seen
    assert seen.count("<figure>") == seen.count("</figure>") == 5
    assert re.search(r"<h2>Provenance</h2>.*</html>", seen, re.DOTALL)


_ACTS = """
<script>
const seen = [];
window.addEventListener("error", (event) => seen.push(event.message));
const table = document.getElementById("cells");
const column = (i) => [...table.tBodies[0].rows].map((r) => r.cells[i].textContent.trim());
const final = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent.trim() === "final");
table.tHead.rows[0].cells[final].click();
const rising = column(final);
table.tHead.rows[0].cells[final].click();
const falling = column(final);
const filter = document.getElementById("filter");
filter.value = "scratch"; filter.dispatchEvent(new Event("input"));
const left = [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.textContent);
const said = document.getElementById("shown").textContent, pre = document.createElement("pre");
pre.id = "acted";
pre.textContent = JSON.stringify({seen, rising, falling, left, said});
document.body.append(pre);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page was not opened in a browser")
def test_the_table_of_cells_sorts_and_filters_in_a_real_browser(written, tmp_path):
    page = tmp_path / "acted.html"
    page.write_text(written[0].page.read_text().replace("</body>", f"{_ACTS}</body>"))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
    command = [CHROMIUM, *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    acted = json.loads(html.unescape(re.search(r'<pre id="acted">(.*?)</pre>', seen, re.DOTALL).group(1)))
    assert acted["seen"] == []
    accuracy = [float(text.split()[0]) for text in acted["rising"] if text != "–"]
    assert accuracy == sorted(accuracy)
    assert len(set(accuracy)) > 5
    assert [float(t.split()[0]) for t in acted["falling"] if t != "–"] == sorted(accuracy, reverse=True)
    assert acted["left"]
    assert all("scratch" in text for text in acted["left"])
    assert acted["said"] == f"{len(acted['left'])} of 17 cells"


def test_every_point_of_the_main_figure_says_its_series_and_values(written):
    page = html.unescape(written[0].page.read_text())
    figure = page[
        page.index("accuracy_against_sunk_flops") - 40_000 : page.index("accuracy_against_sunk_flops")
    ]
    says = re.findall(r'left:([\d.]+)%;top:([\d.]+)%" data-says="([^"]+)"', figure)
    drawn = pd.read_csv(written[1] / "figures" / "accuracy_against_sunk_flops.csv")
    assert len(says) == len(drawn)
    assert all(0 < float(left) < 100 and 0 < float(top) < 100 for left, top, _ in says)
    for row in drawn.itertuples():
        assert any(text.startswith(row.series) and f": {row.mean_pct:.4g}" in text for _, _, text in says), (
            row
        )


def test_the_null_stands_before_r(written):
    page = written[0].page.read_text()
    assert page.index("median r") < page.index("Pearson")


def test_cells_csv_holds_the_promised_columns(written):
    table = pd.read_csv(written[1] / "cells.csv")
    promised = """
        study cell_id kind control_of trajectory_id trunk_id growth_step method depth_factor width_method
        width_factor noise_scale optimizer_state growth_lr seed sunk_flops extra_flops total_flops
        chinchilla_multiple base_acc start_acc final_acc final_acc_se
        final_acc_above_chance stable_acc base_loss start_loss
        final_loss damage net tokens unique_tokens epochs activated_params total_params
        inference_flops_per_token wall_s
    """
    assert set(promised.split()) <= set(table.columns)
    assert len(table) == 17


def test_correlation_json_is_strict_json_with_its_claims(written):
    text = (written[1] / "correlation.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert (found["n_cells"], found["n_trunks"]) == (8, 1)
    for part in (part for series in found["series"].values() for part in series.values()):
        assert part["monotone_null"]["low"] < part["monotone_null"]["median"] < part["monotone_null"]["high"]
    assert set(found["series"]) == {"stack", "interposition", "pooled"}


def test_with_one_trunk_everything_is_undecided(tmp_path):
    sentence, claims = said(tmp_path, Effect(slope=0.05, net=0.1))
    assert {claim["verdict"] for claim in claims} == {"undecided"}
    assert "one trunk, no interval" in sentence
    assert "cannot decide whether growing beats continuing" in sentence


@pytest.mark.parametrize("seeds", [(0,), FIVE, tuple(range(8))])
def test_a_store_without_any_effect_yields_no_positive_sentence(tmp_path, seeds):
    sentence, claims = said(tmp_path, Effect(seeds=seeds, tokens_per_step=65536))
    assert "cannot decide whether growing beats continuing" in sentence
    assert Verdict.AGREES not in {claim["verdict"] for claim in claims}


def test_a_planted_net_lies_inside_the_interval_of_the_opening_sentence(tmp_path):
    sentence, _ = said(tmp_path, Effect(seeds=FIVE, net=0.02, tokens_per_step=65536))
    low, high = re.search(r"95 % interval ([+−\d.]+) to ([+−\d.]+)", sentence).groups()
    assert float(low.replace("−", "-")) < 2.0 < float(high)
    assert "whether growing beats continuing" not in sentence


def test_eight_trunks_in_the_regime_of_the_claim_earn_a_verdict(tmp_path):
    _, claims = said(tmp_path, Effect(seeds=tuple(range(8)), slope=0.004, tokens_per_step=65536))
    assert claims[0]["id"] == "C1"
    assert claims[0]["verdict"] == "agrees"


def test_below_one_f_c_nothing_is_claimed_about_stack_against_interposition(tmp_path):
    sentence, claims = said(tmp_path, Effect(seeds=FIVE, method_gain=0.1, tokens_per_step=1024))
    c3 = claims[-1]
    assert c3["id"] == "C3"
    assert c3["why"].startswith("Nothing is claimed")
    assert c3["verdict"] == "regime not covered"
    assert "stack against interposition" in sentence


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ([0.02, 0.05], Verdict.AGREES),
        ([-0.05, -0.02], Verdict.DISAGREES),
        ([-0.004, 0.006], Verdict.NO_DIFFERENCE),
        ([0.001, 0.009], Verdict.NO_DIFFERENCE),
        ([-0.02, 0.05], Verdict.UNDECIDED),
    ],
)
def test_a_verdict_follows_from_the_interval_and_delta(interval, verdict):
    assert verdict_of(interval, 0.01) is verdict


def test_an_unfinished_study_gets_a_page_that_says_what_is_missing(tmp_path, unrendered):
    status = {
        (100, "stack"): "diverged",
        (200, "stack"): "failed",
        (400, "stack"): "todo",
        (800, "stack"): "blocked",
    }
    effect = Effect(methods=("stack",), controls=(), status=status)
    report = write_report(Store(plant(tmp_path, effect)), "planted", tmp_path / "page")
    page = report.page.read_text()
    assert report.opening == "No grown cell of this study has finished, so it decides nothing."
    for word in ("1 cell diverged", "1 cell failed", "1 cell blocked", "1 cell not trained yet"):
        assert word in page


def test_missing_controls_are_named_and_no_net_is_shown(tmp_path):
    store = Store(plant(tmp_path, Effect(controls=("scratch_extra",))))
    cells = cells_table(store, "planted")
    sentence = opening(cells, correlate(cells))
    assert any(
        "continued control, so no net is shown" in line for line in missing(cells, store.study("planted"))
    )
    assert "no control that continues the trunk has finished (8 cells grown from one trunk)" in sentence


def test_a_study_that_never_ran_gets_a_page_too(tmp_path, unrendered):
    (tmp_path / "studies" / "bare").mkdir(parents=True)
    page = write_report(Store(tmp_path), "bare", tmp_path / "page").page.read_text()
    assert "it was not run yet" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [(["study=nope"], "nope"), ([], "study is missing"), (["study=planted", "do=x"], "do=x")],
)
def test_bad_input_is_refused_with_one_line_and_exit_code_2(tmp_path, words, message):
    store = plant(tmp_path / "store", Effect(growth_steps=(100,), extra_steps=20))
    done = commands.run(_PROGRAM, *words, f"launch.store={store}", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "reports").exists()


def test_the_command_prints_the_page_and_its_opening_and_leaves_no_logs(commanded):
    place, (page, sentence) = commanded
    assert page == "reports/planted/index.html"
    assert sentence.startswith("At N_a = 120k")
    assert "report.py study=planted" in (place / page).read_text()
    assert not [path for path in place.rglob("*") if path.suffix in (".log", ".yaml")]


def test_a_study_whose_trunk_diverged_still_gets_a_page(tmp_path, unrendered):
    run_study([tiny.mapping(launch__store=str(tmp_path / "store"), train__lr=1e6)])
    report = write_report(Store(tmp_path / "store"), "adhoc", tmp_path / "page")
    assert report.opening.startswith("No grown cell of this study has finished")
    assert "diverged" in report.page.read_text()
