"""What the API answers with: JSON, pages of rows, problems (RFC 9457), and what OpenAPI says of them.

The schemas are made of the types that are sent, so they are what is sent.
"""

from __future__ import annotations

import hashlib
import http
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor import metrics
from monitor.tables import FOREVER_MS

T = TypeVar("T")
RETRY_AFTER_S: Final = 5
MAX_SKIP: Final = 1_000_000
PROBLEM: Final = "application/problem+json"
_JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{name}"
_HEADERS: Final = {
    # Pages are self-contained: nothing comes from elsewhere, nothing goes elsewhere, nobody frames them.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_WORDS: Final = {
    400: "The host name is not ours.",
    401: "It is not known who asks.",
    403: "Who asks may not do this, or it comes from another site's page.",
    404: "There is none.",
    409: "It would change nothing, or is not ok.",
    413: "The body is too long.",
    415: "The body is of another kind.",
    422: "A parameter or the body is wrong.",
    429: "Too many requests; Retry-After says when.",
    503: "The database, the broker or the issuer of tokens does not answer.",
}
_ANY: Final = (404, 422, 429, 503)


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Rows, the newest first. Where it is ``truncated``, the header ``Link`` leads to the next page."""

    items: list[T]
    truncated: bool


class Data(msgspec.Struct, Generic[T], frozen=True):
    """One answer, where readers expect it under this name."""

    data: T


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong, per RFC 9457; ``errors`` one by one, of a parameter or a row."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    errors: list[dict[str, Any]] = []


TimeMs = Annotated[int, Query(ge=0, le=FOREVER_MS)]
Limit = Annotated[int | None, Query(ge=1, description="At most and by default api.page_size.")]
Skip = Annotated[int, Query(ge=0, le=MAX_SKIP, description="Rows left out, as Link says.")]


class Span(NamedTuple):
    """Rows of which times are wanted, and how many."""

    request: Request
    from_ms: int
    to_ms: int
    limit: int | None
    skip: int

    def page(
        self,
        ask: Callable[..., list[Any]],
        page_size: int,
        *about: Any,
        at: str = "start_ms",
        shown: Callable[[list[Any]], list[Any]] | None = None,
        **scope: Any,
    ) -> Response:
        """The page of what ``ask`` finds of them, which comes newest first by ``at``; the other arguments are its own. ``shown`` are the items of the rows."""
        most = most_of(self.limit, page_size)
        times = {"from_ms": self.from_ms, "to_ms": self.to_ms}
        rows = ask(*about, **scope, **times, skip=self.skip, limit=most + 1)
        truncated, rows = len(rows) > most, rows[:most]
        response = json(Page(rows if shown is None else shown(rows), truncated))
        if truncated:
            response.headers["Link"] = self._next([getattr(row, at) for row in rows])
        return response

    def _next(self, times_ms: Sequence[int]) -> str:
        """The rest begins at the last time that was shown, of which some rows were."""
        last_ms = times_ms[-1]
        same = sum(at_ms == last_ms for at_ms in times_ms)
        before = self.skip if last_ms + 1 == self.to_ms else 0
        query = dict(self.request.query_params) | {"to_ms": last_ms + 1, "skip": before + same}
        return f'<?{urlencode(query)}>; rel="next"'


async def _span(
    request: Request,
    from_ms: TimeMs = 0,
    to_ms: TimeMs = FOREVER_MS,
    limit: Limit = None,
    skip: Skip = 0,
) -> Span:
    return Span(request, from_ms, to_ms, limit, skip)


AnySpan = Annotated[Span, Depends(_span)]


def json(value: object, status: int = 200, media_type: str = _JSON) -> Response:
    """An answer of JSON."""
    return Response(msgspec.json.encode(value), status, media_type=media_type)


def page(rows: list[Any], most: int) -> Response:
    """A page of ``rows``, of which one more than ``most`` was asked for."""
    return json(Page(rows[:most], len(rows) > most))


def most_of(limit: int | None, page_size: int) -> int:
    """How many rows a page may have."""
    return min(limit or page_size, page_size)


def found(value: object | None, otherwise: str) -> Response:
    """An answer, or 404."""
    if value is None:
        raise HTTPException(404, otherwise)
    return json(value)


def problem(status: int, detail: str, **more: object) -> Response:
    """A problem document."""
    title = http.HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return json(body, status, PROBLEM)


def answers(
    kind: Any, *problems: int, status: int = 200, also: int | None = None
) -> dict[str, Any]:
    """What a route says of itself in OpenAPI: the type of its answer, which problems there are beside the usual, and another status of such an answer."""
    told: dict[int | str, dict[str, Any]] = {
        code: {"description": _WORDS[code], "content": {PROBLEM: {"schema": _schema(Problem)}}}
        for code in sorted({*_ANY, *problems})
    }
    for code, words in ((status, "It is so."), (also, "It is not so.")):
        if code is not None:
            told[code] = {"description": words, "content": {_JSON: {"schema": _schema(kind)}}}
    return {"status_code": status, "responses": told}


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), parts = msgspec.json.schema_components([kind], ref_template=_REF)
    return {**schema, "$defs": parts}


def describe(app: FastAPI, needs: Callable[[Any], str | None]) -> dict[str, Any]:
    """The application's OpenAPI. ``needs`` tells of a route's dependency which scope it asks for, if any is asked for."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # ours are problems
        schemas.pop(name, None)
    schemas.update(_hoisted(document["paths"]))
    guarded = False
    for route in iter_route_contexts(app.routes):
        dependencies = getattr(route, "dependencies", None) or ()
        scope = next(filter(None, (needs(each.dependency) for each in dependencies)), None)
        operations = document["paths"].get(getattr(route, "path_format", None), {})
        for method in getattr(route, "methods", None) or ():
            if scope and (operation := operations.get(method.lower())):
                guarded = True
                _guard(operation, scope)
    if guarded:
        document["components"]["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer", "description": "A key, or a token of the issuer."},
        }  # fmt: skip
    return document


