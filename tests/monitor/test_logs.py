from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from monitor import logs
from monitor.settings import LogSettings

SECRET = "hunter2hunter2"  # planted, to be found nowhere


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in (*logs.QUIET, *logs.SILENT)}
    yield
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


def _configured(
    format_: Literal["auto", "console", "logfmt", "json"], **kwargs: Any
) -> io.StringIO:
    out = io.StringIO()
    logs.configure(LogSettings(format=format_), process="sink", stream=out, **kwargs)
    return out


def _raised(text: str) -> LookupError:
    with pytest.raises(LookupError) as caught:
        raise LookupError(text)
    return caught.value


def test_our_events_and_the_libraries_sentences_come_out_in_one_format() -> None:
    out = _configured("json")
    structlog.get_logger("streams.sink").info("batch inserted", rows=3, table="windows")
    logging.getLogger("some.library").warning("retry %d of %d", 1, 3)
    ours, theirs = (json.loads(line) for line in out.getvalue().splitlines())
    assert ours.pop("timestamp") <= theirs.pop("timestamp")
    assert ours == {
        "event": "batch inserted",
        "level": "info",
        "logger": "streams.sink",
        "process": "sink",
        "rows": 3,
        "table": "windows",
    }
    assert (theirs["event"], theirs["logger"], theirs["process"]) == (
        "retry 1 of 3",
        "some.library",
        "sink",
    )


def test_logfmt_is_one_line_even_with_a_traceback() -> None:
    out = _configured("auto")
    error = _raised("two\nlines")
    structlog.get_logger("x").error("batch failed", exc_info=error, **{"a key": "v w"})
    assert out.getvalue().count("\n") == 1
    assert 'event="batch failed"' in out.getvalue()
    assert 'a_key="v w"' in out.getvalue()


@pytest.mark.parametrize("name", logs.QUIET)
def test_chatty_libraries_are_heard_from_warning_on(name: str) -> None:
    out = _configured("logfmt")
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("trouble")
    assert "chatter" not in out.getvalue()
    assert "trouble" in out.getvalue()


@pytest.mark.parametrize("name", ["clickhouse_connect.driver.httpclient", "urllib3.connectionpool"])
def test_attempts_on_a_server_that_is_away_are_not_logged_by_its_client(name: str) -> None:
    out = _configured("logfmt")
    logging.getLogger("urllib3").setLevel(logging.WARNING)  # as clickhouse_connect does on import
    logging.getLogger(name).error("Unexpected Http Driver Exception")
    assert out.getvalue() == ""


@pytest.mark.parametrize("format_", ["console", "logfmt", "json"])
@pytest.mark.parametrize(
    "fields",
    [
        {"password": SECRET},
        {"sasl.password": SECRET},
        {"api_key": SECRET},
        {"routing_key": SECRET},
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        {"targets": [{"secret": SECRET}]},
        {"url": f"https://user:{SECRET}@clickhouse:8443/"},
        {"url": f"https://hooks.slack.com/services/T0/B0/{SECRET}"},
        {"detail": f"signed with whsec_{SECRET}"},
        {"detail": f'{{"password": "{SECRET}"}}'},
        {"detail": f"sasl.password={SECRET}"},
        {"detail": f"Authorization: Basic {SECRET}"},
        {"error": ValueError(f"token={SECRET}")},
    ],
)
def test_a_planted_secret_is_never_written(
    format_: Literal["console", "logfmt", "json"], fields: dict[str, Any]
) -> None:
    out = _configured(format_)
    structlog.get_logger("x").warning("failed", **fields)
    logging.getLogger("library").warning("failed %s", fields)
    structlog.get_logger("x").error("failed", exc_info=_raised(str(fields)))
    assert SECRET not in out.getvalue()
    assert logs.REDACTED in out.getvalue()


def test_what_only_resembles_a_secret_stays_readable() -> None:
    out = _configured("json")
    structlog.get_logger("x").info("inserted", insert_deduplication="t:0:1-2", key="flight-delay")
    line = json.loads(out.getvalue())
    assert (line["insert_deduplication"], line["key"]) == ("t:0:1-2", "flight-delay")
