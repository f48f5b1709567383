"""What Driftline asks of a ClickHouse server over HTTP, with an ordinary clickhouse-connect client.

Runs against the embedded endpoint, or against the server that CLICKHOUSE_TEST_URL names (http://HOST:PORT).
"""

from __future__ import annotations

import gzip
import http.client
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import clickhouse_connect
import numpy as np
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from streams.embedded import clickhouse
from streams.supervisor import Supervisor, free_port

DATABASE = "contract"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    if url := os.environ.get("CLICKHOUSE_TEST_URL"):
        parts = urlsplit(url)
        yield parts.hostname or "", parts.port or 8123
        return
    directory = tmp_path_factory.mktemp("click house?&")
    with Supervisor(directory / "logs") as supervisor:
        port = free_port()
        supervisor.start(clickhouse.child(port, directory / "data"))
        supervisor.wait_ready(30)
        yield "127.0.0.1", port


@pytest.fixture(scope="module")
def database(address: tuple[str, int]) -> str:
    admin = clickhouse_connect.get_client(host=address[0], port=address[1])
    admin.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    admin.command(f"CREATE DATABASE {DATABASE} ENGINE = Atomic")
    admin.close()
    return DATABASE


@pytest.fixture
def client(address: tuple[str, int], database: str) -> Iterator[Client]:
    client = connect(address)
    yield client
    client.close()


def connect(address: tuple[str, int], compress: bool | str = True) -> Client:
    return clickhouse_connect.get_client(
        host=address[0],
        port=address[1],
        database=DATABASE,
        compress=compress,
        autogenerate_session_id=False,
    )


def first_row(client: Client, sql: str, **options: Any) -> tuple[Any, ...]:
    return tuple(client.query(sql, **options).result_rows[0])


def table(
    client: Client, name: str, columns: str, engine: str = "MergeTree", tail: str = ""
) -> str:
    client.command(f"DROP TABLE IF EXISTS {name} SYNC")
    client.command(f"CREATE TABLE {name} ({columns}) ENGINE = {engine} {tail}")
    return name


def http_request(
    address: tuple[str, int], method: str, target: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*address, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, target, body, names)
    response = connection.getresponse()
    answer = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    connection.close()
    return answer


def test_the_client_is_told_version_and_time_zone(client: Client) -> None:
    assert int(str(client.server_version).split(".")[0]) >= 24
    assert str(client.server_tz) == "UTC"
    assert client.ping()
    assert client.command("SELECT currentDatabase()") == DATABASE


def test_numpy_columns_go_in_and_come_back(client: Client) -> None:
    name = table(
        client, "columns", "at_ms Int64, score Float64, model String", tail="ORDER BY at_ms"
    )
    at_ms, score = np.arange(1000, dtype=np.int64), np.linspace(0, 1, 1000)
    models = np.array([f"m{i % 3}" for i in range(1000)], dtype=object)
    given: list[Any] = [at_ms, score, models]
    summary = client.insert(
        name, given, column_names=["at_ms", "score", "model"], column_oriented=True
    )
    assert summary.written_rows == 1000
    read = client.query_np(f"SELECT at_ms, score, model FROM {name} ORDER BY at_ms")
    np.testing.assert_array_equal(read["at_ms"], at_ms)
    np.testing.assert_array_equal(read["score"], score)
    assert list(read["model"]) == list(models)


def test_every_column_type_of_the_schema_survives_the_way_through(client: Client) -> None:
    name = table(
        client,
        "types",
        "at DateTime64(3, 'UTC'), model LowCardinality(String), counts Array(UInt64), score Nullable(Float64), "
        "tags Map(String, String), kind Enum8('drift' = 1, 'quality' = 2), edges Array(Array(Float64)), ok Bool, "
        "raw String, hour DateTime('UTC')",
        tail="ORDER BY at",
    )
    at = datetime(2013, 5, 1, 12, 30, 15, 123000, tzinfo=UTC)
    hour = datetime(2013, 5, 1, 12, tzinfo=UTC)
    rows = [
        (
            at,
            "flight",
            [1, 2**63],
            None,
            {"a": "x'y"},
            "drift",
            [[0.5], []],
            True,
            "naïve\t\n",
            hour,
        ),
        (at, "délai", [], 0.5, {}, "quality", [], False, "\x00'\\;`--", hour),
    ]
    client.insert(name, rows)
    read = client.query(
        f"SELECT * REPLACE (toTimeZone(at, 'UTC') AS at) FROM {name} ORDER BY score"
    )
    zoned = [
        (r[0].replace(tzinfo=UTC), *r[1:-1], r[-1].replace(tzinfo=UTC)) for r in read.result_rows
    ]
    assert zoned == [rows[1], rows[0]]


