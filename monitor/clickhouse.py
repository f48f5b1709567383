"""ClickHouse as Driftline talks to it: one connection, Arrow in and out, errors told apart, and numbered migrations.

An insert is synchronous and carries a token, so that it may be repeated after an error whose outcome nobody knows.
Addresses, passwords and rows never reach an error or a log.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver import exceptions
from clickhouse_connect.driver.client import Client
from urllib3.exceptions import HTTPError

from monitor.errors import ConfigError, DriftlineError, TransientError

CONNECT_TIMEOUT_S: Final = 5  # a host that does not answer by then is down: the caller retries
# Longer than any insert or query of ours takes (seconds); without a bound a lost reply would hang the process for ever.
REPLY_TIMEOUT_S: Final = 60
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_INSERT: Final = {
    "async_insert": 0,  # on by default since 26.3, where a token then may lose rows
    # By default 100: a replay of ten years by months would be refused for ever, as if there were too many parts for now.
    "max_partitions_per_insert_block": 0,
}

_MIGRATING: Final = {
    **_INSERT,
    # A copy of a large table takes longer than REPLY_TIMEOUT_S: something has to come meanwhile. At most 100 headers are
    # read, so 100 times this (ms) is the bound of a statement: 50 minutes.
    "send_progress_in_http_headers": 1,
    "http_headers_progress_interval_ms": 30_000,
}
_TABLE_EXISTS: Final = 57
_RENAMED: Final = (_TABLE_EXISTS, 60)  # UNKNOWN_TABLE
_WAIT_S: Final = 30.0
_TRIES: Final = 20
_TRY_AGAIN_S: Final = 0.1

# Codes of ClickHouse's ErrorCodes.cpp. What is in no list is a defect, and ends the process.
_REFUSED: Final = frozenset(
    # ATTEMPT_TO_READ_AFTER_EOF, CANNOT_PARSE_*, ILLEGAL_COLUMN ..., TYPE_MISMATCH, ARGUMENT_OUT_OF_BOUND, CANNOT_CONVERT_TYPE,
    # INCORRECT_DATA, TOO_LARGE_ARRAY_SIZE, TOO_LARGE_STRING_SIZE, CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN, DECIMAL_OVERFLOW
    (6, 25, 26, 27, 32, 33, 38, 41, 43, 44, 53, 69, 70, 72, 117, 128, 131, 349, 407)
)
_TRANSIENT: Final = frozenset(
    # TIMEOUT_EXCEEDED, READONLY, TOO_MANY_SIMULTANEOUS_QUERIES, NO_FREE_CONNECTION, SOCKET_TIMEOUT, NETWORK_ERROR, ABORTED,
    # MEMORY_LIMIT_EXCEEDED, TABLE_IS_READ_ONLY, NOT_ENOUGH_SPACE, TOO_MANY_PARTS, ALL_CONNECTION_TRIES_FAILED, QUERY_WAS_CANCELLED, KEEPER_EXCEPTION
    (159, 164, 202, 203, 209, 210, 236, 241, 242, 243, 252, 279, 394, 999)
)
_CONFIG: Final[Mapping[int, str]] = {
    16: "a column is missing: run `driftline migrate`",
    60: "a table is missing: run `driftline migrate`",
    81: "the database is missing: run `driftline migrate`",
    192: "unknown user",
    193: "wrong password",
    194: "a password is required",
    497: "the user lacks a right",
    516: "authentication failed: check user and password",
}


class RefusedError(DriftlineError):
    """ClickHouse refuses these rows: the same insert would fail again.

    Attributes:
        code: ClickHouse's error code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"ClickHouse refuses the rows (code {code})")
        self.code = code


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered file of statements that only ever add, or give a table another name."""

    version: int
    name: str
    text: str = field(repr=False)

    @property
    def checksum(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self, database: str) -> list[str]:
        """The statements in order, for one database."""
        code = re.sub(r"--[^\n]*", "", self.text).replace("{database}", f"`{database}`")
        return [part.strip() for part in code.split(";") if part.strip()]


class ClickHouse:
    """One connection to one database. Threads may share it: it holds no session."""

    def __init__(self, client: Client, database: str) -> None:
        if _IDENTIFIER.fullmatch(database) is None:
            raise ConfigError("the database's name must be letters, digits and _")
        client.database = database  # for every request from here on
        self._client = client
        self.database = database

    def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        """Insert ``rows`` durably; a repeat under the same token is dropped if the server still knows it.

        Raises:
            RefusedError: a row is at fault.
            TransientError: it may or may not have been stored: repeat it.
        """
        settings = {
            **_INSERT,
            "insert_deduplicate": 1,
            "insert_deduplication_token": token,
        }
        with translated():
            self._client.insert_arrow(table, rows, settings=settings)

    def execute(self, statement: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement without a result; ``{name:Type}`` stands for a parameter."""
        with translated():
            self._client.command(
                statement,
                parameters=dict(parameters or {}),
                settings=_INSERT,
            )

    def arrow(self, query: str, parameters: Mapping[str, object] | None = None) -> pa.Table:
        """Columns of a query's result."""
        with translated():
            return self._client.query_arrow(
                query,
                parameters=dict(parameters or {}),
                settings={
                    "output_format_arrow_compression_method": "none",  # it is loopback or a LAN
                    # All our partitions are functions of the key, so FINAL need not look across them.
                    "do_not_merge_across_partitions_select_final": 1,
                },
                use_strings=True,
            )

    def rows(
        self, query: str, parameters: Mapping[str, object] | None = None
    ) -> list[dict[str, Any]]:
        """The same as dictionaries, for small results."""
        rows: list[dict[str, Any]] = self.arrow(query, parameters).to_pylist()
        return rows

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def open_client(*, host: str, port: int, user: str, password: str, secure: bool = False) -> Client:
    """A client of ClickHouse's HTTP interface.

    Raises:
        TransientError: nobody answers there.
        ConfigError: the server refuses user or password.
    """
    with translated():
        return clickhouse_connect.get_client(
            host=host,
            port=port,
            username=user,
            password=password,
            secure=secure,
            interface="https" if secure else "http",
            connect_timeout=CONNECT_TIMEOUT_S,
            send_receive_timeout=REPLY_TIMEOUT_S,
            autogenerate_session_id=False,  # a session allows one query at a time
            query_retries=0,  # the caller retries, with backoff
            show_clickhouse_errors="scrub",
        )


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the driver as ours. The texts of the driver may hold addresses and rows, so none is passed on."""
    try:
        yield
    except exceptions.ClickHouseError as err:
        raise _translate(err) from None
    except (HTTPError, OSError) as err:
        raise TransientError(f"ClickHouse does not answer ({type(err).__name__})") from None


def _translate(err: exceptions.ClickHouseError) -> Exception:
    code = getattr(err, "code", None)
    if code is None:
        # The request failed on its way (refused, reset, timed out), or the front end of the server failed it.
        ours = isinstance(err, exceptions.ProgrammingError | exceptions.DataError)
        return err if ours else TransientError("ClickHouse does not answer")
    if code in _CONFIG:
        return ConfigError(f"ClickHouse: {_CONFIG[code]} (code {code})")
    if code in _TRANSIENT:
        return TransientError(f"ClickHouse cannot do it now (code {code})")
    return RefusedError(code) if code in _REFUSED else err


def migrations() -> list[Migration]:
    """All migrations of this release, in order."""
    found = []
    for file in resources.files("monitor").joinpath("migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.version)


def migrate(
    client: Client,
    database: str,
    *,
    dry_run: bool = False,
    known: Sequence[Migration] | None = None,
) -> list[Migration]:
    """Create the database and apply what it lacks; returns what was (or, with ``dry_run``, would be) applied.

    Statements lose nothing and are idempotent, so several processes may do this at once: all succeed, and write the same rows. One that finds
    a table renamed by another, which is ahead of it, leaves that migration to it.
    Applied migrations that this release does not know are a newer release's, and are left alone.

    Raises:
        ConfigError: an applied migration was changed since, or the user lacks a right.
    """
    if _IDENTIFIER.fullmatch(database) is None:
        raise ConfigError("the database's name must be letters, digits and _")
    known = migrations() if known is None else known
    applied = _applied(client, database)
    for migration in known:
        checksum = applied.get(migration.version, migration.checksum)
        if checksum != migration.checksum:
            raise ConfigError(
                f"migration {migration.version:04d}_{migration.name} was changed after it was applied:"
                " undo the change and add a new migration"
            )
    missing = [migration for migration in known if migration.version not in applied]
    if dry_run or not missing:
        return missing
    with translated():
        client.command(f"CREATE DATABASE IF NOT EXISTS `{database}` ENGINE = Atomic")
    link = ClickHouse(client, database)
    link.execute(_MIGRATIONS_TABLE)
    with translated(), _alone(client, database):
        for migration in missing:
            if _apply(client, database, migration):
                link.execute(
                    "INSERT INTO schema_migrations (version, name, checksum)"
                    " VALUES ({version:UInt32}, {name:String}, {checksum:String})",
                    {
                        "version": migration.version,
                        "name": migration.name,
                        "checksum": migration.checksum,
                    },
                )
    return missing


@contextmanager
def _alone(client: Client, database: str) -> Iterator[None]:
    """Hold a lock, which is a table: making one succeeds once.

    It is a courtesy. Who holds it for longer than ``_WAIT_S`` may have died, and the others go on: all stays right, but one that was about to make
    a table may make it once more after another has renamed it, and it stays there, of no use.
    """
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        try:
            client.command(f"CREATE TABLE `{database}`.schema_lock (x UInt8) ENGINE = Null")
            break
        except exceptions.ClickHouseError as err:
            if getattr(err, "code", None) != _TABLE_EXISTS:
                raise
            time.sleep(_TRY_AGAIN_S)
    try:
        yield
    finally:
        client.command(f"DROP TABLE IF EXISTS `{database}`.schema_lock")


def _apply(client: Client, database: str, migration: Migration) -> bool:
    """Run a migration; ``False`` if another process was ahead and has applied it meanwhile: it may be far ahead, and have renamed what this one makes."""
    trouble: exceptions.ClickHouseError | None = None
    for _ in range(_TRIES):
        if migration.version in _applied(client, database):
            return False
        try:
            for statement in migration.statements(database):
                _run(client, statement)
        except exceptions.ClickHouseError as err:
            if getattr(err, "code", None) not in _RENAMED:
                raise
            trouble = err
            time.sleep(_TRY_AGAIN_S)  # another process has a table between two names
        else:
            return True
    if migration.version in _applied(client, database):
        return False
    assert trouble is not None
    raise trouble


def _run(client: Client, statement: str) -> None:
    """Run a statement. A table that is renamed already was so by a run that did not get to say it."""
    try:
        client.command(statement, settings=_MIGRATING)
    except exceptions.ClickHouseError as err:
        if not (statement.startswith("RENAME") and getattr(err, "code", None) in _RENAMED):
            raise


_MIGRATIONS_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
  version UInt32, name String, checksum String, applied_at DateTime('UTC') DEFAULT now()
) ENGINE = ReplacingMergeTree ORDER BY version"""


def _applied(client: Client, database: str) -> dict[int, str]:
    """Checksum by version; empty if nobody migrated this database yet."""
    exists = (
        "SELECT count() AS n FROM system.tables"
        " WHERE database = {database:String} AND name = 'schema_migrations'"
    )
    with translated():
        if client.query(exists, parameters={"database": database}).result_rows[0][0] == 0:
            return {}
        query = f"SELECT version, checksum FROM `{database}`.schema_migrations FINAL"  # noqa: S608 - checked identifier
        return {int(version): str(sum_) for version, sum_ in client.query(query).result_rows}
