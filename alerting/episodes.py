"""Episodes: times at which something is known to have been wrong, and whether a page found each of them.

A page belongs to an episode if what it was about, from its onset to its opening, overlaps it, and if it names the episode's feature
where one is given. How many pages belong to none is the number of false ones, as far as the list of episodes is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, Literal

import msgspec

from monitor.errors import ConfigError

MAX_EPISODES: Final = 10_000
_COLUMNS: Final = ("start", "end", "name", "feature", "kind")
_TIME: Final = "a time such as 2013-05-13, 2013-05-13T06:00Z or epoch milliseconds"
_MAX_TEXT: Final = 256

Found = Literal["found", "missed", "open_already", "outside"]


class Episode(msgspec.Struct, frozen=True):
    """Something was wrong in ``[start_ms, end_ms)``. ``name`` and ``kind`` are for people; ``feature`` must be named by a page."""

    start_ms: int
    end_ms: int
    name: str = ""
    feature: str = ""
    kind: str = ""


class Page(msgspec.Struct, frozen=True):
    """An incident that opened, or opened again, as it was told: its cause and the features of its evidence at that moment."""

    id: str
    family: str
    cause: str
    title: str
    onset_ms: int
    opened_ms: int
    resolved_ms: int | None
    features: list[str]


class Sighting(msgspec.Struct, frozen=True):
    """What became of an episode.

    ``open_already`` is no success: an older incident was open all the while and nobody was paged anew. ``outside`` episodes lie
    outside of the replayed time. ``delay_ms`` runs from the episode's start to the first page, where one came.
    """

    name: str
    found: Found
    delay_ms: int | None


def sight(
    episodes: Sequence[Episode], pages: Sequence[Page], *, from_ms: int, to_ms: int
) -> list[Sighting]:
    """What became of each episode in a replay of ``[from_ms, to_ms)``. O(episodes * pages)."""
    return [_sight(episode, pages, from_ms, to_ms) for episode in episodes]


def false_pages(episodes: Sequence[Episode], pages: Iterable[Page]) -> int:
    """Pages that belong to no episode."""
    return sum(not any(_is_about(page, episode) for episode in episodes) for page in pages)


def parse_time(value: object) -> int:
    """Epoch milliseconds of ISO 8601 text, a date, a datetime, or epoch milliseconds; UTC unless it says otherwise.

    Raises:
        ValueError: none of these.
    """
    match value:
        case bool():
            pass
        case int() if value >= 0:
            return value
        case str() if value.strip().isdecimal() and len(value.strip()) > 8:  # 20130513 is a date
            return int(value)
        case str():
            return _moment(_read(value.strip()))
        case datetime():
            return _moment(value)
        case date():
            return _moment(datetime(value.year, value.month, value.day, tzinfo=UTC))
        case _:
            pass
    raise ValueError(f"give {_TIME}")


def parse_episodes(rows: object, *, origin: str) -> tuple[Episode, ...]:
    """Episodes from mappings with ``start``, ``end`` and, if wanted, ``name``, ``feature`` and ``kind``; by start.

    Raises:
        ConfigError: anything else; one line that names the row, without its values.
    """
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{origin}: expected a list of incidents with start and end")
    if len(rows) > MAX_EPISODES:
        raise ConfigError(f"{origin}: more than {MAX_EPISODES:,} incidents")
    found = [_episode(row, f"{origin}: incident {i}") for i, row in enumerate(rows, 1)]
    return tuple(sorted(found, key=lambda e: (e.start_ms, e.end_ms, e.name)))


def _episode(row: Any, where: str) -> Episode:
    if not isinstance(row, Mapping) or not {"start", "end"} <= set(row) <= set(_COLUMNS):
        raise ConfigError(f"{where}: give start and end, and at most {', '.join(_COLUMNS[2:])}")
    times = {}
    for name in ("start", "end"):
        try:
            times[name] = parse_time(row[name])
        except ValueError as err:
            raise ConfigError(f"{where}: {name}: {err}") from err
    if times["start"] >= times["end"]:
        raise ConfigError(f"{where}: start is not before end")
    texts = {name: str(row.get(name) or "")[:_MAX_TEXT] for name in _COLUMNS[2:]}
    return Episode(times["start"], times["end"], **texts)


def _read(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as err:
        raise ValueError(f"give {_TIME}") from err


def _moment(at: datetime) -> int:
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    ms = round(at.timestamp() * 1_000)
    if ms < 0:
        raise ValueError(f"give {_TIME}, not before 1970")
    return ms


def _sight(episode: Episode, pages: Sequence[Page], from_ms: int, to_ms: int) -> Sighting:
    name = episode.name or episode.feature or episode.kind
    if episode.end_ms <= from_ms or episode.start_ms >= to_ms:
        return Sighting(name, "outside", None)
    about = [page.opened_ms for page in pages if _is_about(page, episode)]
    if about:
        return Sighting(name, "found", min(about) - episode.start_ms)
    covered = any(
        page.opened_ms <= episode.start_ms
        and (page.resolved_ms is None or page.resolved_ms > episode.start_ms)
        for page in pages
    )
    return Sighting(name, "open_already" if covered else "missed", None)


def _is_about(page: Page, episode: Episode) -> bool:
    overlaps = page.onset_ms < episode.end_ms and page.opened_ms > episode.start_ms
    return overlaps and (not episode.feature or episode.feature in page.features)
