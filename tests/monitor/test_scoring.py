from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from monitor.scoring import OTHER_CLASS, Outcomes, Place, measure
from monitor.spec import ModelSpec
from monitor.versions import OTHER_VERSION
from monitor.wire import Performance
from tests.monitor.builders import START, spec

HOUR = 3_600_000


class Row(NamedTuple):
    """A labelled prediction."""

    version: str
    carrier: str
    prediction: str | None
    label: str
    hour: int = 0


def outcomes(rows: Sequence[Row]) -> Outcomes:
    n = len(rows)
    return Outcomes(
        ts_ms=np.array([START + row.hour * HOUR for row in rows], dtype=np.int64),
        label_ms=np.full(n, START + 9 * HOUR),
        labels=np.ones(n, dtype=np.int64),
        version=pa.array([row.version for row in rows], pa.string()),
        segments=pa.array([[f"carrier={row.carrier}"] for row in rows], pa.list_(pa.string())),
        prediction=pa.array([row.prediction for row in rows], pa.string()),
        score=np.full(n, np.nan),
        label=pa.array([row.label for row in rows], pa.string()),
    )


def places(rows: Sequence[Row]) -> dict[Place, int]:
    found: dict[Place, int] = {}
    for row in rows:
        for segment in ("", f"carrier={row.carrier}"):
            place = row.version, segment, START + row.hour * HOUR
            found[place] = found.get(place, 0) + 1
    return found


def measured(chosen: ModelSpec, rows: Sequence[Row]) -> dict[Place, Performance]:
    messages = measure(chosen, HOUR, places(rows), outcomes(rows), final_ms=None)
    return {(m.version, m.segment, m.start_ms): m for m in messages}


ROWS = [
    *[Row("7", "UA", "1", "1")] * 6,
    *[Row("7", "UA", "1", "0")] * 2,
    *[Row("7", "B6", "0", "1")] * 3,
    *[Row("7", "B6", "0", "0")] * 5,
    *[Row("8", "UA", "1", "0")] * 4,
    *[Row("8", "B6", None, "1")],
    Row("7", "UA", "1", "1", hour=1),
]


def test_a_protected_group_is_compared_with_everyone_else() -> None:
    found = measured(spec(protected=["carrier"]), ROWS)
    message = found["7", "carrier=UA", START]
    assert message.metrics["selection_rate_gap"] == 1.0
    assert message.metrics["recall_gap"] == 1.0
    assert message.metrics["fpr_gap"] == 1.0
    low, high = message.intervals["recall_gap"]
    assert low < 1.0 == pytest.approx(high)
    assert "recall_gap" not in found["7", "", START].metrics
    assert "recall_gap" not in measured(spec(), ROWS)["7", "carrier=UA", START].metrics


def test_a_window_says_what_the_other_versions_had_in_it() -> None:
    rows = [*ROWS, *[Row(OTHER_VERSION, "UA", "1", "1")] * 3]
    found = measured(spec(), rows)
    assert found["7", "", START].peers == {"8": (5, 4)}
    assert found["8", "", START].peers == {"7": (16, 5)}
    assert found["7", "", START + HOUR].peers == {}
    assert found["7", "carrier=UA", START].peers == {}


def test_the_confusion_matrix_comes_with_the_names_of_its_classes() -> None:
    message = measured(spec(), ROWS)["7", "", START]
    assert message.classes == [OTHER_CLASS, "1"]
    assert message.confusion == [5, 2, 3, 6]
    several = [Row("7", "UA", said, true) for said, true in zip("abca", "baaa", strict=True)]
    message = measured(spec(task="multiclass"), several)["7", "", START]
    assert message.classes == ["a", "b", "c"]
    assert message.confusion == [1, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("labels", "errors"), [({"tolerance": 2}, 2), ({}, 0)])
def test_a_number_is_wrong_if_it_is_off_by_more_than_the_tolerance(
    labels: dict[str, Any], errors: int
) -> None:
    said = [("10", "11"), ("10", "12"), ("10", "12.5"), ("10", "7"), ("10", "no number")]
    rows = [Row("7", "UA", prediction, label) for label, prediction in said]
    assert measured(spec(task="regression", labels=labels), rows)["7", "", START].errors == errors


def test_the_same_rows_give_the_same_bits_whatever_else_was_read() -> None:
    rng = np.random.default_rng(4)
    rows = [
        Row("7", "UA", f"c{rng.integers(9)}", f"c{rng.integers(9)}", hour=int(rng.integers(3)))
        for _ in range(500)
    ]
    chosen = spec(task="multiclass")
    whole = measured(chosen, rows)
    for hour in range(3):
        alone = measured(chosen, [row for row in rows if row.hour == hour])
        assert all(whole[place] == message for place, message in alone.items())
