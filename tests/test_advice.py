import json
from dataclasses import replace

import commands
import pytest
import tiny
from planted import F_C, TRUNK_PARAMS, Effect, plant
from test_budget import RHO, STUDY, continued_loss, grown_loss, loss

import report
from analysis.advice import advise
from analysis.advice_text import recommendation, text, write_advice
from analysis.laws.__main__ import main as print_laws
from analysis.table import cells_table
from sweeps.store import Store

RESAMPLES = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("advice")
    return plant(folder, replace(STUDY, loss=loss, extra_steps=60, methods=("interposition",)))


@pytest.fixture(scope="module")
def cells(root):
    return cells_table(Store(root), "planted")


def ask(cells, sunk, extra, **more):
    numbers = {"sunk_flops": sunk * F_C, "extra_flops": extra * F_C, "activated_params": TRUNK_PARAMS}
    return advise(cells, **{**numbers, "resamples": RESAMPLES, **more})


@pytest.mark.parametrize(("sunk", "extra"), [(2.0, 1.0), (1.0, 0.12), (0.6, 4.0)])
def test_the_option_with_the_least_planted_loss_is_recommended(cells, sunk, extra):
    truth = {
        "continue": continued_loss(sunk + extra),
        "grow": grown_loss(RHO["interposition"], sunk, extra),
        "start over": grown_loss(0.0, 0.0, extra),
    }
    found = ask(cells, sunk, extra)
    assert found.decided
    assert found.options[0].what == min(truth, key=lambda option: truth[option])
    for option in found.options:
        assert option.loss == pytest.approx(truth[option.what], abs=0.02)
        assert option.net == pytest.approx(truth["continue"] - truth[option.what], abs=0.02)
        assert option.net_low <= option.net <= option.net_high
        assert option.net_acc == pytest.approx(
            option.net / 2, rel=0.15, abs=0.005
        )  # planted: acc = (3.4 − loss) / 2


def test_advice_depends_on_ratios_alone_and_says_how_far_n_a_is_extrapolated(cells):
    small = ask(cells, 2.0, 1.0)
    large = ask(
        cells,
        2.0,
        1.0,
        activated_params=10 * TRUNK_PARAMS,
        sunk_flops=200.0 * F_C,
        extra_flops=100.0 * F_C,
    )
    assert [o.net for o in large.options] == pytest.approx([o.net for o in small.options])
    reach = {one.name: one.beyond for one in large.reach}
    assert reach.pop("scratch / F_c") > 1.0  # starting over was not trained with that budget
    assert reach == {"sunk / F_c": 1.0, "extra / sunk": 1.0, "N_a": pytest.approx(10.0)}
    assert "N_a = 1.2e+06; studied: 1.2e+05 to 1.2e+05: extrapolated 10 times beyond" in text(large, "s")


def test_each_ratio_beyond_the_study_is_named_with_its_factor(cells):
    late = {one.name: one for one in ask(cells, 82.0, 1.0).reach}
    assert late["sunk / F_c"].beyond == pytest.approx(82.0 / late["sunk / F_c"].high)
    assert late["extra / sunk"].beyond == pytest.approx(late["extra / sunk"].low * 82.0)


def test_where_the_interval_of_the_net_contains_0_nothing_is_decided(tmp_path):
    def alike(arm, sunk, extra):
        return continued_loss(0.97 * sunk + 1.03 * extra) if arm != "scratch" else continued_loss(extra)

    noisy = replace(STUDY, loss=alike, extra_steps=60, methods=("stack",), items=20_000)
    found = ask(cells_table(Store(plant(tmp_path, noisy)), "planted"), 2.0, 1.5)
    assert not found.decided
    assert recommendation(found).startswith("Undecided: grow by stack now ends")


