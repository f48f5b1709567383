"""The gate of progressive delivery: whether a version may get more traffic, as a rollout controller asks before each step.

Pulled, not pushed: nobody has to be given rights over the cluster. A version that has not been seen enough is "unknown", which is not ok:
a gate that is open while nobody looks is none.

What the version does beside an older one counts as well (``monitor.beside``): worse is an incident and shuts the gate. Where the inputs of the two differ, they were not
compared on like traffic, or one prepares its features otherwise: that is "unknown" until somebody has looked. Who wants proof asks for it: then nothing may be "not yet known".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from monitor.verdicts import INPUTS_DIFFER
from monitor.wire import Incident, VerdictStatus

PROOF: Final = "not worse within margin"
_WORSE: Final = "more_"  # statistics that ask whether a version is worse begin so
_SHOWN: Final = 3  # features that are named


class Comparison(msgspec.Struct, frozen=True):
    """The newest verdict of one statistic and feature on a version beside an older one, of a window that ended at ``end_ms``."""

    statistic: str
    feature: str
    status: VerdictStatus
    answer: str
    compared_with: str
    end_ms: int


class Gate(msgspec.Struct, frozen=True):
    """An answer. ``windows`` were seen of the version, ``incidents`` fire and concern it; ``compared``: by statistic, what is known of it beside an older one."""

    ok: bool
    state: Literal["pass", "fail", "unknown"]
    reason: str
    windows: int
    incidents: list[str] = []
    compared: dict[str, str] = {}


def gate(
    version: str,
    windows: int,
    incidents: Sequence[Incident],
    *,
    least: int,
    compared: Sequence[Comparison] = (),
    proven: bool = False,
) -> Gate:
    """Whether ``version`` may go on.

    Args:
        version: of the model.
        windows: closed windows of it, with events.
        incidents: of its model, that fire.
        least: windows that have to be there.
        compared: of its newest windows.
        proven: every comparison has to say ``PROOF``, and one has to be there.
    """
    answers = {c.statistic: c.answer for c in compared if c.statistic.startswith(_WORSE)}

    def answer(state: Literal["pass", "fail", "unknown"], reason: str, ids: list[str]) -> Gate:
        return Gate(state == "pass", state, reason, windows, ids, answers)

    against = [incident for incident in incidents if _concerns(incident, version)]
    if against:
        return answer("fail", against[0].title, [incident.id for incident in against])
    if windows < least:
        return answer("unknown", f"{windows} of {least} windows have closed", [])
    if unlike := _unlike(compared):
        return answer("unknown", unlike, [])
    open_questions = [name for name, found in answers.items() if found != PROOF]
    if proven and (open_questions or not answers):
        asked = ", ".join(open_questions) or "no older version beside it"
        return answer("unknown", f"not proven: {asked}", [])
    return answer("pass", "no incident concerns this version", [])


def _unlike(compared: Sequence[Comparison]) -> str:
    """What is said of inputs that differ from the other version's, in the newest window that knows of inputs."""
    inputs = [c for c in compared if c.statistic == INPUTS_DIFFER]
    newest_ms = max((c.end_ms for c in inputs), default=0)
    found = [c for c in inputs if c.status == "breach" and c.end_ms == newest_ms]
    if not found:
        return ""
    names = ", ".join(c.feature for c in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    return f"its inputs differ from those of version {found[0].compared_with}: {names}"


def _concerns(incident: Incident, version: str) -> bool:
    """A benign shift is to be watched: it holds nobody up."""
    if incident.advice == "watch":
        return False
    return version == incident.version or any(e.version == version for e in incident.evidence)
