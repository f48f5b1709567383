"""Dead letters are shown as what they are, and a replay sends each death once: bytes as they were, on real Kafka."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import Any, cast

import pyarrow as pa
import pytest
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner, Result

from monitor.errors import ConfigError, TransientError
from monitor.events import Event, Limits, decode_message
from monitor.settings import LimitSettings
from streams import __main__ as cli
from streams.deadletter import dead_letter, header_list
from streams.dlq import Filter, Letter, Place, Reader, letter_of
from streams.options import since
from streams.replay import Fate, Replayed, decide, only, replay
from tests.monitor.builders import MODEL, NOW, START, body, event
from tests.streams.profiled import SOURCES, Bench, drain, some

pytestmark = pytest.mark.timeout(180)

AT = (1, 1_700_000_000_000)
INPUTS = ("d.predictions", "d.labels")


def record(**fields: Any) -> Message:
    """A record of the dlq topic."""
    return Message(**{"topic": "d.dlq", "partition": 1, "offset": 9, "timestamp": AT, **fields})


def letter(**changes: Any) -> Letter:
    """A letter of a prediction."""
    died = Message(topic="d.predictions", partition=3, offset=77, timestamp=(1, 5), value=b"{}")
    read = letter_of(record(**dead_letter(died, reason="not_json", detail="malformed", stage="profiler")))  # fmt: skip
    assert read is not None
    return Letter(**{**{name: getattr(read, name) for name in read.__slots__}, **changes})


def test_a_letter_is_read_as_it_was_written() -> None:
    assert letter() == Letter(
        at_ms=AT[1],
        stage="profiler",
        reason="not_json",
        detail="malformed",
        died=Place("d.predictions", 3, 77),
        timestamp_ms=5,
        attempt=1,
        size=2,
        cut=False,
        refused=None,
        place=Place("d.dlq", 1, 9),
        beginning=b"{}",
    )


def test_a_letter_of_the_detector_says_in_its_key_what_others_say_in_headers() -> None:
    read = letter_of(record(key=b"merge:d.profiles:2:40:incompatible", value=b"junk"))
    assert read is not None
    assert (read.stage, read.reason, read.died) == ("merge", "incompatible", Place("d.profiles", 2, 40))  # fmt: skip
    assert (read.timestamp_ms, read.size) == (None, 4)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"headers": {"driftline.replay.of": b"d.predictions/3/77/5"}}, id="a receipt"),
        pytest.param({"value": b"x"}, id="nothing of ours"),
        pytest.param({"key": b"a:b:c:d:e", "value": b"x"}, id="a key that only looks like ours"),
        pytest.param(
            {"headers": {"driftline.error.reason": b"r"}}, id="headers that are not whole"
        ),
    ],
)
def test_what_is_no_letter_is_none(fields: dict[str, Any]) -> None:
    assert letter_of(record(**fields)) is None


def test_a_row_has_nothing_that_a_terminal_would_obey() -> None:
    row = letter(detail="\x1b[2J", beginning=b"\x1b[31m\xff\n").to_dict(replayed=True, value=True)
    assert all(str(text).isprintable() for text in row.values())
    assert (row["value"], row["replayed"]) == (r"\x1b[31m\\xff\n", "yes")
    assert "value" not in letter().to_dict(replayed=False, value=False)


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({}, Fate.SENT),
        ({"died": Place("d.labels", 0, 1)}, Fate.SENT),
        ({"died": Place("d.verdicts", 0, 1)}, Fate.OURS),
        ({"stage": "bridge", "died": Place("seldon.x.model.y.inputs", 0, 1)}, Fate.FOREIGN),
        ({"attempt": 2}, Fate.SENT),
        ({"attempt": 3}, Fate.EXHAUSTED),
        ({"refused": "0,4"}, Fate.SENT),
        ({"refused": "?"}, Fate.INDIVISIBLE),
        ({"timestamp_ms": 6}, Fate.DONE),
    ],
)
def test_a_letters_fate(changes: dict[str, Any], fate: Fate) -> None:
    assert decide(letter(**changes), {"d.predictions/3/77/6"}, INPUTS) is fate


@pytest.mark.parametrize("form", ["JSON", "Arrow"])
def test_only_the_refused_events_of_a_message_are_left(form: str) -> None:
    events = [event(START + i, id=f"e{i}") for i in range(4)]
    if form == "JSON":
        value = b" " + body(events)
    else:
        table, sink = pa.Table.from_pylist(events), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        value = sink.getvalue().to_pybytes()
    left = decode_message(only(value, [1, 3]), {}, Limits(), now_ms=NOW)
    assert [cast("Event", e).id for e in left] == ["e1", "e3"]


@pytest.mark.parametrize("value", [b'{"data": []}', b"\xff\xff\xff\xff", b"[1]", b""])
def test_what_cannot_be_divided_is_not(value: bytes) -> None:
    assert only(value, [5]) is None


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [(None, None), ("2h", NOW - 7_200_000), ("1970-01-02T00:00:00Z", 86_400_000)],
)
def test_since_is_a_time_or_a_duration(text: str | None, at_ms: int | None) -> None:
    assert since(text, NOW) == at_ms


def test_since_is_nothing_else() -> None:
    with pytest.raises(ConfigError, match="--since"):
        since("yesterday", NOW)


def again(bench: Bench, **more: Any) -> list[Replayed]:
    """A replay of everything; what it sent is part of what the bench has sent."""
    before = len(bench.read(bench.topics.predictions))
    replayed = replay(
        bench.settings, Filter(limit=0), monotonic=time.monotonic, **{"confirm": bool, **more}
    )
    expected = before + (0 if more.get("dry_run") else fates(replayed).count(Fate.SENT))
    deadline = time.monotonic() + 30
    while len(found := bench.read(bench.topics.predictions)) < expected:
        # A commit is acknowledged before its markers are in the partitions, and nobody reads past those.
        assert time.monotonic() < deadline, "what was committed is not to be seen"
        time.sleep(0.1)
    for partition in range(SOURCES):
        offsets = [m.offset() for m in found if m.partition() == partition]
        bench.sent[partition] = cast("int", offsets[-1]) + 1 if offsets else 0
    return replayed


def fates(replayed: list[Replayed]) -> list[Fate]:
    return [each.fate for each in replayed]


def mended(bench: Bench) -> None:
    """More models may be followed from now on."""
    bench.settings = bench.settings.model_copy(update={"limits": LimitSettings(models=50)})


def test_refused_events_are_counted_once_after_what_was_wrong_is_mended(kafka: str) -> None:
    bench = Bench(kafka)  # knows two models, and takes one more
    bench.send(0, *some(5), some(1, model="new-1")[0])
    drain(bench)
    mixed = [*some(2, 5), *some(2, 7, model="new-2"), *some(1, 9)]
    bench.settings = bench.settings.model_copy(update={"limits": LimitSettings(models=2)})
    bench.send(1, some(1, 20, model="new-2")[0], key=b"k", headers={"trace": b"t"})
    bench.send(0, mixed)
    drain(bench)
    assert bench.account() == {"events": 12, "on_time": 8, "late": 0, "calibrating": 1, "dead": 3}

    assert fates(again(bench, dry_run=True)) == [Fate.SENT] * 2
    assert again(bench, confirm=lambda n: n != 2) == []
    mended(bench)
    assert fates(again(bench)) == [Fate.SENT] * 2
    assert fates(again(bench)) == [Fate.DONE] * 2
    drain(bench)
    assert bench.account() == {"events": 15, "on_time": 8, "late": 0, "calibrating": 4, "dead": 3}
    (sent,) = [m for m in bench.read(bench.topics.predictions) if m.key() == b"k" and m.offset()]
    assert dict(header_list(sent)) == {"trace": b"t", "driftline.replay.attempt": b"2"}


def test_who_dies_again_says_how_often_and_stays_dead_after_three_times(kafka: str) -> None:
    bench = Bench(kafka)
    bench.send(0, b"\xffnot json")
    for attempt in (1, 2, 3):
        drain(bench)
        letters = bench.letters(attempt)
        assert {letter.value() for letter in letters} == {b"\xffnot json"}
        said = [dict(header_list(letter))["driftline.error.attempt"] for letter in letters]
        # Letters have no key, so they are spread over partitions, and are not read in the order of their time.
        assert sorted(said, key=repr) == [b"%d" % (i + 1) for i in range(attempt)]
        expected = Fate.EXHAUSTED if attempt == 3 else Fate.SENT
        assert fates(again(bench)) == [Fate.DONE] * (attempt - 1) + [expected]
    account = bench.account()
    assert (account["events"], account["dead"]) == (3, 3)


def test_of_a_letter_that_was_cut_the_original_is_sent_while_it_is_there(kafka: str) -> None:
    bench = Bench(kafka)
    whole = b"x" * 999_000
    bench.send(0, whole, headers=[("h", b"y" * 900)])
    bench.send(1, whole)
    drain(bench)
    deleted = TopicPartition(bench.topics.predictions, 1, 1)
    admin = AdminClient({"bootstrap.servers": kafka})  # its answers do not outlive it
    admin.delete_records([deleted])[deleted].result(20)
    assert sorted(fates(again(bench)), key=str) == [Fate.GONE, Fate.SENT]
    *_, sent = [m for m in bench.read(bench.topics.predictions) if m.partition() == 0]
    assert sent.value() == whole
    assert ("h", b"y" * 900) in header_list(sent)


def test_replays_at_the_same_time_send_once(kafka: str) -> None:
    bench = Bench(kafka)
    bench.send(0, *[b"\xffbad %d" % i for i in range(20)])
    drain(bench)

    def work() -> None:
        with suppress(TransientError):  # fenced by the other
            replay(bench.settings, Filter(limit=0), monotonic=time.monotonic, confirm=bool)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    again(bench)
    values = [m.value() for m in bench.read(bench.topics.predictions)]
    assert sorted(values, key=repr) == sorted(2 * [b"\xffbad %d" % i for i in range(20)], key=repr)


def test_what_another_replay_sends_while_this_one_asks_is_not_sent_again(kafka: str) -> None:
    bench = Bench(kafka)
    bench.send(0, b"\xffbad")
    drain(bench)
    assert fates(again(bench, confirm=lambda _: bool(again(bench)))) == [Fate.DONE]
    assert len(bench.read(bench.topics.predictions)) == 2


def test_a_receipt_behind_an_open_transaction_is_waited_for(kafka: str) -> None:
    bench = Bench(kafka)
    bench.send(0, b"\xffbad")
    drain(bench)
    slow = Producer({"bootstrap.servers": kafka, "transactional.id": bench.topics.dlq})
    slow.init_transactions(10)
    slow.begin_transaction()
    for partition in range(SOURCES):
        slow.produce(bench.topics.dlq, b"x", partition=partition)
    slow.flush(10)
    ends = threading.Timer(4, slow.abort_transaction)
    ends.start()
    assert fates(again(bench)) == [Fate.SENT]
    ends.join()
    assert fates(again(bench)) == [Fate.DONE]


def test_an_operator_looks_at_letters_and_sends_them_again(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(kafka)
    bench.send(0, b"\xffnot json", {"ts": 5, "model": MODEL})
    drain(bench)
    monkeypatch.setattr("monitor.logs.configure", lambda *_args, **_kwargs: None)
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", kafka)
    monkeypatch.setenv("DRIFTLINE_KAFKA__TOPIC_PREFIX", bench.topics.prefix)

    def run(*arguments: str, given: str | None = None) -> Result:
        return CliRunner().invoke(cli.app, ["dlq", *arguments], given, catch_exceptions=False)

    def rows(*arguments: str) -> list[dict[str, Any]]:
        """What is shown, by where it died: letters of one millisecond may be in any partition."""
        found = json.loads(run("show", "--json", *arguments).output)
        return sorted(found, key=lambda row: row["offset"])

    shown = rows("--value")
    assert [row["reason"] for row in shown] == ["not_json", "bad_timestamp"]
    assert shown[0]["value"] == r"\\xffnot json"
    assert len(json.loads(run("show", "--json", "--limit", "1").output)) == 1
    assert json.loads(run("show", "--json", "--since", "2030-01-01").output) == []
    (row,) = json.loads(run("show", "--json", "--since", "1h", "--reason", "not_json").output)
    assert (row["partition"], row["offset"], row["attempt"], row["size"]) == (0, 0, 1, 9)
    assert "bad_timestamp" in run("show", "--stage", "profiler").output

    chosen = ("replay", "--reason", "not_json")
    assert run(*chosen, "--dry-run").output == "would send 1 of 1 messages again\n"
    assert run(*chosen, given="n\n").stdout.endswith("sent 0 of 0 messages again\n")
    sent = run(*chosen, "--yes")
    assert (sent.exit_code, sent.output) == (0, "sent 1 of 1 messages again\n")
    once_more = run(*chosen, "--yes")
    assert once_more.exit_code == 0
    assert "was replayed before" in once_more.output
    shown = rows()
    assert [row["replayed"] for row in shown] == ["yes", ""]


def test_a_reader_says_when_the_topic_is_not_there(kafka: str) -> None:
    bench = Bench(kafka)
    from streams import wiring

    with (
        Reader(wiring.kafka(bench.settings), "x.") as reader,
        pytest.raises(TransientError, match=r"topic x\.dlq is not there"),
    ):
        reader.find("x.dlq", Filter(), monotonic=time.monotonic)
