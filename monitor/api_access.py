"""Who asks the API, how often, and whether they may.

``Access`` stands before all routes: it finds out whose key or token a request carries, and takes the request out of that caller's bucket, or out of
its address's where it is nobody's. ``Needs`` stands at a route, and says no. So what is open stays open whatever a request carries.

A key is a header ``X-API-Key``, ``Authorization: Bearer``, or the password of ``Authorization: Basic``, which is what a logger sends that can be
given an address only: ``https://any:KEY@host/``. A token of the issuer is a bearer.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from monitor.api_answers import RETRY_AFTER_S, problem
from monitor.errors import TransientError
from monitor.keys import ANYONE, Caller, Scope, find
from monitor.oidc import Issuer, TokenError
from monitor.settings import ApiSettings
from monitor.throttle import Throttle

PROBES: Final = frozenset({"/healthz", "/readyz"})  # of the cluster: never held back
_CALLER: Final = "driftline.caller"
_ASK: Final = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why it is not known who asks; 503 where only the issuer could say."""

    status: int
    detail: str


@dataclass(frozen=True)
class Needs:
    """Of a route: what a caller has to be allowed."""

    scope: Scope

    async def __call__(self, request: Request) -> None:
        """Refuse who is not known, or may not."""
        found = request.scope[_CALLER]
        match found:
            case Unknown(401, detail):
                raise HTTPException(401, detail, headers=_ASK)
            case Unknown(status, detail):
                raise HTTPException(status, detail, headers={"Retry-After": str(RETRY_AFTER_S)})
            case Caller(name, scopes):
                if self.scope not in scopes:
                    raise HTTPException(403, f"{name} may not {self.scope}")
            case _:
                assert_never(found)


def signed(author: str, request: Request) -> str:
    """Who is said to have asked, with the name of the key or token; that name alone where nobody is."""
    caller = request.scope[_CALLER]
    name = caller.name if isinstance(caller, Caller) else ""
    if not name:
        return author
    return f"{author} (by {name})" if author else name


class Access:
    """The ASGI application behind it sees who asks. Mutable: it owns the buckets, and the issuer's keys; for one event loop."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ApiSettings,
        clock_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._clock_ms, self._monotonic = app, clock_ms, monotonic
        self._keys, self._asks_who = settings.known_keys, settings.asks_who
        self._issuer = Issuer(settings, monotonic) if settings.oidc_issuer else None
        limited = settings.rate_per_s > 0
        self._throttle = Throttle(settings.rate_per_s, settings.burst) if limited else None

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Let a request pass with its caller, or answer 429."""
        if connection["type"] != "http":
            return await self._app(connection, receive, send)
        found = await self._who(Headers(scope=connection))
        connection[_CALLER] = found
        if self._throttle is not None and connection["path"] not in PROBES:
            address = (connection.get("client") or ("",))[0]
            bucket = found.name if isinstance(found, Caller) and found.name else (address,)
            wait_s = self._throttle.wait_s(bucket, self._monotonic())
            if wait_s:
                refused = problem(429, "too many requests: see Retry-After")
                refused.headers["Retry-After"] = f"{wait_s:g}"
                return await refused(connection, receive, send)
        return await self._app(connection, receive, send)

    async def _who(self, headers: Headers) -> Caller | Unknown:
        if not self._asks_who:
            return ANYONE
        kind, _, credentials = headers.get("authorization", "").partition(" ")
        bearer = credentials.strip() if kind.lower() == "bearer" else ""
        password = _password(credentials) if kind.lower() == "basic" else ""
        secret = headers.get("x-api-key") or bearer or password
        if not secret:
            return Unknown(401, "give a key in the header X-API-Key, or a token as a bearer")
        key = find(self._keys, secret)
        if key is None:
            return await self._of_token(bearer)
        if key.is_over(self._clock_ms()):
            return Unknown(401, f"the key {key.name} is over")
        return Caller(key.name, key.scopes)

    async def _of_token(self, token: str) -> Caller | Unknown:
        if self._issuer is None or not token:
            return Unknown(401, "there is no such key")
        try:
            return await self._issuer.caller(token)
        except TokenError as err:
            return Unknown(401, str(err))
        except TransientError as err:
            return Unknown(503, str(err))


def _password(credentials: str) -> str:
    """Of HTTP's Basic authentication (RFC 7617); empty if it is none."""
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except ValueError:
        return ""
    return text.partition(":")[2]
