"""The HTTP API and the page: views of the store, orders, which are handed to the detector (``monitor.api_orders``), labels (``monitor.api_labels``) and predictions (``monitor.api_events``).

- Errors are ``application/problem+json`` (RFC 9457); they never quote an address, a query or a secret.
- Answers are bounded by ``api.page_size``: ``{"items": [...], "truncated": bool}``, newest first. The next page is asked
  for with ``to_ms`` set to the last ``start_ms`` plus one: windows of one start may come twice, none is left out.
- With a key, everything but /healthz, /readyz, the page's own files and what a signed link leads to
  (``monitor.api_approvals``) needs it, in the header ``X-API-Key``. Without
  one the API listens on loopback only, and answers to loopback's names and that of ``api.public_url`` only: a web page
  that has its own name resolve to 127.0.0.1 gets nothing.
"""

from __future__ import annotations

import hmac
import http
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec
import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from monitor import api_approvals, api_events, api_labels, api_orders, metrics
from monitor import gate as gates
from monitor import store as stores
from monitor.api_orders import RETRY_AFTER_S, Desk, NothingTakenError
from monitor.errors import ConfigError, DriftlineError, TransientError
from monitor.events import Limits, Post
from monitor.labels import LIMITS, Take
from monitor.observed import Observed
from monitor.orders import Give
from monitor.settings import ApiSettings, Settings
from monitor.store import Store
from monitor.tables import FOREVER_MS
from monitor.verdicts import INPUTS_DIFFER
from monitor.wire import IncidentState, VerdictStatus

PAGE: Final = Path(__file__).parent / "page"
_STOP_WITHIN_S: Final = 5
_MOST_FIRING: Final = 100  # of one model: alerting.book.Rules.max_open is below it
_HEADERS: Final = {
    # The page is self-contained: nothing comes from elsewhere, nothing goes elsewhere, nobody frames it.
    "Content-Security-Policy": "default-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Text = Annotated[str | None, Query(max_length=256)]
Segment = Annotated[str, Query(max_length=256, description="Empty is the whole model.")]
AnySegment = Annotated[str | None, Query(max_length=256)]
Size = Annotated[int | None, Query(gt=0)]
TimeMs = Annotated[int, Query(ge=0, le=FOREVER_MS)]
Limit = Annotated[int | None, Query(ge=1, description="At most and by default api.page_size.")]


class _Span(NamedTuple):
    """Rows of which times are wanted, and how many."""

    from_ms: int
    to_ms: int
    limit: int | None

    def page(
        self, ask: Callable[..., list[Any]], page_size: int, *about: str, **scope: Any
    ) -> Response:
        """The page of what ``ask`` finds of them; the other arguments are its own."""
        most = _most(self.limit, page_size)
        span = {"from_ms": self.from_ms, "to_ms": self.to_ms, "limit": most + 1}
        return _page(ask(*about, **scope, **span), most)


def _span(from_ms: TimeMs = 0, to_ms: TimeMs = FOREVER_MS, limit: Limit = None) -> _Span:
    return _Span(from_ms, to_ms, limit)


Span = Annotated[_Span, Depends(_span)]
Next: TypeAlias = Callable[[Request], Awaitable[Response]]


def create_app(
    store: Store,
    settings: ApiSettings,
    observed: Observed | None = None,
    desk: Desk | None = None,
) -> FastAPI:
    """The application; ``run`` serves it, and keeps what is ``observed`` up to date. Without a ``desk`` it takes no orders."""
    app = FastAPI(title="Driftline", version="1", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _invalid_problem)
    app.add_exception_handler(DriftlineError, _our_problem)
    app.add_exception_handler(Exception, _defect)
    app.middleware("http")(_around)
    if not settings.key.get_secret_value():
        public = urlsplit(settings.public_url).hostname
        names = ["127.0.0.1", "localhost", "[::1]", *([public] if public else [])]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    app.include_router(_open_routes(store))
    if desk is not None and desk.secret:
        app.include_router(api_approvals.approval_routes(store, desk, settings.public_url))
    guarded = [Depends(_key_check(settings))]
    app.include_router(_model_routes(store, settings.page_size), dependencies=guarded)
    others = _other_routes(app, store, observed or Observed(store), settings.page_size)
    app.include_router(others, dependencies=guarded)
    orders = api_orders.order_routes(store, desk, settings.public_url)
    app.include_router(orders, dependencies=guarded)
    labels = api_labels.label_routes(store, desk, settings.public_url)
    app.include_router(labels, dependencies=guarded)
    events = api_events.event_routes(store, desk, settings.public_url)
    app.include_router(events, dependencies=guarded)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def run(
    settings: Settings,
    stop: threading.Event,
    give: Give | None = None,
    take: Take | None = None,
    post: Post | None = None,
    limits: Limits = LIMITS,
) -> None:
    """Serve the API until ``stop`` is set. ``give`` takes an order to the detector, ``take`` labels to their topic and ``post`` predictions; without it none is taken.

    Raises:
        TransientError: ClickHouse does not answer at start.
        ConfigError: the address cannot be listened on, or ClickHouse refuses the user.
    """
    api = settings.api
    store = stores.connect(settings.clickhouse)
    observed = Observed(store)
    secret = settings.approvals.secret.get_secret_value()
    desk = (
        None
        if give is None
        else Desk(give, clock_ms=_now_ms, secret=secret, take=take, post=post, limits=limits)
    )
    app = create_app(store, api, observed, desk)
    listener = _listen(api)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,  # monitor.logs has set it up
            access_log=False,  # it would hold the tokens of signed links
            timeout_graceful_shutdown=_STOP_WITHIN_S,
            server_header=False,
        )
    )
    # In a thread, since in the main thread uvicorn would take the signals over.
    thread = threading.Thread(target=server.run, args=([listener],), name="api")
    thread.start()
    threading.Thread(target=observed.follow, args=(stop,), name="observed", daemon=True).start()
    structlog.get_logger(__name__).info("listening", address=f"http://{api.host}:{api.port}/")
    while thread.is_alive() and not stop.wait(0.2):
        pass
    server.should_exit = True
    thread.join()


