"""One attempt to deliver one request, safely: this module is an edge, it resolves names and opens connections.

An address in a spec is a user's input, and the process that sends stands inside the network. So for each attempt:

1. the address is http(s) without user and password;
2. its name is resolved **once**, and *every* address must be public or in a network that the server's settings allow;
3. the connection goes to the checked address, with the original ``Host`` and TLS name: a second answer of the name
   server (DNS rebinding) changes nothing;
4. no redirect is followed, no proxy is taken from the environment, no cookie is kept, and at most ``MAX_ANSWER``
   bytes are read;
5. the attempt as a whole has a deadline: a receiver that drips bytes cannot hold it.

What an answer comes to is decided by its status: a body that breaks off later does not send the request again.

No error or detail of this module holds an address or a secret. A Slack webhook's address *is* one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

import httpx

from alerting.breaker import Sign
from alerting.requests import Request
from monitor.tls import trust

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_ANSWER: Final = 64 << 10  # nothing of an answer is needed but its status
MAX_RETRY_AFTER_S: Final = 3_600.0  # a receiver may ask for patience, not for silence
_RETRIED: Final = frozenset({408, 425, 429})  # and every 5xx
_NOT_TAKEN: Final = frozenset({408, 425, 429, 503})  # says who did not begin
_HEADERS: Final = {"accept": "*/*", "user-agent": "driftline"}
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")  # ::127.0.0.1 calls itself global


class Outcome(Enum):
    """What an attempt came to. ``RETRY`` may be repeated; the others are final."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"
    DISABLED = "disabled"  # 410: the receiver wants no more of these
    UNKNOWN = "unknown"  # it may have been taken, and a repeat would be a second request


@dataclass(frozen=True, slots=True)
class Attempt:
    """The outcome with a detail for people, the wait that the receiver asked for, and what it shows of it, if not what is usual."""

    outcome: Outcome
    detail: str
    retry_after_s: float | None = None
    shows: Sign | None = None

    @property
    def sign(self) -> Sign:
        """What it shows of its destination: usually, that it answers what is final and known."""
        if self.shows is not None:
            return self.shows
        lost = self.outcome in (Outcome.RETRY, Outcome.UNKNOWN)
        return Sign.SILENCE if lost else Sign.ANSWER


class ForbiddenAddressError(Exception):
    """The address must not be called. The message gives the reason and never the address."""


def resolve_secret(reference: str) -> str:
    """The text behind ``env:NAME`` or ``file:/path``, read now; anything else is returned as it is.

    Raises:
        KeyError: the variable is not set, or the file cannot be read; the message names the reference only.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name, "").strip()
    elif kind == "file":
        try:
            value = Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            value = ""
    else:
        return reference
    if not value:
        raise KeyError(f"{reference} is not set, or cannot be read")
    return value


class Sender:
    """Sends requests. Mutable: it owns a pool that keeps no connection; ``close`` it.

    Args:
        allowed: networks that may be called although they are not public, from the server's own settings.
        timeout_s: of one attempt as a whole.
        lookup: host and port to addresses; the system's resolver unless told otherwise.
        context: of TLS; ``trust()`` unless told otherwise.
    """

    def __init__(
        self,
        allowed: Sequence[str] = (),
        timeout_s: float = 10.0,
        lookup: Lookup | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = tuple(ipaddress.ip_network(network) for network in allowed)
        self._timeout_s = timeout_s
        self._lookup = lookup or _system_lookup
        # At DEBUG it logs the headers of answers: a redirect's may quote the address.
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        # Not a client, which logs addresses, reads where a redirect leads, and keeps cookies: by address, so that one
        # receiver's would be given to another.
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False,  # a proxy from the environment would resolve the name again
            verify=context or trust(),
            # A kept connection would be reused for another name at the same address.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Close what is open."""
        await self._transport.aclose()

    async def send(self, request: Request) -> Attempt:
        """Try once. Never raises for what an address, a receiver or a network does."""
        way = _Way()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(request, way)
        except ForbiddenAddressError as err:
            return Attempt(Outcome.REFUSED, str(err), shows=Sign.NOTHING)
        except (httpx.InvalidURL, UnicodeError):  # a name that no resolver can be asked for
            return Attempt(Outcome.REFUSED, "the address is not valid", shows=Sign.NOTHING)
        except (TimeoutError, httpx.TimeoutException):  # before OSError, which TimeoutError is
            detail = f"no answer within {self._timeout_s:g} s"
        except (OSError, httpx.HTTPError) as err:  # their texts may quote the address
            detail = f"connection failed ({type(err).__name__})"
        else:
            detail = ""
        if way.answer is not None:
            return way.answer
        return _lost(request, detail) if way.begun else Attempt(Outcome.RETRY, detail)

    async def _send(self, request: Request, way: _Way) -> None:
        """Send, note the answer on the way, and read it to its end."""
        url = httpx.URL(request.url)
        pinned = await self._pin(url)
        headers = {**_HEADERS, **request.headers, "host": url.netloc.decode("ascii")}
        timeout = httpx.Timeout(self._timeout_s).as_dict()
        sent = httpx.Request(
            request.method,
            url.copy_with(host=str(pinned)),
            headers=headers,
            content=request.body,
            extensions={"sni_hostname": url.host, "trace": way, "timeout": timeout},
        )
        response = await self._transport.handle_async_request(sent)
        way.answer = _judged(request, response)
        try:
            read = 0
            async for chunk in response.aiter_raw():
                read += len(chunk)
                if read > MAX_ANSWER:
                    break
        finally:
            await response.aclose()

    async def _pin(self, url: httpx.URL) -> Address:
        if url.scheme not in ("http", "https") or not url.host:
            raise ForbiddenAddressError("the address is not http(s)")
        if url.userinfo:
            raise ForbiddenAddressError("the address has a user or a password")
        port = url.port or (443 if url.scheme == "https" else 80)
        found = [ipaddress.ip_address(a) for a in await self._lookup(url.host, port)]
        if not found:
            raise OSError("no address")
        if not all(is_allowed(address, self._allowed) for address in found):
            raise ForbiddenAddressError(
                "the address is in a private network that the server's settings do not allow"
            )
        return found[0]


