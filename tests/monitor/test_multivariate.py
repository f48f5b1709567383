"""From a spec to a verdict: vectors in the reference, in profiles that merge, and in a window that has changed in no single feature."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from monitor import reference as references
from monitor.binning import Floats
from monitor.columns import Columns, decode_sample, encode_sample, from_batch, from_events
from monitor.counting import Grouping, profile_groups
from monitor.errors import ConfigError, IncompatibleError
from monitor.events import Event, Limits, decode_message
from monitor.mmd import MIN_VECTORS, Finding, find
from monitor.profile import Layout, Profile
from monitor.reference import Reference
from monitor.spec import ModelSpec, parse_spec
from monitor.tables import bins_rows, to_table
from tests.monitor.builders import HOUR, MODEL, NOW, START, body, event

DIM = 6


def spec(**changes: object) -> ModelSpec:
    document: dict[str, object] = {
        "model": MODEL,
        "features": {
            "a": {"type": "numeric"},
            "b": {"type": "numeric"},
            "c": {"type": "numeric"},
            "text": {"type": "embedding", "dim": DIM},
        },
        "multivariate": {"abc": ["a", "b", "c"]},
        "windows": {"pane": "10s", "sizes": ["1m", "10m"]},
        "segments": ["tags.region"],
    }
    return parse_spec({**document, **changes}, origin="test")


def rows(
    seed: int, n: int = 3_000, *, rho: float = 0.0, turn: float = 0.0, start_ms: int = START
) -> pa.RecordBatch:
    """Three normals, of which the first two are correlated by ``rho``; an embedding on a plane that is turned."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n))
    b = rho * a + np.sqrt(1 - rho**2) * b
    plane = rng.normal(size=(n, DIM)).astype(np.float32)
    plane[:, 1] = np.cos(turn) * plane[:, 0] + 0.1 * plane[:, 1]
    flat = pa.array(plane.ravel())
    return pa.record_batch(
        {
            "ts": pa.array(np.sort(rng.integers(start_ms, start_ms + HOUR, n)), pa.int64()),
            "a": a * 40 + 7,
            "b": b,
            "c": c,
            "text": pa.FixedSizeListArray.from_arrays(flat, DIM),
            "tags": pa.array([{"region": "us" if x < 0.7 else "eu"} for x in rng.random(n)]),
        }
    )


def columns(batch: pa.RecordBatch) -> Columns:
    return from_batch(batch, origin="test")


KNOWN = references.build(spec(), lambda: [columns(rows(1, 20_000))])


def profile(table: Columns, known: Reference = KNOWN) -> Profile:
    whole = Grouping(np.zeros(table.n, dtype=np.intp), 1)
    return table.profiles(known.layout, [whole])[0][0]


def findings(batch: pa.RecordBatch, segment: str = "", size_ms: int = 600_000) -> dict[str, Finding]:  # fmt: skip
    nulls = KNOWN.vector_nulls[segment][size_ms]
    found = find(nulls, KNOWN.profiles[segment], profile(columns(batch)))
    return {f.name: f for f in found}


def events(batch: pa.RecordBatch) -> list[Event]:
    bodies: list[dict[str, Any]] = [
        event(row.pop("ts"), tags=row.pop("tags"), features=row) for row in batch.to_pylist()
    ]
    outcomes = decode_message(body(bodies), {}, Limits(), now_ms=NOW)
    return [outcome for outcome in outcomes if isinstance(outcome, Event)]


def test_a_broken_correlation_and_a_turned_embedding_are_found_each_in_its_vector() -> None:
    clean = findings(rows(2))
    assert all(f.verdict(0.001).status == "ok" for f in clean.values())
    assert {f.p_value > 1e-3 for f in findings(rows(3, rho=0.5)).values()} == {True, False}
    assert findings(rows(3, rho=0.5))["abc"].p_value < 1e-6
    turned = findings(rows(4, turn=1.0))
    assert turned["text"].p_value < 1e-9
    assert turned["abc"].p_value > 1e-3
    verdict = turned["text"].verdict(0.001)
    assert (verdict.status, verdict.kind, verdict.statistic) == ("breach", "data_drift", "mmd")
    assert verdict.value is not None
    assert verdict.limit is not None
    assert verdict.value > verdict.limit > 0
    assert verdict.n == 3_000


def test_of_clean_windows_no_more_are_passed_than_may_be() -> None:
    p = [f.p_value for seed in range(60) for f in findings(rows(100 + seed, 300)).values()]
    # 120 windows at level 0.05: more than 18 with probability 1e-5.
    assert sum(x < 0.05 for x in p) <= 18
    assert min(p) > 1e-5


def test_segments_have_their_own_expectation() -> None:
    assert set(KNOWN.vector_nulls) == {
        "",
        "tags.region=us",
        "tags.region=eu",
    }
    assert findings(rows(5, 600), "tags.region=eu")["abc"].p_value > 1e-3
    assert KNOWN.vector_nulls["tags.region=eu"][600_000]["abc"].m < 10_000


def test_too_few_vectors_say_nothing() -> None:
    few = findings(rows(6, MIN_VECTORS - 1))["abc"]
    verdict = few.verdict(0.05)
    assert (verdict.status, verdict.value, verdict.p_value) == ("no_data", None, None)
    gone = rows(6, 300).drop_columns(["text"])
    assert findings(gone)["text"].verdict(0.05).status == "no_data"
    assert findings(gone)["abc"].verdict(1e-6).status == "ok"


