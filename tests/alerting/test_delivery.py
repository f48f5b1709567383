"""Delivery against a raw server on loopback: outcomes, the address guard, and no leaks."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alerting.breaker import Sign
from alerting.delivery import (
    MAX_RETRY_AFTER_S,
    Attempt,
    Outcome,
    Sender,
    classify,
    is_allowed,
    parse_retry_after,
    resolve_secret,
)
from alerting.requests import Request
from monitor.errors import ConfigError
from monitor.tls import trust
from tests.alerting.tls import authority

LOOPBACK = ("127.0.0.0/8",)
PLANTED = "planted-secret"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: bytes | Serve) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that records the heads of requests and answers each with the same bytes."""
    heads: list[bytes] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        try:
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(one, "127.0.0.1", 0)
    async with running:
        port = running.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/{PLANTED}", heads


async def post(url: str, *, allowed: Sequence[str] = LOOPBACK, timeout_s: float = 2.0) -> Attempt:
    sender = Sender(allowed, timeout_s)
    try:
        return await sender.send(Request(url, {"content-type": "text/plain"}, b"body"))
    finally:
        await sender.close()


def reply(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("answer", "outcome", "wait_s"),
    [
        (reply("200 OK", body=b"ok"), Outcome.DELIVERED, None),
        (reply("202 Accepted"), Outcome.DELIVERED, None),
        (reply("302 Found", "location: http://169.254.169.254/"), Outcome.REFUSED, None),
        (reply("400 Bad Request"), Outcome.REFUSED, None),
        (reply("410 Gone"), Outcome.DISABLED, None),
        (reply("429 Too Many Requests", "retry-after: 7"), Outcome.RETRY, 7.0),
        (reply("503 Unavailable"), Outcome.RETRY, None),
        (b"", Outcome.RETRY, None),  # closed without an answer
        (b"nonsense\r\n\r\n", Outcome.RETRY, None),
        (reply("200 OK", body=b"x" * 1_000_000), Outcome.DELIVERED, None),
    ],
)
async def test_an_answer_is_classified_and_never_quoted(
    answer: bytes, outcome: Outcome, wait_s: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with server(answer) as (url, heads):
        attempt = await post(url)
    assert (attempt.outcome, attempt.retry_after_s) == (outcome, wait_s)
    assert len(heads) == 1, "one attempt is one request: redirects are not followed"
    assert PLANTED not in attempt.detail + caplog.text
    assert "127.0.0.1" not in attempt.detail


async def test_a_receiver_that_drips_bytes_cannot_hold_the_sender() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _byte in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with server(drip) as (url, _):
        attempt = await asyncio.wait_for(post(url, timeout_s=0.3), 2.0)
    assert attempt == Attempt(Outcome.DELIVERED, "status 200"), "its status was heard"


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        (f"http://127.0.0.1:1/{PLANTED}", "private network"),
        (f"http://169.254.169.254/{PLANTED}", "private network"),
        (f"http://[::ffff:10.0.0.1]/{PLANTED}", "private network"),
        (f"http://0x7f000001/{PLANTED}", "private network"),  # 127.0.0.1, for the system's resolver
        (f"ftp://127.0.0.1/{PLANTED}", "not http"),
        (f"http://user:{PLANTED}@example.com/", "a user or a password"),
        (f"http://[::1/{PLANTED}", "not valid"),
    ],
)
async def test_an_address_inside_the_network_is_refused_without_a_connection(
    url: str, detail: str
) -> None:
    attempt = await post(url, allowed=())
    assert attempt.outcome is Outcome.REFUSED
    assert detail in attempt.detail
    assert PLANTED not in attempt.detail


async def test_the_checked_address_is_the_one_that_is_called_and_the_name_is_asked_for_once() -> (
    None
):
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    async with server(reply("200 OK")) as (url, heads):
        port = url.rpartition(":")[2].partition("/")[0]
        sender = Sender(LOOPBACK, 2.0, rebinding)
        attempt = await sender.send(Request(f"http://hooks.example:{port}/x", {}, b""))
        await sender.close()
    assert attempt.outcome is Outcome.DELIVERED
    assert asked == ["hooks.example"]
    assert f"host: hooks.example:{port}".encode() in heads[0].lower()


