"""The pure part of the bridge: what a message says, what comes of it, and that a start in the middle holds what was held."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.events import Limits
from monitor.halves import Bounds
from monitor.inference import Reading
from monitor.settings import BridgeSettings
from monitor.spec import IngestSpec
from streams.bridging import Incoming, Join, Naming, Outcome, Place, Tide
from tests.monitor.oip_wire import Tensor, request, response

NOW: Final = 1_795_255_200_000
HOLD: Final = 100
PAYLOADS: Final = Path(__file__).parents[1] / "contracts" / "payloads" / "kafka"
SELDON: Final = Naming(re.compile(BridgeSettings().topics), "driftline.")
MLSERVER: Final = Naming(re.compile("mlserver-(?P<side>input|output)"), "driftline.")
LOGGED: Final = Naming(re.compile("log"), "driftline.")
IN, OUT = "seldon.prod.model.iris.inputs", "seldon.prod.model.iris.outputs"


def ask(*values: float) -> bytes:
    return request(Tensor("x", "FP64", [len(values), 1], values), model="iris_1")


def answer(*values: float, version: str = "3") -> bytes:
    return response(Tensor("y", "FP64", [len(values), 1], values), model="iris_1", version=version)


def message(topic: str, key: str = "a", value: bytes = b"", at: int = 0, *, partition: int = 0, offset: int = 0, **headers: str) -> Incoming:  # fmt: skip
    said = {name.replace("_", "-"): text.encode() for name, text in headers.items()}
    value = value or (ask(1) if topic == IN else answer(2))
    place = next(filter(None, (naming.place(topic) for naming in (SELDON, MLSERVER, LOGGED))))
    return Incoming(topic, partition, offset, place, key.encode() or None, value, said, NOW + at, (topic, key))  # fmt: skip


def join(ingest: dict[str, Any] | None = None, **bounds: int) -> Join:
    reading = Reading(IngestSpec(**(ingest or {})))
    return Join(Bounds(hold_ms=HOLD, again_ms=HOLD, **bounds), Limits(), lambda _: reading)


def outcome(made: Join, *messages: Incoming, clock: int | None = None) -> Outcome:
    found = Outcome()
    for each in messages:
        made.take(each, NOW, found)
    if clock is not None:
        made.due(NOW + clock, NOW, found)
    return found


def events(found: Outcome) -> list[dict[str, Any]]:
    return [msgspec.json.decode(value) for _, value in found.events]


def letters(found: Outcome) -> list[tuple[object, str]]:
    return [(letter.origin, letter.error.reason) for letter in found.letters]


@pytest.mark.parametrize(
    ("naming", "topic", "place"),
    [
        (SELDON, IN, Place("request", "iris", "seldon.prod.model.iris.", {"namespace": "prod"})),
        (SELDON, OUT, Place("response", "iris", "seldon.prod.model.iris.", {"namespace": "prod"})),
        (SELDON, "seldon.prod.pipeline.iris.inputs", None),
        (SELDON, "seldon.prod.errors.errors", None),
        (SELDON, f"{IN}.old", None),
        (MLSERVER, "mlserver-input", Place("request", "", "mlserver-", {})),
        (MLSERVER, "mlserver-output", Place("response", "", "mlserver-", {})),
        (Naming(re.compile("(?P<side>.*)"), "driftline."), "driftline.inputs", None),
        (Naming(re.compile("(?P<side>.*)"), "driftline."), "sideways", None),
        (LOGGED, "log", Place(None, "", "log", {})),
    ],
)
def test_a_topics_name_says_model_and_side(naming: Naming, topic: str, place: Place | None) -> None:
    assert naming.place(topic) == place


def test_a_request_and_its_response_are_one_prediction() -> None:
    for order in (1, -1):
        both = [message(IN, value=ask(1.5), x_request_id="r1", pipeline="p"), message(OUT, at=12)]
        found = outcome(join(), *both[::order])
        assert events(found) == [
            {
                "id": "r1",
                "ts": NOW,
                "model": "iris",
                "version": "3",
                "latency_ms": 12,
                "tags": {"namespace": "prod", "pipeline": "p"},
                "features": {"x": 1.5},
                "prediction": 2.0,
            }
        ]
        assert (found.fates, found.letters) == (["joined"], [])


@pytest.mark.parametrize("name", ["seldon_v2", "mlserver", "seldon_v1", "kserve"])
def test_a_recorded_example_is_the_prediction_that_it_says(name: str) -> None:
    said = json.loads((PAYLOADS / f"{name}.json").read_text())
    naming = Naming(re.compile(said["topics"] or BridgeSettings().topics), "driftline.")
    found = Outcome()
    made = join(said["ingest"])
    for each in said["messages"]:
        value = base64.b64decode(each["base64"]) if "base64" in each else each["text"].encode()
        headers = {name: text.encode() for name, text in each["headers"].items()}
        place = naming.place(each["topic"])
        assert place is not None
        made.take(Incoming(each["topic"], 0, 0, place, each["key"].encode(), value, headers, each["ts_ms"]), NOW, found)  # fmt: skip
    assert (events(found), found.letters) == (said["events"], [])


def test_rows_are_predictions_and_a_spec_names_their_columns() -> None:
    value = request(Tensor("x", "FP32", [2, 2], [1, 2, 3, 4], "raw"))
    found = outcome(join({"features": ("a", "b")}), message(IN, value=value), message(OUT, value=answer(5, 6)))  # fmt: skip
    assert [(e["id"], e["features"], e["prediction"]) for e in events(found)] == [
        ("a-0", {"a": 1.0, "b": 2.0}, 5.0),
        ("a-1", {"a": 3.0, "b": 4.0}, 6.0),
    ]


def test_mlservers_json_and_headers() -> None:
    body = b'{"id":"k","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}'
    back = b'{"model_name":"sum","model_version":"2","id":"k","outputs":[{"name":"y","shape":[1],"datatype":"FP32","data":[3]}]}'
    made = join()
    found = outcome(made, message("mlserver-input", "", body, mlserver_model="sum", mlserver_version="7"), message("mlserver-output", "", back))  # fmt: skip
    (event,) = events(found)
    assert (event["id"], event["model"], event["version"]) == ("k", "sum", "7")
    nameless = outcome(made, message("mlserver-input", "z", body))
    assert letters(nameless) == [(("mlserver-input", "z"), "missing_field")]


def test_a_cloudevent_may_be_all_in_its_body_and_what_is_no_half_is_a_letter() -> None:
    made = join()
    attributes = {
        "id": "c",
        "type": "org.kubeflow.serving.inference.request",
        "inferenceservicename": "m",
    }
    whole = msgspec.json.encode({**attributes, "data": {"instances": [{"x": 1}]}})
    said = {"content-type": b"application/cloudevents+json; charset=utf-8"}
    found = outcome(made, message("log", value=whole)._replace(headers=said), clock=HOLD)
    assert [(e["id"], e["model"], e["features"]) for e in events(found)] == [("c", "m", {"x": 1})]
    other = outcome(made, message("log", value=b"{}", ce_id="c", ce_type="io.seldon.other"))
    assert letters(other) == [(("log", "a"), "wrong_type")]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (message(IN)._replace(value=None), "missing_field"),
        (message(IN, key=""), "missing_field"),
        (message(IN, key="k" * 201), "missing_field"),
        (message(IN)._replace(ts_ms=-1), "bad_timestamp"),
        (message(IN, at=300_001), "future_timestamp"),
        (message(IN, value=b"{" + b" " * (1 << 20)), "too_large"),
    ],
)
def test_what_is_no_half_is_a_letter_at_once(wrong: Incoming, reason: str) -> None:
    found = outcome(join(), wrong)
    assert letters(found) == [(wrong.origin, reason)]
    assert (found.events, found.fates) == ([], [])


def test_a_bad_half_does_not_take_the_other_one_with_it() -> None:
    good, bad = message(IN), message(OUT, value=b"\xff\xff", at=1)
    found = outcome(join(), good, bad)
    assert (letters(found), found.fates) == ([(bad.origin, "wrong_type")], ["request_alone"])
    assert [sorted(e) for e in events(found)] == [["features", "id", "model", "tags", "ts"]]
    good, bad = message(OUT, at=1), message(IN, value=b"{]")
    found = outcome(join(), good, bad)
    assert (letters(found), found.fates) == ([(bad.origin, "not_json")], ["response_alone"])
    assert found.events == []
    both = message(IN, value=ask(1, 2)), message(OUT, value=answer(1, 2, 3))
    found = outcome(join(), *both)
    assert letters(found) == [(each.origin, "wrong_type") for each in both]
    worse = message(IN, value=b"\xff"), message(OUT, value=b"\xff")
    assert letters(outcome(join(), *worse)) == [(each.origin, "wrong_type") for each in worse]


def test_a_row_that_is_no_prediction_is_a_letter_and_the_others_are_taken() -> None:
    old = Join(Bounds(), Limits(max_age_ms=10), lambda _: Reading())
    found = outcome(old, message(IN, at=-20), message(OUT, at=-20))
    assert [reason for _, reason in letters(found)] == ["too_old", "too_old"]


def test_a_spec_that_asks_for_one_side_gets_that_one_and_waits_for_nothing() -> None:
    both = message(IN), message(OUT)
    for mode, field in (("request", "features"), ("response", "prediction")):
        made = join({"mode": mode})
        found = outcome(made, *both)
        assert [field in e for e in events(found)] == [True]
        assert (len(made.halves), found.letters) == (0, [])


def test_what_is_due_goes_on_alone_and_repetitions_are_dropped() -> None:
    made = join()
    found = outcome(made, message(IN, "a"), message(IN, "a"), message(OUT, "b"), clock=HOLD)
    assert found.fates == ["repeated", "request_alone"]
    assert outcome(made, clock=2 * HOLD).fates == ["response_alone"]
    assert outcome(made, message(OUT, "a", at=HOLD)).fates == ["response_alone"], "it was given up"
    assert outcome(made, message(IN, "a", at=HOLD + 1)).fates == [], "the id is used again"


def test_beyond_the_bounds_the_time_goes_ahead() -> None:
    made = join(halves=2)
    found = outcome(made, *(message(IN, str(i), at=i) for i in range(4)), clock=0)
    assert [e["id"] for e in events(found)] == ["0", "1"]
    assert made.halves.clock_ms == NOW + HOLD + 1
    crowd = join(halves=2)
    found = outcome(crowd, *(message(IN, str(i)) for i in range(4)), clock=0)
    assert len(found.events) == 4, "what is due at the time that is committed has gone"


# Predictions: milliseconds since the one before, and what is said of it: request or response, when, and how late it is read. What is said of one lies
# within the hold, but for a response that comes much later; an id is not used again before the horizon.
Use = tuple[int, list[tuple[bool, int, int]], bool]
USES: Final = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.lists(st.tuples(st.booleans(), st.integers(0, HOLD), st.integers(0, 50)), max_size=4),
        st.booleans(),
    ),
    max_size=15,
)


def course(uses: Sequence[Use]) -> list[Incoming]:
    """Messages as they are read: of one id and side in one of three partitions, as keys see to it."""
    said, now = [], 0
    for number, (step, halves, too_late) in enumerate(uses):
        now += step
        for asks, delta, late in halves:
            said.append((now + delta + late, now + delta, IN if asks else OUT, number))
        if too_late:
            said.append((now + 3 * HOLD, now + 3 * HOLD, OUT, number))
    offsets, read = [0, 0, 0], []
    for _, at, topic, number in sorted(said):
        place = (number + (topic == IN)) % 3
        read.append(message(topic, str(number), at=at, partition=place, offset=offsets[place]))
        offsets[place] += 1
    return read


@given(USES, st.integers(0, 60), st.randoms(use_true_random=False))
def test_who_starts_in_the_middle_sends_what_would_have_been_sent(
    uses: list[Use], cut: int, rng: random.Random
) -> None:
    """Whatever the order in which partitions are read again, and from wherever before the horizon."""
    read, first = course(uses), join()
    cut = min(cut, len(read))
    clock = 0

    def step(made: Join, each: Incoming, into: Outcome) -> None:
        nonlocal clock
        made.take(each, NOW, into)
        clock = max(clock, each.ts_ms - NOW - 20)
        made.due(NOW + clock, NOW, into)

    for each in read[:cut]:
        step(first, each, Outcome())
    at, second = clock, join()
    horizon = NOW + at - second.halves.bounds.horizon_ms
    # Of each partition from its first message that the horizon asks for, and these in any order among partitions.
    queues = [[m for m in read[:cut] if m.partition == p] for p in range(3)]
    queues = [q[next((i for i, m in enumerate(q) if m.ts_ms >= horizon), len(q)) :] for q in queues]
    while any(queues):
        queue = rng.choice([q for q in queues if q])
        second.recall([queue.pop(0)], NOW + at if cut else 0, NOW)
    expected, got = Outcome(), Outcome()
    for made, into in ((first, expected), (second, got)):
        clock = at
        for each in read[cut:]:
            step(made, each, into)
        made.due(NOW + 10_000, NOW, into)
    assert sorted(got.events) == sorted(expected.events)


@pytest.mark.parametrize("said", ["(", "(?P<side>a", ""])
def test_a_pattern_that_is_none_is_an_error_of_the_settings(said: str) -> None:
    with pytest.raises(ValueError, match="topics"):
        BridgeSettings(topics=said)


def test_the_tide_is_the_partition_that_is_furthest_behind() -> None:
    tide, a, b = Tide(), ("a", 0), ("b", 0)
    tide.hold([a, b])
    tide.came(a, 50)
    assert tide.rise(1_000) == 0, "of b nothing is known"
    tide.came(b, 70)
    assert tide.rise(1_000) == 50
    tide.came(a, 40)
    assert tide.rise(1_000) == 50, "never back"
    tide.ended(a)
    assert tide.rise(1_000) == 70
    tide.ended(b)
    assert tide.rise(1_000) == 1_000
    tide.came(b, 5_000)
    assert tide.rise(1_100) == 1_100, "nor ahead of the clock"
    tide.drop(b)
    assert tide.rise(1_200) == 1_200


def test_who_is_ahead_rests_until_the_others_are_there() -> None:
    tide, a, b, c = Tide(), ("a", 0), ("b", 0), ("c", 0)
    tide.hold([a, b, c])
    assert tide.ahead(10) == set()
    tide.came(a, 100)
    tide.came(b, 111)
    assert tide.ahead(10) == {b}
    assert tide.ahead(11) == set()
    tide.pause([b])
    tide.ended(a)
    tide.ended(c)
    assert tide.ahead(10) == set(), "a is at its end: b is the one that is behind"
    assert tide.rise(1_000) == 111
