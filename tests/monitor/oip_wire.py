"""Messages of the Open Inference Protocol, byte by byte from its published field numbers: knows nothing of ``monitor.oip``."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

How = Literal["packed", "singly", "raw"]

# Of a list of contents: its number, and how a value is written, by struct or as a varint.
LISTS: Final = {
    "BOOL": (1, ""),
    "INT8": (2, ""),
    "INT16": (2, ""),
    "INT32": (2, ""),
    "INT64": (3, ""),
    "UINT8": (4, ""),
    "UINT16": (4, ""),
    "UINT32": (4, ""),
    "UINT64": (5, ""),
    "FP32": (6, "<f"),
    "FP64": (7, "<d"),
    "BYTES": (8, ""),
}
RAW: Final = {
    "BOOL": "<?",
    "INT8": "<b",
    "INT16": "<h",
    "INT32": "<i",
    "INT64": "<q",
    "UINT8": "<B",
    "UINT16": "<H",
    "UINT32": "<I",
    "UINT64": "<Q",
    "FP16": "<e",
    "FP32": "<f",
    "FP64": "<d",
}
DATATYPES: Final = (*RAW, "BF16", "BYTES")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    datatype: str
    shape: Sequence[int]
    values: Sequence[Any]
    how: How = "packed"

    @property
    def body(self) -> dict[str, Any]:
        """What JSON would say."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "datatype": self.datatype,
            "data": list(self.values),
        }


def varint(n: int) -> bytes:
    n %= 1 << 64  # of negative numbers, all ten bytes
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def field(number: int, payload: bytes | str) -> bytes:
    """One that has a length."""
    said = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(said)) + said


def _contents(tensor: Tensor) -> bytes:
    number, form = LISTS[tensor.datatype]
    if tensor.datatype == "BYTES":
        return b"".join(field(number, value) for value in tensor.values)
    items = [struct.pack(form, v) if form else varint(v) for v in tensor.values]
    if tensor.how == "packed":
        return field(number, b"".join(items))
    wire = {"": 0, "<d": 1, "<f": 5}[form]
    return b"".join(varint(number << 3 | wire) + item for item in items)


def raw(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        said = [value.encode() for value in tensor.values]
        return b"".join(struct.pack("<I", len(value)) + value for value in said)
    if tensor.datatype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in tensor.values)
    return b"".join(struct.pack(RAW[tensor.datatype], value) for value in tensor.values)


def tensor_bytes(tensor: Tensor) -> bytes:
    shape = field(3, b"".join(map(varint, tensor.shape)))
    head = field(1, tensor.name) + field(2, tensor.datatype) + shape
    return head if tensor.how == "raw" else head + field(5, _contents(tensor))


def _message(raw_number: int, tensors: Sequence[Tensor], model: str, version: str, id_: str) -> bytes:  # fmt: skip
    return (
        field(1, model)
        + (field(2, version) if version else b"")
        + (field(3, id_) if id_ else b"")
        + b"".join(field(5, tensor_bytes(tensor)) for tensor in tensors)
        + b"".join(field(raw_number, raw(each)) for each in tensors if each.how == "raw")
    )


def request(*tensors: Tensor, model: str = "m", version: str = "", id_: str = "") -> bytes:
    return _message(7, tensors, model, version, id_)


def response(*tensors: Tensor, model: str = "m", version: str = "", id_: str = "") -> bytes:
    return _message(6, tensors, model, version, id_)
