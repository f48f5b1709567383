"""The courier: retries, waits and ages on a clock that only its own sleeping moves."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import logging
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
from msgspec.structs import replace

from alerting.breaker import (
    FAILURES,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    YIELD_S,
    Destination,
    Permit,
    Sign,
)
from alerting.courier import LONGEST_WAIT_S, SPREAD_S, STALE_S, Courier
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
    own, probes = world.waits[: FAILURES - 1], world.waits[FAILURES - 1 :]
    assert all(1.0 * 2**i <= wait <= 2.0 * 2**i for i, wait in enumerate(own))
    pauses = [min(FIRST_PAUSE_S * 2**i, LONGEST_PAUSE_S) + YIELD_S for i in range(len(probes))]
    assert all(0.0 < w - p <= SPREAD_S for w, p in zip(probes, pauses, strict=True))


async def test_what_fails_behind_a_server_that_answers_others_is_tried_ever_more_rarely() -> None:
    world = World([RETRY] * 12 + [DONE])
    neighbour = Destination("https://hooks.example:443", ("another",))

    async def sleep(wait_s: float) -> None:
        await world.sleep(wait_s)
        permit = courier.breaker.ask(neighbour, world.now_s)
        assert isinstance(permit, Permit)
        courier.breaker.tell(permit, Sign.ANSWER, world.now_s)

    courier = dataclasses.replace(world.courier(), sleep=sleep)
    outcome = await courier.deliver(items()["slack"], world.now_s)
    assert (outcome.outcome, outcome.attempts) == ("delivered", 13)
    longest = [min(2.0 * 2**i, LONGEST_WAIT_S) for i in range(12)]
    assert all(t / 2 <= wait <= t for t, wait in zip(longest, world.waits, strict=True))


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
    caplog.set_level(logging.DEBUG)
    world = World([RETRY] * 10 + [DONE])
    item = items()["slack"]
    await world.courier().deliver(item, world.now_s)
    assert [record.getMessage() for record in caplog.records] == [
        f"delivery of {item.id} to slack of {MODEL} waits: status 503",
        f"what slack of {MODEL} calls does not answer: it is probed from now on",
        f"what slack of {MODEL} calls answers again",
    ]


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
        await dataclasses.replace(world.courier(), links=links).deliver(items()["slack"], 1_000.0)
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


@cache
def told_at(variable: str) -> ModelSpec:
    return spec(notify=[{"slack": {"url": f"env:{variable}"}}])


class Town:
    """Many lanes on one clock, which moves when all of them wait, and receivers that are away for a while.

    Args:
        away: from when to when.
        hangs: whether who is away answers with a timeout, and not at once.
        limit_s: least time between two requests that an account is given.
    """

    def __init__(
        self, away: tuple[float, float] = (0.0, 0.0), *, hangs: bool = False, limit_s: float = 0.0
    ) -> None:
        self.away, self.hangs, self.limit_s = away, hangs, limit_s
        self.now_s = 0.0
        self.began: list[float] = []
        self.names: list[str] = []
        self.taken: list[tuple[float, str]] = []
        self.held: dict[float, int] = {}
        self._last: dict[str, float] = {}
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self.courier = Courier(
            spec_of=self.spec_of,
            sender=self,
            mailer=Mailbox(World([DONE])),
            resolve=lambda reference: f"https://hooks.example/{reference.removeprefix('env:')}",
            clock_s=lambda: self.now_s,
            sleep=self.sleep,
            rng=np.random.default_rng(7),
            max_age_s=86_400,
        )
        self.own_webhooks = False

    def spec_of(self, model: str) -> ModelSpec:
        own = self.own_webhooks or model.startswith("own")
        return told_at(model if own else "ALL")

    async def sleep(self, wait_s: float) -> None:
        assert wait_s > 0, "who does not wait keeps the clock from moving"
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.now_s + wait_s, len(self.began) + id(done), done))
        await done

    async def send(self, request: Request) -> Attempt:
        self.began.append(self.now_s)
        self.names.append(request.headers["webhook-id"])
        if self.away[0] <= self.now_s < self.away[1]:
            await self.sleep(10.0 if self.hangs else 0.01)
            return Attempt(Outcome.RETRY, "connection failed")
        await self.sleep(0.05)
        if self.now_s - self._last.get(request.url, -1e9) < self.limit_s:
            return Attempt(Outcome.RETRY, "status 429", self.limit_s, Sign.LIMIT)
        self._last[request.url] = self.now_s
        self.taken.append((self.now_s, request.headers["webhook-id"]))
        return DONE

    async def lane(self, model: str, starts_s: float) -> list[str]:
        """Two items of a model, one after the other."""
        if starts_s:
            await self.sleep(starts_s)
        first = ANY
        ids = [f"{model}:fired", f"{model}:resolved"]
        for name in ids:
            incident = replace(first.incident, model=model)
            item = replace(first, id=name, incident=incident)
            done = await self.courier.deliver(item, self.now_s)
            assert done.outcome == "delivered"
        return ids

    async def run(self, lanes: Iterable[Awaitable[list[str]]]) -> dict[str, float]:
        """Until all are done; when each item was taken, once each and in the order of its lane."""
        tasks = [asyncio.ensure_future(lane) for lane in lanes]
        while not all(task.done() for task in tasks):
            for _ in range(5):
                await asyncio.sleep(0)
            if self._waiting:
                self.now_s, _, done = heapq.heappop(self._waiting)
                self.held[self.now_s] = self.courier.breaker.held
                done.set_result(None)
        wanted = [task.result() for task in tasks]
        assert max(Counter(name for _, name in self.taken).values()) == 1
        at = {name: at_s for at_s, name in self.taken}
        assert at.keys() == {name for ids in wanted for name in ids}
        assert all(at[ids[0]] < at[ids[1]] for ids in wanted)
        assert self.courier.breaker.held == 0
        return at


ANY = items()["slack"]
LANES = 50
BACK_S = 300.0


@pytest.mark.parametrize(
    ("why", "hangs", "apart_s", "own_webhooks", "most"),
    [
        ("refused, one lane after the other", False, 2.0, True, 20),
        ("the same, at one webhook", False, 2.0, False, 20),
        ("a timeout: ten are under way before the first has ended", True, 1.0, True, 40),
        ("refused, all in one moment: one attempt each", False, 0.0, True, LANES + 20),
        ("a timeout, all in one moment, at one webhook", True, 0.0, False, LANES + 20),
    ],
)
async def test_fifty_lanes_leave_a_dead_receiver_alone_and_are_done_soon_after_it_is_back(
    why: str, *, hangs: bool, apart_s: float, own_webhooks: bool, most: int
) -> None:
    town = Town((0.0, BACK_S), hangs=hangs)
    town.own_webhooks = own_webhooks
    at = await town.run(town.lane(f"m{i}", i * apart_s) for i in range(LANES))
    in_vain = [began for began in town.began if began < BACK_S]
    assert len(in_vain) <= most, why
    assert max(at.values()) < BACK_S + LONGEST_PAUSE_S + YIELD_S + 10 * hangs + 3 * SPREAD_S
    assert len(town.began) - len(in_vain) == 2 * LANES, "and no attempt more than there is to send"
    assert max(n for at_s, n in town.held.items() if at_s < BACK_S) >= LANES - 1
    firsts = [b for b, name in zip(town.began, town.names, strict=True) if name.endswith("fired")]
    tenths = Counter(round(began, 1) for began in firsts if began >= BACK_S)
    assert max(tenths.values()) <= LANES / 3, "spread over a second"


async def test_a_limit_is_kept_by_all_lanes_of_its_webhook_and_by_no_other() -> None:
    town = Town(limit_s=5.0)
    lanes = [*(town.lane(f"m{i}", 0.0) for i in range(5)), town.lane("own", 2.0)]
    at = await town.run(lanes)
    assert at.pop("own:fired") == pytest.approx(2.05)
    assert at.pop("own:resolved") < 2.0 + 5.0 + 2 * SPREAD_S
    gaps = np.diff(sorted(at.values()))
    assert gaps.min() >= 5.0
    assert gaps.max() <= 5.0 + 2 * SPREAD_S + 5.0, "nobody waits for a backoff of its own"
    assert len(town.began) <= 4 * len(at), "one finds out for all"
    assert town.courier.breaker.open(town.now_s) == 0, "what has enough is not down"


async def test_a_server_that_says_when_to_come_back_is_not_asked_earlier_by_who_was_told() -> None:
    world = World([Attempt(Outcome.RETRY, "status 503", 200.0), DONE])
    courier = world.courier()
    down(courier, world.now_s)
    world.now_s += FIRST_PAUSE_S
    await courier.deliver(items()["slack"], world.now_s)
    assert (len(world.sent), world.waits[0]) == (2, 200.0)


def down(courier: Courier, now_s: float) -> Destination:
    """Open the circuit of the items' Slack; another account was seen to fail."""
    whom = Destination("https://hooks.example:443", ("env:ANOTHER", None, None))
    for _ in range(FAILURES):
        permit = courier.breaker.ask(whom, now_s)
        assert isinstance(permit, Permit)
        courier.breaker.tell(permit, Sign.SILENCE, now_s)
    return whom


