"""Alerts that stand: what is renewed, by whom, and that an end is never overtaken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given
from msgspec.structs import replace

from alerting.delivery import Attempt, Outcome
from alerting.requests import Request
from monitor.spec import ModelSpec, parse_spec
from monitor.wire import OutboxItem, Transition
from streams.standing import Standing, firing_in
from tests.alerting.builders import MODEL
from tests.alerting.test_payloads import item

NOW = 1_700_000_000.0
DONE = Attempt(Outcome.DELIVERED, "status 200")
SPEC = parse_spec(
    {
        "model": MODEL,
        "notify": [
            {"alertmanager": {"url": "http://am.example", "token": "env:AM"}},
            {"name": "second", "alertmanager": {"url": "http://am2.example"}},
            {"slack": {"url": "env:X"}},
        ],
    },
    origin="test",
)


@dataclass
class World:
    """Two Alertmanagers and a spec."""

    spec: ModelSpec | None = field(default_factory=lambda: SPEC)
    answer: Attempt = DONE
    secrets: dict[str, str] = field(default_factory=lambda: {"env:AM": "token"})
    sent: list[tuple[str, dict[str, bool]]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def standing(self) -> Standing:
        return Standing(lambda _: self.spec, self, self._resolve, lambda: NOW)

    async def send(self, request: Request) -> Attempt:
        alerts: list[dict[str, Any]] = msgspec.json.decode(request.body)
        fires = {a["labels"]["incident"]: a["endsAt"] > "2023-11-14T22:13:20.000Z" for a in alerts}
        self.sent.append((request.url.split("/")[2], fires))
        self.meanwhile()
        return self.answer

    def _resolve(self, text: str) -> str:
        if text.startswith("env:") and text not in self.secrets:
            raise KeyError(f"{text} is not set, or cannot be read")
        return self.secrets.get(text, text)


def told(
    incident: str, transition: Transition = "fired", target: str = "alertmanager"
) -> OutboxItem:
    made = item(transition, state="resolved" if transition == "resolved" else "firing")
    return replace(made, target=target, incident=replace(made.incident, id=incident))


async def test_what_fires_is_renewed_where_it_was_told_until_it_is_over() -> None:
    world = World()
    standing = world.standing()
    standing.assign(
        0, firing_in([told("a"), told("b", target="second"), told("c", target="slack")])
    )
    await standing.send()
    assert world.sent == [("am.example", {"a": True}), ("am2.example", {"b": True})]
    standing.note(0, told("d"))
    standing.note(0, told("a", "resolved"))
    standing.note(0, told("b", "resolved", "second"))
    world.sent.clear()
    await standing.send()
    assert world.sent == [("am.example", {"d": True})]


async def test_who_gave_a_partition_away_says_nothing_of_it_any_more() -> None:
    world = World()
    standing = world.standing()
    standing.assign(0, firing_in([told("a")]))
    standing.assign(1, firing_in([told("b")]))
    standing.revoke(0)
    standing.note(0, told("c"))
    await standing.send()
    assert world.sent == [("am.example", {"b": True})]


async def test_an_end_that_came_while_a_renewal_was_on_its_way_is_told_again() -> None:
    world = World()
    standing = world.standing()
    standing.assign(0, firing_in([told("a"), told("b")]))

    def ends() -> None:
        world.meanwhile = lambda: None
        standing.note(0, told("a", "resolved"))

    world.meanwhile = ends
    await standing.send()
    assert world.sent == [("am.example", {"a": True, "b": True}), ("am.example", {"a": False})]


async def test_a_partition_that_went_away_during_a_renewal_is_its_next_owners_to_end() -> None:
    world = World()
    standing = world.standing()
    standing.assign(0, firing_in([told("a")]))
    world.meanwhile = lambda: standing.revoke(0)
    await standing.send()
    assert world.sent == [("am.example", {"a": True})]


async def test_an_action_is_no_alert_and_an_unknown_model_has_no_target() -> None:
    world = World(spec=None)
    standing = world.standing()
    standing.assign(0, firing_in([told("a"), replace(told("b", "action"), action="retrain")]))
    await standing.send()
    assert world.sent == []
    world.spec = SPEC
    await standing.send()
    assert world.sent == [("am.example", {"a": True})]


async def test_what_cannot_be_renewed_is_said_once_and_tried_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(answer=Attempt(Outcome.RETRY, "status 503"))
    standing = world.standing()
    standing.assign(0, firing_in([told("a")]))
    for _ in range(3):
        await standing.send()
    world.answer = DONE
    await standing.send()
    world.secrets.clear()
    await standing.send()
    world.secrets["env:AM"] = "token\nof two lines"
    await standing.send()
    assert len(world.sent) == 4
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "status 503",
        "env:AM is not set, or cannot be read",
        "the authorization header is not one line of ASCII",
    ]
    assert "token" not in caplog.text


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["fired", "changed", "resolved"]))))  # fmt: skip
def test_what_fires_is_what_was_told_last(history: list[tuple[str, Transition]]) -> None:
    last = dict(history)
    found = firing_in([told(*each) for each in history])
    fires = {incident for incident, transition in last.items() if transition != "resolved"}
    assert found.get((MODEL, "alertmanager"), {}).keys() == fires
    assert all(found.values()), "nothing is kept of a place where nothing fires"
