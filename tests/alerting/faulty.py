"""A receiver that counts, and a TCP proxy before it that fails in every way that a network or a service can.

::

    Sender ──► Names (which address?) ──► Proxy (which fault?) ──► Receiver (which key?)

The script has one fault per attempt, and of each attempt there is one ``Try``: whether the receiver took the request, and
whether the sender was told so. Only where the first is true and the second is not may the receiver see a key again.
Attempts through one proxy follow one another, as they do in a lane of the dispatcher.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, repeat
from typing import Any, Final, TypeAlias, cast

from typing_extensions import override

from alerting.requests import Request

LOOPBACK: Final = "127.0.0.1"
NOBODY: Final = "127.0.0.2"  # on loopback too, and nothing listens there
METADATA: Final = "169.254.169.254"  # of the cloud: what a forged address is after
RETRY_AFTER_S: Final = 7
DRIP_S: Final = 0.05


class Fault(Enum):
    """What becomes of one attempt."""

    NONE = "none"
    # At the name server.
    UNRESOLVED = "unresolved"
    REFUSED = "refused"  # the name leads to where nobody listens
    # Before TLS is up.
    WRONG_CERTIFICATE = "wrong certificate"
    PLAIN_TEXT = "plain text on a TLS port"
    # The receiver does not hear of it.
    CLOSED = "closed at once"
    RESET_BEFORE = "reset before the receiver"
    BLACK_HOLE = "black hole"
    GARBAGE = "garbage"
    REDIRECT = "redirect"
    THROTTLED = "429"
    INTERNAL_ERROR = "500"
    UNAVAILABLE = "503"
    # The receiver takes it, and the sender is not told.
    RESET_AFTER = "reset after the receiver"
    SILENCE = "silence"
    DRIP_HEAD = "dripped head"
    HALF_HEAD = "half a head"
    BAD_GATEWAY = "502"
    # The receiver takes it, and the sender is told: of the answer, only the body is lost.
    DRIP_BODY = "dripped body"
    HALF_BODY = "half a body"


LOOKUPS: Final = frozenset({Fault.UNRESOLVED, Fault.REFUSED})
HANDSHAKES: Final = (Fault.WRONG_CERTIFICATE, Fault.PLAIN_TEXT)
TOLD: Final = frozenset({Fault.NONE, Fault.DRIP_BODY, Fault.HALF_BODY})
TAKEN: Final = TOLD | {
    Fault.RESET_AFTER,
    Fault.SILENCE,
    Fault.DRIP_HEAD,
    Fault.HALF_HEAD,
    Fault.BAD_GATEWAY,
}
SLOW: Final = frozenset({Fault.BLACK_HOLE, Fault.SILENCE, Fault.DRIP_HEAD, Fault.DRIP_BODY})
_BODY: Final = b"of no interest: " + b"x" * 64
Script: TypeAlias = Iterable[Fault | bytes]
"""One entry per attempt: a fault, or the bytes of an answer that is given in the receiver's place."""


def answer(status: str, *headers: str) -> bytes:
    """An answer of HTTP."""
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(_BODY)}", "connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + _BODY


_ANSWERS: Final[Mapping[Fault | bytes, bytes]] = {
    Fault.GARBAGE: b"220 mail.example ESMTP\r\n" * 3,
    # A redirect often quotes the path that was asked for; {path} stands for it.
    Fault.REDIRECT: answer("307 Temporary Redirect", f"location: http://{METADATA}{{path}}"),
    Fault.THROTTLED: answer("429 Too Many Requests", f"retry-after: {RETRY_AFTER_S}"),
    Fault.INTERNAL_ERROR: answer("500 Internal Server Error"),
    Fault.UNAVAILABLE: answer("503 Service Unavailable"),
    Fault.BAD_GATEWAY: answer("502 Bad Gateway"),
}


@dataclass
class Try:
    """One attempt. Mutable: filled in as it goes.

    Attributes:
        fault: from the script.
        key: of the request, once the receiver took it.
        told: whether the status of the receiver's answer was given to the sender, who was still there.
        connections: to the proxy.
        waited_s: until the next attempt; noted by whoever sleeps.
    """

    fault: Fault | bytes
    key: str | None = None
    told: bool = False
    connections: int = 0
    waited_s: float | None = None


Take: TypeAlias = Callable[[Request], tuple[str, int]]
"""Key and status of a request, from a service that is strict. The ``url`` is the path."""


