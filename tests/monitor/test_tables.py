from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monitor.tables import SCHEMAS, TABLES, arrivals, scored_table, to_table, value_text

START = 1_359_676_800_000


def scored(**changed: Any) -> pa.Table:
    columns = {
        "id": ["a", "b"],
        "ts": pa.array([START, START + 1], pa.timestamp("ms", "UTC")),
        "model": ["m", "m"],
        "version": ["7", "7"],
        "segments": [["carrier=UA"], []],
        "prediction": ["1", None],
        "score": [0.5, None],
    }
    return pa.table({**columns, **changed})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (1, "1"),
        (1.0, "1"),
        (True, "1"),
        ("1", "1"),
        ("1.0", "1"),
        ("True", "1"),
        ("true", "1"),
        (0, "0"),
        (False, "0"),
        ("false", "0"),
        (-3.0, "-3"),
        (0.1, "0.1"),
        ("1.50", "1.50"),
        ("late", "late"),
        (2**70, str(2**70)),
    ],
)
def test_equal_classes_have_one_text(value: object, text: str | None) -> None:
    assert value_text(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}, "x" * 257])
def test_what_is_no_class_and_no_finite_number_has_no_text(value: object) -> None:
    with pytest.raises(ValueError, match="neither a class nor a finite number"):
        value_text(value)


@pytest.mark.parametrize(
    ("segments", "names"),
    [
        ([["carrier=UA"], []], [["carrier=UA"], []]),
        (
            pa.array([[("carrier", "UA"), ("origin", "")], []], pa.map_(pa.string(), pa.string())),
            [["carrier=UA", "origin="], []],
        ),
    ],
)
def test_segments_may_be_names_or_maps(segments: Any, names: list[list[str]]) -> None:
    rows = scored_table(scored(segments=segments), origin="0:1")
    assert rows.column("segments").to_pylist() == names


@pytest.mark.parametrize(
    "prediction",
    [
        pa.array([1, None]),
        pa.array([1.0, None]),
        pa.array([True, None]),
        pa.array(["1.0", None]),
        pa.array(["true", None]).dictionary_encode(),
    ],
)
def test_predictions_of_every_type_become_the_text_of_their_class(prediction: pa.Array) -> None:
    rows = scored_table(scored(prediction=prediction), origin="0:1")
    assert rows.column("prediction").to_pylist() == ["1", None]


def test_times_may_be_timestamps_or_milliseconds() -> None:
    as_ms = scored_table(scored(ts=[START, START + 1]), origin="0:1")
    assert as_ms.equals(scored_table(scored(), origin="0:1"))


def test_a_row_without_an_id_gets_one_from_its_place_at_every_reading() -> None:
    ids = scored_table(scored(id=pa.array(["a", None])), origin="2:9").column("id").to_pylist()
    assert ids == ["a", "@2:9:1"]


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(KeyError):
        scored_table(scored().drop_columns(["version"]), origin="0:1")


def test_an_empty_message_has_no_rows() -> None:
    rows = scored_table(scored().slice(0, 0), origin="0:1")
    assert rows.num_rows == arrivals("scored", 0, 0, rows).num_rows == 0


def test_chunks_of_a_message_are_one_table() -> None:
    both = pa.concat_tables([scored(), scored(id=["c", "d"])])
    rows = scored_table(both, origin="0:1")
    assert rows.column("id").to_pylist() == ["a", "b", "c", "d"]
    arrived = arrivals("scored", 3, 7, rows)
    assert arrived.schema == SCHEMAS["arrivals"]
    assert arrived.column("position").to_pylist() == [7] * 4


def test_rows_become_columns_and_a_value_that_does_not_fit_is_an_error() -> None:
    row = ("m", START, "a", "1", 5)
    table = to_table("labels", [row])
    assert table.schema == SCHEMAS["labels"]
    assert np.asarray(table.column("position")).tolist() == [5]
    with pytest.raises((pa.ArrowException, OverflowError)):
        to_table("labels", [("m", START, "a", "1", -5)])
    assert all(to_table(name, []).num_rows == 0 for name in TABLES)
