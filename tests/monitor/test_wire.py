"""The envelope of the internal topics: round trips, and a clear word for what it cannot read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import wire
from monitor.errors import IncompatibleError

LINK = wire.Link(0, 5, 9, 7, 1, 4, 1, 1, 1_359_676_800_000, idle=False, jump="retention")
DELTA = wire.Delta("m", "7", "carrier=UA", 10_000, "b1", late=True, profile=b"\x00\xff")
MESSAGES: list[wire.Message] = [
    wire.Profiles([LINK], [DELTA], [wire.Sample("m", 3, b"rows")]),
    wire.Window("m", "7", "", 60_000, 0, "", 60_000, "b1", 12, b"profile"),
    wire.LedgerEntry(0, 4, 9, 1, 5, 9, 7, 1, 4, 1, 1, None),
    wire.Verdicts("window", "m", "7", "", 60_000, 0, 60_000, 5, 0, [], closes=True),
    wire.Performance("m", "7", "", 60_000, 0, 3, 10, 5, 1, True, {"accuracy": 0.8}),
    wire.OutboxItem("i", "slack", "notify", "fired", wire.Incident("i", "m", "7", "drift", "watch", "info", "firing", "t", "r", 1, 2, 3, None, 1)),
    wire.Command("silence", "m", "i", "ann", 5, until_ms=9),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back_as_it_was(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(st.binary(max_size=2_000))
def test_any_body_comes_back_out_of_its_envelope(body: bytes) -> None:
    assert wire.unpack(wire.pack(body)) == body


PACKED = wire.encode(MESSAGES[0])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "no Driftline envelope"),
        (b"DL", "no Driftline envelope"),
        (b"xx" + PACKED[2:], "no Driftline envelope"),
        (b"DL\x02" + PACKED[3:], "schema version 2; this release reads 1"),
        (PACKED[:3] + b"\xff\xff\xff\xff" + PACKED[7:], "over the bound"),
        (PACKED[:3] + b"\x00\x00\x00\x01" + PACKED[7:], "damaged body"),
        (PACKED[:3] + b"\x00\x01\x00\x00" + PACKED[7:], "damaged body"),
        (PACKED[:-3], "damaged body"),
        (wire.pack(b"\xc1"), "not a message of this release"),
        (wire.pack(b"\x81\xa4type\xa3new"), "not a message of this release"),
    ],
)
def test_what_cannot_be_read_is_named(value: bytes, says: str) -> None:
    with pytest.raises(IncompatibleError, match=says):
        wire.decode(value)


@given(st.integers(0, len(PACKED) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_or_named(at: int, byte: int) -> None:
    value = PACKED[:at] + bytes([byte]) + PACKED[at + 1 :]
    try:
        message = wire.decode(value)
    except IncompatibleError:
        return
    assert isinstance(message, wire.Profiles)


@given(st.binary(max_size=40))
def test_a_body_of_any_bytes_is_read_or_named(body: bytes) -> None:
    with pytest.raises(IncompatibleError):
        wire.decode(wire.pack(body))


def test_a_reader_ignores_fields_that_a_later_release_added() -> None:
    raw = wire.unpack(wire.encode(MESSAGES[6]))
    count = raw[0] & 0x0F
    added = bytes([0x80 | (count + 1)]) + raw[1:] + b"\xa3new\x07"
    assert wire.decode(wire.pack(added)) == MESSAGES[6]
