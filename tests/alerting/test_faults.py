"""Delivery through a proxy that fails: nothing is lost, nothing is doubled, and no secret is in anything that is written."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from msgspec.structs import replace
from prometheus_client import generate_latest
from pydantic import SecretStr

from alerting.courier import Courier
from alerting.delivery import Attempt, Outcome, Sender
from alerting.mail import Mailer
from alerting.pipelines import action_request
from alerting.requests import Mail, Request
from monitor import metrics, wire
from monitor.settings import EmailSettings
from monitor.spec import ModelSpec, parse_spec
from monitor.tls import trust
from monitor.wire import Delivery, OutboxItem
from streams.demo.receiver import judge
from streams.lanes import Lanes, Task
from tests.alerting import strict
from tests.alerting.builders import MODEL
from tests.alerting.faulty import (
    HANDSHAKES,
    LOOKUPS,
    MAIL_FAULTS,
    METADATA,
    RETRY_AFTER_S,
    SLOW,
    TAKEN,
    TOLD,
    Fault,
    MailProxy,
    Names,
    Proxy,
    Receiver,
    Script,
    Try,
    answer,
    listening,
)
from tests.alerting.test_mail import Inbox
from tests.alerting.test_payloads import item
from tests.alerting.tls import authority

ALLOWED: Final = ("127.0.0.0/8",)
HOST: Final = "hooks.example"
SEED: Final = 8
LANES: Final = 9
EACH: Final = 7  # items of each lane: 63 in all
TIMEOUT_S: Final = 4.0  # above any stall of a machine that is busy with something else: an attempt ends by its fault
START_S: Final = 1_700_000_000.0
OTHER: Final = "other-model"  # a model has one retrain target, and three kinds are of interest

# Trusts nobody, and is made in no time: for what is not about TLS.
BARE: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

NOT_SENT: Final = {*LOOKUPS, *HANDSHAKES}
SAID_NOT_TAKEN: Final = frozenset({Fault.THROTTLED, Fault.UNAVAILABLE})
FAULTS: Final = tuple(f for f in Fault if f not in {*HANDSHAKES, Fault.NONE, Fault.REDIRECT})
"""All that a repeat may mend. A redirect is final."""


# One attempt, one fault.


@dataclass
class Line:
    """One sender, one proxy, one receiver that takes everything under one key."""

    sender: Sender
    proxy: Proxy
    names: Names
    receiver: Receiver
    url: str
    attempts: int = 0

    async def send(self, *, repeatable: bool = True, path: str = "/planted") -> Attempt:
        self.attempts += 1
        request = Request(
            self.url + path, {"authorization": "planted"}, b"body", repeatable=repeatable
        )
        return await self.sender.send(request)

    @property
    def last(self) -> Try:
        return self.proxy.tries[-1]


@dataclass(frozen=True)
class Tls:
    """Whom the sender trusts, a certificate for ``HOST``, and one for somebody else."""

    trusted: ssl.SSLContext
    right: ssl.SSLContext
    wrong: ssl.SSLContext


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    directory = tmp_path_factory.mktemp("tls")
    _, wrong = authority(directory, "somebody.else")
    path, right = authority(directory, HOST)
    return Tls(trust(path), right, wrong)


@asynccontextmanager
async def wired(
    script: Script, tls: Tls | None = None, timeout_s: float = 5.0
) -> AsyncIterator[Line]:
    receiver = Receiver(lambda request: ("key", 200))
    async with listening(receiver.serve) as upstream:
        secured = (tls.right, tls.wrong) if tls else (None, None)
        proxy = Proxy(upstream, script, *secured)
        async with listening(proxy.serve) as port:
            names = Names(proxy, lambda: line.attempts)
            sender = Sender(ALLOWED, timeout_s, names, tls.trusted if tls else BARE)
            url = f"{'https' if tls else 'http'}://{HOST}:{port}"
            line = Line(sender, proxy, names, receiver, url)
            try:
                yield line
            finally:
                await sender.close()


LOST: Final = "may have been taken, and is not sent twice"
TABLE: Final = [
    # What becomes of a request that may be repeated, and of one that may not.
    (Fault.NONE, Outcome.DELIVERED, Outcome.DELIVERED, "status 200"),
    (Fault.UNRESOLVED, Outcome.RETRY, Outcome.RETRY, "connection failed (gaierror)"),
    (Fault.REFUSED, Outcome.RETRY, Outcome.RETRY, "connection failed (ConnectError)"),
    (Fault.WRONG_CERTIFICATE, Outcome.RETRY, Outcome.RETRY, "connection failed (ConnectError)"),
    (Fault.PLAIN_TEXT, Outcome.RETRY, Outcome.RETRY, "connection failed (ConnectError)"),
    (Fault.CLOSED, Outcome.RETRY, Outcome.UNKNOWN, "connection failed ("),
    (Fault.RESET_BEFORE, Outcome.RETRY, Outcome.UNKNOWN, "connection failed ("),
    (Fault.BLACK_HOLE, Outcome.RETRY, Outcome.UNKNOWN, "no answer within 1 s"),
    (Fault.GARBAGE, Outcome.RETRY, Outcome.UNKNOWN, "connection failed (RemoteProtocolError)"),
    (Fault.REDIRECT, Outcome.REFUSED, Outcome.REFUSED, "status 307"),
    (Fault.THROTTLED, Outcome.RETRY, Outcome.RETRY, "status 429"),
    (Fault.INTERNAL_ERROR, Outcome.RETRY, Outcome.UNKNOWN, "status 500"),
    (Fault.UNAVAILABLE, Outcome.RETRY, Outcome.RETRY, "status 503"),
    (Fault.RESET_AFTER, Outcome.RETRY, Outcome.UNKNOWN, "connection failed ("),
    (Fault.SILENCE, Outcome.RETRY, Outcome.UNKNOWN, "no answer within 1 s"),
    (Fault.DRIP_HEAD, Outcome.RETRY, Outcome.UNKNOWN, "no answer within 1 s"),
    (Fault.HALF_HEAD, Outcome.RETRY, Outcome.UNKNOWN, "connection failed (RemoteProtocolError)"),
    (Fault.BAD_GATEWAY, Outcome.RETRY, Outcome.UNKNOWN, "status 502"),
    # A status decides, whatever becomes of the rest of its answer.
    (Fault.DRIP_BODY, Outcome.DELIVERED, Outcome.DELIVERED, "status 200"),
    (Fault.HALF_BODY, Outcome.DELIVERED, Outcome.DELIVERED, "status 200"),
]


def test_the_table_has_every_fault_once() -> None:
    assert [fault for fault, *_ in TABLE] == list(dict.fromkeys(fault for fault, *_ in TABLE))
    assert {fault for fault, *_ in TABLE} == set(Fault)


@pytest.mark.parametrize(("fault", "repeatable", "otherwise", "detail"), TABLE)
async def test_each_fault_has_its_outcome_and_reaches_the_receiver_once_at_most(
    fault: Fault, repeatable: Outcome, otherwise: Outcome, detail: str, tls: Tls
) -> None:
    async def once(outcome: Outcome, *, may_repeat: bool) -> None:
        secured = tls if fault in HANDSHAKES else None
        async with wired([fault], tls=secured, timeout_s=1.0 if fault in SLOW else 5.0) as line:
            attempt = await line.send(repeatable=may_repeat)
        assert attempt.outcome is outcome
        assert attempt.detail.startswith(detail)
        assert (LOST in attempt.detail) == (outcome is Outcome.UNKNOWN)
        assert attempt.retry_after_s == (RETRY_AFTER_S if fault is Fault.THROTTLED else None)
        assert line.receiver.keys == ["key"] * (fault in TAKEN)
        assert line.names.asked == [HOST], "asked once"
        assert line.last.connections == (fault not in LOOKUPS), "and called once"

    await asyncio.gather(once(repeatable, may_repeat=True), once(otherwise, may_repeat=False))


async def test_what_the_name_server_says_is_checked_before_each_attempt() -> None:
    answers = iter([["127.0.0.1"], [METADATA], ["127.0.0.1", METADATA], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        line.proxy.begin()
        return next(answers)

    async with wired([Fault.UNAVAILABLE]) as line:
        sender = Sender(ALLOWED, 5.0, rebinding, BARE)
        outcomes = [
            (await sender.send(Request(f"{line.url}/planted", {}, b"body"))).outcome
            for _ in range(4)
        ]
        await sender.close()
    assert outcomes == [Outcome.RETRY, Outcome.REFUSED, Outcome.REFUSED, Outcome.DELIVERED]
    assert [each.connections for each in line.proxy.tries] == [1, 0, 0, 1]


async def test_a_cookie_of_one_receiver_is_given_to_nobody() -> None:
    async with wired([answer("200 OK", "set-cookie: planted=1")]) as line:
        assert (await line.send()).outcome is Outcome.DELIVERED
        assert (await line.send()).outcome is Outcome.DELIVERED
    (request,) = line.receiver.requests
    assert "cookie" not in request.headers


GMT: Final = "date: Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        # Numbers that fit into no clock.
        (answer("429 Slow", GMT, f"retry-after: Wed, 21 Oct {'9' * 30} 07:28:00 GMT"), Outcome.RETRY),
        (answer("429 Slow", GMT, f"retry-after: Wed, 21 Oct 2015 07:28:00 +{'9' * 30}"), Outcome.RETRY),
        (answer("429 Slow", f"retry-after: {'9' * 5_000}"), Outcome.RETRY),
        # Addresses that are none: where a redirect leads is not looked at.
        (answer("302 Found", "location: http://[::1/planted"), Outcome.REFUSED),
        (answer("302 Found", "location: https://xn--a.example/planted"), Outcome.REFUSED),
        (answer("302 Found", "location: //:99999999"), Outcome.REFUSED),
        # What is no HTTP.
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", Outcome.RETRY),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000, Outcome.RETRY),
        (b"\x00" * 200_000, Outcome.RETRY),
        # What is not what it says.
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc", Outcome.DELIVERED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", Outcome.DELIVERED),
    ],
)  # fmt: skip
async def test_an_answer_that_makes_no_sense_is_an_outcome_and_not_an_error(
    said: bytes, outcome: Outcome
) -> None:
    async with wired([said]) as line:
        attempt = await line.send()
    assert attempt.outcome is outcome
    assert "planted" not in attempt.detail


async def test_no_answer_whatever_makes_the_sender_raise() -> None:
    rng = np.random.default_rng(SEED)
    whole = bytearray(answer("429 Slow", GMT, "retry-after: Wed, 21 Oct 2015 07:28:30 GMT"))
    broken = []
    for _ in range(60):
        said = whole.copy()
        for at in rng.integers(len(said) - 70, size=rng.integers(1, 4)):
            said[at] = rng.choice(np.frombuffer(b"\x00\r\n :9\xff-", np.uint8))
        broken.append(bytes(said[: int(rng.integers(1, len(said)))]))
    async with wired(broken) as line:
        outcomes = {(await line.send()).outcome for _ in broken}
    assert outcomes <= {Outcome.RETRY, Outcome.REFUSED, Outcome.DELIVERED}
    assert Outcome.RETRY in outcomes


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks..example/planted",
        f"https://{'a' * 70}.example/planted",
        "https://xn--a.example/planted",
        "https://hooks.example/planted\udc80",
    ],
)
async def test_a_name_that_is_none_is_refused_and_ends_nothing(url: str) -> None:
    sender = Sender(ALLOWED, 5.0, context=BARE)
    attempt = await sender.send(Request(url, {}, b""))
    await sender.close()
    assert (attempt.outcome, attempt.detail) == (Outcome.REFUSED, "the address is not valid")


# Many items, many faults.

SECRETS: Final = {
    "slack": "planted-slack",
    "teams": "planted-teams",
    "pagerduty": "plantedpagerduty" + "0" * 16,
    "alertmanager": "planted-alertmanager",
    "webhook": "whsec_" + "planted0" * 5,
    "actions": strict.TOKEN,
    "path": "planted-path",
    "header": "planted-header",
    "bearer": "planted-bearer",
    "mail": "planted-password",
}
USER: Final = "driftline"


def slack(request: Request) -> int:
    if request.url != f"/services/T0/B0/{SECRETS['slack']}":
        return 403
    return judge("/slack", request.headers, request.body, secret="", now_s=0).status


def teams(request: Request) -> int:
    if request.url != f"/workflows/x?sig={SECRETS['teams']}":
        return 401
    body = msgspec.json.decode(request.body)
    (card,) = body["attachments"]
    return 202 if body["type"] == "message" and "AdaptiveCard" in str(card) else 400


def pagerduty(request: Request) -> int:
    if msgspec.json.decode(request.body)["routing_key"] != SECRETS["pagerduty"]:
        return 403
    return judge("/pagerduty", request.headers, request.body, secret="", now_s=0).status


def alertmanager(request: Request) -> int:
    if request.headers.get("authorization") != f"Bearer {SECRETS['alertmanager']}":
        return 401
    return 200 if request.url == "/am/api/v2/alerts" else 404


def http(request: Request) -> int:
    headers = request.headers
    told = headers.get("x-team"), headers.get("authorization")
    if told != (SECRETS["header"], f"Bearer {SECRETS['bearer']}"):
        return 401
    return 202 if request.url == f"/{SECRETS['path']}/{OTHER}" else 404


def key_of(request: Request) -> str:
    """The key by which a service knows a repeat. Alertmanager knows an alert by its labels: here each item is one."""
    headers = request.headers
    if "idempotency-key" in headers:
        return headers["idempotency-key"]
    if "webhook-id" in headers:
        return headers["webhook-id"]
    (alert,) = msgspec.json.decode(request.body)
    incident: str = alert["labels"]["incident"]
    return incident


@dataclass(repr=False)  # it is the clock of a courier, and holds what the receiver took
class Lane:
    """One target with its own proxy, receiver, clock and chance. Mutable."""

    target: str
    action: str
    proxy: Proxy
    keys: Callable[[], Sequence[str]]
    receiver: Receiver | None = None
    names: Names | None = None
    model: str = MODEL
    repeatable: bool = True
    now_s: float = START_S
    attempts: int = 0
    courier: Courier = field(init=False)

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, wait_s: float) -> None:
        self.proxy.tries[-1].waited_s = wait_s
        self.now_s += wait_s
        await asyncio.sleep(0)

    def attempted(self) -> None:
        metrics.DELIVERY_ATTEMPTS.inc()
        self.attempts += 1

    def items(self) -> list[OutboxItem]:
        acts = self.action != "notify"
        of = item("action" if acts else "fired", action=self.action)
        found = []
        for number in range(EACH):
            name = f"{self.model}-{self.target}-{number}"
            incident = replace(of.incident, id=name, model=self.model)
            found.append(replace(of, id=name, target=self.target, incident=incident))
        return found


@dataclass(frozen=True)
class Ran:
    """What came of the run."""

    lanes: list[Lane]
    items: list[OutboxItem]
    deliveries: list[Delivery]
    position: int | None
    world: strict.World
    written: str

    def told(self) -> Iterator[tuple[Lane, OutboxItem, Delivery, list[Try]]]:
        """Each item with what became of it, and its attempts, the first of which comes first."""
        for lane in self.lanes:
            start = 0
            for of in (
                i for i in self.items if (i.incident.model, i.target) == (lane.model, lane.target)
            ):
                (delivery,) = (d for d in self.deliveries if d.id == of.id)
                tries = lane.proxy.tries[start : start + delivery.attempts]
                start += delivery.attempts
                yield lane, of, delivery, tries
            assert start == len(lane.proxy.tries), "every connection belongs to an attempt"


def chance(lane: int, first: Sequence[Fault], faults: Sequence[Fault]) -> Iterator[Fault]:
    """A lane's faults: some that are met for certain, then three attempts of five fail."""
    rng = np.random.default_rng([SEED, lane])
    for at in rng.permutation(len(first)):
        yield first[at]
    weights = np.array([0.2 if fault in SLOW else 1.0 for fault in faults])  # each takes TIMEOUT_S
    while True:
        found = faults[rng.choice(len(faults), p=weights / weights.sum())]
        yield found if rng.random() < 0.6 else Fault.NONE


