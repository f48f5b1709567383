from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from monitor import environment
from monitor.spec import load_spec
from streams import registry, wiring
from streams.supervisor import free_port
from tests.streams.commands import main, plain_terminal, run

__all__ = ["plain_terminal"]  # a fixture of every test here

START = 1_738_317_600_000


def event(i: int, model: str = "churn") -> dict[str, Any]:
    return {
        "id": f"b{i}",
        "ts": START + i * 60_000,
        "model": model,
        "features": {"age": 18 + i % 60, "country": ["DE", "FR", "IT"][i % 3]},
        "prediction": i % 2,
        "score": i % 100 / 100,
    }


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def arrow(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


SAMPLE = [event(i) for i in range(300)]


@pytest.mark.parametrize(
    "sample",
    [
        lines(SAMPLE),
        lines(SAMPLE).replace(b"\n", b"\r\n\n"),
        json.dumps(SAMPLE).encode(),
        json.dumps(SAMPLE, indent=2).encode(),
        f"{json.dumps(SAMPLE[:100])}\n{json.dumps(SAMPLE[100:])}\n".encode(),
        arrow(SAMPLE),
    ],
    ids=["lines", "blank lines", "array", "long array", "arrays", "Arrow"],
)
def test_a_sample_of_any_form_that_a_message_has_is_drafted(sample: bytes, tmp_path: Path) -> None:
    told = run("init", stdin=sample)
    assert told.stderr == "300 events of churn\n"
    file = tmp_path / "churn.yaml"
    file.write_text(told.stdout)
    spec = load_spec(file)
    assert {name: each.type for name, each in spec.features.items()} == {
        "age": "numeric",
        "country": "categorical",
    }
    assert spec.task == "binary"


def test_what_is_drafted_can_be_applied(
    embedded_broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", embedded_broker)
    monkeypatch.setenv("DRIFTLINE_KAFKA__TOPIC_PREFIX", f"init{free_port()}.")
    assert run("topics", "create").exit_code == 0
    source, spec = tmp_path / "sample.jsonl", tmp_path / "churn.yaml"
    source.write_bytes(lines(SAMPLE))
    told = run("init", str(source), "--output", str(spec))
    assert (told.stdout, told.stderr) == ("", f"300 events of churn: {spec}\n")
    assert run("apply", str(spec)).output == "churn: calibrates itself\n"
    settings = environment.load()
    known = registry.read(wiring.kafka(settings), wiring.topics(settings))
    assert known["churn"].spec == load_spec(spec)


def test_rows_that_are_no_events_are_counted(tmp_path: Path) -> None:
    bad = [b"{broken", b'{"model": "churn"}', b'{"model": "churn", "ts": 5, "prediction": 1}']
    told = run("init", stdin=b"\n".join([*bad, lines(SAMPLE)]))
    assert told.exit_code == 0
    assert told.stderr.splitlines() == [
        "300 events of churn",
        "3 are no events: 1 not_json, 1 missing_field, 1 bad_timestamp; the first: malformed (byte 1)",
    ]


def test_of_several_models_one_has_to_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "sample.jsonl"
    source.write_bytes(lines([*SAMPLE, event(1, "fraud")]))
    code, error = main(capsys, "init", str(source))
    assert (code, error) == (
        2,
        f"driftline: {source}: events of churn, fraud: choose one with --model\n",
    )
    told = run("init", str(source), "--model", "fraud")
    assert "\nmodel: fraud\n" in told.stdout
    assert told.stderr == "1 events of fraud\n300 events of other models are left out\n"
    code, error = main(capsys, "init", str(source), "--model", "spam")
    assert (code, "no event of spam, but of churn, fraud" in error) == (2, True)


def test_a_file_is_not_written_over_unless_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, spec = tmp_path / "sample.jsonl", tmp_path / "churn.yaml"
    source.write_bytes(lines(SAMPLE))
    spec.write_text("mine")
    code, error = main(capsys, "init", str(source), "-o", str(spec))
    assert (code, error) == (2, f"driftline: {spec} is there already: --force writes over it\n")
    assert spec.read_text() == "mine"
    assert run("init", str(source), "-o", str(spec), "--force").exit_code == 0
    assert load_spec(spec).model == "churn"
    code, error = main(capsys, "init", str(source), "-o", str(tmp_path / "no" / "such.yaml"))
    assert (code, "cannot be written: No such file" in error) == (2, True)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (b"", "there is no event in it"),
        (b"a,b\n1,2\n", "there is no event in it: not_json: starts neither with {"),
        (b"PAR1" + bytes(100), "there is no event in it: not_json"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_sample_without_events_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sample: bytes | None, message: str
) -> None:
    source = tmp_path / "sample"
    if sample is not None:
        source.write_bytes(sample)
    code, error = main(capsys, "init", str(source))
    assert (code, error.count("\n")) == (2, 1)
    assert f"{source}: {message}" in error


def test_no_more_events_are_read_than_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "sample.jsonl"
    source.write_bytes(lines(SAMPLE) + b"\n{broken")
    assert run("init", str(source), "--events", "10").stderr == "10 events of churn\n"