def test_arrow_tables_go_in_and_come_back(client: Client) -> None:
    name = table(
        client, "arrow", "id Int64, model String, score Nullable(Float64)", tail="ORDER BY id"
    )
    rows = pa.table(
        {
            "id": pa.array(range(5000), pa.int64()),
            "model": ["m"] * 5000,
            "score": [None, 0.5] * 2500,
        }
    )
    client.insert_arrow(name, rows)
    read = client.query_arrow(
        f"SELECT id, toString(model) AS model, score FROM {name} ORDER BY id", use_strings=True
    )
    assert read.column("id").to_pylist() == list(range(5000))
    assert read.column("score").to_pylist() == [None, 0.5] * 2500
    assert read.column("model").to_pylist() == ["m"] * 5000


def test_arrow_carries_times_dictionaries_lists_and_maps(client: Client) -> None:
    name = table(
        client,
        "nested",
        "at DateTime64(3, 'UTC'), model LowCardinality(String), counts Array(UInt64), tags Map(String, String)",
        tail="ORDER BY at",
    )
    rows = pa.table(
        {
            "at": pa.array([1_359_695_820_123], pa.timestamp("ms", "UTC")),
            "model": pa.array(["flight"]).dictionary_encode(),
            "counts": pa.array([[1, 2]], pa.list_(pa.uint64())),
            "tags": pa.array([[("region", "us")]], pa.map_(pa.string(), pa.string())),
        }
    )
    client.insert_arrow(name, rows)
    row = first_row(client, f"SELECT toUnixTimestamp64Milli(at), model, counts, tags FROM {name}")
    assert row == (1_359_695_820_123, "flight", [1, 2], {"region": "us"})


