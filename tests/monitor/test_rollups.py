from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pytest

from monitor import queries, store
from monitor.errors import TransientError
from monitor.panes import total
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.rollups import MARGIN_S, Rollups
from monitor.settings import ClickHouseSettings
from monitor.store import Store
from monitor.tables import SCHEMAS, bins_rows, to_table, window_rows
from monitor.wire import Window
from tests.monitor import builders
from tests.monitor.builders import DAY, HOUR, MINUTE, MODEL
from tests.monitor.stored import endpoint

START: Final = 1_359_676_800_000 - 2 * HOUR  # two hours before a day and a month begin
Place: TypeAlias = tuple[str, str, str, int, int]  # version, segment, bins_id, source, start
NAMES: Final = SCHEMAS["windows"].names
SUMMED: Final = [name for name in NAMES[NAMES.index("n") :] if name not in ("mean", "variance")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with endpoint(tmp_path_factory.mktemp("rollups")) as settings:
        yield settings


@pytest.fixture
def settings(server: ClickHouseSettings, request: pytest.FixtureRequest) -> ClickHouseSettings:
    chosen = server.model_copy(update={"database": f"r_{abs(hash(request.node.name))}"})
    store.migrate(chosen)
    return chosen


@pytest.fixture
def link(settings: ClickHouseSettings) -> Iterator[Store]:
    opened = store.connect(settings)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def references() -> tuple[Reference, Reference]:
    return builders.reference(), builders.reference(seed=8)


def window(
    reference: Reference,
    profile: Profile,
    start_ms: int,
    *,
    size_ms: int = MINUTE,
    version: str = "7",
    segment: str = "",
    contribution: str = "",
    revision: int = 1,
) -> Window:
    return Window(
        MODEL,
        version,
        segment,
        size_ms,
        start_ms,
        contribution,
        revision,
        reference.layout.bins_id,
        profile.n,
        profile.to_bytes(),
    )


def events(reference: Reference, rng: np.random.Generator, n: int = 40) -> Profile:
    """Of some events; now and then of carriers that the reference does not know, and of winds far from all that it knows."""
    rows = builders.past(rng, n)
    carriers = [f"X{rng.integers(40)}" if rng.random() < 0.3 else "UA" for _ in range(n)]
    at = rows.schema.get_field_index("carrier")
    rows = rows.set_column(at, "carrier", pa.array(carriers))
    return builders.profile_of(reference, builders.columns(rows))


def put(link: Store, known: dict[str, Reference], windows: Iterable[Window], token: str) -> None:
    rows = [row for each in windows for row in window_rows(each, known[each.bins_id].layout)]
    link.append("windows", to_table("windows", rows), token=token)


def from_scratch(
    known: dict[str, Reference], windows: Iterable[Window], size_ms: int
) -> dict[Place, tuple[int, dict[str, dict[str, Any]]]]:
    """What the detector would have stored as windows of this size, and their late contributions: newest revisions added up as profiles."""
    newest: dict[tuple[object, ...], Window] = {}
    for each in sorted(windows, key=lambda w: w.revision):
        place = (each.version, each.segment, each.bins_id, each.size_ms, each.start_ms)
        newest[*place, each.contribution] = each
    parts: dict[Place, list[Window]] = {}
    for each in newest.values():
        start = each.start_ms // size_ms * size_ms
        parts.setdefault((each.version, each.segment, each.bins_id, each.size_ms, start), []).append(each)  # fmt: skip
    found = {}
    for place, members in parts.items():
        layout = known[place[2]].layout
        whole = total(Profile.from_bytes(layout, each.profile) for each in members)
        made = Window(MODEL, *place[:2], size_ms, place[4], "", 0, place[2], whole.n, whole.to_bytes())  # fmt: skip
        rows = [dict(zip(NAMES, row, strict=True)) for row in window_rows(made, layout)]
        late = sum(each.contribution != "" for each in members)
        found[place] = late, {row["feature"]: row for row in rows}
    return found


def stored(link: Store, size_ms: int) -> dict[Place, tuple[int, dict[str, dict[str, Any]]]]:
    rows = link.link.rows(
        f"SELECT *, toUnixTimestamp64Milli(start) AS at FROM windows_rolled FINAL WHERE size_ms = {size_ms}"
    )
    found: dict[Place, tuple[int, dict[str, dict[str, Any]]]] = {}
    for row in rows:
        place = (row["version"], row["segment"], row["bins_id"], row["source_ms"], row["at"])
        found.setdefault(place, (row["contributions"], {}))[1][row["feature"]] = row
    return found


def assert_exact(link: Store, known: dict[str, Reference], windows: list[Window]) -> None:
    for size_ms in (HOUR, DAY):
        expected, found = from_scratch(known, windows, size_ms), stored(link, size_ms)
        assert set(found) == set(expected)
        for place, (late, fields) in expected.items():
            assert found[place][0] == late
            assert set(found[place][1]) == set(fields)
            for feature, row in fields.items():
                its = found[place][1][feature]
                for name in SUMMED:
                    ours, theirs = row[name], its[name]
                    if name == "unseen":
                        ours, theirs = dict(ours), dict(theirs)
                    elif name == "counts":
                        ours, theirs = list(ours), list(theirs)
                    assert theirs == ours, (size_ms, place, feature, name)
                for name in ("mean", "variance"):
                    assert its[name] == (row[name] and pytest.approx(row[name], rel=1e-9)), feature


def history(references: tuple[Reference, Reference], seed: int) -> list[Window]:
    """Minutes of two versions around midnight, a segment, late contributions, corrections, and a change of the reference; in no order."""
    rng = np.random.default_rng(seed)
    old, new = references
    made = []
    for minute in sorted(rng.choice(240, 25, replace=False).tolist()):
        start = START + minute * MINUTE
        reference = old if minute < 150 else new
        for version in ("7", "8") if rng.random() < 0.5 else ("7",):
            profile = events(reference, rng)
            made.append(window(reference, profile, start, version=version))
            made.append(window(reference, profile, start, version=version, segment="carrier=UA"))
        for i in range(rng.integers(3)):
            late = events(reference, rng, 3)
            made.append(window(reference, late, start, contribution=f"l{i}", revision=int(rng.integers(10**12))))  # fmt: skip
    for each in rng.choice(np.arange(len(made)), 8, replace=False):  # said again, and otherwise
        again, reference = made[each], old if made[each].bins_id == old.layout.bins_id else new
        profile = events(reference, rng, 5)
        made.append(
            window(
                reference,
                profile,
                again.start_ms,
                version=again.version,
                segment=again.segment,
                contribution=again.contribution,
                revision=again.revision + 1,
            )
        )
    return [made[i] for i in rng.permutation(len(made))]


@pytest.mark.parametrize("seed", [1, 2])
def test_hours_and_days_are_what_the_detector_would_have_stored_whatever_came_twice_late_or_corrected(
    link: Store, references: tuple[Reference, Reference], seed: int
) -> None:
    known = {each.layout.bins_id: each for each in references}
    windows, rng = history(references, seed), np.random.default_rng(seed)
    cuts = np.array_split(np.arange(len(windows)), 6)
    for i, cut in enumerate(cuts):
        batch = [windows[j] for j in cut]
        put(link, known, batch, token=f"{i}")
        if i:  # a repeat that nobody recognises, of what was there already
            again = [windows[j] for j in rng.choice(cuts[i - 1], 4)]
            put(link, known, again, token=f"again{i}")
        assert link.rollups.roll()
    assert_exact(link, known, windows)
    before = stored(link, HOUR)
    assert link.rollups.roll()
    assert stored(link, HOUR).keys() == before.keys()
    assert_exact(link, known, windows)


def test_several_may_make_them_at_once_while_windows_are_stored(
    link: Store, settings: ClickHouseSettings, references: tuple[Reference, Reference]
) -> None:
    known = {each.layout.bins_id: each for each in references}
    windows = history(references, 3)
    parts = [[windows[i] for i in cut] for cut in np.array_split(np.arange(len(windows)), 6)]

    def work(i: int) -> bool:
        mine = store.connect(settings)
        try:
            put(mine, known, parts[i], token=f"{i}")
            return mine.rollups.roll() and mine.rollups.roll()
        finally:
            mine.close()

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(len(parts))))
    assert link.rollups.roll()
    assert_exact(link, known, windows)


