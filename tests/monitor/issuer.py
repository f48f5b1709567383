"""A real issuer of tokens on loopback: discovery, keys, and what goes wrong with either."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from typing_extensions import override

from monitor.settings import ApiSettings
from streams.supervisor import LOOPBACK

AUDIENCE = "driftline"
ROLES = ("sre=read+write+approve", "ml=read+write", "viewer=read")


@cache
def private_key(algorithm: str, number: int = 0) -> Any:
    """A key that is made once; ``number`` for another of the same kind."""
    match algorithm[:2]:
        case "ES":
            return ec.generate_private_key(ec.SECP256R1())
        case "Ed":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, 2048)


def public_jwk(algorithm: str, kid: str, number: int = 0, **more: str) -> dict[str, Any]:
    public = private_key(algorithm, number).public_key()
    kinds: dict[str, Any] = {"ES": ECAlgorithm, "Ed": OKPAlgorithm}
    kind = kinds.get(algorithm[:2], RSAAlgorithm)
    return {**kind.to_jwk(public, as_dict=True), "kid": kid, "use": "sig", **more}


class Issuer:
    """Counts what it is asked. Mutable; use ``served``."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [public_jwk("RS256", "one")]
        self.asked: list[str] = []
        self.status = 200
        self.discovery: dict[str, Any] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                found = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys", **issuer.discovery}
                body = {"keys": issuer.keys} if self.path == "/keys" else found
                self.send_response(issuer.status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            @override
            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self.server.server_port}"

    @property
    def settings(self) -> ApiSettings:
        return ApiSettings(oidc_issuer=self.url, oidc_audience=AUDIENCE, oidc_roles=ROLES)

    def token(
        self, algorithm: str = "RS256", kid: str | None = "one", number: int = 0, **claims: Any
    ) -> str:
        """A token of ada, an sre, for ten minutes; a claim of ``None`` is left out."""
        now_s = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "exp": now_s + 600, "iat": now_s}
        told = {**usual, "roles": ["sre"], **claims}
        told = {name: value for name, value in told.items() if value is not None}
        headers = {"kid": kid} if kid is not None else {}
        return jwt.encode(told, private_key(algorithm, number), algorithm, headers=headers)

    def go_away(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def served() -> Iterator[Issuer]:
    """An issuer that answers while the context lasts."""
    issuer = Issuer()
    Thread(target=issuer.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield issuer
    finally:
        issuer.go_away()
