"""One outbox item until it is done: look up its target, build, send, wait, and try again until it is too old.

An edge like ``delivery``; the clock, the wait and chance are arguments. Nothing is remembered here: whether an item was
delivered before is for the dispatcher to know.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, assert_never

import numpy as np

from alerting.delivery import Attempt, Outcome
from alerting.payloads import approval_link, notification
from alerting.pipelines import action_request
from alerting.requests import Mail, Request, Resolve
from monitor.approvals import Links
from monitor.spec import ActionSpec, ModelSpec
from monitor.targets import NotifyTarget
from monitor.wire import Delivery, DeliveryOutcome, OutboxItem

logger = logging.getLogger(__name__)

SpecOf: TypeAlias = Callable[[str], ModelSpec | None]
FIRST_WAIT_S: Final = 1.0
STALE_S: Final = 900.0  # older news is replaced by newer news of the same incident
LONGEST_WAIT_S: Final = 300.0  # PagerDuty asks for "a few minutes" when it throttles


class Sends(Protocol):
    """``alerting.delivery.Sender``, or a fake of it."""

    async def send(self, request: Request) -> Attempt:
        """Try once."""


class Mails(Protocol):
    """``alerting.mail.Mailer``, or a fake of it."""

    async def send(self, mail: Mail, at_s: float) -> Attempt:
        """Try once."""


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

    async def deliver(
        self, item: OutboxItem, asked_s: float, newer: Callable[[], bool] = lambda: False
    ) -> Delivery:
        """Deliver an item that was asked for at ``asked_s``; returns when it is done, one way or the other.

        ``newer`` says whether later news of its incident waits behind it: what is stale by then is not told any more.
        A failure is logged when it differs from the one before: a receiver that is down for a day is one line.
        """
        attempts, detail = 0, ""
        while True:
            if self.clock_s() - asked_s > min(STALE_S, self.max_age_s) and newer():
                return self._done(item, "superseded", attempts, detail or "newer news waits")
            if self.clock_s() - asked_s > self.max_age_s:
                return self._done(
                    item, "expired", attempts, detail or "too old before a first attempt"
                )
            found = self._request(item, asked_s)
            if isinstance(found, Request | Mail):
                attempts += 1
                self.attempted()
                found = await self._send(found)
            elif not isinstance(found, Attempt):
                return self._done(item, found, attempts, "recorded only")
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
            await self.sleep(self._wait_s(attempts, found.retry_after_s))

    async def _send(self, message: Request | Mail) -> Attempt:
        if isinstance(message, Mail):
            return await self.mailer.send(message, self.clock_s())
        return await self.sender.send(message)

    def _request(
        self, item: OutboxItem, asked_s: float
    ) -> Request | Mail | Attempt | Literal["dry_run"]:
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
            return _message(item, target, self.resolve, int(self.clock_s()), link)
        except (KeyError, ValueError) as err:  # a secret: an operator may still mend it
            return Attempt(Outcome.RETRY, str(err.args[0]))

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
    match item.action:
        case "retrain":
            return spec.actions.retrain
        case "rollback":
            return spec.actions.rollback
        case _:
            return spec.told(item.target)


def _message(
    item: OutboxItem, target: NotifyTarget | ActionSpec, resolve: Resolve, at_s: int, link: str
) -> Request | Mail:
    if isinstance(target, ActionSpec):
        return action_request(item, target, resolve, at_s=at_s)
    return notification(item, target, resolve, at_s=at_s, link=link)


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
