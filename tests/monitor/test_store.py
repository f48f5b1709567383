from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from pydantic import SecretStr

from monitor import clickhouse, store
from monitor.binning import Floats
from monitor.clickhouse import Migration, RefusedError, migrations, open_client
from monitor.columns import Columns, from_batch
from monitor.errors import ConfigError, IncompatibleError, TransientError
from monitor.gate import Comparison
from monitor.history import History
from monitor.latency import percentiles
from monitor.profile import Profile
from monitor.reference import Reference, build
from monitor.settings import ClickHouseSettings
from monitor.spec import parse_spec
from monitor.store import PERIOD_MS, Releases, Store, VersionRow
from monitor.tables import (
    bins_rows,
    delivery_row,
    incident_row,
    performance_row,
    to_table,
    verdict_rows,
    window_rows,
)
from monitor.versions import OTHER_VERSION
from monitor.wire import (
    Cause,
    Delivery,
    DeliveryOutcome,
    Incident,
    Performance,
    Verdict,
    Verdicts,
    Window,
)
from streams.embedded import clickhouse as endpoint
from streams.supervisor import LOOPBACK, Supervisor, free_port
from tests.monitor import builders
from tests.monitor.stored import DAY, EVENTS, FIRING, MODEL, START, fill

DAYS = 3
PASSWORD = "hunter2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    directory, port = tmp_path_factory.mktemp("store"), free_port()
    with (
        patch.dict(os.environ, {endpoint.PASSWORD_VARIABLE: PASSWORD}),
        Supervisor(directory / "logs") as supervisor,
    ):
        supervisor.start(endpoint.child(port, directory / "data"))
        supervisor.wait_ready(30)
        yield ClickHouseSettings(url=f"http://{LOOPBACK}:{port}", password=SecretStr(PASSWORD))


def with_database(server: ClickHouseSettings, name: str) -> ClickHouseSettings:
    return server.model_copy(update={"database": name})


@pytest.fixture(scope="module")
def filled(server: ClickHouseSettings) -> Iterator[tuple[Store, Reference]]:
    settings = with_database(server, "filled")
    store.migrate(settings)
    link = store.connect(settings)
    yield link, fill(link, days=DAYS)
    link.close()


@pytest.fixture
def empty(server: ClickHouseSettings, request: pytest.FixtureRequest) -> Iterator[Store]:
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    settings = with_database(server, f"e_{name}"[:60])
    store.migrate(settings)
    link = store.connect(settings)
    yield link
    link.close()


def test_migrations_are_applied_once_and_a_dry_run_changes_nothing(
    server: ClickHouseSettings,
) -> None:
    settings = with_database(server, "once")
    names = [f"{m.version:04d}_{m.name}" for m in migrations()]
    assert store.migrate(settings, dry_run=True) == names
    assert store.migrate(settings, dry_run=True) == names
    assert store.migrate(settings) == names
    assert store.migrate(settings) == []


_ADDS = (
    "CREATE TABLE IF NOT EXISTS",
    "CREATE VIEW IF NOT EXISTS",
    "ALTER TABLE",
    "INSERT INTO",
    "RENAME TABLE",
)


def test_migrations_are_numbered_without_gaps_and_only_add() -> None:
    found = migrations()
    assert [m.version for m in found] == list(range(1, len(found) + 1))
    for statement in (s for m in found for s in m.statements("d")):
        assert statement.startswith(_ADDS), statement
        adds = "ADD" in statement or " MODIFY SETTING " in statement
        assert adds or not statement.startswith("ALTER")


def test_processes_that_migrate_at_once_all_succeed(server: ClickHouseSettings) -> None:
    for i in range(
        3
    ):  # before they waited for each other, six met a table between two names once in a dozen runs
        settings = with_database(server, f"race{i}")
        with ThreadPoolExecutor(8) as threads:
            for future in [threads.submit(store.migrate, settings) for _ in range(8)]:
                future.result()
        assert store.migrate(settings) == []
        query = "SELECT name FROM system.tables WHERE database = {database:String}"
        rows = store.connect(settings).link.rows(query, {"database": settings.database})
        tables = {row["name"] for row in rows}
        assert "windows" in tables
        assert "windows_by_bins" not in tables


