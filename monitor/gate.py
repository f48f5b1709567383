"""The gate of progressive delivery: whether a version may get more traffic, as a rollout controller asks before each step.

Pulled, not pushed: nobody has to be given rights over the cluster. A version that has not been seen enough is "unknown", which is not ok:
a gate that is open while nobody looks is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from monitor.wire import Incident


class Gate(msgspec.Struct, frozen=True):
    """An answer. ``windows`` were seen of the version, ``incidents`` fire and concern it."""

    ok: bool
    state: Literal["pass", "fail", "unknown"]
    reason: str
    windows: int
    incidents: list[str] = []


def gate(version: str, windows: int, incidents: Sequence[Incident], *, least: int) -> Gate:
    """Whether ``version`` may go on.

    Args:
        version: of the model.
        windows: closed windows of it, with events.
        incidents: of its model, that fire.
        least: windows that have to be there.
    """
    against = [incident for incident in incidents if _concerns(incident, version)]
    if against:
        ids = [incident.id for incident in against]
        return Gate(False, "fail", against[0].title, windows, ids)
    if windows < least:
        return Gate(False, "unknown", f"{windows} of {least} windows have closed", windows)
    return Gate(True, "pass", "no incident concerns this version", windows)


def _concerns(incident: Incident, version: str) -> bool:
    """A benign shift is to be watched: it holds nobody up."""
    if incident.advice == "watch":
        return False
    return version == incident.version or any(e.version == version for e in incident.evidence)
