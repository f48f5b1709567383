"""Middleware for FastAPI, Starlette and any other ASGI app: records what a route hands over, with the latency and the failure that it sees itself.

A route fills ``request.state.prediction``; once its answer is out, that is recorded. Bodies pass as they come, in either direction.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from streams.client import Recorder

Words: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Words]]
Send: TypeAlias = Callable[[Words], Awaitable[None]]
App: TypeAlias = Callable[[Words, Receive, Send], Awaitable[None]]
_FAILED: Final = 500


@dataclass(slots=True)
class Prediction:
    """What a route says of its prediction, as the arguments of ``Recorder.record``. Mutable: it is filled as it becomes known, features first, so that a failure has them."""

    id: str | int | None = None
    features: Mapping[str, Any] | None = None
    prediction: Any = None
    score: float | None = None
    error: Any = None
    tags: Mapping[str, Any] | None = None
    model: str | None = None
    version: str | int | None = None


class RecorderMiddleware:
    """Gives each request a ``Prediction`` and records it, if a route has filled it.

    ``latency_ms`` is from the request to the last byte of its answer; what runs in the background after it does not count. ``error``, unless the
    route says it, is the name of the exception that escaped it, or ``HTTP 503`` and the like.
    """

    def __init__(self, app: App, recorder: Recorder) -> None:
        self._app, self._recorder = app, recorder

    async def __call__(self, scope: Words, receive: Receive, send: Send) -> None:
        """A request, as ASGI hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        told, status, answered = Prediction(), 0, False
        scope.setdefault("state", {})["prediction"] = told

        async def watched(message: Words) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered = True
                self._record(told, start_s, f"HTTP {status}" if status >= _FAILED else None)

        try:
            await self._app(scope, receive, watched)
        except BaseException as err:  # a request that was cancelled, too: nobody got an answer
            if not answered:
                self._record(told, start_s, type(err).__name__)
            raise

    def _record(self, told: Prediction, start_s: float, failure: str | None) -> None:
        if told.features is None and told.prediction is None and told.error is None:
            return  # a route that predicts nothing
        self._recorder.record(
            told.id,
            told.features,
            told.prediction,
            told.score,
            latency_ms=(time.perf_counter() - start_s) * 1_000,
            error=failure if told.error is None else told.error,
            tags=told.tags,
            model=told.model,
            version=told.version,
        )
