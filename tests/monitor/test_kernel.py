"""What the kernel reads means what ``monitor.events`` says, bit by bit; and what everybody writes, it reads."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitor import kernel
from monitor.events import Limits
from monitor.fourier import FourierMap
from monitor.kernel import Form, Found, Kernel
from monitor.profile import Layout
from monitor.vectors import VectorBins, VectorColumns
from tests.monitor.alike import FORMS, LIMITS, NOW, NUMBERS, TEXTS, check

GOOD: Final = (
    b'{"id":"a1","ts":1763999999000,"model":"classes","version":"7","features":{"amount":1.5,"colour":"red",'
    b'"wide":12},"prediction":"yes","score":0.25,"latency_ms":12.5,"tags":{"region":"eu"}}'
)


def compiler() -> str:
    """The C compiler, which the product does without and these tests do not."""
    found = shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler (cc) on PATH: monitor/kernel.c was not compiled")
    return found


@pytest.fixture(scope="module")
def reader() -> Kernel:
    compiler()
    assert kernel.library() is not None, "monitor/kernel.c is not compiled: make install"
    return Kernel(FORMS)


def same(reader: Kernel, values: Sequence[bytes]) -> Found:
    """What the kernel reads of these messages, and that it is what they are."""
    found = reader.read(values, LIMITS, now_ms=NOW)
    check(found, [(value, {}) for value in values])
    return found


# What everybody writes. Each is read by the kernel: or nobody would notice that it no longer is.
USUAL: Final = {
    "as it is": GOOD,
    "with spaces": json.dumps(json.loads(GOOD), indent=2).encode() + b"\n",
    "a list": b"[" + GOOD + b" , " + GOOD.replace(b"classes", b"numbers").replace(b'"yes"', b"1.25") + b"]",
    "the model last": b'{"tags":{"region":"eu"},"features":{"amount":1},"id":7,"score":1,"prediction":7,"ts":1763999999000,"model":"classes"}',
    "RFC 3339": GOOD.replace(b"1763999999000", b'"2025-11-24T15:59:59.000Z"'),
    "an offset": GOOD.replace(b"1763999999000", b'"2025-11-24T17:59:59.123456+02:00"'),
    "the 29th of February": GOOD.replace(b"1763999999000", b'"2025-02-28T23:59:59-23:59"'),
    "no text is ASCII": GOOD.replace(b"red", "größe".encode()).replace(b'"colour"', '"größe"'.encode()),
    "seventeen digits": GOOD.replace(b"1.5", b"0.30000000000000004").replace(b"12.5", b"1.7976931348623157e+308"),
    "a whole number is a category": GOOD.replace(b'"red"', b"7").replace(b'"yes"', b"1"),
    "so is 7.0": GOOD.replace(b'"red"', b"7.0").replace(b'"yes"', b"-1.00"),
    "and a boolean": GOOD.replace(b'"red"', b"true").replace(b'"yes"', b"false"),
    "a boolean is a number": GOOD.replace(b'"wide":12', b'"wide":true'),
    "null": GOOD.replace(b'"red"', b"null").replace(b'"yes"', b"null").replace(b"0.25", b"null").replace(b'"7"', b"null"),
    "nothing else": b'{"ts":1763999999000,"model":"classes","prediction":"no"}',
    "an error": b'{"ts":1763999999000,"model":"classes","error":{"code":[500,"x"]},"features":null,"tags":null}',
    "unknown fields": GOOD.replace(b'"id"', b'"more":[{"a":[1,-2.5e-3,"b",null]},true],"id"').replace(b'"wide"', b'"other":{"x":[]},"wide"'),
    "twice": GOOD.replace(b'"amount":1.5', b'"amount":null,"amount":2,"colour":"7"'),
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_what_everybody_writes_is_read(reader: Kernel, name: str) -> None:
    found = same(reader, [USUAL[name]])
    assert found.rows_of.tolist() == [2 if name == "a list" else 1]


def test_many_at_once_are_read_in_order(reader: Kernel) -> None:
    found = same(reader, [*USUAL.values()] * 3)
    assert (found.rows_of > 0).all()
    assert {*found.of_model} == {"classes", "numbers"}


# What it leaves alone: unusual, or wrong in a way that events.py finds words for.
LEFT: Final = {
    "an escape": GOOD.replace(b"a1", b"a\\u0031"),
    "a name with an escape": GOOD.replace(b'"amount"', b'"\\u0061mount"'),
    "the last byte is missing": GOOD[:-1],
    "something follows": GOOD + b"}",
    "two": GOOD + GOOD,
    "another model": GOOD.replace(b"classes", b"klasses"),
    "no model": GOOD.replace(b'"model":"classes",', b""),
    "no time": GOOD.replace(b'"ts":1763999999000,', b""),
    "seconds": GOOD.replace(b"1763999999000", b"1763999999"),
    "the future": GOOD.replace(b"1763999999000", b"1764999999000"),
    "long ago": GOOD.replace(b"1763999999000", b"1263999999000"),
    "30 February": GOOD.replace(b"1763999999000", b'"2025-02-30T00:00:00Z"'),
    "a leap second": GOOD.replace(b"1763999999000", b'"2025-06-30T23:59:60Z"'),
    "no offset": GOOD.replace(b"1763999999000", b'"2025-11-24T15:59:59"'),
    "a text for a number": GOOD.replace(b"1.5", b'"1.5"'),
    "a boolean where numbers make segments": GOOD.replace(b"1.5", b"true"),
    "a list for a category": GOOD.replace(b'"red"', b"[1]"),
    "a score in words": GOOD.replace(b"0.25", b'"0.25"'),
    "a score that is true": GOOD.replace(b"0.25", b"true"),
    "neither features nor prediction": b'{"id":"1","ts":1763999999000,"model":"classes","features":{}}',
    "too many features": GOOD.replace(b'"amount":1.5', b'"a":1,"b":1,"c":1,"d":1,"amount":1.5'),
    "too deep": GOOD.replace(b'"yes"', b'"yes","x":[[[[[[[[1]]]]]]]]'),
    "too deep in a list": b"[" + GOOD.replace(b'"wide":12', b'"x":[[[[[[1]]]]]]') + b"]",
    "too long": GOOD + b" " * 3_000,
    "a long text": GOOD.replace(b"a1", b"a" * 257),
    "id twice": GOOD.replace(b'"id":"a1"', b'"id":"a1","id":"a2"'),
    "prediction_id": GOOD.replace(b'"id":"a1"', b'"prediction_id":"a1"'),
    "an id by another name": b'{"ts":1763999999000,"model":"silent","prediction":"no","order":"5"}',
    "our own name": GOOD.replace(b'"id":"a1"', b'"$ts_ms":"a1"'),
    "leading zero": GOOD.replace(b"1.5", b"01.5"),
    "no digit": GOOD.replace(b"1.5", b"1."),
    "NaN": GOOD.replace(b"1.5", b"NaN"),
    "infinite": GOOD.replace(b"1.5", b"1e999"),
    "a zero byte": GOOD.replace(b"a1", b"a\x00"),
    "a control character": GOOD.replace(b"a1", b"a\n"),
    "no UTF-8": GOOD.replace(b"a1", b"\xc3("),
    "a surrogate": GOOD.replace(b"a1", b"\xed\xa0\x80"),
    "a list with a bad one": b"[" + GOOD + b"," + GOOD.replace(b"1.5", b"[]") + b"]",
    "a list that does not end": b"[" + GOOD + b",",
    "an empty list": b"[]",
    "nothing": b"",
    "words": b"hello",
    "Arrow": b"\xff\xff\xff\xff\x10\x00\x00\x00",
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_unusual_or_wrong_is_left_and_its_neighbours_are_read(reader: Kernel, name: str) -> None:  # fmt: skip
    found = same(reader, [GOOD, LEFT[name], GOOD])
    assert found.rows_of.tolist() == [1, 0, 1]


NAMES: Final = st.sampled_from(["amount", "wide", "colour", "größe", 'a"b', "region", "x", "", "$x", "id", "model"])  # fmt: skip
NUMBER_TEXTS: Final = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,21})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers().map(str),
    st.sampled_from(["0", "-0", "-0.0", "1.0", "7.00", "1e2", "9007199254740993", "0.1e-400", "01", "-", "1e", "+1"]),
)  # fmt: skip
ATOMS: Final = st.one_of(
    NUMBER_TEXTS,
    st.sampled_from(["null", "true", "false", "tru", "NaN", '"red"', '"7"', '"größe"', '"1.0"', '"True"', '""', '"']),
    st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.text(max_size=4).map(json.dumps),
)  # fmt: skip
VALUES: Final = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(NAMES, inner), max_size=3).map(lambda pairs: object_of(pairs))
    ),
    max_leaves=6,
)
TIMES: Final = st.one_of(
    st.integers(NOW - 10**10, NOW + 10**6).map(str),
    st.datetimes().map(lambda t: f'"{t.isoformat()}Z"'),
    st.from_regex(r'"202[0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,7})?(Z|[+-][0-2][0-9]:[0-6][0-9])"', fullmatch=True),
    ATOMS,
)  # fmt: skip


def object_of(pairs: Sequence[tuple[str, str]], gap: str = "") -> str:
    inside = f",{gap}".join(f"{json.dumps(name, ensure_ascii=False)}{gap}:{value}" for name, value in pairs)  # fmt: skip
    return "{" + gap + inside + gap + "}"


FIELDS: Final = st.one_of(
    st.tuples(st.just("id"), st.sampled_from(['"a"', "7", "null", "1.0", "true"]) | VALUES),
    st.tuples(st.just("version"), st.sampled_from(['"7"', "8", "null"]) | VALUES),
    st.tuples(st.just("features") | st.just("tags"), st.lists(st.tuples(NAMES, VALUES), max_size=5).map(object_of) | VALUES),
    st.tuples(st.sampled_from(["prediction", "score", "latency_ms", "error", "prediction_id", "order", "label"]), VALUES),
)  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> bytes:
    fields = [
        ("ts", draw(TIMES)),
        ("model", draw(st.sampled_from(['"classes"', '"numbers"', '"silent"']))),
        *draw(st.lists(FIELDS, max_size=6)),
    ]
    gap = draw(st.sampled_from(["", "", " ", "\n\t"]))
    return object_of(draw(st.permutations(fields)), gap).encode("utf-8", "surrogatepass")


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    value = draw(events() | st.sampled_from([*USUAL.values(), *LEFT.values()]))
    if draw(st.booleans()) and draw(st.booleans()):
        value = b"[" + b",".join([value, *draw(st.lists(events(), max_size=2))]) + b"]"
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):  # damage
        if value:
            at = draw(st.integers(0, len(value) - 1))
            with_ = draw(st.binary(max_size=3))
            value = value[:at] + with_ + value[at + draw(st.integers(0, 3)) :]
    return value


@given(st.lists(messages(), min_size=1, max_size=4))
@example([GOOD.replace(b"1.5", b"-0"), GOOD.replace(b"0.25", b"-0.0")])
@example([GOOD.replace(b'"red"', b"-0.0"), GOOD.replace(b'"red"', b"1e0")])
@example([b'{"ts":1763999999000,"model":"numbers","prediction":9007199254740993}'])
def test_whatever_is_read_is_what_it_is(reader: Kernel, values: list[bytes]) -> None:
    same(reader, values)


def numbers_read(reader: Kernel, texts: Sequence[str]) -> tuple[list[str], list[float]]:
    """The texts that were read as numbers, and the numbers."""
    values = [GOOD.replace(b"1.5", text.encode()) for text in texts]
    found = reader.read(values, LIMITS, now_ms=NOW)
    was_read = [text for text, n in zip(texts, found.rows_of, strict=True) if n]
    column: pa.Array = found.of_model["classes"][0].features["amount"]
    return was_read, column.to_pylist()


def exactly(texts: Sequence[str], numbers: Sequence[float]) -> None:
    wrong = [t for t, x in zip(texts, numbers, strict=True) if struct.pack("d", x) != struct.pack("d", float(t))]  # fmt: skip
    assert wrong == []


def test_a_hundred_thousand_numbers_are_those_that_python_reads(reader: Kernel) -> None:
    rng = random.Random(1)
    drawn = (struct.unpack("<d", rng.randbytes(8))[0] for _ in range(110_000))
    normal = [x for x in drawn if math.isfinite(x) and abs(x) >= sys.float_info.min][:100_000]
    texts, numbers = numbers_read(reader, [repr(x) for x in normal])
    assert len(texts) == len(normal)  # all that Python writes is read here
    exactly(texts, numbers)


def halfway(rng: random.Random) -> Iterator[str]:
    """Decimal numbers at and beside the middle of two floats, where rounding is hardest."""
    for _ in range(20_000):
        mantissa = rng.randrange(1 << 52, 1 << 53) * 2 + 1
        shift = rng.randrange(0, 11)
        yield str(mantissa << shift) + ".0"
        yield str((mantissa << shift) + rng.choice([-1, 1])) + ".0"
        yield f"{rng.randrange(10**19)}e{rng.randrange(-330, 300)}"
        yield f"{rng.randrange(10**18)}.{rng.randrange(10)}e{rng.randrange(-30, 30)}"


def test_so_are_those_in_the_middle_of_two(reader: Kernel) -> None:
    drawn = list(halfway(random.Random(2)))
    texts, numbers = numbers_read(reader, drawn)
    assert len(texts) > len(drawn) / 2
    exactly(texts, numbers)


def test_names_that_share_a_place_in_the_table_are_told_apart() -> None:
    names = [f"f{i}" for i in range(2_000)]
    form = Form(Layout(dict.fromkeys(names, NUMBERS)))
    row = {name: i for i, name in enumerate(names)}
    value = json.dumps({"ts": NOW, "model": "m", "features": row}).encode()
    found = Kernel({"m": form, "n": form}).read([value] * 2, Limits(), now_ms=NOW)
    assert found.rows_of.tolist() == [1, 1]
    read: dict[str, pa.Array] = dict(found.of_model["m"][0].features)
    assert [read[name].to_pylist() for name in names] == [[i, i] for i in range(2_000)]


def test_a_model_with_embeddings_is_left_alone() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 3))
    fourier = FourierMap.fit(rows, seed=1, frequencies=4)
    value = VectorBins(VectorColumns("embedding", (), 3), fourier)
    plain, wide = Layout({"amount": NUMBERS}), Layout({"amount": NUMBERS}, {"embedding": value})
    for layout_, read in ((plain, 1), (wide, 0)):
        found = Kernel({"classes": Form(layout_)}).read([GOOD], LIMITS, now_ms=NOW)
        assert found.rows_of.tolist() == [read]


def test_members_of_a_vector_are_read_as_numbers_unless_one_is_a_category() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 2))
    fourier = FourierMap.fit(rows, seed=1, frequencies=4)
    both = {"pair": VectorBins(VectorColumns("pair", ("amount", "colour"), 2), fourier)}
    for colour, read in ((NUMBERS, 1), (TEXTS, 0)):
        form = Form(Layout({"amount": NUMBERS, "colour": colour}, both))
        value = GOOD.replace(b'"red"', b"7")
        assert Kernel({"classes": form}).read([value], LIMITS, now_ms=NOW).rows_of.tolist() == [
            read
        ]


def test_without_a_compiler_everything_is_left_to_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr(kernel, "LIBRARY", tmp_path / "none.so")
    kernel.library.cache_clear()
    try:
        found = Kernel(FORMS).read([GOOD] * 2, LIMITS, now_ms=NOW)
    finally:
        monkeypatch.undo()
        kernel.library.cache_clear()
    assert (found.rows_of.tolist(), len(found.message), found.of_model) == ([0, 0], 0, {})


def test_a_library_of_another_release_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    source, made = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("void driftline_index(void) {}\nvoid driftline_read(void) {}\n")
    subprocess.run([compiler(), "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    monkeypatch.setattr(kernel, "LIBRARY", made)
    kernel.library.cache_clear()
    try:
        assert kernel.library() is None
    finally:
        monkeypatch.undo()
        kernel.library.cache_clear()


@pytest.mark.slow
def test_no_byte_is_read_or_written_that_is_not_ours(tmp_path: Path) -> None:
    """The same messages, many of them damaged, under the address and the undefined behaviour sanitizers."""
    cc = compiler()
    sources = sorted(map(str, Path(kernel.__file__).parent.glob("*.c")))
    made = tmp_path / "kernel.so"
    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    # Guesses of names and texts are read eight bytes at a time wherever they stand.
    command = [cc, *flags, "-shared", "-fPIC", "-o", str(made), *sources]
    subprocess.run(command, check=True)
    preload = subprocess.run([cc, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.monitor.damaged", str(made), "3000"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "3000\n"), done.stderr[-3_000:]
