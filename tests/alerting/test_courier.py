"""The courier: retries, waits and ages on a clock that only its own sleeping moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from alerting.courier import LONGEST_WAIT_S, STALE_S, Courier
from alerting.delivery import Attempt, Outcome
from alerting.requests import Mail, Request
from monitor.approvals import Links
from monitor.spec import ModelSpec
from monitor.wire import OutboxItem
from tests.alerting.builders import MODEL, judged, labels, run, spec
from tests.alerting.test_notify import FALLING, deliver

RETRY = Attempt(Outcome.RETRY, "status 503")
DONE = Attempt(Outcome.DELIVERED, "status 200")
KEYS = {"env:SLACK_URL": "https://hooks.example/x", "env:PD_KEY": "k" * 32, "env:HOOK_SECRET": "s"}


@dataclass
class World:
    """A clock, a receiver with a script of answers, and what was sent when."""

    answers: Sequence[Attempt]
    model: ModelSpec | None = field(default_factory=spec)
    keys: dict[str, str] = field(default_factory=lambda: dict(KEYS))
    now_s: float = 1_000.0
    sent: list[tuple[float, Request]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    async def send(self, request: Request) -> Attempt:
        self.sent.append((self.now_s, request))
        return self.answers[min(len(self.sent), len(self.answers)) - 1]

    async def sleep(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        self.now_s += wait_s

    def resolve(self, reference: str) -> str:
        if reference.startswith("env:"):
            if reference not in self.keys:
                raise KeyError(f"{reference} is not set, or cannot be read")
            return self.keys[reference]
        return reference

    def courier(self, max_age_s: float = 86_400) -> Courier:
        return Courier(
            spec_of=lambda _: self.model,
            sender=self,
            mailer=Mailbox(self),
            resolve=self.resolve,
            clock_s=lambda: self.now_s,
            sleep=self.sleep,
            rng=np.random.default_rng(1),
            max_age_s=max_age_s,
        )


@dataclass
class Mailbox:
    """Takes mail as the world's receiver takes requests."""

    world: World
    mails: list[Mail] = field(default_factory=list)

    async def send(self, mail: Mail, at_s: float) -> Attempt:
        assert at_s == self.world.now_s
        self.mails.append(mail)
        return DONE


def items() -> dict[str, OutboxItem]:
    _, found = deliver(FALLING, spec())
    return {item.target: item for item in found}


async def test_a_failing_receiver_is_tried_again_with_growing_waits_under_one_key() -> None:
    world = World([RETRY] * 12 + [DONE])
    outcome = await world.courier().deliver(items()["retrain"], world.now_s)
    assert (outcome.outcome, outcome.attempts) == ("delivered", 13)
    assert len({request.headers["webhook-id"] for _, request in world.sent}) == 1
    assert all(1.0 * 2**i <= wait <= 2.0 * 2**i for i, wait in enumerate(world.waits[:7]))
    assert max(world.waits) <= LONGEST_WAIT_S


async def test_the_wait_that_a_receiver_asks_for_is_kept() -> None:
    world = World([Attempt(Outcome.RETRY, "status 429", 120.0), DONE])
    await world.courier().deliver(items()["slack"], world.now_s)
    assert world.waits == [120.0]


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.DISABLED])
async def test_a_refusal_is_final(outcome: Outcome) -> None:
    world = World([Attempt(outcome, "status 4xx")])
    found = await world.courier().deliver(items()["slack"], world.now_s)
    assert (found.outcome, found.attempts, world.waits) == (outcome.value, 1, [])


async def test_what_is_too_old_is_given_up_with_the_last_reason() -> None:
    world = World([RETRY])
    found = await world.courier(max_age_s=60).deliver(items()["slack"], world.now_s)
    assert (found.outcome, found.detail) == ("expired", "status 503")
    assert all(at_s <= 1_060 for at_s, _ in world.sent)
    late = await world.courier(max_age_s=60).deliver(items()["slack"], world.now_s - 61)
    assert (late.outcome, late.attempts) == ("expired", 0)


async def test_a_dry_run_is_recorded_and_not_sent() -> None:
    hook = {"url": "https://ci.example/x", "secret": "env:HOOK_SECRET"}
    dry = spec(actions={"retrain": {"webhook": hook, "dry_run": True}})
    world = World([DONE], model=dry)
    found = await world.courier().deliver(items()["retrain"], world.now_s)
    assert (found.outcome, found.attempts, world.sent) == ("dry_run", 0, [])


