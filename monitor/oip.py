"""Requests and responses of the Open Inference Protocol as protobuf, which gRPC and Seldon Core v2's topics carry, as the bodies that JSON has.

A tensor's values come in one of two ways, and never in both::

    typed   contents.fp32_contents, int_contents, ...: the list of its datatype; FP16 and BF16 have none
    raw     raw_input_contents or raw_output_contents: the bytes of each tensor, in the order of the tensors, little-endian;
            of BYTES, each value after its length in 4 bytes

Either becomes a flat list of plain values, row by row. ``monitor.inference`` reads what this returns. Fields that are not
read, parameters among them, are skipped, as protobuf skips those of later versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from monitor.errors import InvalidEventError
from monitor.events import Limits, refuse_large

if TYPE_CHECKING:
    from google.protobuf.message import Message

_LIMITS: Final = Limits()
_MAX_DIMENSIONS: Final = 8
_LENGTH: Final = 4  # bytes before each raw value of BYTES

# Field: number and type, as published; in capitals, one of protobuf's own.
_HEAD: Final = {"model_name": (1, "STRING"), "model_version": (2, "STRING"), "id": (3, "STRING")}
_SCHEMA: Final[Mapping[str, Mapping[str, tuple[int, str]]]] = {
    "InferTensorContents": {
        "bool_contents": (1, "BOOL"),
        "int_contents": (2, "INT32"),
        "int64_contents": (3, "INT64"),
        "uint_contents": (4, "UINT32"),
        "uint64_contents": (5, "UINT64"),
        "fp32_contents": (6, "FLOAT"),
        "fp64_contents": (7, "DOUBLE"),
        "bytes_contents": (8, "BYTES"),
    },
    # InferInputTensor and InferOutputTensor, which are the same.
    "InferTensor": {
        "name": (1, "STRING"),
        "datatype": (2, "STRING"),
        "shape": (3, "INT64"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferRequest": {
        **_HEAD,
        "inputs": (5, "InferTensor"),
        "raw_input_contents": (7, "BYTES"),
    },
    "ModelInferResponse": {
        **_HEAD,
        "outputs": (5, "InferTensor"),
        "raw_output_contents": (6, "BYTES"),
    },
}
_ONCE: Final = frozenset({*_HEAD, "name", "datatype", "contents"})  # the others are repeated

_LISTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_RAW: Final = {
    "BOOL": "<u1",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "BF16": "<u2",  # the upper half of an FP32
    "FP32": "<f4",
    "FP64": "<f8",
}


def request_body(value: bytes, limits: Limits = _LIMITS) -> dict[str, Any]:
    """A ModelInferRequest as ``{"model_name", "model_version"?, "id"?, "inputs": [{"name", "shape", "datatype", "data"}]}``.

    ``data`` is flat, of bool, int, float (NaN and infinities as they are) or str; FP32 and smaller are widened, not rounded.

    Raises:
        InvalidEventError: it is no such message, is too large, has more tensors than an event has features, no tensor, or one whose values
            are not of its datatype and shape: 1 to 8 dimensions of 1 to 2^32 - 1.
    """
    return _body(value, limits, "ModelInferRequest", "inputs", "raw_input_contents")


def response_body(value: bytes, limits: Limits = _LIMITS) -> dict[str, Any]:
    """A ModelInferResponse in the same way, with ``outputs``.

    Raises:
        InvalidEventError: as for a request.
    """
    return _body(value, limits, "ModelInferResponse", "outputs", "raw_output_contents")


@cache
def message_classes() -> Mapping[str, type[Message]]:
    """The protobuf classes by name, with the fields that are read.

    In a pool of their own: generated code of the same protocol, in the same process, does not get in their way.
    """
    # Importing them takes 0.1 s, which only who reads this format should spend.
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="oip", package="inference", syntax="proto3")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            made = message.field.add(name=field, number=number)
            made.label = field_type.LABEL_OPTIONAL if field in _ONCE else field_type.LABEL_REPEATED
            if kind in _SCHEMA:
                made.type, made.type_name = field_type.TYPE_MESSAGE, f".inference.{kind}"
            else:
                made.type = field_type.Type.Value(f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"inference.{name}") for name in _SCHEMA}
    return {name: message_factory.GetMessageClass(each) for name, each in found.items()}


def _body(value: bytes, limits: Limits, kind: str, side: str, raw_side: str) -> dict[str, Any]:
    refuse_large(value, limits)
    message = _parsed(value, kind)
    tensors, raws = getattr(message, side), getattr(message, raw_side)
    n = len(tensors)
    if not n:
        raise InvalidEventError("missing_field", f"a {kind} without {side}")
    if n > limits.features:
        raise InvalidEventError("too_large", f"{n} {side}; the bound is {limits.features}")
    if raws and len(raws) != n:
        raise InvalidEventError("wrong_type", f"{n} {side}, and {len(raws)} {raw_side}")
    optional = {"model_version": message.model_version, "id": message.id}
    return {
        "model_name": message.model_name,
        **{name: said for name, said in optional.items() if said},
        side: [_tensor(tensor, raws[i] if raws else None) for i, tensor in enumerate(tensors)],
    }


def _parsed(value: bytes, kind: str) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return message_classes()[kind].FromString(value)
    except DecodeError:
        raise InvalidEventError("wrong_type", f"no {kind} of the Open Inference Protocol") from None


def _tensor(tensor: Any, raw: bytes | None) -> dict[str, Any]:
    """A tensor of JSON. ``raw``: its bytes, if that is how the message gives them."""
    name, datatype, shape = tensor.name, tensor.datatype, tensor.shape
    if not (1 <= len(shape) <= _MAX_DIMENSIONS and all(1 <= n < 1 << 32 for n in shape)):
        raise _wrong(name, f"its shape is not 1 to {_MAX_DIMENSIONS} numbers from 1 to 2^32 - 1")
    if datatype not in _RAW and datatype != "BYTES":
        raise _wrong(name, "of no datatype that we know")
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    n = prod(shape)
    if raw is None:
        data = _typed(name, datatype, n, tensor.contents, filled)
    elif filled:
        raise _wrong(name, "it has contents, and raw contents too")
    elif datatype == "BYTES":
        data = [_text(name, each) for each in _split(name, n, raw)]
    else:
        data = _numbers(name, datatype, n, raw)
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


def _typed(name: str, datatype: str, n: int, contents: Any, filled: list[str]) -> list[Any]:
    field = _LISTS.get(datatype)
    if field is None:
        raise _wrong(name, f"{datatype} comes in raw contents only")
    if any(other != field for other in filled):
        raise _wrong(name, f"{datatype} comes in {field}, not in {', '.join(filled)}")
    values = getattr(contents, field)
    if len(values) != n:
        raise _wrong(name, f"{len(values)} values are not of its shape")
    return [_text(name, value) for value in values] if datatype == "BYTES" else list(values)


def _numbers(name: str, datatype: str, n: int, raw: bytes) -> list[Any]:
    dtype = np.dtype(_RAW[datatype])
    if n * dtype.itemsize != len(raw):
        raise _wrong(name, f"{len(raw)} bytes of {datatype} are not of its shape")
    values = np.frombuffer(raw, dtype)
    if datatype == "BOOL":
        return list((values != 0).tolist())
    if datatype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return list(values.tolist())


def _split(name: str, n: int, raw: bytes) -> list[bytes]:
    """The raw values of BYTES."""
    values, at = [], 0
    while at < len(raw):
        start = at + _LENGTH
        at = start + int.from_bytes(raw[at:start], "little")
        values.append(raw[start:at])
    if at > len(raw):  # of the last value, or already of its length
        raise _wrong(name, "a value of its raw contents is cut off")
    if len(values) != n:
        raise _wrong(name, f"{len(values)} values are not of its shape")
    return values


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _wrong(name, "a value of BYTES is no UTF-8: only text is watched") from None


def _wrong(name: str, detail: str) -> InvalidEventError:
    return InvalidEventError("wrong_type", f"tensor {name[:64]}: {detail}")
