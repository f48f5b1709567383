"""The other end of the demo's webhooks: Slack, PagerDuty, a retrain pipeline and a rollback endpoint on loopback.

It is strict where the real services are, so what it accepts they would accept, and it shares no code with the
sender: limits and signatures are written here a second time, from the services' documents. ``judge`` is the whole
decision and is pure; ``Receiver`` gives it requests and keeps what came of them.

Sources: Slack Block Kit reference; PagerDuty Events API v2; Standard Webhooks 1.0.0; CloudEvents 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

import msgspec
from typing_extensions import override

from streams.demo.targets import CloudEvent, PagerDutyEvent, Section, SlackMessage

MAX_BODY_BYTES: Final = 512 * 1024  # PagerDuty's limit, the largest of the four
MAX_WEBHOOK_BYTES: Final = 20_000  # Standard Webhooks, "payload size"
MAX_SLACK_CHARS: Final = 13_200  # over all blocks: undocumented, msg_blocks_too_long above it
TOLERANCE_S: Final = 300
# Nothing here means to call everybody: an unescaped name from outside did.
_BROADCASTS: Final = ("<!channel", "<!here", "<!everyone")


@dataclass(frozen=True, slots=True)
class Answer:
    """The receiver's answer to one request.

    Attributes:
        key: idempotency key: the webhook-id; PagerDuty's ``dedup_key/event_action``; a digest of Slack's body.
        summary: one line for people.
        problem: why it was refused; ``None`` if it was accepted. Never quotes a routing key or a signature.
    """

    status: int
    content_type: str
    body: bytes
    key: str | None = None
    summary: str = ""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """One request and what became of it. ``repeats`` counts accepted requests of the same key before it."""

    path: str
    key: str | None
    summary: str
    problem: str | None
    repeats: int


class _RefusalError(Exception):
    """The request is wrong. Carries the HTTP status and the reason."""

    def __init__(self, problem: str, status: int = 400) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status


def judge(
    path: str, headers: Mapping[str, str], body: bytes, *, secret: str, now_s: float
) -> Answer:
    """Decide about one POST.

    Args:
        path: ``/slack``, ``/pagerduty``, ``/retrain`` or ``/rollback``.
        headers: names in lower case.
        body: as received: the signature is over these bytes.
        secret: ``whsec_`` and the base64 of 24 to 64 bytes, shared by retrain and rollback.
        now_s: the wall clock, for the tolerance of ``webhook-timestamp``.
    """
    try:
        match path:
            case "/slack":
                return _slack(headers, body)
            case "/pagerduty":
                return _pagerduty(headers, body)
            case "/retrain" | "/rollback":
                return _webhook(headers, body, secret, now_s)
            case _:
                return _refused(path, _RefusalError("no such path", 404))
    except _RefusalError as refusal:
        return _refused(path, refusal)


def _slack(headers: Mapping[str, str], body: bytes) -> Answer:
    _check_content_type(headers, "application/json")
    message = _decode(body, SlackMessage)
    for section in message.blocks:
        if isinstance(section, Section) and section.text is None and section.fields is None:
            raise _RefusalError("a section needs text or fields")
    texts = _texts(msgspec.to_builtins(message))
    if sum(map(len, texts)) - len(message.text) > MAX_SLACK_CHARS:
        raise _RefusalError(f"msg_blocks_too_long: more than {MAX_SLACK_CHARS} characters")
    if any(mark in text for text in texts for mark in _BROADCASTS):
        raise _RefusalError("a broadcast mention: names from outside must be escaped")
    key = hashlib.sha256(body).hexdigest()[:16]
    return Answer(200, "text/plain", b"ok", key, message.text)


def _pagerduty(headers: Mapping[str, str], body: bytes) -> Answer:
    _check_content_type(headers, "application/json")
    event = _decode(body, PagerDutyEvent)
    if event.event_action == "trigger" and event.payload is None:
        raise _RefusalError("a trigger needs a payload")
    if event.event_action != "trigger" and event.dedup_key is None:
        raise _RefusalError(f"{event.event_action} needs a dedup_key")
    # A second trigger under one dedup_key is an update of the alert: what tells it from a repeat is in the details.
    update = event.payload.custom_details if event.payload else None
    which = (
        f"/{update['notification']}"
        if isinstance(update, dict) and "notification" in update
        else ""
    )
    key = f"{event.dedup_key}/{event.event_action}{which}" if event.dedup_key else None
    summary = event.payload.summary if event.payload else event.event_action
    reply = {"status": "success", "message": "Event processed", "dedup_key": event.dedup_key}
    return Answer(202, "application/json", msgspec.json.encode(reply), key, summary)


def _webhook(headers: Mapping[str, str], body: bytes, secret: str, now_s: float) -> Answer:
    if len(body) >= MAX_WEBHOOK_BYTES:
        raise _RefusalError(f"the body is not below {MAX_WEBHOOK_BYTES} bytes", 413)
    webhook_id = _verified_id(headers, body, secret, now_s)
    _check_content_type(headers, "application/cloudevents+json")
    event = _decode(body, CloudEvent)
    for name in _decode(body, dict[str, Any]):
        if not (name.isascii() and name.isalnum() and name == name.lower()):
            raise _RefusalError("attribute names are lower-case letters and digits")
    summary = f"{event.type} {event.subject}" if event.subject else event.type
    return Answer(202, "application/json", b'{"status":"accepted"}', webhook_id, summary)


def _verified_id(headers: Mapping[str, str], body: bytes, secret: str, now_s: float) -> str:
    """The webhook-id, once timestamp and signature are right."""
    webhook_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not webhook_id or "." in webhook_id:
        raise _RefusalError("webhook-id is missing or has a dot")
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise _RefusalError("webhook-timestamp is not in whole seconds")
    if abs(int(timestamp) - now_s) > TOLERANCE_S:
        raise _RefusalError(f"webhook-timestamp is more than {TOLERANCE_S} s from now", 401)
    content = f"{webhook_id}.{timestamp}.".encode() + body
    digest = hmac.digest(_key_bytes(secret), content, "sha256")
    expected = b"v1," + base64.b64encode(digest)
    # Compared with each signature of the list: during a rotation the sender signs with the old and the new key.
    signatures = headers.get("webhook-signature", "").encode().split(b" ")
    if not any(hmac.compare_digest(expected, signature) for signature in signatures):
        raise _RefusalError("webhook-signature does not match", 401)
    return webhook_id


def _key_bytes(secret: str) -> bytes:
    """Raises ValueError, which does not quote the secret, if it is not one."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:  # binascii.Error is one; another tells of letters beyond ASCII
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("the secret is not whsec_ and the base64 of 24 to 64 bytes")
    return key


