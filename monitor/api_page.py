"""What only the page asks for: all models with their state, one model's drift by feature and time (``monitor.overview``), and to be told of changes.

Changes come as server-sent events. However many readers there are, the database is asked once in ``LOOK_S``, and not at all while there is none.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from monitor import overview
from monitor.api_answers import Limit, Page, TimeMs, answers, json, most_of, page
from monitor.errors import DriftlineError
from monitor.overview import FleetRow, Heat
from monitor.recent import Recent
from monitor.store import Store
from monitor.tables import FOREVER_MS

LOOK_S: Final = 2.0
MAX_READERS: Final = 100  # beyond them a page asks every few seconds, as it does where a proxy lets no stream through
_STEP_S: Final = 0.25  # of waiting: the API stops within it
_ALIVE_S: Final = 15.0  # proxies close what is silent for a minute
_ALIVE: Final = ": nothing new\n\n"
_UNBUFFERED: Final = {"X-Accel-Buffering": "no"}  # nginx would hold it back

Name = Annotated[str, Query(max_length=256)]


class Pulse:
    """The newest ``overview.mark``, at most ``LOOK_S`` old. Where it is another, what is remembered is forgotten first: who hears of it asks at once.

    Share it between threads.
    """

    def __init__(
        self, store: Store, recent: Recent, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._recent, self._monotonic = store, recent, monotonic
        self._lock = threading.Lock()
        self._mark, self._looked = "", float("-inf")

    def mark(self) -> str:
        """The last one that is known while the database does not answer."""
        with self._lock:
            if self._monotonic() - self._looked >= LOOK_S:
                self._looked = self._monotonic()
                with suppress(
                    DriftlineError
                ):  # there is nothing new to tell: who asks for a view hears why
                    mark = overview.mark(self._store)
                    if mark != self._mark:
                        self._recent.forget()
                    self._mark = mark
            return self._mark


class _Readers:
    """How many streams are open. Only the event loop counts."""

    def __init__(self) -> None:
        self.open = 0


def page_routes(
    store: Store, recent: Recent, page_size: int, beside: Mapping[str, str], stop: threading.Event
) -> APIRouter:
    """The routes. A model's name may hold slashes, so these come before ``/api/v1/models/{model}``.

    Answers of the database are ``recent``; ``beside`` are headers of what tells of models. Streams end when ``stop`` is set.
    """
    router = APIRouter(prefix="/api/v1")
    pulse, readers = Pulse(store, recent), _Readers()

    @router.get("/fleet", **answers(Page[FleetRow]))
    def fleet(limit: Limit = None) -> Response:
        """Every model with its state, those with the worst open incident first."""
        most = most_of(limit, page_size)
        rows = recent.get(("fleet", most), lambda: overview.fleet(store, limit=most + 1))
        response = page(rows, most)
        response.headers.update(beside)
        return response

    # Its answer has no end, so no schema describes it.
    @router.get("/changes", response_class=StreamingResponse, include_in_schema=False)
    async def changes() -> StreamingResponse:
        """Server-sent events: one at first, and one after each change of what a view shows. Ask for the view again then."""
        if readers.open >= MAX_READERS:
            raise HTTPException(503, "too many are listening: ask every few seconds instead")
        stream = _changes(pulse, readers, stop)
        return StreamingResponse(stream, media_type="text/event-stream", headers=_UNBUFFERED)

    @router.get("/models/{model:path}/heat", **answers(Heat))
    def heat(
        model: str,
        version: Name,
        size_ms: Annotated[int, Query(gt=0, le=FOREVER_MS)],
        from_ms: TimeMs,
        to_ms: TimeMs,
        columns: Annotated[int, Query(ge=1, le=overview.MAX_COLUMNS)] = 96,
        segment: Name = "",
        statistic: Annotated[
            str | None, Query(max_length=256, description="All of them without one.")
        ] = None,
    ) -> Response:
        """Drift by feature and time: in each column the worst value of its windows, as a multiple of its limit."""
        scope: dict[str, Any] = {
            "version": version,
            "segment": segment,
            "size_ms": size_ms,
            "from_ms": from_ms,
            "to_ms": max(to_ms, from_ms + 1),
            "columns": columns,
            "statistic": statistic,
        }
        key = ("heat", model, *scope.values())
        return json(recent.get(key, lambda: overview.heat(store, model, **scope)))

    return router


async def _changes(pulse: Pulse, readers: _Readers, stop: threading.Event) -> AsyncIterator[str]:
    readers.open += 1
    try:
        told, silent_s = None, 0.0
        while not stop.is_set():
            mark = await run_in_threadpool(pulse.mark)
            if mark != told:
                told, silent_s = mark, 0.0
                yield f"event: changed\ndata: {mark}\n\n"
            elif silent_s >= _ALIVE_S:
                silent_s = 0.0
                yield _ALIVE
            waited = 0.0
            while waited < LOOK_S and not stop.is_set():
                await asyncio.sleep(_STEP_S)
                waited += _STEP_S
            silent_s += waited
    finally:
        readers.open -= 1
