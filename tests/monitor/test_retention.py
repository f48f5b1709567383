from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import pytest
from pydantic import ValidationError

from load.markdown import README
from monitor import retention, store
from monitor.settings import ClickHouseSettings
from monitor.store import Store
from tests.monitor.builders import DAY, HOUR, MINUTE
from tests.monitor.stored import endpoint

SIZES: Final = (MINUTE, HOUR, DAY)
AGES: Final = (1, 50, 250, 500)  # days


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with endpoint(tmp_path_factory.mktemp("retention")) as settings:
        yield settings


@pytest.fixture
def link(server: ClickHouseSettings, request: pytest.FixtureRequest) -> Iterator[Store]:
    settings = server.model_copy(update={"database": f"r_{abs(hash(request.node.name))}"})
    store.migrate(settings)
    opened = store.connect(settings)
    yield opened
    opened.close()


def put(link: Store, table: str, columns: str) -> None:
    """A row of each size and age, all of the same month, so that they share a part."""
    link.link.execute(
        f"INSERT INTO {table} (model, version, size_ms, start, stored_at, {columns.split(':')[0]})"
        f" SELECT 'm', '1', size, fromUnixTimestamp64Milli(toInt64(age * {DAY} / 100), 'UTC'), now() - toIntervalDay(age), {columns.split(':')[1]}"
        f" FROM (SELECT arrayJoin({list(SIZES)}) AS size, arrayJoin({list(AGES)}) AS age)"
    )


def left(link: Store, table: str, where: str = "1") -> dict[int, int]:
    """By size, how many of the ages are left once the database has merged."""
    link.link.execute(f"OPTIMIZE TABLE {table} FINAL")
    rows = link.link.rows(
        f"SELECT size_ms, count() AS n FROM {table} WHERE {where} GROUP BY size_ms"
    )
    return {row["size_ms"]: row["n"] for row in rows}


def test_features_of_short_windows_go_first_and_the_models_own_numbers_never(link: Store) -> None:
    for feature in ("", "wind"):
        for segment in ("", "a=b"):
            put(link, "windows", f"feature, segment, n:'{feature}', '{segment}', 5")
    assert left(link, "windows", "feature = 'wind'") == {MINUTE: 2, HOUR: 4, DAY: 6}
    assert left(link, "windows", "feature = '' AND segment = ''") == dict.fromkeys(SIZES, 4)
    assert left(link, "windows", "feature = '' AND segment != ''") == dict.fromkeys(SIZES, 3)
    assert link.ledger().total.closed == 5 * len(AGES), "the ledger has lost nothing"


def test_verdicts_go_with_their_windows_and_performance_stays(link: Store) -> None:
    put(link, "verdicts", "feature, statistic:'wind', 'psi'")
    assert left(link, "verdicts") == {MINUTE: 1, HOUR: 2, DAY: 3}
    put(link, "performance", "predictions:1")
    assert left(link, "performance") == dict.fromkeys(SIZES, 3)


def test_a_changed_setting_is_applied_by_the_next_migrate_to_what_is_there(
    link: Store, server: ClickHouseSettings
) -> None:
    put(link, "windows", "feature:'wind'")
    settings = server.model_copy(update={"database": link.link.database})
    assert retention.apply(link.link, settings) == []
    longer = settings.model_copy(update={"keep_days": 3_650})
    assert retention.apply(link.link, longer) == [
        "windows",
        "windows_rolled",
        "verdicts",
        "performance",
    ]
    put(link, "windows", "feature, segment:'wind', 'a=b'")
    assert left(link, "windows", "segment = 'a=b'")[DAY] == 4
    shorter = settings.model_copy(update={"keep_short_days": 40, "keep_hours_days": 40})
    shorter = shorter.model_copy(update={"keep_days": 40})
    store.migrate(shorter)
    assert left(link, "windows") == dict.fromkeys(SIZES, 2)
    assert retention.apply(link.link, shorter) == []


def test_windows_are_kept_no_longer_than_what_they_are_rolled_up_to() -> None:
    with pytest.raises(ValidationError, match="rolled up"):
        ClickHouseSettings(keep_short_days=200)
    with pytest.raises(ValidationError, match="rolled up"):
        ClickHouseSettings(keep_hours_days=500)


def test_the_readme_says_how_long_rows_are_kept() -> None:
    text, settings = README.read_text(encoding="utf-8"), ClickHouseSettings()
    rows = re.findall(r"\| (\d+) \| `DRIFTLINE_CLICKHOUSE__(KEEP_\w+)` \|", text)
    assert {name.lower(): int(days) for days, name in rows} == {
        name: value for name, value in settings.model_dump().items() if name.startswith("keep_")
    }