class _Way:
    """How far one request came. Mutable: httpx calls it at each step.

    Attributes:
        begun: whether anything of the request was sent.
        answer: what its status says, once it is known.
    """

    def __init__(self) -> None:
        self.begun = False
        self.answer: Attempt | None = None

    async def __call__(self, step: str, _: Mapping[str, object]) -> None:
        self.begun = self.begun or step.endswith("send_request_headers.started")


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address may be called: public, or in an allowed network. IPv4 inside IPv6 is looked at as IPv4."""
    inner = _embedded(address)
    if any(
        a in network
        for network in allowed
        for a in (address, inner)
        if a.version == network.version
    ):
        return True
    return all(a.is_global and not a.is_multicast for a in (address, inner))


def classify(status: int, retry_after: str | None, date: str | None = None) -> Attempt:
    """What a status means. A redirect is a refusal: it is not followed, and would not change when repeated."""
    detail = f"status {status}"
    if 200 <= status < 300:
        return Attempt(Outcome.DELIVERED, detail)
    if status == 410:
        return Attempt(Outcome.DISABLED, detail)
    if status in _RETRIED or status >= 500:
        shows = Sign.LIMIT if status == 429 else Sign.SILENCE
        return Attempt(Outcome.RETRY, detail, parse_retry_after(retry_after, date), shows)
    return Attempt(Outcome.REFUSED, detail)


def parse_retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds of a ``Retry-After``: a number, or an HTTP date after the answer's own ``Date``; at most an hour."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(date or "")
    except (ValueError, TypeError, OverflowError):  # a receiver may say what is no date
        return None
    return min(max(wait.total_seconds(), 0.0), MAX_RETRY_AFTER_S)


def _judged(request: Request, response: httpx.Response) -> Attempt:
    """What the head of an answer says about its request."""
    if response.status_code in request.done:
        return Attempt(Outcome.DELIVERED, f"status {response.status_code}: was taken before")
    found = classify(response.status_code, response.headers.get("retry-after"), _date(response))
    if found.outcome is Outcome.RETRY and response.status_code not in _NOT_TAKEN:
        return _lost(request, found.detail, found.retry_after_s)
    return found


def _lost(request: Request, detail: str, retry_after_s: float | None = None) -> Attempt:
    """An attempt of which nobody knows whether it was taken: it is repeated where a repeat does no harm."""
    if request.repeatable:
        return Attempt(Outcome.RETRY, detail, retry_after_s)
    return Attempt(Outcome.UNKNOWN, f"{detail}: may have been taken, and is not sent twice")


def _date(response: httpx.Response) -> str | None:
    value: str | None = response.headers.get("date")
    return value


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: mapped, compatible, 6to4 or NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64 or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


async def _system_lookup(host: str, port: int) -> Sequence[str]:
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]  # nothing to ask, and no thread to wait for
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