def test_parameters_are_bound_by_the_server(client: Client) -> None:
    evil = "O'Hara\\ \t\n{x:Int64}; DROP TABLE x --"
    n, text, many, at, none = first_row(
        client,
        "SELECT {n:Int64} + 1, {text:String}, {many:Array(String)}, {at:DateTime64(3)}, {none:Nullable(String)}",
        parameters={
            "n": 41,
            "text": evil,
            "many": ["a", "b'c"],
            "at": datetime(2013, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
            "none": None,
        },
    )
    assert (n, text, many, none) == (42, evil, ["a", "b'c"], None)
    assert at.replace(tzinfo=UTC) == datetime(2013, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def test_parameters_too_long_for_a_url_arrive(client: Client) -> None:
    ids = [f"prediction-{i}" for i in range(20_000)]
    count = first_row(client, "SELECT length({ids:Array(String)})", parameters={"ids": ids})
    assert count == (20_000,)


def test_a_parameter_serves_in_a_command_too(client: Client) -> None:
    name = table(client, "bound", "x Int64", tail="ORDER BY x")
    client.command(f"INSERT INTO {name} SELECT {{x:Int64}}", parameters={"x": 7})
    client.command("ALTER TABLE {t:Identifier} DELETE WHERE x = 8", parameters={"t": name})
    assert client.command(f"SELECT x FROM {name}") == 7


def test_settings_last_for_one_request_only(client: Client) -> None:
    query = "SELECT getSetting('max_block_size')"
    usual = first_row(client, query)
    assert first_row(client, query, settings={"max_block_size": 1234}) == (1234,)
    assert first_row(client, query) == usual != (1234,)


def test_a_repeated_insert_token_is_applied_once(client: Client) -> None:
    name = table(
        client,
        "tokens",
        "x Int64",
        tail="ORDER BY x SETTINGS non_replicated_deduplication_window = 100",
    )
    for token in ("a", "a", "b"):
        settings = {"async_insert": 0, "insert_deduplicate": 1, "insert_deduplication_token": token}
        client.insert(name, [[1], [2]], column_names=["x"], settings=settings)
    assert client.command(f"SELECT count() FROM {name}") == 4


def test_final_reads_the_highest_revision(client: Client) -> None:
    name = table(
        client,
        "revisions",
        "k String, v Int64, revision UInt64",
        "ReplacingMergeTree(revision)",
        "ORDER BY k",
    )
    for revision in (1, 3, 2):
        client.insert(name, [["w", revision * 10, revision]])
    assert client.query(f"SELECT v FROM {name} FINAL").result_rows == [(30,)]


def test_an_insert_of_200_000_rows_is_whole(client: Client) -> None:
    name = table(client, "large", "id String, x Float64, n UInt32", tail="ORDER BY id")
    rng = np.random.default_rng(7)
    ids = [f"{i:032d};\n" for i in range(200_000)]
    x, n = rng.normal(size=200_000), rng.integers(0, 1000, 200_000, dtype=np.uint32)
    columns: list[Any] = [ids, x, n]
    client.insert(name, columns, column_names=["id", "x", "n"], column_oriented=True)
    count, total, unique = first_row(client, f"SELECT count(), sum(n), uniqExact(id) FROM {name}")
    assert (count, total, unique) == (200_000, int(n.sum()), 200_000)


@pytest.mark.parametrize("method", ["lz4", "zstd", "gzip", False])
def test_each_compression_works_both_ways(
    address: tuple[str, int], database: str, method: str | bool
) -> None:
    client = connect(address, compress=method)
    name = table(
        client, f"compressed_{method}".lower(), "id Int64, text String", tail="ORDER BY id"
    )
    rows = [[i, "drift " * 20] for i in range(20_000)]
    client.insert(name, rows, column_names=["id", "text"])
    assert client.query(f"SELECT id, text FROM {name} ORDER BY id").result_rows == [
        tuple(r) for r in rows
    ]
    client.close()


def test_twenty_queries_at_once_all_answer(address: tuple[str, int], database: str) -> None:
    client = connect(address)
    name = table(client, "busy", "x Int64", tail="ORDER BY x")

    def work(number: int) -> int:
        client.insert(name, [[number]], column_names=["x"], settings={"async_insert": 0})
        total: int = first_row(
            client, "SELECT sum(number) + {n:Int64} FROM numbers(1000)", parameters={"n": number}
        )[0]
        return total

    with ThreadPoolExecutor(20) as threads:
        totals = list(threads.map(work, range(20)))
    assert totals == [499500 + number for number in range(20)]
    assert client.command(f"SELECT uniqExact(x) FROM {name}") == 20
    client.close()


@pytest.mark.parametrize(
    ("sql", "code", "name", "status"),
    [
        ("SELECT * FROM absent", 60, "UNKNOWN_TABLE", 404),
        ("SELEC 1", 62, "SYNTAX_ERROR", 400),
        ("SELECT toInt64('x')", 6, "CANNOT_PARSE_TEXT", 400),
        ("SELECT {x:Int64}", 456, "UNKNOWN_QUERY_PARAMETER", 500),
        ("SELECT 1 SETTINGS no_such_setting = 1", 115, "UNKNOWN_SETTING", 404),
        ("SELECT throwIf(1)", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", 500),
    ],
)
def test_a_refusal_has_clickhouse_s_code_name_and_status(
    address: tuple[str, int], client: Client, sql: str, code: int, name: str, status: int
) -> None:
    with pytest.raises(DatabaseError, match=name) as refusal:
        client.query(sql)
    assert refusal.value.code == code
    got, headers, body = http_request(address, "POST", f"/?database={DATABASE}", sql.encode())
    assert (got, headers["x-clickhouse-exception-code"]) == (status, str(code))
    assert body.startswith(f"Code: {code}. DB::Exception: ".encode())


def test_a_refused_insert_leaves_no_row(client: Client) -> None:
    name = table(client, "refused", "x UInt8, CONSTRAINT small CHECK x < 10", tail="ORDER BY x")
    with pytest.raises(DatabaseError, match="VIOLATED_CONSTRAINT"):
        client.insert(name, [[1], [99]], column_names=["x"])
    assert client.command(f"SELECT count() FROM {name}") == 0


def test_a_setting_of_the_url_that_does_not_exist_is_refused(
    address: tuple[str, int], database: str
) -> None:
    status, headers, _ = http_request(address, "POST", "/?no_such_setting=1", b"SELECT 1")
    assert (status, headers["x-clickhouse-exception-code"]) == (404, "115")


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("FORMAT JSONCompactEachRow", b'[7, "a"]\n'),
        ("FORMAT CSV", b'7,"a"\n'),
        ("", b"7\ta\n"),
        ("FORMAT TabSeparatedWithNames", b"x\ty\n7\ta\n"),
    ],
)
def test_the_format_clause_or_else_the_default_decides(
    address: tuple[str, int], tail: str, expected: bytes
) -> None:
    status, headers, body = http_request(
        address, "POST", "/", f"SELECT toUInt8(7) AS x, 'a' AS y {tail}".encode()
    )
    assert (status, body) == (200, expected)
    assert headers["x-clickhouse-format"] == (tail.removeprefix("FORMAT ") or "TabSeparated")


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("INSERT INTO contract.texts VALUES", b"(1, 'a;b'), (2, 'c\nd')"),
        ("", b"INSERT INTO contract.texts (x, y) VALUES (1, 'a;b'), (2, 'c\nd');"),
        (
            "INSERT INTO contract.texts FORMAT JSONEachRow",
            b'{"x":1,"y":"a;b"}\n{"x":2,"y":"c\\nd"}\n',
        ),
        (
            "",
            b'insert into `contract`.texts SETTINGS async_insert = 0 format CSV\n1,a;b\n2,"c\nd"\n',
        ),
        (
            "",
            b"/* FORMAT */ INSERT INTO contract.texts (`x`, y) -- VALUES\n SELECT arrayJoin([1, 2]) AS x, if(x = 1, 'a;b', 'c\nd')",
        ),
    ],
)
def test_every_form_of_insert_is_understood(
    address: tuple[str, int], client: Client, query: str, body: bytes
) -> None:
    table(client, "texts", "x Int64, y String", tail="ORDER BY x")
    status, _, answer = http_request(
        address, "POST", f"/?query={quote(query)}" if query else "/", body
    )
    assert (status, answer) == (200, b"")
    assert client.query("SELECT * FROM texts").result_rows == [(1, "a;b"), (2, "c\nd")]


