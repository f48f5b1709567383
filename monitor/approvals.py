"""Signed links: whoever holds one may approve or reject one action of one incident, until it expires.

::

    token = incident . action . expires_s . HMAC-SHA256(secret, PURPOSE incident . action . expires_s)

A token is a capability, so it never stands in a log; the secret is in no link. ``read`` makes the token again from what it says and compares
all of it in constant time: nothing but the very bytes that were signed is right, and no second spelling of them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from monitor.targets import ActionName, action_named

MIN_SECRET: Final = 32  # characters: 16 random bytes in hexadecimal are 128 bits
PATH: Final = "/approve"
_PURPOSE: Final = b"driftline approval 1\x00"  # the secret signs nothing else by accident
_LONGEST: Final = 256  # of ours: 32 + 8 + 10 + 43 characters and three dots


class Refusal(Enum):
    """Why a token is not taken."""

    FORGED = "forged"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Approval:
    """What a token lets its holder decide, until ``expires_s`` of Unix time."""

    incident_id: str
    action: ActionName
    expires_s: int

    def token(self, secret: str) -> str:
        """The token: ASCII, and nothing that an address has to escape.

        Raises:
            ValueError: the secret is shorter than ``MIN_SECRET``. It is not quoted.
        """
        if len(secret) < MIN_SECRET:
            raise ValueError(f"a secret that signs has at least {MIN_SECRET} characters")
        said = f"{self.incident_id}.{self.action}.{self.expires_s}"
        digest = hmac.digest(secret.encode(), _PURPOSE + said.encode(), hashlib.sha256)
        return f"{said}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


@dataclass(frozen=True, slots=True)
class Links:
    """Makes links.

    Attributes:
        public_url: where people reach the API, without a slash at its end.
        secret: signs.
        lasts_s: how long a link is good for.
    """

    public_url: str
    secret: str = field(repr=False)
    lasts_s: int

    def to(self, incident_id: str, action: ActionName, asked_s: float) -> str:
        """The link of a notification that was asked for at ``asked_s``."""
        # Counted from there and not from the attempt: a retry, also of the next dispatcher, then carries the same
        # bytes under the same key. Nor from the incident: its times are of events, which may be of last year.
        approval = Approval(incident_id, action, int(asked_s) + self.lasts_s)
        return f"{self.public_url}{PATH}?token={approval.token(self.secret)}"


def read(token: str, secret: str, *, now_s: float) -> Approval | Refusal:
    """What a token says, or why it is not taken; one that is forged is never called expired.

    Raises:
        ValueError: the secret is too short.
    """
    parts = token.split(".") if len(token) <= _LONGEST and token.isascii() else []
    if len(parts) != 4:
        return Refusal.FORGED
    incident_id, named, expires, _ = parts
    action = action_named(named)
    if action is None or not expires.isdigit():
        return Refusal.FORGED
    approval = Approval(incident_id, action, int(expires))
    if not hmac.compare_digest(approval.token(secret), token):
        return Refusal.FORGED
    return approval if now_s < approval.expires_s else Refusal.EXPIRED
