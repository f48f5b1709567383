"""A stage's runner against a broker in memory, which crashes wherever hypothesis says."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from streams.delivery import FetchLog, Record, Target
from streams.liveness import Lease
from streams.runner import Effects, Incoming, StageRunner
from streams.stage import ChainBreakError, Step
from streams.worker import Binding, Observer
from tests.streams.toy import Adder


class CrashError(BaseException):
    """The process is gone. Not an Exception, so that nothing can go on after it."""


class Broker:
    """Logs and committed offsets that outlive a worker; its life ends at the n-th append or commit."""

    def __init__(self) -> None:
        self.logs: defaultdict[Target, list[Record]] = defaultdict(list)
        self.committed: dict[Target, int] = {}
        self.until_crash = -1
        self.crash_after_effect = False
        self.events: list[str] = []
        self.unanswered = ""

    async def append(self, target: Target, records: Sequence[Record]) -> None:
        if target[0] == self.unanswered:
            await asyncio.get_running_loop().create_future()
        await self._maybe_crash(lambda: self.logs[target].extend(records))
        self.events.append(target[0])

    async def commit(self, offsets: Mapping[Target, int]) -> bool:
        await self._maybe_crash(lambda: self.committed.update(offsets))
        self.events.append("commit")
        return True

    async def _maybe_crash(self, effect: object) -> None:
        assert callable(effect)
        await asyncio.sleep(0)
        self.until_crash -= 1
        if self.until_crash == 0 and not self.crash_after_effect:
            raise CrashError
        effect()
        if self.until_crash == 0:
            raise CrashError

    def table(self) -> dict[bytes, bytes]:
        """What Faust's recovery would leave: the last value of each key."""
        rows: dict[bytes, bytes] = {}
        for partition in (0, 1):
            for key, value in self.logs["changelog", partition]:
                assert key is not None
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
        return rows


def end(reason: str) -> NoReturn:
    raise CrashError(reason)


def worker(
    broker: Broker,
    batch_messages: int = 8,
    rows: dict[bytes, bytes] | None = None,
    adder: type[Adder] = Adder,
) -> tuple[StageRunner, FetchLog]:
    fetch_log = FetchLog(["in"])
    effects = Effects(
        rows=broker.table() if rows is None else rows,
        append=broker.append,
        commit=broker.commit,
        fetch_log=fetch_log,
        lease=Lease(60.0, end),
        observer=Observer(),
        end=end,
    )
    binding = Binding("adder", ("in",), "changelog", adder("out"))
    return StageRunner(binding, effects, batch_messages=batch_messages), fetch_log


def message(at: int, key: str = "a", add: int = 1) -> bytes:
    return json.dumps({"at": at, "key": key, "add": add}).encode()


async def live(
    broker: Broker,
    inputs: Mapping[int, Sequence[bytes]],
    batch: int,
    leave_out: int = -1,
    adder: type[Adder] = Adder,
) -> None:
    """One life of a worker: restore, read on from the committed offsets, stop in order at the end of the input."""
    stage, fetch_log = worker(broker, batch, adder=adder)
    await stage.restore({0, 1})
    work = asyncio.create_task(stage.work())
    feed = asyncio.create_task(read(broker, inputs, stage, fetch_log, leave_out))
    await asyncio.wait({work, feed}, return_when=asyncio.FIRST_COMPLETED)
    while not work.done() and stage.busy:  # noqa: ASYNC110  the runner has no event for "idle"
        await asyncio.sleep(0)
    try:
        if work.done():
            work.result()
        await stage.release()
    finally:
        for task in (work, feed):
            task.cancel()


async def read(
    broker: Broker,
    inputs: Mapping[int, Sequence[bytes]],
    stage: StageRunner,
    fetch_log: FetchLog,
    leave_out: int,
) -> None:
    for partition, values in inputs.items():
        unread = range(broker.committed.get(("in", partition), 0), len(values))
        fetch_log.fetched(("in", partition), unread)
        for offset in unread:
            if offset != leave_out:
                incoming = Incoming("in", partition, offset, values[offset], stage.assignment)
                await stage.take(incoming)
                await stage.commit()  # as the clock would, at any moment


def totals(broker: Broker) -> dict[tuple[int, str], int]:
    rows: dict[tuple[int, str], int] = {}
    for key, value in broker.table().items():
        partition, _, name = key.decode().partition("/")
        if name != "chain":
            rows[int(partition), name] = json.loads(value)[1]
    return rows