async def test_what_waits_for_a_destination_grows_old_all_the_same() -> None:
    world = World([RETRY])
    courier = world.courier(max_age_s=600)
    down(courier, world.now_s)
    age_s = 600 - FIRST_PAUSE_S / 2
    found = await courier.deliver(items()["slack"], world.now_s - age_s)
    assert (found.outcome, found.attempts) == ("expired", 0)
    assert (found.detail, world.sent) == ("its destination takes nothing", [])
    later = World([RETRY])
    courier = later.courier()
    down(courier, later.now_s)
    news = await courier.deliver(items()["slack"], later.now_s - STALE_S + 1.0, lambda: True)
    assert (news.outcome, news.attempts, later.sent) == ("superseded", 0, [])


async def test_an_address_that_was_not_called_and_an_attempt_that_broke_off_show_nothing() -> None:
    world = World(
        [Attempt(Outcome.REFUSED, "the address is in a private network", shows=Sign.NOTHING)]
    )
    courier = world.courier()
    whom = down(courier, world.now_s)
    world.now_s += 2 * FIRST_PAUSE_S
    assert (await courier.deliver(items()["slack"], world.now_s)).outcome == "refused"
    assert courier.breaker.holds(whom)

    async def broken(request: Request) -> Attempt:
        raise asyncio.CancelledError

    world.send = broken  # type: ignore[method-assign]  # for this world
    with pytest.raises(asyncio.CancelledError):
        await courier.deliver(items()["slack"], world.now_s)
    assert isinstance(courier.breaker.ask(whom, world.now_s), Permit), "another may probe"


async def test_an_action_that_may_have_been_taken_counts_as_a_failure_and_is_not_repeated() -> None:
    world = World([Attempt(Outcome.UNKNOWN, "no answer: may have been taken")])
    courier = world.courier()
    for _ in range(FAILURES):
        found = await courier.deliver(items()["retrain"], world.now_s)
        assert (found.outcome, found.attempts) == ("unknown", 1)
    assert courier.breaker.open(world.now_s) == 1


async def test_a_mail_server_has_a_circuit_of_its_own() -> None:
    mailed = spec(notify=[{"email": {"to": ["a@example.com"]}}])
    world = World([RETRY], model=mailed)
    (item,) = (i for i in deliver(FALLING, mailed)[1] if i.transition == "fired")

    async def send(mail: Mail, at_s: float) -> Attempt:
        calls.append(at_s)
        return RETRY if at_s < 1_100 else DONE

    calls: list[float] = []
    mailer = Mailbox(world)
    mailer.send = send  # type: ignore[method-assign]  # for this world
    courier = dataclasses.replace(world.courier(), mailer=mailer)
    assert (await courier.deliver(item, world.now_s)).outcome == "delivered"
    assert FAILURES < len(calls) < FAILURES + 6
