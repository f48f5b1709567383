"""Tokens of signed links: only the very bytes that were signed are right, for one action of one incident, until they expire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.approvals import MIN_SECRET, Approval, Links, Refusal, read
from monitor.targets import ActionName

SECRET = "s" * MIN_SECRET
EXPIRES = 1_700_000_000
GOOD = Approval("f" * 32, "retrain", EXPIRES)
TOKEN = GOOD.token(SECRET)

actions = st.sampled_from(["retrain", "rollback"])
ids = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(ids, actions, st.integers(1, 10**11))
def test_a_token_says_what_was_signed_until_it_expires(
    incident_id: str, action: ActionName, expires_s: int
) -> None:
    approval = Approval(incident_id, action, expires_s)
    token = approval.token(SECRET)
    assert read(token, SECRET, now_s=expires_s - 0.001) == approval
    assert read(token, SECRET, now_s=expires_s) is Refusal.EXPIRED
    assert token.replace(".", "").replace("-", "").replace("_", "").isalnum()


@given(st.integers(1, 255))
def test_any_changed_byte_is_refused(flip: int) -> None:
    for at in range(len(TOKEN)):  # the last one, too: base64 would not need all of its bits
        forged = bytearray(TOKEN.encode())
        forged[at] ^= flip
        assert read(forged.decode("latin-1"), SECRET, now_s=0) is Refusal.FORGED


@given(st.text(), st.text("0123456789abcdefr.train-_=\x00é٣", max_size=300))
def test_whatever_is_not_a_token_is_forged_and_never_an_error(text: str, near: str) -> None:
    for token in (text, near, TOKEN + near[:5] + "x", TOKEN[:-1], f"x{TOKEN}", TOKEN + "="):
        assert read(token, SECRET, now_s=0) is Refusal.FORGED


@pytest.mark.parametrize(
    "expires", [f"0{EXPIRES}", f"+{EXPIRES}", f" {EXPIRES}", "1_700_000_000", str(EXPIRES + 1), ""]
)
def test_an_expiry_is_neither_moved_nor_spelt_in_a_second_way(expires: str) -> None:
    incident_id, action, _, mac = TOKEN.split(".")
    forged = f"{incident_id}.{action}.{expires}.{mac}"
    assert read(forged, SECRET, now_s=0) is Refusal.FORGED


def test_a_token_is_of_one_action_one_incident_and_one_secret() -> None:
    assert read(TOKEN.replace("retrain", "rollback"), SECRET, now_s=0) is Refusal.FORGED
    assert read(TOKEN.replace("f" * 32, "e" * 32), SECRET, now_s=0) is Refusal.FORGED
    assert read(TOKEN, "t" * MIN_SECRET, now_s=0) is Refusal.FORGED
    forged = TOKEN[: TOKEN.rindex(".") + 1]
    assert read(forged, SECRET, now_s=EXPIRES + 1) is Refusal.FORGED, "not expired: that is a yes"


@pytest.mark.parametrize("secret", ["", "planted" * 4])
def test_a_short_secret_neither_signs_nor_opens(secret: str) -> None:
    with pytest.raises(ValueError, match="at least 32") as caught:
        GOOD.token(secret)
    assert "planted" not in str(caught.value)
    with pytest.raises(ValueError, match="at least 32"):
        read(TOKEN, secret, now_s=0)


def test_a_link_counts_from_when_it_was_asked_for_and_hides_its_secret() -> None:
    links = Links("https://ml.example/driftline", SECRET, lasts_s=60)
    link = links.to("f" * 32, "retrain", EXPIRES - 60 + 0.9)
    assert link == f"https://ml.example/driftline/approve?token={TOKEN}"
    assert SECRET not in repr(links) + link
