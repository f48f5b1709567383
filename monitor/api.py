"""The HTTP API and the page: views of the store, orders, which are handed to the detector (``monitor.api_orders``), labels (``monitor.api_labels``) and predictions (``monitor.api_events``).

- Errors are ``application/problem+json`` (RFC 9457); they never quote an address, a query or a secret.
- Answers are bounded by ``api.page_size``: ``{"items": [...], "truncated": bool}``, newest first. The next page is where the header ``Link``
  leads: ``to_ms`` is the last time that was shown plus one, and ``skip`` the rows of that time that were: rows that arrive meanwhile may have one
  come twice, none is left out.
- Where there are keys or an issuer of tokens, all but /healthz, /readyz, the page's own files, those of /docs and what a signed link leads to
  (``monitor.api_approvals``) needs a scope (``monitor.api_access``). Where there are none the API listens on loopback only, and answers to loopback's
  names and that of ``api.public_url`` only: a web page that has its own name resolve to 127.0.0.1 gets nothing.
- The same question within a second has the same answer (``monitor.recent``).
- No answer says that another site may read it (CORS), and no body is taken from another site's page.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Route
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from monitor import api_approvals, api_events, api_labels, api_orders, api_page
from monitor import gate as gates
from monitor import store as stores
from monitor.api_access import Access, Needs
from monitor.api_answers import (
    RETRY_AFTER_S,
    AnySpan,
    Around,
    Data,
    Limit,
    Page,
    Skip,
    TimeMs,
    answers,
    describe,
    found,
    json,
    most_of,
    page,
    problem,
)
from monitor.api_orders import Desk, NothingTakenError
from monitor.errors import ConfigError, DriftlineError, TransientError
from monitor.events import Limits, Post
from monitor.gate import Gate
from monitor.labels import LIMITS, Take
from monitor.ledger import Ledger
from monitor.observed import Observed
from monitor.orders import Give
from monitor.recent import Recent, reader
from monitor.settings import ApiSettings, Settings
from monitor.spec import ActionsSpec, ModelSpec
from monitor.spending import Spending
from monitor.steering import (
    ActionRow,
    SilenceRow,
    actions_of,
    silence_of_incident,
    silences_of_spec,
)
from monitor.store import (
    Distribution,
    EstimateRow,
    FeatureRow,
    ModelRow,
    ReferenceFeature,
    ReferenceRow,
    Store,
    VerdictRow,
    VersionRow,
    WindowRow,
)
from monitor.tables import FOREVER_MS
from monitor.verdicts import INPUTS_DIFFER
from monitor.wire import Delivery, Incident, IncidentState, Performance, VerdictStatus

PAGE: Final = Path(__file__).parent / "page"
DOCS: Final = Path(__file__).parent / "docs"
_STOP_WITHIN_S: Final = 5
_MOST_FIRING: Final = 100  # of one model: alerting.book.Rules.max_open is below it

Text = Annotated[str | None, Query(max_length=256)]
Segment = Annotated[str, Query(max_length=256, description="Empty is the whole model.")]
AnySegment = Annotated[str | None, Query(max_length=256)]
Size = Annotated[int | None, Query(gt=0, le=FOREVER_MS)]
OneSize = Annotated[int, Query(gt=0, le=FOREVER_MS)]


def create_app(
    store: Store,
    settings: ApiSettings,
    observed: Observed | None = None,
    desk: Desk | None = None,
    stop: threading.Event | None = None,
) -> FastAPI:
    """The application; ``run`` serves it, and keeps what is ``observed`` up to date. Without a ``desk`` it takes no orders; streams end at ``stop``."""
    app = FastAPI(title="Driftline", version="1", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _invalid_problem)
    app.add_exception_handler(DriftlineError, _our_problem)
    app.add_exception_handler(Exception, _defect)
    app.add_middleware(Access, settings=settings, clock_ms=_now_ms)
    app.add_middleware(Around)
    if not settings.asks_who:
        public = urlsplit(settings.public_url).hostname
        names = ["127.0.0.1", "localhost", "[::1]", *([public] if public else [])]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    app.include_router(_open_routes(store))
    if desk is not None and desk.secret:
        app.include_router(api_approvals.approval_routes(store, desk, settings.public_url))
    reads, writes = [Depends(Needs("read"))], [Depends(Needs("write"))]
    recent = Recent()
    read = reader(store, recent)
    beside = _beside(settings)
    pictures = api_page.page_routes(
        store, recent, settings.page_size, beside, stop or threading.Event()
    )
    app.include_router(pictures, dependencies=reads)
    app.include_router(_model_routes(read, settings, beside), dependencies=reads)
    ledger = partial(_ledger, observed or Observed(store), recent)
    others = _other_routes(app, read, ledger, settings)
    app.include_router(others, dependencies=reads)
    app.include_router(api_orders.order_routes(store, desk, settings.public_url))
    labels = api_labels.label_routes(store, desk, settings.public_url)
    app.include_router(labels, dependencies=writes)
    events = api_events.event_routes(store, desk, settings.public_url)
    app.include_router(events, dependencies=writes)
    app.router.routes += [*_files("/", PAGE), *_files("/docs", DOCS)]
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
    app = create_app(store, api, observed, desk, stop)
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

    @router.get("/healthz", **answers(dict[str, str]))
    async def healthz() -> Response:
        """The process answers."""
        return json({"status": "ok"})

    @router.get("/readyz", **answers(dict[str, str]))
    def readyz() -> Response:
        """The database answers, too."""
        store.link.rows(
            "SELECT 1 FROM models LIMIT 1"
        )  # raises where the database or a table is away
        return json({"status": "ok"})

    return router


def _beside(settings: ApiSettings) -> dict[str, str]:
    """A header that says where the dashboards of models are."""
    grafana = f'<{settings.grafana_url}>; rel="related"; title="Grafana"'
    return {"Link": grafana} if settings.grafana_url else {}


def _model_routes(store: Store, settings: ApiSettings, beside: Mapping[str, str]) -> APIRouter:
    """Views of one model. A name may hold slashes, so the longer paths come first."""
    router, page_size = APIRouter(prefix="/api/v1/models"), settings.page_size

    @router.get("", **answers(Page[ModelRow]))
    def models() -> Response:
        """All models. The header ``Link`` (RFC 8288) says where their dashboards are."""
        response = json(Page(store.models(), truncated=False))
        response.headers.update(beside)
        return response

    @router.get("/{model:path}/windows", **answers(Page[WindowRow]))
    def windows(
        model: str, span: AnySpan, version: Text = None, segment: Segment = "", size_ms: Size = None
    ) -> Response:
        """Windows. Hours and days (size_ms 3600000, 86400000) are rolled up where the model has shorter ones only, here and for features."""
        scope: dict[str, Any] = {"version": version, "segment": segment, "size_ms": size_ms}
        return span.page(store.windows, page_size, model, **scope)

    @router.get("/{model:path}/verdicts", **answers(Page[VerdictRow]))
    def verdicts(
        model: str,
        span: AnySpan,
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

    @router.get("/{model:path}/performance", **answers(Page[Performance]))
    def performance(
        model: str,
        span: AnySpan,
        version: Text = None,
        segment: Segment = "",
        size_ms: Size = None,
        final: bool = False,
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "segment": segment, "size_ms": size_ms}
        return span.page(store.performance, page_size, model, **scope, final=final)

    @router.get("/{model:path}/estimates", **answers(Page[EstimateRow]))
    def estimates(
        model: str, span: AnySpan, version: Text = None, size_ms: Size = None, metric: Text = None
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "size_ms": size_ms, "metric": metric}
        return span.page(store.estimates, page_size, model, **scope)

    @router.get("/{model:path}/features/{feature}/series", **answers(Page[FeatureRow]))
    def feature_series(
        model: str,
        feature: str,
        span: AnySpan,
        size_ms: OneSize,
        version: Text = None,
        segment: Segment = "",
    ) -> Response:
        scope: dict[str, Any] = {"version": version, "segment": segment, "size_ms": size_ms}
        return span.page(store.feature, page_size, model, feature, **scope)

    @router.get("/{model:path}/features/{feature}", **answers(Distribution))
    def distribution(
        model: str,
        feature: str,
        version: Annotated[str, Query(max_length=256)],
        size_ms: OneSize,
        start_ms: TimeMs,
        segment: Segment = "",
    ) -> Response:
        window = store.distribution(
            model, feature, version=version, segment=segment, size_ms=size_ms, start_ms=start_ms
        )
        return found(window, "no such window of this feature")

    _add_steering(router, store, page_size)
    _add_summaries(router, store, page_size, beside)
    return router


def _add_steering(router: APIRouter, store: Store, page_size: int) -> None:
    @router.get("/{model:path}/actions", **answers(Page[ActionRow]))
    def actions(model: str, span: AnySpan) -> Response:
        """Actions that the incidents of these times advise or had asked for, and how far they are."""

        def acted(found: list[Incident]) -> list[ActionRow]:
            spec = store.spec(model)
            allowed = ActionsSpec() if spec is None else spec.actions
            return list(actions_of(found, allowed, store.acted_on(tuple(row.id for row in found))))

        return span.page(store.incidents, page_size, model, at="opened_ms", shown=acted)

    @router.get("/{model:path}/references", **answers(Page[ReferenceRow]))
    def references(model: str, limit: Limit = None, skip: Skip = 0) -> Response:
        """The references that a model is and was compared with, the last published first."""
        most = most_of(limit, page_size)
        return page(store.references(model, limit=most + 1, skip=skip), most)

    @router.get("/{model:path}/references/{bins_id}", **answers(Page[ReferenceFeature]))
    def reference(model: str, bins_id: str) -> Response:
        """A reference: bins and counts of each field."""
        rows = store.reference(model, bins_id)
        if not rows:
            raise HTTPException(404, "the model has no such reference")
        return page(rows, len(rows))


def _add_summaries(
    router: APIRouter, store: Store, page_size: int, beside: Mapping[str, str]
) -> None:
    @router.get("/{model:path}/versions", **answers(Page[VersionRow]))
    def versions(model: str, limit: Limit = None) -> Response:
        most = most_of(limit, page_size)
        return page(store.versions(model, limit=most + 1), most)

    @router.get("/{model:path}/versions/{version:path}/gate", **answers(Data[Gate], also=409))
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
        told = gates.gate(version, seen, firing, least=least, compared=compared, proven=proven)
        return json(Data(told), 200 if told.ok or not strict else 409)

    @router.get("/{model:path}/budget", **answers(Spending))
    def budget(model: str) -> Response:
        return found(next(iter(store.spending(model)), None), "no such model")

    @router.get("/{model:path}", **answers(ModelRow))
    def one_model(model: str) -> Response:
        """One model. The header ``Link`` says where its dashboards are."""
        response = found(next(iter(store.models(model)), None), "no such model")
        response.headers.update(beside)
        return response


def _other_routes(
    app: FastAPI, store: Store, ledger_of: Callable[[bool], Ledger], settings: ApiSettings
) -> APIRouter:
    router, page_size = APIRouter(), settings.page_size

    @router.get("/metrics", response_class=PlainTextResponse)
    def prometheus() -> Response:
        """For Prometheus."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/api/v1/openapi.json", **answers(dict[str, Any]))
    def openapi() -> Response:
        """This description."""
        return json(describe(app, _scope_of))

    @router.get("/api/v1/incidents", **answers(Page[Incident]))
    def incidents(
        span: AnySpan, model: Text = None, state: IncidentState | None = None
    ) -> Response:
        """Incidents by when they opened."""
        return span.page(store.incidents, page_size, model, state=state, at="opened_ms")

    @router.get("/api/v1/incidents/{incident_id}", **answers(Incident))
    def incident(incident_id: str) -> Response:
        return found(store.incident(incident_id), "no such incident")

    @router.get("/api/v1/deliveries", **answers(Page[Delivery]))
    def deliveries(span: AnySpan, incident_id: Text = None) -> Response:
        """What was sent, and what became of it."""
        return span.page(store.deliveries, page_size, incident_id, at="at_ms")

    @router.get("/api/v1/silences", **answers(Page[SilenceRow]))
    def silences(
        model: Text = None,
        active: Annotated[
            bool | None, Query(description="Only those that hold, or do not.")
        ] = None,
    ) -> Response:
        """Times in which nobody is told: of the specs, and of incidents that fire. In event time, so what holds is as of a model's last window."""
        rows = [row for row in _silences(store, model) if active in (None, row.active)]
        return page(rows, page_size)

    @router.get("/api/v1/ledger", **answers(Ledger))
    def ledger(
        drained: Annotated[
            bool, Query(description="All that was sent has arrived: then nothing may be pending.")
        ] = False,
    ) -> Response:
        """What became of every event, of all models and times: a dead letter has neither. A few seconds old at most.

        One row for each partition of predictions, and for each at most ``queries.MAX_HOLES`` holes, the last ones;
        ``total.holes`` counts all. 503 while the database does not answer.
        """
        return json(ledger_of(drained))

    return router


