"""What the endpoint adds to ClickHouse's interface; the interface itself: tests/contracts/test_clickhouse_endpoint.py."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.errors import ConfigError
from streams.embedded import clickhouse
from streams.embedded.clickhouse import (
    HTTP_STATUS,
    accepted_encoding,
    compress,
    decompress,
    read_form,
    read_request,
)
from streams.embedded.engine import ClickHouseError, Insert, Request, split_insert
from streams.supervisor import Supervisor, free_port

PASSWORD = "s3cret"


@pytest.fixture(scope="module")
def guarded_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an endpoint with a password."""
    directory = tmp_path_factory.mktemp("guarded")
    with Supervisor(directory) as supervisor:
        port = free_port()
        env = {clickhouse.PASSWORD_VARIABLE: PASSWORD}
        supervisor.start(clickhouse.child(port, directory / "data", env))
        supervisor.wait_ready(30)
        yield port


def ask(port: int, sql: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(
        "POST", "/", sql.encode(), {k.replace("_", "-"): v for k, v in headers.items()}
    )
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


def test_committed_rows_outlive_kill_9_and_the_directory_is_free_again(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        port = free_port()
        supervisor.start(clickhouse.child(port, tmp_path / "data"))
        supervisor.wait_ready(30)
        ask(port, "CREATE DATABASE d ENGINE = Atomic")
        ask(port, "CREATE TABLE d.t (x Int64) ENGINE = MergeTree ORDER BY x")
        assert ask(port, "INSERT INTO d.t VALUES (1), (2)")[0] == 200
        os.kill(supervisor.pid("clickhouse"), signal.SIGKILL)
        while not supervisor.poll():
            pass
        supervisor.wait_ready(30)
        assert ask(port, "SELECT count() FROM d.t") == (200, "2\n")


def test_a_directory_in_use_is_refused_with_one_line_and_code_2(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(clickhouse.child(free_port(), tmp_path / "data"))
        supervisor.wait_ready(30)
        owner = supervisor.pid("clickhouse")
        second = subprocess.run(
            clickhouse.child(free_port(), tmp_path / "data").argv,
            capture_output=True,
            text=True,
            check=False,
        )
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"another process (pid {owner}) owns the data directory" in second.stderr


def test_a_directory_that_cannot_be_made_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = clickhouse.child(free_port(), tmp_path / "file" / "data").argv
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_port_that_is_taken_is_refused(guarded_port: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is in use"):
        clickhouse.child(guarded_port, tmp_path)


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    process = subprocess.Popen(
        clickhouse.child(port := free_port(), tmp_path).argv, stderr=subprocess.DEVNULL
    )
    while not clickhouse.answers(port):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_the_password_is_asked_for_in_each_of_its_places(guarded_port: int) -> None:
    basic = base64.b64encode(f"default:{PASSWORD}".encode()).decode()
    assert ask(guarded_port, "SELECT 1", Authorization=f"Basic {basic}") == (200, "1\n")
    assert ask(guarded_port, "SELECT 1", X_ClickHouse_Key=PASSWORD) == (200, "1\n")
    for wrong in ({}, {"X_ClickHouse_Key": "guess"}, {"Authorization": "Basic %%%"}):
        status, text = ask(guarded_port, "SELECT 1", **wrong)
        assert status == 403
        assert "Code: 516" in text
        assert PASSWORD not in text


@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_web_pages_are_kept_out(guarded_port: int, header: dict[str, str]) -> None:
    status, text = ask(guarded_port, "SELECT 1", X_ClickHouse_Key=PASSWORD, **header)
    assert (status, "Code: 497" in text) == (403, True)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM file('{file}')",
        "SELECT * FROM `fi\\x6ce` /**/ ('{file}')",
        "SELECT * FROM `{file}`",
        "DESCRIBE file('{file}')",
        "SELECT * FROM url('http://127.0.0.1:1/x', CSV, 'x Int64')",
        "SELECT * FROM s3('http://127.0.0.1:1/bucket/x', CSV, 'x Int64')",
        "SELECT * FROM remote('127.0.0.1:1', system.one)",
        "INSERT INTO FUNCTION file('{file}', CSV, 'x Int64') SELECT 1",
        "CREATE TABLE default.f (x Int64) ENGINE = File(CSV, '{file}')",
        "CREATE DATABASE f ENGINE = Filesystem('/')",
        "SELECT 1 INTO OUTFILE '{file}'",
        "INSERT INTO default.t FROM INFILE '{file}' FORMAT CSV",
        "ATTACH TABLE default.f FROM '{file}' (x Int64) ENGINE = MergeTree ORDER BY x",
        "SELECT 1; attach TABLE default.f FROM '{file}' (x Int64) ENGINE = Log",
        "GRANT ALL ON *.* TO default",
    ],
)
def test_files_and_addresses_of_this_machine_are_out_of_reach(
    guarded_port: int, tmp_path: Path, sql: str
) -> None:
    file = tmp_path / "private.csv"
    file.write_text("1\n")
    ask(guarded_port, "CREATE TABLE default.t (x Int64) ENGINE = Memory", X_ClickHouse_Key=PASSWORD)
    status, text = ask(guarded_port, sql.format(file=file), X_ClickHouse_Key=PASSWORD)
    assert (status, "Code: 497" in text) == (403, True), text
    assert file.read_text() == "1\n"


def test_what_is_not_supported_is_refused_and_not_ignored(guarded_port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guarded_port, timeout=30)
    connection.request("POST", "/?compress=1", b"SELECT 1", {"X-ClickHouse-Key": PASSWORD})
    assert connection.getresponse().status == 501
    connection.close()
    assert ask(guarded_port, "x", X_ClickHouse_Key=PASSWORD, Content_Encoding="snappy")[0] == 501


@pytest.mark.parametrize(
    ("text", "into", "clauses", "format_name", "data"),
    [
        (b"INSERT INTO t VALUES (1)", b"INSERT INTO t ", b"", b"Values", b" (1)"),
        (b"INSERT INTO t FORMAT Native\n\n\x00", b"INSERT INTO t ", b"", b"Native", b"\n\x00"),
        (
            b"INSERT INTO t SETTINGS a=1 VALUES()",
            b"INSERT INTO t ",
            b"SETTINGS a=1 ",
            b"Values",
            b"()",
        ),
        (b"INSERT INTO t FORMAT CSV 1,2", b"INSERT INTO t ", b"", b"CSV", b"1,2"),
        (b"INSERT INTO t FORMAT CSV \r\n1", b"INSERT INTO t ", b"", b"CSV", b"1"),
        (
            b"INSERT INTO `VALUES` (`FORMAT x`) FORMAT CSV\n",
            b"INSERT INTO `VALUES` (`FORMAT x`) ",
            b"",
            b"CSV",
            b"",
        ),
        (
            b"-- FORMAT a\n/* VALUES */ insert into d.t settings async_insert = 0 format JSONEachRow\n{}",
            b"-- FORMAT a\n/* VALUES */ insert into d.t ",
            b"settings async_insert = 0 ",
            b"JSONEachRow",
            b"{}",
        ),
    ],
)
def test_an_insert_is_cut_where_its_data_begins(
    text: bytes, into: bytes, clauses: bytes, format_name: bytes, data: bytes
) -> None:
    assert split_insert(text) == (b"", Insert(into, clauses, format_name, data))


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT 'INSERT INTO t VALUES'",
        b"INSERT INTO t SELECT 1 FORMAT Null",
        b"INSERT INTO t WITH 1 AS x SELECT x",
        b"INSERT INTO t FROM INFILE 'f' FORMAT CSV",
        b"CREATE TABLE t (x Int64) ENGINE = Memory",
        b"",
        b"/* no end",
    ],
)
def test_a_statement_without_data_stays_whole(text: bytes) -> None:
    assert split_insert(text) == (text, None)


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("lz4,zstd,gzip", "lz4"),
        ("gzip;q=0, zstd", "zstd"),
        ("identity", None),
        ("", None),
        ("GZIP", "gzip"),
    ],
)
def test_the_first_known_encoding_that_the_client_accepts_is_used(
    accept: str, encoding: str | None
) -> None:
    assert accepted_encoding(accept) == encoding


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip", "br"])
def test_what_is_compressed_decompresses_to_itself(encoding: str) -> None:
    body = os.urandom(1000) + b"drift" * 100_000
    assert decompress(compress(body, encoding), encoding) == body


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (bytes(1001), "identity"),
        (compress(bytes(10**7), "zstd"), "zstd"),
        (zlib.compress(bytes(10**7)), "deflate"),
    ],
)
def test_a_body_that_is_too_large_is_refused_and_not_cut(
    monkeypatch: pytest.MonkeyPatch, body: bytes, encoding: str
) -> None:
    monkeypatch.setattr(clickhouse, "MAX_BODY_BYTES", 1000)
    with pytest.raises(ClickHouseError, match="larger than 1000 bytes"):
        decompress(body, encoding)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_only_a_post_may_write(method: str) -> None:
    request = read_request(method, {"query": "SELECT 1", "readonly": "0", "max_threads": "1"}, b"")
    assert request.settings == {"readonly": "1", "max_threads": "1"}


