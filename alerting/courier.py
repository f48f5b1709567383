"""One outbox item until it is done: look up its target, build, send, wait, and try again until it is too old.

An edge like ``delivery``; the clock, the wait and chance are arguments. Nothing is remembered here but which destinations do not answer
(``breaker``): whether an item was delivered before is for the dispatcher to know.

Between two attempts an item waits for itself, longer each time; or, while its destination's circuit is open, for the circuit. Those that wait
for a circuit ask again at random moments, about ``RELEASED`` of them a second: so much, and no more, meets a receiver that is back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, assert_never

import numpy as np

from alerting.breaker import Account, Breaker, Change, Destination, Permit, Sign, server_of
from alerting.delivery import Attempt, Outcome
from alerting.payloads import approval_link, notification
from alerting.pipelines import action_request
from alerting.requests import Mail, Request, Resolve
from monitor.approvals import Links
from monitor.spec import ActionSpec, ModelSpec
from monitor.targets import NotifyTarget, action_named
from monitor.wire import Delivery, DeliveryOutcome, OutboxItem

logger = logging.getLogger(__name__)

SpecOf: TypeAlias = Callable[[str], ModelSpec | None]
FIRST_WAIT_S: Final = 1.0
STALE_S: Final = 900.0  # older news is replaced by newer news of the same incident
LONGEST_WAIT_S: Final = 300.0  # PagerDuty asks for "a few minutes" when it throttles
RELEASED: Final = 100  # a second: what a burst of incidents is told at anyway
SPREAD_S: Final = 1.0  # in which the first so many of them ask
_COUNTED_BY: Final = ("url", "routing_key", "token")  # what tells two accounts of a server apart


class Sends(Protocol):
    """``alerting.delivery.Sender``, or a fake of it."""

    async def send(self, request: Request) -> Attempt:
        """Try once."""


class Mails(Protocol):
    """``alerting.mail.Mailer``, or a fake of it."""

    async def send(self, mail: Mail, at_s: float) -> Attempt:
        """Try once."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What is sent now, and to whom."""

    message: Request | Mail
    whom: Destination


