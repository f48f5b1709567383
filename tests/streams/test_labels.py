"""Labels from files: every format gives the same labels, a bad row takes no other with it, and memory does not grow with the file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typing_extensions import override

from monitor.errors import ConfigError, TransientError
from monitor.events import no_aliases
from monitor.labels import Label, Receipt
from streams import labels
from streams.labels import MAX_LINE, STDIN, STRETCH, Columns, Format

NOW = 1_700_000_000_000
TIME, TIME_MS = "2013-02-01T05:17:00Z", 1_359_695_820_000
LABELS = [Label("m", TIME_MS, "a", "1"), Label("m", NOW, "b", "0.5"), Label("m", TIME_MS, "c", "x")]
CSV = f"id,model,label,ts,note\na,m,true,{TIME},hello\nb,m,0.5,,\nc,m,x,{TIME_MS},\n"
ROWS: list[dict[str, Any]] = [
    {"id": "a", "model": "m", "label": True, "ts": TIME, "note": "hello"},
    {"id": "b", "model": "m", "label": 0.5},
    {"request_id": "c", "model": "m", "label": "x", "ts": TIME_MS},
]
JSONL = "\n\n".join(map(json.dumps, ROWS)) + "\n"


@dataclass
class Topic:
    """What was sent, and in how many stretches; it goes away after some."""

    lasts: int = 1_000
    sent: list[Label] = field(default_factory=list)
    stretches: int = 0

    def take(self, batch: Sequence[Label]) -> None:
        if self.stretches == self.lasts:
            raise TransientError("the broker does not answer")
        self.stretches += 1
        self.sent += batch

    def load(
        self,
        path: Path,
        *,
        stdin: bytes = b"",
        columns: Columns | None = None,
        format_: Format | None = None,
        receipt: Receipt | None = None,
    ) -> Receipt:
        receipt = receipt or Receipt()
        with labels.read(path, io.BytesIO(stdin), columns or Columns(), format_) as rows:
            labels.load(
                rows,
                self.take,
                receipt,
                aliases=lambda _: ("request_id",),
                now_ms=lambda: NOW,
                progress=lambda _: None,
            )
        return receipt


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_every_format_gives_the_same_labels(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())
    (tmp_path / "l.jsonl").write_text(JSONL)
    at = [datetime.fromisoformat(TIME).astimezone(UTC), None, datetime.fromisoformat(TIME)]
    for file in (
        tmp_path / "l.csv",
        tmp_path / "l.jsonl",
        parquet(
            tmp_path / "l.pq",
            id=["a", "b", None],
            request_id=[None, None, "c"],
            model=["m"] * 3,
            label=["true", "0.5", "x"],
            ts=pa.array(at, pa.timestamp("ns", "Europe/Berlin")),
        ),
    ):
        topic = Topic()
        receipt = topic.load(file)
        assert (topic.sent, receipt.accepted, receipt.refused) == (LABELS, 3, 0), file.name


@pytest.mark.parametrize("text", [CSV, JSONL, "  " + JSONL])
def test_standard_input_is_known_by_how_it_begins(text: str) -> None:
    topic = Topic()
    topic.load(STDIN, stdin=text.encode())
    assert topic.sent == LABELS


def test_standard_input_stays_open_for_others() -> None:
    stdin = io.BytesIO(CSV.encode())
    with labels.read(STDIN, stdin, Columns()) as rows:
        assert len(list(rows)) == 3
    assert not stdin.closed


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    named = Columns("m", id="order", label="paid", ts="booked")
    times = pa.array([TIME_MS], pa.timestamp("ms"))
    columns = {"order": [7], "paid": [1], "booked": times, "id": ["no"], "prediction_id": ["no"], "model": ["no"]}  # fmt: skip
    (tmp_path / "l.csv").write_text(f"order,paid,booked,id,prediction_id,model\n7,1,{TIME},no,no,no\n,1,,no,no,no\n")  # fmt: skip
    receipt = Receipt()
    for file in (parquet(tmp_path / "l.parquet", **columns), tmp_path / "l.csv"):
        topic = Topic()
        topic.load(file, columns=named, receipt=receipt)
        assert topic.sent == [Label("m", TIME_MS, "7", "1")], file.name
    assert [row.reason for row in receipt.shown] == ["missing_field"], "of the named column only"


@pytest.mark.parametrize(
    ("name", "text", "columns", "detail"),
    [
        ("l.csv", None, Columns(), "cannot be read: No such file"),
        ("l.xlsx", "", Columns(), "expected one of .csv, .jsonl"),
        ("l.csv", "", Columns(), "without a header row"),
        ("l.csv", "id,label\n", Columns(), "no column model"),
        ("l.csv", "id,model\n", Columns(label="paid", ts="at"), "no column at, paid"),
        ("l.parquet", "not one", Columns(), "cannot be read: ArrowInvalid"),
        ("-", "PAR1", Columns(), "give a file"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_mistake_with_its_name(
    tmp_path: Path, name: str, text: str | None, columns: Columns, detail: str
) -> None:
    path = STDIN if name == "-" else tmp_path / name
    if text is not None and path != STDIN:
        path.write_text(text)
    with pytest.raises(ConfigError, match=detail) as err:
        Topic().load(path, columns=columns, format_="parquet" if path == STDIN else None)
    assert path == STDIN or str(path) in str(err.value)


def test_refused_rows_have_their_number_in_the_whole_file(tmp_path: Path) -> None:
    good = '{"id": "a", "model": "m", "label": 1}\n'
    long = '{"id": "' + "x" * (2 * MAX_LINE) + '"}\n'
    file = tmp_path / "l.jsonl"
    file.write_bytes((good * STRETCH + "[1]\n" + long + good + "{]\n").encode() + b'{"id":"\xff"}')
    topic = Topic()
    receipt = topic.load(file)
    assert (receipt.accepted, len(topic.sent)) == (STRETCH + 1, STRETCH + 1)
    assert [(row.row, row.reason) for row in receipt.shown] == [
        (STRETCH + 1, "wrong_type"),
        (STRETCH + 2, "too_large"),
        (STRETCH + 4, "not_json"),
        (STRETCH + 5, "not_json"),
    ]


def test_a_line_of_csv_that_is_too_long_is_one_refused_row(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text(f"id,model,label,note\na,m,1,{'x' * 3 * MAX_LINE}\nb,m,1,\n")
    topic = Topic()
    receipt = topic.load(file)
    assert ([label.id for label in topic.sent], receipt.refused) == (["b"], 1)


def test_a_broker_that_goes_away_ends_it_and_the_receipt_says_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text("id,model,label\n" + "a,m,1\n" * (3 * STRETCH))
    receipt, topic = Receipt(), Topic(lasts=2)
    with pytest.raises(TransientError):
        topic.load(file, receipt=receipt)
    assert receipt.accepted == len(topic.sent) == 2 * STRETCH


def test_a_stretch_is_with_the_broker_before_the_next_is_read(tmp_path: Path) -> None:
    read: list[int] = []

    class Watched(Topic):
        @override
        def take(self, batch: Sequence[Label]) -> None:
            super().take(batch)
            read.append(stdin.tell())

    stdin = io.BytesIO(b"id,model,label\n" + b"0123456789,m,1\n" * (4 * STRETCH))
    topic = Watched()
    with labels.read(STDIN, stdin, Columns()) as rows:
        labels.load(rows, topic.take, Receipt(), aliases=no_aliases, now_ms=lambda: NOW, progress=lambda _: None)  # fmt: skip
    whole = stdin.tell()
    assert [at < whole * (i + 2) / 4 for i, at in enumerate(read[:3])] == [True] * 3
