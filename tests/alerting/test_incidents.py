"""Incidents: timelines, attribution between versions, inhibition, and a state machine of random histories."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from alerting.book import Book, Rules, decode_book, encode_book, share_rows
from alerting.incidents import DEFAULT_RULES, Change, command, step
from alerting.notify import plan
from monitor.errors import IncompatibleError
from monitor.wire import Command, OutboxItem, Verdict, Verdicts, VerdictStatus
from tests.alerting.builders import (
    DAY,
    HOUR,
    MODEL,
    START,
    fault,
    judged,
    labels,
    last,
    run,
    spec,
    told,
    verdict,
)

STATUS = {"D": "breach", ".": "ok", "n": "no_data"}


def play(score: str, *, pane: bool = False) -> str:
    """What happens to an incident while windows are judged: D broken, . clean, n no data -> F fired, R resolved."""
    size = HOUR if pane else DAY
    book, said = Book(MODEL), ""
    for i, mark in enumerate(score):
        message = judged(
            Verdict("data_drift", "temp", "psi", STATUS[mark], 0.5, 0.1, None, 100),  # type: ignore[arg-type]  # from the table
            source="pane" if pane else "window",
            size_ms=size,
            start_ms=START + i * size,
            closes=True,
        )
        book, changes = step(book, message)
        marks = [c.transition for c in changes if c.transition]
        said += marks[-1][0].upper() if marks else "-"
    return said


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("....", "----"),
        ("DDD.", "F--R"),  # one day without a breach: the hold
        ("D.D.", "FRF-"),  # it came back: watched for two days now
        ("D.D.D.D.D....", "FRF-------R--"),
        ("D.D..D..........", "FRF-RF---R------"),
        ("D...D...", "FR--FR--"),  # after its hold it is another incident
        ("Dnnn.", "F---R"),  # no data is not clean
        ("nnnD", "---F"),
    ],
)
def test_one_broken_window_fires_and_a_hold_with_a_clean_one_resolves(
    score: str, expected: str
) -> None:
    assert play(score) == expected


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("D.D.D.", "------"),  # a gust is no incident
        ("..DD..", "---F--"),
        (".DnD..", "---F--"),  # no data neither counts nor breaks the streak
        ("DD" + "." * 23, "-F" + "-" * 23),
        ("DD" + "." * 24, "-F" + "-" * 23 + "R"),  # a day without a broken pane
        ("DD" + "." * 20 + "D" + "." * 24, "-F" + "-" * 44 + "R"),  # within the hold: continued
        ("DD" + "n" * 30 + ".", "-F" + "-" * 30 + "R"),
    ],
)
def test_panes_fire_in_pairs_and_resolve_after_a_day(score: str, expected: str) -> None:
    assert play(score, pane=True) == expected


def test_two_gusts_with_quiet_hours_between_them_are_no_incident() -> None:
    hours = [
        judged(fault(), source="pane", size_ms=HOUR, start_ms=START + hour * HOUR, closes=True)
        for hour in (0, 5, 9)  # clean panes are not reported
    ]
    assert told(run(hours)[1]) == []


def test_what_comes_back_soon_is_the_same_incident_with_a_timeline_of_both_times() -> None:
    days = [
        judged(verdict(status="breach" if d in "D" else "ok"), day=i, closes=True)
        for i, d in enumerate("D.D..")
    ]
    book, changes = run(days[:1])
    book, _ = command(book, Command("acknowledge", MODEL, last(changes).id, "ada", START))
    _, more = run(days[1:], book)
    assert len({c.incident.id for c in [*changes, *more]}) == 1
    again = next(c.incident for c in more if c.transition == "fired")
    assert (again.onset_ms, again.reopened_ms) == (START + 2 * DAY, START + 3 * DAY)
    assert again.acknowledged_by is None
    assert [entry.what.split(":")[0] for entry in last(more).timeline] == [
        "fired", "acknowledge by ada", "resolved", "fired again", "resolved",
    ]  # fmt: skip


def test_a_fault_of_another_field_does_not_open_an_older_one_again() -> None:
    wind = [judged(fault(), closes=True), judged(fault("ok"), day=1, closes=True)]
    later = judged(fault(feature="visib"), fault("ok"), day=2, closes=True)
    _, changes = run([*wind, later])
    assert [c.transition for c in changes] == ["fired", "resolved", "fired"]
    assert changes[0].incident.id != changes[2].incident.id


def test_performance_that_recovers_does_not_make_its_fall_unknown() -> None:
    falls = judged(labels(), source="performance", size_ms=7 * DAY, closes=True)
    holds = [
        judged(
            labels("ok"),
            source="performance",
            size_ms=7 * DAY,
            start_ms=START + i * 7 * DAY,
            closes=True,
        )
        for i in (1, 2)
    ]
    _, changes = run([falls, *holds])
    assert told(changes) == [("fired", "7", "concept_drift"), ("resolved", "7", "concept_drift")]
    assert last(changes).advice == "retrain"


def test_a_week_that_broke_holds_the_incident_until_the_next_week_is_judged() -> None:
    week = judged(verdict(), size_ms=7 * DAY, closes=True)
    clean = [judged(verdict(status="ok"), day=7 + i, closes=True) for i in range(7)]
    _, changes = run([week, *clean])
    assert told(changes) == [("fired", "7", "unknown"), ("resolved", "7", "unknown")]
    assert last(changes).resolved_ms == START + 14 * DAY


def test_the_wind_fault_of_ewr_is_one_incident_that_names_what_a_person_needs() -> None:
    morning = START + 9 * HOUR
    panes = [
        judged(
            fault("breach" if i >= 9 else "ok", value=0.97 if i >= 9 else 0.0),
            segment="origin=EWR",
            source="pane",
            size_ms=HOUR,
            start_ms=START + i * HOUR,
        )
        for i in range(12)
    ]
    _, changes = run(panes)
    incident = last(changes)
    assert told(changes) == [("fired", "7", "pipeline_fault")]
    assert incident.title == (
        "wind_speed of flight-delay 7 at origin=EWR: 97 % of values are not on the reference's grid"
        " since 13 May 09:00 (limit 1 %)"
    )
    assert (incident.advice, incident.retrain_blocked) == ("fix_data", True)
    assert (incident.onset_ms, incident.opened_ms) == (morning, START + 11 * HOUR)
    assert [entry.what.split(":")[0] for entry in incident.timeline] == ["fired"]


def test_what_concerns_a_corner_of_the_traffic_is_less_severe_and_says_so() -> None:
    corner = judged(fault(), segment="carrier=HA", n=20)
    whole = judged(fault("ok"), closes=True)
    _, changes = run([corner, whole])
    incident = last(changes)
    assert (incident.cause, incident.severity) == ("pipeline_fault", "warning")
    assert incident.reason.endswith("It concerns 2 % of the traffic.")
    _, changes = run([judged(fault(), segment="carrier=HA", n=60), whole])
    assert last(changes).severity == "error"
    _, changes = run([judged(fault(), closes=True)])
    assert "traffic" not in last(changes).reason


def test_a_known_change_point_places_the_onset_better_than_the_window_that_fired() -> None:
    point = START + 15 * HOUR
    _, changes = run([judged(verdict(), verdict(feature="temp", onset_ms=point), closes=True)])
    assert last(changes).onset_ms == point


def test_a_broken_feature_explains_its_drift_and_what_it_does_to_the_predictions() -> None:
    messages = [
        judged(fault(), segment="origin=EWR", n=400),
        judged(verdict(), verdict("prediction_drift", feature="score")),
        judged(verdict(), segment="carrier=UA", n=300),
        judged(labels(), source="performance", closes=True),
        judged(day=1, closes=True),
    ]
    for order in itertools.permutations(messages[:3]):
        _, changes = run([*order, *messages[3:]])
        assert told(changes) == [("fired", "7", "pipeline_fault")]


def test_a_fault_explains_neither_other_features_nor_segments_that_share_no_rows_with_it() -> None:
    broken = judged(fault(), segment="origin=EWR", n=400)
    for other in (
        judged(verdict(feature="temp"), closes=True),
        judged(verdict(), segment="origin=JFK", closes=True),
    ):
        _, changes = run([broken, other])
        assert sorted(told(changes)) == [
            ("fired", "7", "pipeline_fault"),
            ("fired", "7", "unknown"),
        ]


def test_a_fault_in_a_corner_does_not_excuse_the_whole_model() -> None:
    corner = judged(fault(), segment="carrier=HA", n=10)
    whole = judged(verdict("prediction_drift", feature="score"), closes=True)
    _, changes = run([corner, whole])
    assert ("fired", "7", "unknown") in told(changes)


def test_labels_that_come_after_a_fault_was_fixed_are_still_explained_by_it() -> None:
    days = [judged(fault(), closes=True)]
    days += [judged(fault("ok"), day=i, closes=True) for i in range(1, 5)]
    late = [
        judged(labels(), day=0, source="performance", closes=True),
        judged(labels(), day=3, source="performance", closes=True),
    ]
    _, changes = run([*days, *late])
    assert told(changes) == [
        ("fired", "7", "pipeline_fault"),
        ("resolved", "7", "pipeline_fault"),
        ("fired", "7", "concept_drift"),
    ]
    assert last(changes).onset_ms == START + 3 * DAY


def test_two_pipeline_faults_a_week_apart_are_two_incidents_and_fields_that_break_together_one() -> (
    None
):
    together = judged(fault(), fault(feature="temp"), closes=True)
    week_later = judged(fault(), fault(feature="precip"), day=7, closes=True)
    book, changes = run([together, week_later])
    assert [c.incident.opened_ms for c in changes if c.transition == "fired"] == [
        START + DAY,
        START + 8 * DAY,
    ]
    assert len(book.cases("quality")) == 2


def test_fields_that_break_within_a_day_of_each_other_share_a_cause() -> None:
    later = judged(fault(feature="precip"), start_ms=START + DAY, size_ms=HOUR, closes=True)
    book, changes = run([judged(fault(), closes=True), later])
    assert told(changes) == [("fired", "7", "pipeline_fault")]
    assert changes[-1].incident.title.startswith("precip (and 1 more)")
    assert len(book.cases("quality")) == 1


def test_what_a_fault_explained_is_not_the_start_of_what_comes_after_it() -> None:
    days = [judged(fault(), closes=True)]
    days += [judged(fault("ok"), day=i, closes=True) for i in (1, 2)]
    late = [judged(labels(), day=i, source="performance", closes=True) for i in (0, 1)]
    _, changes = run([*days, *late])
    assert last(changes).cause == "concept_drift"
    assert last(changes).onset_ms == START + DAY


def test_a_fault_explains_nothing_that_ended_before_it() -> None:
    days = [judged(fault("ok" if i < 5 else "breach"), day=i, closes=True) for i in range(6)]
    _, changes = run([*days, judged(labels(), day=1, source="performance", closes=True)])
    assert ("fired", "7", "concept_drift") in told(changes)


def test_panes_of_a_new_version_stand_alone_once_the_old_one_is_gone() -> None:
    panes = [
        judged(
            fault(), version="8", source="pane", size_ms=HOUR, start_ms=START + 9 * DAY + i * HOUR
        )
        for i in range(3)
    ]
    _, changes = run([judged(verdict(status="ok"), closes=True), *panes])
    assert told(changes) == [("fired", "8", "pipeline_fault")]


def two_versions(
    *verdicts: tuple[Verdict, Verdict], since: int = 1, source: str = "window"
) -> list[Verdicts]:
    """A clean day of version 7, then days of 7 and 8 side by side with the given verdicts."""
    days = [judged(verdict(status="ok"), closes=True)]
    for i, (old, new) in enumerate(verdicts, start=since):
        days += [judged(old, day=i, version="7"), judged(new, day=i, version="8")]
    return [*days, judged(day=since + len(verdicts), size_ms=HOUR, n=0, closes=True)]


def test_what_breaks_in_the_new_version_only_is_a_bad_release_in_any_order_of_arrival() -> None:
    hour = {"feature": "hour"}
    first, *days, end = two_versions(
        (verdict(status="ok", **hour), verdict(**hour)),  # type: ignore[arg-type]  # one keyword
        (verdict(status="ok", **hour), verdict(**hour)),  # type: ignore[arg-type]  # one keyword
    )
    for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
        _, changes = run([first, *(days[i] for i in order), end])
        assert told(changes) == [("fired", "8", "bad_release")]
        incident = last(changes)
        assert (incident.advice, incident.rollback_to) == ("rollback", "7")
        assert incident.severity == "critical"


def test_what_breaks_in_both_versions_is_the_incumbents_drift_and_one_incident() -> None:
    first, *days, end = two_versions((verdict(), verdict()))
    for order in ([0, 1], [1, 0]):
        _, changes = run([first, *(days[i] for i in order), end])
        assert told(changes) == [("fired", "7", "unknown")]


def test_two_versions_on_either_side_of_a_limit_are_one_drift() -> None:
    _, changes = run(two_versions((verdict(status="ok", value=0.09), verdict(value=0.11))))
    assert told(changes) == [("fired", "8", "unknown")]


def test_a_signal_that_a_judged_window_does_not_name_is_clean_there() -> None:
    _, changes = run(
        [judged(fault(), closes=True), judged(verdict(status="ok"), day=1, closes=True)]
    )
    assert told(changes)[-1] == ("resolved", "7", "pipeline_fault")
    _, changes = run(two_versions((verdict(status="ok"), fault())))
    assert told(changes) == [("fired", "8", "bad_release")]


def test_a_window_with_too_few_events_to_judge_a_rate_says_nothing_about_it() -> None:
    few = verdict("data_quality", "no_data", feature="", statistic="rates", limit=None)
    _, changes = run([judged(fault(), closes=True), judged(few, day=1, closes=True)])
    assert told(changes) == [("fired", "7", "pipeline_fault")]


def test_a_change_point_of_a_new_version_is_no_reason_to_roll_it_back() -> None:
    point = verdict(statistic="adwin", value=0.4, limit=None)
    _, changes = run(two_versions((verdict(status="ok"), point)))
    assert told(changes) == [("fired", "8", "unknown")]


def test_panes_of_a_new_version_wait_for_the_window_that_compares_it_with_the_old_one() -> None:
    panes = [
        judged(fault(), version="8", source="pane", size_ms=HOUR, start_ms=START + DAY + i * HOUR)
        for i in range(6)
    ]
    first, old, new, end = two_versions((verdict(status="ok"), fault()))
    _, changes = run([first, *panes, old, new, end])
    assert told(changes) == [("fired", "8", "bad_release")]
    _, changes = run([first, *panes[:2], *(p for p in both_panes(2)), end])
    assert told(changes) == [("fired", "7", "pipeline_fault")]


def both_panes(count: int) -> list[Verdicts]:
    """Broken panes of both versions, after those of the test above."""
    return [
        judged(fault(), version=v, source="pane", size_ms=HOUR, start_ms=START + DAY + i * HOUR)
        for i in range(2, 2 + count)
        for v in ("7", "8")
    ]


def test_a_version_without_a_live_elder_stands_for_the_model() -> None:
    old = judged(verdict(status="ok"), closes=True)
    new = judged(verdict(), day=9, version="8", closes=True)
    _, changes = run([old, new])
    assert told(changes) == [("fired", "8", "unknown")]


def test_a_bad_release_inhibits_the_drift_of_its_version_and_ends_when_it_is_withdrawn() -> None:
    ok, bad = verdict(status="ok"), verdict()
    messages = two_versions((ok, bad))
    lonely = judged(verdict(feature="temp"), day=2, version="8", segment="origin=LGA")
    after = [judged(ok, day=day, closes=True) for day in range(2, 6)]
    book, changes = run([*messages, lonely, *after])
    assert told(changes) == [("fired", "8", "bad_release"), ("resolved", "8", "bad_release")]
    assert not book.open


def test_a_newer_versions_labels_wait_for_those_of_the_older_one() -> None:
    def of(version: str, status: str, day: int) -> Verdicts:
        found = labels("breach" if status == "D" else "ok")
        return judged(found, day=day, version=version, source="performance", closes=True)

    start = [of("7", ".", 0), of("8", ".", 1)]
    book, changes = run([*start, of("8", "D", 2)])
    assert told(changes) == []
    assert len(book.waiting) == 1
    _, release = run([of("7", ".", 2)], book)
    assert told(release) == [("fired", "8", "bad_release")]
    _, drift = run([of("7", "D", 2)], book)
    assert told(drift) == [("fired", "7", "concept_drift")]
    _, alone = run([of("8", ".", 3), of("8", ".", 4)], book)
    assert told(alone) == [("fired", "8", "concept_drift"), ("resolved", "8", "concept_drift")]


def test_labels_decide_what_a_drift_meant_within_one_incident() -> None:
    drift = [judged(verdict(), day=i, closes=True) for i in range(3)]
    holds = judged(labels("ok"), day=0, source="performance", closes=True)
    falls = judged(labels(), day=1, source="performance", closes=True)
    book, changes = run([drift[0], holds, drift[1], falls, drift[2]])
    assert told(changes) == [
        ("fired", "7", "unknown"),
        ("changed", "7", "benign_shift"),
        ("changed", "7", "drift"),
    ]
    assert len({c.incident.id for c in changes}) == 1
    assert [e.advice for e in (c.incident for c in changes if c.transition)] == [
        "investigate",
        "watch",
        "retrain",
    ]
    assert len(book.open) == 1


def test_an_estimate_in_a_window_does_not_stand_for_its_labels() -> None:
    estimate = verdict("performance", "ok", feature="", statistic="estimated_accuracy")
    _, changes = run([judged(verdict(), estimate, day=i, closes=True) for i in range(3)])
    assert told(changes) == [("fired", "7", "unknown")]


def test_performance_that_falls_without_any_input_drift_is_concept_drift() -> None:
    _, changes = run([judged(labels(), source="performance", closes=True)])
    assert told(changes) == [("fired", "7", "concept_drift")]
    assert last(changes).advice == "retrain"


def volume(value: float, status: VerdictStatus = "breach") -> Verdict:
    limit = 0.6 if value < 1 else 1.6
    return verdict("service", status, feature="", statistic="volume", value=value, limit=limit)


def test_next_to_no_requests_are_an_outage_that_explains_the_rest_in_every_version() -> None:
    book, changes = run([judged(volume(0.05), verdict(), fault(), closes=True)])
    assert told(changes) == [("fired", "7", "outage")]
    assert len(book.open) == 1
    _, changes = run([judged(volume(0.0), version="7"), judged(fault(), version="8", closes=True)])
    assert told(changes) == [("fired", "7", "outage")]


@pytest.mark.parametrize("value", [0.1, 0.4, 2.3])
def test_a_surge_and_a_partial_drop_are_no_outage_and_no_release_and_explain_nothing(
    value: float,
) -> None:
    """The verdict is of all versions, whichever carries it: another one has none, which is no merit."""
    messages = [judged(version="7"), judged(volume(value), fault(), version="8", closes=True)]
    _, changes = run(messages)
    found = {(c.case.family, c.incident.cause) for c in changes}
    assert ("service", "unknown") in found
    assert ("quality", "pipeline_fault") in found or ("release", "bad_release") in found
    assert "outage" not in {family for family, _ in found}
    assert all(c.case.family != "release" or "volume" not in c.incident.title for c in changes)


def test_one_outage_is_one_incident_through_silence_a_partial_return_and_another_version() -> None:
    hours = [1.0, 0.0, 0.0, 0.05, 0.4, *[1.0] * 30]
    messages = []
    for i, value in enumerate(hours):
        version = "7" if i < 4 else "8"
        said = volume(value, "ok" if value == 1 else "breach")
        n = round(1_000 * value)
        messages.append(
            judged(said, n=n, start_ms=i * HOUR, size_ms=HOUR, version=version, closes=True)
        )
    _, changes = run(messages)
    assert [(c.transition, c.case.family) for c in changes if c.transition] == [
        ("fired", "outage"),
        ("resolved", "outage"),
    ]


@pytest.mark.parametrize(
    ("both", "told_of", "rollback_to"),
    [(False, ("fired", "8", "bad_release"), "7"), (True, ("fired", "7", "unknown"), None)],
)
def test_requests_that_end_with_an_error_in_the_new_version_only_are_a_bad_release(
    both: bool, told_of: tuple[str, str, str], rollback_to: str | None
) -> None:
    failing = verdict("service", feature="", statistic="request_error_rate", value=0.1, limit=0.02)
    clean = verdict(status="ok")  # a window without an error does not name them
    _, changes = run(two_versions((failing if both else clean, failing)))
    assert told(changes) == [told_of]
    assert "10 % of requests end with an error" in last(changes).title
    assert last(changes).rollback_to == rollback_to


def beside(statistic: str, feature: str = "", compared_with: str = "7", value: float = 0.06) -> Verdict:  # fmt: skip
    """What a comparison of versions found: worse, or inputs that differ."""
    found = verdict("canary", feature=feature, statistic=statistic, value=value, limit=None)
    return replace(found, evidence={"compared_with": compared_with})


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        (beside("more_request_errors"), "flight-delay 8 fails 6.0 points more often than"),
        (beside("more_slow_requests", "$latency_ms"), "flight-delay 8 is slow 6.0 points more"),
        (beside("more_errors", "$prediction"), "flight-delay 8 errs 6.0 points more often than"),
    ],
)
def test_a_version_that_is_worse_than_the_one_beside_it_is_a_bad_release(
    worse: Verdict, words: str
) -> None:
    _, changes = run(two_versions((verdict(status="ok"), worse)))
    assert told(changes) == [("fired", "8", "bad_release")]
    incident = last(changes)
    assert (incident.advice, incident.rollback_to) == ("rollback", "7")
    assert words in incident.title


@pytest.mark.parametrize(("compared_with", "rollback_to"), [("6", "6"), ("gone", "7")])
def test_the_advice_is_to_go_back_to_the_version_that_did_better(
    compared_with: str, rollback_to: str
) -> None:
    ok, worse = verdict(status="ok"), beside("more_request_errors", compared_with=compared_with)
    oldest = [judged(ok, day=day, version="6") for day in (-1, 0, 1)]
    _, changes = run([oldest[0], oldest[1], *two_versions((ok, worse))[:-1], oldest[2], judged(day=2, size_ms=HOUR, n=0, closes=True)])  # fmt: skip
    assert last(changes).rollback_to == rollback_to


def test_inputs_that_differ_are_evidence_of_a_bad_release_and_no_incident_alone() -> None:
    ok, differs = verdict(status="ok"), beside("inputs_differ", "hour", value=0.9)
    book, changes = run(two_versions((ok, differs), (ok, differs)))
    assert changes == []
    assert not book.open
    broken = verdict(feature="hour")
    days = [judged(ok, day=day, version="7") for day in (3, 4)]
    both = [judged(broken, differs, day=day, version="8") for day in (3, 4)]
    end = judged(day=5, size_ms=HOUR, n=0, closes=True)
    _, changes = run([days[0], both[0], days[1], both[1], end], book)
    assert told(changes) == [("fired", "8", "bad_release")]
    incident = last(changes)
    assert [e.statistic for e in incident.evidence] == ["psi", "inputs_differ"]
    assert incident.title.startswith("hour of flight-delay 8 has moved")
    assert incident.rollback_to == "7"


def test_a_message_that_was_seen_changes_nothing_and_a_new_revision_does() -> None:
    first = judged(verdict(status="ok"), closes=True)
    book, _ = run([first])
    assert step(book, first) == (book, ())
    _, changes = run([judged(verdict(), revision=1, closes=True)], book)
    assert told(changes) == [("fired", "7", "unknown")]


def test_a_window_older_than_those_remembered_is_history() -> None:
    book, _ = run([judged(verdict(status="ok"), day=i, closes=True) for i in range(17)])
    assert step(book, judged(verdict(), day=-1)) == (book, ())


def test_the_book_comes_back_equal_from_its_bytes_and_is_never_changed_in_place() -> None:
    book, _ = run([judged(fault(), verdict(feature="temp"), closes=True), judged(day=1)])
    value = encode_book(book)
    assert decode_book(value) == book
    step(book, judged(fault("ok"), day=2, closes=True))
    assert encode_book(book) == value
    with pytest.raises(IncompatibleError):
        decode_book(b"something else")


def test_incidents_of_a_model_are_capped_and_the_rest_is_counted() -> None:
    days = [
        judged(*(fault(feature=f"f{k}") for k in range(i + 1)), day=2 * i, closes=True)
        for i in range(20)
    ]
    book, _ = run(days)
    assert len(book.open) == Rules().max_open
    assert book.counters == {"not_opened": 4 + 3 + 2 + 1}


def test_the_strongest_twenty_signals_are_shown() -> None:
    many = [fault(feature=f"f{i}", value=0.02 + i / 100) for i in range(40)]
    _, changes = run([judged(*many, closes=True)])
    shown = [e.feature for e in last(changes).evidence]
    assert shown == [f"f{i}" for i in range(39, 19, -1)]


def test_commands_acknowledge_once_and_ignore_what_is_not_open() -> None:
    book, changes = run([judged(fault(), closes=True)])
    order = Command("acknowledge", MODEL, last(changes).id, "ada", START + 2 * DAY)
    book, (change,) = command(book, order)
    assert change.incident.acknowledged_by == "ada"
    assert change.incident.timeline[-1].what == "acknowledge by ada"
    assert command(book, order) == (book, ())
    stray = Command("acknowledge", MODEL, "nothing", "ada", START)
    assert command(book, stray) == (book, ())


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("", "origin=EWR", True),
        ("origin=EWR", "origin=EWR", True),
        ("origin=EWR", "origin=JFK", False),
        ("origin=EWR", "carrier=UA", True),
    ],
)
def test_two_values_of_one_dimension_share_no_rows(
    first: str, second: str, *, expected: bool
) -> None:
    assert share_rows(first, second) is expected


def test_rules_under_which_nothing_could_fire_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Rules(panes_to_fire=0)
    with pytest.raises(ValueError, match="contrast"):
        Rules(contrast=0.5)


WINDOWS = st.fixed_dictionaries(
    {
        "version": st.sampled_from(["7", "8"]),
        "segment": st.sampled_from(["", "origin=EWR"]),
        "verdicts": st.lists(
            st.builds(
                lambda make, status: make(status),
                st.sampled_from([fault, labels, lambda status: verdict(status=status)]),
                st.sampled_from(["ok", "breach", "no_data"]),
            ),
            min_size=1,
            max_size=3,
        ),
        "source": st.sampled_from(["window", "performance"]),
    }
)


class Histories(RuleBasedStateMachine):
    """Random days of two versions with random verdicts: what must hold in every history."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Book(MODEL)
        self.day = 0
        self.fired: dict[str, int] = {}
        self.resolved: dict[str, int] = {}
        self.holds: dict[str, int] = {}
        self.sent: list[OutboxItem] = []
        self.asked: list[tuple[str, int]] = []
        self.seen: list[Verdicts] = []

    def apply(self, message: Verdicts) -> None:
        before = bool(self.book.cases("quality"))
        self.book, changes = step(self.book, message)
        self.book, _, items = plan(self.book, changes, spec())
        self.check(changes, items, quality=before and bool(self.book.cases("quality")))
        self.seen.append(message)

    def check(
        self, changes: tuple[Change, ...], items: tuple[OutboxItem, ...], *, quality: bool
    ) -> None:
        for change in changes:
            name = change.incident.id
            times = self.fired.get(name, 0), self.resolved.get(name, 0)
            if change.transition == "fired":
                assert times[0] == times[1], "an identity fires when it is not open"
                held = self.holds.get(name, 0)
                assert change.case.hold_ms >= min(2 * held, DEFAULT_RULES.max_hold_ms)
                self.fired[name] = times[0] + 1
            elif change.transition == "resolved":
                assert times[0] == times[1] + 1, "resolve follows fire"
                self.resolved[name] = times[1] + 1
            self.holds[name] = change.case.hold_ms
        if quality or self.book.cases("quality"):
            assert all(item.action != "retrain" for item in items)
        self.sent += items
        self.asked += [(i.action, self.book.now_ms) for i in items if i.action != "notify"]

    @rule(windows=st.lists(WINDOWS, min_size=1, max_size=4))
    def a_day(self, windows: list[dict[str, object]]) -> None:
        for window in windows:
            verdicts = window["verdicts"]
            assert isinstance(verdicts, list)
            given_: dict[str, object] = {k: v for k, v in window.items() if k != "verdicts"}
            self.apply(judged(*verdicts, day=self.day, **given_))  # type: ignore[arg-type]  # drawn
        self.day += 1

    @rule(which=st.integers(0, 30))
    def a_repeat(self, which: int) -> None:
        if self.seen:
            message = self.seen[-1 - which % len(self.seen)]
            assert step(self.book, message) == (self.book, ())

    @invariant()
    def identities_are_single(self) -> None:
        ids = [case.incident.id for case in self.book.open.values()]
        assert len(ids) == len(set(ids))
        for family in ("drift", "outage", "service"):
            assert len(self.book.cases(family)) <= 1
        releases = [case.incident.version for case in self.book.cases("release")]
        assert len(releases) == len(set(releases))
        assert set(self.book.open) == {
            n for n in self.fired if self.fired[n] > self.resolved.get(n, 0)
        }
        assert not self.book.open.keys() & self.book.closed.keys()

    @invariant()
    def nothing_is_asked_for_twice(self) -> None:
        ids = [item.id for item in self.sent]
        assert len(ids) == len(set(ids))
        actions = [
            (i.action, i.incident.id, i.incident.reopened_ms)
            for i in self.sent
            if i.action != "notify"
        ]
        assert len(actions) == len(set(actions))

    @invariant()
    def actions_cool_down(self) -> None:
        for action in ("retrain", "rollback"):
            times = [at_ms for name, at_ms in self.asked if name == action]
            assert all(later - earlier >= DAY for earlier, later in itertools.pairwise(times))

    @invariant()
    def the_book_survives_its_bytes(self) -> None:
        assert decode_book(encode_book(self.book)) == self.book


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=min(150, settings().max_examples))  # 70 ms each


@given(st.permutations(range(6)))
def test_the_order_of_verdicts_that_end_together_does_not_matter(order: list[int]) -> None:
    first = [judged(verdict(status="ok"), closes=True), judged(day=1, version="8", closes=True)]
    same_end = [
        judged(verdict(status="ok"), fault(), day=2),
        judged(verdict(), fault("ok"), day=2, version="8"),
        judged(verdict(feature="temp"), fault(), day=2, segment="origin=EWR"),
        judged(labels(), day=2, source="performance"),
        judged(verdict(feature="temp"), day=2, version="8", segment="origin=EWR"),
        judged(fault(feature="visib"), start_ms=START + 3 * DAY - HOUR, size_ms=HOUR),
    ]
    end = judged(day=3, closes=True)
    expected = run([*first, *same_end, end])[1]
    assert run([*first, *(same_end[i] for i in order), end])[1] == expected
