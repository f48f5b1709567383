"""Tokens: whose are taken, what they may do, and how often the issuer is asked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from monitor import oidc
from monitor.errors import TransientError
from monitor.keys import SCOPES, Caller
from monitor.oidc import AGAIN_S, FRESH_S, KEPT_S, MAX_TOKEN, TokenError
from monitor.settings import ApiSettings
from tests.monitor.issuer import Issuer, private_key, public_jwk, served


@dataclass
class Clock:
    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with served() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def verifier(issuer: Issuer, clock: Clock, **more: Any) -> oidc.Issuer:
    settings = {**issuer.settings.model_dump(exclude_defaults=True), **more}
    return oidc.Issuer(ApiSettings.model_validate(settings), clock)


async def test_a_good_token_is_its_subjects_with_the_scopes_of_its_roles(
    issuer: Issuer, clock: Clock
) -> None:
    asked = verifier(issuer, clock)
    assert await asked.caller(issuer.token()) == Caller("ada", frozenset(SCOPES))
    for roles, scopes in (
        (["ml", "unknown"], {"read", "write"}),
        ("viewer other", {"read"}),
        (["viewer", "ml"], {"read", "write"}),
        ([], set()),
        ([7, None], set()),
        (7, set()),
        (None, set()),
    ):
        assert (await asked.caller(issuer.token(roles=roles))).scopes == scopes
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"], "kept between tokens"


@pytest.mark.parametrize(
    ("setting", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["viewer"]}}),
        ("https://driftline.example/roles", {"https://driftline.example/roles": ["viewer"]}),
        ("scope", {"scope": "openid viewer"}),
    ],
)
async def test_roles_and_names_are_where_the_settings_say(
    setting: str, claims: dict[str, Any], issuer: Issuer, clock: Clock
) -> None:
    asked = verifier(issuer, clock, oidc_roles_claim=setting, oidc_name_claim="email")
    token = issuer.token(roles=None, email="ada@example.com", **claims)
    assert await asked.caller(token) == Caller("ada@example.com", frozenset({"read"}))
    with pytest.raises(TokenError, match="no claim email"):
        await asked.caller(issuer.token(email="a\nb"))


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "ES256", "EdDSA"])
async def test_each_algorithm_of_the_list_is_taken(
    algorithm: str, issuer: Issuer, clock: Clock
) -> None:
    issuer.keys = [public_jwk(algorithm, "one"), {"kty": "oct", "k": "c2VjcmV0", "kid": "mac"}]
    assert (await verifier(issuer, clock).caller(issuer.token(algorithm))).name == "ada"


def _forged(issuer: Issuer, algorithm: str) -> str:
    """What an attacker makes of a good token's claims and the public key, by hand: libraries refuse to."""

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    head = {"alg": algorithm, "typ": "JWT", "kid": "one"}
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    signed = part(head) + b"." + part(claims)
    pem = private_key("RS256").public_key()
    secret = pem.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    mac = hmac.new(secret, signed, hashlib.sha256).digest() if algorithm != "none" else b""
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


async def test_what_is_not_good_is_refused_with_a_reason(issuer: Issuer, clock: Clock) -> None:
    now_s, asked = time.time(), verifier(issuer, clock)
    good = issuer.token()
    for token, why in (
        (issuer.token(exp=now_s - 31), "has expired"),
        (issuer.token(nbf=now_s + 60), "not good yet"),
        (issuer.token(aud="another"), "for somebody else"),
        (issuer.token(iss="https://evil.example"), "of another issuer"),
        (issuer.token(exp=None), "no claim exp"),
        (issuer.token(aud=None), "no claim aud"),
        (issuer.token(iss=None), "no claim iss"),
        (issuer.token(sub=None), "no claim sub"),
        (issuer.token(number=1), "not signed by the issuer"),
        (issuer.token("ES256"), "not signed by the issuer"),
        (_forged(issuer, "none"), "not signed by the issuer"),
        (_forged(issuer, "HS256"), "not signed by the issuer"),
        (good[:-4] + "AAAA", "not signed by the issuer"),
        ("hunter2", "no token"),
        ("a.b.c", "no token"),
        ("", "no token"),
        (good + "A" * MAX_TOKEN, "too long"),
    ):
        with pytest.raises(TokenError, match=why) as caught:
            await asked.caller(token)
        assert token[:16] not in str(caught.value) or not token
    assert (await asked.caller(issuer.token(exp=now_s - 20))).name == "ada", (
        "the issuer's clock may be off"
    )