async def run(
    tls: Tls,
) -> tuple[list[Lane], list[OutboxItem], list[Delivery], int | None, strict.World]:
    """All lanes at once, as the dispatcher has them."""
    world, known = strict.World(), dict[str, str]()
    lanes: list[Lane] = []
    specs: dict[str, ModelSpec] = {}
    async with AsyncExitStack() as stack:

        async def listens(serve: Callable[..., Awaitable[None]]) -> int:
            return await stack.enter_async_context(listening(serve))

        async def add(
            target: str, take: Callable[[Request], int], action: str = "notify", *,
            model: str = MODEL, https: bool = False, repeatable: bool = True,
        ) -> tuple[Lane, str]:  # fmt: skip
            receiver = Receiver(lambda request: (key_of(request), take(request)))
            number, only = len(lanes), list(HANDSHAKES) if https else []
            script = chance(number, [*FAULTS[number::LANES], *only], [*FAULTS, *only])
            secured = (tls.right, tls.wrong) if https else (None, None)
            proxy = Proxy(await listens(receiver.serve), script, *secured)
            url = f"{'https' if https else 'http'}://{HOST}:{await listens(proxy.serve)}"
            lane = Lane(
                target, action, proxy, lambda: receiver.keys, receiver,
                model=model, repeatable=repeatable,
            )  # fmt: skip
            lane.names = Names(proxy, lambda: lane.attempts)
            lanes.append(lane)
            return lane, url

        _, known["env:SLACK"] = await add("slack", slack)
        known["env:SLACK"] += f"/services/T0/B0/{SECRETS['slack']}"
        _, known["env:TEAMS"] = await add("teams", teams)
        known["env:TEAMS"] += f"/workflows/x?sig={SECRETS['teams']}"
        _, pager = await add("pagerduty", pagerduty)
        _, manager = await add("alertmanager", alertmanager)

        def hook(request: Request) -> int:
            return judge(
                "/retrain", request.headers, request.body,
                secret=SECRETS["webhook"], now_s=hooked.now_s,
            ).status  # fmt: skip

        hooked, hook_url = await add("webhook", hook, https=True)
        _, airflow = await add("retrain", world.answer, "retrain")
        _, github = await add("rollback", world.answer, "rollback", repeatable=False)
        _, known["env:HTTP"] = await add("retrain", http, "retrain", model=OTHER, repeatable=False)
        known["env:HTTP"] += f"/{SECRETS['path']}/{{model}}"
        mailer, _ = await add_mail(stack, lanes, chance(len(lanes), MAIL_FAULTS, MAIL_FAULTS))
        known |= {f"env:{name.upper()}_SECRET": secret for name, secret in SECRETS.items()}
        auto = {"approval": "auto"}
        token = "env:ACTIONS_SECRET"
        specs[MODEL] = parse_spec(
            {
                "model": MODEL,
                "notify": [
                    {"slack": {"url": "env:SLACK"}},
                    {"teams": {"url": "env:TEAMS"}},
                    {"pagerduty": {"routing_key": "env:PAGERDUTY_SECRET", "url": pager}},
                    {"alertmanager": {"url": f"{manager}/am", "token": "env:ALERTMANAGER_SECRET"}},
                    {"webhook": {"url": f"{hook_url}/hook", "secret": "env:WEBHOOK_SECRET"}},
                    {"email": {"to": ["a@example.com"]}},
                ],
                "actions": {
                    "retrain": {"airflow": {"url": airflow, "dag": "d", "token": token}, **auto},
                    "rollback": {
                        "github": {"url": github, "repository": "a/b", "token": token}, **auto
                    },
                },
            },
            origin="test",
        )  # fmt: skip
        specs[OTHER] = parse_spec(
            {
                "model": OTHER,
                "actions": {
                    "retrain": {
                        "http": {
                            "url": "env:HTTP",
                            "headers": {"x-team": "env:HEADER_SECRET"},
                            "token": "env:BEARER_SECRET",
                        },
                        **auto,
                    }
                },
            },
            origin="test",
        )
        for number, lane in enumerate(lanes):
            sender = Sender(ALLOWED, TIMEOUT_S, lane.names, tls.trusted)
            stack.push_async_callback(sender.close)
            lane.courier = Courier(
                spec_of=specs.get,
                sender=sender,
                mailer=mailer,
                resolve=lambda text: known.get(text, text),
                clock_s=lane.clock,
                sleep=lane.sleep,
                rng=np.random.default_rng([SEED, number, 1]),
                max_age_s=86_400,
                attempted=lane.attempted,
            )
        return lanes, *await dispatch(lanes), world


