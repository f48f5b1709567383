"""The part of the API that predictions come in by: events of ours, CloudEvents of serving stacks, and records that they captured.

They go to the topic, which stays the one way in. Who was told that predictions are accepted can count on it: the broker has them. A request
or a response that waits for its other half (``monitor.halves``) is ``held``, which is not accepted yet, and lives in this process: both have to come to the same one.

After a 503 nothing is claimed. To send the same again is right, and may count a prediction twice where only the broker's answer was lost.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response

from monitor.api_answers import answers, json
from monitor.api_labels import Taken
from monitor.api_orders import (
    Desk,
    NothingTakenError,
    body_of,
    broker_in_http,
    media_type_of,
    same_site_check,
)
from monitor.captures import Said
from monitor.events import ARROW_TYPE, CLOUDEVENT_TYPE, JSON_TYPE, MAX_BODY
from monitor.halves import HalfFate
from monitor.ingest import BATCH_TYPE, LINES_TYPE, Haul, Ingest
from monitor.store import Store

MAX_AT_ONCE: Final = 64  # bodies that are in memory: 64 MB
SWEEP_S: Final = 1.0
_BUSY: Final = {"Retry-After": "1"}

_EVENT: Final = {
    "type": "object",
    "required": ["ts", "model"],
    "properties": {
        "id": {"type": ["string", "integer"], "description": "What its label is joined by; else prediction_id, or the model's join key."},
        "ts": {"type": ["string", "number"], "description": "RFC 3339 or epoch milliseconds."},
        "model": {"type": "string"},
        "version": {"type": ["string", "integer"]},
        "features": {"type": "object", "description": "By name: numbers, texts, booleans or null; lists of numbers for embeddings."},
        "prediction": {"type": ["string", "number", "boolean", "null"]},
        "score": {"type": ["number", "null"]},
        "latency_ms": {"type": ["number", "null"]},
        "error": {},
        "tags": {"type": "object"},
    },
}  # fmt: skip
_LINES: Final = {"schema": {"type": "string", "description": "One such JSON object a line."}}
_EVENTS: Final = {
    JSON_TYPE: {"schema": {"oneOf": [_EVENT, {"type": "array", "items": _EVENT}]}},
    LINES_TYPE: _LINES,
    ARROW_TYPE: {"schema": {"type": "string", "format": "binary", "description": "An IPC stream, the same fields as columns."}},
}  # fmt: skip
_BODY: Final = {"description": "V1 {instances} or {predictions}, V2 {inputs} or {outputs}, MLflow {dataframe_split}, {dataframe_records}, Seldon {data}, or a list of rows."}  # fmt: skip
_ENVELOPE: Final = {
    "type": "object",
    "required": ["specversion", "id", "type", "source"],
    "properties": {
        "specversion": {"type": "string"},
        "id": {"type": "string"},
        "type": {"type": "string", "description": "A request or a response of KServe, Seldon Core or Azure ML; of any other type, data is an event."},
        "source": {"type": "string"},
        "time": {"type": "string"},
        "data": _BODY,
    },
}  # fmt: skip
_CLOUDEVENTS: Final = {
    CLOUDEVENT_TYPE: {"schema": _ENVELOPE},
    BATCH_TYPE: {"schema": {"type": "array", "items": _ENVELOPE}},
    LINES_TYPE: _LINES,
    JSON_TYPE: {"schema": {**_BODY, "description": f"With the attributes in headers Ce-*. {_BODY['description']}"}},
}  # fmt: skip
_CAPTURE: Final = {
    "type": "object",
    "description": "Of ours; or a row of a Databricks inference table, a line of SageMaker's data capture, or a row of BentoML's monitoring.",
    "required": ["id", "ts"],
    "properties": {
        **{name: _EVENT["properties"][name] for name in ("id", "ts", "model", "version", "latency_ms", "error")},  # type: ignore[index]  # it is a dict
        "request": _BODY,
        "response": _BODY,
    },
}  # fmt: skip
_CAPTURES: Final = {
    JSON_TYPE: {"schema": {"oneOf": [_CAPTURE, {"type": "array", "items": _CAPTURE}]}},
    LINES_TYPE: _LINES,
}


class Hauled(Taken, frozen=True):
    """What ``Haul.to_dict`` says, for OpenAPI."""

    held: int
    halves: dict[HalfFate, int]


_ANSWERS: Final = answers(Hauled, 413, 415, status=202)
Name = Annotated[str, Query(max_length=128, description="Of what does not say its model.")]
Version = Annotated[str, Query(max_length=256, description="Likewise.")]
Offset = Annotated[
    str | None,
    Query(
        pattern=r"^[ +-](0\d|1[0-4]):[0-5]\d$",  # an unescaped + arrives as a blank
        description="From UTC, of times that have none, such as +01:00.",
    ),
]


def event_routes(store: Store, desk: Desk | None, public_url: str) -> APIRouter:
    """The routes; without a way to the broker they say that there is none."""
    ingest = None
    if desk is not None and desk.post is not None:
        ingest = Ingest(store, desk.post, desk.limits, desk.clock_ms)
    guards = [Depends(same_site_check(public_url)), Depends(_turnstile())]
    router = APIRouter(prefix="/api/v1", dependencies=guards, lifespan=_lifespan(ingest))

    @router.post("/events", openapi_extra=_body(_EVENTS), **_ANSWERS)
    def take_events(
        request: Request,
        body: Annotated[bytes, Depends(body_of(JSON_TYPE, LINES_TYPE, ARROW_TYPE, most=MAX_BODY))],
    ) -> Response:
        """Take predictions. 202 says how many were accepted, and names rows that were refused, the first of them as 1.

        422 where not one is a prediction; 503 while the broker does not answer: nothing is claimed, send the same again.
        """
        return _taken(ingest, lambda way: way.events(body, media_type_of(request)))

    @router.post("/cloudevents", openapi_extra=_body(_CLOUDEVENTS), **_ANSWERS)
    def take_cloudevents(
        request: Request,
        body: Annotated[
            bytes,
            # A logger hands on whatever the request called its body.
            Depends(
                body_of(CLOUDEVENT_TYPE, BATCH_TYPE, LINES_TYPE, most=MAX_BODY, or_header="ce-type")
            ),
        ],
        model: Name = "",
        version: Version = "",
    ) -> Response:
        """Take CloudEvents: predictions, or requests and responses of a serving stack, which are joined by their id.

        ``held`` are halves that wait for the other one, for a minute; then a request is a prediction without an answer, and a response is dropped.
        ``halves`` says what became of the others. The rest is as for events.
        """  # fmt: skip
        said = Said(model, version)
        headers = dict(request.headers)
        return _taken(
            ingest, lambda way: way.cloudevents(body, media_type_of(request), headers, said)
        )

    @router.post("/inferences", openapi_extra=_body(_CAPTURES), **_ANSWERS)
    def take_inferences(
        request: Request,
        body: Annotated[bytes, Depends(body_of(JSON_TYPE, LINES_TYPE, most=MAX_BODY))],
        model: Name = "",
        version: Version = "",
        offset: Offset = None,
    ) -> Response:
        """Take records that hold a request and its response. The rest is as for events."""
        said = Said(model, version, _minutes(offset))
        return _taken(ingest, lambda way: way.captures(body, media_type_of(request), said))

    return router


def _taken(ingest: Ingest | None, read: Callable[[Ingest], Haul]) -> Response:
    if ingest is None:
        raise HTTPException(503, "this API has no broker to give predictions to")
    haul = read(ingest)
    with broker_in_http("no prediction is sure to be taken, send the same again"):
        ingest.take(haul)
    said = haul.to_dict()
    if haul.receipt.refused and not (haul.receipt.accepted or haul.held or haul.fates):
        raise NothingTakenError("not one row is a prediction", said)
    return json(said, 202)


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _minutes(offset: str | None) -> int | None:
    if offset is None:
        return None
    sign = -1 if offset[0] == "-" else 1
    return sign * (int(offset[1:3]) * 60 + int(offset[4:6]))


def _turnstile() -> Callable[[], AsyncIterator[None]]:
    """Bounds how many bodies are in memory at once."""
    inside = 0

    async def turn() -> AsyncIterator[None]:
        nonlocal inside
        if inside >= MAX_AT_ONCE:
            raise HTTPException(429, f"{MAX_AT_ONCE} requests at once: send larger bodies, or wait", headers=_BUSY)  # fmt: skip
        inside += 1
        try:
            yield
        finally:
            inside -= 1

    return turn


def _lifespan(ingest: Ingest | None) -> Callable[[FastAPI], Any]:
    """While the server runs, halves that are due go on alone; at its end, all that wait."""

    @asynccontextmanager
    async def span(_app: FastAPI) -> AsyncIterator[None]:
        if ingest is None:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=_sweep, args=(ingest, ended), name="halves", daemon=True)
        thread.start()
        yield
        ended.set()
        await asyncio.to_thread(thread.join)

    return span


def _sweep(ingest: Ingest, ended: threading.Event) -> None:
    while not ended.wait(SWEEP_S):
        ingest.sweep()
    ingest.sweep(ending=True)