def _open_routes(store: Store) -> APIRouter:
    """What a load balancer may ask without a key. It says nothing beyond up or not."""
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> Response:
        return _json({"status": "ok"})

    @router.get("/readyz")
    def readyz() -> Response:
        store.link.rows(
            "SELECT 1 FROM models LIMIT 1"
        )  # raises where the database or a table is away
        return _json({"status": "ok"})

    return router


def _model_routes(store: Store, page_size: int) -> APIRouter:
    """Views of one model. A name may hold slashes, so the longer paths come first."""
    router = APIRouter(prefix="/api/v1/models")

    @router.get("")
    def models() -> Response:
        return _json({"items": store.models(), "truncated": False})

    @router.get("/{model:path}/windows")
    def windows(
        model: str, span: Span, version: Text = None, segment: Segment = "", size_ms: Size = None
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "segment": segment, "size_ms": size_ms}
        return span.page(store.windows, page_size, model, **scope)

    @router.get("/{model:path}/verdicts")
    def verdicts(
        model: str,
        span: Span,
        version: Text = None,
        segment: AnySegment = None,
        feature: Text = None,
        statistic: Text = None,
        status: VerdictStatus | None = None,
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "segment": segment, "feature": feature}
        return span.page(
            store.verdicts, page_size, model, **scope, statistic=statistic, status=status
        )

    @router.get("/{model:path}/performance")
    def performance(
        model: str,
        span: Span,
        version: Text = None,
        segment: Segment = "",
        size_ms: Size = None,
        final: bool = False,
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "segment": segment, "size_ms": size_ms}
        return span.page(store.performance, page_size, model, **scope, final=final)

    @router.get("/{model:path}/estimates")
    def estimates(
        model: str, span: Span, version: Text = None, size_ms: Size = None, metric: Text = None
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "size_ms": size_ms, "metric": metric}
        return span.page(store.estimates, page_size, model, **scope)

    @router.get("/{model:path}/features/{feature}/series")
    def feature_series(
        model: str,
        feature: str,
        span: Span,
        size_ms: Annotated[int, Query(gt=0)],
        version: Text = None,
        segment: Segment = "",
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "segment": segment, "size_ms": size_ms}
        return span.page(store.feature, page_size, model, feature, **scope)

    @router.get("/{model:path}/features/{feature}")
    def distribution(
        model: str,
        feature: str,
        version: Annotated[str, Query(max_length=256)],
        size_ms: Annotated[int, Query(gt=0)],
        start_ms: TimeMs,
        segment: Segment = "",
    ) -> Response:
        found = store.distribution(
            model, feature, version=version, segment=segment, size_ms=size_ms, start_ms=start_ms
        )
        return _found(found, "no such window of this feature")

    _add_summaries(router, store, page_size)
    return router


def _add_summaries(router: APIRouter, store: Store, page_size: int) -> None:
    @router.get("/{model:path}/versions")
    def versions(model: str, limit: Limit = None) -> Response:
        most = _most(limit, page_size)
        return _page(store.versions(model, limit=most + 1), most)

    @router.get("/{model:path}/versions/{version:path}/gate")
    def gate(
        model: str,
        version: str,
        least: Annotated[
            int, Query(ge=1, le=100, description="Closed windows without which it is unknown.")
        ] = 1,
        size_ms: Size = None,
        from_ms: TimeMs = 0,
        strict: Annotated[
            bool, Query(description="409 unless ok, for who reads the status only.")
        ] = False,
        proven: Annotated[
            bool, Query(description="Unknown until each comparison says: not worse within margin.")
        ] = False,
    ) -> Response:
        """Whether a version may get more traffic: ``data.ok``, and why. A version that is not known is not ok."""
        windows = store.windows(
            model, version=version, size_ms=size_ms, from_ms=from_ms, limit=least
        )
        firing = store.incidents(model, state="firing", limit=_MOST_FIRING)
        seen = sum(row.n > 0 for row in windows)
        compared = store.comparisons(model, version=version, from_ms=from_ms)
        newest_ms = max((row.start_ms for row in windows), default=0)
        # Labels come later than windows; what the windows themselves say of inputs is of now or of no use.
        compared = [c for c in compared if c.end_ms > newest_ms or c.statistic != INPUTS_DIFFER]
        found = gates.gate(version, seen, firing, least=least, compared=compared, proven=proven)
        return _json({"data": found}, 200 if found.ok or not strict else 409)

    @router.get("/{model:path}/budget")
    def budget(model: str) -> Response:
        return _found(next(iter(store.spending(model)), None), "no such model")

    @router.get("/{model:path}")
    def one_model(model: str) -> Response:
        known = {row.model: row for row in store.models()}
        return _found(known.get(model), "no such model")