def _check_content_type(headers: Mapping[str, str], wanted: str) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != wanted:
        raise _RefusalError(f"content-type is not {wanted}")


_T = TypeVar("_T")


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise _RefusalError(str(err)) from err


def _texts(value: object) -> list[str]:
    """Every string under a key ``text``, at any depth."""
    match value:
        case {"text": str(text), **rest}:
            return [text, *_texts(rest)]
        case dict():
            return [text for child in value.values() for text in _texts(child)]
        case list():
            return [text for child in value for text in _texts(child)]
        case _:
            return []


def _refused(path: str, refusal: _RefusalError) -> Answer:
    problem = refusal.problem
    if path == "/slack":
        content_type, body = "text/plain", f"invalid_payload: {problem}".encode()
    else:
        reply = {"status": "invalid event", "message": problem, "errors": [problem]}
        content_type, body = "application/json", msgspec.json.encode(reply)
    return Answer(refusal.status, content_type, body, problem=problem)


class Receiver:
    """A server on 127.0.0.1 in its own threads, between ``with Receiver(...) as receiver`` and its end.

    Mutable, and locked, because it remembers: every request, and which key came with which bytes.

    Args:
        secret: the secret that retrain and rollback requests are signed with.
        clock: seconds since the epoch.
        port: 0 for a free one.

    Raises:
        ValueError: the secret is not ``whsec_`` and the base64 of 24 to 64 bytes.
    """

    def __init__(self, secret: str, *, clock: Callable[[], float], port: int = 0) -> None:
        _key_bytes(secret)
        self._secret = secret
        self._clock = clock
        self._lock = threading.Lock()
        self._received: list[Received] = []
        self._accepted: Counter[tuple[str, str]] = Counter()
        self._bodies: dict[tuple[str, str], bytes] = {}
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``, to be followed by one of the paths."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def received(self) -> tuple[Received, ...]:
        """Every request so far, in the order of arrival."""
        with self._lock:
            return tuple(self._received)

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Judge a request, remember it, and say what to reply."""
        answer = judge(path, headers, body, secret=self._secret, now_s=self._clock())
        with self._lock:
            if answer.problem is None and self._is_reused(path, answer.key, body):
                reused = _RefusalError("the same webhook-id came with another body", 422)
                answer = replace(_refused(path, reused), key=answer.key)
            self._remember(path, answer)
        return answer

    def refuse(self, path: str, problem: str, status: int) -> Answer:
        """Refuse a request whose body is not read, and remember it."""
        answer = _refused(path, _RefusalError(problem, status))
        with self._lock:
            self._remember(path, answer)
        return answer

    def _is_reused(self, path: str, key: str | None, body: bytes) -> bool:
        """Whether an action's key came with other bytes before: it would run the wrong one."""
        if key is None or path not in ("/retrain", "/rollback"):
            return False
        digest = hashlib.sha256(body).digest()
        return self._bodies.setdefault((path, key), digest) != digest

    def _remember(self, path: str, answer: Answer) -> None:
        repeats = self._accepted[path, answer.key] if answer.key else 0
        if answer.key and answer.problem is None:
            self._accepted[path, answer.key] += 1
            alert, trigger, _ = answer.key.rpartition("/trigger")
            # A new trigger opens the alert: to end it is news again.
            if trigger and path == "/pagerduty" and repeats == 0:
                for action in ("acknowledge", "resolve"):
                    self._accepted.pop((path, f"{alert}/{action}"), None)
        self._received.append(Received(path, answer.key, answer.summary, answer.problem, repeats))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may hold its connection open

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        super().__init__(address, _Handler)
        self.receiver = receiver

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent about a client that went away, as one does that is stopped in the middle of a request."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a silent client may hold a thread

    def do_POST(self) -> None:
        receiver = cast("_Server", self.server).receiver
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # the body stays unread
            answer = receiver.refuse(self.path, f"no length up to {MAX_BODY_BYTES} bytes", 413)
        else:
            body = self.rfile.read(int(length))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver.answer(self.path, headers, body)
        self.send_response(answer.status)
        self.send_header("content-type", answer.content_type)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: ``received`` tells it all, and a path may be a secret."""
