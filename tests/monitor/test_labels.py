"""Labels in every form that they come in: what is one, what is refused and why, and that reading one again changes nothing."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import InvalidEventError
from monitor.events import join_key, no_aliases
from monitor.labels import (
    MAX_SHOWN,
    Label,
    Receipt,
    checked,
    csv_rows,
    json_rows,
    message_rows,
    sift,
)

NOW = 1_700_000_000_000
TIME, TIME_MS = "2013-02-01T05:17:00Z", 1_359_695_820_000
KEYS = {"m": ("request_id", "tags.call", "ce-id")}


def aliases(model: str) -> tuple[str, ...]:
    return KEYS.get(model, ())


def read(rows: Any) -> tuple[list[Label], Receipt]:
    receipt = Receipt()
    return list(sift(rows, receipt, arrival_ms=NOW, aliases=aliases)), receipt


def read_csv(text: str | bytes) -> tuple[list[Label], Receipt]:
    raw = text.encode() if isinstance(text, str) else text
    return read(csv_rows(io.TextIOWrapper(io.BytesIO(raw), "utf-8", "surrogateescape", newline="")))


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"id": "a", "prediction_id": "b", "request_id": "c"}, "a"),
        ({"id": 7}, "7"),
        ({"prediction_id": "b", "request_id": "c"}, "b"),
        ({"request_id": "c", "tags": {"call": "d"}}, "c"),
        ({"id": None, "prediction_id": None, "request_id": 7}, "7"),
        ({"prediction_id": "", "request_id": [1], "tags": {"call": "d"}}, "d"),
        ({"request_id": True, "tags": {"call": 0}}, "0"),
        ({"tags": "call", "ce-id": "e"}, "e"),
        ({"tags": {}}, "header"),
    ],
)
def test_the_id_is_the_first_of_its_names_that_is_there(row: dict[str, Any], key: str) -> None:
    whole = {"model": "m", "label": 1, **row}
    assert checked(whole, arrival_ms=NOW, aliases=aliases, ce_id="header").id == key


def test_a_label_without_any_id_is_refused_by_the_names_that_were_tried() -> None:
    labels, receipt = read(
        [{"model": "m", "label": 1}, {"model": "other", "label": 1, "request_id": "x"}]
    )
    assert labels == []
    assert [row.detail for row in receipt.shown] == [
        "none of id, prediction_id, request_id, tags.call, ce-id",
        "none of id, prediction_id",
    ]
    assert [row.reason for row in receipt.shown] == ["missing_field"] * 2


def test_nobody_asks_for_the_join_key_of_a_label_that_has_an_id() -> None:
    def never(model: str) -> tuple[str, ...]:
        raise AssertionError(model)

    assert checked({"id": "a", "model": "m", "label": 1}, arrival_ms=NOW, aliases=never).id == "a"


def test_rows_of_csv_are_what_their_json_would_be() -> None:
    labels, receipt = read_csv(
        "id,model,label,ts,note\r\n"
        f'a,m,True,{TIME},"one, ""two""\r\nthree"\r\n'
        f"b,m,1.0,{TIME_MS},\r\n"
        "\r\n"
        f"c,m,0.25,2013-02-01 05:17:00+00:00,\n"
        "7,m,late,,\n"
    )
    assert labels == [
        Label("m", TIME_MS, "a", "1"),
        Label("m", TIME_MS, "b", "1"),
        Label("m", TIME_MS, "c", "0.25"),
        Label("m", NOW, "7", "late"),
    ]
    assert receipt.refused == 0


def test_a_bad_row_of_csv_takes_no_other_with_it_and_is_known_by_its_number() -> None:
    labels, receipt = read_csv(
        b"request_id,model,label,ts\n"
        b"a,m,1,\n"
        b"b,m,1\n"  # 2: a cell is missing
        b",m,1,\n"  # 3: no id
        b"d,m,,\n"  # 4: no label
        b"e,m,1,yesterday\n"  # 5
        b"f,m,1,1359695820\n"  # 6: seconds
        b"\xff,m,1,\n"  # 7: not UTF-8
        b'"h"x,m,1,\n'  # 8: not CSV
        b"i,m,1,\n"
    )
    assert [label.id for label in labels] == ["a", "i"]
    assert [(row.row, row.reason) for row in receipt.shown] == [
        (2, "wrong_type"),
        (3, "missing_field"),
        (4, "missing_field"),
        (5, "bad_timestamp"),
        (6, "bad_timestamp"),
        (7, "wrong_type"),
        (8, "wrong_type"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "missing_field"), ("id,model,id\n", "wrong_type"), ('id,"mo"x\n', "wrong_type")],
)
def test_csv_without_a_usable_header_is_refused_as_a_whole(text: str, reason: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        read_csv(text)
    assert refused.value.reason == reason


def test_a_quote_that_never_ends_is_one_refused_row_and_no_endless_cell() -> None:
    labels, receipt = read_csv("id,model,label\na,m,1\n" + '"b,m,1\n' + "c,m,1\n" * 50_000)
    assert [label.id for label in labels][:1] == ["a"]
    assert 1 <= receipt.refused <= 3


def test_an_item_of_an_array_that_is_no_object_is_refused_alone() -> None:
    good = {"id": "a", "model": "m", "label": 1}
    labels, receipt = read(json_rows(msgspec.json.encode([5, good, {"id": "b"}])))
    assert ([label.id for label in labels], receipt.refused) == (["a"], 2)
    assert [(row.row, row.reason) for row in receipt.shown] == [
        (1, "wrong_type"),
        (3, "missing_field"),
    ]


def test_a_receipt_names_the_first_rows_and_counts_all() -> None:
    _, receipt = read([{"secret": "hunter2"}] * (MAX_SHOWN + 5))
    said = receipt.to_dict()
    assert (len(said["errors"]), said["truncated"]) == (MAX_SHOWN, True)
    assert (said["refused"], said["reasons"]) == (MAX_SHOWN + 5, {"missing_field": MAX_SHOWN + 5})
    assert "hunter2" not in str(said)


@given(
    st.builds(
        Label,
        st.text(min_size=1, max_size=9),
        st.integers(100_000_000_000, NOW),
        st.text(min_size=1, max_size=9),
        st.text(max_size=9),
    )
)
def test_a_label_that_was_read_is_read_again_as_itself(label: Label) -> None:
    (once,) = read(message_rows(label.to_json()))[0]
    (again,) = read(message_rows(once.to_json()))[0]
    assert again == once
    assert (once.id, once.model, once.ts_ms) == (label.id, label.model, label.ts_ms)


@given(st.dictionaries(st.sampled_from(["prediction_id", "request_id", "tags", "ce-id"]), st.from_type(object) | st.dictionaries(st.just("call"), st.none() | st.integers())))  # fmt: skip
def test_a_join_key_is_a_text_or_an_integer_or_none(row: dict[str, Any]) -> None:
    found = join_key(row, KEYS["m"])
    assert found is None or type(found) in (str, int)
    assert join_key({}, no_aliases("m"), "header") is None
