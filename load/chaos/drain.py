"""When a run is over: everything that was sent has gone its whole way, hop by hop.

::

    1. profiler     has committed all of predictions
    2. idle         has said on every partition of profiles that every source partition is idle at its end,
                    after which no window can close any more
    3. detector     has committed what it was told until then, and then the verdicts that came of it
    4. sink         has committed the ends of all that it follows
    5. dispatcher   has recorded an outcome for each item of the outbox

Heartbeats go on for ever, so each hop is asked for what stood there when the one before it was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaException, Message, TopicPartition

from load.chaos.cluster import SOURCES, Deployment
from load.chaos.records import (
    ANSWER_S,
    Group,
    Place,
    admin,
    by_partition,
    ends,
    place_of,
    read,
)
from monitor import wire

_TAIL: Final = 200  # offsets: heartbeats of 2 s and their markers, for a good while
_SINK: Final = ("scored", "windows", "verdicts", "incidents", "deliveries")


class StuckError(Exception):
    """Nothing has moved for too long. The message says which hop has how much left."""


@dataclass(frozen=True, slots=True)
class Left:
    """What a hop has left to do."""

    hop: str
    count: int


class Drain:
    """Follows the hops. Mutable: it remembers which of them are done, and since when nothing moves."""

    def __init__(
        self,
        deployment: Deployment,
        sent: Mapping[int, int],
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._prefix, self._clock = deployment.topics.prefix, clock
        self._settings = deployment.settings
        self._admin = admin(deployment.settings)
        self._groups = {
            role: Group(deployment.settings, f"{self._prefix}{role}")
            for role in ("profiler", "detector", "sink")
        }
        self._stuck_s = deployment.plan.stuck_s
        self._sent = dict(sent)
        self._hops = self._all_hops()
        self._left = Left("start", -1)
        self._say = say
        self._since_s = clock()

    def poll(self) -> bool:
        """Look again; true when all is done. Takes up to a second.

        Raises:
            StuckError: there is no progress.
        """
        try:
            left = next(self._hops, None)
        except (KafkaException, TimeoutError):
            self._admin = admin(self._settings)  # the old one may be fenced for ever
            self._hops = self._all_hops()  # the broker was away: begin anew, which costs little
            left = self._left
        if left is None:
            return True
        if left.hop != self._left.hop:
            self._say(f"{self._prefix}: waiting for the {left.hop} with {left.count:,} left")
        if left != self._left:
            self._left, self._since_s = left, self._clock()
        if self._clock() - self._since_s > self._stuck_s:
            raise StuckError(
                f"{left.hop} has {left.count} left, and had so for {self._stuck_s:g} s"
            )
        return False

    def _all_hops(self) -> Iterator[Left]:
        predictions = {("predictions", p): n for p, n in self._sent.items()}
        yield from self._until_committed("profiler", predictions)
        while busy := self._not_idle():
            yield Left("profiler: idle", busy)
        yield from self._until_committed("detector", self._last("profiles"))
        yield from self._until_committed("detector", self._last("verdicts"))
        yield from self._until_delivered()
        # Last of all, since the sink follows deliveries too.
        yield from self._until_committed("sink", self._ends(_SINK))

    def _until_committed(self, role: str, goal: Mapping[Place, int]) -> Iterator[Left]:
        while True:
            places = [TopicPartition(self._prefix + topic, p) for topic, p in goal]
            at = {
                place_of(tp, self._prefix): tp.offset for tp in self._groups[role].committed(places)
            }
            left = sum(max(0, end - at.get(place, 0)) for place, end in goal.items())
            if not left:
                return
            yield Left(role, left)

    def _not_idle(self) -> int:
        """How many pairs of source and profiles partition are not known to be idle at their end."""
        said: dict[tuple[int, int], wire.Link] = {}
        for target, messages in by_partition(self._read("profiles", _TAIL)).items():
            for message in messages:
                profiles = wire.decode(message.value() or b"")
                if isinstance(profiles, wire.Profiles):
                    said |= {(target, link.partition): link for link in profiles.links}
        done = sum(link.idle and link.end == self._sent.get(p, 0) for (_, p), link in said.items())
        return SOURCES * self._settings.kafka.detector_partitions - done

    def _last(self, topic: str) -> dict[Place, int]:
        """Behind the last message of each partition; markers of transactions may follow it."""
        found = by_partition(self._read(topic, _TAIL))
        return {(topic, p): (messages[-1].offset() or 0) + 1 for p, messages in found.items()}

    def _until_delivered(self) -> Iterator[Left]:
        while True:
            asked = {message.key() for message in self._read("outbox")}
            done = {message.key() for message in self._read("deliveries")}
            if not asked - done:
                return
            yield Left("dispatcher", len(asked - done))

    def _read(self, topic: str, tail: int | None = None) -> Iterator[Message]:
        return read(self._settings, self._prefix + topic, tail=tail)

    def _ends(self, names: tuple[str, ...]) -> dict[Place, int]:
        known = self._admin.list_topics(timeout=ANSWER_S).topics
        places = [
            TopicPartition(self._prefix + name, p)
            for name in names
            for p in known[self._prefix + name].partitions
        ]
        return {
            place_of(place, self._prefix): end for place, end in ends(self._admin, places).items()
        }
