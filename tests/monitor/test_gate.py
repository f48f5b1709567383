"""The gate: a table of what lets a version go on, and what does not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from monitor.gate import PROOF, Comparison, Gate, gate
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


def beside(statistic: str, answer: str, feature: str = "", end_ms: int = 9) -> Comparison:
    breach = answer in ("worse", "differs")
    return Comparison(statistic, feature, "breach" if breach else "ok", answer, "7", end_ms)


ERRORS, SLOW = beside("more_request_errors", PROOF), beside("more_slow_requests", "not yet known", "$latency_ms")  # fmt: skip
NEAREST = beside("inputs_differ", "not yet known", "wind")


@pytest.mark.parametrize(
    ("why", "compared", "proven", "state", "reason"),
    [
        ("nothing differs", [ERRORS, SLOW, NEAREST], False, "pass", "no incident concerns"),
        ("one is not known", [ERRORS, SLOW], True, "unknown", "not proven: more_slow_requests"),
        ("all is known", [ERRORS, NEAREST], True, "pass", "no incident concerns"),
        ("nothing is known", [], True, "unknown", "no older version beside it"),
        ("other inputs", [ERRORS, beside("inputs_differ", "differs", "hour")], False, "unknown", "differ from those of version 7: hour"),
        ("in an older window", [beside("inputs_differ", "differs", "hour", 8), NEAREST], False, "pass", "no incident"),
        ("other scores", [beside("scores_differ", "differs", "$score")], False, "pass", "no incident"),
        ("many others", [beside("inputs_differ", "differs", f) for f in "abcd"], False, "unknown", ": a, b, c, ..."),
    ],
)  # fmt: skip
def test_what_is_known_of_a_version_beside_an_older_one_counts(
    why: str, compared: list[Comparison], proven: bool, state: str, reason: str
) -> None:
    found = gate("8", 5, [], least=2, compared=compared, proven=proven)
    assert (found.state, found.ok) == (state, state == "pass"), why
    assert reason in found.reason


def test_the_answers_of_the_comparisons_are_shown() -> None:
    found = gate("8", 5, [of("8")], least=2, compared=[ERRORS, SLOW, NEAREST])
    assert found.compared == {"more_request_errors": PROOF, "more_slow_requests": "not yet known"}