async def test_tls_asks_for_the_name_and_not_for_the_pinned_address() -> None:
    hello: list[bytes] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello.append(await reader.read(4096))
        writer.close()

    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with await asyncio.start_server(one, "127.0.0.1", 0) as running:
        port = running.sockets[0].getsockname()[1]
        sender = Sender(LOOPBACK, 2.0, lookup)
        attempt = await sender.send(Request(f"https://hooks.example:{port}/x", {}, b""))
        await sender.close()
    assert attempt.outcome is Outcome.RETRY
    assert b"hooks.example" in hello[0]


@pytest.mark.parametrize(
    ("vouched", "called", "outcome", "detail"),
    [
        ("hooks.example", "hooks.example", Outcome.DELIVERED, "status 200"),
        ("other.example", "hooks.example", Outcome.RETRY, "connection failed (ConnectError)"),
    ],
)
async def test_a_private_authority_is_trusted_for_the_names_that_it_vouches_for(
    vouched: str, called: str, outcome: Outcome, detail: str, tmp_path: Path
) -> None:
    ca, context = authority(tmp_path, vouched)
    heads: list[bytes] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(reply("200 OK"))
        await writer.drain()
        writer.close()

    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with await asyncio.start_server(one, "127.0.0.1", 0, ssl=context) as running:
        port = running.sockets[0].getsockname()[1]
        request = Request(f"https://{called}:{port}/{PLANTED}", {}, b"", repeatable=False)
        for trusted in (trust(ca), trust()):
            sender = Sender(LOOPBACK, 2.0, lookup, trusted)
            attempt = await sender.send(request)
            await sender.close()
            assert attempt == Attempt(outcome, detail)
            outcome, detail = Outcome.RETRY, "connection failed (ConnectError)"
    assert len(heads) == (vouched == called), "nothing is said to who is not the right one"


def test_a_file_without_certificates_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for path in (tmp_path / "ca.pem", tmp_path / "absent"):
        with pytest.raises(ConfigError, match="holds no certificates"):
            trust(path)


async def ask(url: str, **of: Any) -> Attempt:
    sender = Sender(LOOPBACK, 0.5)
    try:
        return await sender.send(Request(url, {}, b"{}", **of))
    finally:
        await sender.close()


async def test_the_method_is_the_requests_own_and_some_statuses_say_that_it_was_done_before() -> (
    None
):
    async with server(reply("409 Conflict")) as (url, heads):
        done = await ask(url, method="PATCH", done=frozenset({409}))
        refused = await ask(url)
    assert done == Attempt(Outcome.DELIVERED, "status 409: was taken before")
    assert refused.outcome is Outcome.REFUSED
    assert [head.split()[0] for head in heads] == [b"PATCH", b"POST"]


async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(1.0)


async def test_what_may_have_been_taken_is_not_sent_twice_to_who_cannot_tell() -> None:
    lost: list[bytes | Serve] = [hang, b"", b"nonsense\r\n\r\n", reply("500 Oh"), reply("504 Late")]
    for answer in lost:
        async with server(answer) as (url, _):
            assert (await ask(url, repeatable=True)).outcome is Outcome.RETRY
            attempt = await ask(url, repeatable=False)
            assert attempt.outcome is Outcome.UNKNOWN
            assert "may have been taken, and is not sent twice" in attempt.detail


async def test_what_was_not_taken_is_sent_again_to_anybody() -> None:
    for answer in (reply("429 Slow", "retry-after: 7"), reply("503 Busy")):
        async with server(answer) as (url, _):
            assert (await ask(url, repeatable=False)).outcome is Outcome.RETRY
    assert (await ask("http://127.0.0.1:1/", repeatable=False)).outcome is Outcome.RETRY


