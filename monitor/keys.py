"""Who may ask the API for what: keys, of which only a hash is kept, and what a caller may do.

A key is 32 random bytes. SHA-256 is enough to hide one, since nobody can try 2^256 of them; a slow hash, which hides
what people choose, would cost more than the answer. A key stands in the settings as one line::

    NAME SCOPE[,SCOPE...] sha256:HEX [YYYY-MM-DD]
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args

Scope: TypeAlias = Literal["read", "write", "approve"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
SECRET_BYTES: Final = 32
MAX_KEYS: Final = 256
_PREFIX: Final = "dlk_"  # what scanners for leaked secrets can look for
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by a name that goes into orders, and what they may do. Nobody has a name where no key is asked for."""

    name: str
    scopes: frozenset[Scope]


ANYONE: Final = Caller("", frozenset(SCOPES))


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. It is good before ``until``, a day in UTC, or for ever."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    until: date | None = None

    @property
    def line(self) -> str:
        """How it stands in the settings."""
        scopes = ",".join(scope for scope in SCOPES if scope in self.scopes)
        until = f" {self.until.isoformat()}" if self.until else ""
        return f"{self.name} {scopes} sha256:{self.digest.hex()}{until}"

    def is_over(self, now_ms: int) -> bool:
        """Whether its day has come."""
        return self.until is not None and (
            datetime.fromtimestamp(now_ms / 1_000, UTC).date() >= self.until
        )


def create(
    name: str,
    scopes: Iterable[str],
    random: bytes,
    *,
    now_ms: int = 0,
    lasts_days: int | None = None,
) -> tuple[str, Key]:
    """A new secret and its key; ``random`` are ``SECRET_BYTES`` bytes that nobody can guess.

    Raises:
        ValueError: the name or a scope is none.
    """
    if len(random) != SECRET_BYTES:
        raise ValueError(f"a key is made of {SECRET_BYTES} random bytes")
    secret = _PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode("ascii")
    until = None
    if lasts_days is not None:
        today = datetime.fromtimestamp(now_ms / 1_000, UTC).date()
        until = today + timedelta(days=lasts_days)
    return secret, Key(_named(name), digest_of(secret), scopes_of(scopes), until)


def digest_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by name, at least one.

    Raises:
        ValueError: there is none, or one that does not exist.
    """
    wanted = list(names)
    found = frozenset(scope for scope in SCOPES if scope in wanted)
    if not found or len(found) != len(set(wanted)):
        raise ValueError(f"scopes are {', '.join(SCOPES[:-1])} and {SCOPES[-1]}")
    return found


def parse(text: str) -> tuple[Key, ...]:
    """The keys of a text with one in each line, or between semicolons; what begins with ``#`` is a comment.

    Raises:
        ValueError: a line is none, or a name comes twice. The message has the line's number, and nothing of it.
    """
    found: dict[str, Key] = {}
    for number, line in enumerate(re.split(r"[\n;]", text), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = _parsed(line.split())
        except ValueError as err:
            raise ValueError(f"line {number}: {err}") from None
        if key.name in found:
            raise ValueError(f"line {number}: its name is that of another key")
        found[key.name] = key
    if len(found) > MAX_KEYS:
        raise ValueError(f"there are more than {MAX_KEYS} keys")
    return tuple(found.values())


def find(keys: Iterable[Key], secret: str) -> Key | None:
    """The key that a secret belongs to. The time that it takes says nothing of any key."""
    digest, found = digest_of(secret), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def _parsed(words: list[str]) -> Key:
    if not 3 <= len(words) <= 4:
        raise ValueError("expected NAME SCOPES sha256:HEX [YYYY-MM-DD], as `driftline keys create`")
    name, scopes, digest, *until = words
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError("a key is given by its hash, sha256: and 64 hexadecimal digits")
    try:
        day = date.fromisoformat(until[0]) if until else None
    except ValueError:
        raise ValueError("its end is a day such as 2027-01-31") from None
    return Key(_named(name), bytes.fromhex(match[1]), scopes_of(scopes.split(",")), day)


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("a name is up to 64 letters, digits and . _ @ -")
    return name