async def add_mail(
    stack: AsyncExitStack, lanes: list[Lane], script: Script
) -> tuple[Mailer, Inbox]:
    inbox = Inbox()

    def check(_server: Any, _session: Any, _envelope: Any, _how: str, said: Any) -> AuthResult:
        right = (said.login, said.password) == (USER.encode(), SECRETS["mail"].encode())
        return AuthResult(success=right, handled=False)

    def made() -> SMTP:
        return SMTP(inbox, hostname="mail.example", authenticator=check, auth_require_tls=False)

    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    await stack.enter_async_context(server)
    proxy = MailProxy(server.sockets[0].getsockname()[1], script)
    port = await stack.enter_async_context(listening(proxy.serve))
    settings = EmailSettings(
        server=f"127.0.0.1:{port}",
        tls="none",
        username=USER,
        password=SecretStr(SECRETS["mail"]),
    )

    def keys() -> list[str]:
        names = [str(mail["message-id"]) for _, mail in inbox.taken]
        return [name.strip("<>").partition("@")[0] for name in names]

    lanes.append(Lane("email", "notify", proxy, keys))
    return Mailer(settings, BARE, TIMEOUT_S), inbox


async def dispatch(lanes: list[Lane]) -> tuple[list[OutboxItem], list[Delivery], int | None]:
    """All items through the dispatcher's lanes, mixed; what it records is kept."""
    of = {(lane.model, lane.target): lane for lane in lanes}
    items = [each for row in zip(*(lane.items() for lane in lanes), strict=True) for each in row]
    deliveries: list[Delivery] = []
    all_done = asyncio.Event()

    async def deliver(each: OutboxItem, asked_s: float, newer: Callable[[], bool]) -> Delivery:
        return await of[each.incident.model, each.target].courier.deliver(each, asked_s, newer)

    async def record(_: int, delivery: Delivery) -> None:
        metrics.DELIVERIES.labels(delivery.outcome).inc()
        deliveries.append(delivery)
        if len(deliveries) == len(items):
            all_done.set()

    queues = Lanes(deliver, record)
    queues.assign(0, ())
    for offset, each in enumerate(items):
        queues.put(Task(each, 0, offset, START_S))
    with suppress(TimeoutError):  # what is lost then is for a test to say
        async with asyncio.timeout(40):
            await all_done.wait()
    await asyncio.sleep(0)  # until the last one's offset is done
    position = queues.positions().get(0)
    await queues.stop()
    return items, deliveries, position


