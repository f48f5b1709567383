"""What ClickHouse must hold after a chaos run: counted from the produced file, by other code.

Nothing here is shared with what it checks: the standard library's JSON, one value after the other, and no state between events but lists. The rules
are those of the wire contract and of the bins, written down again. Lateness has no part in it: late events are corrections, and the sum holds them.

A window is compared if it must have closed: if every partition has gone past its end by the lateness. Later ones are still open, here and there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from load.chaos.reading import Event, read
from load.chaos.tape import messages

# Without its quotes nan is the number.
WINDOWS_SQL: Final = """
SELECT model, version, segment, size_ms, toUnixTimestamp64Milli(start) AS start_ms, feature,
  sum(n) AS n, sum(errors) AS errors, sumForEach(counts) AS counts, sum(missing) AS missing, sum(`nan`) AS `nan`,
  sum(pos_inf) AS pos_inf, sum(neg_inf) AS neg_inf, sum(wrong_type) AS wrong_type,
  sum(below) AS below, sum(above) AS above, sum(off_grid) AS off_grid
FROM {database}.windows FINAL GROUP BY model, version, segment, size_ms, start, feature
"""
OTHERS: Final = "__other__"
SHOWN: Final = 20
_SPECIALS: Final = ("missing", "nan", "pos_inf", "neg_inf", "wrong_type")
_FLAGS: Final = ("below", "above", "off_grid")
_CHUNK: Final = 20_000  # events of a model as Python values, before they become codes
_OFF_GRID: Final = 1e-3  # of a step
_FLAG_BIT: Final = 16
_NUMBER: Final = (int, float)  # written as a union, it would be made anew for every value
_OUTPUTS: Final = {"$prediction": "prediction", "$score": "score", "$latency_ms": "latency_ms"}

Key: TypeAlias = tuple[
    str, str, str, int, int, str
]  # model, version, segment, size, start, feature
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cuts:
    """A numeric field: bin ``i`` is ``[edges[i - 1], edges[i])``. The grid is ``low + k * step``, or the ends of the bins if it is ``discrete``."""

    edges: Sequence[float]
    low: float
    high: float
    step: float | None
    discrete: bool

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.edges) + 1

    def place(self, value: object) -> int:
        """Class of a value, a bin or one of the specials behind them, and from bit 16 on its flag: 0 is none."""
        if value is None:
            return self.bins
        if not isinstance(value, _NUMBER):
            return self.bins + 4
        try:
            x = float(value)
        except OverflowError:
            x = inf if value > 0 else -inf
        if not isfinite(x):
            return self.bins + (1 if isnan(x) else 2 if x > 0 else 3)
        code = bisect_right(self.edges, x)
        return code | self._flag(x, code) << _FLAG_BIT

    def _flag(self, x: float, code: int) -> int:
        if self.step is not None:
            steps = (x - self.low) / self.step
            off = isfinite(steps) and abs(steps - round(steps)) > _OFF_GRID
        else:
            left = self.edges[code - 1] if code else self.low
            off = self.discrete and self.low <= x <= self.high and x != left
        return 3 if off else 1 if x < self.low else 2 if x > self.high else 0


@dataclass(frozen=True, slots=True)
class Categories:
    """A categorical field: its categories in order, then the others."""

    categories: Sequence[str]
    _codes: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._codes.update({text: i for i, text in enumerate(self.categories)})

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.categories) + 1

    def place(self, value: object) -> int:
        """Class of a value; it has no flags."""
        if value is None:
            return self.bins
        if isinstance(value, float) and not isfinite(value):
            return self.bins + (1 if isnan(value) else 2 if value > 0 else 3)
        text = value if isinstance(value, str) else _text(value)
        if text is None:
            return self.bins + 4
        return self._codes.get(text, len(self.categories))


@dataclass(frozen=True, slots=True)
class ModelBins:
    """A model's published reference in plain values (``load.chaos.bins.plain``).

    Attributes:
        fields: feature, or ``$prediction``, ``$score`` and ``$latency_ms`` -> its bins.
        segments: dimension -> the values that have a segment of their own.
    """

    name: str
    fields: Mapping[str, Cuts | Categories]
    segments: Mapping[str, Sequence[str]]
    sizes_ms: Sequence[int]
    lateness_ms: int


class Counts(NamedTuple):
    """One field of one window. For the window itself (feature ``""``) ``n`` are its events, and nothing but ``errors`` is counted beside it."""

    n: int
    errors: int
    counts: Sequence[int]
    specials: Sequence[int]
    flags: Sequence[int]


@dataclass(frozen=True)
class Expected:
    """What the file amounts to: ``events == good + dead``.

    Attributes:
        events_by_partition, dead_by_partition: partition -> events.
        windows: the rows of every window that must have closed.
        closed_ms: model -> the event time up to which its windows have closed.
    """

    events: int
    good: int
    dead: int
    events_by_partition: Mapping[int, int]
    dead_by_partition: Mapping[int, int]
    windows: Mapping[Key, Counts]
    closed_ms: Mapping[str, int]


def expected(path: Path, models: Sequence[ModelBins], *, now_ms: int) -> Expected:
    """Count a produced file.

    Args:
        path: a file of ``load.chaos.tape``.
        models: every model that it has events of.
        now_ms: the clock of the run: an event more than 5 minutes ahead of it is rejected.

    Raises:
        ValueError: an event of another model.
    """
    tallies = {model.name: _Tally(model) for model in models}
    events, dead, furthest = Counter[int](), Counter[int](), dict[int, int]()
    for message in messages(path):
        p = message.partition
        for event in read(message.value, message.headers, now_ms=now_ms):
            events[p] += 1
            if event is None:
                dead[p] += 1
                continue
            if event.model not in tallies:
                raise ValueError(f"{path}: nobody knows the model {event.model!r}")
            tallies[event.model].add(event)
            furthest[p] = max(event.ts_ms, furthest.get(p, event.ts_ms))
    passed = min(furthest.values())
    closed = {model.name: passed - model.lateness_ms for model in models}
    windows = {
        key: row for name, tally in tallies.items() for key, row in tally.windows(closed[name])
    }
    total, rejected = events.total(), dead.total()
    return Expected(total, total - rejected, rejected, events, dead, windows, closed)


def compare(expected: Expected, rows: Iterable[Sequence[Any]]) -> list[str]:
    """Differences between what is expected and the rows of ``WINDOWS_SQL``, as sentences; none: equal in every count.

    Windows that are still open are left out. At most ``SHOWN`` differences are told, then what they amount to.
    """
    found: list[str] = []
    seen: set[Key] = set()
    stored = wanted = 0
    for row in rows:
        model, version, segment, size_ms, start_ms, feature = row[:6]
        key = (model, version, segment, int(size_ms), int(start_ms), feature)
        if key[3] + key[4] > expected.closed_ms.get(model, inf):
            continue
        seen.add(key)
        stored += int(row[6])
        found += _differences(key, expected.windows.get(key), row)
    for key, counts in expected.windows.items():
        wanted += counts.n
        if key not in seen:
            found.append(f"{_named(key)} is missing: {counts.n:,} counts")
    if not found:
        return []
    more = len(found) - SHOWN
    total = f"{len(found):,} differences in {len(expected.windows):,} rows; {wanted:,} counts are expected and {stored:,} stored"
    return [*found[:SHOWN], *([f"and {more:,} more"] if more > 0 else []), total]


def _differences(key: Key, wanted: Counts | None, row: Sequence[Any]) -> Iterator[str]:
    if wanted is None:
        yield f"{_named(key)} should not be there: {int(row[6]):,} counts"
        return
    pairs = [("n", wanted.n, row[6]), ("errors", wanted.errors, row[7])]
    pairs += zip(_SPECIALS + _FLAGS, (*wanted.specials, *wanted.flags), row[9:17], strict=True)
    if len(wanted.counts) == len(row[8]):
        bins = zip(wanted.counts, row[8], strict=True)
        pairs += [(f"bin {i}", a, b) for i, (a, b) in enumerate(bins) if a != b]
    else:
        pairs.append(("bins", len(wanted.counts), len(row[8])))
    wrong = [f"{name} {int(b):,} instead of {int(a):,}" for name, a, b in pairs if a != b]
    if wrong:
        yield f"{_named(key)}: {', '.join(wrong[:5])}" + (", ..." if len(wrong) > 5 else "")


def _named(key: Key) -> str:
    model, version, segment, size_ms, start_ms, feature = key
    start = np.datetime64(start_ms, "ms").astype("datetime64[s]")
    place = f"{model} {version} {segment or 'whole'}"
    return f"{place}, {size_ms // 1_000} s from {start}, {feature or 'the window'}"


class _Tally:
    """The events of one model as columns of codes. Mutable: it gathers them."""

    def __init__(self, model: ModelBins) -> None:
        self._model = model
        self._events: list[Event] = []
        self._parts: dict[str, list[Ints]] = defaultdict(list)
        self._versions: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Take an event in."""
        self._events.append(event)
        if len(self._events) == _CHUNK:
            self._encode()

    def windows(self, closed_ms: int) -> Iterator[tuple[Key, Counts]]:
        """The rows of every window that ends by ``closed_ms``."""
        self._encode()
        columns = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        for dimension in ("", *self._model.segments):
            for size_ms in self._model.sizes_ms:
                last = closed_ms // size_ms  # windows are numbered from the epoch on
                rows = np.flatnonzero(columns["ts"] // size_ms < last)
                chosen = {name: column[rows] for name, column in columns.items()}
                yield from self._rows(dimension, size_ms, chosen)

    def _rows(
        self, dimension: str, size_ms: int, columns: Mapping[str, Ints]
    ) -> Iterator[tuple[Key, Counts]]:
        versions, segments = list(self._versions), [""]
        if dimension:
            kept = self._model.segments[dimension]
            segments = [f"{dimension}={value}" for value in (*kept, OTHERS)]
        place = columns["ts"] // size_ms * len(versions) + columns["version"]
        place = place * len(segments) + columns[f"by {dimension}"]
        places, cell = np.unique(place, return_inverse=True)
        number, s = np.divmod(places, len(segments))
        number, v = np.divmod(number, len(versions))
        keys = [
            (self._model.name, versions[i], segments[j], size_ms, start)
            for i, j, start in zip(v.tolist(), s.tolist(), (number * size_ms).tolist(), strict=True)
        ]
        both = zip(_table(cell, len(keys), columns["error"], 2), keys, strict=True)
        yield from (((*key, ""), Counts(a + b, b, (), [0] * 5, [0] * 3)) for (a, b), key in both)
        for name, bins in self._model.fields.items():
            code, flag = columns[name] & (1 << _FLAG_BIT) - 1, columns[name] >> _FLAG_BIT
            classes = _table(cell, len(keys), code, bins.bins + 5)
            flags = _table(cell, len(keys), flag, 4)
            for key, row, flagged in zip(keys, classes, flags, strict=True):
                counts = row[: bins.bins]
                yield (*key, name), Counts(sum(counts), 0, counts, row[bins.bins :], flagged[1:])

    def _encode(self) -> None:
        events, self._events = self._events, []
        for name, bins in self._model.fields.items():
            if name in _OUTPUTS:
                values = [getattr(e, _OUTPUTS[name]) for e in events]
            else:
                values = [e.features.get(name) for e in events]
            self._put(name, map(bins.place, values), "i4")
        known = self._versions
        self._put("version", (known.setdefault(e.version, len(known)) for e in events), "i2")
        self._put("ts", (e.ts_ms for e in events), "i8")
        self._put("error", (e.failed for e in events), "i1")
        self._put("by ", (0 for _ in events), "i2")
        for dimension, kept in self._model.segments.items():
            codes = {value: i for i, value in enumerate(kept)}
            texts = (_segment(_value(e, dimension)) for e in events)
            self._put(f"by {dimension}", (codes.get(text, len(kept)) for text in texts), "i2")

    def _put(self, name: str, values: Iterable[int], kind: str) -> None:
        self._parts[name].append(np.fromiter(values, dtype=kind))


def _table(cell: Ints, cells: int, code: Ints, width: int) -> list[list[int]]:
    """How often each code occurs in each cell."""
    counted = np.bincount(cell * width + code, minlength=cells * width)
    table: list[list[int]] = counted.reshape(cells, width).tolist()
    return table


def _value(event: Event, dimension: str) -> object:
    if dimension.startswith("tags."):
        return event.tags.get(dimension.removeprefix("tags."))
    return event.features.get(dimension)


def _segment(value: object) -> str:
    """Text by which a value has a segment: none for a missing one, and what has no text is among the others."""
    return "" if value is None else _text(value) or OTHERS


def _text(value: object) -> str | None:
    """A number or a boolean as a category; ``None`` for what is none."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if isfinite(value):
            return str(int(value)) if value.is_integer() else repr(value)
        case _:
            return None
