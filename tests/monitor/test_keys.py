"""Keys of the API: made once, kept as a hash, and read back from a line."""

from __future__ import annotations

import hashlib

import pytest

from monitor.keys import MAX_KEYS, SCOPES, Key, create, digest_of, find, parse

DAY = 86_400_000
NOON_2026 = 1_767_268_800_000  # 2026-01-01T12:00Z


def key(name: str, byte: int = 7, *scopes: str, lasts_days: int | None = None) -> tuple[str, Key]:
    wanted = scopes or ("read",)
    return create(name, wanted, bytes([byte]) * 32, now_ms=NOON_2026, lasts_days=lasts_days)


def test_a_key_comes_back_from_its_line_which_does_not_hold_the_secret() -> None:
    secret, made = key("ci", 7, "write", "read", lasts_days=30)
    assert secret.startswith("dlk_")
    assert len(secret) == 4 + 43
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert made.line == f"ci read,write sha256:{digest} 2026-01-31"
    assert parse(made.line) == (made,)
    assert secret not in made.line


def test_a_secret_opens_its_own_key_only() -> None:
    pairs = [key(f"k{i}", i) for i in range(5)]
    keys = [made for _, made in pairs]
    for secret, made in pairs:
        assert find(keys, secret) is made
    for wrong in ("", pairs[0][0][:-1], pairs[0][0] + "x", keys[0].digest.hex(), "\udcff"):
        assert find(keys, wrong) is None


def test_a_key_is_over_when_its_day_begins() -> None:
    made = key("ci", lasts_days=1)[1]
    midnight = NOON_2026 + DAY // 2
    assert [made.is_over(at) for at in (NOON_2026, midnight - 1, midnight)] == [False, False, True]
    assert not key("ci")[1].is_over(1 << 42)


def test_keys_are_lines_or_stand_between_semicolons_and_may_have_comments() -> None:
    one, two = key("a", 1)[1], key("b", 2, *SCOPES)[1]
    assert parse(f"# who\n{one.line}\n\n  {two.line}\r\n") == (one, two)
    assert parse(f"{one.line}; {two.line}") == (one, two)
    assert parse("") == ()


HASH = f"sha256:{digest_of('x').hex()}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hunter2", "line 1: expected NAME SCOPES sha256:HEX"),
        (f"a read {HASH} 2027-01-01 more", "line 1: expected NAME"),
        ("\na read hunter2", "line 2: a key is given by its hash"),
        (f"a read {HASH.upper()}", "given by its hash"),
        (f"a admin {HASH}", "scopes are read, write and approve"),
        (f"a read,admin {HASH}", "scopes are read, write and approve"),
        (f"a , {HASH}", "scopes are"),
        (f"a read {HASH} 2027-02-30", "its end is a day"),
        (f"a/hunter2 read {HASH}", "a name is up to 64"),
        (f"a read {HASH}\na write {HASH}", "line 2: its name is that of another"),
        ("\n".join(f"k{i} read {HASH}" for i in range(MAX_KEYS + 1)), "more than 256"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_not_quoted(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)


def test_a_key_needs_all_its_random_bytes() -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        create("ci", ["read"], b"short")
