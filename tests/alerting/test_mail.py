"""Mail against a real server on loopback: what it gets, and what each of its answers comes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope
from pydantic import SecretStr

from alerting.breaker import Sign
from alerting.delivery import Attempt, Outcome
from alerting.mail import Mailer, message
from alerting.requests import Mail
from monitor.settings import EmailSettings
from monitor.tls import trust
from streams.supervisor import free_port
from tests.alerting.tls import authority

NOW = 1_700_000_000.0
PASSWORD = "planted-password"
MAIL = Mail(
    "a" * 32, "f" * 32, ("a@example.com", "b@example.com"), "🟠 Firing: wïnd", "Zeile 1\n.\nß\n"
)


@dataclass
class Inbox:
    """A mail server's mind: what it took, and whom or what it refuses."""

    refuses: dict[str, str] = field(default_factory=dict)
    answer: str = "250 taken"
    farewell: str = "221 bye"
    taken: list[tuple[list[str], EmailMessage]] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Any, envelope: Envelope, address: str, options: Any
    ) -> str:
        if address in self.refuses:
            return self.refuses[address]
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_QUIT(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        return self.farewell

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        if self.answer.startswith("250"):
            content = envelope.content
            assert isinstance(content, bytes)
            found = message_from_bytes(content, policy=policy.default)
            assert isinstance(found, EmailMessage)
            self.taken.append((envelope.rcpt_tos, found))
        return self.answer


@contextmanager
def served(inbox: Inbox, **options: Any) -> Iterator[str]:
    """A server with this mind; gives its address."""
    controller = Controller(inbox, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    try:
        yield f"127.0.0.1:{controller.port}"
    finally:
        controller.stop()


async def send(server: str, mail: Mail = MAIL, ca: Path | None = None, **settings: Any) -> Attempt:
    chosen = {"tls": "none", "sender": "driftline@example.com", **settings}
    return await mailer(EmailSettings(server=server, **chosen), ca).send(mail, NOW)


def mailer(settings: EmailSettings, ca: Path | None = None) -> Mailer:
    return Mailer(settings, trust(ca), 3.0)


async def test_a_mail_arrives_as_it_was_written_and_a_repeat_bears_the_same_name() -> None:
    inbox = Inbox()
    with served(inbox) as server:
        first, second = await send(server), await send(server)
    assert first == second == Attempt(Outcome.DELIVERED, "to 2 addresses")
    (to, one), (_, two) = inbox.taken
    assert to == ["a@example.com", "b@example.com"]
    assert one["subject"] == "🟠 Firing: wïnd"
    assert one.get_content().replace("\r\n", "\n") == MAIL.text
    assert one["message-id"] == two["message-id"] == f"<{'a' * 32}@example.com>"
    assert one["references"] == f"<{'f' * 32}@example.com>"
    assert one["date"].datetime.timestamp() == NOW
    assert one["auto-submitted"] == "auto-generated"


@pytest.mark.parametrize(
    ("inbox", "outcome", "detail", "sign"),
    [
        (
            Inbox({"b@example.com": "550 unknown"}),
            Outcome.DELIVERED,
            "but to 1 of 2 addresses",
            Sign.ANSWER,
        ),
        (
            Inbox({"a@example.com": "550 no", "b@example.com": "550 no"}),
            Outcome.REFUSED,
            "the mail server refused every recipient (550)",
            Sign.ANSWER,
        ),
        (
            Inbox({"a@example.com": "550 no", "b@example.com": "451 later"}),
            Outcome.RETRY,
            "the mail server refused every recipient (451)",
            Sign.ANSWER,
        ),
        (
            Inbox(answer="452 full"),
            Outcome.RETRY,
            "the mail server refused the mail (452)",
            Sign.SILENCE,
        ),
        (
            Inbox(answer="554 spam"),
            Outcome.REFUSED,
            "the mail server refused the mail (554)",
            Sign.ANSWER,
        ),
    ],
)
async def test_an_answer_is_final_or_is_not_and_says_whether_the_server_is_well(
    inbox: Inbox, outcome: Outcome, detail: str, sign: Sign
) -> None:
    with served(inbox) as server:
        found = await send(server)
    assert (found.outcome, found.detail, found.sign) == (outcome, detail, sign)


async def test_what_a_server_says_to_a_farewell_does_not_send_a_mail_again() -> None:
    with served(Inbox(farewell="451 stay")) as server:
        assert await send(server) == Attempt(Outcome.DELIVERED, "to 2 addresses")


async def test_a_server_that_is_away_or_not_set_is_waited_for() -> None:
    away = await send(f"127.0.0.1:{free_port()}")
    assert away == Attempt(Outcome.RETRY, "connection failed (ConnectionRefusedError)")
    unset = await mailer(EmailSettings()).send(MAIL, NOW)
    assert (away.sign, unset.sign) == (Sign.SILENCE, Sign.NOTHING)
    assert unset.outcome is Outcome.RETRY
    assert unset.detail == "no mail server is set: DRIFTLINE_EMAIL__SERVER"


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("trusted", [True, False])
async def test_a_password_is_said_to_a_server_that_is_the_right_one_and_to_no_other(
    tls: str, trusted: bool, tmp_path: Path
) -> None:
    path, context = authority(tmp_path, "127.0.0.1")
    ca = path if trusted else None
    heard: list[Any] = []

    def check(_server: Any, _session: Any, _envelope: Any, _how: str, said: Any) -> AuthResult:
        heard.append(said)
        return AuthResult(success=said.password == PASSWORD.encode(), handled=False)

    options: dict[str, Any] = {"authenticator": check}
    if tls == "implicit":
        options |= {"ssl_context": context, "auth_require_tls": False}  # TLS is around it
    else:
        options |= {"tls_context": context, "require_starttls": True, "auth_required": True}
    inbox = Inbox()
    with served(inbox, **options) as server:
        attempt = await send(server, ca=ca, tls=tls, username="user", password=PASSWORD)
        wrong = await send(server, ca=ca, tls=tls, username="user", password="wrong")
    if trusted:
        assert attempt == Attempt(Outcome.DELIVERED, "to 2 addresses")
        assert wrong == Attempt(Outcome.RETRY, "the mail server refused the password (535)")
        assert len(inbox.taken) == 1
    else:
        assert attempt == Attempt(Outcome.RETRY, "connection failed (SSLCertVerificationError)")
        assert heard == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"server": "mail.example.com"}, "host:port"),
        ({"server": "mail.example.com:70000"}, "host:port"),
        ({"server": "mail.example.com:25", "tls": "none"}, "for a server on this machine"),
        ({"sender": "nobody"}, "sender"),
    ],
)
def test_a_wrong_setting_is_said_at_the_start(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        EmailSettings(**settings)


def test_a_password_is_in_no_text() -> None:
    settings = EmailSettings(server="localhost:25", password=SecretStr(PASSWORD), username="u")
    assert PASSWORD not in repr(mailer(settings))
    assert PASSWORD not in str(message(MAIL, settings.sender, NOW))
