import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from analysis.laws import (
    ACCURACY,
    CHINCHILLA,
    EFFECTIVE,
    INTERACTION,
    LOGARITHMIC,
    POWER,
    SUNK_LAWS,
    Points,
    points_at,
    sized,
)
from analysis.laws.__main__ import main
from analysis.laws.descent import Problem, huber
from analysis.laws.fitting import compare, fit, interval, repeat_noise

PLANTED = {  # θ first, then the coefficients
    EFFECTIVE: (0.6, 0.3, 1.8, 0.9),
    INTERACTION: (0.3, 0.2, 0.25, 0.06, 1.8, 0.9),
    LOGARITHMIC: (0.6, 3.0, 0.2),
    POWER: (0.3, 1.8, 0.9),
    CHINCHILLA: (0.34, 0.28, 1.69, 406.4, 410.7),
    ACCURACY: (2.2, 0.3, 0.25, 0.7),
    sized(EFFECTIVE, 1e6): (0.6, 0.3, 0.2, 1.8, 0.9),
}
STARTS, BUDGETS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), (0.5, 1.0, 2.0, 4.0)


def planted(law, params, *, trunks=1, noise=0.0, trunk_noise=0.0, seed=0):
    """A grid of starts and budgets in each trunk; noise is of log loss (of accuracy for its law)."""
    sunk, extra = (grid.ravel() for grid in np.meshgrid(STARTS, BUDGETS))
    n = len(sunk)
    sunk, extra, trunk = np.tile(sunk, trunks), np.tile(extra, trunks), np.repeat(np.arange(trunks), n)
    points = Points(
        sunk=sunk,
        extra=extra,
        loss=np.linspace(1.2, 3.5, len(sunk)),
        trunk=trunk,
        activated_params=np.tile([1e5, 3e5, 1e6, 3e6], len(sunk) // 4),
        tokens=1e7 * sunk + 3e6 * extra**2,
        acc=np.zeros(len(sunk)),
    )
    random = np.random.default_rng(seed)
    errors = noise * random.normal(size=len(sunk)) + trunk_noise * random.normal(size=trunks)[trunk]
    values = law.values(points, np.array([params]))[0]
    return replace(points, **{law.target: values * np.exp(errors) if law.log_target else values + errors})


@pytest.mark.parametrize(("law", "params"), PLANTED.items(), ids=[law.formula for law in PLANTED])
def test_the_fit_recovers_planted_parameters(law, params):
    found = fit(law, planted(law, params), resamples=0, left_out=False)
    assert found.params == pytest.approx(params, rel=1e-3)
    assert found.error < 1e-6


@pytest.mark.parametrize(("law", "params"), PLANTED.items(), ids=[law.formula for law in PLANTED])
def test_with_noise_the_planted_law_lies_within_the_intervals_of_its_values(law, params):
    points = planted(law, params, trunks=8, noise=0.004, trunk_noise=0.002, seed=4)
    found = fit(law, points, resamples=100, left_out=False)
    for (name, ends), truth in zip(found.intervals().items(), params, strict=True):
        assert ends is not None
        assert ends[0] <= truth <= ends[1], name


@pytest.mark.slow
@pytest.mark.parametrize(("trunks", "trunk_noise", "fixed"), [(1, 0.0, {"E": 1.8}), (3, 0.01, {"E": 1.8})])
def test_over_forty_data_sets_95_percent_intervals_cover_as_often_as_they_say(trunks, trunk_noise, fixed):
    covered = np.zeros(4)
    for seed in range(40):
        points = planted(
            EFFECTIVE, PLANTED[EFFECTIVE], trunks=trunks, noise=0.01, trunk_noise=trunk_noise, seed=seed
        )
        found = fit(EFFECTIVE, points, fixed=fixed, noise=0.01, resamples=40, left_out=False)
        ends = found.intervals().values()
        covered += [
            e is not None and e[0] <= truth <= e[1] for e, truth in zip(ends, PLANTED[EFFECTIVE], strict=True)
        ]
    least = stats.binom.ppf(0.005, 40, 0.95)  # 34: below it one data set in 200 would fall
    free = [name not in (fixed or {}) for name in ("ρ", "a", "E", "A")]
    assert (covered[free] >= least).all(), covered


@pytest.mark.parametrize("law", SUNK_LAWS, ids=[law.name for law in SUNK_LAWS])
def test_aicc_and_the_latest_start_left_out_choose_the_planted_law(law):
    points = planted(law, PLANTED[law], trunks=3, noise=0.002, seed=1)
    fits = compare(points, resamples=0).fits
    assert len({found.delta for found in fits}) == 1
    assert fits[0].law.name == law.name
    assert min(fits, key=lambda found: found.left_out_error).law.name == law.name


def test_aicc_is_that_of_the_textbook_for_normal_residuals():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], noise=0.01)
    found = fit(EFFECTIVE, points, noise=1.0, resamples=0, left_out=False)
    n, k = len(points), 4 + 1
    squares = np.sum(np.log(found.predict(points) / points.loss) ** 2)
    assert found.aicc == pytest.approx(n * np.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def test_the_fit_is_the_one_that_scipy_finds_for_the_summed_huber_loss():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], noise=0.01, seed=2)
    points.loss[3] *= 1.2
    found = fit(EFFECTIVE, points, noise=0.01, resamples=0, left_out=False)

    def residuals(p):
        return np.log(EFFECTIVE.values(points, p[None])[0]) - np.log(points.loss)

    start = np.array(PLANTED[EFFECTIVE])
    theirs = optimize.least_squares(
        residuals, start, loss="huber", f_scale=found.delta, xtol=1e-12, ftol=1e-12
    )
    assert found.delta == pytest.approx(0.01345)
    assert huber(residuals(found.params), found.delta).sum() == pytest.approx(theirs.cost, rel=1e-6)
    assert found.params == pytest.approx(theirs.x, rel=1e-2)


