"""What a chaos run sends: the same for a seed, and as odd, late, malformed and faulty as it says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from load.chaos import tape, workload
from load.chaos.shapes import CHURN, ETA, FAULT, FRAUD, RELEASE, SHAPES, SHIFT
from load.chaos.workload import PARTITIONS, START_MS, Workload, messages
from monitor.errors import InvalidEventError
from monitor.events import Event, Limits, decode_message
from monitor.reference import dump
from streams.models import MAX_RECORD

EVENTS: Final = 30_000
MINUTE: Final = 60_000
DAY: Final = 24 * 60 * MINUTE
NOW_MS: Final = START_MS + 40 * DAY
LENGTH: Final = 12 * MINUTE


@dataclass
class Read:
    """A workload, as the product reads it."""

    forms: Counter[str] = field(default_factory=Counter)  # of events
    reasons: Counter[str] = field(default_factory=Counter)
    events: list[tuple[int, Event]] = field(default_factory=list)  # partition
    behind: list[tuple[int, int]] = field(default_factory=list)  # ts, and how far behind it is
    bad_after_start: list[int] = field(default_factory=list)
    last: dict[int, int] = field(default_factory=dict)
    n: int = 0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("chaos") / "tape"
    Workload(3, EVENTS).write(found)
    return found


@pytest.fixture(scope="module")
def read(path: Path) -> Read:
    found = Read()
    furthest: dict[int, int] = defaultdict(int)
    for message in messages(path):
        outcomes = decode_message(message.value, message.headers, Limits(), now_ms=NOW_MS)
        found.n += len(outcomes)
        found.forms[_form(message)] += len(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, InvalidEventError):
                found.reasons[outcome.reason] += 1
                found.bad_after_start.append(max(furthest.values(), default=0))
                continue
            p, ts = message.partition, outcome.ts_ms
            found.events.append((p, outcome))
            found.behind.append((ts, furthest[p] - ts))
            furthest[p] = max(furthest[p], ts)
            found.last[p] = ts
    return found


def _form(message: tape.Message) -> str:
    kind = message.headers.get("content-type", b"")
    if b"arrow" in kind or message.value[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    if b"cloudevents" in kind or "ce_id" in message.headers:
        return "cloudevent"
    return "array" if message.value.lstrip()[:1] == b"[" else "json"


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for seed, file in zip((1, 1, 2), files, strict=True):
        Workload(seed, 6_000).write(file)
    same, again, other = (file.read_bytes() for file in files)
    assert same == again
    assert same != other
    assert not list(tmp_path.glob("*.part"))


def test_as_many_events_are_sent_as_were_asked_for(read: Read) -> None:
    assert read.n == EVENTS
    assert {p for p, _ in read.events} == set(range(PARTITIONS))


def test_events_come_in_every_form_that_the_contract_has(read: Read) -> None:
    shares = {form: n / EVENTS for form, n in read.forms.items()}
    assert shares["json"] > 0.7
    assert 0.015 < shares["cloudevent"] < 0.04
    assert 0.03 < shares["array"] < 0.09
    assert 0.05 < shares["arrow"] < 0.15


def test_two_in_a_thousand_are_malformed_in_every_way(read: Read) -> None:
    assert 0.001 < read.reasons.total() / EVENTS < 0.003
    assert set(read.reasons) == {
        "not_json",
        "missing_field",
        "wrong_type",
        "bad_timestamp",
        "future_timestamp",
        "too_large",
    }


def test_late_events_are_late_and_the_others_are_not(read: Read) -> None:
    first_day = [(ts, behind) for ts, behind in read.behind if ts < START_MS + DAY]
    late = [(ts, behind) for ts, behind in first_day if behind > 15_000]
    assert 0.007 < len(late) / len(first_day) < 0.013
    assert max(behind for _, behind in late) <= 5 * MINUTE
    # A repeat that follows a long packet is as old as the packet.
    assert sum(4_000 < behind <= 15_000 for _, behind in first_day) < 5
    assert any(ts < START_MS - 10_000 for ts, _ in late), "windows that were never seen"


def test_the_last_stretch_is_clean_and_closes_every_window(read: Read) -> None:
    tail_ms = START_MS + DAY
    tail = [behind for ts, behind in read.behind if ts > tail_ms]
    assert len(tail) > EVENTS * 0.1
    assert max(tail) < 1_000
    assert max(read.bad_after_start) < tail_ms
    assert len(set(read.last.values())) == 1
    last_ms = read.last[0]
    before = max(ts for ts, _ in read.behind if ts != last_ms)
    assert before // (10 * MINUTE) < (last_ms - 5_000) // (10 * MINUTE)


@pytest.mark.parametrize(
    ("model", "span", "is_so", "before", "within", "after"),
    [
        pytest.param(FRAUD.model, FAULT, lambda e: e.features.get("amount") is None, 0.01, 0.9, 0.01, id="missing"),
        pytest.param(ETA.model, SHIFT, lambda e: _number(e.features.get("distance")) > 15, 0.07, 0.66, 0.07, id="shift"),
        pytest.param(CHURN.model, (RELEASE, 1.0), lambda e: e.version == "2", 0.0, 0.5, 0.0, id="release"),
    ],
)  # fmt: skip
def test_each_fault_is_there_in_its_time_and_in_no_other(
    read: Read,
    model: str,
    span: tuple[float, float],
    is_so: Callable[[Event], bool],
    before: float,
    within: float,
    after: float,
) -> None:
    margin = 10_000  # events are behind their time by so much
    start, end = (START_MS + share * LENGTH for share in span)
    shares = {"before": Counter[bool](), "within": Counter[bool](), "after": Counter[bool]()}
    for (_, event), (ts, behind) in zip(read.events, read.behind, strict=True):
        if event.model != model or behind > 15_000:
            continue
        if ts < start - margin:
            shares["before"][is_so(event)] += 1
        elif start + margin < ts < end - margin:
            shares["within"][is_so(event)] += 1
        elif ts > end + margin:
            shares["after"][is_so(event)] += 1
    found = [found[True] / found.total() for found in shares.values()]
    assert found == pytest.approx([before, within, after], abs=0.05)


def _number(value: Any) -> float:
    return value if isinstance(value, float) else 0.0


def test_odd_values_are_too_rare_for_an_alarm(read: Read) -> None:
    wrong = sum(
        isinstance((event.features or {}).get("balance"), (str, list, dict))
        for _, event in read.events
    )
    n = sum(event.model == FRAUD.model for _, event in read.events)
    assert 0 < wrong / n < 0.005


def test_the_specs_send_to_the_receiver_and_ask_nobody() -> None:
    specs = Workload(1, EVENTS).specs("http://127.0.0.1:8123/")
    assert [spec.model for spec in specs] == [shape.model for shape in SHAPES]
    for spec in specs:
        assert len(spec.features) == 20
        webhook, action = spec.notify[0].webhook, spec.actions.rollback
        assert webhook is not None
        assert action is not None
        assert webhook.url == "http://127.0.0.1:8123/notify"
        assert action.webhook is not None
        assert action.webhook.url == "http://127.0.0.1:8123/rollback"
        assert action.approval == "auto"
        assert webhook.secret == f"env:{workload.SECRET_VARIABLE}"
        assert (spec.windows.pane, spec.windows.sizes) == (10_000, (60_000, 600_000))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_reference_fits_into_its_topic_and_has_more_segments_than_it_keeps() -> None:
    load = Workload(1, EVENTS)
    known = load.references()
    for spec in load.specs("http://127.0.0.1"):
        assert len(dump(known[spec.model], spec)) < MAX_RECORD
    fraud = known[FRAUD.model]
    assert len(fraud.segments["merchant"]) == 32
    assert fraud.profiles["merchant=__other__"].n > 0


def test_a_run_that_fills_no_windows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fewer than 5,000 events"):
        Workload(1, 4_999)


def test_a_file_that_ends_inside_a_message_is_an_error(tmp_path: Path, path: Path) -> None:
    torn = tmp_path / "torn"
    for size in (3, 20):
        torn.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="ends inside a message"):
            list(messages(torn))


def test_a_message_reads_as_it_was_written(tmp_path: Path) -> None:
    written = [
        tape.Message(3, b"", {}),
        tape.Message(0, b"x" * 70_000, {"content-type": b"a" * 300, "ce_id": b""}),
    ]
    with (tmp_path / "tape").open("wb") as file:
        for message in written:
            tape.append(file, message)
    assert list(messages(tmp_path / "tape")) == written
