"""``driftline models``, ``windows``, ``incidents``, ``drift`` and ``plot``: what ClickHouse knows, as tables or as the API's JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from monitor.errors import ConfigError, DriftlineError, TransientError
from streams.console import plain, say, utc, working, write_json, write_rows
from streams.options import Config, From, Json, To, duration_of, load, now_ms, since, time_of

if TYPE_CHECKING:
    from monitor.overview import FleetRow
    from monitor.settings import Settings
    from monitor.store import Distribution, DriftRow, Store, WindowRow
    from monitor.wire import Incident

T = TypeVar("T")
MOST: Final = 10_000
_NAMED: Final = 10  # models, in an error
_VERSIONS: Final = 500  # in one window
_NARROWEST: Final = 40  # columns of a plot
_UNSEEN: Final = 5
_MINUTE_MS: Final = 60_000

app = typer.Typer()

Model = Annotated[str, typer.Argument(help="Name of the model.")]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="As --from, or so long ago: 2h, 7d."),
]
Limit = Annotated[int, typer.Option(min=1, max=MOST, help="At most so many.")]
Version = Annotated[str | None, typer.Option("--version", help="Only of this version.")]
Segment = Annotated[
    str, typer.Option("--segment", help="Such as country=DE; the whole model without it; * is all.")
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="DURATION", help="Only of windows so long: 1h.")
]


@app.command()
def models(limit: Limit = 100, as_json: Json = False, config: Config = None) -> None:
    """List the models and how they are, those with the worst open incident first."""
    settings = load(config, "models")
    from monitor import overview

    with connected(settings) as store:
        found = overview.fleet(store, limit=limit + 1)
    _write(found, limit, _model_row, "there are no models yet", as_json=as_json)


@app.command()
def windows(
    model: Model,
    version: Version = None,
    segment: Segment = "",
    size: Size = None,
    from_: From = None,
    to: To = None,
    since: Since = None,
    limit: Limit = 20,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """List a model's windows: events, errors and latency, the newest first. 1h and 1d are rolled up where there are shorter ones only."""
    settings = load(config, "windows")
    if segment == "*":
        raise ConfigError("--segment: windows are listed of one segment; give its name")
    from_ms, to_ms = _span(from_, to, since)
    size_ms = duration_of("--size", size)
    with connected(settings) as store:
        found = store.windows(
            model,
            version=version,
            segment=segment,
            size_ms=size_ms,
            from_ms=from_ms,
            to_ms=to_ms,
            limit=limit + 1,
        )
        nothing = "" if found else _nothing(store, model, "windows")
    _write(found, limit, _window_row, nothing, as_json=as_json)


