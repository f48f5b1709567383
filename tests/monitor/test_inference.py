"""What serving stacks write becomes the right predictions: recorded examples, what is refused and how, and bytes that nobody wrote on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from monitor.captures import Said, body_of, capture_of
from monitor.errors import REJECT_REASONS, InvalidEventError
from monitor.events import SIDES, Event, Limits, decode_message, parsed
from monitor.halves import binary, half_of, structured
from monitor.inference import MAX_ROWS, About, Reading, answers_of, event_rows, features_of
from monitor.spec import IngestSpec, ModelSpec
from tests.monitor.door import NOW, Door
from tests.simulation.mutants import in_time, mutants

PAYLOADS = Path(__file__).parents[1] / "contracts" / "payloads"
SHAPES = {path.stem: json.loads(path.read_text()) for path in sorted(PAYLOADS.glob("*.json"))}
ABOUT = About("m", "a", NOW)
SECRET = "hunter2"


def reading(**ingest: Any) -> Reading:
    return Reading(IngestSpec.model_validate(ingest))


def rows(request: object, response: object = None, **ingest: Any) -> list[dict[str, Any]]:
    return [msgspec.json.decode(row) for row in event_rows(ABOUT, reading(**ingest), request, response)]  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_recorded_example_becomes_these_predictions(name: str) -> None:
    shape = SHAPES[name]
    models = {event["model"] for event in shape["events"]}
    door = Door({m: ModelSpec.model_validate({"model": m, "ingest": shape["ingest"]}) for m in models})  # fmt: skip
    client = door.client()
    answers = [
        client.post(post["path"], content=post["body"].encode(), headers=post["headers"])
        for post in shape["posts"]
    ]
    assert [answer.status_code for answer in answers] == [202] * len(answers)
    assert sum(answer.json()["accepted"] for answer in answers) == len(shape["events"])
    assert door.taken() == shape["events"]


def test_each_shape_that_a_logger_writes_has_an_example() -> None:
    said = json.dumps(SHAPES)
    stacks = {kind.rpartition(".")[0] for kind in SIDES}
    assert [stack for stack in stacks if stack not in said] == []


class TestRequests:
    @pytest.mark.parametrize(
        ("body", "features"),
        [
            ({"instances": [{"a": 1, "b": "x"}]}, [{"a": 1, "b": "x"}]),
            ({"instances": [[1, "x"]]}, [{"a": 1, "b": "x"}]),
            ({"inputs": {"a": [1, 2], "b": ["x", "y"]}}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
            ({"inputs": [[1, "x"]]}, [{"a": 1, "b": "x"}]),
            ({"dataframe_records": [{"a": 1}], "params": {}}, [{"a": 1}]),
            ({"dataframe_split": {"columns": ["c"], "index": [0], "data": [[1]]}}, [{"c": 1}]),
            ({"dataframe_split": {"data": [[1, 2]]}}, [{"a": 1, "b": 2}]),
            ({"data": {"ndarray": [[1, 2]]}}, [{"a": 1, "b": 2}]),
            ({"data": {"names": ["x", "y"], "ndarray": [[1, 2]]}}, [{"a": 1, "b": 2}]),
            ([{"a": 1}, {"a": None}], [{"a": 1}, {"a": None}]),
            ({"instances": []}, []),
        ],
    )
    def test_rows_by_form(self, body: object, features: list[dict[str, Any]]) -> None:
        assert features_of(body, reading(features=["a", "b"])) == features

    def test_tensors_are_columns_under_their_names_or_those_of_the_spec(self) -> None:
        tensors = [
            {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]},
            {"name": "y", "shape": [2], "datatype": "BYTES", "data": ["p", "q"]},
        ]
        named = features_of({"inputs": tensors}, reading(features=["a", "b", "c"]))
        assert named == [{"a": 1, "b": 2, "c": "p"}, {"a": 3, "b": 4, "c": "q"}]
        spec = ModelSpec.model_validate({"model": "m", "features": {"x": {"type": "embedding", "dim": 2}}})  # fmt: skip
        wide = features_of({"inputs": tensors}, Reading.of(spec))
        assert wide == [{"x": [1, 2], "y": "p"}, {"x": [3, 4], "y": "q"}]

    def test_a_batch_of_one_tensor_without_its_batch_is_as_many_rows_as_it_has(self) -> None:
        tensor = {"name": "x", "shape": [3], "datatype": "FP32", "data": [1, 2, 3]}
        assert features_of({"inputs": [tensor]}, reading()) == [{"x": 1}, {"x": 2}, {"x": 3}]

    @pytest.mark.parametrize(
        ("body", "reason", "detail"),
        [
            ({"instances": [[1, 2, 3]]}, "missing_field", "ingest: {features: [a, b]}"),
            ({"inputs": [{"name": "x", "shape": [1, 3], "data": [1, 2, 3]}]}, "missing_field", "ingest: {features"),
            ({"inputs": [{"name": "x", "shape": [1, 2]}]}, "missing_field", "binary"),
            ({"inputs": [{"name": "x", "shape": [2], "data": [1]}]}, "wrong_type", "shape"),
            ({"inputs": [{"name": "x", "shape": [1], "data": [1]}] * 2}, "wrong_type", "own name"),
            ({"inputs": [{"name": "x", "shape": [1], "data": [1]}, 5]}, "wrong_type", "own name"),
            ({"inputs": [{"name": "x", "shape": [1], "data": [1]}, {"name": "y", "shape": [2], "data": [1, 2]}]}, "wrong_type", "number of rows"),
            ({"inputs": {"a": [1, 2], "b": [1]}}, "wrong_type", "number of rows"),
            ({"data": {"tensor": {"shape": [2, 2], "values": [1]}}}, "wrong_type", "shape"),
            ({"data": {"strData": SECRET}}, "missing_field", "ndarray"),
            ({"prompt": SECRET}, "missing_field", "instances"),
            (SECRET, "missing_field", "instances"),
            ({"instances": [0] * (MAX_ROWS + 1)}, "too_large", str(MAX_ROWS)),
        ],
    )  # fmt: skip
    def test_what_cannot_be_told_is_said_with_its_remedy(
        self, body: object, reason: str, detail: str
    ) -> None:
        with pytest.raises(InvalidEventError) as caught:
            features_of(body, reading())
        assert (caught.value.reason, SECRET in caught.value.detail) == (reason, False)
        assert detail in caught.value.detail

    def test_the_names_of_the_spec_have_to_be_as_many_as_the_columns(self) -> None:
        with pytest.raises(InvalidEventError, match="3 columns, and 2 names"):
            features_of({"instances": [[1, 2, 3]]}, reading(features=["a", "b"]))
        with pytest.raises(ValidationError, match="twice"):
            reading(features=["a", "a"])


class TestResponses:
    V2: ClassVar = {"outputs": [{"name": "label", "shape": [1], "data": ["x"]}, {"name": "p", "shape": [1, 2], "data": [0.1, 0.9]}]}  # fmt: skip

    @pytest.mark.parametrize(
        ("body", "ingest", "answers"),
        [
            ({"predictions": [1, 0]}, {}, [{"prediction": 1}, {"prediction": 0}]),
            ({"predictions": [[0.7]]}, {}, [{"prediction": 0.7}]),
            ({"predictions": [[0.7]]}, {"score": "predictions"}, [{"score": 0.7}]),
            ({"predictions": [0.7]}, {"score": "predictions[0]"}, [{"score": 0.7}]),
            ({"predictions": [[0.1, 0.9]]}, {"score": "predictions[1]"}, [{"score": 0.9}]),
            ({"predictions": [{"prediction": "x", "score": 0.9, "more": 1}]}, {}, [{"prediction": "x", "score": 0.9}]),
            ({"predictions": [{"class": "x", "p": [0.1, 0.9]}]}, {"prediction": "class", "score": "p[1]"}, [{"prediction": "x", "score": 0.9}]),
            ({"predictions": {"class": ["x", "y"]}}, {}, [{"prediction": "x"}, {"prediction": "y"}]),
            (V2, {"prediction": "label", "score": "p[1]"}, [{"prediction": "x", "score": 0.9}]),
            ({"data": {"names": ["t:0", "t:1"], "ndarray": [[0.1, 0.9]]}}, {"score": "t:1"}, [{"score": 0.9}]),
            ({"data": {"ndarray": [[1], [0]]}}, {}, [{"prediction": 1}, {"prediction": 0}]),
            ([{"prediction": 1}], {}, [{"prediction": 1}]),
        ],
    )  # fmt: skip
    def test_answers_by_form(
        self, body: object, ingest: dict[str, Any], answers: list[dict[str, Any]]
    ) -> None:
        assert answers_of(body, IngestSpec.model_validate(ingest)) == answers

    @pytest.mark.parametrize(
        ("body", "ingest", "reason", "detail"),
        [
            ({"predictions": [[0.1, 0.9]]}, {}, "missing_field", "ingest: {prediction: NAME, score: NAME[1]}; here are: predictions"),
            (V2, {}, "missing_field", "here are: p"),
            ({"predictions": [{"a": 1, "b": 2}]}, {}, "missing_field", "here are: a, b"),
            (V2, {"score": "q"}, "missing_field", "no output q, which ingest of the model's spec names: it has label, p"),
            (V2, {"score": "p[2]"}, "wrong_type", "p has no column 2"),
            ({"predictions": [{str(i): i} for i in range(5_000)]}, {"prediction": "0"}, "too_large", "5000 outputs of 5000 rows"),
            ({"error": SECRET}, {}, "missing_field", "neither predictions, outputs nor data"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_told_is_said_with_its_remedy(
        self, body: object, ingest: dict[str, Any], reason: str, detail: str
    ) -> None:
        with pytest.raises(InvalidEventError) as caught:
            answers_of(body, IngestSpec.model_validate(ingest))
        assert (caught.value.reason, SECRET in caught.value.detail) == (reason, False)
        assert detail in caught.value.detail

    @pytest.mark.parametrize("path", ["p[", "[1]", "p[x]", "p[1][2]", "x" * 129])
    def test_what_names_no_output_is_refused_in_the_spec(self, path: str) -> None:
        with pytest.raises(ValidationError):
            IngestSpec(prediction=path)


def test_rows_of_one_body_are_told_apart_by_their_number() -> None:
    assert [row["id"] for row in rows({"instances": [{"x": 1}]})] == ["a"]
    assert [row["id"] for row in rows({"instances": [{"x": 1}] * 3})] == ["a-0", "a-1", "a-2"]


def test_request_and_response_have_the_same_number_of_rows() -> None:
    with pytest.raises(InvalidEventError, match="2 rows in the request, 1 in the response"):
        rows([{"x": 1}, {"x": 2}], {"predictions": [1]})
    with pytest.raises(InvalidEventError, match="neither a request nor a response"):
        rows(None)


def test_the_version_is_what_the_sender_says_then_the_response_then_the_endpoint() -> None:
    def version(about: About, response: object) -> object:
        (row,) = event_rows(about, reading(), [{"x": 1}], response)
        return msgspec.json.decode(row).get("version")

    said = {"predictions": [1], "model_version": "7"}
    assert version(About("m", "a", NOW, version="8", endpoint="canary"), said) == "8"
    assert version(About("m", "a", NOW, endpoint="canary"), said) == "7"
    assert version(About("m", "a", NOW, endpoint="canary"), {"predictions": [1]}) == "canary"
    assert version(About("m", "a", NOW), {"predictions": [1], "model_version": 7}) is None


def test_of_a_row_that_holds_both_what_is_no_output_is_a_feature() -> None:
    flat = [{"x": 1, "y": 2, "prediction": 0, "score": 0.1}]
    both = {"prediction": 0, "score": 0.1}
    assert rows(flat, flat)[0] | both == rows(flat, flat)[0]
    assert rows(flat, flat)[0]["features"] == {"x": 1, "y": 2}
    assert rows(flat, flat, features=["x"])[0]["features"] == {"x": 1}
    assert rows(flat, flat, prediction="y")[0]["features"] == {"x": 1, "prediction": 0, "score": 0.1}  # fmt: skip


def test_a_small_body_does_not_become_large_by_the_names_of_its_columns() -> None:
    names = [f"{i:0>250}" for i in range(100)]
    few = {"instances": [[0] * 100] * 10}
    assert len(rows(few, features=names)) == 10
    with pytest.raises(InvalidEventError, match="bytes"):
        rows({"instances": [[0] * 100] * 2_000}, features=names)


class TestCaptures:
    @pytest.mark.parametrize(
        ("row", "said", "detail"),
        [
            ({"id": "a", "ts": NOW, "request": []}, Said(), "?model=NAME"),
            ({"ts": NOW, "request": []}, Said("m"), "no id"),
            ({"id": "x" * 201, "ts": NOW, "request": []}, Said("m"), "no id"),
            ({"id": "a", "request": []}, Said("m"), "no time"),
            ({"id": "a", "ts": SECRET, "request": []}, Said("m"), "RFC 3339"),
            ({"id": "a", "ts": "2026-11-21T10:00:00", "request": []}, Said("m"), "?offset="),
            ({"id": "a", "ts": NOW, "request": 5}, Said("m"), "object or a list"),
            ({"id": "a", "ts": NOW, "request": "{"}, Said("m"), "malformed"),
            ({"captureData": {"endpointInput": {"data": 5}}, "eventMetadata": {"eventId": "a", "inferenceTime": "2026-11-21T10:00:00Z"}}, Said("m"), "data is a text"),
            ({"captureData": {"endpointInput": {"data": "!", "encoding": "BASE64"}}, "eventMetadata": {"eventId": "a", "inferenceTime": "2026-11-21T10:00:00Z"}}, Said("m"), "BASE64"),
            ({"captureData": {"endpointInput": {"data": "!", "encoding": "XML"}}, "eventMetadata": {"eventId": "a", "inferenceTime": "2026-11-21T10:00:00Z"}}, Said("m"), "CSV, JSON or BASE64"),
            ({"anything": SECRET}, Said("m"), "no record that we know"),
            ([SECRET], Said("m"), "a record is an object"),
        ],
    )  # fmt: skip
    def test_what_says_too_little_is_refused(self, row: object, said: Said, detail: str) -> None:
        with pytest.raises(InvalidEventError) as caught:
            capture_of(row, said, Limits())
        assert detail in caught.value.detail
        assert SECRET not in caught.value.detail

    def test_what_is_no_number_in_csv_is_a_text_and_an_empty_cell_is_missing(self) -> None:
        side = {"data": '1,,nan,1e999,"a,b"\r\n\r\n2,x,y,z,w\n', "encoding": "CSV"}
        meta = {"eventId": "a", "inferenceTime": "2026-11-21T10:00:00Z"}
        row = {"captureData": {"endpointInput": side}, "eventMetadata": meta}
        capture = capture_of(row, Said("m"), Limits())
        rows_ = [[1, None, "nan", "1e999", "a,b"], [2, "x", "y", "z", "w"]]
        assert (capture.request, capture.response) == ({"instances": rows_}, None)


class TestCloudEvents:
    ATTRIBUTES: ClassVar = {"type": "org.kubeflow.serving.inference.request", "id": "q", "inferenceservicename": "m"}  # fmt: skip

    @pytest.mark.parametrize(
        ("changes", "data", "detail"),
        [
            ({"id": ""}, b"{}", "an id of 1 to 200"),
            ({"id": "x" * 201}, b"{}", "an id of 1 to 200"),
            ({"inferenceservicename": ""}, b"{}", "?model=NAME"),
            ({}, b"", "a request without a body"),
            ({"type": "io.seldon.serving.feedback"}, b"{}", "/api/v1/labels"),
        ],
    )
    def test_what_says_too_little_is_refused(
        self, changes: dict[str, str], data: bytes, detail: str
    ) -> None:
        headers = {f"ce-{name}": text for name, text in (self.ATTRIBUTES | changes).items()}
        with pytest.raises(InvalidEventError) as caught:
            half_of(binary(headers, data), arrival_ms=NOW)
        assert detail in caught.value.detail

    def test_the_address_says_the_model_where_names_are_not_ours(self) -> None:
        headers = {f"ce-{name}": text for name, text in self.ATTRIBUTES.items()}
        half = half_of(binary(headers, b"{}"), arrival_ms=NOW, model="x", version="8")
        assert half is not None
        assert (half.about.model, half.about.version, half.about.ts) == ("x", "8", NOW)

    def test_attributes_of_headers_are_percent_decoded(self) -> None:
        headers = {"ce-type": self.ATTRIBUTES["type"], "ce-id": "caf%C3%A9", "ce-inferenceservicename": "m"}  # fmt: skip
        half = half_of(binary(headers, b"{}"), arrival_ms=NOW)
        assert half is not None
        assert half.about.id == "café"

    def test_a_structured_one_may_hold_bytes(self) -> None:
        value = b'{"type":"t","id":"q","n":5,"data_base64":"eyJhIjoxfQ=="}'
        assert structured(value, Limits()) == ({"type": "t", "id": "q"}, b'{"a":1}')
        for bad in (b'{"data_base64":"!"}', b'{"id":"\xff"}', b"[", b"[1]", b"{" * 50):
            with pytest.raises(InvalidEventError):
                structured(bad, Limits())

    @pytest.mark.parametrize("kind", SIDES)
    def test_a_half_on_the_topic_is_a_dead_letter_that_says_where_it_belongs(
        self, kind: str
    ) -> None:
        body = b'{"instances":[[1]]}'
        as_json = msgspec.json.encode({"type": kind, "id": "a", "data": msgspec.Raw(body)})
        for value, headers in (
            (body, {"ce_type": kind.encode(), "ce_id": b"a"}),
            (body, {"ce-type": kind.encode()}),
            (body, {"type": kind.encode(), "requestid": b"a"}),  # Seldon's own Kafka logger
            (as_json, {"content-type": b"application/cloudevents+json"}),
        ):
            (outcome,) = decode_message(value, headers, Limits(), now_ms=NOW)
            assert isinstance(outcome, InvalidEventError)
            assert "/api/v1/cloudevents" in outcome.detail


BODIES = tuple(
    line.encode()
    for shape in SHAPES.values()
    for post in shape["posts"]
    for line in post["body"].splitlines()
)
INGESTS = (
    reading(),
    reading(features=["a", "b", "c"], prediction="predict", score="predictions[1]"),
    Reading(IngestSpec(), frozenset({"x", "input-0"})),
)


def readable(value: bytes, how: Reading, attributes: Mapping[str, str]) -> None:
    """The property: events that the profiler would take or refuse, or one clear reason."""

    def body() -> object:
        return body_of(parsed(value, Limits()), Limits())

    def decode() -> list[bytes]:
        found: list[bytes] = []
        for read in (
            lambda: event_rows(ABOUT, how, body(), None),
            lambda: event_rows(ABOUT, how, None, body()),
            lambda: event_rows(ABOUT, how, both := body(), both),
            lambda: capture_of(body(), Said("m", offset_min=0), Limits()),
            lambda: structured(value, Limits()),
            lambda: half_of(binary(attributes, value), arrival_ms=NOW),
        ):
            try:
                result = cast("Callable[[], object]", read)()
            except InvalidEventError as err:
                clear(err)
            else:
                found += result if isinstance(result, list) else []
        return found

    for row in in_time(decode):
        for outcome in decode_message(row, {}, Limits(), now_ms=NOW):
            assert isinstance(outcome, Event) or outcome.reason in REJECT_REASONS


def clear(err: InvalidEventError) -> None:
    assert err.reason in REJECT_REASONS
    assert 0 < len(err.detail) < 1_000


@given(mutants(BODIES), st.sampled_from(INGESTS), st.dictionaries(st.sampled_from(["ce-type", "ce-id", "ce-source", "ce-time"]), st.sampled_from(["", "%ff", "x", *SIDES])))  # fmt: skip
@example(b'{"instances":' + b"[0]," * 200_000, INGESTS[1], {})
def test_a_body_that_is_damaged_is_events_or_a_reason(
    value: bytes, how: Reading, attributes: Mapping[str, str]
) -> None:
    readable(value, how, attributes)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "data", "datatype", "ndarray", "names", "columns", "x"]), inner, max_size=4), max_leaves=20)  # fmt: skip
KEYS = st.sampled_from(["instances", "inputs", "outputs", "predictions", "data", "dataframe_split", "dataframe_records", "captureData", "eventMetadata", "request", "response", "timestamp", "request_id", "databricks_request_id", "ts", "id", "model_version"])  # fmt: skip


@given(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, st.sampled_from(INGESTS))
@example({"inputs": [{"name": "x", "shape": [2**31, 2**31], "data": []}]}, INGESTS[0])
@example({"outputs": [{"name": "x", "shape": [True], "data": [1]}]}, INGESTS[0])
@example({"predictions": [{str(i): i} for i in range(3_000)]}, INGESTS[0])
@example({"inputs": {"x": [1] * 400_000}}, INGESTS[0])
def test_any_json_in_any_field_is_events_or_a_reason(value: Any, how: Reading) -> None:
    readable(msgspec.json.encode(value), how, {})
