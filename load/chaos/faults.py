"""Which faults strike when, as a function of the seed, and how they are carried out.

================ ===================================================================================
``kill``         SIGKILL, as the kernel kills what has too much memory
``term``         SIGTERM, as a deployment does
``freeze``       SIGSTOP for longer than the session lasts, then SIGCONT: a zombie that believes it still owns its work
``broker_stop``  the broker is stopped in order and started again
``broker_kill``  the broker is killed and started again
``database``     ClickHouse is killed and stays away
================ ===================================================================================

Faults overlap as they like, but for two: there is one broker and one database. What is gone cannot go, and the broker is
let live for a while before it goes again.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np

from load.chaos.cluster import Cluster, Deployment, is_alive, send

Kind: TypeAlias = Literal["kill", "term", "freeze", "broker_stop", "broker_kill", "database"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
ON_PROCESSES: Final[tuple[Kind, ...]] = ("kill", "term", "freeze")
ROLES: Final = ("profiler", "detector", "sink", "dispatcher")
SERVER: Final[dict[Kind, str]] = {
    "broker_stop": "broker",
    "broker_kill": "broker",
    "database": "clickhouse",
}
BROKER_RESTS_S: Final = 15.0  # between two of its faults: nothing can be seen while it is away
_WEIGHTS: Final = {
    "kill": 0.4,
    "term": 0.2,
    "freeze": 0.25,
    "broker_stop": 0.06,
    "broker_kill": 0.06,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """``at`` is its place in the feed, from 0 to 1; ``last_s`` how long the target stays away, where that is chosen."""

    at: float
    kind: Kind
    target: str
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was carried out. ``over_s`` is when the target was given back; both on the run's clock."""

    fault: Fault
    at_s: float
    over_s: float


def plan(
    rng: np.random.Generator,
    count: int,
    processes: dict[str, str],
    *,
    session_s: float,
    database_s: float,
) -> list[Fault]:
    """``count`` faults in the order of their time; of 15 or more, each kind strikes each kind of process.

    Args:
        rng: the run's chance.
        count: how many.
        processes: name and role of each process.
        session_s: of the processes; a freeze is longer.
        database_s: how long ClickHouse stays away.
    """
    chosen = list(_combinations(rng, count))
    # One in each slot: chance should not put all of them into the same second.
    places = 0.04 + 0.92 * (np.arange(count) + rng.random(count)) / count
    faults = []
    for at, (kind, role) in zip(places, chosen, strict=True):
        names = [name for name, its in processes.items() if its == role]
        target = str(rng.choice(names)) if names else role
        last_s = {"freeze": session_s + float(rng.uniform(1, 6)), "database": database_s}.get(
            kind, 0.0
        )
        faults.append(Fault(float(at), kind, target, last_s))
    return faults


def _combinations(rng: np.random.Generator, count: int) -> Iterator[tuple[Kind, str]]:
    """Kinds and roles in the order in which they strike."""
    roles = [str(role) for role in rng.permutation(ROLES)]
    first: list[tuple[Kind, str]] = [*zip(ON_PROCESSES, roles, strict=False), *SERVER.items()]
    rest = [(k, r) for k in ON_PROCESSES for r in ROLES if (k, r) not in first]
    wanted = (first + [rest[int(i)] for i in rng.permutation(len(rest))])[:count]
    while len(wanted) < count:
        # The database is away for a quarter of the run once; more would be a test of waiting.
        kind: Kind = rng.choice(
            np.array(list(_WEIGHTS)), p=np.array(list(_WEIGHTS.values())) / sum(_WEIGHTS.values())
        )
        wanted.append((kind, SERVER.get(kind) or str(rng.choice(ROLES))))
    yield from (wanted[int(i)] for i in rng.permutation(count))


class Injector:
    """Carries out the plan. Call ``poll`` often, from the main thread. Mutable: it remembers what is under way."""

    def __init__(
        self,
        faults: Sequence[Fault],
        cluster: Cluster,
        deployment: Deployment,
        clock: Callable[[], float],
    ) -> None:
        self._waiting = list(faults)
        self._cluster, self._deployment, self._clock = cluster, deployment, clock
        self._broker: threading.Thread | None = None
        self._broker_failed: BaseException | None = None
        self._broker_rests_s = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._away: set[str] = set()
        self.struck: list[Struck] = []

    @property
    def done(self) -> bool:
        """Whether every fault has struck and everything was given back."""
        return not self._waiting and not self._due and self._broker is None

    def poll(self, place: float) -> None:
        """Strike what is due at this place of the feed, and give back what was away for long enough.

        Raises:
            RuntimeError: the broker did not come back.
        """
        now = self._clock()
        for at, give_back in [due for due in self._due if due[0] <= now]:
            self._due.remove((at, give_back))
            give_back()
        if self._broker is not None and not self._broker.is_alive():
            self._broker = None
            self._broker_rests_s = now + BROKER_RESTS_S
            if self._broker_failed is not None:
                raise RuntimeError(f"the broker did not come back: {self._broker_failed}")
        for fault in list(self._waiting):
            # Asked for each by itself: after one strike another of the same target has to wait.
            if fault.at <= place and self._can_strike(fault):
                self._waiting.remove(fault)
                self._strike(fault)

    def _can_strike(self, fault: Fault) -> bool:
        """What is away already is struck when it is back."""
        if fault.target == "broker":
            return self._broker is None and self._clock() >= self._broker_rests_s
        if fault.target == "clickhouse":
            return fault.target not in self._away
        return fault.target not in self._away and is_alive(self._deployment.pid(fault.target))

    def _strike(self, fault: Fault) -> None:
        now = self._clock()
        match fault.kind:
            case "kill":
                send(self._deployment.pid(fault.target), signal.SIGKILL)
            case "term":
                send(self._deployment.pid(fault.target), signal.SIGTERM)
            case "freeze":
                pid = self._deployment.pid(fault.target)
                send(pid, signal.SIGSTOP)
                self._until(fault, lambda: send(pid, signal.SIGCONT))
            case "database":
                self._cluster.take_database()
                self._until(fault, self._cluster.give_database)
            case "broker_stop" | "broker_kill":
                self._broker = threading.Thread(
                    target=self._restart, args=(fault, now), name="broker"
                )
                self._broker.start()
                return
        self.struck.append(Struck(fault, now, now + fault.last_s))

    def _until(self, fault: Fault, give_back: Callable[[], None]) -> None:
        self._away.add(fault.target)

        def back() -> None:
            self._away.discard(fault.target)
            give_back()

        self._due.append((self._clock() + fault.last_s, back))

    def _restart(self, fault: Fault, at_s: float) -> None:
        try:
            if fault.kind == "broker_kill":
                self._cluster.kafka.kill()
            else:
                self._cluster.kafka.stop()
            self._start_broker()
        except (RuntimeError, OSError, subprocess.SubprocessError) as err:
            self._broker_failed = err
        self.struck.append(Struck(fault, at_s, self._clock()))

    def _start_broker(self) -> None:
        """Start it, a second time if need be: after a kill it reads its whole log, which may take longer than it is given."""
        try:
            self._cluster.kafka.start()
        except RuntimeError:
            self._cluster.kafka.start()
