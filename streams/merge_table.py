"""The rows of the ``merge`` stage's table: what each holds, and how it is written.

Rows of an earlier release must load: fields are added at the end, with defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from monitor import wire
from monitor.panes import SeriesKey
from monitor.volume import Told

PANE: Final = b"pane/"
SERIES: Final = b"series/"
VERSIONS: Final = b"versions/"
VOLUME: Final = b"volume/"
CROWDED: Final = b"crowded"

T = TypeVar("T")


class PaneState(msgspec.Struct, array_like=True):
    """An open pane and, beside it, its fence."""

    key: SeriesKey
    start_ms: int
    offset: int
    profile: bytes


class SeriesState(msgspec.Struct, array_like=True):
    """A series: its open windows, what its judge remembers, and its fence."""

    key: SeriesKey
    offset: int
    first_ms: int | None
    through_ms: int | None
    windows: list[tuple[int, int, bytes]]  # size, start, profile
    judge: bytes


class RosterState(msgspec.Struct, array_like=True):
    """Who has a place; of the message at ``offset`` all its decisions, for the case that it comes again."""

    model: str
    bins_id: str
    offset: int
    steps: list[tuple[int, dict[str, int]]]
    guests: list[str] = []


class VolumeState(msgspec.Struct, array_like=True):
    """The past weeks of a model; what the message at ``offset`` made of them, for the case that it comes again."""

    model: str
    bins_id: str
    offset: int
    weeks: bytes
    told: list[Told]


class Crowded(msgspec.Struct, array_like=True):
    """Deltas of the message at ``offset`` that found no room."""

    offset: int
    deltas: list[int]


def having(rows: Mapping[bytes, bytes], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows of one kind."""
    return ((key, value) for key, value in rows.items() if key.startswith(prefix))


def pane_key(key: SeriesKey, start_ms: int) -> bytes:
    """Key of an open pane."""
    return PANE + msgspec.json.encode((*key, start_ms))


def series_key(key: SeriesKey) -> bytes:
    """Key of a series."""
    return SERIES + msgspec.json.encode(tuple(key))


def versions_key(model: str, bins_id: str) -> bytes:
    """Key of a roster."""
    return VERSIONS + msgspec.json.encode((model, bins_id))


def volume_key(model: str) -> bytes:
    """Key of a model's past weeks."""
    return VOLUME + model.encode()


def encode(state: msgspec.Struct) -> bytes:
    """The value of a row."""
    return wire.pack(msgspec.msgpack.encode(state))


def decode(value: bytes, kind: type[T]) -> T:
    """What is in a row.

    Raises:
        IncompatibleError, msgspec.MsgspecError: damaged, or of another release.
    """
    return msgspec.msgpack.decode(wire.unpack(value), type=kind)
