from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from load import power
from load.clean import FEATURES, Clean, Fault, Plan
from load.power import BONFERRONI, FAULTS, KS, OURS, PSI, RIVER, WATCHERS, Outcome, Peers, Stream

PLAN = Plan("iid", seed=21, per_hour=1_000)
NORMAL, CATEGORICAL, LACKING = 3, 9, 0


@pytest.fixture(scope="module")
def stream() -> Stream:
    clean = Clean(PLAN)
    return Stream(clean.days(2), clean.draw(24 * 6), clean.draw(12 * 6), panes=6, seed=21)


def values(stream: Stream, feature: int) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return [h[~np.isnan(h)] for h in stream.hourly(stream.watched, feature)]


def test_hours_hold_each_value_once_and_in_order(stream: Stream) -> None:
    hours = stream.hourly(stream.watched, LACKING)
    assert [len(h) for h in hours] == stream.watched.n.reshape(12, 6).sum(axis=1).tolist()
    whole = power.values_of(stream.watched, LACKING)
    np.testing.assert_array_equal(np.concatenate(hours), whole)
    assert np.isnan(whole).mean() == pytest.approx(0.02, abs=0.005)


def test_a_fault_is_in_the_feature_that_it_names(stream: Stream) -> None:
    before, after = (np.concatenate(stream.hourly(d, NORMAL)) for d in (stream.watched, stream.struck(Fault("f03", shift=0.5))))  # fmt: skip
    assert (after - before).mean() == pytest.approx(0.5 * np.pi, rel=0.01)
    added = power.values_of(stream.struck(Fault("f09", new_category=0.01)), CATEGORICAL)
    assert (added == FEATURES[CATEGORICAL].categories).mean() == pytest.approx(0.01, abs=0.004)
    lacking = power.values_of(stream.struck(Fault("f00", missing=0.02)), LACKING)
    assert np.isnan(lacking).mean() == pytest.approx(0.04, abs=0.008)


@pytest.mark.parametrize("feature", [NORMAL, 1, 2, LACKING], ids=lambda i: FEATURES[i].shape)
def test_the_peer_ks_is_scipys(stream: Stream, feature: int) -> None:
    past = np.concatenate([power.values_of(draw, feature) for draw in stream.past])
    past, peers = past[~np.isnan(past)], Peers(stream, feature)
    for hour in values(stream, feature):
        theirs = stats.ks_2samp(past, hour, method="asymp").pvalue
        assert peers.ks(hour) == pytest.approx(theirs, rel=0.15, abs=0.01)  # its limit, for n = inf


def test_the_peer_chi_square_is_scipys(stream: Stream) -> None:
    struck = stream.hourly(stream.struck(Fault("f09", new_category=0.01)), CATEGORICAL)
    peers = Peers(stream, CATEGORICAL)
    past = np.bincount(np.concatenate([power.values_of(d, CATEGORICAL) for d in stream.past]).astype(int), minlength=13)  # fmt: skip
    current = np.array([np.bincount(h.astype(int), minlength=13) for h in struck])
    theirs = [stats.chi2_contingency([past, c], correction=False).pvalue for c in current]
    assert peers.chi_square(current) == pytest.approx(theirs)


def test_peers_see_a_large_shift_at_once_and_little_else(stream: Stream) -> None:
    peers = Peers(stream, NORMAL)
    calm, shifted = peers(stream.watched), peers(stream.struck(Fault("f03", shift=1.0)))
    assert {name: bool(alarms[0]) for name, alarms in shifted.items()} == dict.fromkeys(power.PEERS, True)  # fmt: skip
    assert not calm[PSI].any()
    assert not calm[BONFERRONI].any()
    assert calm[KS].sum() <= 4  # of 12 hours: more happens in 0.02 % of all streams
    assert calm[RIVER].sum() <= 1


@pytest.mark.parametrize(
    ("alarms", "pages", "open_hours"),
    [
        ("....", 0, 0),
        ("#...", 1, 4),
        ("..##", 1, 2),
        ("####", 1, 4),
        ("#" + 40 * ".", 1, 24),
        ("#" + 23 * "." + "#", 1, 25),  # 24 hours later
        ("#" + 24 * "." + "#", 2, 25),
        ("#" + (23 * "." + "#") * 5, 1, 121),
    ],
)
def test_alarms_less_than_a_day_apart_are_one_page(
    alarms: str, pages: int, open_hours: int
) -> None:
    assert power.grouped(np.array([a == "#" for a in alarms])) == (pages, open_hours)


@pytest.mark.parametrize(
    ("delays", "text"),
    [
        ([1, 1, 1], "1 h"),
        ([1, 9, 3, 4], "3 h"),
        ([1, 2, None], "2 h, 1 missed"),
        ([1, None], "missed 1 of 2"),
        ([None, None, None], "missed 3 of 3"),
    ],
)
def test_a_cell_says_median_and_misses(delays: list[int | None], text: str) -> None:
    assert power.cell(delays) == text


def test_the_table_gives_pages_a_month() -> None:
    outcome = Outcome(6, 3, 90, dict.fromkeys(FAULTS, 2))
    text = power.report([dict.fromkeys(WATCHERS, outcome)] * 2, 180, "heading")
    rows = text.splitlines()[4:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(WATCHERS)
    assert rows[0].split(" | ")[:5] == [f"| {OURS}", "24.0", "12.0", "50%", "2 h"]