def test_fields_are_told_apart_into_parameters_settings_and_the_interface_s_own() -> None:
    fields = {
        "query": "SELECT",
        "param_x": "1",
        "max_threads": "2",
        "database": "d",
        "wait_end_of_query": "1",
    }
    expected = Request(b"SELECT\n1", None, "d", "TabSeparated", {"max_threads": "2"}, {"x": "1"})
    assert read_request("POST", fields, b"1") == expected


def test_a_form_carries_query_and_parameters() -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT {x:String}\n FORMAT Native\r\n'
        b'--B\r\nContent-Disposition: form-data; name="param_x"\r\n\r\nna\xc3\xafve\r\n--B--\r\n'
    )
    fields = read_form("multipart/form-data; boundary=B", body)
    assert fields == {"query": "SELECT {x:String}\n FORMAT Native", "param_x": "naïve"}


def test_a_form_that_is_not_text_is_refused() -> None:
    body = b'--B\r\nContent-Disposition: form-data; name="param_x"\r\n\r\n\xff\r\n--B--\r\n'
    with pytest.raises(ClickHouseError, match="param_x is not UTF-8"):
        read_form("multipart/form-data; boundary=B", body)


def test_no_error_code_is_answered_with_success() -> None:
    assert all(status >= 400 for status in HTTP_STATUS.values())


def test_it_runs_under_the_interpreter_of_its_caller(tmp_path: Path) -> None:
    assert clickhouse.child(1, tmp_path).argv[0] == sys.executable
