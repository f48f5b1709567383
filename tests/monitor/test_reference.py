"""References: the same from a stream as at once, the same after a round trip, and a clear word for a wrong file."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import reference as references
from monitor.binning import CategoricalBins, NumericBins
from monitor.calibration import RATES
from monitor.columns import OTHER_SEGMENT, Columns
from monitor.errors import ConfigError, IncompatibleError
from monitor.profile import PREDICTION, SCORE
from monitor.reference import SAMPLE, TOP_SEGMENTS, Reference, build, dump, load
from monitor.source import read_source
from tests.monitor.builders import (
    DAY,
    HOUR,
    MODEL,
    START,
    columns,
    past,
    profile_of,
    reference,
    spec,
)

Write = Callable[[pa.Table, Path], object]


def rows(n: int = 3_000, seed: int = 3) -> pa.RecordBatch:
    return past(np.random.default_rng(seed), n)


def cut(batch: pa.RecordBatch, sizes: list[int]) -> list[Columns]:
    """The rows in slices of these sizes, and the rest."""
    at, parts = 0, []
    for size in sizes:
        parts.append(columns(batch.slice(at, size)))
        at += size
    return [*parts, columns(batch.slice(at))]


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


WRITERS: dict[str, Write] = {
    ".parquet": lambda table, path: pq.write_table(table, path, row_group_size=700),
    ".csv": lambda table, path: pacsv.write_csv(table, path),
    ".arrow": write_arrow,
    ".feather": write_arrow,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_of_any_format_is_read_in_batches_to_the_same_reference(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"january{suffix}"
    WRITERS[suffix](pa.Table.from_batches([rows()]), path)
    at_once = build(spec(), lambda: [columns(rows())])
    assert build(spec(), read_source(path)).reference_id == at_once.reference_id


@settings(max_examples=20)  # each builds two references
@given(st.lists(st.integers(0, 900), max_size=5))
def test_a_reference_does_not_depend_on_how_its_rows_were_cut(sizes: list[int]) -> None:
    batch = rows(600)
    whole = build(spec(), lambda: [columns(batch)])
    assert build(spec(), lambda: cut(batch, sizes)).reference_id == whole.reference_id


def test_beyond_the_sample_the_rows_are_still_not_held_and_the_cut_does_not_matter() -> None:
    """Values arrive in 47 batches that are made anew for each pass: nothing keeps them."""
    n, batches = 7_001, 47
    assert n * batches > 2 * SAMPLE

    def stream() -> Iterator[Columns]:
        rng = np.random.default_rng(1)
        for i in range(batches):
            yield columns(
                pa.record_batch(
                    {"ts": START + i * HOUR + np.arange(n), "wind": rng.lognormal(0, 1, n)}
                )
            )

    def joined() -> list[Columns]:
        parts = list(stream())
        ts = np.concatenate([p.ts_ms for p in parts])
        wind = pa.concat_arrays([p.features["wind"] for p in parts])
        return [columns(pa.record_batch({"ts": ts, "wind": wind}))]

    chosen = spec(features={}, segments=[], windows={"pane": "1h", "sizes": ["1h"]})
    reference = build(chosen, stream)
    assert reference.reference_id == build(chosen, joined).reference_id
    share = reference.profiles[""].counts("wind") / reference.n
    assert len(share) == 128
    assert share == pytest.approx(1 / 128, rel=0.25)
    bins = reference.layout.by_name["wind"].bins
    assert isinstance(bins, NumericBins)
    assert (bins.low, bins.high) == (pa.compute.min(joined()[0].features["wind"]).as_py(), pa.compute.max(joined()[0].features["wind"]).as_py())  # fmt: skip


def test_a_source_four_times_as_long_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the sample nothing is kept of the rows: not even by a view of a few of them."""
    monkeypatch.setattr(references, "SAMPLE", 1 << 13)
    short, long = peak_of_building(batches=10), peak_of_building(batches=40)
    assert long < 1.2 * short


