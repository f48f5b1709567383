"""Our alerts in a real Alertmanager (Debian's): it takes them, groups them, tells of them, and forgets what is not sent again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from alerting.delivery import Outcome, Sender
from alerting.payloads import alerts_request
from monitor.targets import AlertmanagerTarget
from monitor.wire import Incident
from tests.alerting.managers import alertmanager, known, needs_alertmanager, receiver, wait_for
from tests.alerting.test_payloads import item

pytestmark = [needs_alertmanager, pytest.mark.timeout(120)]


async def send(url: str, *incidents: Incident) -> Outcome:
    request = alerts_request(
        incidents, AlertmanagerTarget(url=url), lambda text: text, at_s=int(time.time())
    )
    sender = Sender(("127.0.0.0/8",), 5.0)
    try:
        return (await sender.send(request)).outcome
    finally:
        await sender.close()


def states(told: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Of each notification: incident -> state."""
    return [{a["labels"]["incident"]: a["status"] for a in each["alerts"]} for each in told]


async def test_incidents_are_taken_grouped_and_resolved_and_sent_again_after_a_restart(
    tmp_path: Path,
) -> None:
    one, two = (replace(item().incident, id=letter * 32) for letter in "12")
    other = replace(one, id="3" * 32, model="other/ß", title="\u202e<b>\n", evidence=[])
    with receiver() as (tells, told):
        with alertmanager(tmp_path / "am", tells) as url:
            assert await send(url, one, two, other) is Outcome.DELIVERED
            assert await send(url, one, two, other) is Outcome.DELIVERED, "and again, as it asks"
            assert known(url).keys() == {one.id, two.id, other.id}
            assert known(url)[one.id]["annotations"]["advice"] == "fix data (retrain blocked)"
            # Alerts that began long ago are told at once: of two, the first may be told before the second is there.
            both = {one.id: "firing", two.id: "firing"}
            wait_for(
                lambda: all(g in states(told) for g in (both, {other.id: "firing"})), lambda: told
            )
            assert all(
                group.keys() in ({other.id}, {one.id}, {two.id}, both.keys())
                for group in states(told)
            )
            assert await send(url, replace(one, state="resolved")) is Outcome.DELIVERED
            wait_for(
                lambda: states(told)[-1] == {one.id: "resolved", two.id: "firing"}, lambda: told
            )
            before = len(told)
        with alertmanager(tmp_path / "am", tells) as url:
            assert known(url) == {}, "it keeps no alerts over a restart"
            assert await send(url, two, other) is Outcome.DELIVERED
            assert known(url).keys() == {two.id, other.id}
            await asyncio.sleep(3)
            assert len(told) == before, "but it keeps what it has told"


async def test_what_alertmanager_refuses_is_refused(tmp_path: Path) -> None:
    with receiver() as (tells, _), alertmanager(tmp_path / "am", tells) as url:
        assert await send(f"{url}elsewhere/", item().incident) is Outcome.REFUSED
