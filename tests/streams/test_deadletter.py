"""A dead letter is the message as it was, with why it died beside it."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Message

from streams.deadletter import MAX_RECORD, dead_letter, header_list


def died(**fields: Any) -> Message:
    given: dict[str, Any] = {"topic": "driftline.predictions", "partition": 3, "offset": 77}
    return Message(**{**given, "timestamp": (1, 1_359_676_800_000), **fields})


def letter(message: Message, **more: Any) -> tuple[Any, Any, dict[str, bytes]]:
    record = dead_letter(message, reason="not_json", detail="malformed", stage="profiler", **more)
    return record["key"], record["value"], dict(record["headers"])


def size(record: tuple[Any, Any, dict[str, bytes]]) -> int:
    key, value, headers = record
    return len(key or b"") + len(value or b"") + sum(len(n) + len(v) for n, v in headers.items())


def test_bytes_and_headers_are_kept_and_the_cause_is_added() -> None:
    key, value, headers = letter(died(key=b"k", value=b"\xff\x00", headers=[("trace", b"t")]))
    assert (key, value) == (b"k", b"\xff\x00")
    assert headers == {
        "trace": b"t",
        "driftline.error.reason": b"not_json",
        "driftline.error.detail": b"malformed",
        "driftline.error.stage": b"profiler",
        "driftline.error.topic": b"driftline.predictions",
        "driftline.error.partition": b"3",
        "driftline.error.offset": b"77",
        "driftline.error.timestamp": b"1359676800000",
        "driftline.error.attempt": b"1",
    }


def test_a_tombstone_stays_one() -> None:
    assert letter(died(key=b"k"))[:2] == (b"k", None)


def test_headers_may_repeat_and_those_of_an_earlier_death_are_replaced() -> None:
    headers = [("a", b"1"), ("driftline.error.reason", b"old"), ("a", b"2")]
    message = died(value=b"x", headers=headers)
    assert header_list(message) == headers
    kept = dead_letter(message, reason="too_old", detail="", stage="sink", attempt=2)["headers"]
    assert kept[:2] == [("a", b"1"), ("a", b"2")]
    assert [v for n, v in kept if n == "driftline.error.reason"] == [b"too_old"]
    assert ("driftline.error.attempt", b"2") in kept


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        pytest.param({"key": b"k", "value": b"x" * (1 << 20)}, b"k", id="a large value"),
        pytest.param({"key": b"k", "value": b"x" * (10 << 20)}, b"k", id="a very large value"),
        pytest.param({"key": b"k" * (1 << 20), "value": b"x"}, None, id="a large key"),
        pytest.param(
            {"key": b"k", "value": b"x" * 600_000, "headers": [("h", b"y" * 600_000)]},
            None,
            id="large headers",
        ),
    ],
)
def test_what_no_topic_would_take_is_cut_and_says_so(
    fields: dict[str, Any], kept: bytes | None
) -> None:
    record = letter(died(**fields))
    key, value, headers = record
    assert size(record) <= MAX_RECORD
    assert key == kept
    assert fields["value"].startswith(value)
    assert int(headers["driftline.error.truncated"]) > MAX_RECORD


def test_a_long_detail_is_cut() -> None:
    record = dead_letter(died(value=b"x"), reason="not_json", detail="d" * 5_000, stage="sink")
    assert dict(record["headers"])["driftline.error.detail"] == b"d" * 1_024