def test_where_later_growth_is_better_it_says_after_how_many_flops(tmp_path):
    def later(arm, sunk, extra):
        if arm == "continued":
            return 1.6 + 0.5 * extra**-0.35
        return 1.4 + 0.5 * (1.5 * sunk + extra) ** -0.35  # a FLOP before growth is worth more than one after

    effect = replace(STUDY, loss=later, extra_steps=60, methods=("stack",))
    found = ask(cells_table(Store(plant(tmp_path, effect)), "planted"), 1.0, 3.0)
    assert found.options[0].what == "grow later"
    assert 0 < found.options[0].train_on_f_c < 3.0
    assert "grow by stack after" in text(found, "s")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sunk_flops": -1.0}, "sunk_flops=-1 must be above 0"),
        ({"extra_flops": 0.0}, "extra_flops=0 must be above 0"),
        ({"activated_params": 0.0}, "activated_params=0 must be above 0"),
        ({"arm": "up"}, "arm=up is not in this study; it has interposition"),
        ({"floor": 9.0}, "E=9 must be below the least loss"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(cells, more, message):
    with pytest.raises(ValueError, match=message):
        ask(cells, 1.0, 1.0, **more)


def test_the_words_and_the_file_say_the_same(root, tmp_path):
    numbers = {"sunk_flops": 2 * F_C, "extra_flops": 1 * F_C, "activated_params": TRUNK_PARAMS}
    words = write_advice(Store(root), "planted", tmp_path, **numbers)
    found = json.loads((tmp_path / "advice.json").read_text())
    assert words.splitlines()[0] == found["recommendation"]
    assert found["recommendation"].startswith("Grow by interposition now. It ends +0.0")
    assert f"{found['options'][0]['loss']:.4f}" in words
    assert "3 trunks, 15 grown cells" in words
    assert "bootstrap over 3 trunks" in words
    assert "Held out: no larger size, for the study has one size" in words
    assert "ρ = 0.7" in words


def test_the_laws_command_reads_each_arm_of_a_study(root, tmp_path, capsys):
    out = tmp_path / "laws.json"
    words = ["study=planted", f"launch.store={root}", "--resamples", "40", "--json", str(out)]
    assert print_laws(words) == 0
    found = json.loads(out.read_text())
    assert set(found) == {"interposition", "continued", "without growth", "accuracy"}
    (effective,) = [law for law in found["interposition"]["laws"] if law["law"] == "effective"]
    assert effective["parameters"]["ρ"] == pytest.approx(RHO["interposition"], abs=0.05)
    assert [law["law"] for law in found["continued"]["laws"]] == ["power"]
    assert "without growth: the chinchilla law needs 3 sizes N" in capsys.readouterr().out
    assert print_laws(["study=nope", f"launch.store={root}"]) == 2


COMMAND = (tiny.ROOT / "report.py", "study=planted", "do=advise")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"extra_flops": None},
            "extra_flops is missing; do=advise needs sunk_flops, activated_params, extra",
        ),
        ({"extra_flops": "x"}, "extra_flops=x must be a number"),
        ({"activated_params": True}, "activated_params=True must be a number"),
    ],
)
def test_a_question_without_its_numbers_is_refused(root, tmp_path, given, message):
    raw = {"sunk_flops": 3e12, "activated_params": 120_000, "extra_flops": 1e12, "arm": None, "floor": None}
    with pytest.raises(ValueError, match=message):
        report.advice(Store(root), "planted", str(tmp_path / "out"), raw | given)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path):
    store = plant(tmp_path / "store", Effect(growth_steps=(100,), extra_steps=20, controls=()))
    words = ["sunk_flops=3e12", "activated_params=120000", "extra_flops=1e12", f"launch.store={store}"]
    done = commands.run(*COMMAND, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "no finished continued control" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "reports").exists()


def test_the_command_prints_the_advice_and_leaves_its_json(root, tmp_path):
    words = ["sunk_flops=3.4e12", "activated_params=120000", "extra_flops=1.7e12", f"launch.store={root}"]
    done = commands.run(*COMMAND, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "reports" / "planted" / "advice.json").read_text())
    assert done.stdout.splitlines()[0] == found["recommendation"]
    assert found["options"][0]["what"] == "grow"
