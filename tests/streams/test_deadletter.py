"""A dead letter is the message as it was, with why it died beside it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from confluent_kafka import Message

from monitor import metrics
from monitor.errors import InvalidEventError
from monitor.events import Event
from streams.deadletter import (
    MAX_RECORD,
    Allowance,
    Cap,
    dead_letter,
    header_list,
    refused_events,
)


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
    kept = dead_letter(message, reason="too_old", detail="", stage="sink")["headers"]
    assert kept[:2] == [("a", b"1"), ("a", b"2")]
    assert [v for n, v in kept if n == "driftline.error.reason"] == [b"too_old"]


@pytest.mark.parametrize(
    ("said", "attempt"),
    [(b"2", b"2"), (b"31", b"31"), (b"0", b"1"), (b"-4", b"1"), (b"9999", b"1"), (b"x\xff", b"1")],
)
def test_a_message_that_was_replayed_dies_at_the_attempt_that_it_carries(
    said: bytes, attempt: bytes
) -> None:
    _, _, headers = letter(died(value=b"x", headers=[("driftline.replay.attempt", said)]))
    assert headers["driftline.error.attempt"] == attempt
    assert "driftline.replay.attempt" not in headers


def outcomes(story: str) -> list[Event | InvalidEventError]:
    """``g`` a good event, ``u`` one of a model that nobody follows, ``b`` a bad one."""
    bad = InvalidEventError("wrong_type", "")
    return [bad if c == "b" else Event("known" if c == "g" else "unknown", 1) for c in story]


@pytest.mark.parametrize(
    ("story", "dead", "refused"),
    [
        pytest.param("b", 1, None, id="all of one"),
        pytest.param("bb", 2, None, id="all of several"),
        pytest.param("gbgb", 2, "1,3", id="bad ones"),
        pytest.param("gbu", 2, "1,2", id="and unknown ones"),
        pytest.param("gbuu", 2, "?", id="of which some were counted: nobody can tell which"),
        pytest.param("gb", 0, "?", id="other than it was"),
        pytest.param("b" * 3_000 + "g", 3_000, "?", id="too many to say"),
    ],
)
def test_of_a_message_with_events_that_were_counted_the_refused_ones_are_named(
    story: str, dead: int, refused: str | None
) -> None:
    assert refused_events(outcomes(story), dead, {"known": 1}.get) == refused


def sent(allowance: Allowance, *batches: tuple[float, str]) -> list[str]:
    """What is sent of each batch: a letter is its reason."""
    said = []
    for now_s, reasons in batches:
        kept, allowance = allowance.sift(reasons, now_s)
        said.append("".join(r for r, keep in zip(reasons, kept, strict=True) if keep))
    return said


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        pytest.param([(0, "aab")], ["aab"], id="a few"),
        pytest.param([(0, "aaaaaaaaa")], ["aaaaaa"], id="a flood is cut"),
        pytest.param([(0, "aaaaaaaaab")], ["aaaaaab"], id="but not the first of another reason"),
        pytest.param([(0, "aaaaaaaa"), (5, "a"), (10, "aa")], ["aaaaaa", "", "a"], id="refilled"),
        pytest.param([(0, "aaaaaaaab"), (50, "b" * 9)], ["aaaaaab", "bbbbb"], id="by the minute"),
        pytest.param([(0, "a" * 9), (600, "a" * 9)], ["a" * 6] * 2, id="and never more than full"),
        pytest.param([(0, "aaaaaab"), (59, "aaaaaaab"), (61, "aab")], ["aaaaaab", "aaaaa", "ab"], id="each reason once a minute"),
    ],
)  # fmt: skip
def test_a_flood_sends_what_is_allowed_and_one_of_each_reason(
    batches: list[tuple[float, str]], expected: list[str]
) -> None:
    assert sent(Allowance(6), *batches) == expected


def test_a_batch_that_is_rolled_back_has_spent_nothing() -> None:
    allowance = Allowance(6)
    assert allowance.sift("aaa", 0.0) == allowance.sift("aaa", 0.0)


def test_a_cap_spends_and_counts_what_is_durable_and_says_once_a_minute_what_it_kept_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def counted() -> list[float]:
        sent = metrics.DEAD_LETTERS.labels("sink", "not_json")
        return [each._value.get() for each in (sent, metrics.DEAD_LETTERS_DROPPED.labels("sink"))]

    before, cap = counted(), Cap("sink", 6, logging.getLogger("tests.cap"))
    assert sum(cap.sift(["not_json"] * 9, 0.0)) == 6  # and the batch is rolled back
    for now_s, dead, sent_of_them in ((0.0, 9, 6), (30.0, 5, 3), (70.0, 0, 0)):
        assert sum(cap.sift(["not_json"] * dead, now_s)) == sent_of_them
        cap.spent(now_s)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [9.0, 5.0]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["3", "2"]


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
