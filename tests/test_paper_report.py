"""The whole paper as one page: claims judged on planted studies, figures where their study is there."""

import json
import re
from functools import partial

import commands
import pytest
import tiny
from planted import Effect, plant

from analysis.arm_laws import fit_arms
from analysis.claims import CLAIMS
from analysis.claims_table import latex, markdown
from analysis.paper_report import write_paper
from sweeps.store import Store

EIGHT = tuple(range(8))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("paper") / "store"
    regime = {"seeds": EIGHT, "growth_steps": (100, 400, 800), "tokens_per_step": 65536, "extra_steps": 20}
    plant(root, Effect(name="fixed_extra", methods=("interposition",), slope=0.02, net=0.03, **regime))
    plant(root, Effect(name="timing", method_gain=0.05, **regime))
    return Store(root)


@pytest.fixture(scope="module")
def paper(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "page"
    with pytest.MonkeyPatch.context() as patch:
        commands.unrender(patch.setattr)
        patch.setattr("analysis.law_tables.fit_arms", partial(fit_arms, resamples=20))
        return write_paper(store, folder, delta=0.01, command="python report.py do=paper")


def test_every_claim_has_a_row_and_a_verdict(paper):
    rows = {row["id"]: row for row in json.loads(paper.page.with_name("claims.json").read_text())}
    assert list(rows) == [claim.id for claim in CLAIMS] == [f"C{i}" for i in range(1, 12)]
    assert (rows["C1"]["verdict"], rows["C1"]["study"]) == ("agrees", "fixed_extra")
    assert rows["C1"]["interval"][0] < rows["C1"]["effect"] < rows["C1"]["interval"][1]
    assert rows["C1"]["n_trunks"] == 8
    assert set(rows["C1"]["cells"]) <= set(
        re.findall(r"\w{12}", paper.page.with_name("cells.csv").read_text())
    )
    for name in ("C2", "C4", "C9"):
        assert rows[name]["verdict"] == "regime not covered"
        assert "No finished cells of study" in rows[name]["why"]


def test_p_values_are_adjusted_for_all_claims(paper):
    known = [row for row in paper.claims if row["p_value"] is not None]
    assert {"C1", "C3"} <= {row["id"] for row in known}
    assert all(row["p_holm"] >= row["p_value"] for row in known)
    assert any(row["p_holm"] > row["p_value"] for row in known)


def test_a_figure_without_its_study_says_so(paper):
    page = paper.page.read_text()
    assert "Study noise has not been run." in page
    assert (paper.page.parent / "figures" / "main_effect_with_sunk_area.csv").stat().st_size
    assert not re.search(r"(src|href|srcset)=\"(https?:)?//", page)
    for target in re.findall(r'href="([^"#]+)"', page):
        assert (paper.page.parent / target).is_file(), target
    for anchor in re.findall(r'href="#(\w+)"', page):
        assert f'id="{anchor}"' in page


def test_the_table_for_latex_has_a_row_for_each_claim(paper):
    text = paper.page.with_name("claims.tex").read_text()
    assert text.count(r" \\") == 1 + len(CLAIMS) + sum(bool(claim.tuned) for claim in CLAIMS)
    assert not re.search(r"(?<!\\)%", text)


def test_the_page_for_a_repository_says_what_the_page_says(paper):
    text = paper.page.with_name("README.md").read_text()
    assert paper.opening in text
    rows = [line for line in text.splitlines() if re.match(r"\| C\d+", line)]
    assert [row.split(" | ")[2].strip("*") for row in rows] == [row["verdict"] for row in paper.claims]
    assert all(row.count(" | ") == 6 for row in rows)
    assert all(row["why"] in text for row in paper.claims)
    assert "![Weight norms" not in text
    assert "Study noise has not been run." in text
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("figures/") or (paper.page.parent / target).is_file()
    assert "&" not in text


def test_a_store_without_any_of_the_studies_is_refused(tmp_path):
    plant(tmp_path / "store", Effect(growth_steps=(100,), extra_steps=20))
    with pytest.raises(ValueError, match="holds none of the paper's studies; run make paper first"):
        write_paper(Store(tmp_path / "store"), tmp_path / "out", delta=0.01, command="")
    assert not (tmp_path / "out").exists()


def test_the_report_in_docs_is_one_report():
    """Text, tables and pictures of docs/paper come from one run of make paper."""
    folder = tiny.ROOT / "docs" / "paper"
    claims = json.loads((folder / "claims.json").read_text())
    text = (folder / "README.md").read_text()
    assert markdown(claims) in text
    assert (folder / "claims.tex").read_text() == latex(claims)
    assert [claim.id for claim in CLAIMS] == list(dict.fromkeys(row["id"] for row in claims))
    shown = re.findall(r"!\[[^\]]*\]\(figures/([^)]+)\)", text)
    assert sorted(shown) == sorted(path.name for path in (folder / "figures").iterdir())