def test_a_changed_migration_is_an_error_and_one_of_a_newer_release_is_not(
    server: ClickHouseSettings,
) -> None:
    client = open_client(
        host=server.host, port=server.port, user=server.user, password=PASSWORD, secure=False
    )
    first = Migration(1, "a", "CREATE TABLE IF NOT EXISTS {database}.a (x UInt8) ENGINE = Log;")
    newer = Migration(2, "b", "CREATE TABLE IF NOT EXISTS {database}.b (x UInt8) ENGINE = Log;")
    assert clickhouse.migrate(client, "changed", known=[first, newer]) == [first, newer]
    assert clickhouse.migrate(client, "changed", known=[first]) == []
    edited = Migration(1, "a", first.text.replace("UInt8", "UInt16"))
    with pytest.raises(ConfigError, match="0001_a was changed after it was applied"):
        clickhouse.migrate(client, "changed", known=[edited, newer])
    client.close()


def test_every_error_says_what_to_do_and_none_holds_the_password(
    server: ClickHouseSettings,
) -> None:
    wrong = server.model_copy(update={"password": SecretStr("swordfish")})
    with pytest.raises(ConfigError, match="authentication failed") as caught:
        store.connect(wrong)
    assert "swordfish" not in str(caught.value)
    with pytest.raises(TransientError, match="does not answer") as away:
        store.connect(ClickHouseSettings(url=f"http://{LOOPBACK}:{free_port()}"))
    assert LOOPBACK not in str(away.value)
    missing = store.connect(with_database(server, "never_made"))
    with pytest.raises(ConfigError, match="run `driftline migrate`"):
        missing.models()
    with pytest.raises(ConfigError, match="letters, digits"):
        clickhouse.migrate(open_client(
            host=server.host, port=server.port, user="default", password=PASSWORD
        ), "a`b")  # fmt: skip


def test_rows_that_do_not_fit_are_refused(empty: Store) -> None:
    rows = pa.table({"partition": ["x"], "start_offset": ["y"]})
    with pytest.raises(RefusedError):
        empty.append("ledger", rows, token="bad")


def test_one_insert_may_span_more_months_than_clickhouse_allows_by_default(empty: Store) -> None:
    rows = [(MODEL, month * 31 * DAY, f"p{month}", "1", 0) for month in range(1, 160)]
    empty.append("labels", to_table("labels", rows), token="years")
    assert empty.link.rows("SELECT count() AS n FROM labels")[0]["n"] == 159


def test_the_join_key_of_each_model_is_what_its_newest_spec_says(empty: Store) -> None:
    keyed = parse_spec({"model": "a", "labels": {"join_key": ["request_id", "ce-id"]}}, origin="t")
    plain = parse_spec({"model": "b"}, origin="t")
    rows = [
        ("a", '{"model": "a"}', "", 1),  # of a release that knew no join key
        ("a", keyed.model_dump_json(), "", 2),
        ("b", keyed.model_dump_json(), "", 1),
        ("b", plain.model_dump_json(), "", 2),
        ("c", '{"model": "c"}', "", 1),
    ]
    empty.append("models", to_table("models", rows), token="m")
    assert empty.join_keys() == {"a": ["request_id", "ce-id"], "b": [], "c": []}


def test_the_spec_of_a_model_is_the_newest_that_was_stored(empty: Store) -> None:
    newest = parse_spec({"model": "a", "ingest": {"features": ["x"]}}, origin="t")
    rows = [
        ("a", '{"model": "a"}', "", 1),  # of a release that knew no ingest
        ("a", newest.model_dump_json(), "", 2),
        ("b", '{"model": "b"}', "", 1),
        ("c", '{"model": "c", "what": "comes later"}', "", 1),
    ]
    empty.append("models", to_table("models", rows), token="m")
    found = empty.spec("b")
    assert found is not None
    assert (empty.spec("a"), found.ingest.features, empty.spec("d")) == (newest, (), None)
    with pytest.raises(IncompatibleError, match="another release"):
        empty.spec("c")