@dataclass(frozen=True, slots=True)
class Courier:
    """Delivers items.

    Attributes:
        spec_of: the newest spec of a model; ``None`` while it is not known.
        resolve: secrets by reference, read anew for each attempt so that a rotated one is taken up.
        clock_s: Unix time.
        sleep: waits for seconds.
        rng: jitter, so that receivers that come back are not met by all at once.
        max_age_s: an item that is older is given up: an old alert is noise.
        attempted: called once per request that goes out.
        links: makes the links by which a notification's reader approves; without it there are none.
        public_url: where people reach the page, to which notifications then lead.
        breaker: which destinations are called now.
    """

    spec_of: SpecOf
    sender: Sends
    mailer: Mails
    resolve: Resolve
    clock_s: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    rng: np.random.Generator
    max_age_s: float
    attempted: Callable[[], None] = lambda: None
    links: Links | None = None
    public_url: str = ""
    breaker: Breaker = field(default_factory=Breaker)

    async def deliver(
        self, item: OutboxItem, asked_s: float, newer: Callable[[], bool] = lambda: False
    ) -> Delivery:
        """Deliver an item that was asked for at ``asked_s``; returns when it is done, one way or the other.

        ``newer`` says whether later news of its incident waits behind it: what is stale by then is not told any more.
        A failure is logged when it differs from the one before: a receiver that is down for a day is one line.
        """
        attempts, detail = 0, ""
        while True:
            too_old = self._too_old(asked_s, newer)
            if too_old is not None:
                outcome, why = too_old
                return self._done(item, outcome, attempts, detail or why)
            call = self._call(item, asked_s)
            if isinstance(call, _Call):
                permit = self.breaker.ask(call.whom, self.clock_s())
                if not isinstance(permit, Permit):
                    detail = detail or "its destination takes nothing"
                    await self._hold(permit)
                    continue
                attempts += 1
                found = await self._attempt(item, call.message, permit)
            elif isinstance(call, Attempt):
                found = call
            else:
                return self._done(item, call, attempts, "recorded only")
            if found.outcome is not Outcome.RETRY:
                return self._done(item, _final(found.outcome), attempts, found.detail)
            if found.detail != detail:
                detail = found.detail
                logger.warning(
                    "delivery of %s to %s of %s waits: %s",
                    item.id,
                    item.target,
                    item.incident.model,
                    detail,
                )
            await self._rest(attempts, found, call)

    def _too_old(
        self, asked_s: float, newer: Callable[[], bool]
    ) -> tuple[Literal["superseded", "expired"], str] | None:
        age_s = self.clock_s() - asked_s
        if age_s > min(STALE_S, self.max_age_s) and newer():
            return "superseded", "newer news waits"
        if age_s > self.max_age_s:
            return "expired", "too old before a first attempt"
        return None

    async def _attempt(self, item: OutboxItem, message: Request | Mail, permit: Permit) -> Attempt:
        """Send once, and tell the breaker what came of it, whatever did."""
        self.attempted()
        sign, asked_s = Sign.NOTHING, None
        try:
            found = await self._send(message)
            sign, asked_s = found.sign, found.retry_after_s
        finally:
            change = self.breaker.tell(permit, sign, self.clock_s(), asked_s)
        if change is not None:
            _log(change, item)
        return found

    async def _send(self, message: Request | Mail) -> Attempt:
        if isinstance(message, Mail):
            return await self.mailer.send(message, self.clock_s())
        return await self.sender.send(message)

    async def _rest(self, attempts: int, found: Attempt, call: _Call | Attempt) -> None:
        """Wait between two attempts, as long as the receiver asked for. Where a circuit is open it says when to go on."""
        if isinstance(call, _Call) and self.breaker.holds(call.whom):
            # A pause that a 429 asks for is the circuit's.
            wait_s = 0.0 if found.sign is Sign.LIMIT else found.retry_after_s or 0.0
        else:
            wait_s = self._wait_s(attempts, found.retry_after_s)
        if wait_s:
            await self.sleep(wait_s)

    async def _hold(self, wait_s: float) -> None:
        """Wait until a destination may be called again, and then for a moment of one's own."""
        breaker = self.breaker
        breaker.held += 1
        try:
            spread_s = max(SPREAD_S, breaker.held / RELEASED)
            await self.sleep(wait_s + spread_s * float(self.rng.uniform(0.1, 1.0)))
        finally:
            breaker.held -= 1

    def _call(self, item: OutboxItem, asked_s: float) -> _Call | Attempt | Literal["dry_run"]:
        """What to send now; an attempt that failed before it was sent; or that nothing is to be sent."""
        spec = self.spec_of(item.incident.model)
        if spec is None:
            return Attempt(Outcome.RETRY, "the model's spec is not known")
        target = target_of(item, spec)
        if target is None:
            return Attempt(Outcome.REFUSED, "the model's spec has no such target any more")
        if isinstance(target, ActionSpec) and (item.dry_run or target.dry_run):
            return "dry_run"
        try:
            link = approval_link(item, spec, self.links, asked_s)
            at_s = int(self.clock_s())
            message = _message(item, target, self.resolve, at_s, link, self.public_url)
        except (KeyError, ValueError) as err:  # a secret: an operator may still mend it
            return Attempt(Outcome.RETRY, str(err.args[0]))
        server = "mail" if isinstance(message, Mail) else server_of(message.url)
        return _Call(message, Destination(server, _account(target)))

    def _wait_s(self, attempts: int, asked_s: float | None) -> float:
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempts, 20))
        return max(longest * float(self.rng.uniform(0.5, 1.0)), asked_s or 0.0)

    def _done(
        self, item: OutboxItem, outcome: DeliveryOutcome, attempts: int, detail: str
    ) -> Delivery:
        return Delivery(
            id=item.id,
            incident_id=item.incident.id,
            target=item.target,
            action=item.action,
            outcome=outcome,
            attempts=attempts,
            at_ms=int(self.clock_s() * 1000),
            detail=detail,
        )


def target_of(item: OutboxItem, spec: ModelSpec) -> NotifyTarget | ActionSpec | None:
    """Where the spec says that an item goes; ``None`` if it says so no longer."""
    name = action_named(item.action)
    return spec.told(item.target) if name is None else spec.actions.of(name)


def _account(target: NotifyTarget | ActionSpec) -> Account:
    """What the receiver's limits count, by the references of the spec: nothing here is a secret."""
    return tuple(getattr(target.chosen, name, None) for name in _COUNTED_BY)


def _log(change: Change, item: OutboxItem) -> None:
    """Once for all lanes; the address may be a secret."""
    place = item.target, item.incident.model
    match change:
        case Change.OPENED:
            logger.warning("what %s of %s calls does not answer: it is probed from now on", *place)
        case Change.CLOSED:
            logger.info("what %s of %s calls answers again", *place)
        case _:
            assert_never(change)


def _message(
    item: OutboxItem,
    target: NotifyTarget | ActionSpec,
    resolve: Resolve,
    at_s: int,
    link: str,
    public_url: str,
) -> Request | Mail:
    if isinstance(target, ActionSpec):
        return action_request(item, target, resolve, at_s=at_s)
    return notification(item, target, resolve, at_s=at_s, link=link, public_url=public_url)


def _final(outcome: Outcome) -> DeliveryOutcome:
    match outcome:
        case Outcome.DELIVERED:
            return "delivered"
        case Outcome.REFUSED:
            return "refused"
        case Outcome.DISABLED:
            return "disabled"
        case Outcome.UNKNOWN:
            return "unknown"
        case Outcome.RETRY:
            raise AssertionError("a retry is not final")
        case _:
            assert_never(outcome)
