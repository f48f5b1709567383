"""ClickHouse's HTTP interface over chDB, so that ordinary clients work where no ClickHouse server is.

chDB allows one process per data directory, and this is that process::

    HTTP ──► read_request() ──► Request(statement, insert, settings, parameters) ──► Engine.run() ──► Answer ──► HTTP

Each request has a chDB handle of its own (0.6 ms), so its database and settings reach no other request. Bodies and
results are whole in memory, as with ``wait_end_of_query=1``. Not here, and refused where it would matter: sessions
(temporary tables, a ``SET`` that lasts), block compression (``compress=1``), external tables, users other than
the one password.

Run as ``python -m streams.embedded.clickhouse --port 8123 --path DIR``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import email.parser
import email.policy
import hmac
import http.client
import os
import re
import signal
import sys
import uuid
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import pyarrow as pa
import uvicorn

from monitor.errors import ConfigError
from streams.embedded.engine import (
    ACCESS_DENIED,
    Answer,
    ClickHouseError,
    Engine,
    Request,
    split_insert,
)
from streams.supervisor import LOOPBACK, Child, is_free

PASSWORD_VARIABLE: Final = "DRIFTLINE_CLICKHOUSE__PASSWORD"  # noqa: S105  # a name; clients read the same one
QUERY_THREADS: Final = 8  # each query uses all cores: more at once would only take memory
MAX_BODY_BYTES: Final = 512 << 20  # after decompression
MAX_HEAD_BYTES: Final = 1 << 20  # clients put parameters and settings into the URL
STOP_TIMEOUT_S: Final = 10

# ClickHouse, src/Server/HTTP/exceptionCodeToHTTPStatus.cpp. Every other code is a 500.
# fmt: off
_CODES: Final = {
    400: (
        6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 441, 675, 676,
    ),
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
    408: (159,),
    413: (229,),
    501: (48,),
    503: (76, 209, 439),
}
# fmt: on
HTTP_STATUS: Final = {code: status for status, codes in _CODES.items() for code in codes}
NOT_IMPLEMENTED, AUTHENTICATION_FAILED, INCORRECT_DATA = 48, 516, 117

# Parameters of the interface itself. Every other one is a setting, or ``param_NAME``.
# fmt: off
TRANSPORT_PARAMETERS: Final = frozenset({
    "query", "query_id", "database", "default_format", "user", "password", "quota_key", "role",
    "session_id", "session_check", "session_timeout", "client_protocol_version",
    "compress", "decompress", "buffer_size", "wait_end_of_query",
})
# fmt: on
CODECS: Final = {"lz4": "lz4", "zstd": "zstd", "gzip": "gzip", "br": "brotli"}  # lz4: frames

_PLAIN: Final = re.compile(r"[\w.:-]+", re.ASCII)  # may be sent back in a header

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def read_request(method: str, fields: Mapping[str, str], body: bytes) -> Request:
    """Build a request from the URL's (and form's) fields and the body.

    Raises:
        ClickHouseError: it asks for something that is not here.
    """
    if fields.get("compress", "0") != "0" or fields.get("decompress", "0") != "0":
        raise ClickHouseError(
            NOT_IMPLEMENTED,
            "compress=1 and decompress=1 are not supported: use Accept-Encoding and Content-Encoding",
        )
    parts = [part for part in (fields.get("query", "").encode(), body) if part]
    statement, insert = split_insert(b"\n".join(parts))
    settings = {
        name: value
        for name, value in fields.items()
        if name not in TRANSPORT_PARAMETERS and not name.startswith("param_")
    }
    if method != "POST":
        settings["readonly"] = "1"  # as ClickHouse: a link cannot change anything
    return Request(
        statement,
        insert,
        database=fields.get("database", ""),
        default_format=fields.get("default_format", "TabSeparated"),
        settings=settings,
        parameters={k[6:]: v for k, v in fields.items() if k.startswith("param_")},
    )


def read_form(content_type: str, body: bytes) -> dict[str, str]:
    """Fields of a ``multipart/form-data`` body: clients send parameters that are too long for a URL so."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    fields = {}
    for part in message.iter_parts():
        if part.get_filename():
            raise ClickHouseError(NOT_IMPLEMENTED, "External tables are not supported")
        name = str(part.get_param("name", header="content-disposition"))
        payload = part.get_payload(decode=True)
        try:
            fields[name] = payload.decode() if isinstance(payload, bytes) else ""
        except UnicodeDecodeError:
            raise ClickHouseError(INCORRECT_DATA, f"Form field {name} is not UTF-8") from None
    return fields


def decompress(body: bytes, encoding: str) -> bytes:
    """Undo a Content-Encoding, up to ``MAX_BODY_BYTES``."""
    try:
        if encoding == "identity":
            plain = body
        elif encoding == "deflate":
            plain = zlib.decompressobj().decompress(body, MAX_BODY_BYTES + 1)
        elif encoding in CODECS:
            with pa.CompressedInputStream(pa.BufferReader(body), CODECS[encoding]) as stream:
                plain = stream.read(MAX_BODY_BYTES + 1)
        else:
            raise ClickHouseError(NOT_IMPLEMENTED, f"Unknown Content-Encoding {encoding!r}")
    except (OSError, EOFError, zlib.error) as error:
        raise ClickHouseError(INCORRECT_DATA, f"Body is not {encoding}: {error}") from None
    if len(plain) > MAX_BODY_BYTES:
        raise ClickHouseError(INCORRECT_DATA, f"Body is larger than {MAX_BODY_BYTES} bytes")
    return plain


