"""The part of the API that people give orders by: routes that ask the detector for something, and change nothing themselves.

A browser may be made to call this address by any page that it shows. So an order needs JSON, which a foreign page cannot send without
asking first, and comes from no other site; both hold with a key as without one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, get_args
from urllib.parse import urlsplit

import msgspec
import structlog
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitor.api_access import Needs, signed
from monitor.api_answers import RETRY_AFTER_S, answers, json
from monitor.errors import ConfigError, DriftlineError, NothingToDoError, TransientError
from monitor.events import Limits, Post
from monitor.labels import LIMITS, Take
from monitor.orders import Give, Kind, order
from monitor.spec import parse_duration_ms
from monitor.store import Store
from monitor.tables import FOREVER_MS
from monitor.wire import Command

MAX_BODY: Final = 8 << 10  # an author and a comment are 700 characters at most
_AWAY: Final = {"Retry-After": str(RETRY_AFTER_S)}


@dataclass(frozen=True, slots=True)
class Desk:
    """What orders and labels are taken with.

    Attributes:
        give: takes an order to the detector; may block, so it is called in a thread of the pool.
        clock_ms: the wall clock.
        secret: of signed links (``monitor.approvals``); without one there are none.
        take: takes labels to their topic, and blocks as well; without it none are taken.
        post: takes predictions to theirs, likewise. ``limits``: of these.
    """

    give: Give
    clock_ms: Callable[[], int]
    secret: str = field(default="", repr=False)
    take: Take | None = None
    post: Post | None = None
    limits: Limits = LIMITS


class NothingTakenError(HTTPException):
    """422: nothing of a body was accepted; ``more`` says why, row by row."""

    def __init__(self, detail: str, more: Mapping[str, Any]) -> None:
        super().__init__(422, detail)
        self.more = more


class OrderBody(BaseModel):
    """What an order says beside its kind and its incident."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    author: str = Field(
        default="",
        description="Who asks: one line of at most 128 characters. The name of the key or token stands beside it, or for it.",
    )
    comment: str = Field(default="", description="Why; it stands in the timeline.")
    lasts: str | None = Field(
        default=None,
        alias="for",
        max_length=16,
        description="How long to be silent: 30m, 2h, 7d.",
        json_schema_extra={"pattern": "^[0-9]{1,5}(s|m|h|d|w)$"},
    )
    until_ms: int | None = Field(
        default=None, ge=0, le=FOREVER_MS, description="Or until when, in event time."
    )


def order_routes(store: Store, desk: Desk | None, public_url: str) -> APIRouter:
    """The routes; without a desk they say that there is none."""
    router = APIRouter(
        prefix="/api/v1/incidents", dependencies=[Depends(same_site_check(public_url))]
    )
    for kind in get_args(Kind):
        _add_order(router, store, desk, kind)
    return router


def _add_order(router: APIRouter, store: Store, desk: Desk | None, kind: Kind) -> None:
    needs = Needs("approve" if kind in ("approve", "reject") else "write")
    schema = {"application/json": {"schema": _schema(kind)}}

    @router.post(
        f"/{{incident_id}}/{kind}",
        name=kind,
        dependencies=[Depends(needs)],
        openapi_extra={"requestBody": {"required": True, "content": schema}},
        **answers(Command, 409, 413, 415, status=202),
    )
    def give_order(
        request: Request,
        incident_id: str,
        body: Annotated[bytes, Depends(body_of("application/json"))],
    ) -> Response:
        """Ask for something. 202 is what was asked for: the detector decides, and the incident's timeline tells.

        409 where it would change nothing; 503 while the broker or the database does not answer.
        """
        asked = _parsed(body)
        if desk is None:
            raise HTTPException(
                503, "this API has no broker to give orders to: use `driftline incident`"
            )
        now_ms = desk.clock_ms()
        until_ms = _until_ms(kind, asked, now_ms)
        incident = store.incident(incident_id)
        if incident is None:
            raise HTTPException(404, "no such incident")
        with in_http():
            command = order(
                kind,
                incident,
                author=asked.author or signed("", request),
                at_ms=now_ms,
                until_ms=until_ms,
                comment=asked.comment,
            )
        if asked.author:
            command = msgspec.structs.replace(command, author=signed(asked.author, request))
        given(desk, command)
        return json(command, 202)


