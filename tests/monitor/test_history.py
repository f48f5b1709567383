from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import history, store
from monitor.binning import NumericBins, cut_numeric
from monitor.counting import profile_groups
from monitor.history import History, sums_of_quanta
from monitor.panes import ClosedWindow
from monitor.profile import Layout, Profile
from monitor.reference import Reference
from monitor.settings import ClickHouseSettings
from monitor.store import Store
from monitor.tables import FOREVER_MS, to_table, verdict_rows, window_rows
from monitor.wire import Verdict, Verdicts, Window
from tests.monitor import builders
from tests.monitor.builders import HOUR, MINUTE, MODEL, START
from tests.monitor.stored import endpoint

SIZES = (MINUTE, 3 * MINUTE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with endpoint(tmp_path_factory.mktemp("history")) as settings:
        yield settings


@pytest.fixture
def link(server: ClickHouseSettings, request: pytest.FixtureRequest) -> Iterator[Store]:
    name = f"h_{abs(hash(request.node.name))}"
    settings = server.model_copy(update={"database": name})
    store.migrate(settings)
    opened = store.connect(settings)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return builders.reference()


def profile_at(reference: Reference, minute: int, n: int = 60) -> Profile:
    rng = np.random.default_rng(minute)
    rows = builders.past(rng, n, start_ms=START + minute * MINUTE, span_ms=MINUTE)
    return builders.profile_of(reference, builders.columns(rows))


def put(
    link: Store,
    reference: Reference,
    profile: Profile,
    *,
    minute: int = 0,
    size_ms: int = MINUTE,
    segment: str = "",
    version: str = "7",
    contribution: str = "",
    bins_id: str | None = None,
) -> None:
    window = Window(
        model=MODEL,
        version=version,
        segment=segment,
        size_ms=size_ms,
        start_ms=START + minute * MINUTE,
        contribution=contribution,
        revision=1,
        bins_id=bins_id or reference.layout.bins_id,
        n=profile.n,
        profile=profile.to_bytes(),
    )
    rows = to_table("windows", window_rows(window, reference.layout))
    token = f"{version}{segment}{size_ms}{minute}{contribution}{bins_id}"
    link.append("windows", rows, token=token)


def past_of(
    link: Store,
    reference: Reference,
    *,
    from_ms: int = 0,
    to_ms: int = FOREVER_MS,
    sizes: Sequence[int] = SIZES,
) -> History:
    return History(link.link, MODEL, reference.layout, sizes, from_ms=from_ms, to_ms=to_ms)


def ends(found: History) -> list[list[tuple[int, str, str, int]]]:
    """End in minutes, version, segment and size in minutes, by end."""
    return [
        [
            (
                (w.start_ms + w.size_ms - START) // MINUTE,
                w.key.version,
                w.key.segment,
                w.size_ms // MINUTE,
            )
            for w in together
        ]
        for together in found.by_end()
    ]


def test_a_stored_window_comes_back_as_the_profile_that_it_was(
    link: Store, reference: Reference
) -> None:
    profile = profile_at(reference, 0)
    put(link, reference, profile, segment="carrier=UA")
    ((back,),) = past_of(link, reference).by_end()
    assert isinstance(back, ClosedWindow)
    assert (back.key.segment, back.start_ms, back.size_ms) == ("carrier=UA", START, MINUTE)
    assert back.whole
    counted = ~reference.layout.moment_mask
    assert back.profile.vector[counted].tolist() == profile.vector[counted].tolist()
    for name in ("wind", "$score"):
        n, mean, m2 = profile.moments(name)
        again = back.profile.moments(name)
        assert again[0] == n
        assert again[1:] == pytest.approx((mean, m2), rel=1e-9)


def test_a_value_far_from_zero_keeps_its_small_variance(link: Store) -> None:
    """mean**2 + variance would lose it: 1e9 squared leaves no digit for a variance of 1."""
    from monitor import reference as references
    from monitor.columns import from_batch

    rows = builders.past(np.random.default_rng(3), 500)
    wind = 1e9 + np.random.default_rng(4).normal(size=500)
    columns = from_batch(
        rows.set_column(rows.schema.get_field_index("wind"), "wind", [*wind]), origin="test"
    )
    far = references.build(builders.spec(), lambda: [columns])
    profile = builders.profile_of(far, columns)
    put(link, far, profile)
    ((back,),) = past_of(link, far).by_end()
    n, mean, m2 = back.profile.scaled_moments("wind")
    assert (n, mean, m2) == pytest.approx(profile.scaled_moments("wind"), rel=1e-4, abs=1e-6)


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    scale=st.sampled_from([1.0, 1e-6, 1e6]),
    offset=st.sampled_from([0.0, 1e3, -1e9]),
)
def test_moments_survive_being_stored_as_mean_and_variance(
    values: list[float], scale: float, offset: float
) -> None:
    column = np.array(values) * scale + offset
    layout = Layout({"x": cut_numeric(column)})
    encoded = {"x": layout.bins["x"].encode(column)}
    group, errors = np.zeros(len(column), dtype=np.intp), np.zeros(len(column), dtype=bool)
    (profile,) = profile_groups(layout, encoded, errors, group, 1)
    n, mean, m2 = profile.moments("x")
    vector = profile.vector.copy()
    vector[layout.by_name["x"].moments] = sums_of_quanta(layout.bins["x"], n, mean, m2 / n)
    again = Profile(layout, vector).scaled_moments("x")
    exact = profile.scaled_moments("x")
    assert again[2] >= 0.0
    # A mean of 1e9 in doubles says no more than 1e-7, whatever the unit of the bins.
    numeric = layout.bins["x"]
    assert isinstance(numeric, NumericBins)
    lost = 1e-15 * abs(offset) / numeric.scale
    assert again[1] == pytest.approx(exact[1], rel=1e-9, abs=1e-4 + 4 * lost)
    assert again[2] / n == pytest.approx(exact[2] / n, rel=1e-6, abs=1e-3 * (1 + lost) ** 2)


