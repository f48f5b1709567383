"""What the API does with predictions that come by HTTP: read, checked by the rule of the profiler, and taken to the topic.

::

    body ──► rows ──► events.decode_message ──► messages for the topic ──► the broker has them ──► 202
      └ half ──► Halves ─┘ (with the other half, or alone once it is due)

Of a body the good rows are taken and the others named. Where the broker does not take them, halves that were waiting wait on.
"""

from __future__ import annotations

import io
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import pyarrow as pa
import structlog

from monitor import metrics
from monitor.arrow import read_table
from monitor.captures import Said, body_of, capture_of
from monitor.errors import DriftlineError, InvalidEventError, TransientError
from monitor.events import (
    ARROW_TYPE,
    CLOUDEVENT_TYPE,
    JSON_HEADERS,
    JSON_TYPE,
    MAX_BODY,
    RAW_LIST,
    Event,
    Limits,
    Post,
    Record,
    decode_message,
    parsed,
    parts,
    record_of,
    refuse_many,
    where,
)
from monitor.halves import Envelope, Half, HalfFate, Halves, Pair, binary, half_of, structured
from monitor.inference import Reading, event_rows
from monitor.labels import Receipt
from monitor.store import Store
from monitor.tables import FOREVER_MS

LINES_TYPE: Final = "application/x-ndjson"
BATCH_TYPE: Final = "application/cloudevents-batch+json"
_FRESH_MS: Final = 10_000  # for which a spec is not asked for again
_MAX_KNOWN: Final = 1_000
_MAX_ATTRIBUTE: Final = 256


@dataclass(slots=True)
class Haul:
    """What one request brings. Mutable: it is filled row by row.

    Attributes:
        events: key and JSON of each event that is to be taken.
        records: messages that go as they came, ``forwarded`` events in them.
        waiting: halves that it took from those that wait: they wait on if nothing comes of it.
        fates: of its halves; ``held``: those that wait now.
    """

    receipt: Receipt = field(default_factory=Receipt)
    events: list[tuple[str | None, bytes]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    forwarded: int = 0
    waiting: list[Half] = field(default_factory=list)
    fates: Counter[HalfFate] = field(default_factory=Counter)
    held: int = 0

    @property
    def size(self) -> int:
        """Events in it."""
        return len(self.events) + self.forwarded

    def refuse(self, row: int, err: InvalidEventError) -> None:
        """Note that a row is no prediction, and why."""
        self.receipt.refuse(row, err)
        metrics.INGEST_REFUSED.labels(err.reason).inc()

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**self.receipt.to_dict(), "held": self.held, "halves": dict(self.fates)}


