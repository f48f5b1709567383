"""The gate: a table of what lets a version go on, and what does not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from monitor.gate import Gate, gate
from monitor.wire import Advice, Incident
from tests.alerting.test_payloads import item

OF_7 = item().incident  # and its evidence is of version 7


def of(version: str, advice: Advice = "fix_data", evidence: str | None = None) -> Incident:
    seen = [replace(e, version=evidence or version) for e in OF_7.evidence]
    return replace(OF_7, version=version, advice=advice, evidence=seen)


@pytest.mark.parametrize(
    ("why", "windows", "incidents", "state"),
    [
        ("nothing is wrong", 2, [], "pass"),
        ("not seen for long enough", 1, [], "unknown"),
        ("never seen", 0, [], "unknown"),
        ("an incident of its own", 2, [of("8")], "fail"),
        ("one is enough, however little was seen", 0, [of("8")], "fail"),
        ("evidence of it in another's", 2, [of("7", evidence="8")], "fail"),
        ("another version's", 2, [of("7")], "pass"),
        ("a benign shift", 2, [of("8", "watch")], "pass"),
    ],
)
def test_a_version_goes_on_only_if_it_was_seen_and_nothing_is_wrong_with_it(
    why: str, windows: int, incidents: list[Incident], state: str
) -> None:
    found = gate("8", windows, incidents, least=2)
    assert (found.state, found.ok) == (state, state == "pass"), why


def test_the_reason_is_the_incidents_own() -> None:
    found = gate("7", 3, [OF_7], least=1)
    assert found == Gate(False, "fail", OF_7.title, 3, [OF_7.id])
