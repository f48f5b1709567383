"""What people may ask for: which orders can be given, and what they say."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from monitor.errors import ConfigError, NothingToDoError
from monitor.orders import Kind, order
from monitor.wire import Command
from tests.alerting.builders import MODEL
from tests.alerting.test_payloads import item

INCIDENT = replace(item().incident, id="abcdef" + "0" * 26, advice="retrain")


def test_an_order_says_who_when_and_why() -> None:
    given = order("silence", INCIDENT, author="ada", at_ms=5, until_ms=9, comment="deploy")
    assert given == Command("silence", MODEL, INCIDENT.id, "ada", 5, 9, "deploy")


def test_an_approval_names_the_action_that_was_seen() -> None:
    back = replace(INCIDENT, advice="rollback")
    assert order("approve", INCIDENT, author="ada", at_ms=5).action == "retrain"
    assert order("reject", back, author="ada", at_ms=5).action == "rollback"


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        *((kind, {"state": "resolved"}, "is resolved: there is noth") for kind in get_args(Kind)),
        ("approve", {"advice": "fix_data"}, "advises to fix data: there is nothing to approve"),
        ("reject", {"advice": "watch"}, "nothing to reject"),
        ("acknowledge", {"acknowledged_by": "bob"}, "bob has acknowledged it already"),
    ],
)
def test_what_would_change_nothing_is_refused(
    kind: Kind, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(NothingToDoError, match=problem):
        order(kind, replace(INCIDENT, **changes), author="ada", at_ms=1)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        ("acknowledge", {"author": "a\nb"}, "author is one line"),
        ("acknowledge", {"author": ""}, "author is one line"),
        ("acknowledge", {"comment": "x" * 501}, "comment is one line"),
        ("acknowledge", {"comment": "a\x1b[2Jb"}, "comment is one line"),
        ("silence", {}, "for how long"),
    ],
)
def test_what_is_no_line_or_has_no_end_is_refused(
    kind: Kind, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        order(kind, INCIDENT, **{"author": "ada", "at_ms": 1, **given})
    assert not isinstance(caught.value, NothingToDoError)