def test_one_wild_point_moves_the_fit_less_than_least_squares():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], noise=0.003, seed=3)
    points.loss[5] *= 1.5
    robust, squares = (
        fit(EFFECTIVE, points, noise=noise, resamples=0, left_out=False).named["ρ"] for noise in (0.003, 10.0)
    )
    assert abs(robust - 0.6) < 0.1 * abs(squares - 0.6)


def test_a_trunk_drawn_twice_weighs_as_its_points_listed_twice():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], trunks=4, noise=0.01, trunk_noise=0.02)
    found = fit(EFFECTIVE, points, noise=0.02, resamples=5, seed=9, left_out=False)
    drawn = np.random.default_rng(9).multinomial(4, np.full(4, 0.25), size=5)
    for counts, sample in zip(drawn, found.samples, strict=True):
        rows = np.concatenate(
            [np.flatnonzero(np.repeat(points.trunk == t, 1)) for t in np.repeat(np.arange(4), counts)]
        )
        again = fit(EFFECTIVE, points.where(rows), noise=0.02, resamples=0, left_out=False)
        assert EFFECTIVE.values(points, sample[None]) == pytest.approx(
            EFFECTIVE.values(points, again.params[None]), rel=1e-4
        )


def test_one_seed_draws_the_same_trunks_for_two_laws():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], trunks=4, trunk_noise=0.02)
    some = points.where(points.trunk != 0)
    law, names = replace(EFFECTIVE, name="other"), (0, 1, 2, 3)
    whole = fit(law, points.where(points.trunk != 0), resamples=30, trunks=names, left_out=False)
    part = fit(EFFECTIVE, some, resamples=30, trunks=names, left_out=False)
    assert np.array_equal(whole.samples, part.samples)
    with pytest.raises(ValueError, match="leaves out a trunk"):
        fit(EFFECTIVE, points, trunks=(0, 1), left_out=False)


def test_below_three_trunks_residuals_are_resampled_and_the_fit_says_so():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], noise=0.01)
    assert "one trunk" in fit(EFFECTIVE, points, resamples=40, left_out=False).interval_from
    two = planted(EFFECTIVE, PLANTED[EFFECTIVE], trunks=2, noise=0.01)
    assert (
        "nothing is said of other trunks" in fit(EFFECTIVE, two, resamples=40, left_out=False).interval_from
    )


def test_the_stretched_interval_of_a_mean_over_three_trunks_is_students():
    values = np.array([1.0, 2.0, 4.0])
    random = np.random.default_rng(0)
    normal = random.normal(values.mean(), values.std() / np.sqrt(3), 40_000)  # what a bootstrap's spread is
    stretch = stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975) * np.sqrt(3 / 2)
    expected = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert interval(values.mean(), normal, stretch) == pytest.approx(expected, rel=0.03)


def test_noise_is_measured_from_repeats_of_one_point_in_several_trunks():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], trunks=40, noise=0.01)
    same_size = replace(points, activated_params=np.full(len(points), 1e5))
    assert repeat_noise(same_size) == pytest.approx(0.01, rel=0.1)
    assert repeat_noise(planted(EFFECTIVE, PLANTED[EFFECTIVE], noise=0.01)) is None


def test_a_known_floor_is_held():
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], trunks=3, noise=0.01)
    found = fit(EFFECTIVE, points, fixed={"E": 1.8}, resamples=40, left_out=False)
    assert found.named["E"] == 1.8
    assert (found.samples[:, 2] == 1.8).all()
    assert found.intervals()["E"] is None