class Ingest:
    """Reads predictions into a haul, and takes that to the broker. Any number of threads may use it at once; it owns the halves that wait."""

    def __init__(
        self,
        store: Store,
        post: Post,
        limits: Limits,
        clock_ms: Callable[[], int],
        halves: Halves | None = None,
    ) -> None:
        self._store, self._post, self._clock_ms = store, post, clock_ms
        self._limits = replace(limits, message_bytes=min(limits.message_bytes, MAX_BODY))
        self._in_array = replace(self._limits, json_depth=limits.json_depth - 1)
        self._halves = Halves() if halves is None else halves
        self._lock = threading.Lock()  # of the halves
        self._readings: OrderedDict[str, tuple[int, Reading]] = OrderedDict()

    def events(self, body: bytes, media_type: str) -> Haul:
        """Events of ours: a JSON object, an array, lines, or an Arrow stream."""
        haul = Haul()
        if media_type == ARROW_TYPE:
            self._arrow(haul, body)
        elif media_type == JSON_TYPE and body.lstrip()[:1] != b"[":
            self._forward(haul, 1, body, JSON_HEADERS)
        else:
            for number, row in enumerate(_rows(haul, body, media_type, self._limits), 1):
                self._add(haul, number, row)
        return haul

    def cloudevents(
        self, body: bytes, media_type: str, headers: Mapping[str, str], said: Said
    ) -> Haul:
        """CloudEvents, each an event of ours or a half.

        Args:
            body: one, with its attributes in ``headers`` or in itself, or many, as an array or as lines.
            media_type: tells these apart.
            headers: of the request, names in lower case.
            said: what the sender says of all of them.

        Raises:
            TransientError: the database does not answer, and has to.
        """
        haul = Haul()
        with self._undone(haul):
            if media_type == CLOUDEVENT_TYPE:
                self._cloudevent(haul, 1, body, said)
            elif "ce-type" in headers:
                self._binary(haul, binary(headers, body), media_type, said)
            else:
                for number, row in enumerate(_rows(haul, body, media_type, self._limits), 1):
                    self._cloudevent(haul, number, row, said)
        return haul

    def captures(self, body: bytes, media_type: str, said: Said) -> Haul:
        """Records that hold request and response: one, an array or lines.

        Raises:
            TransientError: as ``cloudevents``.
        """
        haul = Haul()
        for number, row in enumerate(_rows(haul, body, media_type, self._limits), 1):
            try:
                capture = capture_of(parsed(row, self._in_array), said, self._limits)
                reading = self._reading(capture.about.model)
                events = event_rows(capture.about, reading, capture.request, capture.response)
            except InvalidEventError as err:
                haul.refuse(number, err)
                continue
            self._add(haul, number, *events)
        return haul

    def take(self, haul: Haul, due_ms: int | None = None) -> None:
        """Take to the broker what is in a haul, and the halves that are due at a time, by default now.

        Raises:
            DriftlineError: nothing is sure to be taken; halves that waited wait on.
        """
        alone = Haul()
        with self._undone(haul):
            now_ms = self._clock_ms() if due_ms is None else due_ms
            with self._lock:
                due = self._halves.due(now_ms)
            haul.waiting += due
            for half in due:
                self._alone(alone, half)
            records = [
                *haul.records,
                *alone.records,
                *map(record_of, parts([*haul.events, *alone.events])),
            ]
            if records:
                self._post(records)
        haul.receipt.accepted = haul.size
        metrics.INGESTED.inc(haul.size + alone.size)
        for fate, n in (haul.fates + alone.fates).items():
            metrics.HALVES.labels(fate).inc(n)
        metrics.HALVES_HELD.set(len(self._halves))

    def sweep(self, *, ending: bool = False) -> None:
        """Halves that have waited long enough go on alone; at the end, all of them. Where the broker does not take them they wait on."""
        haul = Haul()
        try:
            self.take(haul, FOREVER_MS if ending else None)
        except DriftlineError as err:
            log = structlog.get_logger(__name__)
            if ending:
                n = sum(half.side == "request" for half in haul.waiting)
                metrics.HALVES.labels("lost").inc(n)
                log.error("requests that waited are lost", n=n, error=str(err))  # noqa: TRY400  # no defect
            else:
                log.warning("requests wait on: the broker did not take them", error=str(err))

    def _arrow(self, haul: Haul, body: bytes) -> None:
        """The stream as it came, or without its bad rows."""
        headers = {"content-type": ARROW_TYPE.encode()}
        limits = self._limits
        outcomes = decode_message(body, headers, limits, now_ms=self._clock_ms())
        good = [isinstance(outcome, Event) for outcome in outcomes]
        for number, outcome in enumerate(outcomes, 1):
            if isinstance(outcome, InvalidEventError):
                haul.refuse(number, outcome)
        if not any(good):
            return
        kept = body if all(good) else _filtered(body, good, limits)
        if kept is None:
            detail = "its good rows make no message without the others"
            haul.refuse(1, InvalidEventError("too_large", detail))
            return
        haul.records.append(Record(None, kept, headers))
        haul.forwarded += sum(good)

    def _forward(self, haul: Haul, number: int, value: bytes, headers: Mapping[str, bytes]) -> None:
        """A message as it came, all of its events or none."""
        outcomes = decode_message(value, headers, self._limits, now_ms=self._clock_ms())
        for outcome in outcomes:
            if isinstance(outcome, InvalidEventError):
                haul.refuse(number, outcome)
                return
        key = outcomes[0].id if len(outcomes) == 1 and isinstance(outcomes[0], Event) else None
        haul.records.append(Record(None if key is None else str(key), value, headers))
        haul.forwarded += len(outcomes)

    def _add(self, haul: Haul, number: int, *rows: bytes) -> None:
        """Events that are good; the others are refused under a number."""
        for row in rows:
            if row.lstrip()[:1] != b"{":
                haul.refuse(number, InvalidEventError("not_json", "it is no object"))
                continue
            (outcome,) = decode_message(row, {}, self._in_array, now_ms=self._clock_ms())
            if isinstance(outcome, Event):
                haul.events.append((None if outcome.id is None else str(outcome.id), row))
            else:
                haul.refuse(number, outcome)

    def _cloudevent(self, haul: Haul, number: int, value: bytes, said: Said) -> None:
        try:
            envelope = structured(value, self._limits)
            half = self._half_of(envelope, said)
        except InvalidEventError as err:
            haul.refuse(number, err)
            return
        if half is None:
            self._forward(haul, number, value, {"content-type": CLOUDEVENT_TYPE.encode()})
        else:
            self._half(haul, number, half)

    def _binary(self, haul: Haul, envelope: Envelope, media_type: str, said: Said) -> None:
        try:
            half = self._half_of(envelope, said)
        except InvalidEventError as err:
            haul.refuse(1, err)
            return
        if half is not None:
            self._half(haul, 1, half)
            return
        attributes = {
            f"ce_{name}": envelope.attributes[name][:_MAX_ATTRIBUTE].encode()
            for name in ("id", "time")
            if name in envelope.attributes
        }
        of_type = ARROW_TYPE if media_type == ARROW_TYPE else JSON_TYPE
        headers = {"content-type": of_type.encode(), **attributes}
        self._forward(haul, 1, envelope.data, headers)

    def _half_of(self, envelope: Envelope, said: Said) -> Half | None:
        return half_of(
            envelope, arrival_ms=self._clock_ms(), model=said.model, version=said.version
        )

    def _half(self, haul: Haul, number: int, half: Half) -> None:
        try:
            alone = self._rows_of(half)  # what is wrong with it, whoever sent it hears now
            mode = self._reading(half.about.model).ingest.mode
            if mode == half.side:
                self._add(haul, number, *alone)
            elif mode != "all":
                detail = f"a {half.side}, and ingest of the model's spec has mode: {mode}"
                haul.refuse(number, InvalidEventError("wrong_type", detail))
            else:
                self._meet(haul, number, half)
        except InvalidEventError as err:
            haul.refuse(number, err)

    def _meet(self, haul: Haul, number: int, half: Half) -> None:
        with self._lock:
            met = self._halves.meet(half, self._clock_ms())
        if met == "held":
            haul.held += 1
        elif isinstance(met, Pair):
            haul.waiting.append(met.response if half.side == "request" else met.request)
            self._add(haul, number, *self._rows_of(*met))
            haul.fates["joined"] += 1
        else:
            haul.fates[met] += 1

    def _rows_of(self, *halves: Half) -> list[bytes]:
        """Events of a half, or of both."""
        bodies = {h.side: body_of(parsed(h.body, self._limits), self._limits) for h in halves}
        about = halves[0].about  # the request's where there is one
        request, response = bodies.get("request"), bodies.get("response")
        return event_rows(about, self._reading(about.model), request, response)

    def _alone(self, haul: Haul, half: Half) -> None:
        if half.side == "response":
            haul.fates["response_alone"] += 1
            return
        try:
            self._add(haul, 1, *self._rows_of(half))
            haul.fates["request_alone"] += 1
        except InvalidEventError as err:  # the spec is another one since it came
            haul.refuse(1, err)

    @contextmanager
    def _undone(self, haul: Haul) -> Iterator[None]:
        """If something is away meanwhile, the halves that it took wait on."""
        try:
            yield
        except DriftlineError:
            now_ms = self._clock_ms()
            with self._lock:
                for half in haul.waiting:
                    self._halves.back(half, now_ms)
            raise

    def _reading(self, model: str) -> Reading:
        """How the bodies of a model are read. While the database is away, as before.

        Raises:
            TransientError: it is, and was not asked before.
        """
        now_ms = self._clock_ms()
        asked_ms, known = self._readings.get(model, (0, None))
        if known is not None and now_ms - asked_ms < _FRESH_MS:
            return known
        try:
            spec = self._store.spec(model)
        except TransientError:
            if known is None:
                raise
            return known
        reading = Reading() if spec is None else Reading.of(spec)
        with self._lock:
            self._readings[model] = now_ms, reading
            while len(self._readings) > _MAX_KNOWN:
                self._readings.popitem(last=False)
        return reading


def _rows(haul: Haul, body: bytes, media_type: str, limits: Limits) -> Sequence[bytes]:
    """Rows of a body: lines, or JSON, an object or an array of it. What is neither is refused as the first."""
    if media_type not in (JSON_TYPE, BATCH_TYPE):
        rows = [line for line in body.splitlines() if line.strip()]
    elif body.lstrip()[:1] != b"[":
        return [body]
    else:
        try:
            rows = [bytes(raw) for raw in RAW_LIST.decode(body)]
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
            haul.refuse(1, InvalidEventError("not_json", where(err)))
            return []
    try:
        refuse_many(rows, limits)
    except InvalidEventError as err:
        haul.refuse(1, err)
        return []
    return rows


def _filtered(body: bytes, good: Sequence[bool], limits: Limits) -> bytes | None:
    """A stream of the good rows; ``None`` where a type has no filter, or nothing is won by it."""
    sink = io.BytesIO()
    table = read_table(body, max_bytes=limits.message_bytes, max_columns=limits.features)
    try:
        table = table.filter(pa.array(good))
    except pa.ArrowException:
        return None
    options = pa.ipc.IpcWriteOptions(compression="zstd")  # so it may have come
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue() if sink.tell() <= limits.message_bytes else None