def test_an_insert_under_a_token_counts_once(empty: Store) -> None:
    row = (MODEL, START, "a", "1", 0)
    for _ in range(2):
        empty.append("labels", to_table("labels", [row]), token="same")
    assert empty.link.rows("SELECT count() AS n FROM labels")[0]["n"] == 1


def test_the_newest_revision_is_read_whatever_the_order_of_inserts(empty: Store) -> None:
    def window(revision: int, *, final: bool, errors: int) -> Performance:
        return Performance(MODEL, "7", "", DAY, START, revision, 10, 5, errors, final, {"a": 0.5})

    for i, (revision, final) in enumerate([(2, True), (1, True), (2, False)]):
        row = performance_row(window(revision, final=final, errors=i))
        empty.append("performance", to_table("performance", [row]), token=str(i))
    assert empty.performance(MODEL) == [window(2, final=True, errors=0)]
    assert len(empty.performance(MODEL, final=True)) == 1


def test_what_was_stored_is_read_back_whole(filled: tuple[Store, Reference]) -> None:
    link, _ = filled
    (incident,) = [i for i in link.incidents(MODEL) if i.id == FIRING]
    assert link.incident(FIRING) == incident
    assert incident.evidence
    assert [i.id for i in link.incidents(state="firing")] == [FIRING]
    assert link.incident("nothing") is None
    again = to_table("incidents", [incident_row(incident)])
    link.append("incidents", again, token="again")
    assert [i for i in link.incidents() if i.id == FIRING] == [incident]
    (sent,) = link.deliveries(FIRING)
    assert (sent.outcome, sent.attempts) == ("delivered", 2)
    assert link.deliveries("nothing") == []


def test_models_say_what_was_seen_of_them(filled: tuple[Store, Reference]) -> None:
    link, reference = filled
    (model,) = link.models()
    assert (model.model, model.bins_id) == (MODEL, reference.layout.bins_id)
    assert (model.versions, model.segments, model.sizes_ms) == (["7"], [""], [DAY])
    assert (model.first_ms, model.last_ms) == (START, START + DAYS * DAY)
    assert model.spec["task"] == "binary"


def test_a_layout_is_rebuilt_from_what_was_stored(filled: tuple[Store, Reference]) -> None:
    link, reference = filled
    layout = link.layout(reference.layout.bins_id)
    assert layout is not None
    assert layout.bins_id == reference.layout.bins_id
    assert link.layout("unknown") is None


def test_a_distribution_stands_beside_its_reference(filled: tuple[Store, Reference]) -> None:
    link, reference = filled
    found = link.distribution(MODEL, "carrier", version="7", size_ms=DAY, start_ms=START)
    assert found is not None
    assert found.reference == reference.profiles[""].counts("carrier").tolist()
    assert sum(found.counts) == found.n == EVENTS
    assert found.labels == ["UA", "B6", "EV", "DL"]
    assert link.distribution(MODEL, "carrier", version="8", size_ms=DAY, start_ms=START) is None


def test_a_late_contribution_adds_to_its_window(
    empty: Store, filled: tuple[Store, Reference]
) -> None:
    _, reference = filled
    whole = reference.profiles[""]
    once, twice = whole, whole + whole
    for contribution, profile in (("", once), ("late", once), ("late", once)):
        _store_window(empty, reference, profile, contribution=contribution)
    (window,) = empty.windows(MODEL)
    assert (window.n, window.contributions) == (2 * whole.n, 1)
    (temp,) = empty.feature(MODEL, "temp", size_ms=DAY)
    n, mean, m2 = twice.moments("temp")
    assert (temp.n, temp.missing) == (n, twice.special("temp", "missing"))
    assert temp.mean == pytest.approx(mean)
    assert temp.variance == pytest.approx(m2 / n)
    ledger = empty.ledger()
    assert (ledger.total.closed, ledger.total.corrections) == (whole.n, whole.n)


