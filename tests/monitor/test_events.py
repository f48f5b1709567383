"""Every form an event arrives in, every reason to refuse one, and bytes that nobody wrote on purpose."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import REJECT_REASONS, InvalidEventError
from monitor.events import ARROW_TYPE, CLOUDEVENT_TYPE, Event, Limits, Outcome, decode_message
from tests.monitor.builders import DAY, NOW, SECOND, START, body, event

LIMITS = Limits()
STRUCTURED = {"content-type": CLOUDEVENT_TYPE.encode() + b"; charset=utf-8"}
SECRET = "hunter2"
GOOD = event(START)
TIME = "2013-02-01T00:00:00Z"


def decode(
    value: bytes | None, headers: Mapping[str, bytes] | None = None, limits: Limits = LIMITS
) -> list[Outcome]:
    return decode_message(value, headers or {}, limits, now_ms=NOW)


def accepted(outcomes: list[Outcome]) -> list[Event]:
    return [outcome for outcome in outcomes if isinstance(outcome, Event)]


def refused(outcomes: list[Outcome]) -> list[InvalidEventError]:
    return [outcome for outcome in outcomes if isinstance(outcome, InvalidEventError)]


def arrow(columns: Mapping[str, Any], *, compression: str | None = None) -> bytes:
    table = pa.table(dict(columns))
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def nested(depth: int) -> dict[str, Any]:
    value: Any = SECRET
    for _ in range(depth):
        value = [value]
    return {**GOOD, "tags": {"x": value}}


REFUSED: list[Any] = [
    pytest.param(None, "not_json", id="tombstone"),
    pytest.param(b"", "not_json", id="empty"),
    pytest.param(b"hunter2", "not_json", id="text"),
    pytest.param(b"5", "not_json", id="a number"),
    pytest.param(b'{"ts":', "not_json", id="cut off"),
    pytest.param(b'[{"ts":', "not_json", id="a cut off array"),
    pytest.param(body(GOOD)[:-1] + b',"x":\xff}', "not_json", id="a stray byte"),
    pytest.param(body(GOOD)[:-1] + b',"id":"\xff"}', "not_json", id="not UTF-8"),
    pytest.param(body(GOOD)[:-1] + b',"tags":{"x":"\\ud800"}}', "not_json", id="lone surrogate"),
    pytest.param(body(GOOD)[:-1] + b',"tags":{"x":NaN}}', "not_json", id="NaN is not JSON"),
    pytest.param(body(GOOD) + body(GOOD), "not_json", id="two events without an array"),
    pytest.param(b"\xff\xff\xff\xffhunter2", "not_json", id="Arrow garbage"),
    pytest.param(b"\xff\xff\xff\xff\x00\x00\x00\x7f", "not_json", id="Arrow of an endless message"),
    pytest.param(body(without("ts")), "missing_field", id="no ts"),
    pytest.param(body(without("model")), "missing_field", id="no model"),
    pytest.param(body({"ts": START, "model": "m"}), "missing_field", id="no content"),
    pytest.param(body({**GOOD, "model": 5}), "wrong_type", id="model is a number"),
    pytest.param(body({**GOOD, "model": ""}), "wrong_type", id="model is empty"),
    pytest.param(body({**GOOD, "model": "hunter2\n"}), "wrong_type", id="model has a line end"),
    pytest.param(body({**GOOD, "model": "x" * 129}), "wrong_type", id="model is too long"),
    pytest.param(body({**GOOD, "features": [SECRET]}), "wrong_type", id="features is a list"),
    pytest.param(body({**GOOD, "score": SECRET}), "wrong_type", id="score is a text"),
    pytest.param(body({**GOOD, "version": 7.5}), "wrong_type", id="version is a fraction"),
    pytest.param(body({**GOOD, "id": [SECRET]}), "wrong_type", id="id is a list"),
    pytest.param(body({**GOOD, "tags": SECRET}), "wrong_type", id="tags is a text"),
    pytest.param(body({**GOOD, "ts": SECRET}), "bad_timestamp", id="ts is a word"),
    pytest.param(body({**GOOD, "ts": None}), "bad_timestamp", id="ts is null"),
    pytest.param(body({**GOOD, "ts": [SECRET]}), "bad_timestamp", id="ts is a list"),
    pytest.param(body({**GOOD, "ts": START // 1000}), "bad_timestamp", id="seconds"),
    pytest.param(body({**GOOD, "ts": 0}), "bad_timestamp", id="zero"),
    pytest.param(body({**GOOD, "ts": TIME[:-1]}), "bad_timestamp", id="naive time"),
    pytest.param(body({**GOOD, "ts": "2013-02-30T00:00:00Z"}), "bad_timestamp", id="30 February"),
    pytest.param(
        b'{"model":"m","prediction":1,"ts":' + b"9" * 400 + b"}", "bad_timestamp", id="huge ts"
    ),
    pytest.param(
        body({**GOOD, "ts": NOW + 301 * SECOND}), "future_timestamp", id="far in the future"
    ),
    pytest.param(body({**GOOD, "ts": "9999-12-31T23:59:59Z"}), "future_timestamp", id="year 9999"),
    pytest.param(body({**GOOD, "pad": "x" * (1 << 20)}), "too_large", id="over 1 MiB"),
    pytest.param(
        body({**GOOD, "features": {f"f{i}": 1 for i in range(2_001)}}),
        "too_large",
        id="too many features",
    ),
    pytest.param(body(nested(7)), "too_large", id="too deep"),
    pytest.param(b"[" * 100_000, "too_large", id="100,000 brackets"),
    pytest.param(b'{"a":' * 100_000, "too_large", id="100,000 objects"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED)
def test_a_bad_event_is_refused_with_its_reason_and_without_its_values(
    value: bytes | None, reason: str
) -> None:
    (error,) = decode(value)
    assert isinstance(error, InvalidEventError)
    assert error.reason == reason
    assert SECRET not in error.detail
    assert "\n" not in error.detail


def test_every_reason_that_decoding_can_give_is_in_the_table() -> None:
    shown = {parameters.values[1] for parameters in REFUSED} | {"too_old"}
    assert shown == set(REJECT_REASONS) - {"unknown_model", "killed_worker"}


def test_too_old_is_off_by_default_and_counts_from_the_clock() -> None:
    (event_,) = decode(body(GOOD))
    assert isinstance(event_, Event)
    limits = Limits(max_age_ms=NOW - START)
    assert accepted(decode(body(GOOD), limits=limits))
    (error,) = refused(decode(body(event(START - 1)), limits=limits))
    assert error.reason == "too_old"


@pytest.mark.parametrize(
    "ts",
    [
        START,
        float(START),
        TIME,
        "2013-02-01T01:00:00+01:00",
        "2013-02-01 00:00:00.0004Z",
        START + 0.4,
    ],
)
def test_ts_is_rfc_3339_or_epoch_milliseconds(ts: object) -> None:
    (one,) = accepted(decode(body({**GOOD, "ts": ts})))
    assert one.ts_ms == START


def test_the_clock_may_differ_by_the_allowed_five_minutes() -> None:
    assert accepted(decode(body(event(NOW + 300 * SECOND))))


def test_numbers_as_id_and_version_become_text_and_are_cut_to_size() -> None:
    (one,) = accepted(decode(body({**GOOD, "id": 12, "version": 7})))
    assert (one.id, one.version) == ("12", "7")
    (long,) = accepted(decode(body({**GOOD, "id": "x" * 1000, "version": None})))
    assert (long.id, long.version) == ("x" * 256, "")


def test_unknown_fields_are_ignored_even_under_a_name_of_ours() -> None:
    (one,) = accepted(decode(body({**GOOD, "ts_ms": SECRET, "anything": {"a": [1]}})))
    assert one.ts_ms == START


def test_of_a_repeated_key_the_last_counts() -> None:
    (one,) = accepted(decode(body(GOOD)[:-1] + b',"prediction":5}'))
    assert one.prediction == 5


def test_an_event_with_only_an_error_is_an_event() -> None:
    assert accepted(decode(body({"ts": START, "model": "m", "error": "timeout"})))


def test_each_event_of_an_array_stands_for_itself() -> None:
    mixed = [GOOD, {**GOOD, "ts": SECRET}, 5, event(START + 1), [GOOD], None]
    outcomes = decode(body(mixed))
    assert [isinstance(outcome, Event) for outcome in outcomes] == [True, False, False, True, False, False]  # fmt: skip
    assert [error.reason for error in refused(outcomes)] == [
        "bad_timestamp",
        *["wrong_type"] * 3,
    ]


def test_an_empty_array_holds_no_event() -> None:
    assert decode(b" [] ") == []


def test_brackets_in_texts_are_no_nesting() -> None:
    assert accepted(decode(body({**GOOD, "tags": {"x": '[[[[[[[[["[{{{{{{{{{'}})))


def test_the_depth_of_a_hostile_message_is_known_in_linear_time() -> None:
    hostile = b'{"' + b'\\"' * 500_000 + b"[" * 9
    began = time.perf_counter()
    assert refused(decode(hostile))
    assert time.perf_counter() - began < 1  # trying every quote anew took hours


class TestCloudEvents:
    def test_a_structured_one_gives_id_and_time(self) -> None:
        data = without("ts")
        wrapped = {"specversion": "1.0", "id": "q1", "time": TIME, "data": data}
        (one,) = accepted(decode(body(wrapped), STRUCTURED))
        assert (one.id, one.ts_ms) == ("q1", START)

    def test_what_the_event_says_itself_counts(self) -> None:
        wrapped = {"id": "q1", "time": "2020-01-01T00:00:00Z", "data": {**GOOD, "id": "mine"}}
        (one,) = accepted(decode(body(wrapped), STRUCTURED))
        assert (one.id, one.ts_ms) == ("mine", START)

    def test_a_binary_one_gives_its_id_also_to_an_event_with_a_time(self) -> None:
        headers = {"ce_id": b"q1", "ce_time": TIME.encode(), "content-type": b"application/json"}
        assert [e.id for e in accepted(decode(body(GOOD), headers))] == ["q1"]
        (one,) = accepted(decode(body(without("ts")), headers))
        assert (one.id, one.ts_ms) == ("q1", START)

    def test_a_bridge_may_spell_the_attributes_as_http_does(self) -> None:
        headers = {"ce-id": b"q1", "ce-time": TIME.encode()}
        (one,) = accepted(decode(body(without("ts")), headers))
        assert (one.id, one.ts_ms) == ("q1", START)

    @pytest.mark.parametrize("structured", [True, False])
    def test_the_id_of_a_message_is_not_that_of_its_many_events(self, structured: bool) -> None:
        events = [without("ts"), {**GOOD, "id": "mine"}]
        if structured:
            value, headers = body({"id": "q", "time": TIME, "data": events}), STRUCTURED
        else:
            value, headers = body(events), {"ce_id": b"q", "ce_time": TIME.encode()}
        assert [e.id for e in accepted(decode(value, headers))] == [None, "mine"]

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (body({"id": "q"}), "missing_field"),
            (body({"id": 5, "data": GOOD}), "not_json"),
            (body([GOOD]), "not_json"),
            (b'{"data":"\xff","\xfe":1}', "not_json"),
            (body({"data": "text"}), "wrong_type"),
            (body({"data": without("ts"), "time": SECRET}), "bad_timestamp"),
        ],
    )
    def test_a_bad_envelope_is_refused(self, value: bytes, reason: str) -> None:
        assert [error.reason for error in refused(decode(value, STRUCTURED))] == [reason]


class TestArrow:
    def test_rows_are_events_with_structs_or_maps_as_features(self) -> None:
        ts = pa.array([START, START + 1], pa.timestamp("ms", "UTC"))
        structs = [{"wind": 1.5, "carrier": None}, {"wind": None, "carrier": "UA"}]
        maps = pa.array([[("wind", 1.5)], [("wind", 2.5)]], pa.map_(pa.string(), pa.float64()))
        for features in (structs, maps):
            rows = arrow(
                {"ts": ts, "model": ["m", "m"], "features": features, "prediction": [0, 1]}
            )
            for headers in ({}, {"content-type": ARROW_TYPE.encode()}):
                events = accepted(decode(rows, headers))
                assert [e.ts_ms for e in events] == [START, START + 1]
                assert events[0].features is not None
                assert events[0].features["wind"] == 1.5

    @pytest.mark.parametrize(
        "ts",
        [
            pa.array([START], pa.int64()),
            pa.array([START], pa.timestamp("ms")),
            pa.array([START // 1000], pa.timestamp("s")),
            pa.array([START * 1000 + 7], pa.timestamp("us", "America/New_York")),
            pa.array([START * 1_000_000 + 7], pa.timestamp("ns")),
            pa.array([START], pa.timestamp("ms", "Nowhere/City")),
        ],
    )
    def test_ts_has_any_resolution_and_any_zone(self, ts: pa.Array) -> None:
        (one,) = accepted(decode(arrow({"ts": ts, "model": ["m"], "prediction": [1]})))
        assert one.ts_ms == START

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"ts": pa.array([2**62], pa.timestamp("ms"))}, "not_json"),
            ({"ts": pa.array([2**40], pa.timestamp("s"))}, "not_json"),
            ({"ts": [None]}, "missing_field"),
            ({"features": [[1, 2]]}, "wrong_type"),
            ({"features": [[{"a": 1}]]}, "wrong_type"),
            ({"tags": [SECRET]}, "wrong_type"),
            ({"model": [5]}, "wrong_type"),
            ({"score": [SECRET]}, "wrong_type"),
        ],
    )
    def test_a_bad_row_is_refused(self, columns: dict[str, Any], reason: str) -> None:
        good: dict[str, Any] = {"ts": [START], "model": ["m"], "prediction": [1]}
        (error,) = refused(decode(arrow({**good, **columns})))
        assert error.reason == reason
        assert SECRET not in error.detail

    def test_a_bad_row_does_not_take_the_good_ones_with_it(self) -> None:
        rows = arrow({"ts": [START, 5, START], "model": ["m"] * 3, "prediction": [1] * 3})
        assert [isinstance(o, Event) for o in decode(rows)] == [True, False, True]

    def test_columns_of_nulls_cannot_claim_any_number_of_rows(self) -> None:
        few = arrow({"x": pa.nulls(10_000_000)})
        assert len(few) < 1_000
        assert [error.reason for error in refused(decode(few))] == ["too_large"]

    def test_too_many_columns_are_refused(self) -> None:
        wide = arrow({f"c{i}": [1] for i in range(2_001)})
        assert [error.reason for error in refused(decode(wide))] == ["too_large"]

    def test_damaged_bytes_never_raise_and_never_read_beyond_the_message(self) -> None:
        rng = np.random.default_rng(4)
        message = arrow(
            {
                "ts": [START] * 5,
                "model": [f"model-{i}" for i in range(5)],
                "features": [{"wind": 1.5, "carrier": "UA"}] * 5,
            }
        )
        for _ in range(1_500):
            damaged = bytearray(message)
            for at in rng.integers(0, len(message), rng.integers(1, 4)):
                damaged[at] = rng.integers(0, 256)
            assert all(is_defined(outcome) for outcome in decode(bytes(damaged)))


def is_defined(outcome: Outcome) -> bool:
    if isinstance(outcome, Event):
        return outcome.ts_ms <= NOW + 300 * SECOND and isinstance(outcome.version, str)
    return outcome.reason in REJECT_REASONS


def in_arrow(event: dict[str, Any]) -> bytes:
    return arrow({name: [value] for name, value in event.items()})


class TestJoinKeys:
    NAMES = ("request_id", "tags.call", "ce_id")

    def ids(self, value: bytes, headers: dict[str, bytes] | None = None) -> list[object]:
        def aliases(model: str) -> tuple[str, ...]:
            return self.NAMES if model == GOOD["model"] else ()

        outcomes = decode_message(value, headers or {}, Limits(), now_ms=NOW, aliases=aliases)
        return [event.id for event in accepted(outcomes)]

    @pytest.mark.parametrize(
        ("fields", "key"),
        [
            ({"id": "a", "prediction_id": "b", "request_id": "c"}, "a"),
            ({"prediction_id": "b", "request_id": "c"}, "b"),
            ({"request_id": "c", "tags": {"call": "d"}}, "c"),
            ({"request_id": 1.5, "tags": {"call": 7}}, "7"),
            ({"tags": {"call": None, "other": "x"}}, None),
            ({"model": "another", "request_id": "c"}, None),
            ({"model": "another", "prediction_id": "b"}, "b"),
        ],
    )
    def test_what_has_no_id_is_joined_by_the_first_name_that_is_there(
        self, fields: dict[str, Any], key: str | None
    ) -> None:
        event = {**GOOD, **fields}
        assert self.ids(body(event)) == [key]
        assert self.ids(body([event, event])) == [key, key]
        assert self.ids(body({"data": event}), STRUCTURED) == [key]
        assert self.ids(in_arrow(event)) == [key]

    def test_the_id_of_the_cloudevent_counts_where_no_other_does(self) -> None:
        headers = {"ce_id": b"q"}
        assert self.ids(body({**GOOD, "request_id": "c"}), headers) == ["c"]
        assert self.ids(body(GOOD), headers) == ["q"]
        assert self.ids(body({**GOOD, "ce_id": "e"}), headers) == ["e"]
        assert self.ids(body({**GOOD, "model": "another"}), headers) == ["q"]

    def test_nobody_is_asked_for_the_names_of_an_event_with_an_id(self) -> None:
        def never(model: str) -> tuple[str, ...]:
            raise AssertionError(model)

        for value in (body({**GOOD, "id": "a"}), in_arrow({**GOOD, "id": "a"})):
            outcomes = decode_message(value, {}, Limits(), now_ms=NOW, aliases=never)
            assert [event.id for event in accepted(outcomes)] == ["a"]


@given(st.binary(max_size=200), st.sampled_from([{}, STRUCTURED, {"ce_id": b"\xff"}]))
def test_no_bytes_make_it_raise(value: bytes, headers: dict[str, bytes]) -> None:
    assert all(is_defined(outcome) for outcome in decode(value, headers))


WRITTEN = body(
    [{**GOOD, "id": "a", "tags": {"region": "é"}, "score": 0.5, "ts": TIME}, event(START + DAY)]
)


@given(
    st.lists(st.tuples(st.integers(0, len(WRITTEN)), st.integers(0, 3), st.binary(max_size=3))),
    st.sampled_from([{}, STRUCTURED, {"ce_id": b"q", "ce_time": b"x"}]),
)
def test_no_change_of_a_good_message_makes_it_raise(
    edits: list[tuple[int, int, bytes]], headers: dict[str, bytes]
) -> None:
    value = WRITTEN
    for at, cut, put in edits:
        value = value[:at] + put + value[at + cut :]
    assert all(is_defined(outcome) for outcome in decode(value, headers))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(
            ["ts", "model", "id", "version", "features", "prediction", "score", "tags"]
        ),
        JSON,
    )
)
def test_any_value_in_any_field_is_accepted_or_refused_without_being_quoted(
    fields: dict[str, Any],
) -> None:
    marked = {k: SECRET if isinstance(v, str) and v else v for k, v in fields.items()}
    (outcome,) = decode(msg := body({**GOOD, **marked}))
    assert is_defined(outcome), msg
    assert isinstance(outcome, Event) or SECRET not in outcome.detail


@pytest.mark.parametrize("envelope", ["{}", '{{"id": "1", "data": {}}}'])
def test_a_list_of_more_events_than_its_bytes_can_hold_is_refused_whole(envelope: str) -> None:
    many = "[" + ",".join(["{}"] * 40_000) + "]"
    headers = {} if envelope == "{}" else {"content-type": b"application/cloudevents+json"}
    value = envelope.format(many).encode()
    (outcome,) = decode_message(value, headers, Limits(), now_ms=NOW)
    assert isinstance(outcome, InvalidEventError)
    assert outcome.reason == "too_large"