def test_scratch_is_the_effective_law_at_no_sunk_flops_and_continuing_wastes_none():
    params = np.array([PLANTED[EFFECTIVE]])
    assert EFFECTIVE.values(points_at(0.0, 3.0), params) == pytest.approx(1.8 + 0.9 * 3.0**-0.3)
    assert EFFECTIVE.values(points_at(5.0, 0.0), params) == pytest.approx(1.8 + 0.9 * 3.0**-0.3)
    assert POWER.values(points_at(1.0, 2.0), np.array([PLANTED[POWER]])) == pytest.approx(
        1.8 + 0.9 * 3.0**-0.3
    )


GOOD = planted(EFFECTIVE, PLANTED[EFFECTIVE])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.where(np.arange(5)), r"4 free parameters and needs at least 6 points; these are 5"),
        (lambda p: replace(p, sunk=np.ones(len(p))), r"sunk FLOPs are the same in all 24 points"),
        (lambda p: p.where(np.tile([0, 6, 12], 4)), r"only 3 different places|the same in all"),
        (lambda p: replace(p, sunk=p.sunk - 1.0), r"sunk=-1 in row 1 must be 0 or more"),
        (lambda p: replace(p, loss=-p.loss), r"loss=.* in row 1 must be above 0"),
        (lambda p: replace(p, extra=p.extra * np.nan), r"extra is no finite number in row 1"),
        (lambda p: replace(p, trunk=p.trunk[:3]), r"trunk has 3 rows, loss 24"),
        (lambda p: replace(p, sunk=0 * p.sunk, extra=0 * p.extra), r"sunk \+ extra is 0 in row 1"),
    ],
)
def test_points_that_cannot_be_fitted_are_refused_with_what_is_missing(change, message):
    with pytest.raises(ValueError, match=message) as refused:
        fit(EFFECTIVE, change(GOOD))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("law", "options", "message"),
    [
        (EFFECTIVE, {"fixed": {"E": 9.0}}, "E=9 must be below the least loss"),
        (EFFECTIVE, {"fixed": {"q": 1.0}}, "q is no parameter of the effective law; it has ρ, a, E, A"),
        (EFFECTIVE, {"noise": 0.0}, "noise=0.0 must be above 0"),
        (CHINCHILLA, {}, "needs 3 sizes N .*, not 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(law, options, message):
    points = replace(GOOD, activated_params=np.full(len(GOOD), 1e6))
    with pytest.raises(ValueError, match=message):
        fit(law, points, **options)


def test_a_law_without_its_column_is_refused_by_name():
    with pytest.raises(ValueError, match="the chinchilla law needs tokens; these points have none"):
        fit(CHINCHILLA, replace(GOOD, tokens=None))


def test_no_resample_ends_above_where_it_started():
    from analysis.laws.descent import descend

    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], noise=0.05, seed=8)
    problem = Problem(law=EFFECTIVE, points=points, delta=0.01, fixed={})
    starts = np.random.default_rng(0).uniform([0, 0.01, 0, 0.1], [5, 2, 3, 3], size=(50, 4))
    ends = descend(problem, starts, points.loss[None], np.ones((1, len(points))))
    before, after = (huber(problem.residuals(p, points.loss[None]), 0.01).sum(1) for p in (starts, ends))
    assert (after <= before).all()


@pytest.fixture
def table(tmp_path):
    points = planted(EFFECTIVE, PLANTED[EFFECTIVE], trunks=3, noise=0.002)
    columns = {"s": points.sunk * 1e18, "x": points.extra * 1e18, "nats": points.loss, "run": points.trunk}
    path = tmp_path / "losses.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return [str(path), "--sunk", "s", "--extra", "x", "--loss", "nats", "--trunk", "run", "--f-c", "1e18"]


def test_the_command_fits_a_table_and_writes_json(table, tmp_path, capsys):
    out = tmp_path / "laws.json"
    assert main([*table, "--resamples", "40", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    (found,) = json.loads(out.read_text()).values()
    best = found["laws"][0]
    assert best["law"] == "effective"
    low, high = best["intervals"]["ρ"]
    assert low <= best["parameters"]["ρ"] <= high
    assert best["n_trunks"] == 3
    assert "bootstrap over 3 trunks" in printed
    assert f"ρ = {best['parameters']['ρ']:.4g}" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--loss", "no"], "--loss=no is no column of"),
        (["--f-c", "0"], "--f-c=0 must be above 0"),
        (["--resamples", "3"], "--resamples=3 must be 40 or more"),
        (["study=x"], "give either study=NAME or one FILE.csv"),
        (["q=1"], "unknown key q"),
        (["--floor", "7"], "E=7 must be below the least loss"),
    ],
)
def test_the_command_refuses_in_one_line(table, capsys, more, message):
    assert main([*table, *more]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