def _guard(operation: dict[str, Any], scope: str) -> None:
    operation["security"] = [{"key": []}, {"bearer": []}]
    operation["x-scope"] = scope
    refusal = {PROBLEM: {"schema": {"$ref": _REF.format(name=Problem.__name__)}}}
    for status in (401, 403, 429, 503):
        told = {"description": _WORDS[status], "content": refusal}
        operation["responses"].setdefault(str(status), told)


def _hoisted(value: object) -> Iterator[tuple[str, Any]]:
    """Takes the definitions out of all schemas, to stand once."""
    if isinstance(value, dict):
        yield from value.pop("$defs", {}).items()
        for each in value.values():
            yield from _hoisted(each)
    elif isinstance(value, list):
        for each in value:
            yield from _hoisted(each)


class Around:
    """Around all answers: headers that keep a browser safe, an ETag of what is read again, and a count.

    JSON may be kept by who asked for it, and is asked for anew each time (``no-cache``): 304 where it is the same, which saves the way and not the
    work. All else is not kept, but for the page's own files, which bring a tag of their own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start: Message | None = None

        async def around(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # held until the body is there
                return
            if start is not None:
                held, start = start, None
                message = _finished(scope, held, message)
                await send(held)
            await send(message)

        with metrics.API_SECONDS.time():
            return await self._app(scope, receive, around)


def _finished(scope: Scope, start: Message, body: Message) -> Message:
    """Writes what all answers have into ``start``; gives the body that is left."""
    headers = MutableHeaders(raw=start["headers"])
    headers.update(_HEADERS)
    is_json = headers.get("content-type") == _JSON and start["status"] == 200
    if is_json and scope["method"] == "GET" and not body.get("more_body"):
        headers["etag"] = f'"{hashlib.blake2b(body["body"], digest_size=16).hexdigest()}"'
        if _has(Headers(scope=scope).get("if-none-match", ""), headers["etag"]):
            start["status"] = 304
            for name in ("content-length", "content-type"):
                del headers[name]
            body = {"type": "http.response.body", "body": b""}
    kept = "etag" in headers
    headers["cache-control"] = "private, no-cache" if kept else "no-store"
    if kept:
        headers.add_vary_header("X-API-Key, Authorization")
    metrics.API_REQUESTS.labels(f"{start['status'] // 100}xx").inc()
    start["headers"] = headers.raw
    return body


def _has(if_none_match: str, etag: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in known or etag in known
