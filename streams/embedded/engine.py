"""chDB on one directory: statements in, bytes out, errors with ClickHouse's codes.

Data of an INSERT reaches chDB as a file in memory (``FROM INFILE``): inline in the statement, chDB cut a Native
block of 30 MB short, and a temporary file would cost a disk.

Whoever reaches the engine may use its tables, and nothing else of this machine: no grant covers the functions and
engines that read or write files, addresses and programs (``file``, ``url``, ``s3``, ``remote``, ``File`` ...).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Self

from monitor.errors import ConfigError

UNKNOWN_SETTING: Final = 115
ACCESS_DENIED: Final = 497
UNKNOWN_EXCEPTION: Final = 1002

_CODE: Final = re.compile(r"Code: (\d+)\. ")
_SETTING: Final = re.compile(r"[A-Za-z_]\w*\Z")
_COMMENT: Final = r"--[^\n]*(?:\n|\Z)|/\*.*?\*/"
_QUERY: Final = re.compile(
    rf"(?:\s|\(|{_COMMENT})*(?:SELECT|WITH|SHOW|DESC|DESCRIBE|EXISTS|EXPLAIN|CHECK)\b", re.I | re.S
)
_FORMAT: Final = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.I)
_TOKEN: Final = re.compile(
    rf"\s+|{_COMMENT}|`(?:\\.|[^`\\])*`|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|\w+|.".encode(), re.S
)
# Mostly waits for ever in chDB, also with the delay at 0; without it the files go a moment later.
_SYNC: Final = re.compile(rb"\A(\s*(?:DROP|DETACH)\b.*)\bSYNC\s*;?\s*\Z", re.I | re.S)
# chDB runs these as its own client, past all grants: they read, write or move any file of this user.
_PAST_GRANTS: Final = re.compile(rb"\b(INFILE|OUTFILE|ATTACH)\b", re.I)
_GRANTS: Final = (
    "SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE TEMPORARY TABLE, DROP, TRUNCATE, "
    "OPTIMIZE, SHOW, KILL QUERY"
)
_FORMAT_NAME: Final = re.compile(rb"\s+(\w+)[ \t\f]*\r?\n?")


class ClickHouseError(Exception):
    """A statement or request that ClickHouse would refuse. ``code`` is ClickHouse's own."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(
            message if message.startswith("Code: ") else f"Code: {code}. DB::Exception: {message}"
        )
        self.code = code

    @classmethod
    def from_engine(cls, error: RuntimeError) -> Self:
        """Read the code from chDB's text, which has the form of ClickHouse's: ``Code: 60. DB::Exception: …``."""
        text = str(error)
        match = _CODE.search(text)
        return cls(int(match[1]), text[match.start() :]) if match else cls(UNKNOWN_EXCEPTION, text)


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT that carries data: ``into`` + ``clauses`` + ``FORMAT format`` + data."""

    into: bytes
    clauses: bytes
    format: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One statement and what applies to it. ``statement`` is empty if ``insert`` is set."""

    statement: bytes
    insert: Insert | None = None
    database: str = ""
    default_format: str = "TabSeparated"
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def result_format(self) -> str | None:
        """Format of the result, or None if the statement has none."""
        text = self.statement.decode(errors="replace")
        if not _QUERY.match(text):
            return None
        match = _FORMAT.search(text)
        return match[1] if match else self.default_format


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: body, HTTP status, headers."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def split_insert(text: bytes) -> tuple[bytes, Insert | None]:
    """Cut an INSERT at its data, which begins behind VALUES, or behind the line of ``FORMAT name``.

    Returns:
        the statement as it was and None, if it is no INSERT or takes its rows from a SELECT or a file.
    """
    depth, settings, first = 0, None, True
    for match in _TOKEN.finditer(text):
        word, start = match[0].upper(), match.start()
        depth += (word == b"(") - (word == b")")
        if depth or not word.isalpha():
            continue
        if first != (word == b"INSERT") or word in (b"SELECT", b"WITH", b"FROM", b"WATCH"):
            break
        first = False
        if word == b"SETTINGS":
            settings = start
        into, clauses = text[: settings or start], text[settings or start : start]
        if word == b"VALUES":
            return b"", Insert(into, clauses, b"Values", text[match.end() :])
        if word == b"FORMAT" and (name := _FORMAT_NAME.match(text, match.end())):
            return b"", Insert(into, clauses, name[1], text[name.end() :])
    return text, None