def test_a_window_has_the_percentiles_of_all_its_latencies_late_ones_and_another_references_too(
    empty: Store,
) -> None:
    rng = np.random.default_rng(9)
    chosen, at = builders.spec(), START + 3 * DAY

    def timed(latencies: Floats) -> Columns:
        rows = builders.past(rng, len(latencies), start_ms=at, span_ms=DAY)
        return from_batch(rows.append_column("latency_ms", pa.array(latencies)), origin="test")

    samples = [[timed(values)] for values in rng.gamma(4, [[3.0], [9.0]], (2, 900))]
    old, new = (build(chosen, partial(list, sample)) for sample in samples)
    assert old.layout.bins_id != new.layout.bins_id
    slow = 10.0 ** rng.uniform(-3, 6.5, (3, 400))
    parts = [(old, "", slow[0]), (old, "late", slow[1]), (new, "", slow[2])]
    for known, contribution, values in parts:
        profile = builders.profile_of(known, timed(values))
        _store_window(empty, known, profile, contribution=contribution, start=at)
    without = builders.profile_of(old, builders.columns(builders.past(rng, 50)))
    _store_window(empty, old, without, start=at - DAY)
    found, none = empty.windows(MODEL, size_ms=DAY)
    assert (none.latency_p50, none.latency_p95, none.latency_p99) == (None, None, None)
    expected = percentiles(builders.profile_of(old, timed(slow.ravel())))
    assert found.n == slow.size
    assert (found.latency_p50, found.latency_p95, found.latency_p99) == expected
    assert empty.windows(MODEL, size_ms=DAY, limit=1) == [found]


def test_the_ledger_counts_each_event_once_though_windows_have_several_sizes(
    empty: Store, filled: tuple[Store, Reference]
) -> None:
    _, reference = filled
    whole = reference.profiles[""]
    for start in (START, START + DAY):
        _store_window(empty, reference, whole, start=start)
    _store_window(empty, reference, whole, size=7 * DAY)  # the other one is late, or still open
    _store_window(empty, reference, whole, segment="carrier=UA")
    assert empty.ledger().total.closed == 2 * whole.n


def test_a_window_in_which_the_reference_changed_keeps_both_parts_and_shows_the_newest_bins(
    empty: Store, filled: tuple[Store, Reference]
) -> None:
    _, old = filled
    new = fill(empty, days=1, seed=8)
    assert old.layout.bins_id != new.layout.bins_id
    empty.append("bins", to_table("bins", bins_rows(MODEL, old.profiles[""], 0)), token="old")
    at = START + DAY
    for reference, times in ((new, 1), (old, 2), (old, 2), (new, 1)):  # repeats, in any order
        part = reference.profiles[""]
        for _ in range(times - 1):
            part += reference.profiles[""]
        _store_window(empty, reference, part, start=at)
    n = 2 * old.profiles[""].n + new.profiles[""].n
    (window,) = empty.windows(MODEL, from_ms=at)
    assert (window.n, window.binnings, window.bins_id) == (n, 2, new.layout.bins_id)
    (series,) = empty.feature(MODEL, "carrier", size_ms=DAY, from_ms=at)
    assert series.n == n, "no carrier is missing"
    found = empty.distribution(MODEL, "carrier", version="7", size_ms=DAY, start_ms=at)
    assert found is not None
    assert (found.bins_id, found.n, found.elsewhere) == (
        new.layout.bins_id,
        new.profiles[""].n,
        2 * old.profiles[""].n,
    )
    assert found.counts == found.reference
    assert empty.ledger().total.closed == EVENTS + n
    sizes = {"from_ms": at, "to_ms": at + DAY}
    for reference in (old, new):
        extent = History(empty.link, MODEL, reference.layout, [DAY], **sizes).extent
        assert (extent.windows, extent.left_out) == (1, 1)
    past = History(empty.link, MODEL, new.layout, [DAY], **sizes)
    assert [w.profile.n for (w,) in past.by_end()] == [new.profiles[""].n]