@pytest.mark.parametrize(
    "later",
    [
        pytest.param({"contribution": "late", "revision": 0}, id="a late contribution"),
        pytest.param({"revision": 10}, id="a correction"),
    ],
)
def test_who_saw_less_does_not_win_by_being_last(
    link: Store, references: tuple[Reference, Reference], later: dict[str, Any]
) -> None:
    reference, rng = references[0], np.random.default_rng(9)
    known = {reference.layout.bins_id: reference}
    windows = [
        window(reference, events(reference, rng), START + i * MINUTE, revision=revision)
        for i, revision in enumerate((9, 20))
    ]
    put(link, known, windows, token="first")
    assert link.rollups.roll()
    less = link.link.arrow("SELECT * EXCEPT stored_at FROM windows_rolled FINAL")
    windows.append(window(reference, events(reference, rng, 5), START, **later))
    put(link, known, windows[2:], token="later")
    assert link.rollups.roll()
    link.link.insert("windows_rolled", less, token="slow")
    assert_exact(link, known, windows)


def test_they_stay_when_the_short_windows_are_gone_and_nothing_is_made_of_what_is_left(
    link: Store, references: tuple[Reference, Reference]
) -> None:
    reference, rng = references[0], np.random.default_rng(4)
    known = {reference.layout.bins_id: reference}
    windows = [window(reference, events(reference, rng), START + i * MINUTE) for i in (0, 1, 70)]
    put(link, known, windows, token="first")
    assert link.rollups.roll()
    link.link.execute(
        "ALTER TABLE windows UPDATE stored_at = stored_at - INTERVAL 60 DAY WHERE 1 SETTINGS mutations_sync = 2"
    )
    link.link.execute("OPTIMIZE TABLE windows FINAL")
    left = link.link.rows("SELECT feature, count() AS n FROM windows GROUP BY feature")
    assert left == [{"feature": "", "n": 3}]
    (minute,) = link.windows(MODEL, size_ms=MINUTE, from_ms=START, to_ms=START + 1)
    assert (minute.n, link.feature(MODEL, "wind", size_ms=MINUTE)) == (40, [])
    late = window(reference, events(reference, rng, 3), START, contribution="late", revision=10**15)
    put(link, known, [late], token="late")
    assert link.rollups.roll()
    made = from_scratch(known, windows, HOUR)
    for place, (_, fields) in stored(link, HOUR).items():
        for feature in fields.keys() - {""}:
            assert fields[feature]["counts"] == list(made[place][1][feature]["counts"])
    *_, first = link.windows(MODEL, size_ms=HOUR)
    assert (first.n, first.contributions) == (80 + 3, 1), "its number of events is known still"
    assert [row.n for row in link.feature(MODEL, "wind", size_ms=HOUR)] == [40, 80]