class Engine:
    """chDB, for the life of the process (chDB cannot be opened twice in one). Safe to use from many threads.

    Args:
        path: data directory; created if missing. Becomes the process's working directory.
        memory_bytes: limit of all queries together; one query may take three quarters of it.

    Raises:
        ConfigError: another process has the directory, or it cannot be used.
    """

    def __init__(self, path: Path, memory_bytes: int) -> None:
        self._lock = _lock_directory(path)
        (path / "config.xml").write_text(_server_config(memory_bytes))
        (path / "users.xml").write_text(_users_config())
        os.chdir(path)  # chDB would read ? and & in an absolute path as options
        import chdb  # late, because the import itself starts an engine: 0.4 s

        self._connect = partial(chdb.connect, "store?config-file=config.xml")
        try:
            self._keeper = self._connect()  # the engine stops with its last handle
        except RuntimeError as error:
            raise ConfigError(f"chDB cannot open {path}: {error}") from None
        self._limits = {"max_memory_usage": str(memory_bytes * 3 // 4)}
        self.version = self.run(Request(b"SELECT version()")).body.decode().strip()

    def close(self) -> None:
        """Release the directory. Nothing may run any more."""
        self._keeper.close()
        self._lock.close()

    def run(self, request: Request) -> Answer:
        """Run one statement, on a handle of its own.

        Raises:
            ClickHouseError: refused, as ClickHouse would.
        """
        settings = ", ".join(
            _assignment(*pair) for pair in {**self._limits, **request.settings}.items()
        )
        handle = self._connect()
        try:
            if request.database:
                database = request.database.replace("\\", "\\\\").replace("`", "\\`")
                handle.query(f"USE `{database}`", "Null")
            handle.query(f"SET {settings}", "Null")
            with _whole_statement(request) as statement:
                result = handle.query(
                    statement,  # type: ignore[arg-type]  # bytes are taken as they are
                    request.default_format,
                    params=dict(request.parameters),
                )
                return Answer(bytes(result.bytes() or b""), headers=_headers(request, result))
        except RuntimeError as error:
            raise ClickHouseError.from_engine(error) from None
        finally:
            handle.close()


def _lock_directory(path: Path) -> IO[str]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a+")
    except OSError as error:
        raise ConfigError(f"cannot use the data directory {path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise ConfigError(
            f"another process (pid {owner}) owns the data directory {path}: stop it, or choose another directory"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _server_config(memory_bytes: int) -> str:
    names = ("mark", "index_mark", "primary_index", "uncompressed", "index_uncompressed")
    values = {
        "max_server_memory_usage": memory_bytes,
        "background_pool_size": 2,
        "background_schedule_pool_size": 4,
        "database_atomic_delay_before_drop_table_sec": 0,  # 480 by default: files of dropped tables
        **{f"{name}_cache_size": memory_bytes // 32 for name in names},  # 5 GiB each by default
    }
    lines = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    lines += "<users_config>users.xml</users_config><logger><level>none</level></logger>"
    return f"<clickhouse>{lines}</clickhouse>\n"


def _users_config() -> str:
    user = (
        "<password></password><networks><ip>::/0</ip></networks><profile>default</profile>"
        f"<quota>default</quota><grants><query>GRANT {_GRANTS} ON *.*</query></grants>"
    )
    return (
        "<clickhouse><profiles><default/></profiles><quotas><default/></quotas>"
        f"<users><default>{user}</default></users></clickhouse>\n"
    )


def _assignment(name: str, value: str) -> str:
    if not _SETTING.match(name):
        raise ClickHouseError(UNKNOWN_SETTING, f"Unknown setting {name!r}. (UNKNOWN_SETTING)")
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name} = '{escaped}'"


@contextmanager
def _whole_statement(request: Request) -> Iterator[bytes]:
    insert = request.insert
    for part in (request.statement, insert.into + insert.clauses if insert else b""):
        if match := _PAST_GRANTS.search(part):
            raise ClickHouseError(
                ACCESS_DENIED, f"{match[0].decode().upper()} is refused here. (ACCESS_DENIED)"
            )
    if insert is None:
        yield _SYNC.sub(rb"\1", request.statement)
        return
    file = os.memfd_create("insert")
    try:
        with open(file, "wb", closefd=False) as stream:
            stream.write(insert.data)
        source = f" FROM INFILE '/proc/self/fd/{file}' ".encode()
        yield insert.into + source + insert.clauses + b" FORMAT " + insert.format
    finally:
        os.close(file)


def _headers(request: Request, result: Any) -> dict[str, str]:
    side = "read" if request.insert is None else "written"
    summary = {
        f"{side}_rows": str(result.rows_read()),
        f"{side}_bytes": str(result.bytes_read()),
        "elapsed_ns": str(int(result.elapsed() * 1e9)),
    }
    headers = {"X-ClickHouse-Summary": json.dumps(summary)}
    if (result_format := request.result_format) is not None:
        headers["X-ClickHouse-Format"] = result_format
    return headers
