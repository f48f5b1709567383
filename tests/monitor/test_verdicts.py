"""What a window's numbers are called: clean, drift, broken data, or too few to say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from monitor import reference as references
from monitor.budget import Levels
from monitor.reference import Reference
from monitor.verdicts import (
    MIN_LABELLED,
    MIN_RATE,
    MIN_VALUES,
    judge_pane,
    judge_performance,
    judge_window,
)
from monitor.wire import Performance, Verdict
from tests.monitor.builders import DAY, HOUR, START, columns, past, profile_of, spec

LEVELS = Levels({DAY: 1e-4}, {DAY: 1e-4}, 1e-5, 1e-5, 1e6, {DAY: 1e-4})
SPEC = spec(windows={"pane": "1h", "sizes": ["1d"]})


def known() -> Reference:
    rows = past(np.random.default_rng(1), 40_000, span_ms=40 * DAY)
    return references.build(SPEC, lambda: [columns(rows)])


REFERENCE = known()


def window(n: int = 1_000, seed: int = 5, **changed: object) -> pa.RecordBatch:
    """A clean day with some columns replaced."""
    rows = past(np.random.default_rng(seed), n, start_ms=START + 50 * DAY, span_ms=DAY)
    for name, values in changed.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values))
    return rows


def judged(rows: pa.RecordBatch, segment: str = "", *, whole: bool = True) -> list[Verdict]:
    profile = profile_of(REFERENCE, columns(rows))
    return judge_window(REFERENCE, segment, profile, size_ms=DAY, levels=LEVELS, whole=whole)


def pane(rows: pa.RecordBatch) -> list[Verdict]:
    profile = profile_of(REFERENCE, columns(rows))
    return judge_pane(REFERENCE, "", profile, size_ms=HOUR, levels=LEVELS)


def broken(verdicts: list[Verdict]) -> set[tuple[str, str, str]]:
    return {(v.kind, v.feature, v.statistic) for v in verdicts if v.status == "breach"}


def wind(rows: pa.RecordBatch) -> np.ndarray:
    return np.asarray(rows.column("wind").to_numpy())


def some_missing(share: float, n: int = 1_000) -> list[float | None]:
    values = wind(window(n)).tolist()
    return [None if i < share * n else v for i, v in enumerate(values)]


def new_carriers(share: float, n: int = 1_000) -> list[str]:
    values = window(n).column("carrier").to_pylist()
    return ["WN" if i < share * n else v for i, v in enumerate(values)]


def test_clean_days_break_no_limit_and_every_field_is_judged() -> None:
    for seed in range(20):
        verdicts = judged(window(seed=seed))
        assert not broken(verdicts)
        assert {v.statistic for v in verdicts if v.feature == "wind"} == {"psi", "ks"}
        compared = {v.feature for v in verdicts if v.statistic == "psi"}
        assert compared == {"wind", "carrier", "$prediction", "$score"}
        assert all(v.p_value is None or 0 < v.p_value <= 1 for v in verdicts)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        pytest.param(
            window(wind=wind(window()) * 1.609),
            {
                ("data_quality", "wind", "off_grid"),
                ("data_drift", "wind", "psi"),
                ("data_drift", "wind", "ks"),
            },
            id="km/h instead of mph leave the lattice",
        ),
        pytest.param(
            window(wind=np.round(wind(window()) / 1.15 * 1.5) * 1.15),
            {("data_drift", "wind", "psi"), ("data_drift", "wind", "ks")},
            id="half as much wind again is weather",
        ),
        pytest.param(
            window(carrier=new_carriers(0.01)),
            {("data_drift", "carrier", "unseen")},
            id="a new category at 1 % is drift",
        ),
        pytest.param(
            window(carrier=new_carriers(0.4)),
            {("data_quality", "carrier", "unseen"), ("data_drift", "carrier", "psi")},
            id="a new category at 40 % is broken data",
        ),
        pytest.param(
            window(wind=some_missing(0.4)),
            {("data_quality", "wind", "missing")},
            id="a jump of the missing values is broken data",
        ),
        pytest.param(
            window(wind=some_missing(0.02)),
            {("data_drift", "wind", "missing")},
            id="a few more missing values are drift",
        ),
        pytest.param(
            window(wind=[str(w) for w in wind(window())]),
            {("data_quality", "wind", "wrong_type")},
            id="numbers sent as text are broken data",
        ),
        pytest.param(
            window(score=np.random.default_rng(1).beta(2, 5, 1_000)),
            {("prediction_drift", "$score", "psi"), ("prediction_drift", "$score", "ks")},
            id="scores that move are prediction drift",
        ),
        pytest.param(
            window(prediction=np.ones(1_000, dtype=int)),
            {("prediction_drift", "$prediction", "psi")},
            id="one class only is prediction drift",
        ),
    ],
)
def test_what_is_wrong_has_its_name(rows: pa.RecordBatch, found: set[tuple[str, str, str]]) -> None:
    assert broken(judged(rows)) == found


def test_an_unseen_category_is_named_as_a_hint() -> None:
    (unseen,) = [v for v in judged(window(carrier=new_carriers(0.4))) if v.statistic == "unseen"]
    assert unseen.evidence == {"reference": 0.0, "examples": "WN"}
    assert unseen.value == 0.4


@pytest.mark.parametrize(
    ("n", "silent"),
    [
        (0, {"psi", "ks", "rates"}),
        (MIN_RATE - 1, {"psi", "ks", "rates"}),
        (MIN_RATE, {"psi", "ks"}),
        (MIN_VALUES - 1, {"psi", "ks"}),
        (MIN_VALUES, set()),
    ],
)
def test_below_its_minimum_sample_a_statistic_says_so_and_never_that_all_is_well(
    n: int, silent: set[str]
) -> None:
    verdicts = judged(window(n, carrier=new_carriers(0.2, n)) if n else window(1).slice(1))
    assert {v.statistic for v in verdicts if v.status == "no_data"} == silent
    assert not silent & {v.statistic for v in verdicts if v.status != "no_data"}
    assert all(v.value is None for v in verdicts if v.status == "no_data")


def test_a_field_without_values_says_so_though_the_window_is_large() -> None:
    verdicts = judged(window(wind=pa.nulls(1_000, pa.float64())))
    of_wind = {(v.statistic, v.status) for v in verdicts if v.feature == "wind"}
    assert of_wind == {("psi", "no_data"), ("ks", "no_data"), ("missing", "breach")}


def test_the_limit_and_the_p_value_agree_however_many_values_are_missing() -> None:
    """Both are about the values that are there: with nine in ten missing, what is left scatters more and is no drift."""
    levels = replace(LEVELS, distributions={DAY: 0.05})
    false_alarms = 0
    for seed in range(60):
        values = wind(window(3_000, seed=seed)).tolist()
        rows = window(
            3_000, seed=seed, wind=[v if i % 10 == 0 else None for i, v in enumerate(values)]
        )
        profile = profile_of(REFERENCE, columns(rows))
        verdicts = judge_window(REFERENCE, "", profile, size_ms=DAY, levels=levels)
        compared = [v for v in verdicts if v.statistic in ("psi", "ks") and v.p_value is not None]
        assert "wind" in {v.feature for v in compared}
        for v in compared:
            assert v.value is not None
            assert v.limit is not None
            assert (v.status == "breach") == (v.value > v.limit)
        false_alarms += any(v.status == "breach" for v in compared)
    assert false_alarms <= 10  # 60 families at 5 %: more than 10 has a probability of 3e-4


def test_a_part_of_a_window_is_judged_by_its_rates_alone() -> None:
    verdicts = judged(window(wind=wind(window()) * 1.609), whole=False)
    assert broken(verdicts) == {("data_quality", "wind", "off_grid")}
    assert ("no_data", "", "distribution", "no_data") in [
        (v.kind, v.feature, v.statistic, v.status) for v in verdicts
    ]


def test_a_segment_that_the_reference_does_not_have_is_no_data() -> None:
    (verdict,) = judged(window(), "carrier=ZZ")
    assert (verdict.kind, verdict.statistic, verdict.status) == ("no_data", "reference", "no_data")


def test_a_segment_is_compared_with_itself() -> None:
    """All of one carrier: drift of the whole, and nothing new for the segment."""
    rows = window(carrier=["UA"] * 1_000)
    assert ("data_drift", "carrier", "psi") in broken(judged(rows))
    assert not broken(judged(rows, "carrier=UA"))


class TestPanes:
    def test_clean_panes_and_shifts_are_silent(self) -> None:
        assert pane(window(60)) == []
        assert pane(window(60, wind=np.round(wind(window(60)) / 1.15 * 3) * 1.15)) == []

    def test_broken_data_does_not_wait_for_the_window(self) -> None:
        assert broken(pane(window(60, wind=wind(window(60)) * 1.609))) == {
            ("data_quality", "wind", "off_grid")
        }

    def test_a_pane_of_a_few_events_says_nothing(self) -> None:
        few = MIN_RATE - 1
        assert pane(window(few, wind=[None] * few)) == []


def performance(accuracy: float | None, labelled: int = 500) -> Performance:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    errors = 0 if accuracy is None else round(labelled * (1 - accuracy))
    return Performance("m", "7", "", DAY, START, 1, 2 * labelled, labelled, errors, True, metrics)


@pytest.mark.parametrize(
    ("accuracy", "labelled", "status"),
    [
        pytest.param(0.8, 500, "ok", id="as ever"),
        pytest.param(0.78, 500, "ok", id="within chance"),
        pytest.param(0.65, 500, "breach", id="a fall"),
        pytest.param(1.0, 500, "ok", id="better is never bad news"),
        pytest.param(0.0, MIN_LABELLED - 1, "no_data", id="too few labels"),
        pytest.param(0.5, MIN_LABELLED, "breach", id="just enough labels"),
    ],
)
def test_only_a_fall_of_the_accuracy_is_bad_news(
    accuracy: float, labelled: int, status: str
) -> None:
    (verdict,) = judge_performance(performance(accuracy, labelled), REFERENCE, alpha=1e-5)
    assert (verdict.kind, verdict.status) == ("performance", status)
    if status != "no_data":
        assert verdict.p_value is not None
        assert (verdict.p_value < 1e-5) == (status == "breach")


def test_without_labels_in_the_reference_or_an_accuracy_there_is_no_verdict() -> None:
    rows = past(np.random.default_rng(1), 500).drop_columns(["label"])
    unlabelled = references.build(SPEC, lambda: [columns(rows)])
    assert judge_performance(performance(0.1), unlabelled, alpha=0.01) == []
    assert judge_performance(performance(None), REFERENCE, alpha=0.01) == []


def test_a_perfect_reference_still_allows_for_chance() -> None:
    rows = past(np.random.default_rng(1), 500)
    same = rows.set_column(rows.schema.get_field_index("label"), "label", rows.column("prediction"))
    perfect = references.build(SPEC, lambda: [columns(same)])
    assert perfect.accuracy == 1.0
    (one,) = judge_performance(performance(0.998), perfect, alpha=1e-5)
    (many,) = judge_performance(performance(0.8), perfect, alpha=1e-5)
    assert (one.status, many.status) == ("ok", "breach")


def test_a_window_size_without_a_level_is_no_data() -> None:
    """A window from before the spec changed: the reference knows the size, the budget does not."""
    without = replace(LEVELS, distributions={}, rates={})
    profile = profile_of(REFERENCE, columns(window()))
    (verdict,) = judge_window(REFERENCE, "", profile, size_ms=DAY, levels=without)
    assert (verdict.status, verdict.statistic) == ("no_data", "reference")


def with_errors(rows: pa.RecordBatch, share: float, rng: np.random.Generator) -> pa.RecordBatch:
    failed = [("timeout" if x < share else None) for x in rng.random(rows.num_rows)]
    return rows.append_column("error", pa.array(failed, pa.string()))


def of_requests(known: Reference, rows: pa.RecordBatch) -> list[Verdict]:
    profile = profile_of(known, columns(rows))
    found = judge_window(known, "", profile, size_ms=DAY, levels=LEVELS)
    return [v for v in found if v.statistic == "request_error_rate"]


def with_usual_errors(share: float) -> Reference:
    rng = np.random.default_rng(2)
    rows = past(rng, 8_000, span_ms=40 * DAY)
    return references.build(SPEC, lambda: [columns(with_errors(rows, share, rng))])


@pytest.mark.parametrize(
    ("usual", "share", "status"),
    [(0.01, 0.01, "ok"), (0.01, 0.06, "breach"), (0.0, 0.05, "breach"), (0.2, 0.2, "ok")],
)
def test_more_requests_with_an_error_than_usual_are_a_breach_of_the_service(
    usual: float, share: float, status: str
) -> None:
    known = with_usual_errors(usual)
    (found,) = of_requests(known, with_errors(window(), share, np.random.default_rng(3)))
    assert (found.kind, found.feature, found.status) == ("service", "", status)
    assert found.value is not None
    assert found.value == pytest.approx(share, abs=0.03)
    assert found.evidence["reference"] == pytest.approx(usual, abs=0.01)
    assert found.limit is not None
    assert found.p_value is not None
    assert (found.value > found.limit) == (status == "breach")
    assert (found.p_value < LEVELS.rates[DAY]) == (status == "breach")
    assert of_requests(known, window()) == [], "no error is never a breach"


def test_a_reference_that_did_not_ask_for_errors_judges_none_and_keeps_its_hash() -> None:
    known = with_usual_errors(0.01)
    form = known.to_dict()
    for null in form["nulls"][""].values():
        assert null.pop("errors")[0] == pytest.approx(80, abs=30)
    old = Reference.from_dict(form)
    assert of_requests(old, with_errors(window(), 0.5, np.random.default_rng(3))) == []
    assert old.to_dict() == form
    assert Reference.from_dict(known.to_dict()).to_dict() == known.to_dict()
