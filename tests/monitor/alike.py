"""That events read as columns are the events that ``monitor.events`` decodes: bit by bit, for whatever reads them."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from monitor.binning import Bins, CategoricalBins, NumericBins, cut_numeric
from monitor.events import Event, Limits, decode_messages
from monitor.kernel import Form, Found
from monitor.profile import LATENCY, PREDICTION, SCORE, Layout
from monitor.rows import Rows

NOW: Final = 1_764_000_000_000
LIMITS: Final = Limits(max_age_ms=400 * 86_400_000, features=6, message_bytes=3_000)
NUMBERS: Final = NumericBins(np.array([0.0, 1.0, 2.5]), -3.0, 9.0, 1.0, 2.0)
TEXTS: Final = CategoricalBins(("red", "7", "true", "größe", ""))
SEGMENTS: Final = {"colour": ("red", "7"), "tags.region": ("eu", "12"), "amount": ("1", "2.5")}


def layout(prediction: NumericBins | CategoricalBins | None) -> Layout:
    outputs: dict[str, Bins] = {} if prediction is None else {PREDICTION: prediction}
    features: dict[str, Bins] = {"amount": NUMBERS, "wide": cut_numeric(np.arange(50.0)), "colour": TEXTS, "größe": TEXTS, 'a"b': NUMBERS}  # fmt: skip
    return Layout({**features, **outputs, SCORE: NUMBERS, LATENCY: NUMBERS})


FORMS: Final = {
    "classes": Form(layout(TEXTS), [*SEGMENTS]),
    "numbers": Form(layout(NUMBERS), [*SEGMENTS]),
    "silent": Form(layout(None), [], aliased=True),
}


def aliases(model: str) -> Sequence[str]:
    return ["order"] if model == "silent" else ()


def check(
    found: Found, messages: Sequence[tuple[bytes, Mapping[str, bytes]]], limits: Limits = LIMITS
) -> None:
    """That what was found in the messages is what they are."""
    assert len(found.rows_of) == len(messages)
    outcomes = list(decode_messages(messages, limits, now_ms=NOW, aliases=aliases))
    for i, n in enumerate(found.rows_of.tolist()):
        if n:
            assert all(isinstance(outcome, Event) for outcome in outcomes[i]), messages[i]
            assert n == len(outcomes[i]), messages[i]
    assert np.array_equal(np.bincount(found.message, minlength=len(messages)), found.rows_of)
    events: list[Any] = []
    came = Counter[int]()
    for i in found.message.tolist():  # those of a message come in their order
        events.append(outcomes[i][came[i]])
        came[i] += 1
    assert found.ts_ms.tolist() == [event.ts_ms for event in events]
    assert sorted(found.of_model) == sorted({event.model for event in events})
    for name, reads in found.of_model.items():
        mine = [i for i, event in enumerate(events) if event.model == name]
        assert sorted(i for read in reads for i in read.row.tolist()) == mine
        form = FORMS[name]
        for read in reads:
            rows = read.row.tolist()
            assert rows == sorted(rows)
            theirs = Rows.of_events([events[i] for i in rows], read.row, form.layout.features)
            equal(Rows.of_read(read, read.row), theirs, form)


def equal(ours: Rows, theirs: Rows, form: Form) -> None:
    assert ours.versions == theirs.versions
    assert np.array_equal(ours.version, theirs.version)
    assert ours.ids.equals(theirs.ids)
    assert ours.predictions.equals(theirs.predictions)
    assert bits(ours.scores) == bits(theirs.scores)
    assert np.array_equal(ours.columns.errors, theirs.columns.errors)
    mine, expected = ours.columns.encode(form.layout), theirs.columns.encode(form.layout)
    for name, column in mine.items():
        other = expected[name]
        assert np.array_equal(column.codes, other.codes), name
        assert column.unseen == other.unseen, name
        for a, b in ((column.flags, other.flags), (column.quanta, other.quanta)):
            assert (a is None) == (b is None)
            assert a is None or b is None or np.array_equal(a, b), name
    for dimension in form.dimensions:
        values = SEGMENTS[dimension]
        assert ours.columns.segment_codes(dimension, values).tolist() == theirs.columns.segment_codes(dimension, values).tolist()  # fmt: skip


def bits(column: pa.Array) -> list[bytes | None]:
    return [None if x is None else struct.pack("<d", x) for x in column.to_pylist()]
