"""The middleware over a real FastAPI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from monitor.events import Event
from streams.asgi import RecorderMiddleware, Words
from streams.client import Recorder
from tests.streams.taker import Broker
from tests.streams.test_client import NOW_MS, recorder

WORK_S = 0.05
FAILURES = {"away": HTTPException(503), "defect": KeyError("defect")}


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def app_recorder(broker: Broker) -> Iterator[Recorder]:
    with recorder(broker) as made:
        yield made


def serving(made: Recorder) -> FastAPI:
    app = FastAPI()
    app.add_middleware(RecorderMiddleware, recorder=made)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        told = request.state.prediction
        told.id, told.features = "a1", await request.json()
        await asyncio.sleep(WORK_S)
        told.prediction, told.score = 1, 0.83
        return {"prediction": 1}

    @app.get("/sync/{what}")
    def sync(request: Request, what: str, after: BackgroundTasks) -> dict[str, str]:
        request.state.prediction.features = {"what": what}
        request.state.prediction.error = "no features" if what == "own" else None
        if what in FAILURES:
            raise FAILURES[what]
        after.add_task(asyncio.sleep, 4 * WORK_S)
        return {}

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.get("/stream")
    async def stream(request: Request) -> StreamingResponse:
        request.state.prediction.features = {"x": 1}

        async def words() -> AsyncIterator[str]:
            for word in ("one", "two"):
                request.state.prediction.prediction = word
                yield word

        return StreamingResponse(words())

    return app


async def ask(app: FastAPI, method: str, path: str, **more: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return await client.request(method, path, **more)


def recorded(made: Recorder, broker: Broker) -> list[Event]:
    made.close()
    return broker.events(NOW_MS)


async def test_what_a_route_hands_over_is_recorded_with_its_latency(
    app_recorder: Recorder, broker: Broker
) -> None:
    answer = await ask(serving(app_recorder), "POST", "/predict", json={"age": 44})
    assert answer.json() == {"prediction": 1}
    (event,) = recorded(app_recorder, broker)
    assert (event.id, event.model, event.version) == ("a1", "churn", "1")
    assert (event.features, event.prediction, event.score) == ({"age": 44}, 1, 0.83)
    assert event.error is None
    assert event.latency_ms is not None
    assert event.latency_ms >= 1_000 * WORK_S


@pytest.mark.parametrize(
    ("what", "status", "error"),
    [
        ("fine", 200, None),
        ("away", 503, "HTTP 503"),
        ("defect", 500, "KeyError"),
        ("own", 200, "no features"),
    ],
)
async def test_a_failure_is_recorded_with_the_features_that_led_to_it(
    app_recorder: Recorder, broker: Broker, what: str, status: int, error: str | None
) -> None:
    answer = await ask(serving(app_recorder), "GET", f"/sync/{what}")
    assert answer.status_code == status
    (event,) = recorded(app_recorder, broker)
    assert (event.features, event.error) == ({"what": what}, error)


async def test_what_runs_after_the_answer_does_not_count(
    app_recorder: Recorder, broker: Broker
) -> None:
    await ask(serving(app_recorder), "GET", "/sync/fine")
    (event,) = recorded(app_recorder, broker)
    assert event.latency_ms is not None
    assert event.latency_ms < 4_000 * WORK_S


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/sync"])
async def test_a_route_that_predicts_nothing_is_not_recorded(
    app_recorder: Recorder, broker: Broker, path: str
) -> None:
    await ask(serving(app_recorder), "GET", path)
    assert recorded(app_recorder, broker) == []


async def test_each_part_of_an_answer_passes_before_the_next_is_made(
    app_recorder: Recorder, broker: Broker
) -> None:
    seen: list[tuple[bytes, object]] = []
    state: dict[str, Any] = {}
    scope: Words = {"type": "http", "method": "GET", "path": "/stream", "query_string": b"", "headers": [], "state": state}  # fmt: skip

    async def receive() -> Words:
        await asyncio.sleep(3_600)
        return {"type": "http.disconnect"}

    async def send(message: Words) -> None:
        if message.get("body"):
            seen.append((message["body"], state["prediction"].prediction))

    await serving(app_recorder)(scope, receive, send)
    assert seen == [(b"one", "one"), (b"two", "two")]
    (event,) = recorded(app_recorder, broker)
    assert event.prediction == "two"


async def test_who_does_not_wait_for_the_answer_is_recorded_once(
    app_recorder: Recorder, broker: Broker
) -> None:
    asked = asyncio.create_task(ask(serving(app_recorder), "POST", "/predict", json={"age": 1}))
    await asyncio.sleep(WORK_S / 2)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    (event,) = recorded(app_recorder, broker)
    assert (event.features, event.prediction, event.error) == ({"age": 1}, None, "CancelledError")


async def test_other_protocols_pass(app_recorder: Recorder) -> None:
    passed: list[str] = []

    async def inner(scope: Words, _receive: object, _send: object) -> None:
        passed.append(scope["type"])
        assert "state" not in scope

    async def nothing(*_: object) -> Any:
        pass

    await RecorderMiddleware(inner, app_recorder)({"type": "lifespan"}, nothing, nothing)
    assert passed == ["lifespan"]