def test_profiles_with_vectors_merge_exactly_however_they_were_cut_and_came() -> None:
    """As Arrow in one batch, and as JSON in many, from samples and by segment."""
    batch = rows(7, 500)
    whole = profile(columns(batch))
    names = KNOWN.layout.features
    assert names == ("a", "b", "c", "text")
    taken = decode_sample(MODEL, encode_sample(events(batch)))
    for listed in (events(batch), taken):
        parts = [profile(from_events(listed[i : i + 37], names)) for i in range(0, 500, 37)]
        merged = reduce(add, reversed(parts), Profile.zero(KNOWN.layout))
        assert merged.to_bytes() == whole.to_bytes()
    group = np.random.default_rng(1).integers(0, 5, 500)
    by_group = columns(batch).profiles(KNOWN.layout, [Grouping(group, 5)])[0]
    assert reduce(add, by_group).vector.tolist() == whole.vector.tolist()
    again = Profile.from_bytes(KNOWN.layout, whole.to_bytes())
    assert again.vector.tolist() == whole.vector.tolist()


def test_events_that_come_as_arrow_hold_the_same_vectors_as_json() -> None:
    batch = rows(12, 40)
    names = KNOWN.layout.features
    features = pa.StructArray.from_arrays([batch.column(name) for name in names], names)
    table = pa.table({"ts": batch.column("ts"), "model": [MODEL] * 40, "features": features})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    outcomes = decode_message(sink.getvalue().to_pybytes(), {}, Limits(), now_ms=NOW)
    taken = from_events([e for e in outcomes if isinstance(e, Event)], names)
    assert profile(taken).vector.tolist() == profile(columns(batch)).vector.tolist()
    assert KNOWN.layout.vectors[1].state(profile(taken).vector).n == 40


def test_a_reference_with_vectors_round_trips_and_its_id_covers_them() -> None:
    form = msgspec.json.decode(msgspec.json.encode(KNOWN.to_dict()))
    again = Reference.from_dict(form)
    assert again.reference_id == KNOWN.reference_id
    assert again.layout.bins_id == KNOWN.layout.bins_id
    null = KNOWN.vector_nulls[""][60_000]["abc"]
    assert again.vector_nulls[""][60_000]["abc"].limit(500, 1e-6) == null.limit(500, 1e-6)
    without = Layout(KNOWN.layout.bins)
    assert without.bins_id != KNOWN.layout.bins_id
    assert profile(columns(rows(8, 100)), again).layout.size > without.size
    form["bins"]["abc"]["fourier"]["map_id"] = "0" * 16
    with pytest.raises(IncompatibleError):
        Reference.from_dict(form)


def test_the_stored_binning_of_a_model_gives_its_layout_again() -> None:
    stored = to_table("bins", bins_rows(MODEL, KNOWN.profiles[""], 1)).to_pylist()
    forms = {row["feature"]: msgspec.json.decode(row["form"]) for row in stored}
    assert Layout.of(forms).bins_id == KNOWN.layout.bins_id
    kinds = {row["feature"]: row["kind"] for row in stored}
    assert kinds["abc"] == kinds["text"] == "vector"


def test_a_model_without_vectors_has_the_binning_that_it_had() -> None:
    plain = references.build(
        spec(features={"a": {"type": "numeric"}}, multivariate={}), lambda: [columns(rows(1, 500))]
    )
    assert plain.vector_nulls == {}
    assert plain.layout.vectors == ()
    assert plain.layout.size == plain.layout.fields[-1].moments.stop


def test_encoded_columns_are_not_enough_for_vectors() -> None:
    table = columns(rows(9, 10))
    fields: Floats = np.zeros(table.n)
    with pytest.raises(ValueError, match="raw columns"):
        profile_groups(KNOWN.layout, table.encode(KNOWN.layout), table.errors, fields.astype(np.intp), 1)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"text": {"type": "embedding"}}, "multivariate": {}}, "give dim"),
        ({"features": {"a": {"type": "numeric", "dim": 3}}, "multivariate": {}}, "give dim"),
        ({"multivariate": {"abc": ["a"]}}, "two features"),
        ({"multivariate": {"abc": ["a", "a"]}}, "two features"),
        ({"multivariate": {"abc": ["a", "text"]}}, "as numeric"),
        ({"multivariate": {"abc": ["a", "unknown"]}}, "as numeric"),
        ({"multivariate": {"a": ["a", "b"]}}, "name of a field"),
        ({"multivariate": {f"g{i}": ["a", "b"] for i in range(8)}}, "at most 8"),
    ],
)
def test_a_spec_that_makes_no_vector_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**changes)


def test_a_reference_without_a_single_vector_has_a_defined_map_and_says_nothing() -> None:
    batch = rows(10, 200).drop_columns(["text"])
    known = references.build(spec(), lambda: [columns(batch)])
    found = find(known.vector_nulls[""][60_000], known.profiles[""], profile(columns(rows(11)), known))  # fmt: skip
    assert {f.name: f.verdict(0.05).status for f in found}["text"] == "no_data"
