"""Predictions over HTTP: what is accepted, what is said of the rest, and that nothing is claimed which the broker has not got."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pytest
from pydantic import SecretStr

from monitor import api_events, metrics
from monitor.captures import Said
from monitor.errors import TransientError
from monitor.events import ARROW_TYPE, CLOUDEVENT_TYPE, MAX_BODY, Limits, decode_message
from monitor.halves import Bounds, Halves
from monitor.ingest import BATCH_TYPE, LINES_TYPE, Ingest
from monitor.labels import MAX_SHOWN
from monitor.spec import ModelSpec
from tests.monitor.door import BROKER_AWAY, NOW, Door
from tests.monitor.test_api_orders import HERE

EVENTS, CLOUDEVENTS, INFERENCES = "/api/v1/events", "/api/v1/cloudevents", "/api/v1/inferences"
GOOD: dict[str, Any] = {"id": "a", "ts": NOW, "model": "m", "features": {"x": 1.5}, "prediction": 1}
JSON, LINES, ARROW = ({"Content-Type": kind} for kind in ("application/json", LINES_TYPE, ARROW_TYPE))  # fmt: skip
KSERVE = {"Ce-Specversion": "1.0", "Ce-Id": "q", "Ce-Source": "/x", "Ce-Time": "2026-11-21T10:00:00Z", "Ce-Inferenceservicename": "m", "Content-Type": "application/json"}  # fmt: skip
REQUEST = KSERVE | {"Ce-Type": "org.kubeflow.serving.inference.request"}
RESPONSE = KSERVE | {"Ce-Type": "org.kubeflow.serving.inference.response"}
ASKED, ANSWERED = b'{"instances":[{"x":1}]}', b'{"predictions":[0]}'


@pytest.fixture
def door() -> Door:
    return Door()


def arrow(rows: list[dict[str, Any]], compression: str | None = None) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:  # fmt: skip
        writer.write_table(table)
    return sink.getvalue()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fate(name: str) -> float:
    value: float = metrics.HALVES.labels(name)._value.get()
    return value


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (msgspec.json.encode(GOOD), JSON),
        (msgspec.json.encode([GOOD]), JSON),
        (msgspec.json.encode(GOOD) + b"\r\n\r\n", LINES),
        (arrow([GOOD]), ARROW),
    ],
)
def test_a_prediction_is_taken_in_each_form(
    door: Door, content: bytes, headers: dict[str, str]
) -> None:
    answer = door.client().post(EVENTS, content=content, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.json() == {"accepted": 1, "refused": 0, "reasons": {}, "errors": [], "truncated": False, "held": 0, "halves": {}}  # fmt: skip
    (event,) = door.events()
    assert (event.id, event.ts_ms, event.features, event.prediction) == ("a", NOW, {"x": 1.5}, 1)


def test_the_good_rows_are_taken_and_the_others_are_named(door: Door) -> None:
    rows = [GOOD, GOOD | {"ts": "hunter2"}, GOOD | {"id": "b"}, [GOOD], 5, {"ts": NOW}]
    lines = b"\n".join(map(msgspec.json.encode, rows))
    for content, headers in ((msgspec.json.encode(rows), JSON), (lines, LINES)):
        door.records.clear()
        answer = door.client().post(EVENTS, content=content, headers=headers)
        said = answer.json()
        assert (answer.status_code, said["accepted"], said["refused"]) == (202, 2, 4)
        assert [(e["row"], e["reason"]) for e in said["errors"]] == [(2, "bad_timestamp"), (4, "not_json"), (5, "not_json"), (6, "missing_field")]  # fmt: skip
        assert [event.id for event in door.events()] == ["a", "b"]
        assert "hunter2" not in answer.text


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_of_an_arrow_stream_the_good_rows_stay_as_they_came(
    door: Door, compression: str | None
) -> None:
    rows = [GOOD | {"id": str(i), "ts": NOW if i % 2 else 5} for i in range(6)]
    rows[1]["features"] = {"x": float("nan")}
    answer = door.client().post(EVENTS, content=arrow(rows, compression), headers=ARROW)
    assert (answer.json()["accepted"], answer.json()["reasons"]) == (3, {"bad_timestamp": 3})
    found = door.events()
    assert [event.id for event in found] == ["1", "3", "5"]
    features = found[0].features
    assert features is not None
    assert features["x"] != features["x"], "JSON would have made it missing"


def test_many_events_are_few_messages_that_the_broker_takes(door: Door) -> None:
    rows = [GOOD | {"id": str(i), "tags": {"pad": "x" * 200}} for i in range(3_000)]
    content = msgspec.json.encode(rows)
    assert 0.8 * MAX_BODY < len(content) <= MAX_BODY
    assert door.client().post(EVENTS, content=content, headers=JSON).json()["accepted"] == 3_000
    assert [event.id for event in door.events()] == [str(i) for i in range(3_000)]
    assert len(door.records) == 2
    assert all(len(record.value) < MAX_BODY for record in door.records)


def test_one_event_goes_by_its_id(door: Door) -> None:
    client = door.client()
    client.post(EVENTS, json=GOOD)
    client.post(EVENTS, json=[GOOD])
    client.post(EVENTS, json=GOOD | {"id": None})
    client.post(EVENTS, json=[GOOD, GOOD])
    assert [record.key for record in door.records] == ["a", "a", None, None]


def test_what_is_too_deep_for_the_profiler_is_refused_here(door: Door) -> None:
    deep: Any = 1
    for _ in range(6):
        deep = [deep]
    client = door.client()
    alone = GOOD | {"tags": {"x": deep}}  # eight deep: as much as one may be
    assert client.post(EVENTS, json=alone).status_code == 202
    assert client.post(EVENTS, json=[alone]).json()["reasons"] == {"too_large": 1}
    assert len(door.events()) == 1


@pytest.mark.parametrize(
    ("path", "content", "headers"),
    [
        (EVENTS, b"hello", JSON),
        (EVENTS, b"", JSON),
        (EVENTS, b"[{]", JSON),
        (EVENTS, b"[" * 100_000, JSON),
        (EVENTS, b"[{}]", JSON),
        (EVENTS, b"[" + b"{}," * 300_000 + b"{}]", JSON),
        (EVENTS, b"x\ny", LINES),
        (EVENTS, b"\xff\xff\xff\xffhunter2", ARROW),
        (EVENTS, arrow([{"ts": 5, "model": "m"}]), ARROW),
        (CLOUDEVENTS, b"[]", {"Content-Type": CLOUDEVENT_TYPE}),
        (CLOUDEVENTS, b"{}", {"Content-Type": CLOUDEVENT_TYPE}),
        (CLOUDEVENTS, b"{", REQUEST),
        (CLOUDEVENTS, b'{"instances":[[1]]}', REQUEST),
        (CLOUDEVENTS, ASKED, REQUEST | {"Ce-Type": "com.example.other"}),
        (INFERENCES, b"{}", JSON),
        (INFERENCES, b'[{"id":"a"}]', JSON),
    ],
)
def test_what_holds_no_prediction_is_a_problem(
    door: Door, path: str, content: bytes, headers: dict[str, str]
) -> None:
    answer = door.client().post(path, content=content, headers=headers)
    assert (answer.status_code, door.records) == (422, [])
    said = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (said["detail"], said["errors"][0]["row"]) == ("not one row is a prediction", 1)
    assert len(said["errors"]) <= MAX_SHOWN


def test_nothing_to_take_is_no_mistake(door: Door) -> None:
    client = door.client()
    for path, content, headers in ((EVENTS, b"[]", JSON), (EVENTS, b"\n", LINES), (CLOUDEVENTS, b"[]", {"Content-Type": BATCH_TYPE})):  # fmt: skip
        answer = client.post(path, content=content, headers=headers)
        assert (answer.status_code, answer.json()["accepted"], door.records) == (202, 0, [])


@pytest.mark.parametrize(("failure", "detail", "again"), BROKER_AWAY)
def test_nothing_is_claimed_while_the_broker_is_away(
    failure: Exception, detail: str, again: str | None
) -> None:
    answer = Door(failure=failure).client().post(EVENTS, json=[GOOD, {}])
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, again)
    assert detail in answer.json()["detail"]
    assert "accepted" not in answer.json()
    assert "10.0.0" not in answer.text


class TestHalves:
    def test_a_half_is_held_and_accepted_with_the_other(self, door: Door) -> None:
        client = door.client()
        first = client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST)
        assert (first.status_code, first.json()["accepted"], first.json()["held"]) == (202, 0, 1)
        assert door.records == []
        second = client.post(CLOUDEVENTS, content=ANSWERED, headers=RESPONSE)
        assert (second.json()["accepted"], second.json()["halves"]) == (1, {"joined": 1})
        (event,) = door.events()
        assert (event.id, event.features, event.prediction) == ("q", {"x": 1}, 0)
        again = client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST)
        assert (again.status_code, again.json()["halves"]) == (202, {"repeated": 1})
        assert len(door.records) == 1

    def test_they_may_come_in_one_batch(self, door: Door) -> None:
        def structured(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
            named = {n.lower()[3:]: v for n, v in headers.items() if n.startswith("Ce-")}
            return {**named, "data": json.loads(body)}

        batch = [structured(RESPONSE, ANSWERED), structured(REQUEST, ASKED), {"type": "t", "id": "own", "data": GOOD | {"id": None}}, {}]  # fmt: skip
        answer = door.client().post(
            CLOUDEVENTS, content=json.dumps(batch).encode(), headers={"Content-Type": BATCH_TYPE}
        )
        said = answer.json()
        assert (said["accepted"], said["refused"], said["errors"][0]["row"]) == (2, 1, 4)
        assert {event.id for event in door.events()} == {"q", "own"}

    def test_a_cloudevent_of_ours_is_taken_as_on_the_topic(self, door: Door) -> None:
        headers = {"Ce-Id": "own", "Ce-Type": "com.example.prediction", "Ce-Time": "2026-11-21T10:00:00Z"}  # fmt: skip
        content = msgspec.json.encode({n: GOOD[n] for n in ("model", "prediction")})
        answer = door.client().post(CLOUDEVENTS, content=content, headers=headers)
        assert answer.status_code == 202, answer.text
        (event,) = door.events()
        assert (event.id, event.ts_ms, door.records[0].key) == ("own", NOW - 60_000, "own")

    def test_while_the_broker_is_away_the_first_half_waits_on(self, door: Door) -> None:
        client = door.client()
        client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST)
        door.failure = TransientError("away")
        assert client.post(CLOUDEVENTS, content=ANSWERED, headers=RESPONSE).status_code == 503
        door.failure = None
        answer = client.post(CLOUDEVENTS, content=ANSWERED, headers=RESPONSE)
        assert (answer.json()["accepted"], len(door.events())) == (1, 1)

    def test_halves_that_do_not_fit_are_refused_together(self, door: Door) -> None:
        client = door.client()
        client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST)
        answer = client.post(CLOUDEVENTS, content=b'{"predictions":[1,2]}', headers=RESPONSE)
        assert (answer.status_code, door.records) == (422, [])
        assert "1 rows in the request, 2 in the response" in answer.text

    @pytest.mark.parametrize("mode", ["request", "response"])
    def test_of_a_logger_that_sends_one_side_each_is_a_prediction(self, mode: str) -> None:
        door = Door({"m": ModelSpec.model_validate({"model": "m", "ingest": {"mode": mode}})})
        client = door.client()
        answers = {
            "request": client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST),
            "response": client.post(CLOUDEVENTS, content=ANSWERED, headers=RESPONSE),
        }
        assert answers.pop(mode).json()["accepted"] == 1
        (other,) = answers.values()
        assert (other.status_code, len(door.events())) == (422, 1)
        assert f"mode: {mode}" in other.text

    def test_a_spec_is_asked_for_every_ten_seconds_and_kept_while_the_database_is_away(
        self, door: Door
    ) -> None:
        client = door.client()
        door.away = True
        away = client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST)
        assert (away.status_code, away.json()["detail"]) == (503, "the database does not answer")
        door.away = False
        for i in range(5):
            client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST | {"Ce-Id": str(i)})
        assert door.asked == 1
        door.specs["m"] = ModelSpec.model_validate({"model": "m", "ingest": {"mode": "request"}})
        door.now_ms += 10_000
        door.away = True
        assert client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST).json()["held"] == 1
        door.away = False
        assert client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST | {"Ce-Id": "z"}).json()["accepted"] == 1  # fmt: skip

    def test_what_is_due_goes_on_alone_and_each_fate_is_counted(self, door: Door) -> None:
        ingest = Ingest(door.store, door.post, Limits(), lambda: door.now_ms)
        before = {name: fate(name) for name in ("request_alone", "response_alone", "lost")}

        def send(content: bytes, headers: Mapping[str, str]) -> None:
            lower = {name.lower(): text for name, text in headers.items()}
            ingest.take(ingest.cloudevents(content, "application/json", lower, Said()))

        def gained() -> dict[str, float]:
            return {name: fate(name) - n for name, n in before.items()}

        send(ASKED, REQUEST)
        send(ANSWERED, RESPONSE | {"Ce-Id": "r"})
        door.now_ms += 59_999
        ingest.sweep()
        assert door.records == []
        assert metrics.HALVES_HELD._value.get() == 2
        door.now_ms += 1
        door.failure = TransientError("away")
        ingest.sweep()
        assert gained() == {"request_alone": 0, "response_alone": 0, "lost": 0}
        door.failure = None
        door.now_ms += 60_000
        ingest.sweep()
        (event,) = door.events()
        assert (event.id, event.features, event.prediction) == ("q", {"x": 1}, None)
        assert gained() == {"request_alone": 1, "response_alone": 1, "lost": 0}
        send(ASKED, REQUEST | {"Ce-Id": "s"})
        ingest.sweep(ending=True)
        assert [event.id for event in door.events()] == ["q", "s"]
        send(ASKED, REQUEST | {"Ce-Id": "t"})
        door.failure = TransientError("away")
        ingest.sweep(ending=True)
        assert gained() == {"request_alone": 2, "response_alone": 1, "lost": 1}

    def test_what_there_is_no_room_for_goes_on_with_the_next_that_comes(self, door: Door) -> None:
        few = Halves(Bounds(halves=2))
        ingest = Ingest(door.store, door.post, Limits(), lambda: door.now_ms, few)
        for i in range(3):
            headers = {n.lower(): v for n, v in (REQUEST | {"Ce-Id": str(i)}).items()}
            ingest.take(ingest.cloudevents(ASKED, "application/json", headers, Said()))
        assert [event.id for event in door.events()] == ["0"]

    def test_the_server_sweeps_while_it_runs_and_when_it_ends(
        self, door: Door, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(api_events, "SWEEP_S", 0.01)

        async def serve() -> None:
            app = door.client().app
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
                    await client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST)
                    door.now_ms += 60_000
                    await asyncio.to_thread(wait_for, lambda: bool(door.records))
                    await client.post(CLOUDEVENTS, content=ASKED, headers=REQUEST | {"Ce-Id": "z"})
                assert len(door.records) == 1

        asyncio.run(serve())
        assert [event.id for event in door.events()] == ["q", "z"]


@pytest.mark.parametrize("path", [EVENTS, CLOUDEVENTS, INFERENCES])
class TestEveryRoute:
    def test_without_a_broker_it_says_so(self, door: Door, path: str) -> None:
        answer = door.client(broker=False).post(path, content=b"{}", headers=LINES)
        assert (answer.status_code, "no broker" in answer.text) == (503, True)

    def test_it_needs_the_key_and_takes_nothing_of_another_sites_page(
        self, door: Door, path: str
    ) -> None:
        client = door.client(key=SecretStr("k" * 32))
        key = {"X-API-Key": "k" * 32, **LINES}
        assert client.post(path, content=b"{}", headers=LINES).status_code == 401
        foreign = {**key, "Origin": "https://evil.example"}
        assert client.post(path, content=b"{}", headers=foreign).status_code == 403
        plain = {**key, "Content-Type": "text/plain"}  # what a page can send without asking
        assert client.post(path, content=b"{}", headers=plain).status_code == 415
        assert door.records == []

    def test_a_body_is_bounded_even_if_its_length_is_not_said(self, door: Door, path: str) -> None:
        async def endless() -> AsyncIterator[bytes]:
            for _ in range(MAX_BODY // 100_000 + 1):
                yield b" " * 100_000

        for content in (b" " * (MAX_BODY + 1), endless()):
            answer = door.client().post(path, content=content, headers=LINES)
            assert (answer.status_code, str(MAX_BODY) in answer.json()["detail"]) == (413, True)

    def test_the_bodies_in_memory_at_once_are_bounded(
        self, door: Door, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(api_events, "MAX_AT_ONCE", 2)

        async def ask() -> list[int]:
            app, go = door.client().app, asyncio.Event()
            begun: asyncio.Queue[None] = asyncio.Queue()

            async def slow() -> AsyncIterator[bytes]:
                begun.put_nowait(None)  # it is being read
                yield b"{"
                await go.wait()
                yield b"}"

            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url=HERE
            ) as client:
                waiting = [
                    asyncio.create_task(client.post(path, content=slow(), headers=LINES))
                    for _ in range(2)
                ]
                for _ in waiting:
                    await begun.get()
                third = await client.post(path, content=b"{}", headers=LINES)
                go.set()
                rest = [(await task).status_code for task in waiting]
                last = await client.post(path, content=b"{}", headers=LINES)
                return [third.status_code, *rest, last.status_code]

        assert asyncio.run(ask()) == [429, 422, 422, 422]

    def test_the_schema_says_what_goes_in(self, door: Door, path: str) -> None:
        paths: dict[str, Any] = door.client().get("/api/v1/openapi.json").json()["paths"]
        content = paths[path]["post"]["requestBody"]["content"]
        assert LINES_TYPE in content
        for described in content.values():
            assert described["schema"]


def test_the_profiler_takes_every_form_that_was_accepted(door: Door) -> None:
    client = door.client()
    client.post(EVENTS, content=arrow([GOOD] * 3), headers=ARROW)
    client.post(EVENTS, json=[GOOD] * 3)
    for record in door.records:
        outcomes = decode_message(record.value, record.headers, Limits(), now_ms=NOW)
        assert len(outcomes) == 3
    assert [record.headers["content-type"] for record in door.records] == [ARROW_TYPE.encode(), b"application/json"]  # fmt: skip
