"""One run of a deployment: from the first message to the last effect, with or without faults, and what it left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from load.chaos.cluster import Cluster, Deployment, Plan
from load.chaos.drain import Drain
from load.chaos.faults import Fault, Injector, Struck
from load.chaos.feed import Feed
from load.chaos.oracle import WINDOWS_SQL
from load.chaos.progress import Memory, Recovery, Sample, Watch, longest_gap, recoveries
from load.chaos.receiver import Call, Receiver
from load.chaos.records import read
from load.proc import peak_rss_bytes
from monitor import store, wire
from monitor.ledger import Ledger
from monitor.settings import Settings
from streams import wiring
from streams.models import Model
from streams.supervisor import Ended

_TURN_S: Final = 0.1
_DRAIN_EVERY_S: Final = 0.5
_WARM_UP_S: Final = 12.0
BLAMED_S: Final = 20.0  # an end this long after a fault on the same process is the fault's

VerdictKey = tuple[str, str, str, str, int, int]


@dataclass(frozen=True, slots=True)
class Marks:
    """What was measured while a deployment ran. Seconds since its start."""

    took_s: float
    sent_s: float
    samples: list[Sample] = field(repr=False)
    struck: list[Struck]
    recoveries: list[Recovery]
    peaks: dict[str, int]
    starts: dict[str, int]
    own_ends: list[tuple[str, int]]

    @property
    def catch_up_s(self) -> float:
        """From the last event sent to the last effect, idleness included."""
        return self.took_s - self.sent_s

    def gap_s(self) -> float:
        """Longest time without progress while there was work, of profilers and detectors."""
        return max(longest_gap(self.samples, role) for role in ("profiler", "detector"))


@dataclass(frozen=True, slots=True)
class Effects:
    """What a deployment left in Kafka, in ClickHouse and at the receiver."""

    sent: dict[int, int]
    verdicts: dict[VerdictKey, set[bytes]] = field(repr=False)
    verdict_messages: int
    incidents: dict[str, list[wire.Incident]] = field(repr=False)
    outbox: dict[str, set[bytes]] = field(repr=False)
    deliveries: dict[str, list[wire.Delivery]] = field(repr=False)
    ledger: Ledger = field(repr=False)
    windows: Sequence[Sequence[object]] = field(repr=False)
    calls: list[Call] = field(repr=False)


class Failed(Exception):  # noqa: N818  # not an error of the harness: the run is what failed
    """A run that could not be finished: the reason, and the ends of the logs."""


def execute(
    cluster: Cluster,
    plan: Plan,
    path: Path,
    followed: Sequence[Model],
    *,
    seconds: float,
    faults: Sequence[Fault] = (),
    receiver: Receiver,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Marks, Effects]:
    """Send the file through a new deployment and wait until nothing is left.

    Without a pace everything is sent before the first process starts, so that no partition can look idle too early.

    Raises:
        Failed: it got stuck, or a part did not come back.
    """
    with Deployment(cluster, plan) as deployment:
        deployment.prepare(followed)
        feed = Feed(path, cluster.kafka.address, deployment.topics.predictions, seconds)
        try:
            marks = _Run(cluster, deployment, feed, faults, say).go(preload=not seconds)
            return marks, effects(deployment, feed, receiver)
        except Exception as err:
            raise Failed(f"{plan.name}: {err}\n{deployment.tails()}") from err


class _Run:
    """The main loop. Mutable: it holds what is under way."""

    def __init__(
        self,
        cluster: Cluster,
        deployment: Deployment,
        feed: Feed,
        faults: Sequence[Fault],
        say: Callable[[str], None],
    ) -> None:
        self._began = time.monotonic()
        self._cluster, self._deployment, self._feed, self._say = cluster, deployment, feed, say
        self._injector = Injector(faults, cluster, deployment, self._clock)
        self._memory = Memory()
        self._own_ends: list[tuple[str, int]] = []

    def _clock(self) -> float:
        return time.monotonic() - self._began

    def go(self, *, preload: bool) -> Marks:
        if preload:
            self._feed.start()
            self._feed.join()
        self._deployment.start()
        with Watch(self._deployment, self._clock) as watch:
            if not preload:
                self._warm_up(watch)
                self._feed.start()
            while self._feed.ended_s is None or not self._injector.done:
                self._turn()
                time.sleep(_TURN_S)
            self._feed.check()
            if self._feed.replaced:
                self._say(
                    f"the feed's own producer hung, and was replaced {self._feed.replaced} times"
                )
            sent_s = max(0.0, self._feed.ended_s - self._began)
            self._say(f"{self._deployment.plan.name}: all sent after {sent_s:.0f} s")
            drain = Drain(self._deployment, self._feed.sent, self._clock, self._say)
            while not drain.poll():
                self._turn()
                time.sleep(_DRAIN_EVERY_S)
            took_s = self._clock()
        self._say(f"{self._deployment.plan.name}: drained after {took_s:.0f} s")
        return Marks(
            took_s=took_s,
            sent_s=sent_s,
            samples=watch.samples,
            struck=self._injector.struck,
            recoveries=recoveries(watch.samples, self._injector.struck),
            peaks=dict(self._memory.peaks),
            starts=dict(self._deployment.starts),
            own_ends=self._own_ends,
        )

    def _warm_up(self, watch: Watch) -> None:
        """Wait until heartbeats go through, so that faults strike what is at work.

        Not for long: a partition that looks idle before its first event would let the others' windows close without it.
        """
        until_s = float("inf")
        while not watch.at_work("detector") and self._clock() < until_s:
            self._turn()
            time.sleep(_TURN_S)
            if watch.at_work("profiler"):
                until_s = min(until_s, self._clock() + _WARM_UP_S)

    def _turn(self) -> None:
        self._cluster.poll()
        self._note_ends(self._deployment.poll())
        self._injector.poll(1.0 if self._feed.ended_s else self._feed.place)
        for name, role in self._deployment.plan.processes().items():
            self._memory.note(role, peak_rss_bytes(self._deployment.pid(name)))

    def _note_ends(self, ends: Iterable[Ended]) -> None:
        now = self._clock()
        for end in ends:
            blamed = any(
                one.fault.target == end.name and one.at_s <= now <= one.over_s + BLAMED_S
                for one in self._injector.struck
            )
            if not blamed:
                self._own_ends.append((end.name, end.code))
                self._say(f"{end.name} ended by itself with code {end.code}")


def effects(deployment: Deployment, feed: Feed, receiver: Receiver) -> Effects:
    """Read everything that a drained deployment left."""
    settings, topics = deployment.settings, deployment.topics
    verdicts, messages = _verdicts(settings, topics.verdicts)
    incidents: dict[str, list[wire.Incident]] = {}
    for message in read(settings, topics.incidents):
        incident = wire.decode(message.value() or b"")
        assert isinstance(incident, wire.Incident)
        known = incidents.setdefault(incident.id, [])
        if incident not in known:
            known.append(incident)
    outbox: dict[str, set[bytes]] = {}
    for message in read(settings, topics.outbox):
        outbox.setdefault((message.key() or b"").decode(), set()).add(message.value() or b"")
    deliveries: dict[str, list[wire.Delivery]] = {}
    for message in read(settings, topics.deliveries):
        delivery = wire.decode(message.value() or b"")
        assert isinstance(delivery, wire.Delivery)
        deliveries.setdefault(delivery.id, []).append(delivery)
    with wiring.clickhouse_client(settings) as client:
        # The name of the database is ours.
        sql = str.format(WINDOWS_SQL, database=settings.clickhouse.database)
        windows = client.query(sql).result_rows
    return Effects(
        sent=dict(feed.sent),
        verdicts=verdicts,
        verdict_messages=messages,
        incidents=incidents,
        outbox=outbox,
        deliveries=deliveries,
        ledger=store.connect(settings.clickhouse).ledger(drained=True),
        windows=windows,
        calls=receiver.calls(deployment.plan.name),
    )


def _verdicts(settings: Settings, topic: str) -> tuple[dict[VerdictKey, set[bytes]], int]:
    found: dict[VerdictKey, set[bytes]] = {}
    messages = 0
    for message in read(settings, topic):
        value = message.value() or b""
        said = wire.decode(value)
        assert isinstance(said, wire.Verdicts)
        key = said.model, said.version, said.segment, said.source, said.size_ms, said.end_ms
        found.setdefault(key, set()).add(wire.unpack(value))
        messages += 1
    return found, messages
