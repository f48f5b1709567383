from __future__ import annotations

from typing import Any
from unicodedata import category

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitor import reference as references
from monitor.binning import NumericBins
from monitor.columns import feature_names, from_events
from monitor.draft import draft, read_draft
from monitor.events import Event
from monitor.spec import ModelSpec

START = 1_738_317_600_000
HOUR = 3_600_000


def events(
    features: dict[str, list[Any]], every_ms: int = 1_000, **others: list[Any]
) -> list[Event]:
    """One event for each value of the lists; ``id`` counts them."""
    n = max(map(len, [*features.values(), *others.values()]))
    return [
        Event(
            "churn",
            0,
            id=i,
            features={name: values[i] for name, values in features.items()},
            ts_ms=START + i * every_ms,
            **{name: values[i] for name, values in others.items()},
        )
        for i in range(n)
    ]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=2), scalars)


@given(
    st.dictionaries(st.text(max_size=20), st.lists(values, min_size=3, max_size=3), max_size=5),
    st.lists(values, min_size=3, max_size=3),
    st.lists(st.none() | st.floats(0, 1), min_size=3, max_size=3),
)
def test_whatever_the_events_hold_the_draft_is_a_spec(
    features: dict[str, list[Any]], predictions: list[Any], scores: list[float | None]
) -> None:
    sample = events(features, prediction=predictions, score=scores)
    text = draft("churn", sample)
    spec = read_draft(text)
    assert spec.model == "churn"
    assert spec.features.keys() <= features.keys()
    assert [c for c in text if category(c) == "Cc" and c != "\n"] == []


@given(
    st.lists(
        st.lists(st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3), min_size=4, max_size=4),
        min_size=1,
        max_size=4,
    )
)  # fmt: skip
def test_kinds_are_those_that_a_reference_would_infer(columns: list[list[Any]]) -> None:
    sample = events({f"f{i}": column for i, column in enumerate(columns)})
    rows = from_events(sample, feature_names(sample))
    layout = references.build(ModelSpec(model="churn"), lambda: [rows]).layout
    inferred = {
        field.name: "numeric" if isinstance(field.bins, NumericBins) else "categorical"
        for field in layout.fields
        if not field.name.startswith("$")
    }
    drafted = read_draft(draft("churn", sample)).features
    assert {name: feature.type for name, feature in drafted.items()} == inferred


@pytest.mark.parametrize(
    ("predictions", "task"),
    [
        ([None] * 30, "none"),
        ([0, 1] * 15, "binary"),
        ([True, False] * 15, "binary"),
        (["yes", "no"] * 15, "binary"),
        ([1] * 30, "binary"),
        (["a", "b", "c"] * 10, "multiclass"),
        ([1, 2, 3] * 10, "multiclass"),
        ([*range(30)], "regression"),
        ([i / 7 for i in range(1, 31)], "regression"),
        ([float("nan"), 0, 1] * 10, "binary"),
        ([[1, 2]] * 30, "none"),
    ],
)
def test_the_task_is_guessed_from_the_predictions(predictions: list[Any], task: str) -> None:
    assert read_draft(draft("churn", events({}, prediction=predictions))).task == task


def test_the_positive_class_is_the_one_whose_scores_are_higher() -> None:
    def positive(predictions: list[Any]) -> object:
        sample = events({}, prediction=predictions, score=[0.9, 0.2] * 15)
        return read_draft(draft("churn", sample)).score.positive_class

    assert positive(["stays", "goes"] * 15) == "stays"
    assert positive([2, 3] * 15) == "2"
    assert positive([0, 1] * 15) == 1  # by convention, whatever the scores say
    assert positive([False, True] * 15) == 1


def test_what_a_person_should_decide_is_marked() -> None:
    rng = np.random.default_rng(7)
    sample = events(
        {
            "user": [f"u{i}" for i in range(300)],
            "plan": rng.integers(0, 4, 300).tolist(),
            "zip": [str(10_000 + i % 90) for i in range(300)],
            "country": ["DE", "FR"] * 150,
            "empty": [None] * 300,
            "place": [{"lat": 1.0}] * 300,
            "text": [[0.1, 0.2, 0.3]] * 300,
            "ragged": [[1], [1, 2]] * 150,
        }
    )
    sample[0].id = None
    text = draft("churn", sample)
    for said in (
        "user: {type: categorical}  # (?) 300 values in 300 events: an id?",
        "plan: {type: numeric}  # (?) few values: if they are codes",
        "zip: {type: categorical}  # (?) numbers as text",
        "country: {type: categorical}\n",
        "text: {type: embedding, dim: 3}\n",
        "# left out: empty: no value",
        "# left out: place: neither numbers nor texts",
        "# left out: ragged: lists that are not of one length",
        "# segments: [country]",
        "1 events have no id to join labels by",
    ):
        assert said in text
    assert "u17" not in text
    assert read_draft(text).features["text"].dim == 3


@pytest.mark.parametrize(
    ("every_ms", "sizes"),
    [(100, ["1m", "1h"]), (10_000, ["1h", "1d"]), (HOUR, ["1d", "1w"]), (0, ["1m", "1h"])],
)
def test_windows_are_as_long_as_the_rate_asks_for(every_ms: int, sizes: list[str]) -> None:
    document = yaml.safe_load(draft("churn", events({"a": [1] * 500}, every_ms)))
    assert document["windows"]["sizes"] == sizes


@pytest.mark.parametrize("name", ["on", "a: b", "x\nmodel: evil", "# x", "\x85\u2028", "é", "- 1", "1e3", "'\"", "a" * 999, "[", ""])  # fmt: skip
def test_a_name_that_yaml_would_read_otherwise_is_quoted(name: str) -> None:
    spec = read_draft(draft("churn", events({name: ["a", "b"] * 15, "empty " + name: [None] * 30})))
    assert [*spec.features] == [name]


def test_a_name_that_is_too_long_for_yaml_is_left_out() -> None:
    text = draft("churn", events({"a" * 2_000: [1, 2]}))
    assert read_draft(text).features == {}
    assert "# left out: aaa...: its name is too long" in text


def test_nine_embeddings_are_one_too_many() -> None:
    sample = events({f"e{i}": [[1.0, 2.0]] * 3 for i in range(9)})
    assert len(read_draft(draft("churn", sample)).features) == 8