@dataclass
class Receiver:
    """An HTTP server that counts what it takes. Mutable.

    Attributes:
        take: the service.
        keys: of the requests that were taken, in the order of arrival.
        bodies: of these, by key.
        requests: all of them.
        refused: paths and statuses of those that were not taken.
    """

    take: Take
    keys: list[str] = field(default_factory=list)
    bodies: dict[str, set[bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    refused: list[tuple[str, int]] = field(default_factory=list)

    @property
    def seen(self) -> Counter[str]:
        """How often each key was taken."""
        return Counter(self.keys)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read(reader)
        self.requests.append(request)
        key, status = self.take(request)
        if 200 <= status < 300 or status == 409:  # there is a run of this name: it came before
            self.keys.append(key)
            self.bodies.setdefault(key, set()).add(request.body)
        else:
            self.refused.append((request.url, status))
        writer.write(answer(f"{status} Said", f"x-key: {key}"))
        await writer.drain()


class Proxy:
    """Stands before a receiver. Mutable: ``tries`` grows.

    Args:
        upstream: the receiver's port.
        script: of faults; after its end there are none.
        right: the context of TLS, where the proxy speaks it; it vouches for the receiver's name.
        wrong: one that vouches for another name.
    """

    def __init__(
        self,
        upstream: int,
        script: Script = (),
        right: ssl.SSLContext | None = None,
        wrong: ssl.SSLContext | None = None,
    ) -> None:
        self._upstream, self._right, self._wrong = upstream, right, wrong
        self._script: Iterator[Fault | bytes] = chain(script, repeat(Fault.NONE))
        self.tries: list[Try] = []

    def begin(self) -> Try:
        """The next attempt."""
        self.tries.append(Try(next(self._script)))
        return self.tries[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = self.tries[-1]
        now.connections += 1
        if now.fault is Fault.CLOSED:
            return
        if self._right is not None:
            if now.fault is Fault.PLAIN_TEXT:
                writer.write(answer("400 The plain HTTP request was sent to HTTPS port"))
                await _leaving(reader)
                return
            context = self._wrong if now.fault is Fault.WRONG_CERTIFICATE else self._right
            assert context is not None
            await writer.start_tls(context)
        request = await _read(reader)
        said = _ANSWERS.get(now.fault, b"")
        if isinstance(now.fault, bytes):
            said = now.fault
        elif now.fault in TAKEN:
            taken, now.key = await self._forward(request)
            said = said or taken
        await _give(now, said.replace(b"{path}", request.url.encode()), reader, writer)

    async def _forward(self, request: Request) -> tuple[bytes, str]:
        """Answer and key."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self._upstream)
        try:
            writer.write(_written(request))
            said = await reader.read()
        finally:
            writer.close()
        return said, said.partition(b"\r\nx-key: ")[2].partition(b"\r\n")[0].decode()


async def _give(
    now: Try, said: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Give an answer to the sender, or what the fault leaves of it."""
    head = said.find(b"\r\n\r\n") + 4
    now.told = now.fault in TOLD and not _has_left(reader)
    match now.fault:
        case Fault.RESET_BEFORE | Fault.RESET_AFTER:
            _reset(writer)
        case Fault.BLACK_HOLE | Fault.SILENCE:
            await _leaving(reader)
        case Fault.DRIP_HEAD | Fault.DRIP_BODY:
            at = 0 if now.fault is Fault.DRIP_HEAD else head
            writer.write(said[:at])
            for byte in said[at:]:
                if _has_left(reader):
                    return
                writer.write(bytes([byte]))
                await asyncio.sleep(DRIP_S)
        case Fault.HALF_HEAD:
            writer.write(said[: head // 2])
        case Fault.HALF_BODY:
            writer.write(said[: (head + len(said)) // 2])
        case _:
            writer.write(said)
            await writer.drain()


class MailProxy(Proxy):
    """Stands before a mail server: each connection is an attempt. Of the faults it knows ``MAIL_FAULTS``."""

    @override
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = self.begin()
        now.connections += 1
        match now.fault:
            case Fault.CLOSED:
                return
            case Fault.BLACK_HOLE:
                await _leaving(reader)
            case Fault.GARBAGE:
                writer.write(answer("200 OK"))
            case _:
                await self._pass(now, reader, writer)

    async def _pass(
        self, now: Try, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Lines to the server and its replies back, until the fault."""
        replies, server = await asyncio.open_connection(LOOPBACK, self._upstream)
        back = asyncio.create_task(_pump(replies, writer))
        try:
            while line := await reader.readline():
                name, _, value = line.partition(b": ")
                if name == b"Message-ID":
                    now.key = value.strip(b"<> \r\n").partition(b"@")[0].decode()
                if now.fault is Fault.RESET_BEFORE and line.startswith(b"data"):
                    _reset(writer)
                    return
                now.told = line == b"quit\r\n"  # said by who has heard that it was taken
                if now.fault is Fault.RESET_AFTER and line == b".\r\n":
                    back.cancel()
                    await asyncio.wait([back])
                    server.write(line)
                    assert (await replies.readline()).startswith(b"250")
                    _reset(writer)
                    return
                server.write(line)
        finally:
            back.cancel()
            server.close()


MAIL_FAULTS: Final = (
    Fault.CLOSED,
    Fault.RESET_BEFORE,
    Fault.RESET_AFTER,
    Fault.BLACK_HOLE,
    Fault.GARBAGE,
)


@dataclass
class Names:
    """The name server before a proxy: each attempt gets one answer, and who asks twice is led to the cloud's metadata.

    Attributes:
        proxy: whose script it shares.
        attempts: how many were begun, by the sender's own count.
        asked: names, in order.
    """

    proxy: Proxy
    attempts: Callable[[], int]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if len(self.asked) > self.attempts():
            return [METADATA]
        match self.proxy.begin().fault:
            case Fault.UNRESOLVED:
                raise socket.gaierror(socket.EAI_AGAIN, f"no answer about {host}")
            case Fault.REFUSED:
                return [NOBODY]
            case _:
                return [LOOPBACK]


Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """Serve connections on loopback; gives the port. At the end all are over, and a defect in serving one is raised."""
    tasks: list[asyncio.Task[Any]] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            with suppress(
                OSError, EOFError
            ):  # the other side went away, or refused our certificate
                await serve(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(one, LOOPBACK, 0) as server:
        yield server.sockets[0].getsockname()[1]
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    method, path, version = first.split(" ")
    assert version == "HTTP/1.1"
    body = await reader.readexactly(int(headers["content-length"]))
    return Request(path, headers, body, cast("Any", method))


def _written(request: Request) -> bytes:
    lines = [f"{request.method} {request.url} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + request.body


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST: to close a socket that lingers for no time is to abort it."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def _has_left(reader: asyncio.StreamReader) -> bool:
    return reader.at_eof() or reader.exception() is not None


async def _leaving(reader: asyncio.StreamReader) -> None:
    """Until the sender goes away."""
    while await reader.read(4096):
        pass


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while some := await reader.read(4096):
            writer.write(some)