def test_a_size_that_the_model_has_is_not_made_and_its_hours_make_days(
    link: Store, references: tuple[Reference, Reference]
) -> None:
    reference, rng = references[0], np.random.default_rng(5)
    known = {reference.layout.bins_id: reference}
    spec = builders.spec(windows={"pane": "10s", "sizes": ["1m", "1h"], "lateness": "5s"})
    link.append("models", to_table("models", [(MODEL, spec.model_dump_json(), "", 1)]), token="m")
    profiles = [events(reference, rng) for _ in range(3)]
    minutes = [window(reference, p, START + i * 50 * MINUTE) for i, p in enumerate(profiles)]
    hours = [
        window(reference, profiles[0] + profiles[1], START, size_ms=HOUR),
        window(reference, profiles[2], START + HOUR, size_ms=HOUR),
    ]
    put(link, known, [*minutes, *hours], token="w")
    assert link.rollups.roll()
    assert stored(link, HOUR) == {}
    assert {place[3] for place in stored(link, DAY)} == {HOUR}
    assert [row.n for row in link.windows(MODEL, size_ms=DAY)] == [3 * 40]
    assert [row.n for row in link.windows(MODEL, size_ms=HOUR)] == [40, 80]
    for size_ms in (7 * MINUTE, 7 * DAY):
        assert link.windows(MODEL, size_ms=size_ms) == []


