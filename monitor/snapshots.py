"""The state of a detector as bytes: a version, then msgpack. Whatever cannot be read is refused by name, never guessed at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from monitor.errors import IncompatibleError

_T = TypeVar("_T")


def seal(version: int, state: Any) -> bytes:
    """``state`` behind its ``version``, which fits one byte."""
    return bytes([version]) + msgspec.msgpack.encode(state)


def unseal(what: str, version: int, body: bytes, revive: Callable[[memoryview], _T]) -> _T:
    """What ``revive`` makes of the state in ``body``.

    Raises:
        IncompatibleError: of another version; or damaged, if ``revive`` finds the state or a value in it impossible. Names ``what`` it is of.
    """
    if body[:1] != bytes([version]):
        raise IncompatibleError(
            f"{what} snapshot of version {body[:1].hex() or 'none'}; this release reads {version:02x}"
        )
    try:
        return revive(memoryview(body)[1:])
    except (msgspec.MsgspecError, ValueError, IndexError) as err:
        raise IncompatibleError(f"damaged {what} snapshot") from err
