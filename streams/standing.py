"""Alerts that stand: Alertmanager forgets what is not sent again, and over a restart forgets everything, so what fires is told every minute.

What fires is read from the outbox alone: the last that was asked for, by incident and target. So whoever holds a partition of the outbox
speaks for its incidents, and what was silenced from the start is not told here either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from msgspec.structs import replace

from alerting.courier import Sends, SpecOf
from alerting.delivery import Outcome
from alerting.payloads import alerts_request
from alerting.requests import Resolve
from monitor.targets import AlertmanagerTarget
from monitor.wire import Incident, OutboxItem

logger = logging.getLogger(__name__)

EVERY_S: Final = 60.0  # of the five minutes that an alert lasts: four may be lost
Place: TypeAlias = tuple[str, str]
"""Model and target."""

Firing: TypeAlias = dict[Place, dict[str, Incident]]
"""By place and incident."""


def firing_in(items: Iterable[OutboxItem]) -> Firing:
    """What fires after these items of one partition, in their order."""
    firing: Firing = {}
    for item in items:
        _note(firing, item)
    return firing


def _note(firing: Firing, item: OutboxItem) -> None:
    if item.action != "notify":
        return
    place = item.incident.model, item.target
    if item.transition != "resolved":
        firing.setdefault(place, {})[item.incident.id] = item.incident
        return
    firing.get(place, {}).pop(item.incident.id, None)
    if not firing.get(place):
        firing.pop(place, None)


class Standing:
    """What fires. Mutable: outbox items change it, and ``send`` tells it.

    Args:
        spec_of: the newest spec of a model; ``None`` while it is not known.
        sender: sends requests.
        resolve: secrets by reference.
        clock_s: Unix time.
        public_url: where people reach the page.
    """

    def __init__(
        self,
        spec_of: SpecOf,
        sender: Sends,
        resolve: Resolve,
        clock_s: Callable[[], float],
        public_url: str = "",
    ) -> None:
        self._spec_of, self._sender, self._resolve = spec_of, sender, resolve
        self._clock_s, self._public_url = clock_s, public_url
        self._firing: dict[int, Firing] = {}
        self._said: dict[Place, str] = {}

    def assign(self, partition: int, firing: Firing) -> None:
        """Take over a partition in which this fires."""
        self._firing[partition] = firing

    def revoke(self, partition: int) -> None:
        """Somebody else speaks for its incidents."""
        self._firing.pop(partition, None)

    def note(self, partition: int, item: OutboxItem) -> None:
        """Take in one more item of a partition that is held."""
        if partition in self._firing:
            _note(self._firing[partition], item)

    async def send(self) -> None:
        """Tell everything that fires once more. What cannot be told now is told the next time."""
        for partition, firing in list(self._firing.items()):
            for place, incidents in list(firing.items()):
                target = self._target(place)
                if target is not None:
                    await self._tell(partition, place, target, list(incidents.values()))

    def _target(self, place: Place) -> AlertmanagerTarget | None:
        model, name = place
        spec = self._spec_of(model)
        found = spec.told(name) if spec is not None else None
        return found.alertmanager if found is not None else None

    async def _tell(
        self, partition: int, place: Place, target: AlertmanagerTarget, sent: list[Incident]
    ) -> None:
        await self._post(place, target, sent)
        if partition not in self._firing:
            return  # its next owner knows better
        now = self._firing[partition].get(place, {})
        over = [replace(incident, state="resolved") for incident in sent if incident.id not in now]
        if over:  # while this was on its way: it may have overtaken their end
            await self._post(place, target, over)

    async def _post(
        self, place: Place, target: AlertmanagerTarget, incidents: list[Incident]
    ) -> None:
        try:
            at_s, public_url = int(self._clock_s()), self._public_url
            request = alerts_request(
                incidents, target, self._resolve, at_s=at_s, public_url=public_url
            )
        except (KeyError, ValueError) as err:  # a secret that is not there, or cannot be sent
            said = str(err.args[0])
        else:
            attempt = await self._sender.send(request)
            said = "" if attempt.outcome is Outcome.DELIVERED else attempt.detail
        if said and self._said.get(place) != said:
            logger.warning("alerts of %s at %s cannot be renewed: %s", *place, said)
        self._said[place] = said
