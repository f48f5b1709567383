"""What the labels of the demo say, on the way that they take in production, beside pandas and scikit-learn on the same messages."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import pytest
from pyarrow.json import read_json
from sklearn import metrics as oracle

from monitor import reference as references
from monitor import wire
from monitor.columns import from_batch
from monitor.events import Event, Limits, decode_message, no_aliases
from monitor.labels import checked, message_rows
from monitor.spec import parse_spec
from monitor.tables import Row, value_text
from monitor.wire import Performance
from streams.demo.delay import DelayModel
from streams.demo.flights import Flights
from streams.demo.replay import MODEL, VERSION, Batch, Message, reference_table, served
from streams.models import Model
from streams.performance import PerformanceStage
from streams.topics import Topics
from tests.monitor.stored import endpoint
from tests.streams.builders import Known
from tests.streams.test_evaluator import PARTITIONS, World, fresh, settle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DAY = 86_400_000
WEEK = 7 * DAY
SPEC = {
    "model": MODEL,
    "task": "binary",
    "features": {"origin": {"type": "categorical"}},
    "segments": ["origin"],
    "windows": {"pane": "1d", "sizes": ["1d", "7d"]},
    "labels": {"expected_delay": "1d"},
}
END = int(np.datetime64("2014-01-09", "ms").astype(np.int64))  # of the last week
MS, EPOCH = pd.Timedelta("1ms"), pd.Timestamp(0, tz="UTC")
Place = tuple[int, str, str, int]  # size, version, segment, start
Numbers = dict[str, float]


@pytest.fixture(scope="module")
def year(flights: Flights, model: DelayModel) -> list[Batch]:
    return list(served(flights, model))


@pytest.fixture(scope="module")
def measured(
    year: list[Batch], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Place, Performance]]:
    """The last message of each window, once all is stored and nothing is left to do."""
    with endpoint(tmp_path_factory.mktemp("flights")) as settings:
        for world in fresh(settings.url, "flights"):
            _store(world, year)
            world.close_windows(END, MODEL)
            settle(world, world.evaluator(parse_spec(SPEC, origin="test")))
            yield {(m.size_ms, m.version, m.segment, m.start_ms): m for m in world.emitted}


def _store(world: World, year: list[Batch]) -> None:
    """What profiler and sink make of the messages, spread over the partitions."""
    scored = [_scored(value) for value in _values(batch.events for batch in year)]
    labels = [_label(value) for value in _values(batch.labels for batch in year)]
    for p in range(PARTITIONS):
        world.put("predictions", "scored", p, scored[p::PARTITIONS])
        world.put("labels", "labels", p, [(*row, i) for i, row in enumerate(labels[p::PARTITIONS])])


def _scored(value: bytes) -> Row:
    (event,) = decode_message(value, {}, Limits(), now_ms=END)
    assert isinstance(event, Event), event
    segments = [f"origin={(event.features or {})['origin']}"]
    said = value_text(event.prediction)
    return (event.model, event.ts_ms, event.id, event.version, segments, said, event.score)


def _label(value: bytes) -> Row:
    (row,) = message_rows(value)
    assert isinstance(row, dict), row
    label = checked(row, arrival_ms=0, aliases=no_aliases)
    return (label.model, label.ts_ms, label.id, label.text)


def _values(parts: Iterable[Iterable[Message]]) -> Iterator[bytes]:
    return (message.value for part in parts for message in part)


@pytest.fixture(scope="module")
def plain(year: list[Batch]) -> pd.DataFrame:
    """Each prediction with its label, or without one. Nothing of ours has read it."""
    events = _frame(batch.events for batch in year)
    labels = _frame(batch.labels for batch in year)
    return events.merge(labels[["id", "label"]], how="left", on="id", validate="one_to_one")


def _frame(parts: Iterable[Iterable[Message]]) -> pd.DataFrame:
    read = read_json(io.BytesIO(b"\n".join(_values(parts)))).flatten().to_pandas()
    return read.assign(ts=pd.to_datetime(read.ts, utc=True))


def by_oracle(rows: pd.DataFrame, frequency: str, *columns: str) -> dict[Place, Numbers]:
    """What pandas and scikit-learn say of each window, by version and the other columns."""
    size = pd.Timedelta(frequency) // MS
    return {
        (size, version, "".join(f"origin={name}" for name in origin), (at - EPOCH) // MS): of_rows(
            window
        )
        for (version, *origin, at), window in rows.groupby(
            ["version", *columns, rows.ts.dt.floor(frequency)]
        )
    }


def of_rows(window: pd.DataFrame) -> Numbers:
    known = window.dropna(subset="label")
    y, said, score = (known[name].to_numpy() for name in ("label", "prediction", "score"))
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(y, said, average="binary")
    return {
        "predictions": len(window),
        "labelled": len(known),
        "errors": int((y != said).sum()),
        "accuracy": oracle.accuracy_score(y, said),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, said),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "roc_auc": oracle.roc_auc_score(y, score),
        "pr_auc": oracle.average_precision_score(y, score),
        "log_loss": oracle.log_loss(y, score),
        "brier": oracle.brier_score_loss(y, score),
    }


def test_each_week_and_day_says_what_pandas_and_scikit_learn_say(
    measured: dict[Place, Performance], plain: pd.DataFrame
) -> None:
    weeks, by_origin = by_oracle(plain, "7D"), by_oracle(plain, "7D", "features.origin")
    expected = weeks | by_origin | by_oracle(plain, "1D")
    assert (len(weeks), len(by_origin), len(expected)) == (50, 150, 543)
    assert {place for place in measured if place[0] == WEEK or not place[2]} == expected.keys()
    for place, wanted in expected.items():
        message = measured[place]
        counts = {name: getattr(message, name) for name in ("predictions", "labelled", "errors")}
        said = counts | message.metrics
        assert {name: said[name] for name in wanted} == pytest.approx(wanted, abs=1e-9), place
    assert sum(expected[place]["predictions"] for place in weeks) == len(plain) == 309_772
    assert sum(expected[place]["labelled"] for place in weeks) == plain.label.count() == 300_948


def of_month(measured: dict[Place, Performance], month: str) -> tuple[float, float]:
    """Share of late flights and of wrong predictions, from the days of a month."""
    days = np.arange(np.datetime64(month, "M"), np.datetime64(month, "M") + 1, dtype="M8[D]")
    said = [measured[DAY, VERSION, "", int(ms)] for ms in days.astype("M8[ms]").astype(np.int64)]
    labelled = sum(day.labelled for day in said)
    late = sum(day.metrics["base_rate"] * day.labelled for day in said)
    return late / labelled, sum(day.errors for day in said) / labelled


def test_the_delays_of_december_are_seen_in_the_labels(measured: dict[Place, Performance]) -> None:
    assert of_month(measured, "2013-11") == pytest.approx((0.174, 0.326), abs=5e-4)
    assert of_month(measured, "2013-12") == pytest.approx((0.325, 0.353), abs=5e-4)


def test_december_is_no_alarm_since_days_of_january_differ_by_more(
    measured: dict[Place, Performance], flights: Flights, model: DelayModel
) -> None:
    january = reference_table(flights, model).to_batches()
    windows = {"pane": "1h", "sizes": ["1d", "7d"]}
    spec = parse_spec({**SPEC, "windows": windows}, origin="test")
    reference = references.build(spec, lambda: (from_batch(b, origin="January") for b in january))
    stage = PerformanceStage(Topics(), 1, Known(Model(spec, reference)))
    stage.restore(0, ())
    alarms = set()
    for offset, message in enumerate(sorted(measured.values(), key=lambda m: m.start_ms)):
        for step in stage.advance(Topics().performance, 0, offset, wire.encode(message)):
            for output in step.outputs:
                found = wire.decode(output.value)
                assert isinstance(found, wire.Verdicts)
                month = str(np.datetime64(found.start_ms, "ms"))[:7]
                breaches = [v.kind for v in found.verdicts if v.status == "breach"]
                alarms |= {(month, found.version, kind) for kind in breaches}
    assert ("2013-09", "8", "canary") in alarms
    assert not [alarm for alarm in alarms if alarm[0] > "2013-10"], alarms