def test_rows_of_the_release_before_come_along_when_the_windows_get_their_new_key(
    server: ClickHouseSettings, filled: tuple[Store, Reference]
) -> None:
    _, reference = filled
    whole = reference.profiles[""]
    settings = with_database(server, "upgraded")
    client = open_client(
        host=server.host, port=server.port, user=server.user, password=PASSWORD, secure=False
    )
    clickhouse.migrate(client, "upgraded", known=migrations()[:3])
    link = store.connect(settings)
    for contribution in ("", "late"):
        _store_window(link, reference, whole, contribution=contribution)
    before = link.windows(MODEL)
    # The migrations before it are written down, and this one was done by a run that did not get to write it down.
    clickhouse.migrate(client, "upgraded", known=migrations()[:5])
    for version in (4, 5):
        assert link.windows(MODEL) == before
        link.link.execute(f"DELETE FROM schema_migrations WHERE version >= {version}")
        clickhouse.migrate(client, "upgraded")
    _store_window(link, reference, whole)  # a repeat of what the release before has stored
    assert link.windows(MODEL) == before
    # A server that ended between the two renames.
    link.link.execute("RENAME TABLE windows TO windows_by_bins_2, windows_by_bins TO spare")
    link.link.execute("RENAME TABLE windows_by_bins_2 TO windows_by_bins")
    link.link.execute("DELETE FROM schema_migrations WHERE version >= 5")
    clickhouse.migrate(client, "upgraded")
    assert link.windows(MODEL) == before
    client.close()
    link.close()


def _store_window(
    link: Store,
    reference: Reference,
    profile: Profile,
    *,
    contribution: str = "",
    size: int = DAY,
    start: int = START,
    segment: str = "",
) -> None:
    window = Window(
        MODEL, "7", segment, size, start, contribution, 1, reference.layout.bins_id, profile.n,
        profile.to_bytes(),
    )  # fmt: skip
    token = str(np.random.default_rng().integers(2**60))  # none of these is a repeat to the token
    link.append("windows", to_table("windows", window_rows(window, reference.layout)), token=token)


def test_verdicts_are_found_by_what_they_say(filled: tuple[Store, Reference]) -> None:
    link, _ = filled
    known = link.verdicts(MODEL, feature="temp", statistic="psi", limit=2)
    assert [v.start_ms for v in known] == [START + (DAYS - 1) * DAY, START + (DAYS - 2) * DAY]
    (silent,) = link.verdicts(MODEL, status="no_data", to_ms=START + DAY)
    assert (silent.statistic, silent.value, silent.n) == ("ks", None, 3)
    assert link.verdicts("another model") == []


def test_a_verdict_keeps_its_evidence_and_onset(empty: Store) -> None:
    verdict = Verdict(
        "data_quality", "wind", "off_grid", "breach", 0.97, 0.01, None, 9, START, {"k": 1}
    )
    message = Verdicts("window", MODEL, "7", "", DAY, START, START + DAY, 9, 1, [verdict])
    empty.append("verdicts", to_table("verdicts", verdict_rows(message)), token="v")
    (row,) = empty.verdicts(MODEL)
    assert (row.onset_ms, row.evidence, row.value) == (START, {"k": 1}, 0.97)


