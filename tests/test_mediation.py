"""Sunk FLOPs beside the base's accuracy: studies planted with what the truth is, noise of .7 points."""

import numpy as np
import pandas as pd
import pytest

from analysis.mediation import partial_correlation

NOISE = 0.7  # points


def planted(
    seed: int, n_trunks: int = 8, *, direct: float = 0.0, y_noise: float = 0.3, curve: float = 1.0
) -> pd.DataFrame:
    """Twelve growth steps a trunk; the end is half the base, and `direct` points per unit of sunk.

    With a `curve` the base saturates, so that sunk says something else; without, it only wavers by .5 points.
    """
    random, sunk = np.random.default_rng(seed), np.linspace(1 / 12, 1, 12)
    trunks = []
    for trunk in range(n_trunks):
        pace = 1 + 0.15 * random.normal()
        rise = 17 * curve * np.log1p(16 * sunk * pace) / np.log(17) + 10 * (1 - curve) * sunk
        base = 36 + random.normal() + rise + (1 - curve) * 0.5 * random.normal(size=12)
        end = 25 + 0.5 * base + direct * sunk + y_noise * random.normal(size=12)
        seen = base + NOISE * random.normal(size=12)
        trunks.append(pd.DataFrame({"sunk": sunk, "end": end, "base": seen, "trunk": trunk}))
    return pd.concat(trunks, ignore_index=True)


def asked(table: pd.DataFrame, given_se: float | str | None = NOISE) -> dict:
    return partial_correlation(table, "sunk", "end", "base", given_se, "trunk")


def test_noise_in_the_base_fakes_a_partial_correlation_and_the_correction_takes_it_away():
    found = asked(planted(seed=1, n_trunks=80, curve=0.0, y_noise=0.05))
    assert found["uncorrected"] == pytest.approx(0.8, abs=0.03)
    assert found["partial"] is None
    assert "leave nothing of y" in found["no_partial_because"]
    low, high = found["direct_interval"]
    assert low < 0 < high < found["uncorrected_direct"]
    noisy_end = asked(planted(seed=1, n_trunks=80, curve=0.0, y_noise=0.4))
    low, high = noisy_end["partial_interval"]
    assert low < 0 < high < noisy_end["uncorrected"]


def test_where_sunk_and_base_may_be_one_nothing_is_said():
    refused = [asked(planted(seed, curve=0.0))["refused"] for seed in range(10)]
    assert all(reason and "tell the two apart" in reason for reason in refused)


def test_the_direct_slope_is_covered_over_many_studies():
    found = [asked(planted(seed, 20, direct=2.0)) for seed in range(30)]
    intervals = np.array([one["direct_interval"] for one in found if not one["refused"]])
    assert len(intervals) >= 28
    assert np.mean((intervals[:, 0] < 2) & (intervals[:, 1] > 2)) == pytest.approx(0.95, abs=0.08)
    assert np.median([one["direct"] for one in found if not one["refused"]]) == pytest.approx(2, abs=0.3)
    assert np.median([one["uncorrected_direct"] for one in found]) > 2.5


def test_without_noise_it_is_the_partial_correlation_of_the_textbook():
    table = planted(seed=3, direct=3.0, y_noise=0.5)
    found = asked(table, 0.0)
    own = table.drop(columns="trunk") - table.groupby("trunk").transform("mean")
    rest = [own[name] - own["base"] * (own[name] @ own["base"]) / (own["base"] @ own["base"]) for name in own]
    assert found["partial"] == pytest.approx(np.corrcoef(rest[0], rest[1])[0, 1])
    assert found["partial"] == pytest.approx(found["uncorrected"])
    assert found["reliability"] == 1


def test_cells_that_share_one_base_count_once():
    table = planted(seed=4, direct=2.0, y_noise=0.5)
    twice = pd.concat([table.assign(end=table.end + 0.1), table.assign(end=table.end - 0.1)])
    once = asked(table)
    assert asked(twice)["direct_interval"] == pytest.approx(once["direct_interval"])


@pytest.mark.parametrize(
    ("table", "given_se", "reason"),
    [
        (planted(0, n_trunks=1), NOISE, "one trunk"),
        (planted(0, n_trunks=5), NOISE, "below 6 trunks"),
        (planted(0), None, "Refused without the measurement error of base"),
        (planted(0), 5.0, "is not evaluation noise"),
        (planted(0).assign(se=np.nan), "se", "missing or negative"),
        (planted(0).assign(base=36.0), NOISE, "constant"),
        (planted(0).assign(base=np.nan), NOISE, "No row has"),
        (planted(0).groupby("trunk").head(2), NOISE, "3 bases each"),
        (planted(0).eval("base = 30 + 10 * sunk"), NOISE, "may follow x entirely"),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_reason(table, given_se, reason):
    found = asked(table, given_se)
    assert reason in found["refused"]
    assert found["partial"] is found["direct"] is found["direct_interval"] is None
