"""Sends mail by SMTP, one attempt at a time: this module is an edge. The server is the operator's own setting, so it may be anywhere.

A mail has the same ``Message-ID`` in every attempt, by which servers and mail programs know a repeat.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from contextlib import closing, suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from typing import Final

from alerting.breaker import Sign
from alerting.delivery import Attempt, Outcome
from alerting.requests import Mail
from monitor.settings import EmailSettings

_PERMANENT: Final = range(500, 600)  # RFC 5321: 4yz may be tried again, 5yz may not


@dataclass(frozen=True, slots=True)
class Mailer:
    """A server to give mail to."""

    settings: EmailSettings
    context: ssl.SSLContext
    timeout_s: float

    async def send(self, mail: Mail, at_s: float) -> Attempt:
        """Try once; ``at_s`` is the Unix time that the mail bears. Never raises for what a server or a network does."""
        if not self.settings.server:
            unset = "no mail server is set: DRIFTLINE_EMAIL__SERVER"
            return Attempt(Outcome.RETRY, unset, shows=Sign.NOTHING)
        try:
            async with asyncio.timeout(2 * self.timeout_s):  # smtplib's own is of each step
                return await asyncio.to_thread(self._send, mail, at_s)
        except TimeoutError:
            return Attempt(Outcome.RETRY, f"no answer within {self.timeout_s:g} s")
        except UnicodeError:  # smtplib's log-in is of ASCII; its text quotes the password
            unsendable = "the mail server's name, user or password is not ASCII"
            return Attempt(Outcome.RETRY, unsendable, shows=Sign.NOTHING)
        except (
            OSError,
            smtplib.SMTPException,
        ) as err:  # SMTPException is an OSError, and so are those of TLS
            return _failed(err)

    def _send(self, mail: Mail, at_s: float) -> Attempt:
        chosen = self.settings
        host, _, port = chosen.server.rpartition(":")
        host = host.strip("[]")
        if chosen.tls == "implicit":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, int(port), timeout=self.timeout_s, context=self.context
            )
        else:
            server = smtplib.SMTP(host, int(port), timeout=self.timeout_s)
        with closing(server):
            if chosen.tls == "starttls":
                server.starttls(context=self.context)
            if chosen.username:
                server.login(chosen.username, chosen.password.get_secret_value())
            left_out = server.send_message(message(mail, chosen.sender, at_s))
            with suppress(OSError):  # it has the mail: what it says to a farewell changes nothing
                server.quit()
        if left_out:
            return Attempt(Outcome.DELIVERED, f"but to {len(left_out)} of {len(mail.to)} addresses")
        return Attempt(Outcome.DELIVERED, f"to {len(mail.to)} addresses")


def message(mail: Mail, sender: str, at_s: float) -> EmailMessage:
    """The mail as it goes to the server."""
    made = EmailMessage()
    domain = sender.rpartition("@")[2]
    made["From"] = sender
    made["To"] = ", ".join(mail.to)
    made["Subject"] = mail.subject
    made["Date"] = formatdate(at_s)
    made["Message-ID"] = f"<{mail.id}@{domain}>"
    made["References"] = f"<{mail.thread}@{domain}>"
    made["Auto-Submitted"] = "auto-generated"  # RFC 3834: no "out of office" comes back
    made.set_content(mail.text)
    return made


def _failed(error: OSError) -> Attempt:
    """What an error comes to. Its text may quote addresses, so it is not used."""
    shows = None
    match error:
        case smtplib.SMTPAuthenticationError(smtp_code=code):  # an operator may still mend it
            return Attempt(Outcome.RETRY, f"the mail server refused the password ({code})")
        case smtplib.SMTPRecipientsRefused(recipients=refused):
            code = min(code for code, _ in refused.values())  # one may be taken later
            what, shows = "every recipient", Sign.ANSWER  # greylisting is of this mail alone
        case smtplib.SMTPResponseException(smtp_code=code):
            what = "the mail"
        case _:
            return Attempt(Outcome.RETRY, f"connection failed ({type(error).__name__})")
    outcome = Outcome.REFUSED if code in _PERMANENT else Outcome.RETRY
    return Attempt(outcome, f"the mail server refused {what} ({code})", shows=shows)