def _schema(kind: Kind) -> dict[str, Any]:
    """Of a body: a silence has one of two ends, the others have none."""
    schema = OrderBody.model_json_schema()
    ends = ("for", "until_ms")
    if kind == "silence":
        return {**schema, "oneOf": [{"required": [end]} for end in ends]}
    told = {name: rule for name, rule in schema["properties"].items() if name not in ends}
    return {**schema, "properties": told}


@contextmanager
def in_http() -> Iterator[None]:
    """What ``monitor.orders.order`` refuses, in the terms of HTTP: 409 or 422."""
    try:
        yield
    except NothingToDoError as err:
        raise HTTPException(409, str(err)) from None
    except ConfigError as err:
        raise HTTPException(422, str(err)) from None


def given(desk: Desk, command: Command) -> None:
    """Give an order.

    Raises:
        HTTPException: 503, the broker has not taken it.
    """
    with broker_in_http("nothing was asked for, try again"):
        desk.give(command)


@contextmanager
def broker_in_http(so: str) -> Iterator[None]:
    """That the broker has not taken something, in the terms of HTTP: 503; ``so`` is what that means for who sent it."""
    try:
        yield
    except DriftlineError as err:
        structlog.get_logger(__name__).warning("the broker did not take it", error=str(err))
        away = isinstance(err, TransientError)
        detail = (
            f"the broker does not answer: {so}"
            if away
            else "the broker is not set up: run `driftline doctor`"
        )
        raise HTTPException(503, detail, headers=_AWAY if away else None) from err


def same_site_check(public_url: str, *, or_null: bool = False) -> Callable[[Request], None]:
    """Refuses what another site's page makes a browser send. Programs other than browsers send neither header.

    The rule of Go's ``http.CrossOriginProtection``; ``Sec-Fetch-Site`` comes over TLS and on loopback only, so there is the origin, too.
    ``or_null`` takes an origin that is kept secret.
    """
    others = {urlsplit(public_url).netloc, *(["null"] if or_null else [])} - {""}

    def check(request: Request) -> None:
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        if site is not None:
            foreign = site not in ("same-origin", "none")
        else:  # a proxy may have changed the host, but not the address where people reach us
            own = {request.headers.get("host", ""), *others}
            foreign = origin is not None and origin.rpartition("://")[2] not in own
        if foreign:
            raise HTTPException(403, "nothing is taken from another site's page")

    return check


def media_type_of(request: Request) -> str:
    """What a request says that its body is, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def body_of(
    *media_types: str, most: int = MAX_BODY, or_header: str = ""
) -> Callable[[Request], Awaitable[bytes]]:
    """Reads a body of one of these kinds, or of any kind that comes with a header, and of at most ``most`` bytes.

    FastAPI's own parsing would read all of it, and before the key is looked at.
    """

    async def read(request: Request) -> bytes:
        if media_type_of(request) not in media_types and or_header not in request.headers:
            raise HTTPException(415, f"send {' or '.join(media_types)}, and say so in Content-Type")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise HTTPException(413, f"the body has more than {most} bytes")
        return bytes(body)

    return read


def _parsed(body: bytes) -> OrderBody:
    try:
        return OrderBody.model_validate_json(body)
    except ValidationError as err:
        raise RequestValidationError(
            [{**e, "loc": ("body", *e["loc"])} for e in err.errors(include_input=False)]
        ) from None


def _until_ms(kind: Kind, asked: OrderBody, now_ms: int) -> int | None:
    if kind != "silence":
        if asked.lasts is not None or asked.until_ms is not None:
            raise HTTPException(422, "only a silence has an end: leave for and until_ms out")
        return None
    if (asked.lasts is None) == (asked.until_ms is None):
        raise HTTPException(422, "give either for, such as 2h, or until_ms")
    if asked.lasts is None:
        return asked.until_ms
    try:
        until_ms = now_ms + parse_duration_ms(asked.lasts)
    except ValueError as err:
        raise HTTPException(422, f"for: {err}") from None
    if until_ms > FOREVER_MS:
        raise HTTPException(422, "for: that is longer than anything lasts")
    return until_ms