def test_the_newest_answer_of_each_comparison_is_found(empty: Store) -> None:
    def said(day: int, *verdicts: tuple[str, str, str], version: str = "8") -> None:
        made = [
            Verdict("canary", feature, statistic, "ok", 0.0, None, None, 9, None,
                    {"answer": answer, "compared_with": "7"})
            for statistic, feature, answer in verdicts
        ]  # fmt: skip
        drift = Verdict("data_drift", "wind", "psi", "ok", 0.1, 0.2, 0.5, 9)
        at = START + day * DAY
        message = Verdicts("window", MODEL, version, "", DAY, at, at + DAY, 9, 1, [*made, drift])
        rows = to_table("verdicts", verdict_rows(message))
        empty.append("verdicts", rows, token=f"{version}{day}")

    said(0, ("more_errors", "$prediction", "not yet known"), ("inputs_differ", "wind", "differs"))
    said(1, ("inputs_differ", "temp", "differs"), ("more_errors", "$prediction", "worse"))
    said(2, ("more_errors", "$prediction", "not yet known"), version="9")
    found = empty.comparisons(MODEL, version="8")
    assert [(c.statistic, c.feature, c.answer) for c in found] == [
        ("more_errors", "$prediction", "worse"),
        ("inputs_differ", "temp", "differs"),
        ("inputs_differ", "wind", "differs"),
    ]
    assert found[0] == Comparison("more_errors", "$prediction", "ok", "worse", "7", START + 2 * DAY)
    later = empty.comparisons(MODEL, version="8", from_ms=START + DAY)
    assert [c.feature for c in later] == ["$prediction", "temp"]


def _seen(
    link: Store,
    model: str,
    version: str,
    first_day: float,
    last_day: float,
    *,
    segment: str = "",
    contribution: str = "",
    size: int = DAY,
) -> None:
    """Windows of a version that close from one day to another, every one of them twice."""
    ends = range(int(first_day * DAY), int(last_day * DAY) + 1, size)
    rows = [
        (
            *(model, version, segment, size, START + end - size, "", contribution, revision),
            *("b", 1, 0, (), *(0,) * 8, None, None, ()),
        )
        for revision in (1, 2)
        for end in ends
    ]
    for i, part in enumerate((rows[: len(ends)], rows[len(ends) :])):
        token = f"{model}{version}{segment}{contribution}{size}{i}"
        link.append("windows", to_table("windows", part), token=token)


def _opened(link: Store, name: str, model: str, version: str, day: float, *causes: Cause) -> None:
    """An incident with each of its causes, the newest stored first."""
    at = START + int(day * DAY)
    for revision, cause in reversed(list(enumerate(causes))):
        found = Incident(
            name, model, version, cause, "rollback", "error", "firing", "title", "reason",
            at, at, at, None, revision,
        )  # fmt: skip
        row = to_table("incidents", [incident_row(found)])
        link.append("incidents", row, token=f"{name}{revision}")


UNMERGED = "ALTER TABLE {} MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1"


def _sent(link: Store, name: str, incident: str, action: str, *outcomes: DeliveryOutcome) -> None:
    for at, outcome in reversed(list(enumerate(outcomes))):
        row = delivery_row(Delivery(name, incident, action, action, outcome, 1, START + at))
        link.append("deliveries", to_table("deliveries", [row]), token=f"{name}{at}")


