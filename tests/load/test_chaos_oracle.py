"""The oracle against the product, event by event and window by window; and the differences that it has to find."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from load.chaos import oracle, reading, tape
from load.chaos.bins import field_of, plain
from load.chaos.oracle import Expected, compare
from load.chaos.workload import PARTITIONS, START_MS, Workload, messages
from monitor import reference as references
from monitor import wire
from monitor.binning import FLAGS, SPECIALS, Bins, cut_categorical, cut_numeric, to_dict
from monitor.columns import Columns
from monitor.events import Event, Limits, decode_message
from monitor.panes import SourceMark
from monitor.profile import Profile
from monitor.spec import parse_spec
from monitor.store import connect, migrate
from monitor.tables import to_table, window_rows
from streams.models import Model
from streams.profiling import Policy, SourceMessage, profile_batch
from tests.monitor.stored import endpoint

NOW_MS: Final = START_MS + 40 * 86_400_000
EVENTS: Final = 20_000
BATCH: Final = 4_000
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Counted:
    """A workload, counted twice: by the oracle, and by the profiler with plain addition behind it."""

    expected: Expected
    rows: list[Row]  # as WINDOWS_SQL returns them
    good: int
    dead: Counter[int]
    late: int


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    # References are kept by seed: this one is nobody else's.
    load, path = Workload(4_711, EVENTS), tmp_path_factory.mktemp("chaos") / "tape"
    load.write(path)
    with pytest.MonkeyPatch.context() as patch:
        # How statistics scatter has no part in counting, and takes half a second a segment.
        patch.setattr(references, "calibrate", lambda *_: None)
        known = load.references()
    models = {spec.model: Model(spec, known[spec.model]) for spec in load.specs("http://127.0.0.1")}
    bins = [plain(model.spec, known[name]) for name, model in models.items()]
    return _profiled(path, models, oracle.expected(path, bins, now_ms=NOW_MS))


def _profiled(path: Path, models: dict[str, Model], expected: Expected) -> Counted:
    policy = Policy(Limits(), 1, max_models=3, auto_register=False)
    marks = {p: SourceMark(0, None, idle=False) for p in range(PARTITIONS)}
    sums: dict[tuple[str, str, str, int, int], Profile] = {}
    good = late = 0
    dead = Counter[int]()
    for batch in _batches(path):
        outcome = profile_batch(
            batch, marks, models.get, policy, now_ms=NOW_MS, known_models=len(models)
        )
        marks = outcome.marks
        late += outcome.late
        for link in outcome.profiles[0].links:
            good += link.on_time + link.late
            dead[link.partition] += link.dead
        for delta in outcome.profiles[0].deltas:
            model = models[delta.model]
            assert model.reference is not None
            profile = Profile.from_bytes(model.reference.layout, delta.profile)
            for size in model.spec.windows.sizes:
                key = (
                    delta.model,
                    delta.version,
                    delta.segment,
                    size,
                    delta.pane_ms // size * size,
                )
                sums[key] = sums[key] + profile if key in sums else profile
    rows = [row for key, profile in sums.items() for row in _stored(key, profile)]
    return Counted(expected, [selected(row) for row in rows], good, dead, late)


def _batches(path: Path) -> Iterator[list[SourceMessage]]:
    offsets, batch = Counter[int](), list[SourceMessage]()
    for message in messages(path):
        p = message.partition
        batch.append(SourceMessage(p, offsets[p], message.value, message.headers))
        offsets[p] += 1
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _stored(
    key: tuple[str, str, str, int, int], profile: Profile, contribution: str = ""
) -> list[Row]:
    """Rows of ``windows``, as the sink makes them."""
    model, version, segment, size_ms, start_ms = key
    window = wire.Window(
        model=model,
        version=version,
        segment=segment,
        size_ms=size_ms,
        start_ms=start_ms,
        contribution=contribution,
        revision=1,
        bins_id=profile.layout.bins_id,
        n=profile.n,
        profile=profile.to_bytes(),
    )
    return window_rows(window, profile.layout)


def selected(row: Row) -> Row:
    """The columns of a stored row that ``WINDOWS_SQL`` returns."""
    return (*row[:6], *row[9:20])


def test_the_oracle_and_the_profiler_count_the_same(counted: Counted) -> None:
    assert compare(counted.expected, counted.rows) == []
    compared = {row[:6] for row in counted.rows if _has_closed(row, counted.expected)}
    assert compared == counted.expected.windows.keys()
    assert len(compared) > 10_000


def test_the_oracle_and_the_profiler_reject_the_same(counted: Counted) -> None:
    expected = counted.expected
    assert expected.events == expected.good + expected.dead == EVENTS
    assert (expected.good, expected.dead_by_partition) == (counted.good, counted.dead)
    assert expected.dead > 10
    assert counted.late > 100


def test_every_counter_has_something_to_count(counted: Counted) -> None:
    totals = Counter[str]()
    for key, counts in counted.expected.windows.items():
        totals["errors"] += counts.errors
        totals["other segments"] += counts.n * key[2].endswith("__other__")
        totals.update(dict(zip(SPECIALS, counts.specials, strict=True)))
        totals.update(dict(zip(FLAGS, counts.flags, strict=True)))
    assert set(totals) == {"errors", "other segments", *SPECIALS, *FLAGS}
    assert min(totals.values()) > 0


def test_windows_that_are_open_are_left_out(counted: Counted) -> None:
    closed = [row for row in counted.rows if _has_closed(row, counted.expected)]
    assert compare(counted.expected, closed) == []
    left_out = [row for row in counted.rows if not _has_closed(row, counted.expected)]
    assert {row[3] for row in left_out} == {60_000, 600_000}
    broken = [changed(row, 6, 1) for row in left_out]
    assert compare(counted.expected, [*closed, *broken]) == []


def _has_closed(row: Row, expected: Expected) -> bool:
    return bool(row[3] + row[4] <= expected.closed_ms[row[0]])


def changed(row: Row, at: int, by: int) -> Row:
    return (*row[:at], row[at] + by, *row[at + 1 :])


def moved(row: Row) -> Row:
    """One event in the bin beside its own: no total shows it."""
    counts = list(row[8])
    counts[:2] = counts[0] + 1, counts[1] - 1
    return (*row[:8], counts, *row[9:])


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        pytest.param(lambda row: [moved(row)], r"bin 0 \S+ instead of \S+, bin 1 ", id="bin"),
        pytest.param(lambda row: [changed(row, 6, 1)], r"n \S+ instead of ", id="n"),
        pytest.param(lambda row: [changed(row, 7, 1)], "errors 1 instead of 0", id="errors"),
        pytest.param(lambda row: [changed(row, 9, 1)], r"missing \S+ instead of ", id="missing"),
        pytest.param(lambda row: [changed(row, 16, 1)], r"off_grid \S+ instead", id="off grid"),
        pytest.param(
            lambda row: [(*row[:8], row[8][:-1], *row[9:])], r"bins \d+ instead", id="bins"
        ),
        pytest.param(lambda row: [], "is missing: ", id="lost"),
        pytest.param(lambda row: [row, ("x", *row[1:])], None, id="unknown model"),
        pytest.param(lambda row: [row, (*row[:5], "x", *row[6:])], "should not be there", id="new"),
    ],
)
def test_a_broken_row_is_named(
    counted: Counted, breaks: Callable[[Row], list[Row]], said: str | None
) -> None:
    at = next(
        i
        for i, row in enumerate(counted.rows)
        if row[2:6] == ("", 60_000, START_MS + 120_000, "amount")
    )
    rows = [*counted.rows[:at], *breaks(counted.rows[at]), *counted.rows[at + 1 :]]
    found = compare(counted.expected, rows)
    if said is None:
        found = compare(counted.expected, rows)
        assert found[0].startswith("x 1 whole")
    else:
        assert "payments/fraud 1 whole, 60 s from 2026-03-01T00:02:00, " in found[0]
        assert re.search(said, found[0])
    assert found[-1].startswith("1 differences in ")


def test_of_many_differences_twenty_are_told(counted: Counted) -> None:
    found = compare(counted.expected, [])
    n = len(counted.expected.windows)
    assert len(found) == oracle.SHOWN + 2
    assert found[-2] == f"and {n - oracle.SHOWN:,} more"
    assert found[-1].startswith(f"{n:,} differences in {n:,} rows")
    assert found[-1].endswith(" and 0 stored")


def test_the_query_adds_up_the_newest_revisions_of_all_contributions(tmp_path: Path) -> None:
    spec = parse_spec({"model": "m", "features": {"x": {"type": "numeric"}}}, origin="test")
    known = references.build(spec, lambda: [_columns([*range(100), float("nan")])])
    key, one = ("m", "1", "", 60_000, START_MS), known.profiles[""]
    old = [(*row[:7], 0, *row[8:]) for row in _stored(key, one + one)]
    rows = [*_stored(key, one, "late"), *_stored(key, one)]
    with endpoint(tmp_path) as settings:
        migrate(settings)
        store = connect(settings)
        for token, stored in (("a", old), ("b", rows)):
            store.append("windows", to_table("windows", stored), token=token)
        found = store.link.rows(str.format(oracle.WINDOWS_SQL, database=settings.database))
        store.close()
    wanted = {row[5]: row for row in map(selected, _stored(key, one + one))}
    assert {row["feature"]: tuple(row.values()) for row in found} == {
        feature: (*row[:8], list(row[8]), *row[9:]) for feature, row in wanted.items()
    }


def _columns(values: Iterable[float]) -> Columns:
    x = [float(value) for value in values]
    n = len(x)
    ts = START_MS + 1_000 * np.arange(n)
    return Columns(ts, {"x": x}, {}, np.zeros(n, dtype=bool), [None] * n)


NUMERIC: Final[dict[str, Bins]] = {
    "quantiles": cut_numeric(np.random.default_rng(1).normal(size=5_000)),
    "cents": cut_numeric(np.round(np.random.default_rng(2).lognormal(3, 1, 5_000), 2)),
    "whole numbers": cut_numeric(np.random.default_rng(3).poisson(8, 5_000).astype(float)),
    "a grid without a step": cut_numeric(np.repeat([0.0, 1.0, np.pi, 10.0], 100)),
    "one value": cut_numeric(np.full(50, 3.0)),
    "nothing": cut_numeric(np.empty(0)),
}
CATEGORICAL: Final[dict[str, Bins]] = {
    "texts": cut_categorical({"a": 5, "true": 4, "3": 3, "2.5": 2, "": 1}),
    "none": cut_categorical({}),
}
VALUES: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 60),
    st.integers(-(2**70), 2**70),
    st.just(10**400),
    st.floats(),
    st.floats(-5, 60).map(lambda x: round(x, 2)),
    st.sampled_from(["a", "true", "3", "2.5", "", "b", "x" * 300, [1], {"a": 1}]),
)


@pytest.mark.parametrize(
    "bins", [*NUMERIC.values(), *CATEGORICAL.values()], ids=[*NUMERIC, *CATEGORICAL]
)
@given(values=st.lists(VALUES, min_size=1, max_size=8))
@example([1.797693134862316e306])  # so many steps that their number is infinite
def test_a_value_has_one_place(bins: Bins, values: list[Any]) -> None:
    field = field_of(to_dict(bins))
    encoded = bins.encode(values)
    flags = np.zeros(len(values), dtype=int) if encoded.flags is None else encoded.flags
    assert [field.place(value) for value in values] == [
        code | flag << 16 for code, flag in zip(encoded.codes.tolist(), flags.tolist(), strict=True)
    ]


def event(**changes: Any) -> bytes:
    return json.dumps({"ts": START_MS, "model": "m", "prediction": 1, **changes}).encode()


CLOUD: Final = {"content-type": b"application/cloudevents+json"}
# fmt: off
WIRE: Final[list[tuple[bytes, dict[str, bytes]]]] = [
    *((event(**{name: value}), {}) for name, value in (
        ("ts", START_MS + 0.5), ("ts", START_MS + 1.5), ("ts", "2026-03-01T00:00:00.1239Z"),
        ("ts", "2026-03-01T02:00:00+02:00"), ("ts", "2026-03-01T00:00:00"), ("ts", True), ("ts", None),
        ("ts", 5), ("ts", -START_MS), ("ts", [1]), ("ts", "soon"), ("ts", NOW_MS + 300_000), ("ts", NOW_MS + 300_001),
        ("score", True), ("score", 1), ("score", "0.5"), ("score", None), ("latency_ms", {}),
        ("version", 2), ("version", 2.0), ("version", "v" * 300), ("id", 3.5), ("id", None),
        ("features", []), ("features", {}), ("features", {"a": None}), ("features", None), ("prediction", None),
        ("model", 3), ("model", "-x"), ("model", ""), ("model", "a/b.c"), ("model", "x" * 129),
        ("tags", [1]), ("tags", {"a": [[[[[1]]]]]}), ("tags", {"a": [[[[[[[1]]]]]]]}), ("error", 0), ("other", [{}]),
    )),
    (event(prediction=None, error="x"), {}),
    (event(prediction=None, features={"a": 1}), {}),
    (b"", {}),
    (b"[]", {}),
    (b"[1, 2]", {}),
    (b"{}", {}),
    (b"3", {}),
    (b"\xff\xff\xff\xff123", {}),
    (b'{"ts":1772323200000,"model":"m","prediction":NaN}', {}),
    (b" \n" + event(), {}),
    (event() + b" x", {}),
    (event()[:-1], {}),
    (b"[" + event() + b", {}, " + event(ts=1) + b"]", {}),
    (b"[" + event() + b", {]", {}),
    (event(), {"content-type": b"application/vnd.apache.arrow.stream"}),
    (b'{"model":"m","prediction":1}', {"ce_time": b"2026-03-01T00:00:00Z", "ce_id": b"77"}),
    (b'[{"model":"m","prediction":1}]', {"ce_time": b"2026-03-01T00:00:00Z", "ce_id": b"77"}),
    (b'{"id":"a","time":"2026-03-01T00:00:00Z","data":{"model":"m","prediction":1}}', CLOUD),
    (b'{"id":"a","time":"2026-03-01T00:00:00Z","data":[{"model":"m","prediction":1}, 5]}', CLOUD),
    (b'{"id":5,"data":' + event() + b"}", CLOUD),
    (b'{"id":"a","data":"text"}', CLOUD),
    (b'{"id":"a"}', CLOUD),
    (b"[" + event() + b"]", CLOUD),
]
# fmt: on


@pytest.mark.parametrize(("value", "headers"), WIRE)
def test_the_wire_contract_is_read_as_the_product_reads_it(
    value: bytes, headers: dict[str, bytes]
) -> None:
    wanted = [
        (e.model, e.version, e.ts_ms, e.features or {}, e.prediction, e.score, e.error is not None)
        if isinstance(e, Event)
        else None
        for e in decode_message(value, headers, Limits(), now_ms=NOW_MS)
    ]
    assert wanted == [
        None
        if e is None
        else (e.model, e.version, e.ts_ms, e.features, e.prediction, e.score, e.failed)
        for e in reading.read(value, headers, now_ms=NOW_MS)
    ]


def test_the_oracle_shares_no_code_with_what_it_checks() -> None:
    script = (
        "import sys, load.chaos.oracle; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, timeout=30
    )
    loaded = set(ran.stdout.decode().split())
    assert loaded & {"monitor", "streams", "alerting", "msgspec", "pydantic"} == set()
    ours = {name for name in _imports() if name.startswith("load")}
    assert ours == {"load.chaos.reading", "load.chaos.tape"}


def _imports() -> Iterator[str]:
    for module in (oracle, reading, tape):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                yield node.module or ""
            elif isinstance(node, ast.Import):
                yield from (name.name for name in node.names)


def test_an_event_of_an_unknown_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tape"
    with path.open("wb") as file:
        tape.append(file, tape.Message(0, event()))
    with pytest.raises(ValueError, match="nobody knows the model 'm'"):
        oracle.expected(path, [], now_ms=NOW_MS)