async def test_a_storm_of_unknown_keys_does_not_reach_the_issuer(
    issuer: Issuer, clock: Clock
) -> None:
    asked = verifier(issuer, clock)
    await asked.caller(issuer.token())
    storm = [asked.caller(issuer.token(kid=f"k{i}")) for i in range(50)]
    answers = await asyncio.gather(*storm, return_exceptions=True)
    assert {type(answer) for answer in answers} == {TokenError}
    assert issuer.asked.count("/keys") == 1, "it was asked a moment ago"
    clock.now_s += AGAIN_S
    storm = [asked.caller(issuer.token(kid=f"k{i}")) for i in range(50)]
    await asyncio.gather(*storm, return_exceptions=True)
    assert issuer.asked.count("/keys") == 2


async def test_a_key_that_the_issuer_has_changed_is_found(issuer: Issuer, clock: Clock) -> None:
    asked = verifier(issuer, clock)
    await asked.caller(issuer.token())
    issuer.keys = [public_jwk("RS256", "two", 1)]
    clock.now_s += AGAIN_S
    assert (await asked.caller(issuer.token(kid="two", number=1))).name == "ada"
    with pytest.raises(TokenError, match="no key of the issuer"):
        await asked.caller(issuer.token())


async def test_a_key_that_the_issuer_has_withdrawn_is_good_for_an_hour_at_most(
    issuer: Issuer, clock: Clock
) -> None:
    asked = verifier(issuer, clock)
    await asked.caller(issuer.token())
    issuer.keys = [public_jwk("RS256", "two", 1)]
    clock.now_s += FRESH_S - 1
    assert (await asked.caller(issuer.token())).name == "ada"
    clock.now_s += 1
    with pytest.raises(TokenError, match="no key of the issuer"):
        await asked.caller(issuer.token())


async def test_while_the_issuer_is_away_known_keys_are_good_and_others_are_not_known(
    issuer: Issuer, clock: Clock
) -> None:
    asked = verifier(issuer, clock)
    good, unknown = issuer.token(), issuer.token(kid="two")
    await asked.caller(good)
    issuer.status = 500
    clock.now_s += FRESH_S
    assert (await asked.caller(good)).name == "ada", "stale, but all that is known"
    seen = len(issuer.asked)
    for _ in range(5):
        with pytest.raises(TransientError):
            await asked.caller(unknown)
    assert len(issuer.asked) == seen, "a silent issuer is not asked by each request"
    clock.now_s += KEPT_S
    with pytest.raises(TransientError):
        await asked.caller(good)
    issuer.status = 200
    clock.now_s += AGAIN_S
    assert (await asked.caller(good)).name == "ada"


async def test_an_issuer_that_was_never_there_is_not_the_tokens_fault(clock: Clock) -> None:
    with served() as issuer:
        asked, token = verifier(issuer, clock), issuer.token()
    with pytest.raises(TransientError):
        await asked.caller(token)


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://evil.example"},
        {"jwks_uri": "http://evil.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": None},
        {"padding": "x" * (1 << 20)},
    ],
)
async def test_discovery_that_leads_elsewhere_is_not_followed(
    discovery: dict[str, Any], issuer: Issuer, clock: Clock
) -> None:
    issuer.discovery = discovery
    with pytest.raises(TransientError):
        await verifier(issuer, clock).caller(issuer.token())
    assert issuer.asked == ["/.well-known/openid-configuration"]


async def test_a_token_without_a_key_id_is_of_the_only_key(issuer: Issuer, clock: Clock) -> None:
    assert (await verifier(issuer, clock).caller(issuer.token(kid=None))).name == "ada"
    issuer.keys.append(public_jwk("RS256", "two", 1))
    with pytest.raises(TokenError, match="no key of the issuer"):
        await verifier(issuer, clock).caller(issuer.token(kid=None))
