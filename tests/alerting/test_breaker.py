"""The breaker: a table of its transitions, timelines of one receiver, and random histories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alerting.breaker import (
    ACCOUNT,
    FAILURES,
    FIRST_PAUSE_S,
    LATELY_S,
    LONGEST_ASKED_S,
    LONGEST_LIMIT_S,
    LONGEST_PAUSE_S,
    MAX_BLAMED,
    MAX_KNOWN,
    SERVER,
    SHORTEST_ASKED_S,
    YIELD_S,
    Account,
    Breaker,
    Change,
    Circuit,
    Destination,
    Permit,
    Sign,
    server_of,
)

A: Final[Account] = ("env:A",)
B: Final[Account] = ("env:B",)
CLOSED: Final = Circuit(SERVER, turn=4, failures=FAILURES - 1, blamed=frozenset({A}))
OPEN: Final = Circuit(SERVER, turn=5, failures=FAILURES, since_s=100, pause_s=20)
PROBED: Final = Circuit(SERVER, turn=5, failures=FAILURES, since_s=100, pause_s=20, probing=True)
AT: Final = 130.0


def circuit(turn: int, failures: int, pause_s: float, *blamed: Account) -> Circuit:
    return Circuit(SERVER, turn, failures, AT, pause_s, blamed=frozenset(blamed))


@pytest.mark.parametrize(
    ("why", "after", "expected"),
    [
        ("one failure more opens it", CLOSED.failed(4, B, AT), circuit(5, FAILURES, FIRST_PAUSE_S, A, B)),
        ("one less is counted", Circuit(SERVER).failed(0, B, AT), Circuit(SERVER, failures=1, blamed=frozenset({B}))),
        ("an answer ends the row", CLOSED.answered(4), Circuit(SERVER, turn=4)),
        ("nothing is learnt", CLOSED.dropped(4), CLOSED),
        ("a closed one has no probe", CLOSED.begun(), CLOSED),
        ("the probe begins", OPEN.begun(), PROBED),
        ("the probe is answered", PROBED.answered(5), Circuit(SERVER, turn=6)),
        ("the probe fails", PROBED.failed(5, B, AT), circuit(6, FAILURES + 1, 40, B)),
        ("the probe was not sent", PROBED.dropped(5), OPEN),
        ("an answer to what began before", OPEN.answered(4), OPEN),
        ("a failure of what began before", OPEN.failed(4, B, AT), OPEN),
        ("that, while the probe is under way", PROBED.failed(4, B, AT), PROBED),
        ("that, once it is closed again", CLOSED.failed(3, B, AT), CLOSED),
        ("the end of what began before", PROBED.dropped(4), PROBED),
    ],
)  # fmt: skip
def test_each_transition_of_a_circuit(why: str, after: Circuit, expected: Circuit) -> None:
    assert after == expected, why


@pytest.mark.parametrize(
    ("why", "of", "account", "now_s", "expected"),
    [
        ("closed", CLOSED, A, 0.0, None),
        ("the pause begins", OPEN, A, 100.0, 20.0),
        ("the pause lasts", OPEN, A, 119.0, 1.0),
        ("the pause is over", OPEN, A, 120.0, None),
        ("the probe is under way", PROBED, A, 120.0, 0.0),
        ("the clock was set back", OPEN, A, 99.0, None),
        ("the clock was set back, and a probe is under way", PROBED, A, 99.0, 0.0),
        ("who failed lets others go first", circuit(5, 5, 20, A), A, AT + 20, YIELD_S),
        ("the others", circuit(5, 5, 20, A), B, AT + 20, None),
        ("and goes then", circuit(5, 5, 20, A), A, AT + 20 + YIELD_S, None),
    ],
)
def test_when_an_attempt_may_begin(
    why: str, of: Circuit, account: Account, now_s: float, expected: float | None
) -> None:
    assert of.wait_s(now_s, account) == expected, why


@pytest.mark.parametrize(
    ("asked_s", "pauses"),
    [
        (None, [5, 10, 20, 40, 80, 160, LONGEST_LIMIT_S, LONGEST_LIMIT_S]),
        (7.0, [7, 7]),
        (0.0, [SHORTEST_ASKED_S]),
        (1e9, [LONGEST_ASKED_S]),
    ],
)
def test_a_limit_pauses_an_account_for_what_it_asks_for_and_unasked_for_longer_each_time(
    asked_s: float | None, pauses: list[float]
) -> None:
    of, found = Circuit(ACCOUNT), []
    for _ in pauses:
        of = of.begun().failed(of.turn, A, AT, asked_s)
        found.append(of.pause_s)
    assert found == pauses


def test_the_pauses_of_a_server_double_up_to_a_bound_and_begin_anew_after_an_answer() -> None:
    of, found = Circuit(SERVER), []
    for _ in range(FAILURES + 6):
        of = of.begun().failed(of.turn, A, AT)
        found.append(of.pause_s)
    assert (
        found == [0.0] * (FAILURES - 1) + [5, 10, 20, 40, LONGEST_PAUSE_S] + [LONGEST_PAUSE_S] * 2
    )
    of = of.begun().answered(of.turn)
    assert of == Circuit(SERVER, of.turn)


def play(script: str, *lanes: Destination) -> str:
    """Each second the lanes try in turn until one may; ``script`` is what the receiver does: what was seen of it."""
    breaker, seen = Breaker(), ""
    signs = {"A": Sign.ANSWER, "S": Sign.SILENCE, "L": Sign.LIMIT, "0": Sign.NOTHING}
    for at_s, letter in enumerate(script):
        for lane in lanes:
            permit = breaker.ask(lane, float(at_s))
            if isinstance(permit, Permit):
                breaker.tell(permit, signs[letter], float(at_s), 3.0 if letter == "L" else None)
                seen += letter
                break
        else:
            seen += "-"
    return seen


ONE: Final = Destination("https://hooks.example:443", A)
TWO: Final = Destination("https://hooks.example:443", B)


@pytest.mark.parametrize(
    ("why", "script", "seen", "lanes"),
    [
        ("5 s, then 10 s and the 2 s of who failed", "SSSSSSSSSSSSSSSSSSSSSAAAA", "SSSSS----S-----------AAAA", (ONE, TWO)),
        ("who is alone waits 2 s more", "SSSSSSSSSSSAAA", "SSSSS------AAA", (ONE,)),
        ("an answer between", "SSSSASSSSASSSS", "SSSSASSSSASSSS", (ONE,)),
        ("nothing shown", "SS0SS0S000", "SS0SS0S---", (ONE,)),
        ("a probe that shows nothing", "SSSSS0000000A", "SSSSS------0A", (ONE,)),
        ("a limit of 3 s", "ALLLLLA", "AL--L--", (ONE,)),
        ("a limit, then nobody answers", "LLLSSA", "L--SSA", (ONE,)),
        ("a limit is of one account", "LLLAAA", "LL-AAA", (ONE, TWO)),
        ("a limit is an answer", "SSSSLSSSS", "SSSSLSSSS", (ONE, TWO)),
        ("a limit closes what was open", "SSSSSSSSSLAAA", "SSSSS----LAAA", (TWO, ONE)),
    ],
)  # fmt: skip
def test_timelines(why: str, script: str, seen: str, lanes: tuple[Destination, ...]) -> None:
    assert play(script, *lanes) == seen, why


def test_an_opening_and_a_closing_are_told_once() -> None:
    breaker = Breaker()
    changes = []
    for at_s in range(100):
        permit = breaker.ask(ONE, float(at_s))
        if isinstance(permit, Permit):
            sign = Sign.SILENCE if at_s < 50 else Sign.ANSWER
            changes.append(breaker.tell(permit, sign, float(at_s)))
    assert [c for c in changes if c is not None] == [Change.OPENED, Change.CLOSED]


def test_timeouts_that_come_when_a_server_is_back_do_not_open_its_circuit_again() -> None:
    breaker = Breaker()
    under_way = [breaker.ask(ONE, 0.0) for _ in range(3 * FAILURES)]
    permits = [permit for permit in under_way if isinstance(permit, Permit)]
    assert len(permits) == 3 * FAILURES
    for permit in permits[:FAILURES]:
        breaker.tell(permit, Sign.SILENCE, 10.0)
    assert breaker.open(10.0) == 1
    probe = breaker.ask(TWO, 15.0)
    assert isinstance(probe, Permit)
    breaker.tell(probe, Sign.ANSWER, 15.0)
    for permit in permits[FAILURES:]:
        breaker.tell(permit, Sign.SILENCE, 16.0)
    assert isinstance(breaker.ask(ONE, 16.0), Permit)
    assert breaker.open(16.0) == 0


def test_what_works_behind_a_broken_neighbour_waits_for_one_pause_at_most() -> None:
    breaker, waited_s = Breaker(), 0.0
    for at_s in range(300):
        for lane in [Destination(ONE.server, (f"env:BAD{i}",)) for i in range(20)]:
            permit = breaker.ask(lane, float(at_s))
            if isinstance(permit, Permit):
                breaker.tell(permit, Sign.SILENCE, float(at_s))
    while not isinstance(breaker.ask(ONE, 300.0 + waited_s), Permit):
        waited_s += 1.0
        bad = breaker.ask(Destination(ONE.server, ("env:BAD7",)), 300.0 + waited_s - 0.5)
        assert not isinstance(bad, Permit), "it was asked first, and lets the other go first"
    assert waited_s <= LONGEST_PAUSE_S


def test_what_is_known_is_bounded_and_what_is_well_is_not_known() -> None:
    breaker = Breaker()
    for number in range(2 * MAX_KNOWN):
        whom = Destination(f"https://h{number}:443", A)
        for sign in (Sign.ANSWER, Sign.LIMIT):
            permit = breaker.ask(whom, 0.0)
            assert isinstance(permit, Permit)
            breaker.tell(permit, sign, 0.0, 60.0)
    assert (len(breaker._servers), len(breaker._accounts)) == (0, MAX_KNOWN)
    assert isinstance(breaker.ask(Destination("https://h0:443", A), 1.0), Permit), "forgotten"
    last = Destination(f"https://h{2 * MAX_KNOWN - 1}:443", A)
    assert breaker.ask(last, 1.0) == 59.0
    of = Circuit(SERVER)
    for number in range(2 * MAX_BLAMED):
        of = of.failed(of.turn, (str(number),), 0.0)
    assert len(of.blamed) == MAX_BLAMED


def test_a_server_that_nobody_wants_any_more_is_not_counted_for_ever() -> None:
    breaker = Breaker()
    for _ in range(FAILURES):
        permit = breaker.ask(ONE, 0.0)
        assert isinstance(permit, Permit)
        breaker.tell(permit, Sign.SILENCE, 0.0)
    assert (breaker.open(0.0), breaker.holds(ONE), breaker.holds(TWO)) == (1, True, True)
    assert (breaker.open(LATELY_S), breaker.holds(ONE)) == (0, True)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("https://Hooks.Slack.com/services/T/B/planted", "https://hooks.slack.com:443"),
        ("https://hooks.slack.com:443/other?planted#planted", "https://hooks.slack.com:443"),
        ("http://10.0.0.1/x", "http://10.0.0.1:80"),
        ("https://[2001:db8::1]:8443/x", "https://2001:db8::1:8443"),
        ("https://h:port/planted", ""),
        ("http://[planted", ""),
    ],
)
def test_a_server_is_named_without_what_may_be_secret(url: str, server: str) -> None:
    assert server_of(url) == server
    assert "hooks" not in repr(Destination(server_of(url), ("planted",)))


@dataclass
class UnderWay:
    """An attempt, and whether its server's or account's circuit had it as a probe."""

    permit: Permit
    server_probe: bool
    account_probe: bool


class Histories(RuleBasedStateMachine):
    """Attempts that begin and end in any order at two servers. The model knows from when on each of them is closed to whom."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now_s = 1_000.0
        self.under_way: list[UnderWay] = []
        self.paused: dict[object, float] = {}  # what is open -> when its pause ends

    def wanted(self, server: str, account: str) -> Destination:
        return Destination(server, (account,))

    @rule(server=st.sampled_from("xy"), account=st.sampled_from("abc"), n=st.integers(1, 7))
    def attempts_begin(self, server: str, account: str, n: int) -> None:
        whom = self.wanted(server, account)
        for _ in range(n):
            found = self.breaker.ask(whom, self.now_s)
            if not isinstance(found, Permit):
                assert 0 <= found <= max(LONGEST_PAUSE_S + YIELD_S, LONGEST_ASKED_S)
                if whom not in self.paused:
                    assert found <= LONGEST_PAUSE_S + YIELD_S
                assert self.breaker.holds(whom), "only an open circuit holds anybody"
                return
            for key in (server, whom):
                assert self.paused.get(key, 0.0) <= self.now_s, "no attempt while it is open"
            attempt = UnderWay(found, server in self.paused, whom in self.paused)
            self.under_way.append(attempt)

    @precondition(lambda self: self.under_way)
    @rule(
        which=st.integers(0, 100),
        sign=st.sampled_from([*Sign, Sign.SILENCE, Sign.SILENCE]),
        asked_s=st.sampled_from([None, 0.0, 1.0, 30.0, 1e6]),
    )
    def an_attempt_ends(self, which: int, sign: Sign, asked_s: float | None) -> None:
        attempt = self.under_way.pop(which % len(self.under_way))
        whom = attempt.permit.whom
        was_open = (whom.server in self.paused, whom in self.paused)
        change = self.breaker.tell(attempt.permit, sign, self.now_s, asked_s)
        servers, accounts = self.breaker._servers, self.breaker._accounts
        self.note(whom.server, servers.get(whom.server), probe=attempt.server_probe)
        self.note(whom, accounts.get(whom), probe=attempt.account_probe)
        is_open = whom.server in self.paused
        assert change == (
            None
            if is_open == was_open[0]
            else Change.OPENED if is_open else Change.CLOSED
        )  # fmt: skip
        if attempt.server_probe and sign in (Sign.ANSWER, Sign.LIMIT):
            assert not is_open, "an answered probe closes it"
        if attempt.server_probe and sign is Sign.ANSWER and whom not in self.paused:
            flows = self.breaker.ask(whom, self.now_s)
            assert isinstance(flows, Permit), "and everything flows"
            self.under_way.append(UnderWay(flows, server_probe=False, account_probe=False))

    def note(self, key: object, circuit: Circuit | None, *, probe: bool) -> None:
        """Take over when its pause ends; it never changes but for the first failures, or by its probe."""
        before = self.paused.pop(key, None)
        if circuit is not None and circuit.is_open:
            self.paused[key] = circuit.since_s + circuit.pause_s
        if before is not None and not probe:
            assert self.paused.get(key) == before, "who began before it opened has no say"

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 20.0, 61.0, 4_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def all_is_well_again(self) -> None:
        """Whatever was before: once everybody answers, nobody is held."""
        while self.under_way:
            self.an_attempt_ends(0, Sign.NOTHING, None)
        self.now_s += LONGEST_ASKED_S + YIELD_S
        for server in "xy":
            for account in "abc":
                found = self.breaker.ask(self.wanted(server, account), self.now_s)
                assert isinstance(found, Permit)
                self.breaker.tell(found, Sign.ANSWER, self.now_s)
                self.paused.pop(server, None)
                self.paused.pop(self.wanted(server, account), None)
        assert self.breaker.open(self.now_s) == 0

    @invariant()
    def never_two_probes_at_once(self) -> None:
        for key in self.paused:
            turn = self.turn(key)
            probes = [a for a in self.under_way if self.turn_of(a, key) == turn]
            assert len(probes) <= 1

    def turn(self, key: object) -> int:
        if isinstance(key, Destination):
            return self.breaker._accounts[key].turn
        return self.breaker._servers[str(key)].turn

    def turn_of(self, attempt: UnderWay, key: object) -> int | None:
        if key == attempt.permit.whom:
            return attempt.permit.account_turn
        return attempt.permit.server_turn if key == attempt.permit.whom.server else None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=min(200, settings().max_examples))