def _ledger(observed: Observed, recent: Recent, drained: bool) -> Ledger:
    found: Ledger = recent.get(("ledger", drained), lambda: observed.ledger(drained=drained))
    return found


def _scope_of(dependency: object) -> str | None:
    return dependency.scope if isinstance(dependency, Needs) else None


def _silences(store: Store, model: str | None) -> Iterator[SilenceRow]:
    now_ms: dict[str, int] = {}
    for row in store.models(model):
        now_ms[row.model] = row.last_ms or 0
        spec = ModelSpec.model_validate({**row.spec, "model": row.model})
        yield from silences_of_spec(row.model, spec.silences, now_ms[row.model])
    for incident in store.incidents(model, state="firing", limit=_MOST_FIRING * len(now_ms)):
        ordered = silence_of_incident(incident, now_ms.get(incident.model, 0))
        if ordered is not None:
            yield ordered


def _files(at: str, folder: Path) -> Iterator[Route]:
    """Routes to the files of a folder and those below it, and to its index: each by its name, so that nothing else is theirs."""
    serve = StaticFiles(directory=folder)
    yield Route(at, _File(serve, "index.html"))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in (path.relative_to(folder).as_posix() for path in paths):
        yield Route(f"{at.rstrip('/')}/{file}", _File(serve, file))


