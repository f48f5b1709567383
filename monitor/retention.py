"""How long rows are kept: the shorter a window, the sooner what is known of its features goes; what was rolled up stays.

What stays longest is that a window was, and how many events it had: one row of it in hundreds. The whole model's are never deleted, as the ledger compares them with
what was booked since the beginning. Ages count from the day of storing: a replay of last year is to be kept.
"""

from __future__ import annotations

from monitor.clickhouse import ClickHouse
from monitor.queries import DAY_MS, HOUR_MS
from monitor.settings import ClickHouseSettings


def apply(link: ClickHouse, settings: ClickHouseSettings) -> list[str]:
    """Have the tables keep their rows as the settings say; names of those where that is another than it was. Several may do this at once."""
    changed = []
    for table, rule in rules(settings).items():
        before = _engine(link, table)
        # The same rule again changes nothing; another one is applied to the rows that there are, in the background.
        link.execute(f"ALTER TABLE {table} MODIFY TTL {rule}")
        if _engine(link, table) != before:
            changed.append(table)
    return changed


def rules(settings: ClickHouseSettings) -> dict[str, str]:
    """By table, its ``TTL`` clause."""
    keep = settings.keep_days
    by_size = (
        f"size_ms < {HOUR_MS}, {settings.keep_short_days},"
        f" size_ms < {DAY_MS}, {settings.keep_hours_days}, {keep}"
    )
    windows = _after(f"multiIf(feature = '', {keep}, {by_size})")
    events = _after(str(settings.keep_events_days))
    return {
        "windows": f"{windows} DELETE WHERE feature != '' OR segment != ''",
        "windows_rolled": windows,
        "verdicts": _after(f"multiIf({by_size})"),
        "performance": _after(str(keep)),
        "predictions": events,
        "labels": events,
        "outcomes": events,
    }


def _after(days: str) -> str:
    """In whole weeks: rows that end one by one would have their part written anew each day, and each week is often enough."""
    return f"toMonday(stored_at) + toIntervalDay(7 + {days})"


def _engine(link: ClickHouse, table: str) -> str:
    found = link.rows(
        "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
        {"table": table},
    )
    return str(found[0]["engine_full"])
