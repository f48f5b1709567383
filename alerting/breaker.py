"""Whether a destination is called now: a circuit breaker that all lanes share. Time is an argument.

A lane has a backoff of its own and learns nothing from the others: a hundred models told a Slack that was down a hundred times, and some
of them waited five minutes more after it had answered one. A circuit is what they know together::

              FAILURES in a row         its pause is over: one probe
    closed ────────────────────► open ───────────────────────────────► half open
       ▲                           ▲   the probe failed: a longer pause    │
       │                           └───────────────────────────────────────┤
       └────────────────────────── the probe was answered ─────────────────┘

An attempt passes two of them. That of its *server* (scheme, host and port, or the mail server) opens when nobody answers, or with 5xx. That
of its *account* opens at a 429, for as long as that asks for: an account is what a server's limits count (Slack: a webhook, PagerDuty: a routing
key, GitHub: a token), so its neighbours at the same server go on, and a server that says 429 is not down. Accounts are named by the
references of the spec, never by the secrets behind them.

An attempt that began before its circuit last opened or closed says nothing any more: the timeouts that are still to come when a server is
back do not open the circuit again.

What it does not do:

- What is under way stays under way: a hundred items that are asked for in one moment are a hundred attempts, as none has failed yet. A
  bound on them would delay every burst, for the sake of a server that is down.
- One broken address behind a gateway may open the circuit of all. So an account that failed lets those that did not go first: what works
  waits for one pause at most.
- A request that must not be repeated is no safer: it may be the probe, and then ends as ``unknown`` as without a breaker.
- A lane that is alone gains little: probes take the place of its own retries, every minute instead of every five.
- Renewals at Alertmanager and the heartbeat do not ask: they go one at a time, by the clock, so there is no crowd to hold back.
- Nothing outlives the process: a new one, and each of several, makes ``FAILURES`` attempts of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, TypeAlias, TypeVar, assert_never
from urllib.parse import urlsplit

FAILURES: Final = 5  # in a row, of all lanes: a restart behind a load balancer fails one or two
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = (
    60.0  # one probe a minute harms nobody, and is how late the news of a recovery may be
)
LONGEST_LIMIT_S: Final = 300.0  # of an account, unasked: PagerDuty wants "a few minutes"
LONGEST_ASKED_S: Final = 3_600.0
SHORTEST_ASKED_S: Final = 1.0  # Retry-After: 0
YIELD_S: Final = 2.0  # for which an account that failed lets others go first
MAX_KNOWN: Final = 1_024  # servers, and accounts: ~300 B each, and only those that failed
MAX_BLAMED: Final = 64
LATELY_S: Final = 300.0

Account: TypeAlias = tuple[str | None, ...]
Key = TypeVar("Key")


class Sign(Enum):
    """What an attempt shows of its destination."""

    ANSWER = "answer"  # it took this request, or refused it
    SILENCE = "silence"  # no answer, or 5xx
    LIMIT = "limit"  # 429
    NOTHING = "nothing"  # it was not called


class Change(Enum):
    """What the circuit of a server did."""

    OPENED = "opened"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Destination:
    """Whom a request calls."""

    server: str = field(repr=False)
    account: Account = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Terms:
    """Failures in a row that open a circuit, and its pauses: each is twice the one before."""

    failures: int
    first_s: float
    longest_s: float


SERVER: Final = Terms(FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S)
ACCOUNT: Final = Terms(1, FIRST_PAUSE_S, LONGEST_LIMIT_S)


@dataclass(frozen=True, slots=True)
class Circuit:
    """One circuit; each change of it is a new value.

    Attributes:
        terms: when it opens, and for how long.
        turn: counts its openings and closings.
        failures: in a row.
        since_s: when it opened last.
        pause_s: for how long nothing is sent from then on; 0 while it is closed.
        probing: the probe is under way.
        blamed: accounts that failed since the last answer.
    """

    terms: Terms
    turn: int = 0
    failures: int = 0
    since_s: float = 0.0
    pause_s: float = 0.0
    probing: bool = False
    blamed: frozenset[Account] = frozenset()

    @property
    def is_open(self) -> bool:
        """Open or half open."""
        return self.pause_s > 0

    def wait_s(self, now_s: float, account: Account | None = None) -> float | None:
        """``None`` if an attempt may begin; else how long none may. 0 means: until the probe under way has ended.

        A clock that was set back ends the pause: it would last as long as the clock was wrong.
        """
        if not self.is_open:
            return None
        pause_s = self.pause_s + (YIELD_S if account in self.blamed else 0.0)
        passed_s = now_s - self.since_s
        if 0 <= passed_s < pause_s:
            return pause_s - passed_s
        return 0.0 if self.probing else None

    def begun(self) -> Circuit:
        """An attempt begins: of an open circuit it is the probe."""
        return replace(self, probing=True) if self.is_open else self

    def answered(self, turn: int) -> Circuit:
        """An attempt that began in ``turn`` was answered."""
        if turn != self.turn:
            return self
        return Circuit(self.terms, self.turn + self.is_open)

    def failed(
        self, turn: int, account: Account, now_s: float, asked_s: float | None = None
    ) -> Circuit:
        """An attempt that began in ``turn`` failed; ``asked_s`` is the pause that the answer asks for."""
        if turn != self.turn:
            return self
        blamed = self.blamed if len(self.blamed) >= MAX_BLAMED else self.blamed | {account}
        failures = self.failures + 1
        if not self.is_open and failures < self.terms.failures:
            return replace(self, failures=failures, blamed=blamed)
        pause_s = min(max(2 * self.pause_s, self.terms.first_s), self.terms.longest_s)
        if asked_s is not None:
            pause_s = min(max(asked_s, SHORTEST_ASKED_S), LONGEST_ASKED_S)
        return Circuit(self.terms, turn + 1, failures, now_s, pause_s, blamed=blamed)

    def dropped(self, turn: int) -> Circuit:
        """An attempt that began in ``turn`` ended and says nothing: another may probe."""
        return replace(self, probing=False) if turn == self.turn else self


@dataclass(frozen=True, slots=True)
class Permit:
    """An attempt may begin. What it shows is told with this, once."""

    whom: Destination
    server_turn: int
    account_turn: int


class Breaker:
    """The circuits of all destinations that failed. Mutable: attempts change them. ``held`` is for who waits, to count.

    At most ``MAX_KNOWN`` of a kind are known; the one that was not asked for longest is forgotten, as if it were closed.
    """

    def __init__(self) -> None:
        self._servers: OrderedDict[str, Circuit] = OrderedDict()
        self._accounts: OrderedDict[Destination, Circuit] = OrderedDict()
        self.held = 0

    def ask(self, whom: Destination, now_s: float) -> Permit | float:
        """A permit to begin an attempt now; else for how long to wait before asking again, 0 while a probe is under way."""
        server, account = self._of(whom)
        waits = (server.wait_s(now_s, whom.account), account.wait_s(now_s))
        asked = [wait_s for wait_s in waits if wait_s is not None]
        self._put(whom, server if asked else server.begun(), account if asked else account.begun())
        return max(asked) if asked else Permit(whom, server.turn, account.turn)

    def tell(
        self, permit: Permit, sign: Sign, now_s: float, asked_s: float | None = None
    ) -> Change | None:
        """What an attempt showed, with the pause that a 429 asks for; returns what the server's circuit did."""
        whom = permit.whom
        (was, limit), of, mine = self._of(whom), permit.server_turn, permit.account_turn
        match sign:
            case Sign.ANSWER:
                server, account = was.answered(of), limit.answered(mine)
            case Sign.SILENCE:
                server, account = was.failed(of, whom.account, now_s), limit.dropped(mine)
            case Sign.LIMIT:
                server, account = was.answered(of), limit.failed(mine, whom.account, now_s, asked_s)
            case Sign.NOTHING:
                server, account = was.dropped(of), limit.dropped(mine)
            case _:
                assert_never(sign)
        self._put(whom, server, account)
        if was.is_open == server.is_open:
            return None
        return Change.OPENED if server.is_open else Change.CLOSED

    def holds(self, whom: Destination) -> bool:
        """Whether its circuits say when it is called next."""
        return any(circuit.is_open for circuit in self._of(whom))

    def open(self, now_s: float) -> int:
        """Servers whose circuit is open, and that were tried lately: nobody may want the others any more."""
        return sum(c.is_open and now_s - c.since_s < LATELY_S for c in self._servers.values())

    def _of(self, whom: Destination) -> tuple[Circuit, Circuit]:
        server = self._servers.get(whom.server, Circuit(SERVER))
        return server, self._accounts.get(whom, Circuit(ACCOUNT))

    def _put(self, whom: Destination, server: Circuit, account: Circuit) -> None:
        _keep(self._servers, whom.server, server)
        _keep(self._accounts, whom, account)


def _keep(table: OrderedDict[Key, Circuit], key: Key, circuit: Circuit) -> None:
    """Store a circuit as the one used last. One that never opened and has no failures is like one that is not known."""
    if circuit == Circuit(circuit.terms):
        table.pop(key, None)
        return
    table[key] = circuit
    table.move_to_end(key)
    if len(table) > MAX_KNOWN:
        table.popitem(last=False)


def server_of(url: str) -> str:
    """Scheme, host and port of an address; nothing for one that nobody can call."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}"
