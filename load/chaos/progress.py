"""Progress as the broker sees it: committed offsets and ends, sampled all through a run, and what follows from them.

Everything here is measured from outside. That a process says it is well proves nothing; that its group's offsets move
does. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from confluent_kafka import KafkaException, TopicPartition

from load.chaos.cluster import Deployment
from load.chaos.faults import Struck
from load.chaos.records import Group, Place, admin, ends, place_of

EVERY_S: Final = 0.25
_MARKERS: Final = 2  # of two profilers
_WATCHED: Final = {
    "profiler": ("predictions",),
    "detector": ("profiles", "verdicts"),
    "sink": ("windows", "scored"),
    "dispatcher": ("outbox",),
}
# Of each role, the topic that always moves while there is traffic: each batch writes to all of its partitions.
_STEADY: Final = {
    "profiler": "predictions",
    "detector": "profiles",
    "sink": "windows",
    "dispatcher": "outbox",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Where everything stood at ``at_s``: the committed offset of each role's group by place, and the ends."""

    at_s: float
    committed: Mapping[str, Mapping[Place, int]]
    ends: Mapping[Place, int]

    def total(self, role: str) -> int:
        """Sum of a group's committed offsets."""
        return sum(self.committed[role].values())

    def lag(self, role: str) -> int:
        """Offsets that a group has not committed, without the markers of transactions behind a last message."""
        committed = self.committed[role]
        return sum(
            max(0, end - committed.get(place, 0) - _MARKERS)
            for place, end in self.ends.items()
            if place[0] in _WATCHED[role]
        )


class Watch:
    """Samples in a thread of its own, between ``with`` and its end. Mutable: it collects. A broker that is away leaves a gap."""

    def __init__(self, deployment: Deployment, clock: Callable[[], float]) -> None:
        self._prefix, self._clock = deployment.topics.prefix, clock
        self._settings = deployment.settings
        self._admin = admin(self._settings)
        self._groups = {
            role: Group(deployment.settings, f"{self._prefix}{role}") for role in _WATCHED
        }
        kafka = deployment.settings.kafka
        widths = {
            "predictions": kafka.predictions_partitions,
            "scored": kafka.predictions_partitions,
        }
        self._places = [
            (topic, partition)
            for topic in dict.fromkeys(t for topics in _WATCHED.values() for t in topics)
            for partition in range(widths.get(topic, kafka.detector_partitions))
        ]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def at_work(self, role: str) -> bool:
        """Whether a group has committed something on each partition of its steady topic."""
        wanted = {place for place in self._places if place[0] == _STEADY[role]}
        return bool(self.samples) and wanted <= self.samples[-1].committed[role].keys()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.samples.append(self._sample())
            except (KafkaException, TimeoutError):
                # The broker is away, as planned. An admin client that knew it before keeps asking under the old leader
                # epoch, and is refused for ever.
                self._admin = admin(self._settings)

    def _sample(self) -> Sample:
        places = [TopicPartition(self._prefix + topic, p) for topic, p in self._places]
        found = {
            place_of(place, self._prefix): end for place, end in ends(self._admin, places).items()
        }
        groups = {
            role: {
                place_of(place, self._prefix): place.offset
                for place in self._groups[role].committed(
                    [p for p in places if place_of(p, self._prefix)[0] in topics]
                )
            }
            for role, topics in _WATCHED.items()
        }
        return Sample(self._clock(), groups, found)


@dataclass(frozen=True, slots=True)
class Recovery:
    """From a fault to the next commit on every partition of the group, and for detectors to the next verdict.

    ``None``: there was nothing to do, or nothing came any more.
    """

    kind: str
    target: str
    committed_s: float | None
    verdict_s: float | None = None


def recoveries(samples: Sequence[Sample], struck: Iterable[Struck]) -> list[Recovery]:
    """How long each fault was felt.

    Servers are everybody's: of a broker, the slowest group counts; of the database, the sink. Both from the moment
    that they were given back.
    """
    found = []
    for one in struck:
        kind, target = one.fault.kind, one.fault.target
        role = target.rpartition("-")[0] or target
        roles = {"broker": ["profiler", "detector"], "clickhouse": ["sink"]}.get(role, [role])
        since = one.over_s if role in ("broker", "clickhouse") else one.at_s
        moved = [_moved_after(samples, since, _group(name)) for name in roles]
        known = [at for at in moved if at is not None]
        verdict = _moved_after(samples, since, _verdicts) if role == "detector" else None
        found.append(
            Recovery(
                kind,
                role,
                max(known) - since if known else None,
                None if verdict is None else verdict - since,
            )
        )
    return found


def _group(role: str) -> Callable[[Sample], dict[Place, int]]:
    steady = _STEADY[role]
    return lambda sample: {p: at for p, at in sample.committed[role].items() if p[0] == steady}


def _verdicts(sample: Sample) -> dict[Place, int]:
    return {place: end for place, end in sample.ends.items() if place[0] == "verdicts" and end}


def _moved_after(
    samples: Sequence[Sample], since_s: float, positions: Callable[[Sample], dict[Place, int]]
) -> float | None:
    """When every partition had moved on from where it was at ``since_s``; those that never move again do not count."""
    before: dict[Place, int] = {}
    first_moves: dict[Place, float] = {}
    for sample in samples:
        now = positions(sample)
        if sample.at_s <= since_s:
            before = now
            continue
        for place, at in now.items():
            if at > before.get(place, 0):
                first_moves.setdefault(place, sample.at_s)
    return max(first_moves.values(), default=None)


def longest_gap(samples: Sequence[Sample], role: str) -> float:
    """Longest time for which a group had lag and its offsets did not move. Time without an answer counts."""
    longest, since, last = 0.0, None, -1
    for sample in samples:
        total = sample.total(role)
        if total != last or not sample.lag(role):
            since, last = sample.at_s, total
        elif since is not None:
            longest = max(longest, sample.at_s - since)
    return longest


@dataclass(slots=True)
class Memory:
    """Peak resident memory by role, over all lives of its processes. Mutable: it keeps the maximum."""

    peaks: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def note(self, role: str, peak_bytes: int) -> None:
        """Take a reading."""
        self.peaks[role] = max(self.peaks[role], peak_bytes)
