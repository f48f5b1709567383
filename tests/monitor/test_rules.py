"""Limits by hand: which verdicts they decide, what they ask for beside them, and which of them make no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monitor.columns import Columns
from monitor.errors import ConfigError
from monitor.judge import Judge
from monitor.panes import SeriesKey
from monitor.reference import Reference, build
from monitor.rules import Measured, Place, apply
from monitor.spec import ModelSpec, RuleSpec, parse_spec
from monitor.wire import Verdict, VerdictStatus
from tests.monitor.builders import DAY, HOUR, MODEL, START, columns, past, profile_of
from tests.monitor.test_judge import REFERENCE, SPEC

WHOLE = Place("7", "", DAY)
EWR = Place("8", "origin=EWR", HOUR)


def rules(*given: dict[str, Any]) -> tuple[RuleSpec, ...]:
    return tuple(RuleSpec.model_validate(rule) for rule in given)


def verdict(status: VerdictStatus = "breach", value: float | None = 0.2, **changes: Any) -> Verdict:
    given = {
        "kind": "data_quality", "feature": "wind", "statistic": "missing", "status": status, "value": value,
        "limit": 0.1, "p_value": 0.001, "n": 500, "evidence": {"reference": 0.05}, **changes,
    }  # fmt: skip
    return Verdict(**given)


@pytest.mark.parametrize(
    ("why", "rule", "value", "status", "limit"),
    [
        ("more is fine here", {"above": 0.3}, 0.2, "ok", 0.3),
        ("and still a limit", {"above": 0.3}, 0.31, "breach", 0.3),
        ("at the limit is within it", {"above": 0.2}, 0.2, "ok", 0.2),
        ("less is bad", {"below": 0.3}, 0.2, "breach", 0.3),
        ("from the reference", {"rises_by": 0.2}, 0.2, "ok", 0.25),
        ("from the reference", {"rises_by": 0.1}, 0.2, "breach", 0.15),
        ("down from it", {"falls_by": 0.02}, 0.02, "breach", 0.03),
        ("it doubles", {"times": 2}, 0.2, "breach", 0.1),
        ("five times as many", {"times": 5}, 0.2, "ok", 0.25),
    ],
)
def test_a_limit_by_hand_takes_the_place_of_the_calibrated_one(
    why: str, rule: dict[str, Any], value: float, status: VerdictStatus, limit: float
) -> None:
    for before in ("ok", "breach"):
        given = verdict("ok" if before == "ok" else "breach", value)
        (found,) = apply(rules({"statistic": "missing", **rule}), WHOLE, [given])
        assert found.status == status, why
        assert found.limit == pytest.approx(limit), why
        assert (found.value, found.p_value, found.evidence["rule"]) == (
            value,
            None,
            "limit by hand",
        )


@pytest.mark.parametrize(
    ("rule", "place", "fits"),
    [
        ({}, WHOLE, True),
        ({"feature": "wind"}, WHOLE, True),
        ({"feature": "wi*"}, WHOLE, True),
        ({"feature": "temp"}, WHOLE, False),
        ({"kind": "data_drift"}, WHOLE, False),
        ({"statistic": "unseen"}, WHOLE, False),
        ({"segment": ""}, WHOLE, True),
        ({"segment": ""}, EWR, False),
        ({"segment": "origin=*"}, EWR, True),
        ({"version": "7"}, EWR, False),
        ({"window": "1h"}, EWR, True),
        ({"window": "1h"}, WHOLE, False),
    ],
)
def test_a_rule_is_about_what_it_names(rule: dict[str, Any], place: Place, fits: bool) -> None:
    (found,) = apply(rules({**rule, "ignore": True}), place, [verdict()])
    assert found.status == ("ok" if fits else "breach")


def test_the_first_rule_that_fits_decides() -> None:
    first = {"statistic": "missing", "feature": "wind", "above": 0.5}
    (found,) = apply(rules(first, {"ignore": True}), WHOLE, [verdict()])
    assert (found.status, found.limit) == ("ok", 0.5)


def test_what_is_ignored_is_recorded_as_it_is() -> None:
    (found,) = apply(rules({"ignore": True}), WHOLE, [verdict()])
    assert (found.status, found.value, found.limit) == ("ok", 0.2, 0.1)
    assert found.evidence == {"reference": 0.05, "rule": "ignored"}


def test_too_few_to_say_stays_so_under_any_rule() -> None:
    few = verdict("no_data", None, limit=None, p_value=None)
    assert apply(rules({"statistic": "missing", "above": 0.0}), WHOLE, [few]) == [few]
    least = Measured("data_drift", "wind", "mean", 9.0, 5.0, 20, 50)
    (found,) = apply(rules({"statistic": "mean", "above": 1.0}), WHOLE, [], [least])
    assert (found.status, found.value) == ("no_data", None)


def test_a_statistic_without_a_limit_is_judged_where_a_rule_asks_for_it_and_only_there() -> None:
    mean = Measured("service", "$latency_ms", "mean", 120.0, 50.0, 500, 50)
    f1 = Measured("performance", "$prediction", "f1", 0.6, None, 500, 100)
    assert apply(rules({"statistic": "ks", "above": 1.0}), WHOLE, [], [mean, f1]) == []
    both = rules({"statistic": "mean", "times": 2}, {"statistic": "f1", "below": 0.5})
    slow, fine = apply(both, WHOLE, [], [mean, f1])
    assert (slow.status, slow.limit, slow.kind) == ("breach", 100.0, "service")
    assert (fine.status, fine.limit) == ("ok", 0.5)


def test_a_rule_from_the_reference_says_nothing_where_that_has_no_value() -> None:
    unknown = Measured("performance", "$prediction", "error_rate", 0.3, None, 500, 100)
    (found,) = apply(rules({"statistic": "error_rate", "times": 2}), WHOLE, [], [unknown])
    assert (found.status, found.value, found.limit) == ("no_data", None, None)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"statistic": "missing"}, "exactly one of"),
        ({"statistic": "missing", "above": 1, "below": 0}, "exactly one of"),
        ({"statistic": "missing", "above": 1, "ignore": True}, "exactly one of"),
        ({"above": 1}, "name a statistic"),
        ({"statistic": "p99", "above": 100}, "name a statistic"),
        ({"statistic": "psi", "times": 2}, "counts from the reference"),
        ({"statistic": "f1", "falls_by": 0.1}, "counts from the reference"),
        ({"statistic": "requests", "times": 2}, "counts from the reference"),
        ({"statistic": "missing", "above": float("nan")}, "finite"),
        ({"statistic": "missing", "times": 1}, "greater than 1"),
        ({"features": "wind", "ignore": True}, "Extra inputs"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_spec({"model": "m", "rules": [rule]}, origin="test")


def judge(spec: ModelSpec) -> Judge:
    return Judge(SeriesKey(MODEL, "7", "", REFERENCE.layout.bins_id), spec, REFERENCE)


def with_rules(*given: dict[str, Any]) -> ModelSpec:
    return SPEC.model_copy(update={"rules": rules(*given)})


def test_the_judge_of_a_window_goes_by_the_rules() -> None:
    day = profile_of(REFERENCE, columns(past(np.random.default_rng(5), 2_000, span_ms=DAY)))
    plain = judge(SPEC).window(START, DAY, day)
    ruled = judge(
        with_rules(
            {"statistic": "mean", "feature": "wind", "below": 1e9},
            {"statistic": "psi", "feature": "wind", "above": 0.0},
        )
    ).window(START, DAY, day)
    assert plain is not None
    assert ruled is not None
    by_hand = [v for v in ruled.verdicts if "rule" in v.evidence]
    assert {(v.feature, v.statistic, v.status) for v in by_hand} == {
        ("wind", "mean", "breach"),
        ("wind", "psi", "breach"),
    }
    same = [v for v in ruled.verdicts if v not in by_hand]
    assert same == [v for v in plain.verdicts if (v.feature, v.statistic) != ("wind", "psi")]


def served(rng: np.random.Generator, n: int, *, slow: float = 1.0, errors: int = 0) -> Columns:
    """Requests of a day with a latency of 12 ms on average, and some errors."""
    rows = past(rng, n, span_ms=DAY)
    rows = rows.append_column("latency_ms", pa.array(slow * rng.gamma(4, 3, n)))
    failed = ["timeout" if i < errors else None for i in range(n)]
    return columns(rows.append_column("error", pa.array(failed, pa.string())))


SERVED = build(SPEC, lambda: [served(np.random.default_rng(2), 5_000, errors=50)])


@pytest.mark.parametrize(
    ("rule", "value", "limit", "status"),
    [
        ({"statistic": "latency_p99", "above": 100}, 61.0, 100.0, "ok"),
        ({"statistic": "latency_p99", "above": 50}, 61.0, 50.0, "breach"),
        ({"statistic": "latency_p95", "times": 1.5}, 47.0, 35.0, "breach"),
        ({"statistic": "latency_p50", "rises_by": 20}, 22.5, 31.0, "ok"),
        ({"statistic": "request_error_rate", "above": 0.05}, 0.03, 0.05, "ok"),
        ({"statistic": "request_error_rate", "times": 2}, 0.03, 0.02, "breach"),
        ({"statistic": "requests", "below": 0.1}, 2_000 / 86_400, 0.1, "breach"),
    ],
)
def test_a_limit_by_hand_holds_for_how_requests_are_served(
    rule: dict[str, Any], value: float, limit: float, status: VerdictStatus
) -> None:
    day = profile_of(SERVED, served(np.random.default_rng(3), 2_000, slow=2, errors=60))
    key = SeriesKey(MODEL, "7", "", SERVED.layout.bins_id)
    said = Judge(key, with_rules(rule), SERVED).window(START, DAY, day)
    assert said is not None
    (found,) = [v for v in said.verdicts if v.statistic == rule["statistic"]]
    assert (found.kind, found.status) == ("service", status)
    assert found.value == pytest.approx(value, rel=0.07)
    assert found.limit == pytest.approx(limit, rel=0.07)


def test_a_percentile_of_few_requests_and_the_rate_of_a_part_of_a_window_say_nothing() -> None:
    every = with_rules(
        *({"statistic": f"latency_p{p}", "above": 0} for p in (50, 95, 99)),
        {"statistic": "request_error_rate", "above": 0},
        {"statistic": "requests", "above": 0},
    )
    key = SeriesKey(MODEL, "7", "", SERVED.layout.bins_id)

    def statuses(n: int, *, whole: bool, known: Reference = SERVED) -> dict[str, str]:
        pane = served(np.random.default_rng(4), n, errors=1)
        day = profile_of(known, pane)
        said = Judge(key, every, known).window(START, DAY, day, whole=whole)
        assert said is not None
        wanted = {rule.statistic for rule in every.rules}
        return {v.statistic: v.status for v in said.verdicts if v.statistic in wanted}

    assert statuses(499, whole=True) == {
        "latency_p50": "breach", "latency_p95": "breach", "latency_p99": "no_data",
        "request_error_rate": "breach", "requests": "breach",
    }  # fmt: skip
    few = statuses(49, whole=False)
    assert few.pop("request_error_rate") == "breach"
    assert few == {f"latency_p{p}": "no_data" for p in (50, 95, 99)}
    assert "request_error_rate" not in statuses(4, whole=False)
    assert statuses(500, whole=False)["latency_p99"] == "breach"
    # A reference that has no latencies, or was made by a release that cut them otherwise, promises no percentiles.
    assert statuses(500, whole=True, known=REFERENCE)["latency_p99"] == "no_data"


def test_a_pane_whose_breaches_are_ignored_says_nothing() -> None:
    rows = past(np.random.default_rng(6), 200, span_ms=HOUR)
    wind = rows.column("wind").to_numpy() + 0.123  # off the grid
    rows = rows.set_column(rows.schema.get_field_index("wind"), "wind", pa.array(wind))
    pane = profile_of(REFERENCE, columns(rows))
    broken = judge(SPEC).pane(START, HOUR, pane)
    assert broken is not None
    assert {v.statistic for v in broken.verdicts} == {"off_grid"}
    assert judge(with_rules({"feature": "wind", "ignore": True})).pane(START, HOUR, pane) is None
    other = judge(with_rules({"feature": "temp", "ignore": True})).pane(START, HOUR, pane)
    assert other == broken