@app.command()
def incidents(
    model: Annotated[str | None, typer.Argument(help="Only of this model.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Only those that fire.")] = False,
    from_: From = None,
    to: To = None,
    since: Since = None,
    limit: Limit = 20,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """List incidents that opened in some time, the last first. `driftline incident show ID` tells more of one."""
    settings = load(config, "incidents")
    from_ms, to_ms = _span(from_, to, since)
    with connected(settings) as store:
        found = store.incidents(
            model,
            state="firing" if open_ else None,
            from_ms=from_ms,
            to_ms=to_ms,
            limit=limit + 1,
        )
        what = "open incidents" if open_ else "incidents"
        nothing = f"no {what}" if found or model is None else _nothing(store, model, what)
    row_of = partial(_incident_row, of_one=model is not None)
    _write(found, limit, row_of, nothing, as_json=as_json)


@app.command()
def drift(
    model: Model,
    version: Version = None,
    segment: Segment = "",
    size: Size = None,
    from_: From = None,
    to: To = None,
    since: Since = None,
    limit: Limit = 20,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """List what was said of a model's last window of each size, the worst first, as multiples of the limits.

    With a time, the last window that starts in it.
    """
    settings = load(config, "drift")
    from_ms, to_ms = _span(from_, to, since)
    size_ms = duration_of("--size", size)
    of = None if segment == "*" else segment
    with connected(settings) as store:
        found = store.drift(
            model,
            version=version,
            segment=of,
            size_ms=size_ms,
            from_ms=from_ms,
            to_ms=to_ms,
            limit=limit + 1,
        )
        nothing = "" if found else _nothing(store, model, "judged windows")
    shown = found[:limit]
    versions, segments = ({getattr(row, name) for row in shown} for name in ("version", "segment"))
    row_of = partial(_drift_row, version=len(versions) > 1, segment=bool(segments - {""}))
    _write(found, limit, row_of, nothing, as_json=as_json)


@app.command()
def plot(
    model: Model,
    feature: Annotated[str, typer.Argument(help="Name of the feature; also $prediction, $score.")],
    version: Version = None,
    segment: Annotated[str, typer.Option("--segment", help="Such as country=DE.")] = "",
    size: Size = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Of the window at this time; UTC.")
    ] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Draw a feature's distribution in a window, the last one by default, beside the reference's."""
    settings = load(config, "plot")
    from monitor.tables import FOREVER_MS

    at_ms = time_of("--at", at)
    to_ms = FOREVER_MS if at_ms is None else at_ms + 1
    size_ms = duration_of("--size", size)
    with connected(settings) as store:
        found = store.windows(
            model, version=version, segment=segment, size_ms=size_ms, to_ms=to_ms, limit=_VERSIONS
        )
        found = [row for row in found if at_ms is None or at_ms < row.start_ms + row.size_ms]
        if not found:
            raise DriftlineError(_nothing(store, model, "windows"))
        # Of the versions that served in it, the one with most of the traffic.
        window = max(
            (
                row
                for row in found
                if (row.start_ms, row.size_ms) == (found[0].start_ms, found[0].size_ms)
            ),
            key=lambda row: row.n,
        )
        shown = store.distribution(
            model,
            feature,
            version=window.version,
            segment=segment,
            size_ms=window.size_ms,
            start_ms=window.start_ms,
        )
        if shown is None:
            raise ConfigError(_not_there(store, model, feature, window))
    place = {name: getattr(window, name) for name in ("version", "segment", "size_ms", "start_ms")}
    if as_json:
        from msgspec import to_builtins

        write_json({"model": model, **place, **to_builtins(shown)})
    else:
        _write_plot(shown, f"{feature} of {model} {window.version} {segment}".rstrip(), window)


@contextmanager
def connected(settings: Settings) -> Iterator[Store]:
    """The store while the context lasts.

    Raises:
        TransientError: ClickHouse does not answer; says where it was looked for.
        ConfigError: it refuses user or password.
    """
    from monitor import store

    try:
        with (
            working("asking the database"),
            closing(store.connect(settings.clickhouse)) as opened,
        ):
            yield opened
    except TransientError as err:
        raise TransientError(
            f"{err} at {settings.clickhouse.url}: start it, or set DRIFTLINE_CLICKHOUSE__URL;"
            " `driftline doctor` says more"
        ) from err


def check_known(store: Store, model: str) -> None:
    """Raise ``ConfigError`` if nobody knows the model; it names those that are like it."""
    names = [row.model for row in store.models()]
    if model not in names:
        said = f"{_like(model, names)} `driftline models` lists all" if names else "there are none"
        raise ConfigError(f"no model is called {model}: {said}")


def _like(name: str, names: Sequence[str]) -> str:
    return f"perhaps {', '.join(get_close_matches(name, names, _NAMED) or names[:_NAMED])}?"


def _not_there(store: Store, model: str, feature: str, window: WindowRow) -> str:
    names = [row.feature for row in store.reference(model, window.bins_id)]
    if feature in names:
        return f"the distributions of {utc(window.start_ms)} are kept no longer"
    return f"{model} has no feature {feature}: {_like(feature, names)}"


def _nothing(store: Store, model: str, what: str) -> str:
    """Why there is nothing to show of a model."""
    check_known(store, model)
    (row,) = store.models(model)
    if row.last_ms is None:
        return f"{model} has no windows yet" + ("" if row.bins_id else ": it is calibrating itself")
    return f"no such {what} of {model}, whose last window ended {utc(row.last_ms)}"


def _span(from_: str | None, to: str | None, since_: str | None) -> tuple[int, int]:
    """``[from_ms, to_ms)`` of the options."""
    from monitor.tables import FOREVER_MS

    if from_ is not None and since_ is not None:
        raise ConfigError("give --from or --since")
    from_ms = since(since_, now_ms()) if from_ is None else time_of("--from", from_)
    to_ms = time_of("--to", to)
    span = from_ms or 0, FOREVER_MS if to_ms is None else to_ms
    if span[0] >= span[1]:
        raise ConfigError(f"{'--from' if since_ is None else '--since'} is not before --to")
    return span


def _write(
    found: Sequence[T],
    limit: int,
    row_of: Callable[[T], dict[str, Any]],
    nothing: str,
    *,
    as_json: bool,
) -> None:
    """A page as the API has it, or a table without columns that are empty: eighty are few."""
    from msgspec import to_builtins

    shown, truncated = found[:limit], len(found) > limit
    if as_json:
        write_json({"items": to_builtins(shown), "truncated": truncated})
        return
    if not shown:
        say(nothing)
        return
    rows = [row_of(each) for each in shown]
    names = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    write_rows([{name: row[name] for name in names} for row in rows], as_json=False)
    if truncated:
        say(f"the first {limit:,}; --limit shows more")


def _model_row(row: FleetRow) -> dict[str, Any]:
    if row.firing:
        state = f"{row.severity} ({row.firing})"
    else:
        state = "well" if row.bins_id else "calibrating"
    return {
        "model": row.model,
        "state": state,
        "serving": ", ".join(version or "-" for version in row.serving),
        "requests/s": "" if row.last_ms is None else f"{row.rate:.3g}",
        "last window": "" if row.last_ms is None else _time(row.last_ms),
        "incident": row.incident_id[:8],
    }


def _window_row(row: WindowRow) -> dict[str, Any]:
    from monitor.spec import format_duration

    latency = {"p50": row.latency_p50, "p95": row.latency_p95, "p99": row.latency_p99}
    return {
        "from": _time(row.start_ms),
        "size": format_duration(row.size_ms),
        "version": row.version,
        "events": f"{row.n:,}",
        "errors": f"{row.errors:,}",
        "late": row.contributions or "",
        **{f"{name} ms": "" if ms is None else f"{ms:.3g}" for name, ms in latency.items()},
    }


def _incident_row(incident: Incident, *, of_one: bool) -> dict[str, Any]:
    row = {
        "id": incident.id[:8],
        "opened": utc(incident.opened_ms),
        "state": incident.severity if incident.state == "firing" else incident.state,
        "model": incident.model,
        "cause": incident.cause.replace("_", " "),
    }
    if not of_one:
        return row
    del row["model"]
    advice, by = incident.advice.replace("_", " "), incident.acknowledged_by or ""
    return {**row, "version": incident.version, "advice": advice, "acknowledged": by}


def _drift_row(row: DriftRow, *, version: bool, segment: bool) -> dict[str, Any]:
    from monitor.spec import format_duration

    return {
        "": {"breach": "!", "no_data": "?"}.get(row.status, ""),
        "feature": row.feature,
        **({"version": row.version} if version else {}),
        **({"segment": row.segment} if segment else {}),
        "statistic": row.statistic,
        "value": _number(row.value),
        "limit": _number(row.limit),
        "times": "" if row.ratio is None else f"{row.ratio:.2f}",
        "window": f"{_time(row.start_ms)} {format_duration(row.size_ms)}",
    }


def _write_plot(shown: Distribution, title: str, window: WindowRow) -> None:
    from monitor.spec import format_duration
    from streams import histogram

    console = Console(highlight=False)
    rows = histogram.draw(
        histogram.bins_of(shown),
        max(_NARROWEST, console.width),
        blocks=not console.options.ascii_only,
    )
    say(plain(f"{title}, {_time(window.start_ms)} {format_duration(window.size_ms)}"))
    whose = "the whole model's reference" if window.segment else "the reference"
    say(f"{shown.n:,} values beside {sum(shown.reference):,} of {whose}")
    if rows:
        label, reference, _ = rows[0]
        heading = f"{' ' * cell_len(label)}{'reference'.ljust(len(reference))}window"
        console.print(Text(heading, "dim"), soft_wrap=True)
    for label, reference, now in rows:
        line = Text.assemble(label, (reference, "dim"), (now.rstrip(), "cyan"))
        console.print(line, soft_wrap=True)
    if shown.elsewhere:
        say(f"The reference changed in it: {shown.elsewhere:,} values more are in older bins.")
    if shown.unseen:
        say(plain(f"Never seen before: {', '.join(sorted(shown.unseen)[:_UNSEEN])}."))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _time(at_ms: int) -> str:
    """To the minute; to the second where the minute is not whole."""
    return utc(at_ms) + (f":{at_ms % _MINUTE_MS // 1_000:02}" if at_ms % _MINUTE_MS else "")
