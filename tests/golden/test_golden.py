"""What earlier releases have written is understood, and what this one writes looks like what it says it does.

A golden folder is made once, for a release, and stays; fields may be added, with defaults. Does a test of the form fail, then the bytes have
changed it in another way: raise the schema version of what changed (``wire.SCHEMA_VERSION``, a detector's ``SNAPSHOT_VERSION``), read the old form as well, and make a new folder under a new version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from alerting.book import decode_book
from monitor import wire
from monitor.errors import IncompatibleError
from tests.golden.make import FOLDER
from tests.golden.samples import Rows, Sample, packed, samples, unpacked

RELEASES: Final = sorted(path.name for path in FOLDER.iterdir() if path.name[0].isdigit())
FILES: Final = sorted(FOLDER.glob("[0-9]*/*.bin"))
NEWER: Final = wire.MAGIC + bytes([wire.SCHEMA_VERSION + 1])


@cache
def known(release: str) -> Mapping[str, Sample]:
    """The samples, on the models' record of a release."""
    return samples((FOLDER / release / "model.bin").read_bytes())


def alike(a: Any, b: Any) -> bool:
    """Whether ``a`` is all that ``b`` was, but for the last digits of floats: another processor may add up in another order.

    A field that was added since is no difference: who wrote without it meant its default.
    """
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() >= b.keys() and all(alike(a[key], b[key]) for key in b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b) and type(a) is type(b)


def test_this_release_has_its_files() -> None:
    assert version("driftline") in RELEASES
    names = {path.stem for path in FILES if path.parent.name == version("driftline")}
    assert names == set(known(version("driftline")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_release_wrote_means_what_it_meant(path: Path) -> None:
    meaning = msgspec.json.decode(path.with_suffix(".json").read_bytes())
    assert alike(known(path.parent.name)[path.stem].understand(path.read_bytes()), meaning)


def form(value: Any) -> Any:
    """The shape of bytes: what is compressed is opened, numbers and texts become their types."""
    match value:
        case bytes() if value[:2] == wire.MAGIC:
            return [value[2], form(msgspec.msgpack.decode(wire.unpack(value) or b"\xc0"))]
        case bytes():
            return "bytes"
        case dict():
            return {str(key): form(each) for key, each in value.items()}
        case list() | tuple():
            kinds = [form(each) for each in value]
            return kinds[:1] if len(kinds) > 1 and all(k == kinds[0] for k in kinds) else kinds
        case int() | float():
            return "number"  # a float that is whole may be an int
        case _:
            return type(value).__name__


def without_added(row: Any, before: Any) -> Any:
    """A row is its schema version and its fields by place: those that were added since are at its end."""
    match row, before:
        case [version_, list() as fields], [_, list() as known_]:
            return [version_, fields[: len(known_)]]
        case _:
            return row


@pytest.mark.parametrize("name", sorted(known(version("driftline"))))
def test_what_is_written_today_has_the_form_and_the_meaning_of_the_golden_file(name: str) -> None:
    folder, sample = FOLDER / version("driftline"), known(version("driftline"))[name]
    today, golden = sample.write(), (folder / f"{name}.bin").read_bytes()
    assert today[:1] == golden[:1]
    if name.startswith("state-"):
        assert unpacked(today).keys() == unpacked(golden).keys()
        now, then = ({key: form(row) for key, row in unpacked(v).items()} for v in (today, golden))
        assert alike({key: without_added(row, then[key]) for key, row in now.items()}, then)
    elif name.startswith("message-"):
        assert alike(form(today), form(golden))
    else:
        assert len(today) == len(golden)
    meaning = msgspec.json.decode((folder / f"{name}.json").read_bytes())
    assert alike(sample.understand(today), meaning)


@pytest.mark.parametrize("name", ["state-merge", "state-performance", "state-incidents"])
def test_a_row_of_a_newer_release_ends_the_worker_and_says_what_to_do(name: str) -> None:
    table = unpacked((FOLDER / version("driftline") / f"{name}.bin").read_bytes())
    sample = known(version("driftline"))[name]
    for key in sorted(table):
        newer: Rows = {**table, key: NEWER + table[key][3:]}
        with pytest.raises(IncompatibleError, match=r"schema version 2.*a newer release"):
            sample.understand(packed(newer))


@pytest.mark.parametrize("name", ["state-merge", "state-performance", "state-incidents"])
def test_a_damaged_row_ends_the_worker(name: str) -> None:
    table = unpacked((FOLDER / version("driftline") / f"{name}.bin").read_bytes())
    sample = known(version("driftline"))[name]
    for key in sorted(table):
        with pytest.raises((IncompatibleError, msgspec.MsgspecError)):
            sample.understand(packed({**table, key: wire.pack(b"\x91\x91")}))


def test_a_message_of_a_newer_release_is_refused_by_name() -> None:
    for path in FILES:
        if path.stem.startswith("message-"):
            with pytest.raises(IncompatibleError, match="schema version 2"):
                wire.decode(NEWER + path.read_bytes()[3:])
    with pytest.raises(IncompatibleError, match="newer release"):
        decode_book(NEWER + b"\x00" * 8)


def test_the_comparison_finds_what_is_not_alike() -> None:
    assert alike({"a": [1, 0.1 + 0.2]}, {"a": [1, 0.3]})
    assert alike({"a": 1, "added": None}, {"a": 1})
    assert not alike({"a": 1}, {"a": 1, "lost": None})
    for other in ({"a": [1, 0.31]}, {"a": [1]}, {"a": [1.0, 0.3]}, {"b": [1, 0.3]}):
        assert not alike({"a": [1, 0.3]}, other)
    assert form(wire.pack(msgspec.msgpack.encode([1]))) != form(
        wire.pack(msgspec.msgpack.encode(["1"]))
    )