def test_readers_get_hours_and_days_of_a_model_that_has_minutes_and_its_own_where_they_know_more(
    link: Store, references: tuple[Reference, Reference]
) -> None:
    reference, rng = references[0], np.random.default_rng(6)
    known = {reference.layout.bins_id: reference}
    link.append("bins", to_table("bins", bins_rows(MODEL, reference.profiles[""], 1)), token="b")
    profiles = [events(reference, rng) for _ in range(4)]
    places = [START, START + MINUTE, START + HOUR, START + 2 * HOUR]
    minutes = [window(reference, p, at) for p, at in zip(profiles, places, strict=True)]
    late = window(reference, profiles[3], START, contribution="late", revision=5)
    put(link, known, [*minutes, late], token="w")
    assert link.rollups.roll()
    whole = profiles[0] + profiles[1] + profiles[3]
    *_, first = link.windows(MODEL, size_ms=HOUR)
    assert (first.n, first.contributions, first.start_ms) == (whole.n, 1, START)
    assert first.latency_p50 is None
    assert link.windows(MODEL, size_ms=HOUR, limit=1, skip=2) == [first]
    days = [row.n for row in link.windows(MODEL, size_ms=DAY, version="7")]
    assert days == [40, 4 * 40]
    *_, wind = link.feature(MODEL, "wind", size_ms=HOUR)
    n, mean, m2 = whole.moments("wind")
    assert wind.n == whole.counts("wind").sum()
    assert wind.mean == pytest.approx(mean)
    assert wind.variance == pytest.approx(m2 / n)
    shown = link.distribution(MODEL, "carrier", version="7", size_ms=HOUR, start_ms=START)
    assert shown is not None
    assert (shown.counts, shown.elsewhere) == (whole.counts("carrier").tolist(), 0)
    assert shown.unseen == whole.unseen["carrier"]
    own = [
        window(reference, whole + profiles[2], START, size_ms=HOUR),
        window(reference, profiles[2] + profiles[2], START + 3 * HOUR, size_ms=HOUR),
    ]
    put(link, known, own, token="own")
    assert [row.n for row in link.windows(MODEL, size_ms=HOUR)] == [80, 40, 40, 160]
    assert link.windows(MODEL, size_ms=HOUR, segment="carrier=UA") == []


def test_what_was_done_is_not_done_again_but_for_where_something_was_stored(
    link: Store, references: tuple[Reference, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, rng = references[0], np.random.default_rng(7)
    known = {reference.layout.bins_id: reference}
    at = [START + i * DAY for i in range(3)]
    put(link, known, [window(reference, events(reference, rng), each) for each in at], token="w")
    link.link.execute(
        "ALTER TABLE windows UPDATE stored_at = stored_at - INTERVAL 1 DAY WHERE 1 SETTINGS mutations_sync = 2"
    )
    asked: list[int] = []
    execute = link.link.execute

    def spied(statement: str, parameters: Mapping[str, Any] | None = None) -> None:
        if statement == queries.ROLL_HOURS:
            asked.append((parameters or {})["from_ms"])
        execute(statement, parameters)

    monkeypatch.setattr(link.link, "execute", spied)
    rolling = Rollups(link.link)
    assert not rolling.roll(enough=lambda: True)
    assert asked == at[:1], "a day at a time, the oldest first"
    assert not rolling.roll(enough=lambda: True)
    assert rolling.roll(enough=lambda: True)
    assert asked == at
    asked.clear()
    assert rolling.roll()
    assert asked == []
    late = window(reference, events(reference, rng, 3), at[1], contribution="l", revision=9)
    put(link, known, [late], token="late")
    assert rolling.roll(every_s=MARGIN_S)
    assert asked == [], "it has just been done, perhaps by somebody else"
    assert rolling.roll()
    assert asked == at[1:2]
    assert [row.contributions for row in link.windows(MODEL, size_ms=HOUR)] == [0, 1, 0]


def test_what_failed_on_its_way_is_done_again(
    link: Store, references: tuple[Reference, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, rng = references[0], np.random.default_rng(8)
    known = {reference.layout.bins_id: reference}
    windows = [window(reference, events(reference, rng), START + i * DAY) for i in range(2)]
    put(link, known, windows, token="w")
    execute, failing = link.link.execute, [queries.ROLL_DAYS_OF_HOURS]

    def fails_once(statement: str, parameters: Mapping[str, Any] | None = None) -> None:
        if statement in failing:
            failing.remove(statement)
            raise TransientError("it is away")
        execute(statement, parameters)

    monkeypatch.setattr(link.link, "execute", fails_once)
    with pytest.raises(TransientError):
        link.rollups.roll()
    assert stored(link, DAY) == {}
    assert link.rollups.roll()
    assert_exact(link, known, windows)
