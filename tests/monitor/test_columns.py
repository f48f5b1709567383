"""Events and files as columns, segments as texts, and samples that survive the wire."""

from __future__ import annotations

from dataclasses import astuple
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.binning import NumericBins
from monitor.columns import (
    OTHER_SEGMENT,
    decode_sample,
    encode_sample,
    feature_names,
    from_batch,
    from_events,
)
from monitor.counting import PART_ROWS, Grouping, profile_groups
from monitor.errors import ConfigError, IncompatibleError
from monitor.events import Event, Limits, decode_message
from monitor.profile import LATENCY, PREDICTION, SCORE
from tests.monitor.builders import MODEL, NOW, START, body, event, reference


def events(*bodies: dict[str, Any]) -> list[Event]:
    outcomes = decode_message(body(list(bodies)), {}, Limits(), now_ms=NOW)
    assert all(isinstance(outcome, Event) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Event)]


def test_events_and_the_rows_of_a_file_become_the_same_columns() -> None:
    bodies = [
        event(START + i, features={"wind": wind, "carrier": carrier}, score=0.5, error=error)
        for i, (wind, carrier, error) in enumerate([(1.5, "UA", None), (None, None, "late")])
    ]
    live = from_events(events(*bodies), ["wind", "carrier"])
    filed = from_batch(
        pa.record_batch(
            {
                "ts": pa.array([START, START + 1], pa.timestamp("ms", "UTC")),
                "wind": [1.5, None],
                "carrier": pa.array(["UA", None]).dictionary_encode(),
                "prediction": [1, 1],
                "score": [0.5, 0.5],
                "error": [None, "late"],
            }
        ),
        origin="test",
    )
    layout = reference().layout
    for name, encoded in live.encode(layout).items():
        assert encoded.codes.tolist() == filed.encode(layout)[name].codes.tolist()
    assert live.ts_ms.tolist() == filed.ts_ms.tolist() == [START, START + 1]
    assert live.errors.tolist() == filed.errors.tolist() == [False, True]
    assert live.n == filed.n == 2


def test_a_field_that_the_rows_do_not_have_is_missing_everywhere() -> None:
    columns = from_events(events(event(START)), ["humidity"])
    assert columns.field("humidity") == [None]
    assert columns.field(SCORE) == columns.field(LATENCY) == columns.field("$unknown") == [None]
    assert columns.field(PREDICTION) == [1]


def test_one_segment_has_one_name_whatever_type_its_value_arrives_in() -> None:
    """A whole-number column with gaps is a float column in a file, and the number is an integer in JSON."""
    filed = from_batch(
        pa.record_batch({"ts": [START] * 3, "gate": [7.0, None, 7.5], "big": [True, None, False]}),
        origin="test",
    )
    assert filed.segment_values("gate") == ["7", "", "7.5"]
    assert filed.segment_values("big") == ["true", "", "false"]
    live = from_events(
        events(
            *({**event(START), "features": {"gate": g}} for g in (7, "7", None, [7], "x" * 300))
        ),
        ["gate"],
    )
    assert live.segment_values("gate") == ["7", "7", "", OTHER_SEGMENT, OTHER_SEGMENT]


def test_a_tag_is_a_segment_too() -> None:
    tagged = [event(START, tags={"region": "eu"}), event(START, tags={}), event(START)]
    assert from_events(events(*tagged), []).segment_values("tags.region") == ["eu", "", ""]


def test_feature_names_are_bounded_and_the_frequent_ones_stay() -> None:
    """A producer may make up a name for each event."""
    many = [event(START, features={"wind": 1, f"id-{i}": 1}) for i in range(50)]
    assert feature_names(events(*many), most=3) == ["id-0", "id-1", "wind"]


def test_long_columns_are_counted_in_parts_to_the_same_profiles() -> None:
    """By one group in parts of ``PART_ROWS``, and by many at once: the sum over the groups is the same."""
    n, groups = 2 * PART_ROWS + 1_234, 300
    rng = np.random.default_rng(4)
    wind = np.where(rng.random(n) < 0.1, np.nan, np.round(rng.gamma(4, 3, n)) * 1.15)
    rows = from_batch(
        pa.record_batch(
            {
                "ts": START + np.arange(n),
                "wind": pa.array(wind, mask=rng.random(n) < 0.1),
                "carrier": rng.choice(["UA", "XX", "B6", "YY"], n),
                "error": pa.array(["late"] * n, mask=rng.random(n) < 0.9),
            }
        ),
        origin="test",
    )
    layout = reference().layout
    one = Grouping(np.zeros(n, dtype=np.intp), 1)
    many = Grouping(rng.integers(0, groups, n), groups)
    whole, parts = rows.profiles(layout, [one, many])
    for grouping, profiles in ((one, whole), (many, parts)):
        at_once = profile_groups(layout, rows.encode(layout), rows.errors, *astuple(grouping))
        for ours, theirs in zip(profiles, at_once, strict=True):
            assert ours.to_bytes() == theirs.to_bytes()
    assert reduce(add, parts).to_bytes() == whole[0].to_bytes()
    assert whole[0].n == n
    assert whole[0].special("wind", "missing") > 0 < whole[0].special("wind", "nan")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"x": [1]}, "no column ts"),
        ({"ts": [None], "x": [1]}, "missing values"),
        ({"ts": ["2013-02-01"], "x": [1]}, "is string"),
        ({"ts": [1.5], "x": [1]}, "is double"),
    ],
)
def test_a_file_without_usable_times_is_named(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        from_batch(pa.record_batch(columns), origin="january.parquet")
    assert str(caught.value).startswith("january.parquet: ")


FIELD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
)  # fmt: skip


@given(
    st.lists(st.tuples(st.dictionaries(st.text(max_size=3), FIELD, max_size=3), FIELD), max_size=5)
)
def test_a_sample_brings_the_events_back(rows: list[tuple[dict[str, Any], Any]]) -> None:
    sent = [Event(MODEL, START, None, "7", f, p, 0.5, None, None, None, START) for f, p in rows]
    got = decode_sample(MODEL, encode_sample(sent))
    names = sorted({name for f, _ in rows for name in f})
    bins = NumericBins(np.array([0.0, 1.0]), -1.0, 2.0, 0.0, 1.0)
    a, b = from_events(sent, names), from_events(got, names)
    for name in (*names, PREDICTION):
        assert (
            bins.encode(a.field(name)).codes.tolist() == bins.encode(b.field(name)).codes.tolist()
        )
    assert [e.ts_ms for e in got] == [START] * len(sent)


def test_integers_beyond_64_bits_and_types_of_arrow_do_not_break_a_sample() -> None:
    features = {"a": 10**30, "b": -(10**30), "c": 10**400, "d": {"x": [10**30]}, "e": slice(1)}
    sent = Event(MODEL, START, None, "7", features, 10**30, ts_ms=START)
    (got,) = decode_sample(MODEL, encode_sample([sent]))
    assert got.features is not None
    assert [got.features[name] for name in "abc"] == [1e30, -1e30, np.inf]


def test_damaged_samples_are_named_as_such() -> None:
    with pytest.raises(IncompatibleError, match="damaged sample"):
        decode_sample(MODEL, b"\xc1")