@given(
    keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=25),
    crashes=st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=5),
    batch=st.integers(1, 7),
    batch_bytes=st.sampled_from([200, 900_000]),
)
def test_totals_are_exact_wherever_the_process_dies(
    keys: list[str], crashes: list[tuple[int, bool]], batch: int, batch_bytes: int
) -> None:
    inputs = {
        partition: [message(at, key, at + 1) for at, key in enumerate(keys)] for partition in (0, 1)
    }
    broker = Broker()
    for until, after_effect in [*crashes, (-1, False)]:
        broker.until_crash, broker.crash_after_effect = until, after_effect
        with pytest.MonkeyPatch.context() as patch, suppress(CrashError):
            patch.setattr("streams.runner.BATCH_BYTES", batch_bytes)  # 200: flushes between steps
            asyncio.run(live(broker, inputs, batch))
    wanted: defaultdict[tuple[int, str], int] = defaultdict(int)
    for partition in (0, 1):
        for at, key in enumerate(keys):
            wanted[partition, key] += at + 1
    assert totals(broker) == wanted
    assert {key for key, _ in broker.logs["out", 0]} == {key.encode() for key in keys}


async def test_messages_read_together_share_acknowledgements_first_of_outputs_then_of_writes() -> (
    None
):
    broker = Broker()
    await live(broker, {0: [message(at) for at in range(8)]}, batch=8)
    assert broker.events == ["out", "changelog", "commit"]
    assert totals(broker) == {(0, "a"): 8}


async def test_a_message_left_out_ends_the_process_before_anything_after_it_is_applied() -> None:
    broker = Broker()
    with pytest.raises(CrashError, match="never delivered"):
        await live(broker, {0: [message(at) for at in range(5)]}, batch=1, leave_out=3)
    assert totals(broker) == {(0, "a"): 3}
    assert broker.committed.get(("in", 0), 0) <= 3


async def test_a_chain_break_ends_the_process_and_commits_nothing_of_it() -> None:
    broker = Broker()
    with pytest.raises(CrashError, match="ChainBreakError"):
        await live(broker, {0: [message(0), message(2)]}, batch=1)
    assert totals(broker) == {(0, "a"): 1}
    assert broker.committed.get(("in", 0), 0) <= 1


class Counting(Adder):
    """Writes down that the chain broke before it says so."""

    @override
    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        try:
            yield from super().advance(topic, partition, offset, value)
        except ChainBreakError:
            yield Step(writes=((b"break", b"[0, 1]"),))
            raise


async def test_before_a_chain_break_ends_the_process_its_count_and_what_came_before_are_durable() -> (
    None
):
    broker = Broker()
    with pytest.raises(CrashError, match="ChainBreakError"):
        await live(broker, {0: [message(0), message(1), message(3)]}, batch=8, adder=Counting)
    assert totals(broker) == {(0, "a"): 2, (0, "break"): 1}
    assert broker.logs["out", 0]
    assert broker.committed.get(("in", 0), 0) <= 2


async def test_messages_of_an_earlier_assignment_are_left_for_the_next_one() -> None:
    broker = Broker()
    stage, fetch_log = worker(broker)
    await stage.restore({0})
    fetch_log.fetched(("in", 0), [0])
    await stage.take(Incoming("in", 0, 0, message(0), stage.assignment))
    await stage.release()
    await stage.restore({0})
    work = asyncio.create_task(stage.work())
    await asyncio.sleep(0.01)
    work.cancel()
    assert not broker.logs["out", 0]
    assert not broker.committed


async def test_rows_of_a_partition_that_moved_away_do_not_come_back_with_it() -> None:
    rows = {b"0/a": b"[0, 1]", b"0/chain": b"1", b"1/b": b"[0, 1]", b"1/chain": b"1"}
    stage, _ = worker(Broker(), rows=rows)
    stage.keep_only({1})
    assert rows == {b"1/b": b"[0, 1]", b"1/chain": b"1"}


@pytest.mark.parametrize("unanswered", ["out", "changelog"])
async def test_nothing_is_committed_while_an_acknowledgement_is_missing(unanswered: str) -> None:
    broker = Broker()
    broker.unanswered = unanswered
    stage, fetch_log = worker(broker)
    await stage.restore({0})
    fetch_log.fetched(("in", 0), [0])
    await stage.take(Incoming("in", 0, 0, message(0), stage.assignment))
    work = asyncio.create_task(stage.work())
    await asyncio.sleep(0.01)
    await stage.commit()
    assert stage.busy
    assert not broker.committed
    work.cancel()
    with pytest.raises(CrashError):  # a batch that is cut short leaves memory ahead of the table
        await work
