"""``driftline incident``: look at incidents, and say what is to become of them."""

from __future__ import annotations

import getpass
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from streams.console import say, utc, working, write_json, write_rows
from streams.options import EXIT_FAILED, Config, Json, duration_of, load, now_ms

if TYPE_CHECKING:
    from monitor.orders import Kind
    from monitor.wire import Incident

WAIT_S: Final = 15.0  # a transaction of the detector, and the sink's next insert

app = typer.Typer(help="Look at incidents, and acknowledge, silence, approve or reject.", no_args_is_help=True)  # fmt: skip

Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or how that begins.")]
Author = Annotated[
    str | None, typer.Option("--author", help="Who asks; by default the user of this machine.")
]
Comment = Annotated[str, typer.Option("--comment", "-m", help="Why; it stands in the timeline.")]


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Option("--model", help="Only of this model.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Only those that fire.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="The newest so many.")] = 20,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """List incidents, the last opened first."""
    settings = load(config, "incident")
    from msgspec import to_builtins

    from monitor import store

    found = store.connect(settings.clickhouse).incidents(
        model, state="firing" if open_ else None, limit=limit
    )
    if as_json:
        write_json(to_builtins(found))
    else:
        write_rows([_row(incident) for incident in found], as_json=False)


@app.command()
def show(incident_id: Id, as_json: Json = False, config: Config = None) -> None:
    """Show one: cause, advice, evidence, timeline and deliveries."""
    settings = load(config, "incident")
    from msgspec import to_builtins

    from monitor import store
    from streams import orders

    stored = store.connect(settings.clickhouse)
    found = orders.find(stored, incident_id)
    deliveries = stored.deliveries(found.id)
    if as_json:
        write_json({**to_builtins(found), "deliveries": to_builtins(deliveries)})
        return
    _write(found)
    if deliveries:
        say("")
        write_rows(
            [
                {"when": utc(d.at_ms), "what": d.action, "to": d.target, "outcome": d.outcome, "": d.detail}
                for d in deliveries
            ],
            as_json=False,
        )  # fmt: skip


def _add_order(kind: Kind, help_: str) -> None:
    @app.command(kind, help=help_)
    def give(
        incident_id: Id,
        comment: Comment = "",
        author: Author = None,
        as_json: Json = False,
        config: Config = None,
    ) -> None:
        _order(kind, incident_id, comment, author, config, as_json=as_json)


_add_order("acknowledge", "Say that somebody looks after it: PagerDuty stops to wake people.")


@app.command()
def silence(
    incident_id: Id,
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long: 30m, 2h, 7d.")],
    comment: Comment = "",
    author: Author = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Tell nobody of it for a while; what still fires then is told."""
    _order("silence", incident_id, comment, author, config, as_json=as_json, lasts=for_)


_add_order(
    "approve",
    "Let the advised retrain or rollback go out; cooldown, daily cap and clean data are still required.",
)
_add_order("reject", "Decline the advised retrain or rollback, for this incident.")


def _order(
    kind: Kind,
    incident_id: str,
    comment: str,
    author: str | None,
    config: Config,
    *,
    as_json: bool,
    lasts: str | None = None,
) -> None:
    settings = load(config, "incident")
    from msgspec import to_builtins

    from monitor import store
    from monitor.orders import order
    from streams import orders

    lasts_ms = duration_of("--for", lasts)
    stored = store.connect(settings.clickhouse)
    at_ms = now_ms()
    command = order(
        kind,
        orders.find(stored, incident_id),
        author=author or getpass.getuser(),
        at_ms=at_ms,
        until_ms=None if lasts_ms is None else at_ms + lasts_ms,
        comment=comment,
    )
    with working("waiting until the detector has taken it up"):
        orders.Messenger(settings).give(command)
        found = orders.taken(
            stored, command, within_s=WAIT_S, monotonic=time.monotonic, sleep=time.sleep
        )
    if as_json:
        write_json({"taken": found is not None, "incident": to_builtins(found)})
    elif found is None:
        say(f"sent, and not taken up within {WAIT_S:g} s: is the detector running, and the sink?")
    else:
        _write(found)
    if found is None:
        raise typer.Exit(EXIT_FAILED)


def _write(incident: Incident) -> None:
    from alerting.diagnosis import explain
    from alerting.payloads import advice_of

    say(f"{incident.title}\n{incident.reason}\n")
    facts = {
        "id": incident.id,
        "state": incident.state,
        "severity": incident.severity,
        "cause": incident.cause.replace("_", " "),
        "advice": advice_of(incident),
        "since": utc(incident.onset_ms),
        "opened again": "" if incident.reopened_ms is None else utc(incident.reopened_ms),
        "acknowledged": incident.acknowledged_by or "",
    }
    for name, value in facts.items():
        if value:
            say(f"{name:<13} {value}")
    evidence = [
        {"feature": e.feature, "segment": e.segment, "version": e.version, "evidence": explain(e)}
        for e in incident.evidence
    ]
    for rows in (evidence, [{"when": utc(x.at_ms), "what": x.what} for x in incident.timeline]):
        if rows:
            say("")
            write_rows(rows, as_json=False)


def _row(incident: Incident) -> dict[str, object]:
    return {
        "id": incident.id[:8],
        "opened": utc(incident.opened_ms),
        "state": incident.state,
        "severity": incident.severity,
        "model": incident.model,
        "version": incident.version,
        "cause": incident.cause.replace("_", " "),
        "advice": incident.advice.replace("_", " "),
        "acknowledged": incident.acknowledged_by or "",
    }
