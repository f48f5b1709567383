"""Tokens (JWT) of an OpenID Connect issuer: whose they are, and what their roles may do. An edge: it asks the issuer for its keys.

A token is good if one of the issuer's keys signed it by an algorithm of ``ALGORITHMS``, it is for us, and it is not over. Keys are found by
discovery and kept for ``FRESH_S``; a token that names another key has them asked for again, but the issuer is asked at most every
``AGAIN_S``, whoever sends what. An issuer that is away is nobody's fault: known keys are good for ``KEPT_S``, and what only it could say is a 503.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import httpx
import jwt
import msgspec
import structlog

from monitor import tls
from monitor.errors import DriftlineError, TransientError
from monitor.keys import Caller, Scope
from monitor.settings import ApiSettings, is_safe_address

# By type of key, so that a public key is never the secret of an HMAC; "none" is not among them.
ALGORITHMS: Final[Mapping[str, Sequence[str]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
AGAIN_S: Final = 10.0
FRESH_S: Final = 3_600.0  # so long a key that the issuer has withdrawn is good
KEPT_S: Final = 86_400.0
MAX_TOKEN: Final = 16 << 10
_MAX_ANSWER: Final = 1 << 20
_TIMEOUT_S: Final = 5.0  # discovery and keys together
_MAX_NAME: Final = 128


class TokenError(DriftlineError):
    """A token that is not good; the text says why, and holds nothing of it."""


class Issuer:
    """Tells whose token it is. Mutable: it owns the keys. For one event loop; ``monotonic`` times the keys, the clock of PyJWT the tokens."""

    def __init__(self, settings: ApiSettings, monotonic: Callable[[], float]) -> None:
        self._url, self._audience = settings.oidc_issuer, settings.oidc_audience
        self._leeway_s = settings.oidc_leeway_s
        self._scopes = settings.scopes_of_roles
        self._roles_claim, self._name_claim = settings.oidc_roles_claim, settings.oidc_name_claim
        self._tls = tls.trust(settings.oidc_ca_file, "api.oidc_ca_file")
        self._monotonic = monotonic
        self._lock = asyncio.Lock()  # the issuer is asked once, however many wait
        self._keys: dict[str, jwt.PyJWK] = {}
        self._got_s, self._asked_s = -KEPT_S, -KEPT_S
        self._away = False
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each address

    async def caller(self, token: str) -> Caller:
        """Whose token it is.

        Raises:
            TokenError: it is not good.
            TransientError: the issuer is away, and only it could say.
        """
        if len(token) > MAX_TOKEN:
            raise TokenError("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise TokenError("this is no token") from None
        key = await self._key(header.get("kid"))
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=ALGORITHMS[key.key_type or ""],
                audience=self._audience,
                issuer=self._url,
                leeway=self._leeway_s,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as err:
            raise TokenError(_why(err)) from None
        name = _at(claims, self._name_claim)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise TokenError(f"the token has no claim {self._name_claim}")
        return Caller(name[:_MAX_NAME], self._may(_at(claims, self._roles_claim)))

    def _may(self, roles: object) -> frozenset[Scope]:
        named = roles.split() if isinstance(roles, str) else roles
        if not isinstance(named, list):
            return frozenset()
        found = [self._scopes.get(role, frozenset()) for role in named if isinstance(role, str)]
        return frozenset[Scope]().union(*found)

    async def _key(self, kid: object) -> jwt.PyJWK:
        if not self._is_fresh() or self._known(kid) is None:
            await self._refresh(kid)
        found = self._known(kid) if self._monotonic() - self._got_s < KEPT_S else None
        if found is not None:
            return found
        if self._away:
            raise TransientError("the issuer of tokens does not answer")
        raise TokenError("no key of the issuer signed the token")

    def _known(self, kid: object) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _is_fresh(self) -> bool:
        return self._monotonic() - self._got_s < FRESH_S

    async def _refresh(self, kid: object) -> None:
        async with self._lock:
            if self._monotonic() - self._asked_s < AGAIN_S:
                return
            if self._is_fresh() and self._known(kid) is not None:
                return  # who held the lock has found it
            self._asked_s = self._monotonic()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    keys = await self._ask()
            except (TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL, ValueError) as err:
                log = structlog.get_logger(__name__)
                if not self._away:  # once per outage
                    log.warning("the issuer of tokens does not answer", error=_told(err))
                self._away = True
                return
            self._away, self._got_s = False, self._monotonic()
            self._keys = dict(_usable(keys))

    async def _ask(self) -> Any:
        """The issuer's keys. Nothing of an answer is followed that is not as safe as the issuer's own address."""
        options: dict[str, Any] = {"trust_env": False, "follow_redirects": False}
        async with httpx.AsyncClient(verify=self._tls, timeout=_TIMEOUT_S, **options) as client:
            at = f"{self._url.rstrip('/')}/.well-known/openid-configuration"
            found = await _read(client, at)
            if found.get("issuer") != self._url:
                raise ValueError("discovery names another issuer than api.oidc_issuer")
            keys_at = found.get("jwks_uri")
            if not isinstance(keys_at, str) or not is_safe_address(keys_at):
                raise ValueError("the issuer's keys are not at an https address")
            return (await _read(client, keys_at)).get("keys")


async def _read(client: httpx.AsyncClient, address: str) -> dict[str, Any]:
    async with client.stream("GET", address, headers={"accept": "application/json"}) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"the issuer answers {answer.status_code}")
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > _MAX_ANSWER:
                raise ValueError("the issuer's answer is too long")
    return msgspec.json.decode(body, type=dict[str, Any])


def _usable(keys: object) -> Iterator[tuple[str, jwt.PyJWK]]:
    for entry in keys if isinstance(keys, list) else ():
        if not isinstance(entry, dict) or entry.get("kty") not in ALGORITHMS:
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            yield str(entry.get("kid", "")), jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue  # of a curve that we do not know: its tokens have no key


def _at(claims: Mapping[str, Any], name: str) -> object:
    """A claim by its whole name, or by names with dots between."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _why(err: Exception) -> str:
    match err:
        case jwt.ExpiredSignatureError():
            return "the token has expired"
        case jwt.InvalidAudienceError():
            return "the token is for somebody else"
        case jwt.InvalidIssuerError():
            return "the token is of another issuer"
        case jwt.ImmatureSignatureError():
            return "the token is not good yet"
        case jwt.MissingRequiredClaimError():
            return f"the token has no claim {err.claim}"
        case _:
            return "the token is not signed by the issuer"


def _told(err: Exception) -> str:
    """Ours say what is wrong; those of the network may quote an address."""
    ours = isinstance(err, ValueError) and not isinstance(err, msgspec.MsgspecError | UnicodeError)
    return str(err) if ours else type(err).__name__
