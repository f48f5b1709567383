from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monitor import reference as references
from monitor.reference import Reference
from tests.monitor.builders import START, columns, past, spec


def built(task: str, rows: dict[str, Any], labels: dict[str, Any] | None = None) -> Reference:
    n = len(rows["prediction"])
    batch = pa.record_batch({"ts": START + np.arange(n), **rows})
    chosen = spec(task=task, features={}, segments=[], labels=labels or {})
    return references.build(chosen, lambda: [columns(batch.slice(0, 2)), columns(batch.slice(2))])


def test_cells_say_for_each_bin_of_the_score_what_a_plain_loop_says() -> None:
    rows = past(np.random.default_rng(3), 3_000)
    known = references.build(spec(), lambda: [columns(rows)])
    bins = known.layout.by_name["$score"].bins
    expected = np.zeros((bins.bins, 4), dtype=np.int64)
    codes = bins.encode(rows["score"]).codes
    for i, (label, said) in enumerate(
        zip(rows["label"].to_pylist(), rows["prediction"].to_pylist(), strict=True)
    ):
        expected[codes[i], 2 * label + said] += 1
    assert known.meaning is not None
    assert known.meaning.cells.tolist() == expected.tolist()
    assert (known.labelled, known.accuracy) == (3_000, expected[:, [0, 3]].sum() / 3_000)


@pytest.mark.parametrize("label", [[True, False, True, False], ["1", "0", "1.0", "false"]])
def test_a_label_may_be_written_in_another_way_than_the_prediction(label: list[Any]) -> None:
    known = built("binary", {"prediction": [1, 0, 0, 0], "label": label})
    assert (known.accuracy, known.labelled) == (0.75, 4)


def test_of_several_classes_right_and_wrong_are_counted_by_confidence() -> None:
    rows = {
        "prediction": ["a", "b", "c", "a", None],
        "label": ["a", "b", "a", None, "a"],
        "score": [0.9, 0.9, 0.4, 0.4, 0.4],
    }
    known = built("multiclass", rows)
    assert known.meaning is not None
    cells = known.meaning.cells[known.meaning.cells.any(axis=1)]
    assert cells.tolist() == [[1, 0], [0, 2]]  # 0.4: one wrong; 0.9: two right
    assert (known.accuracy, known.labelled) == (2 / 3, 3)


def test_nine_in_ten_numbers_of_the_reference_are_right_unless_the_spec_says_what_is() -> None:
    truth = np.arange(100.0)
    rows = {"prediction": truth + np.arange(1.0, 101.0), "label": truth}
    known = built("regression", rows)
    assert (known.tolerance, known.accuracy, known.meaning) == (90.0, 0.9, None)
    by_hand = built("regression", rows, labels={"tolerance": 25})
    assert (by_hand.tolerance, by_hand.accuracy) == (25.0, 0.25)
    assert Reference.from_dict(known.to_dict()).tolerance == 90.0


def test_a_reference_of_numbers_without_labels_knows_no_tolerance() -> None:
    known = built("regression", {"prediction": [1.0, 2.0, 3.0]})
    assert (known.tolerance, known.accuracy, known.labelled) == (None, None, 0)