def test_a_body_may_be_compressed_and_a_broken_one_is_refused(address: tuple[str, int]) -> None:
    packed = gzip.compress(b"SELECT 5")
    assert http_request(address, "POST", "/", packed, Content_Encoding="gzip")[2] == b"5\n"
    assert (
        http_request(address, "POST", "/", packed[:-6] + b"broken", Content_Encoding="gzip")[0]
        >= 400
    )


def test_a_get_cannot_write(address: tuple[str, int], client: Client) -> None:
    table(client, "kept", "x Int64", tail="ORDER BY x")
    status, headers, _ = http_request(
        address, "GET", f"/?query={quote('DROP TABLE contract.kept')}"
    )
    assert (status, headers["x-clickhouse-exception-code"]) == (500, "164")
    assert client.command("EXISTS TABLE kept") == 1


def test_a_table_can_be_dropped_and_made_again_at_once(client: Client) -> None:
    for rows in range(1, 10):
        name = table(client, "again", "x Int64", tail="ORDER BY x")  # drops it first, with SYNC
        client.insert(name, [[x] for x in range(rows)], column_names=["x"])
        assert client.command(f"SELECT count() FROM {name}") == rows


def test_an_empty_result_is_a_result_and_not_an_acknowledgement(client: Client) -> None:
    assert client.command("SELECT 1 WHERE 0") == ""
    assert client.query("SELECT 1 AS a WHERE 0").result_rows == []


def test_introspection_that_migrations_use_is_there(client: Client) -> None:
    name = table(
        client,
        "inspected",
        "x Int64 COMMENT 'the x'",
        tail="ORDER BY x TTL toDateTime(x) + INTERVAL 1 DAY",
    )
    columns = client.query(
        f"SELECT name, type, comment FROM system.columns WHERE database = '{DATABASE}' AND table = '{name}'"
    )
    assert columns.result_rows == [("x", "Int64", "the x")]
    assert "TTL" in str(client.command(f"SHOW CREATE TABLE {name}"))