def test_late_contributions_are_part_of_their_window_and_alone_they_are_none(
    link: Store, reference: Reference
) -> None:
    closed, late = profile_at(reference, 0), profile_at(reference, 5, n=7)
    put(link, reference, late, contribution="0:17:0")
    put(link, reference, closed)
    put(link, reference, late, contribution="0:18:0", minute=9)
    found = past_of(link, reference)
    assert found.extent == history.Extent(windows=1, left_out=0)
    ((back,),) = found.by_end()
    counted = ~reference.layout.moment_mask
    assert back.profile.vector[counted].tolist() == (closed + late).vector[counted].tolist()


def test_windows_come_in_the_order_in_which_they_closed(
    link: Store, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minute in (5, 3, 4, 0, 2, 1):
        for version in ("8", "7"):
            put(link, reference, profile_at(reference, minute), minute=minute, version=version)
    put(link, reference, profile_at(reference, 1), minute=1, segment="carrier=UA")
    for minute in (0, 3):
        put(link, reference, profile_at(reference, minute), minute=minute, size_ms=3 * MINUTE)
    expected = [
        [(1, "7", "", 1), (1, "8", "", 1)],
        [(2, "7", "", 1), (2, "7", "carrier=UA", 1), (2, "8", "", 1)],
        [(3, "7", "", 1), (3, "7", "", 3), (3, "8", "", 1)],
        [(4, "7", "", 1), (4, "8", "", 1)],
        [(5, "7", "", 1), (5, "8", "", 1)],
        [(6, "7", "", 1), (6, "7", "", 3), (6, "8", "", 1)],
    ]
    assert ends(past_of(link, reference)) == expected
    monkeypatch.setattr(
        history, "CHUNK_ROWS", 1
    )  # a question a minute: nothing twice, nothing lost
    assert ends(past_of(link, reference)) == expected


def test_only_windows_that_lie_inside_the_time_are_taken(link: Store, reference: Reference) -> None:
    for minute in range(6):
        put(link, reference, profile_at(reference, minute), minute=minute)
    for minute in (0, 3):
        put(link, reference, profile_at(reference, minute), minute=minute, size_ms=3 * MINUTE)
    found = past_of(link, reference, from_ms=START + MINUTE, to_ms=START + 5 * MINUTE)
    assert [w[0][0] for w in ends(found)] == [2, 3, 4, 5]
    assert found.extent.windows == 4
    nothing = past_of(link, reference, from_ms=START + HOUR)
    assert (nothing.extent.windows, ends(nothing)) == (0, [])


def test_a_window_whose_features_are_gone_is_left_out_and_counted(
    link: Store, reference: Reference
) -> None:
    for minute in range(3):
        put(link, reference, profile_at(reference, minute), minute=minute)
    put(link, reference, profile_at(reference, 9), minute=0, contribution="late")
    link.link.execute(
        f"ALTER TABLE windows DELETE WHERE feature != '' AND contribution = '' AND toUnixTimestamp64Milli(start) < {START + 2 * MINUTE} SETTINGS mutations_sync = 2"
    )
    found = past_of(link, reference)
    assert found.extent == history.Extent(windows=1, left_out=2)
    assert ends(found) == [[(3, "7", "", 1)]]


def test_other_bins_and_forgotten_sizes_are_left_out_and_counted(
    link: Store, reference: Reference
) -> None:
    put(link, reference, profile_at(reference, 0))
    put(link, reference, profile_at(reference, 1), version="6", bins_id="another")
    put(link, reference, profile_at(reference, 0), size_ms=HOUR)
    found = past_of(link, reference)
    assert found.extent == history.Extent(windows=1, left_out=2)
    assert ends(found) == [[(1, "7", "", 1)]]


def test_a_window_that_the_detector_called_partial_is_not_whole(
    link: Store, reference: Reference
) -> None:
    for minute in (0, 1):
        put(link, reference, profile_at(reference, minute), minute=minute)
    said = Verdict("no_data", "", "distribution", "no_data", None, None, None, 60)
    message = Verdicts("window", MODEL, "7", "", MINUTE, START, START + MINUTE, 60, 0, [said])
    link.append("verdicts", to_table("verdicts", verdict_rows(message)), token="v")
    whole = [w.whole for together in past_of(link, reference).by_end() for w in together]
    assert whole == [False, True]