def test_a_deployment_is_a_version_whose_first_window_closed_in_the_last_period_of_its_model(
    empty: Store,
) -> None:
    assert empty.releases() == Releases(0, 0, 0, 0)
    assert empty.releases().change_failure_rate is None
    end = 2 * PERIOD_MS // DAY
    edge = end - PERIOD_MS // DAY
    _seen(empty, "a", "1", 1, end)
    assert empty.releases().deployments == 0, "the first version was there before"
    _seen(empty, "a", "old", 5, end)
    _seen(empty, "a", "on the edge", edge, edge + 3)
    assert empty.releases().deployments == 0
    _seen(empty, "a", "behind it", edge + 0.5, edge + 3)
    _seen(empty, "a", "good", end - 5, end)
    assert empty.releases() == Releases(2, 0, 0, 0)
    _seen(empty, "a", OTHER_VERSION, end - 4, end)
    _seen(empty, "a", "only late", end - 4, end, contribution="x")
    _seen(empty, "a", "only a part", end - 4, end, segment="carrier=UA")
    _seen(empty, "a", "old", end - 1, end)  # traffic goes back to it
    assert empty.releases().deployments == 2
    _seen(empty, "b", "1", 1, 3)  # a year before the others: its period is its own
    _seen(empty, "b", "2", 1.5, 3, size=DAY // 24)
    _seen(empty, "c", "1", end, end)
    _seen(empty, "c", "2", end, end)  # both from the first window on
    assert empty.releases().deployments == 3
    assert empty.releases().change_failure_rate == 0.0


def test_a_version_begins_with_its_first_window_and_its_requests_are_those_of_the_smallest_windows(
    empty: Store,
) -> None:
    hour = DAY // 24
    for size, first_7, first_8 in ((hour, 1 / 24, 5.5), (DAY, 1, 6)):
        _seen(empty, "a", "7", first_7, 10, size=size)
        _seen(empty, "a", "8", first_8, 8, size=size)
        _seen(empty, "a", OTHER_VERSION, 2, 10, size=size)
        _seen(empty, "a", "9", 2, 10, size=size, segment="carrier=UA")
        _seen(empty, "b", "10", 2, 10, size=size)
    first_ms, last_ms = START + int(5.5 * DAY) - hour, START + 8 * DAY
    assert empty.versions("a") == [
        VersionRow("8", first_ms, last_ms, int(2.5 * 24) + 1),
        VersionRow("7", START, START + 10 * DAY, 240),
    ]
    assert [row.version for row in empty.versions("a", limit=1)] == ["8"]


def test_a_deployment_failed_if_a_bad_release_is_the_newest_cause_of_an_incident_of_it(
    empty: Store,
) -> None:
    for version, day in (("1", 1), ("2", 20), ("3", 30), ("4", 31)):
        _seen(empty, "a", version, day, 40)
    _seen(empty, "b", "4", 1, 40)
    empty.link.execute(UNMERGED.format("incidents"))  # each revision is there
    _opened(empty, "i1", "a", "2", 21, "unknown", "bad_release")
    _opened(empty, "i2", "a", "2", 22, "bad_release")  # a second one of the same version
    _opened(empty, "i3", "a", "3", 31, "bad_release", "drift")
    _opened(empty, "i4", "a", "1", 31, "bad_release")  # the first version is no deployment
    _opened(empty, "i5", "b", "4", 31, "bad_release")
    found = empty.releases()
    assert (found.deployments, found.failed) == (3, 1)
    assert found.change_failure_rate == pytest.approx(1 / 3)


def test_rollbacks_and_retrains_count_where_they_were_delivered_and_once(empty: Store) -> None:
    _seen(empty, "a", "1", 1, 90)
    for table in ("incidents", "deliveries"):
        empty.link.execute(UNMERGED.format(table))  # each revision is there
    edge = 90 - PERIOD_MS // DAY
    for name, day in (("edge", edge), ("new", edge + 0.1), ("newer", 90)):
        _opened(empty, name, "a", "1", day, "unknown", "drift")
    _opened(empty, "strange", "no windows", "1", 90, "drift")
    _sent(empty, "d1", "edge", "rollback", "delivered")
    _sent(empty, "d2", "new", "rollback", "delivered", "delivered")  # a repeat after a crash
    _sent(empty, "d3", "newer", "rollback", "unknown", "delivered")
    _sent(empty, "d4", "newer", "rollback", "delivered", "unknown")
    _sent(empty, "d5", "newer", "retrain", "dry_run")
    _sent(empty, "d6", "newer", "retrain", "delivered")
    _sent(empty, "d7", "newer", "notify", "delivered")
    _sent(empty, "d8", "strange", "retrain", "delivered")
    _sent(empty, "d9", "not stored yet", "retrain", "delivered")
    assert empty.releases() == Releases(0, 0, rollbacks=2, retrains=1)