@contextmanager
def everything() -> Iterator[io.StringIO]:
    """What is logged, by any logger and at any level, and what is printed."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(lambda record: record.name != "mail.log")  # of the mail server, not ours
    root = logging.getLogger()
    own = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    loud = [one for one in own if one.level or one.name in ("httpx", "httpcore")]
    before = {one: one.level for one in (root, *loud)}
    for one in before:
        one.setLevel(logging.DEBUG)
    root.addHandler(handler)
    try:
        with redirect_stdout(written), redirect_stderr(written):
            yield written
    finally:
        root.removeHandler(handler)
        for one, level in before.items():
            one.setLevel(level)


@pytest.fixture(scope="module")
def ran(tls: Tls) -> Ran:
    """The run, once for all tests of it."""
    with everything() as written:
        lanes, items, deliveries, position, world = asyncio.run(run(tls))
    return Ran(lanes, items, deliveries, position, world, written.getvalue())


def test_every_fault_of_the_table_happened_in_the_run(ran: Ran) -> None:
    met = {each.fault for lane in ran.lanes for each in lane.proxy.tries}
    assert met == {*FAULTS, *HANDSHAKES, Fault.NONE}
    assert all(each.connections <= 1 for lane in ran.lanes for each in lane.proxy.tries)
    for lane in ran.lanes:
        if lane.names is not None:
            assert len(lane.names.asked) == lane.attempts == len(lane.proxy.tries)


def test_nothing_is_lost(ran: Ran) -> None:
    assert len(ran.items) == len(ran.lanes) * EACH == LANES * EACH
    assert sorted(d.id for d in ran.deliveries) == sorted(i.id for i in ran.items)
    assert ran.position == len(ran.items), "all may be committed"
    for lane, of, delivery, _ in ran.told():
        if lane.repeatable:
            assert delivery.outcome == "delivered"
            assert lane.keys().count(of.id) >= 1
        assert lane.receiver is None or lane.receiver.refused == []


def test_nothing_is_doubled_but_where_the_proxy_lost_the_answer(ran: Ran) -> None:
    doubled = 0
    for lane, of, _, tries in ran.told():
        lost = [each for each in tries if each.key is not None and not each.told]
        assert all(each.key in (None, of.id) for each in tries)
        assert lane.keys().count(of.id) == len(lost) + tries[-1].told
        assert not any(each.told for each in tries[:-1]), "who was told stops"
        doubled += len(lost)
    assert doubled > 0
    runs = {name.removeprefix("d/driftline-") for name in ran.world.runs}
    (airflow,) = (i for i in ran.lanes if (i.model, i.target) == (MODEL, "retrain"))
    assert runs == set(airflow.keys()), "a repeat of a named run is no second run"
    assert len(airflow.keys()) > len(runs)


def test_a_repeat_has_the_same_bytes_and_nothing_overtakes(ran: Ran) -> None:
    for lane in ran.lanes:
        first = list(dict.fromkeys(lane.keys()))
        taken = set(first)
        assert first == [i.id for i in lane.items() if i.id in taken]
        # An alert of Alertmanager lasts from the attempt on.
        if lane.receiver is not None and lane.target != "alertmanager":
            assert {len(bodies) for bodies in lane.receiver.bodies.values()} == {1}


def test_what_cannot_tell_a_repeat_is_never_asked_twice(ran: Ran) -> None:
    outcomes = set()
    for lane, of, delivery, tries in ran.told():
        if lane.repeatable:
            continue
        outcomes.add(delivery.outcome)
        *before, last = tries
        assert all(each.fault in NOT_SENT | SAID_NOT_TAKEN for each in before)
        assert last.fault not in NOT_SENT | SAID_NOT_TAKEN
        assert lane.keys().count(of.id) == (last.fault in TAKEN)
        assert delivery.outcome == ("delivered" if last.fault in TOLD else "unknown")
        assert (LOST in delivery.detail) == (delivery.outcome == "unknown")
    assert outcomes == {"delivered", "unknown"}


def test_a_receiver_that_asks_for_patience_gets_it(ran: Ran) -> None:
    waits = [
        each.waited_s
        for lane in ran.lanes
        for each in lane.proxy.tries
        if each.fault is Fault.THROTTLED
    ]
    assert waits
    assert all(wait_s is not None and wait_s >= RETRY_AFTER_S for wait_s in waits)


# Secrets.


def forms(secret: str) -> set[str]:
    """A secret as it may stand somewhere: as it is, quoted, in hexadecimal, in base64 at each of its three alignments."""
    raw = secret.encode()
    coded = {
        base64.b64encode(b"\0" * lead + raw).decode()[4 if lead else 0 : -4] for lead in range(3)
    }
    return {"planted", secret.lower(), quote(secret).lower(), raw.hex(), *map(str.lower, coded)}


def leaks(text: str) -> list[str]:
    return sorted(f for secret in SECRETS.values() for f in forms(secret) if f in text.lower())


@pytest.mark.parametrize("name", SECRETS)
def test_a_leak_would_be_found(name: str) -> None:
    secret = SECRETS[name]
    login = base64.b64encode(f"\0{USER}\0{secret}".encode()).decode()
    for text in (f"POST https://{HOST}/{secret}", secret.upper(), repr(secret.encode()), login):
        assert leaks(text)


def test_no_secret_is_in_anything_that_is_written(ran: Ran) -> None:
    assert "waits: status 503" in ran.written, "the log was heard"
    assert "waits: no answer within" in ran.written
    shown = generate_latest().decode()
    assert "driftline_delivery_attempts_total" in shown
    recorded = "".join(repr(wire.decode(wire.encode(each))) for each in ran.deliveries)
    assert "may have been taken" in recorded
    spoken = "".join(
        repr((lane.courier, lane.courier.sender, lane.courier.mailer)) for lane in ran.lanes
    )
    assert "Traceback" not in ran.written, "of neither side"
    assert leaks(ran.written) == []
    assert leaks(shown) == []
    assert leaks(recorded) == []
    assert leaks(spoken) == []


async def test_where_a_redirect_leads_is_not_logged_at_any_level() -> None:
    with everything() as written:
        async with wired([Fault.REDIRECT, answer("200 OK", "x-echo: planted")]) as line:
            assert (await line.send()).outcome is Outcome.REFUSED
            assert (await line.send()).outcome is Outcome.DELIVERED
    assert leaks(written.getvalue()) == []


ASCII: Final = "header is not one line of ASCII"
CI: Final = "https://ci.example"


@pytest.mark.parametrize(
    ("kind", "target", "secret", "detail"),
    [
        ("airflow", {"url": CI, "dag": "d", "token": "env:S"}, "planted\nb", f"the authorization {ASCII}"),
        ("github", {"repository": "a/b", "token": "env:S"}, "planted-ä", f"the authorization {ASCII}"),
        ("http", {"url": CI, "token": "env:S"}, "planted\x7f", f"the authorization {ASCII}"),
        ("http", {"url": CI, "headers": {"X-Key": "env:S"}}, "planted-ä", f"the x-key {ASCII}"),
        ("http", {"url": "env:S"}, "https://u:planted℀@ci.example/", "the address is not valid"),
        ("http", {"url": "env:S"}, "https://[planted.example/", "the address is not valid"),
        ("webhook", {"url": CI, "secret": "env:S"}, "whsec_planted!", "the webhook secret starts with whsec_ but is not base64"),
    ],
)  # fmt: skip
async def test_a_secret_that_cannot_be_sent_is_waited_for_and_not_quoted(
    kind: str, target: dict[str, Any], secret: str, detail: str
) -> None:
    def resolve(text: str) -> str:
        return secret if text == "env:S" else text

    asks = {"retrain": {kind: target, "approval": "auto"}}
    spec = parse_spec({"model": MODEL, "actions": asks}, origin="test")
    lane = Lane("retrain", "retrain", Proxy(0), list)
    lane.proxy.begin()
    sender = Sender((), TIMEOUT_S, context=BARE)
    with everything() as written:
        courier = Courier(
            spec_of=lambda _: spec,
            sender=sender,
            mailer=Mailer(EmailSettings(), BARE, TIMEOUT_S),
            resolve=resolve,
            clock_s=lane.clock,
            sleep=lane.sleep,
            rng=np.random.default_rng(SEED),
            max_age_s=10,
        )
        delivery = await courier.deliver(lane.items()[0], START_S)
        await sender.close()
    assert (delivery.outcome, delivery.attempts, delivery.detail) == ("expired", 0, detail)
    assert spec.actions.retrain is not None
    with pytest.raises(ValueError, match=detail) as caught:
        action_request(lane.items()[0], spec.actions.retrain, resolve, at_s=0)
    assert leaks(written.getvalue() + "".join(traceback.format_exception(caught.value))) == []


async def test_a_mail_password_that_cannot_be_said_is_waited_for_and_not_quoted() -> None:
    async with AsyncExitStack() as stack:
        lanes: list[Lane] = []
        mailer, inbox = await add_mail(stack, lanes, [])
        password = SecretStr("planted-ä")
        wrong = Mailer(
            mailer.settings.model_copy(update={"password": password}), mailer.context, TIMEOUT_S
        )
        mail = Mail("a", "b", ("a@example.com",), "subject", "text")
        assert (await mailer.send(mail, START_S)).outcome is Outcome.DELIVERED
        attempt = await wrong.send(mail, START_S)
    said = "the mail server's name, user or password is not ASCII"
    assert (attempt.outcome, attempt.detail) == (Outcome.RETRY, said)
    assert len(inbox.taken) == 1
