"""What people may ask for about an incident: one check, whether they ask by the command line, the API or a signed link.

An order only asks: the detector that holds the incident decides, and its timeline says who asked, when and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from monitor.errors import ConfigError, NothingToDoError
from monitor.targets import action_named
from monitor.wire import Command, Incident

Kind: TypeAlias = Literal["acknowledge", "silence", "approve", "reject"]
Give: TypeAlias = Callable[[Command], None]
"""Takes an order to the detector, and returns when the broker has it; a ``DriftlineError`` says that it has not."""

MAX_COMMENT: Final = 500
_AUTHOR: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")


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
        NothingToDoError: it would change nothing.
        ConfigError: the author or comment is not one line, or a silence has no end.
    """
    if incident.state != "firing":
        raise NothingToDoError(f"the incident is {incident.state}: there is nothing to {kind}")
    if kind == "acknowledge" and incident.acknowledged_by is not None:
        raise NothingToDoError(f"{incident.acknowledged_by} has acknowledged it already")
    action = None
    if kind in ("approve", "reject"):
        action = action_named(incident.advice)
        if action is None:
            advice = incident.advice.replace("_", " ")
            raise NothingToDoError(f"it advises to {advice}: there is nothing to {kind}")
    if kind == "silence" and until_ms is None:
        raise ConfigError("say for how long it is to be silent")
    if not _AUTHOR.fullmatch(author):
        raise ConfigError("the author is one line of at most 128 characters")
    if len(comment) > MAX_COMMENT or not (comment.isprintable() or not comment):
        raise ConfigError(f"the comment is one line of at most {MAX_COMMENT} characters")
    return Command(kind, incident.model, incident.id, author, at_ms, until_ms, comment, action)