BATCH = 20_000


def peak_of_building(batches: int) -> int:
    """Most bytes that were held at once, of them one batch."""

    def stream() -> Iterator[Columns]:
        rng = np.random.default_rng(1)
        for i in range(batches):
            ts = START + i * (DAY // batches) + np.arange(BATCH)
            yield columns(pa.record_batch({"ts": ts, "wind": rng.lognormal(0, 1, BATCH)}))

    chosen = spec(features={}, segments=[], task="none", windows={"pane": "1h", "sizes": ["1h"]})
    tracemalloc.start()
    try:
        build(chosen, stream)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_file_four_times_as_long_is_not_read_ahead(suffix: str, tmp_path: Path) -> None:
    """Of CSV Arrow reads 32 blocks of 1 MiB ahead, of a file of any size."""
    peaks = []
    for n in (100_000, 400_000):
        path = tmp_path / f"{n}{suffix}"
        values = np.random.default_rng(1).normal(0, 1, n)
        WRITERS[suffix](pa.table({"ts": START + np.arange(n), "a": values, "b": values}), path)
        before = pa.total_allocated_bytes()
        peaks.append(max(pa.total_allocated_bytes() - before for _ in read_source(path)()))
    assert peaks[1] < peaks[0] + 2_000_000


def test_it_counts_every_row_once_in_the_whole_and_once_per_dimension() -> None:
    reference = build(spec(), lambda: cut(rows(), [100, 1_000]))
    assert reference.n == 3_000
    parts = [p for name, p in reference.profiles.items() if name.startswith("carrier=")]
    assert sum(p.n for p in parts) == 3_000
    assert np.array_equal(
        sum(p.vector[reference.layout.by_name["wind"].counts] for p in parts),
        reference.profiles[""].counts("wind"),
    )
    assert reference.profiles[""].vector.tolist() == profile_of(reference, columns(rows())).vector.tolist()  # fmt: skip
    assert (reference.first_ms, reference.last_ms) == (
        int(columns(rows()).ts_ms[0]),
        int(columns(rows()).ts_ms[-1]),
    )


def test_a_unit_shows_as_a_lattice_and_few_values_as_a_grid() -> None:
    n = 3_000
    rng = np.random.default_rng(5)
    batch = pa.record_batch(
        {
            "ts": START + np.arange(n),
            "knots": np.round(rng.gamma(4, 3, n)) * 1.15,
            "dose": rng.choice([0.5, 1.7, np.pi], n),
            "free": rng.normal(0, 1, n),
        }
    )
    bins = build(spec(features={}, segments=[]), lambda: [columns(batch)]).layout.bins
    knots, dose, free = bins["knots"], bins["dose"], bins["free"]
    assert isinstance(knots, NumericBins)
    assert isinstance(dose, NumericBins)
    assert isinstance(free, NumericBins)
    assert knots.step == pytest.approx(1.15)
    assert dose.grid is not None
    assert dose.grid.tolist() == [0.5, 1.7, np.pi]
    assert free.step is None
    assert free.grid is None


def test_types_are_inferred_without_a_spec_and_taken_from_it_with_one() -> None:
    batch = pa.record_batch(
        {"ts": [START], "a": [1], "b": ["x"], "c": [True], "d": [None], "prediction": [1]}
    )
    inferred = build(spec(task="none", features={}, segments=[]), lambda: [columns(batch)]).layout
    assert {n for n, b in inferred.bins.items() if isinstance(b, CategoricalBins)} == {"b"}
    assert "d" not in inferred.bins
    named = spec(features={"a": {"type": "categorical"}, "d": {"type": "numeric"}}, segments=[])
    given_ = build(named, lambda: [columns(batch)]).layout
    assert isinstance(given_.bins["a"], CategoricalBins)
    assert set(given_.bins) == {"a", "d", PREDICTION, SCORE, "$latency_ms"}


def test_the_busiest_values_are_segments_and_the_rest_is_other() -> None:
    values = [f"v{i:02}" for i in range(40) for _ in range(40 - i)] + [OTHER_SEGMENT] * 100
    batch = pa.record_batch({"ts": START + np.arange(len(values)), "carrier": values})
    reference = build(spec(), lambda: [columns(batch)])
    kept = reference.segments["carrier"]
    assert kept == tuple(f"v{i:02}" for i in range(TOP_SEGMENTS))
    assert reference.segment_of("carrier", "v00") == "carrier=v00"
    assert reference.segment_of("carrier", "v39") == f"carrier={OTHER_SEGMENT}"
    # A value that is called like the overflow is part of it, and not a second one.
    assert reference.profiles[f"carrier={OTHER_SEGMENT}"].n == 100 + sum(range(1, 9))
    assert len(reference.profiles) == 1 + TOP_SEGMENTS + 1


def test_accuracy_comes_from_the_rows_that_have_both_label_and_prediction() -> None:
    batch = pa.record_batch(
        {
            "ts": START + np.arange(6),
            "prediction": pa.array([1, 1, 0, None, 0, 1]),
            "label": pa.array([1.0, 0.0, 0.0, 1.0, None, 1.0]),
        }
    )
    reference = build(spec(features={}, segments=[]), lambda: cut(batch, [2]))
    assert (reference.accuracy, reference.labelled) == (0.75, 4)
    bare = build(spec(features={}, segments=[]), lambda: [columns(batch.drop_columns(["label"]))])
    assert (bare.accuracy, bare.labelled) == (None, 0)


@pytest.mark.parametrize("span", [1, DAY, 400 * DAY])
def test_a_reference_comes_back_from_json_and_from_the_models_topic(span: int) -> None:
    chosen = spec(notify=[{"slack": {"url": "env:A"}}])
    batch = past(np.random.default_rng(2), 500, span_ms=span)
    reference = build(chosen, lambda: [columns(batch)], origin="january")
    again = Reference.from_dict(reference.to_dict())
    assert again.to_dict() == reference.to_dict()
    record = dump(reference, chosen)
    loaded_spec, loaded = load(record)
    assert loaded_spec == chosen
    assert loaded is not None
    assert loaded.reference_id == reference.reference_id
    assert loaded.layout.bins_id == reference.layout.bins_id
    assert dump(loaded, loaded_spec) == record
    assert load(dump(None, chosen)) == (chosen, None)


def test_the_id_is_of_the_content_and_not_of_where_it_came_from() -> None:
    one = build(spec(), lambda: [columns(rows())], origin="a.parquet")
    two = build(spec(), lambda: [columns(rows())], origin="b.csv")
    other = build(spec(), lambda: [columns(rows(seed=4))], origin="a.parquet")
    assert one.reference_id == two.reference_id != other.reference_id


DEEP = zlib.compress(b"[" * 200_000)


def test_a_damaged_or_foreign_record_is_named(tmp_path: Path) -> None:
    reference = build(spec(), lambda: [columns(rows(50))])
    form = reference.to_dict()
    for broken in (
        {**form, "format": 99},
        {key: value for key, value in form.items() if key != "nulls"},
        {**form, "bins": 5},
        {**form, "profiles": {"": [1, 2, 3]}},
        {**form, "profiles": {"": 5}},
        {**form, "nulls": {"": {"x": {}}}},
        {**form, "profiles": {}},
        {**form, "profiles": {"": [2**70] * reference.layout.size}},
        {**form, "bins": {"x": None}},
    ):
        with pytest.raises(IncompatibleError):
            Reference.from_dict(broken)
    record = dump(reference, spec())
    for value in (b"", b"x", record[:-9], record[:40], zlib.compress(b"{}"), DEEP):
        with pytest.raises(IncompatibleError):
            load(value)


WRONG: list[tuple[str, bytes | None, str]] = [
    ("none.parquet", None, "no such file"),
    ("model.json", b"{}", "expected one of"),
    ("no-suffix", b"", "expected one of"),
    ("garbage.parquet", b"PAR1 but not really\nhunter2", "cannot be read as parquet"),
    ("empty.parquet", b"", "cannot be read as parquet"),
    ("garbage.arrow", b"ARROW1 but not really\nhunter2", "cannot be read as ipc"),
    ("ragged.csv", b"ts,a\n1359676800000,hunter2,3\n", "cannot be read as csv"),
    ("changes.csv", b"ts,a\n" + b"1359676800000,1\n" * 90_000 + b"1359676800000,hunter2\n", "cannot be read as csv"),
    ("empty.csv", b"", "cannot be read as csv"),
    ("header.csv", b"ts,a\n", "no events"),
    ("no-time.csv", b"a,b\n1,2\n", "no column ts"),
    ("words.csv", b"ts,b\nhunter2,2\n", "ts is string"),
    ("gaps.csv", b"ts,b\n1359676800000,2\n,3\n", "missing values"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_wrong_file_is_one_line_without_its_values(
    name: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        build(spec(MODEL), read_source(path), origin=str(path))
    message = str(caught.value)
    assert says in message
    assert name in message
    assert "\n" not in message
    assert "hunter2" not in message


@pytest.mark.parametrize("days", [5.0, 4.9, 6.9])
def test_a_rate_is_the_whole_references_though_its_span_is_no_multiple_of_the_window(
    days: float,
) -> None:
    model = spec(windows={"pane": "1h", "sizes": ["1d"]})
    rng = np.random.default_rng(3)
    rows = past(rng, 5_000, span_ms=int(days * DAY))
    wind = [None if rng.random() < 0.2 else v for v in rows.column("wind").to_pylist()]
    rows = rows.set_column(
        rows.schema.get_field_index("wind"), "wind", pa.array(wind, pa.float64())
    )
    made = references.build(model, lambda: [columns(rows)])
    field = [f.name for f in made.layout.fields].index("wind")
    expected = made.nulls[""][DAY].rate_counts[field, RATES.index("missing")]
    assert expected == made.profiles[""].special("wind", "missing")


def test_a_segment_that_opens_after_the_last_whole_window_is_no_obstacle() -> None:
    model = spec(windows={"pane": "1h", "sizes": ["1d"]})
    rows = past(np.random.default_rng(3), 3_000, span_ms=5 * DAY + 12 * HOUR)
    carriers = rows.column("carrier").to_pylist()
    rows = rows.set_column(
        rows.schema.get_field_index("carrier"), "carrier", pa.array([*carriers[:-20], *["ZZ"] * 20])
    )
    made = references.build(model, lambda: [columns(rows)])
    null = made.nulls["carrier=ZZ"][DAY]
    assert np.isfinite(null.rate_counts).all()
    assert np.isfinite(null.rate_limit(50, 1e-3)).all()


def test_the_spec_of_a_record_with_a_reference_of_another_format_survives() -> None:
    model = spec(alarm_budget={"false_alarms": 7, "per": "1d"})
    form = msgspec.json.decode(zlib.decompress(references.dump(reference(model), model)))
    form["reference"]["format"] = 1
    record = zlib.compress(msgspec.json.encode(form))
    with pytest.raises(IncompatibleError, match="reference format 1; this release reads 2"):
        references.load(record)
    assert references.spec_of(record) == model
    assert references.spec_of(b"damaged") is None


def test_a_small_record_that_stands_for_gigabytes_is_refused_and_not_unpacked() -> None:
    bomb = zlib.compress(b" " * (references.MAX_RAW_BYTES + 1))
    assert len(bomb) < 100_000
    with pytest.raises(IncompatibleError, match="damaged model record"):
        references.load(bomb)
    assert references.spec_of(bomb) is None