def _other_routes(app: FastAPI, store: Store, observed: Observed, page_size: int) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/api/v1/openapi.json")
    def openapi() -> Response:
        return _json(app.openapi())

    @router.get("/api/v1/incidents")
    def incidents(
        model: Text = None, state: IncidentState | None = None, limit: Limit = None
    ) -> Response:
        most = _most(limit, page_size)
        return _page(store.incidents(model, state=state, limit=most + 1), most)

    @router.get("/api/v1/incidents/{incident_id}")
    def incident(incident_id: str) -> Response:
        return _found(store.incident(incident_id), "no such incident")

    @router.get("/api/v1/deliveries")
    def deliveries(incident_id: Text = None, limit: Limit = None) -> Response:
        most = _most(limit, page_size)
        return _page(store.deliveries(incident_id, limit=most + 1), most)

    @router.get("/api/v1/ledger")
    def ledger(
        drained: Annotated[
            bool, Query(description="All that was sent has arrived: then nothing may be pending.")
        ] = False,
    ) -> Response:
        """What became of every event, of all models and times: a dead letter has neither. At most ``observed.FRESH_S`` old.

        One row for each partition of predictions, and for each at most ``queries.MAX_HOLES`` holes, the last ones;
        ``total.holes`` counts all. 503 while the database does not answer.
        """
        return _json(observed.ledger(drained=drained))

    return router


def _key_check(settings: ApiSettings) -> Callable[[str | None], None]:
    wanted = settings.key.get_secret_value().encode()

    def check(x_api_key: Annotated[str | None, Header()] = None) -> None:
        if wanted and not hmac.compare_digest((x_api_key or "").encode(), wanted):
            raise HTTPException(401, "give the key in the header X-API-Key")

    return check


async def _around(request: Request, call_next: Next) -> Response:
    with metrics.API_SECONDS.time():
        response = await call_next(request)
    response.headers.update(_HEADERS)
    metrics.API_REQUESTS.labels(f"{response.status_code // 100}xx").inc()
    return response


def _json(value: object, status: int = 200, media_type: str = "application/json") -> Response:
    return Response(msgspec.json.encode(value), status, media_type=media_type)


def _page(rows: list[Any], most: int) -> Response:
    """A page of ``rows``, of which one more than ``most`` was asked for."""
    return _json({"items": rows[:most], "truncated": len(rows) > most})


def _most(limit: int | None, page_size: int) -> int:
    return min(limit or page_size, page_size)


def _found(value: object | None, otherwise: str) -> Response:
    if value is None:
        raise HTTPException(404, otherwise)
    return _json(value)


def _problem(status: int, detail: str, **more: object) -> Response:
    title = http.HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return _json(body, status, "application/problem+json")


def _http_problem(_request: Request, err: Exception) -> Response:
    assert isinstance(err, StarletteHTTPException)
    more = err.more if isinstance(err, NothingTakenError) else {}
    response = _problem(err.status_code, str(err.detail), **more)
    response.headers.update(err.headers or {})
    return response


def _invalid_problem(_request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    errors = [
        {"where": ".".join(str(part) for part in e["loc"]), "what": e["msg"]} for e in err.errors()
    ]
    return _problem(422, "a parameter is wrong", errors=errors)


def _our_problem(_request: Request, err: Exception) -> Response:
    if isinstance(err, TransientError):
        response = _problem(503, "the database does not answer")
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response
    structlog.get_logger(__name__).error("request failed", error=str(err))
    if isinstance(err, ConfigError):  # tables are missing, or rights: an operator has to act
        return _problem(503, "the database is not set up: run `driftline doctor`")
    return _problem(500, "the request failed")


def _defect(_request: Request, _err: Exception) -> Response:
    return _problem(500, "a defect: the log has it")  # the server logs the traceback


def _now_ms() -> int:
    return time.time_ns() // 1_000_000  # noqa: TID251  # an edge: orders are of the wall clock


def _listen(api: ApiSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    # The protocol is named since asyncio asks for it: otherwise Nagle's algorithm adds 40 ms to an answer on a kept connection.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((api.host, api.port))
    except OSError as err:
        listener.close()
        raise ConfigError(
            f"api.port (DRIFTLINE_API__PORT): cannot listen on {api.host}:{api.port}: {err.strerror}"
        ) from err
    return listener