@pytest.mark.parametrize(
    ("answer", "sign"),
    [
        (reply("200 OK"), Sign.ANSWER),
        (reply("404 Not Found"), Sign.ANSWER),
        (reply("410 Gone"), Sign.ANSWER),
        (reply("429 Slow"), Sign.LIMIT),
        (reply("500 Oh"), Sign.SILENCE),
        (reply("503 Busy", "retry-after: 7"), Sign.SILENCE),
        (b"", Sign.SILENCE),
        (hang, Sign.SILENCE),
    ],
)
@pytest.mark.parametrize("repeatable", [True, False])
async def test_what_an_attempt_shows_of_its_server(
    answer: bytes | Serve, sign: Sign, *, repeatable: bool
) -> None:
    async with server(answer) as (url, _):
        assert (await ask(url, repeatable=repeatable)).sign is sign


async def test_who_is_not_called_shows_nothing_and_who_cannot_be_reached_does() -> None:
    assert (await post("http://127.0.0.1:9/", allowed=())).sign is Sign.NOTHING
    assert (await post("http://planted:port/")).sign is Sign.NOTHING
    assert (await ask("http://127.0.0.1:1/")).sign is Sign.SILENCE


async def test_a_redirect_is_not_followed_even_to_a_place_that_may_be_called() -> None:
    async with server(reply("200 OK")) as (other, followed):
        redirect = reply("307 Temporary Redirect", f"location: {other}")
        async with server(redirect) as (url, _):
            attempt = await post(url)
    assert (attempt.outcome, followed) == (Outcome.REFUSED, [])


async def test_one_private_address_among_public_ones_is_refused() -> None:
    async def mixed(host: str, port: int) -> Sequence[str]:
        return ["8.8.8.8", "10.0.0.1"]

    sender = Sender((), 2.0, mixed)
    attempt = await sender.send(Request("https://hooks.example/x", {}, b""))
    await sender.close()
    assert attempt.outcome is Outcome.REFUSED


async def test_a_name_that_does_not_resolve_is_tried_again() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError(f"unknown name {host}")

    sender = Sender((), 2.0, unknown)
    attempt = await sender.send(Request(f"https://{PLANTED}.example/x", {}, b""))
    await sender.close()
    assert attempt == Attempt(Outcome.RETRY, "connection failed (OSError)")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_public_addresses_may_be_called(address: str, *, public: bool) -> None:
    assert is_allowed(ipaddress.ip_address(address), ()) is public


def test_an_allowed_network_opens_itself_and_nothing_else() -> None:
    allowed = [ipaddress.ip_network("10.0.0.0/8")]
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), allowed)
    assert is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), allowed)
    assert not is_allowed(ipaddress.ip_address("192.168.0.1"), allowed)


@pytest.mark.parametrize(
    ("value", "date", "expected"),
    [
        (None, None, None),
        ("30", None, 30.0),
        ("99999999", None, MAX_RETRY_AFTER_S),
        ("soon", None, None),
        ("-5", None, None),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", None, None),
    ],
)
def test_retry_after_is_read_and_bounded(
    value: str | None, date: str | None, expected: float | None
) -> None:
    assert parse_retry_after(value, date) == expected


def test_redirects_and_client_errors_are_final() -> None:
    assert {classify(s, None).outcome for s in (301, 307, 401, 404, 422)} == {Outcome.REFUSED}
    assert {classify(s, None).outcome for s in (408, 425, 429, 500, 504)} == {Outcome.RETRY}


def test_secrets_are_read_when_they_are_needed_and_missing_ones_are_named_by_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOOK", f"{PLANTED}\n")
    (tmp_path / "pd").write_text(f"{PLANTED}\n", encoding="utf-8")
    assert resolve_secret("env:HOOK") == PLANTED
    assert resolve_secret(f"file:{tmp_path}/pd") == PLANTED
    assert resolve_secret("https://ci.example/x") == "https://ci.example/x"
    with pytest.raises(KeyError, match="env:ABSENT is not set"):
        resolve_secret("env:ABSENT")
    with pytest.raises(KeyError, match="cannot be read"):
        resolve_secret(f"file:{tmp_path}/absent")
