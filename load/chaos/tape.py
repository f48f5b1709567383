"""The file of a chaos run: messages in the order of production, each behind its lengths.

It is the single truth: what is produced is read from it, and so is what is expected. Standard library only, for the oracle imports it::

    | partition u8 | headers u8 | value u32 |  then per header | name u8 | value u16 | name | value |  then the value
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

_MESSAGE: Final = struct.Struct("<BBI")
_HEADER: Final = struct.Struct("<BH")


@dataclass(frozen=True, slots=True)
class Message:
    """A message for ``partition`` of ``predictions``."""

    partition: int
    value: bytes
    headers: Mapping[str, bytes] = field(default_factory=dict)


def append(file: BinaryIO, message: Message) -> None:
    """Write a message behind those that are there."""
    file.write(_MESSAGE.pack(message.partition, len(message.headers), len(message.value)))
    for name, value in message.headers.items():
        file.write(_HEADER.pack(len(name), len(value)) + name.encode("ascii") + value)
    file.write(message.value)


def messages(path: Path) -> Iterator[Message]:
    """The messages of a file, in order.

    Raises:
        ValueError: the file ends inside a message.
    """
    with path.open("rb") as file:
        while head := file.read(_MESSAGE.size):
            if len(head) < _MESSAGE.size:
                raise ValueError(f"{path}: ends inside a message")
            partition, headers, size = _MESSAGE.unpack(head)
            named = dict(_header(file) for _ in range(headers))
            value = file.read(size)
            if len(value) < size:
                raise ValueError(f"{path}: ends inside a message")
            yield Message(partition, value, named)


def _header(file: BinaryIO) -> tuple[str, bytes]:
    name, value = _HEADER.unpack(file.read(_HEADER.size))
    return file.read(name).decode("ascii"), file.read(value)
