"""Bytes of the Open Inference Protocol become the bodies that JSON has, or an error that says why: of every datatype, and of bytes that nobody wrote on purpose."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import InvalidEventError
from monitor.events import Limits
from monitor.inference import About, Reading, event_rows
from monitor.oip import message_classes, request_body, response_body
from tests.monitor import oip_wire
from tests.monitor.oip_wire import DATATYPES, LISTS, How, Tensor, field, request, response, varint
from tests.simulation.mutants import in_time, mutants

LIMITS = Limits()

READERS: Final = (request_body, response_body)

# Written out from the published numbers, a field on a line: tag, length, payload.
REQUEST: Final = bytes.fromhex(
    "0a 04 69726973"  # 1 model_name "iris"
    "12 01 32"  # 2 model_version "2"
    "1a 02 6131"  # 3 id "a1"
    "22 07 0a0178 12020801"  # 4 parameters, skipped: "x" is true
    "2a 1c"  # 5 inputs
    "0a 01 78"  # . 1 name "x"
    "12 04 46503332"  # . 2 datatype "FP32"
    "1a 02 0201"  # . 3 shape [2, 1]
    "2a 0a"  # . 5 contents
    "32 08 0000003f 000020c0"  # . . 6 fp32_contents [0.5, -2.5]
    "98 06 07"  # . 99, of a later version: 7
    "32 03 0a0179"  # 6 outputs asked for, skipped: "y"
)
RESPONSE: Final = bytes.fromhex(
    "0a 04 69726973"
    "2a 0e"  # 5 outputs
    "0a 01 79"
    "12 05 494e543634"  # . "INT64"
    "18 02"  # . 3 shape [2], not packed
    "22 00"  # . 4 parameters, empty
    "32 10 ffffffffffffffff 0300000000000000"  # 6 raw_output_contents [-1, 3]
)


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(max_size=9)
    if datatype == "BF16":
        halves = st.integers(0, (1 << 16) - 1)
        return halves.map(lambda half: struct.unpack("<f", struct.pack("<I", half << 16))[0])
    bits = int("".join(filter(str.isdigit, datatype)))
    if datatype.startswith("FP"):
        return st.floats(width=cast("Any", bits))
    if datatype.startswith("U"):
        return st.integers(0, (1 << bits) - 1)
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)


@st.composite
def tensors(draw: st.DrawFn, datatype: str, how: How) -> Tensor:
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    n = math.prod(shape)
    values = draw(st.lists(values_of(datatype), min_size=n, max_size=n))
    return Tensor(draw(st.text(max_size=5)), datatype, shape, values, how)


def refused(value: bytes, read: Callable[..., Any] = request_body, limits: Limits = LIMITS) -> str:
    with pytest.raises(InvalidEventError) as caught:
        read(value, limits)
    return str(caught.value)


def one(datatype: str = "INT64", shape: tuple[int, ...] = (2,), body: bytes = b"") -> bytes:
    """A request of one tensor, of which contents may be anything."""
    return request(Tensor("x", datatype, shape, (), "raw"))[:-2] + body


def test_a_request_as_published() -> None:
    assert request_body(REQUEST) == {
        "model_name": "iris",
        "model_version": "2",
        "id": "a1",
        "inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [0.5, -2.5]}],
    }


def test_a_response_as_published() -> None:
    assert response_body(RESPONSE) == {
        "model_name": "iris",
        "outputs": [{"name": "y", "shape": [2], "datatype": "INT64", "data": [-1, 3]}],
    }


@pytest.mark.parametrize("how", get_args(How))
@pytest.mark.parametrize("datatype", DATATYPES)
@given(st.data())
def test_every_datatype_comes_back(datatype: str, how: How, data: st.DataObject) -> None:
    if how != "raw" and datatype not in LISTS:
        tensor = Tensor("x", datatype, [1], [1.0], "raw")
        typed = request(tensor)[: -len(field(7, oip_wire.raw(tensor)))]
        assert "raw contents only" in refused(typed)
        return
    said = data.draw(st.lists(tensors(datatype, how), min_size=1, max_size=3))
    expected = [each.body for each in said]
    for write, read, side in ((request, request_body, "inputs"), (response, response_body, "outputs")):  # fmt: skip
        body = read(write(*said, version="3", id_="a"))
        # By repr: 1 is not True, nor 1.0; and NaN is NaN.
        assert repr(body) == repr({"model_name": "m", "model_version": "3", "id": "a", side: expected})  # fmt: skip


@given(st.data())
def test_what_protobuf_itself_writes_is_what_the_published_numbers_say(data: st.DataObject) -> None:
    tensor = data.draw(st.sampled_from(sorted(LISTS)).flatmap(lambda kind: tensors(kind, "packed")))
    texts = tensor.datatype == "BYTES"
    values = [value.encode() for value in tensor.values] if texts else tensor.values
    lists = message_classes()["InferTensorContents"].DESCRIPTOR.fields
    (name,) = [each.name for each in lists if each.number == LISTS[tensor.datatype][0]]
    message: Any = message_classes()["ModelInferRequest"](model_name="m", id="a")
    made = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    getattr(made.contents, name).extend(values)
    written = message.SerializeToString(deterministic=True)
    assert repr(request_body(written)["inputs"]) == repr([tensor.body])
    assert repr(request_body(request(tensor, id_="a"))) == repr(request_body(written))


def test_bodies_become_predictions() -> None:
    features = (
        Tensor("age", "FP32", [2, 1], [1.5, math.nan], "raw"),
        Tensor("city", "BYTES", [2], ["Ulm", "Köln"], "raw"),
    )
    asked = request_body(request(*features))
    answered = response_body(response(Tensor("predict", "INT64", [2], [0, 1]), version="7"))
    found = event_rows(About("m", "a", 1_000), Reading(), asked, answered)
    frame = {"ts": 1_000, "model": "m", "version": "7"}
    assert [msgspec.json.decode(row) for row in found] == [
        {"id": "a-0", **frame, "features": {"age": 1.5, "city": "Ulm"}, "prediction": 0},
        {"id": "a-1", **frame, "features": {"age": None, "city": "Köln"}, "prediction": 1},
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param(b"", "missing_field: a ModelInferRequest without inputs", id="nothing"),
        pytest.param(b"{}", "wrong_type: no ModelInferRequest of", id="JSON"),
        pytest.param(REQUEST[:-1], "wrong_type: no ModelInferRequest of", id="cut off"),
        pytest.param(field(1, b"\xff"), "wrong_type: no ModelInferRequest of", id="a name, no UTF-8"),
        pytest.param(one("INT65"), "tensor x: of no datatype", id="datatype"),
        pytest.param(one("FP16", (1,)), "FP16 comes in raw contents only", id="FP16, typed"),
        pytest.param(one(shape=()), "its shape is not", id="no dimension"),
        pytest.param(one(shape=(1,) * 9), "its shape is not", id="dimensions"),
        pytest.param(one(shape=(2, 0)), "its shape is not", id="a dimension of 0"),
        pytest.param(one(shape=(-1, -1)), "its shape is not", id="negative dimensions"),
        pytest.param(one(shape=(1 << 32,)), "its shape is not", id="a dimension of 2^32"),
        pytest.param(one(), "0 values are not of its shape", id="no contents"),
        pytest.param(
            request(Tensor("x", "INT32", [3], [1, 2])), "2 values are not of its shape", id="values"
        ),
        pytest.param(
            request(Tensor("x", "INT32", [3], [1, 2], "raw")),
            "8 bytes of INT32 are not of its shape",
            id="too few raw bytes",
        ),
        pytest.param(
            request(Tensor("x", "INT32", [1], [1, 2], "raw")),
            "8 bytes of INT32 are not of its shape",
            id="too many raw bytes",
        ),
        pytest.param(
            request(Tensor("x", "BYTES", [3], ["a", "b"], "raw")),
            "2 values are not of its shape",
            id="raw texts",
        ),
        pytest.param(
            field(5, field(1, "x") + field(2, "INT32") + field(3, b"\1") + field(5, field(3, b"\1"))),
            "INT32 comes in int_contents, not in int64_contents",
            id="the list of another datatype",
        ),
        pytest.param(
            request(Tensor("x", "INT8", [1], [1])) + field(7, b"\1"),
            "it has contents, and raw contents too",
            id="both",
        ),
        pytest.param(
            request(Tensor("x", "INT8", [1], [1], "raw")) + field(7, b"\1"),
            "1 inputs, and 2 raw_input_contents",
            id="raw contents of no tensor",
        ),
        pytest.param(
            request(Tensor("x", "BYTES", [1], ["ab"], "raw"))[:-8] + field(7, b"\3\0\0\0ab"),
            "a value of its raw contents is cut off",
            id="a raw text is cut off",
        ),
        pytest.param(
            request(Tensor("x", "BYTES", [1], ["ab"], "raw"))[:-8] + field(7, b"\2\0\0"),
            "a value of its raw contents is cut off",
            id="the length of a raw text is cut off",
        ),
        pytest.param(
            request(Tensor("x", "BYTES", [1], ["ab"], "raw"))[:-8] + field(7, b"\1\0\0\0\xff"),
            "a value of BYTES is no UTF-8",
            id="no UTF-8, raw",
        ),
        pytest.param(
            field(5, field(1, "x") + field(2, "BYTES") + field(3, b"\1") + field(5, field(8, b"\xff"))),
            "a value of BYTES is no UTF-8",
            id="no UTF-8",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(value: bytes, said: str) -> None:
    assert said in refused(value)


def test_an_error_quotes_no_value_and_little_of_a_name() -> None:
    said = refused(request(Tensor("n" * 10_000, "BYTES", [2], ["hunter2"])))
    assert "hunter2" not in said
    assert len(said) < 200


@pytest.mark.parametrize("read", READERS)
def test_the_length_is_bounded(read: Callable[..., Any]) -> None:
    value = {request_body: request, response_body: response}[read](Tensor("x", "INT8", [1], [1]))
    assert read(value, Limits(message_bytes=len(value))) == read(value)
    said = refused(value, read, Limits(message_bytes=len(value) - 1))
    assert said == f"too_large: {len(value)} bytes; the bound is {len(value) - 1}"
    assert refused(bytes(LIMITS.message_bytes + 1), read).startswith("too_large")


def test_the_number_of_tensors_is_bounded() -> None:
    most = [Tensor(f"x{i}", "BOOL", [1], [True]) for i in range(LIMITS.features)]
    assert len(request_body(request(*most))["inputs"]) == LIMITS.features
    assert refused(request(*most, most[0])).startswith(f"too_large: {LIMITS.features + 1} inputs")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"\x2a\x00" * (LIMITS.message_bytes // 2), id="empty tensors"),
        pytest.param(b"\x3a\x00" * (LIMITS.message_bytes // 2), id="empty raw contents"),
        pytest.param(one(body=field(5, field(3, b"\1" * 1_000_000))), id="a long shape"),
        pytest.param(field(5, field(3, b"\1" * 1_000_000)), id="a shape of a million dimensions"),
        pytest.param(field(5, b"\x2a\x00" * 500_000), id="contents over and over"),
        pytest.param(b"\x53" * LIMITS.message_bytes, id="groups in groups"),
        pytest.param(one("BYTES", (1,)) + field(7, bytes(1_000_000)), id="empty raw texts"),
        pytest.param(request(Tensor("x", "BOOL", [1_000_000], [True] * 1_000_000)), id="a great many values"),
    ],
)  # fmt: skip
def test_the_worst_of_a_mebibyte_takes_bounded_time_and_memory(value: bytes) -> None:
    assert len(value) <= LIMITS.message_bytes
    tracemalloc.start()
    try:
        with suppress(InvalidEventError):
            in_time(lambda: request_body(value))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200), st.sampled_from(READERS))
def test_any_bytes_are_a_body_or_an_invalid_event(value: bytes, read: Callable[..., Any]) -> None:
    with suppress(InvalidEventError):
        read(value)


GOOD: Final = (
    REQUEST,
    RESPONSE,
    request(Tensor("a", "BYTES", [2], ["x", "Köln"], "raw"), Tensor("b", "BF16", [1], [1.5], "raw")),
    request(Tensor("a", "BYTES", [2], ["x", "y"]), Tensor("b", "FP64", [2, 1], [1.5, -0.0], "singly")),
    response(Tensor("a", "UINT64", [1, 2], [1, 1 << 63]), Tensor("b", "BOOL", [1], [True]), id_="a"),
)  # fmt: skip


@given(mutants(GOOD), st.sampled_from(READERS))
def test_damaged_messages_are_bodies_of_whole_tensors_or_invalid_events(
    value: bytes, read: Callable[..., Any]
) -> None:
    try:
        body = in_time(lambda: read(value))
    except InvalidEventError:
        return
    assert body.keys() - {"model_version", "id"} <= {"model_name", "inputs", "outputs"}
    for tensor in body.get("inputs", body.get("outputs")):
        assert math.prod(tensor["shape"]) == len(tensor["data"])
        assert {type(v) for v in tensor["data"]} <= {bool, int, float, str}
        assert len({type(v) for v in tensor["data"]}) == 1
    msgspec.json.encode(body)


@given(st.sampled_from(GOOD), st.data())
def test_a_message_that_was_cut_off_has_no_value_that_nobody_sent(
    value: bytes, data: st.DataObject
) -> None:
    read = response_body if value in (RESPONSE, GOOD[-1]) else request_body
    side = "outputs" if read is response_body else "inputs"
    whole = read(value)[side]
    cut = value[: data.draw(st.integers(0, len(value) - 1))]
    with suppress(InvalidEventError):
        found = read(cut)[side]
        assert repr(found) == repr(whole[: len(found)])


@given(st.integers(100, (1 << 29) - 1), st.integers(0, (1 << 64) - 1), st.binary(max_size=50))
def test_fields_of_later_versions_are_skipped(number: int, n: int, payload: bytes) -> None:
    later = varint(number << 3) + varint(n) + field(number, payload)
    tensor = Tensor("x", "INT8", [1], [1])
    inner = field(5, oip_wire.tensor_bytes(tensor) + later)
    assert request_body(later + field(1, "m") + inner + later) == request_body(request(tensor))


def test_who_does_not_read_this_format_does_not_load_protobuf() -> None:
    found = "import sys, monitor.oip; sys.exit('google.protobuf' in sys.modules)"
    subprocess.run([sys.executable, "-c", found], check=True)
