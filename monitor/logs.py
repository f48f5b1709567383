"""Logs: events with fields, on standard error, in one format for our code and for the libraries beneath it.

    log = structlog.get_logger(__name__)
    log.info("batch committed", partition=3, events=10_000)

Each failure is logged once, where it is dealt with; nothing is logged per event. Whatever looks like a secret is
blanked before it is written, in our fields and in the libraries' sentences: the last line of defence, not the first.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from monitor.environment import colour_wanted
from monitor.settings import LogSettings

REDACTED: Final = "[redacted]"
# They say at INFO what we say better, and some of them once per batch.
QUIET: Final = (
    "aiokafka",
    "faust",
    "mode",
    "kafka",
    "uvicorn",
    "httpx",
    "httpcore",
    "urllib3",
)
# They log each attempt on a server that is away, with its address; what becomes of it, we say.
# Not urllib3 as a whole: clickhouse_connect sets that logger's level when it is imported, which is after us.
SILENT: Final = ("clickhouse_connect", "urllib3.connectionpool")

_SECRET_KEY: Final = re.compile(
    r"(passw(or)?d|passphrase|secret|authorization|credential|cookie|private_?key|api_?key|routing_?key|(^|[_.-])token)$",
    re.IGNORECASE,
)
_IN_TEXT: Final = (
    # key=value, key: value, "key": "value"
    (
        re.compile(
            r"""(?i)((?:passw(?:or)?d|passphrase|secret|authorization|api[_-]?key|routing[_-]?key|\btoken)["']?\s*[=:]\s*)"""
            r"""(?:(?:bearer|basic)\s+)?("[^"]*"|'[^']*'|[^\s,;&)}\]]+)"""
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}"), rf"\1 {REDACTED}"),
    (re.compile(r"(\w://)[^/\s@]+@"), rf"\1{REDACTED}@"),  # user and password of an address
    (re.compile(r"(https://hooks\.slack\.com/)\S+"), rf"\1{REDACTED}"),  # the path is the secret
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=]+"), REDACTED),
)


def configure(settings: LogSettings, *, process: str = "", stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging, for the whole process.

    Args:
        settings: level and format.
        process: put into every line as ``process``, so that lines of several processes can share a file.
        stream: where to write; standard error if not given.
    """
    out = stream or sys.stderr

    def add_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        # Not a context variable: threads do not inherit those.
        return {**event, "process": process} if process else event

    before: list[Processor] = [
        add_process,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                *_renderer(settings, out),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for names, level in ((QUIET, logging.WARNING), (SILENT, logging.CRITICAL)):
        for name in names:
            quiet = logging.getLogger(name)
            quiet.handlers.clear()
            quiet.propagate = True
            quiet.setLevel(max(level, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: blanks fields with a secret's name, and secrets inside of any text."""
    return {key: _redacted(key, value) for key, value in event.items()}


def redact_text(text: str) -> str:
    """``text`` without what looks like a secret."""
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _redacted(key: str, value: Any) -> Any:
    if _SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {k: _redacted(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", item) for item in value]
    if isinstance(value, BaseException):
        return redact_text(repr(value))
    return value


def _renderer(settings: LogSettings, out: TextIO) -> list[Processor]:
    chosen = settings.format
    if chosen == "auto":
        chosen = "console" if out.isatty() else "logfmt"
    if chosen == "json":
        return [structlog.processors.JSONRenderer(sort_keys=False)]
    if chosen == "logfmt":
        order = ("timestamp", "level", "process", "logger", "event")
        return [_one_line, structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True)]
    return [structlog.dev.ConsoleRenderer(colors=out.isatty() and colour_wanted())]


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # LogfmtRenderer refuses keys with spaces; libraries' extra fields may have them.
    return {key.replace(" ", "_"): value for key, value in event.items()}
