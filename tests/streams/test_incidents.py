"""The incidents stage: fences, restarts at every step, and what goes to which topic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from typing_extensions import override

from monitor import wire
from monitor.errors import TransientError
from monitor.spec import ModelSpec
from monitor.wire import Command, Incident, OutboxItem, Verdicts, Window
from streams.incidents import IncidentStage
from streams.models import Model
from streams.registry import Lookup
from streams.stage import Output, Step
from streams.topics import Topics
from tests.alerting.builders import DAY, MODEL, START, fault, judged, spec, verdict
from tests.alerting.test_notify import FALLING

TOPICS = Topics()


class Known(Lookup):
    """One spec, or none."""

    def __init__(self, known: ModelSpec | None) -> None:
        self._known = known

    @override
    def newest(self, model: str) -> Model | None:
        return Model(self._known, None) if self._known is not None else None

    @override
    def model(self, model: str, bins_id: str) -> Model:
        raise TransientError("the incidents stage asks for no reference")

    @override
    def known(self, model: str, bins_id: str) -> bool:
        return False

    @override
    def count(self) -> int:
        return 0


class Worker:
    """A runner in miniature: it keeps the table, and can die before the writes of its last message."""

    def __init__(self, known: ModelSpec | None = None) -> None:
        self._known = known or spec()
        self.table: dict[bytes, bytes] = {}
        self.sent: list[Output] = []
        self.restart()

    def restart(self) -> None:
        self.stage = IncidentStage(TOPICS, Known(self._known))
        self.stage.restore(0, self.table.items())

    def apply(
        self, offset: int, message: Verdicts | Command, *, dies: bool = False
    ) -> Sequence[Output]:
        topic = TOPICS.commands if isinstance(message, Command) else TOPICS.verdicts
        before = len(self.sent)
        for step in self.stage.advance(topic, 0, offset, wire.encode(message)):
            self.sent += step.outputs
            if dies:
                break
            for key, value in step.writes:
                assert value is not None
                self.table[key] = value
        return self.sent[before:]

    def items(self) -> list[OutboxItem]:
        found = [wire.decode(o.value) for o in self.sent if o.topic == TOPICS.outbox]
        return [item for item in found if isinstance(item, OutboxItem)]


HISTORY = [
    judged(verdict(status="ok"), closes=True),
    judged(fault(), day=1, closes=True),
    judged(fault(), day=2, closes=True),
    judged(fault("ok"), day=3, closes=True),
]


def test_incidents_go_out_by_incident_and_items_by_item_in_the_models_partition() -> None:
    worker = Worker()
    for offset, message in enumerate(HISTORY):
        worker.apply(offset, message)
    incidents = [o for o in worker.sent if o.topic == TOPICS.incidents]
    states = [wire.decode(o.value) for o in incidents]
    assert [s.state for s in states if isinstance(s, Incident)] == ["firing", "resolved"]
    assert len({o.key for o in incidents}) == 1
    assert [(i.target, i.transition) for i in worker.items()] == [
        ("slack", "fired"),
        ("pagerduty", "fired"),
        ("slack", "resolved"),
        ("pagerduty", "resolved"),
    ]
    outbox = [o for o in worker.sent if o.topic == TOPICS.outbox]
    assert [o.key for o in outbox] == [i.id.encode() for i in worker.items()]
    assert {o.partition for o in worker.sent} == {0}


@pytest.mark.parametrize("at", range(len(HISTORY)))
def test_a_crash_before_the_write_repeats_the_same_outputs_and_no_others(at: int) -> None:
    calm, crashed = Worker(), Worker()
    for offset, message in enumerate(HISTORY):
        calm.apply(offset, message)
        if offset == at:
            first = crashed.apply(offset, message, dies=True)
            crashed.restart()
            assert crashed.apply(offset, message) == first
            crashed.restart()
        else:
            crashed.apply(offset, message)
    assert crashed.table == calm.table
    assert {i.id for i in crashed.items()} == {i.id for i in calm.items()}


def test_a_message_at_or_below_the_fence_yields_nothing_even_after_a_restart() -> None:
    worker = Worker()
    for offset, message in enumerate(HISTORY):
        worker.apply(offset, message)
    worker.restart()
    for offset, message in enumerate(HISTORY):
        assert worker.apply(offset, message) == []


def test_a_repeat_at_a_new_offset_yields_nothing() -> None:
    worker = Worker()
    for offset, message in enumerate([*HISTORY, *HISTORY]):
        outputs = worker.apply(offset, message)
        assert offset < len(HISTORY) or outputs == []


def test_commands_have_a_fence_of_their_own_and_approve_what_waits() -> None:
    hook = {"url": "https://ci.example/x", "secret": "env:S"}
    worker = Worker(spec(notify=[], actions={"retrain": {"webhook": hook}}))
    for offset, message in enumerate(FALLING):
        worker.apply(10 + offset, message)
    assert worker.items() == []
    states = [wire.decode(o.value) for o in worker.sent]
    incident = states[-1]
    assert isinstance(incident, Incident)
    order = Command("approve", MODEL, incident.id, "ada", START + 9 * DAY)
    worker.apply(0, order)
    worker.apply(1, order)
    assert [item.action for item in worker.items()] == ["retrain"]


def test_without_a_spec_incidents_are_published_and_nothing_is_sent() -> None:
    stage = IncidentStage(TOPICS, Known(None))
    steps = list(stage.advance(TOPICS.verdicts, 0, 0, wire.encode(judged(fault(), closes=True))))
    assert [o.topic for step in steps for o in step.outputs] == [TOPICS.incidents]


def test_forgotten_partitions_start_from_their_table() -> None:
    worker = Worker()
    worker.apply(0, HISTORY[1])
    worker.stage.forget(0)
    worker.stage.restore(0, worker.table.items())
    assert worker.apply(0, HISTORY[1]) == []


@pytest.mark.parametrize("topic", [TOPICS.verdicts, TOPICS.commands])
@pytest.mark.parametrize(
    "value",
    [wire.encode(Window("m", "1", "", 1, 0, "", 0, "b", 0, b"")), b"somebody else's"],
    ids=["another kind", "no envelope"],
)
def test_a_foreign_message_goes_to_the_dead_letters_and_the_next_is_applied(
    topic: str, value: bytes
) -> None:
    worker = Worker()
    (step,) = worker.stage.advance(topic, 0, 8, value)
    key = f"incidents:{topic}:0:8:incompatible".encode()
    assert step == Step((Output(TOPICS.dlq, 0, key, value),))
    assert worker.apply(9, HISTORY[1]) != []
