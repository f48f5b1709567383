"""What people ask for: an order goes to the detector that holds the incident's model, and what came of it is read from the store.

An order is a record of ``commands`` in the model's partition. The incident's timeline names who asked, and why; an order that changes nothing,
such as a second acknowledgement, leaves no trace.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from monitor import wire
from monitor.errors import ConfigError
from monitor.settings import Settings
from monitor.store import Store
from monitor.wire import Command, Incident
from streams import clients, wiring
from streams.topics import partition_of

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["acknowledge", "silence", "approve", "reject"]
LEAST_ID: Final = 4  # characters of an id that have to be given
MAX_COMMENT: Final = 500
_AUTHOR: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_TURN_S: Final = 0.25


def find(store: Store, id_prefix: str) -> Incident:
    """The incident whose id begins so.

    Raises:
        ConfigError: none does, or more than one.
    """
    if len(id_prefix) < LEAST_ID:
        raise ConfigError(f"give at least {LEAST_ID} characters of the incident's id")
    found = store.incidents_like(id_prefix)
    if not found:
        raise ConfigError("no such incident")
    if len(found) > 1:
        raise ConfigError("more than one incident begins so: give more of its id")
    return found[0]


def order(
    kind: Kind,
    incident: Incident,
    *,
    author: str,
    at_ms: int,
    until_ms: int | None = None,
    comment: str = "",
) -> Command:
    """What to ask for.

    Raises:
        ConfigError: it would change nothing, or the author or comment is not one line.
    """
    if incident.state != "firing":
        raise ConfigError(f"the incident is {incident.state}: there is nothing to {kind}")
    if kind == "acknowledge" and incident.acknowledged_by is not None:
        raise ConfigError(f"{incident.acknowledged_by} has acknowledged it already")
    if kind in ("approve", "reject") and incident.advice not in ("retrain", "rollback"):
        raise ConfigError(
            f"it advises to {incident.advice.replace('_', ' ')}: there is nothing to {kind}"
        )
    if not _AUTHOR.fullmatch(author):
        raise ConfigError("the author is one line of at most 128 characters")
    if len(comment) > MAX_COMMENT or not (comment.isprintable() or not comment):
        raise ConfigError(f"the comment is one line of at most {MAX_COMMENT} characters")
    return Command(kind, incident.model, incident.id, author, at_ms, until_ms, comment)


def send(settings: Settings, command: Command) -> None:
    """Give an order; returns when the broker has it.

    Raises:
        TransientError: the broker does not answer.
    """
    partition = partition_of(command.model, settings.kafka.detector_partitions)
    clients.put(
        wiring.require_broker(settings),
        logger,
        wiring.topics(settings).commands,
        command.model,
        wire.encode(command),
        partition=partition,
    )


def taken(
    store: Store,
    command: Command,
    *,
    within_s: float,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> Incident | None:
    """The incident once an order is in its timeline; ``None`` if it is not there in time.

    Raises:
        TransientError: the database does not answer.
    """
    deadline = monotonic() + within_s
    said = f"{command.kind} by {command.author}"
    while True:
        incident = store.incident(command.incident_id)
        lines = incident.timeline if incident else []
        if any(x.at_ms == command.at_ms and x.what.startswith(said) for x in lines):
            return incident
        if monotonic() > deadline:
            return None
        sleep(_TURN_S)