def compress(body: bytes, encoding: str) -> bytes:
    """Apply a Content-Encoding of ``CODECS``."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, CODECS[encoding]) as stream:
        stream.write(body)
    return bytes(sink.getvalue())


def accepted_encoding(accept: str) -> str | None:
    """First encoding of the client's list that is known here."""
    offers = (offer.partition(";") for offer in accept.lower().split(","))
    known = (name.strip() for name, _, weight in offers if weight.replace(" ", "") != "q=0")
    return next((name for name in known if name in CODECS), None)


class Endpoint:
    """The ASGI application."""

    def __init__(self, engine: Engine, password: str) -> None:
        self._engine = engine
        self._password = password
        self._threads = ThreadPoolExecutor(QUERY_THREADS, thread_name_prefix="query")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        body = bytearray()
        more = True
        while more and len(body) <= MAX_BODY_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(
            self._threads,
            self.answer,
            scope["method"],
            scope["path"],
            scope["query_string"],
            headers,
            bytes(body),
        )
        lines = [(k.lower().encode(), v.encode("latin-1")) for k, v in answer.headers.items()]
        lines.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": lines})
        await send(
            {
                "type": "http.response.body",
                "body": b"" if scope["method"] == "HEAD" else answer.body,
            }
        )

    def answer(
        self, method: str, path: str, query_string: bytes, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Whole way of a request, off the event loop. Header names are in lower case."""
        try:
            refuse_browsers(headers)
            if method in ("GET", "HEAD") and (
                path in ("/ping", "/replicas_status") or (path == "/" and not query_string)
            ):
                return Answer(b"Ok.\n")
            if path != "/":
                return Answer(b"There is no such page. SQL is sent to /\n", 404)
            fields = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
            self._authenticate(headers, fields)
            plain = decompress(body, headers.get("content-encoding", "identity"))
            if (content_type := headers.get("content-type", "")).startswith("multipart/form-data"):
                fields, plain = fields | read_form(content_type, plain), b""
            request = read_request(method, fields, plain)
            answer = self._engine.run(request)
        except ClickHouseError as error:
            return self._refusal(error)
        return _dressed(answer, fields, headers)

    def close(self) -> None:
        """Wait for the queries that run, then close the engine."""
        self._threads.shutdown(cancel_futures=True)
        self._engine.close()

    def _authenticate(self, headers: Mapping[str, str], fields: Mapping[str, str]) -> None:
        given = (
            headers.get("x-clickhouse-key") or fields.get("password") or _basic_password(headers)
        )
        if self._password and not hmac.compare_digest(given.encode(), self._password.encode()):
            raise ClickHouseError(
                AUTHENTICATION_FAILED, "Authentication failed: password is incorrect"
            )

    def _refusal(self, error: ClickHouseError) -> Answer:
        text = f"{error} (version {self._engine.version} (chDB))\n"
        return Answer(
            text.encode(),
            HTTP_STATUS.get(error.code, 500),
            {
                "X-ClickHouse-Exception-Code": str(error.code),
                "Content-Type": "text/plain; charset=UTF-8",
            },
        )


def refuse_browsers(headers: Mapping[str, str]) -> None:
    """Keep web pages out: a page can reach the loopback address, and so the tables."""
    host, _, _port = headers.get("host", LOOPBACK).partition(":")
    if "origin" in headers or host not in (LOOPBACK, "localhost"):
        raise ClickHouseError(
            ACCESS_DENIED, "Requests of web pages and under other host names are refused"
        )


def _basic_password(headers: Mapping[str, str]) -> str:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _dressed(answer: Answer, fields: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
    query_id = fields.get("query_id", "")
    extra = {
        "X-ClickHouse-Query-Id": query_id if _PLAIN.fullmatch(query_id) else str(uuid.uuid4()),
        "X-ClickHouse-Timezone": "UTC",
        "Content-Type": "application/octet-stream",
    }
    encoding = accepted_encoding(headers.get("accept-encoding", ""))
    if encoding is None or not answer.body or fields.get("enable_http_compression") == "0":
        return Answer(answer.body, 200, {**answer.headers, **extra})
    extra["Content-Encoding"] = encoding
    return Answer(compress(answer.body, encoding), 200, {**answer.headers, **extra})


def child(port: int, path: Path, env: Mapping[str, str] | None = None) -> Child:
    """The endpoint as a child of the supervisor. It may be restarted: its data is on disk.

    Raises:
        ConfigError: the port is taken.
    """
    if not is_free(port):  # else a foreign server would pass for ours
        raise ConfigError(f"port {port} for the embedded ClickHouse is in use: choose another")
    module = (sys.executable, "-m", "streams.embedded.clickhouse")
    argv = (*module, "--port", str(port), "--path", str(path))
    return Child("clickhouse", argv, env or {}, partial(answers, port))


def answers(port: int) -> bool:
    """Whether the endpoint answers a ping."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Code 2: it cannot start as it was asked to."""
    parser = argparse.ArgumentParser(
        description="ClickHouse's HTTP interface over chDB, on 127.0.0.1."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--path", type=Path, required=True, help="data directory; one process at a time"
    )
    parser.add_argument(
        "--memory-mb", type=int, default=2048, help="limit of the engine (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)  # uvicorn raises the signal again when it has stopped
    os.environ["TZ"] = "UTC"  # as a server in its container; chDB reads it when it starts
    try:
        engine = Engine(options.path, options.memory_mb << 20)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    endpoint = Endpoint(engine, os.environ.get(PASSWORD_VARIABLE, ""))
    try:
        uvicorn.run(
            endpoint,
            host=LOOPBACK,
            port=options.port,
            http="h11",
            loop="asyncio",
            lifespan="off",
            access_log=False,
            log_level="warning",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    finally:
        endpoint.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