async def test_a_target_that_left_the_spec_is_refused_and_a_spec_not_yet_known_is_waited_for() -> (
    None
):
    gone = World([DONE], model=spec(notify=[]))
    found = await gone.courier().deliver(items()["slack"], gone.now_s)
    assert (found.outcome, gone.sent) == ("refused", [])
    unknown = World([DONE], model=None)
    found = await unknown.courier(max_age_s=10).deliver(items()["slack"], unknown.now_s)
    assert (found.outcome, found.detail) == ("expired", "the model's spec is not known")


async def test_a_secret_that_is_missing_is_waited_for_and_never_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World([RETRY, DONE])
    del world.keys["env:PD_KEY"]
    found = await world.courier(max_age_s=10).deliver(items()["pagerduty"], world.now_s)
    assert (found.outcome, found.detail) == ("expired", "env:PD_KEY is not set, or cannot be read")
    world.keys["env:HOOK_SECRET"] = "whsec_planted!"
    found = await world.courier(max_age_s=10).deliver(items()["retrain"], world.now_s)
    assert "planted" not in found.detail + caplog.text


async def test_a_receiver_that_stays_down_is_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World([RETRY] * 10 + [DONE])
    await world.courier().deliver(items()["slack"], world.now_s)
    assert len(caplog.records) == 1


def test_the_builders_give_one_item_per_target() -> None:
    assert set(items()) == {"slack", "pagerduty", "retrain"}
    assert run([judged(labels(), source="performance")])[0].model == MODEL


async def test_stale_news_gives_way_to_newer_news_of_its_incident_and_to_nothing_else() -> None:
    item = items()["slack"]
    waits = World([RETRY] * 30 + [DONE])
    found = await waits.courier().deliver(item, waits.now_s, lambda: waits.now_s > 1_500)
    assert (found.outcome, found.detail) == ("superseded", "status 503")
    assert STALE_S < waits.now_s - 1_000 < STALE_S + LONGEST_WAIT_S
    alone = World([RETRY] * 30 + [DONE])
    assert (await alone.courier().deliver(item, alone.now_s)).outcome == "delivered"
    late = World([DONE])
    fresh = await late.courier().deliver(item, late.now_s - STALE_S / 2, lambda: True)
    assert fresh.outcome == "delivered", "news that is not stale is told, one after the other"


async def test_an_action_that_may_have_been_taken_is_recorded_as_unknown() -> None:
    world = World([Attempt(Outcome.UNKNOWN, "no answer: may have been taken")])
    found = await world.courier().deliver(items()["retrain"], world.now_s)
    assert (found.outcome, found.attempts) == ("unknown", 1)


async def test_a_retry_carries_the_same_link_however_late_it_is() -> None:
    hook = {"url": "https://ci.example/x", "secret": "env:HOOK_SECRET"}
    manual = spec(actions={"retrain": {"webhook": hook}})
    links = Links("https://ml.example", "s" * 32, lasts_s=60)
    bodies = []
    for restart in (0, 500):  # the next dispatcher reads the same item
        world = World([RETRY, RETRY, DONE], model=manual, now_s=1_000.0 + restart)
        await replace(world.courier(), links=links).deliver(items()["slack"], 1_000.0)
        bodies += [request.body for _, request in world.sent]
    assert len(bodies) == 6
    assert len(set(bodies)) == 1
    incident = items()["slack"].incident
    assert links.to(incident.id, "retrain", 1_000.0).encode() in bodies[0]


async def test_a_mail_goes_by_mail() -> None:
    mailed = spec(notify=[{"email": {"to": ["a@example.com"]}}])
    world = World([RETRY], model=mailed)
    (item,) = (i for i in deliver(FALLING, mailed)[1] if i.transition == "fired")
    courier = world.courier()
    found = await courier.deliver(item, world.now_s)
    assert (found.outcome, found.target) == ("delivered", "email")
    assert world.sent == []
    assert isinstance(courier.mailer, Mailbox)
    assert [mail.to for mail in courier.mailer.mails] == [("a@example.com",)]