class _File:
    """An ASGI application: one file."""

    def __init__(self, files: StaticFiles, name: str) -> None:
        self._files, self._name = files, name

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Answer GET and HEAD."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        response = await self._files.get_response(self._name, scope)
        await response(scope, receive, send)


def _http_problem(_request: Request, err: Exception) -> Response:
    assert isinstance(err, StarletteHTTPException)
    more = err.more if isinstance(err, NothingTakenError) else {}
    response = problem(err.status_code, str(err.detail), **more)
    response.headers.update(err.headers or {})
    return response


def _invalid_problem(_request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    errors = [
        {"where": ".".join(str(part) for part in e["loc"]), "what": e["msg"]} for e in err.errors()
    ]
    return problem(422, "a parameter is wrong", errors=errors)


def _our_problem(_request: Request, err: Exception) -> Response:
    if isinstance(err, TransientError):
        response = problem(503, "the database does not answer")
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response
    structlog.get_logger(__name__).error("request failed", error=str(err))
    if isinstance(err, ConfigError):  # tables are missing, or rights: an operator has to act
        return problem(503, "the database is not set up: run `driftline doctor`")
    return problem(500, "the request failed")


def _defect(_request: Request, _err: Exception) -> Response:
    return problem(500, "a defect: the log has it")  # the server logs the traceback


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
