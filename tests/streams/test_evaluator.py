from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import REGISTRY
from sklearn import metrics as oracle

from monitor import metrics, store, truth, wire
from monitor.errors import TransientError
from monitor.settings import ClickHouseSettings, KafkaSettings, Settings
from monitor.spec import ModelSpec, parse_spec
from monitor.store import Store
from monitor.tables import TableName, to_table
from monitor.truth import Topic, Truth
from monitor.versions import OTHER_VERSION
from monitor.wire import Performance
from streams import topics as topics_
from streams import wiring
from streams.evaluator import MAX_REST_S, TOPICS, Broker, Evaluator, Progress, rest_s
from streams.sink import sink_group
from streams.supervisor import free_port
from streams.topics import partition_of
from tests.monitor.stored import endpoint

HOUR = 3_600_000
DAY = 24 * HOUR
START = 1_359_676_800_000  # 2013-02-01T00:00Z
MODEL = "flight-delay"
PARTITIONS = 2
SPEC = {
    "model": MODEL,
    "task": "binary",
    "windows": {"pane": "1h", "sizes": ["6h", "1d"]},
    "labels": {"expected_delay": "12h"},
}


@dataclass(frozen=True)
class Prediction:
    id: str
    ts: int
    version: str
    carrier: str
    prediction: str
    score: float
    model: str = MODEL


@dataclass(frozen=True)
class Label:
    id: str
    ts: int
    label: str
    model: str = MODEL


@dataclass
class World:
    """What Kafka and the sink are to the evaluator: topics with ends, of which a part is stored."""

    store: Store
    cluster: str = "here"
    ends: dict[tuple[Topic, int], int] = field(default_factory=dict)
    stored: dict[tuple[Topic, int], int] = field(default_factory=dict)
    emitted: list[Performance] = field(default_factory=list)

    def __post_init__(self) -> None:
        topics: tuple[Topic, ...] = ("labels", "scored")
        for topic in topics:
            for partition in range(PARTITIONS):
                self.ends[topic, partition] = self.stored[topic, partition] = 0

    def progress(self) -> Progress:
        names = {topic: f"driftline.{topic}" for topic in TOPICS}
        return Progress(self.cluster, dict(self.ends), dict(self.stored), names)

    def emit(self, messages: Sequence[Performance]) -> None:
        self.emitted += messages

    def evaluator(self, *chosen: ModelSpec) -> Evaluator:
        specs = {spec.model: spec for spec in chosen or (parse_spec(SPEC, origin="test"),)}
        return Evaluator(
            Truth(self.store.link, versions=3), lambda: specs, self.progress, self.emit
        )

    def produce(self, topic: Topic, partition: int, n: int = 1) -> None:
        self.ends[topic, partition] += n

    def store_predictions(self, rows: Sequence[Prediction], partition: int = 0) -> None:
        stored = [
            (p.model, p.ts, p.id, p.version, [f"carrier={p.carrier}"], p.prediction, p.score)
            for p in rows
        ]
        self.put("predictions", "scored", partition, stored)

    def store_labels(self, rows: Sequence[Label], partition: int = 0) -> None:
        at = self.stored["labels", partition]
        stored = [(row.model, row.ts, row.id, row.label, at + i) for i, row in enumerate(rows)]
        self.put("labels", "labels", partition, stored)

    def put(
        self,
        table: TableName,
        topic: Topic,
        partition: int,
        rows: Sequence[tuple[object, ...]],
    ) -> None:
        at = self.stored[topic, partition]
        places = [(topic, partition, at + i, *row[:3]) for i, row in enumerate(rows)]
        self.store.append(table, to_table(table, rows), token=f"{table}{partition}{at}{rows[:1]}")
        self.store.append(
            "arrivals", to_table("arrivals", places), token=f"{topic}{partition}{at}{rows[:1]}"
        )
        self.stored[topic, partition] = at + len(rows)
        self.ends[topic, partition] = max(self.ends[topic, partition], at + len(rows))

    def close_windows(self, until: int, model: str = MODEL) -> None:
        """The detector closed every window that ends by ``until``."""
        empty = ((), *(0,) * 8, None, None, ())
        row = (model, "7", "", HOUR, until - HOUR, "", "", 1, "b", 1, 0, *empty)
        self.store.append("windows", to_table("windows", [row]), token=f"w{model}{until}")

    def finals(self, size: int | None = None) -> list[Performance]:
        return [m for m in self.emitted if m.final and size in (None, m.size_ms)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with endpoint(tmp_path_factory.mktemp("evaluator")) as settings:
        yield settings.url


@pytest.fixture
def world(server: str, request: pytest.FixtureRequest) -> Iterator[World]:
    yield from fresh(server, request.node.name)


def fresh(server: str, name: str) -> Iterator[World]:
    safe = "".join(c if c.isalnum() else "_" for c in name)[:60]
    settings = ClickHouseSettings(url=server, database=f"t_{safe}")
    store.migrate(settings)
    link = store.connect(settings)
    yield World(link)
    link.close()


def settle(world: World, evaluator: Evaluator) -> None:
    """Step until there is nothing to do; the look at what was closed needs a round of its own."""
    idle = 0
    while idle < 2:
        idle = idle + 1 if evaluator.step() == 0 else 0


def history(hours: int, rng: np.random.Generator) -> tuple[list[Prediction], list[Label]]:
    """Ten predictions an hour, each labelled up to 10 h later or never; labels in the order of time."""
    predictions, labels = [], []
    for i in range(hours * 10):
        ts = START + i * (HOUR // 10)
        truth = int(rng.random() < 0.3)
        score = float(np.clip(0.3 * rng.random() + 0.5 * truth, 0, 1))
        version = "8" if ts > START + DAY and i % 2 else "7"
        carrier = "UA" if i % 3 else "B6"
        said = str(int(score > 0.4))
        predictions.append(Prediction(f"p{i}", ts, version, carrier, said, score))
        if rng.random() < 0.9:
            labels.append(Label(f"p{i}", ts + int(rng.integers(HOUR, 10 * HOUR)), str(truth)))
    return predictions, sorted(labels, key=lambda label: label.ts)


def test_windows_say_what_a_plain_loop_over_the_events_says(world: World) -> None:
    predictions, labels = history(60, np.random.default_rng(1))
    world.store_predictions(predictions)
    world.store_labels(labels)
    world.close_windows(START + 2 * DAY)
    settle(world, world.evaluator())
    truth = {label.id: label for label in labels}
    days = [m for m in world.finals(DAY) if m.segment == "carrier=UA" and m.version == "7"]
    assert [m.start_ms for m in days] == [START, START + DAY]
    expected = [
        p
        for p in predictions
        if p.version == "7" and p.carrier == "UA" and START <= p.ts < START + DAY
    ]
    known = [p for p in expected if p.id in truth]
    day = days[0]
    assert (day.predictions, day.labelled) == (len(expected), len(known))
    assert day.revision == len(known)
    wrong = sum(p.prediction != truth[p.id].label for p in known)
    assert day.errors == wrong
    assert day.metrics["accuracy"] == pytest.approx(1 - wrong / len(known))
    brier = sum((p.score - int(truth[p.id].label)) ** 2 for p in known) / len(known)
    assert day.metrics["brier"] == pytest.approx(brier)
    assert day.metrics["label_coverage"] == len(known) / len(expected)
    delays = sorted(truth[p.id].ts - p.ts for p in known)
    assert day.label_delay_p50_ms == delays[(len(delays) + 1) // 2 - 1]
    assert {m.segment for m in world.finals(DAY)} == {"", "carrier=UA", "carrier=B6"}


Place = tuple[str, str, int, int]


def place(m: Performance) -> Place:
    return m.version, m.segment, m.size_ms, m.start_ms


def replay(world: World, rng: np.random.Generator) -> None:
    """Everything is in Kafka; the sink stores it bit by bit, in any order, and the evaluator restarts now and then."""
    predictions, labels = history(72, np.random.default_rng(2))
    evaluator = world.evaluator()
    left: list[tuple[int, list[Prediction], list[Label]]] = [
        (p, predictions[p::PARTITIONS], labels[p::PARTITIONS]) for p in range(PARTITIONS)
    ]
    for p, scored, labelled in left:
        world.produce("scored", p, len(scored))
        world.produce("labels", p, len(labelled))
    world.close_windows(START + 3 * DAY)
    while any(scored or labelled for _, scored, labelled in left):
        p, scored, labelled = left[rng.integers(len(left))]
        n = int(rng.integers(1, 400))
        if scored and (rng.random() < 0.5 or not labelled):
            world.store_predictions(scored[:n], p)
            del scored[:n]
        elif labelled:
            world.store_labels(labelled[:n], p)
            del labelled[:n]
        evaluator.step()
        if rng.random() < 0.2:
            evaluator = world.evaluator()
    settle(world, evaluator)


def test_final_windows_are_the_same_however_the_log_was_cut(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_words: list[dict[Place, Performance]] = []
    for seed in range(4):
        monkeypatch.setattr(truth, "MANY_IDS", (0, 10_000)[seed % 2])  # both ways to find an id
        world = next(fresh(server, f"cut{seed}"))
        replay(world, np.random.default_rng(seed))
        world.store.close()
        last = {place(m): m for m in world.finals()}
        first = {place(m): m for m in reversed(world.finals())}
        assert first == last  # nothing was final too early
        last_words.append(last)
    assert len(last_words[0]) > 100
    assert all(words == last_words[0] for words in last_words)


def test_finals_come_once_and_in_the_order_of_start(world: World) -> None:
    predictions, labels = history(72, np.random.default_rng(3))
    evaluator = world.evaluator()
    for hour in range(0, 84, 7):
        now = START + hour * HOUR
        before = now - 7 * HOUR
        if part := [p for p in predictions if before <= p.ts < now]:
            world.store_predictions(part)
        if due := [label for label in labels if before <= label.ts < now]:
            world.store_labels(due)
        world.close_windows(now // HOUR * HOUR)
        settle(world, evaluator)
    for size in (HOUR, 6 * HOUR, DAY):
        starts = [m.start_ms for m in world.finals(size) if (m.version, m.segment) == ("7", "")]
        assert len(starts) > 1
        assert starts == sorted(set(starts))


def test_a_window_is_not_final_before_its_labels_are_due(world: World) -> None:
    evaluator = world.evaluator()
    world.store_predictions([Prediction("a", START, "7", "UA", "1", 0.9)])
    world.store_labels([Label("a", START + HOUR, "1")])
    world.close_windows(START + 2 * DAY)
    settle(world, evaluator)
    assert not world.finals()
    assert [m.size_ms for m in world.emitted] == [6 * HOUR] * 2 + [DAY] * 2
    world.store_labels([Label("other", START + 18 * HOUR - 1, "0")])
    settle(world, evaluator)
    assert {m.size_ms for m in world.finals()} == {HOUR}  # 1 h is over by 12 h, 6 h is not quite
    world.store_labels([Label("another", START + 18 * HOUR, "0")])
    settle(world, evaluator)
    assert {m.size_ms for m in world.finals()} == {HOUR, 6 * HOUR}


def test_a_window_is_not_final_before_the_detector_closed_it_and_its_predictions_are_joined(
    world: World,
) -> None:
    evaluator = world.evaluator()
    world.store_predictions([Prediction("a", START, "7", "UA", "1", 0.9)])
    world.store_labels([Label("a", START + 5 * DAY, "1")])
    settle(world, evaluator)
    assert not world.finals()
    world.produce("scored", 1)  # in Kafka before the window was closed, and not stored yet
    world.close_windows(START + 2 * DAY)
    settle(world, evaluator)
    assert not world.finals()
    world.store_predictions([Prediction("b", START + 1, "7", "UA", "1", 0.9)], partition=1)
    settle(world, evaluator)
    (day,) = [m for m in world.finals(DAY) if m.segment == ""]
    assert (day.predictions, day.labelled) == (2, 1)


def test_a_window_without_labels_becomes_final_with_no_coverage(world: World) -> None:
    world.store_predictions([Prediction("a", START, "7", "UA", "1", 0.9)])
    world.store_labels([Label("unknown", START + 5 * DAY, "1")])
    world.close_windows(START + 2 * DAY)
    settle(world, world.evaluator())
    (day,) = [m for m in world.finals(DAY) if m.segment == ""]
    assert (day.labelled, day.revision, day.metrics) == (0, 0, {"label_coverage": 0.0})


def test_a_producer_of_many_versions_gets_one_window_for_all_but_the_busiest(world: World) -> None:
    """Three are followed here: of 40 versions with one prediction each the first by name takes the place that is left."""
    known = [Prediction(f"k{i}", START + i, "78"[i % 2], "UA", "1", 0.9) for i in range(8)]
    hostile = [Prediction(f"h{i}", START + i, f"v{i:02}", "UA", "0", 0.1) for i in range(40)]
    later = [Prediction("z", START + DAY, "v07", "UA", "0", 0.1)]
    world.store_predictions([*known, *hostile, *later])
    world.store_labels([Label(p.id, START + DAY + HOUR, "1") for p in (*known, *hostile, *later)])
    settle(world, world.evaluator())
    days = [m for m in world.emitted if m.size_ms == DAY and m.start_ms == START]
    wanted = {"7": (4, 4, 0), "8": (4, 4, 0), "v00": (1, 1, 1), OTHER_VERSION: (39, 39, 39)}
    for segment in ("", "carrier=UA"):
        said = {
            m.version: (m.predictions, m.labelled, m.errors) for m in days if m.segment == segment
        }
        assert said == wanted
    assert {m.version for m in world.emitted if m.start_ms == START + DAY} == {"v07"}


def test_a_version_that_calls_itself_other_is_counted_with_the_others(world: World) -> None:
    busy = [Prediction(f"b{i}", START + i, "789"[i % 3], "UA", "1", 0.9) for i in range(9)]
    rest = [Prediction(f"r{i}", START + i, (OTHER_VERSION, "v")[i % 2], "UA", "0", 0.1) for i in range(4)]  # fmt: skip
    world.store_predictions([*busy, *rest])
    world.store_labels([Label(p.id, START + HOUR, "1") for p in (*busy, *rest)])
    settle(world, world.evaluator())
    (day,) = [
        m for m in world.emitted if (m.size_ms, m.version, m.segment) == (DAY, OTHER_VERSION, "")
    ]
    assert (day.predictions, day.labelled, day.errors) == (4, 4, 4)


def test_a_late_label_emits_the_window_again_with_a_higher_revision(world: World) -> None:
    evaluator = world.evaluator()
    world.store_predictions([Prediction(i, START, "7", "UA", "1", 0.9) for i in "ab"])
    world.store_labels([Label("a", START + HOUR, "1"), Label("x", START + 5 * DAY, "1")])
    world.close_windows(START + 2 * DAY)
    settle(world, evaluator)
    world.store_labels([Label("b", START + 6 * DAY, "0"), Label("a", START + 6 * DAY, "0")])
    settle(world, evaluator)
    days = [m for m in world.finals(DAY) if m.segment == ""]
    assert [(m.revision, m.labelled, m.errors) for m in days] == [(1, 1, 0), (3, 2, 2)]


def test_the_newest_label_wins_in_whatever_order_they_arrive(world: World) -> None:
    world.store_predictions([Prediction("a", START, "7", "UA", "1", 0.9)])
    world.store_labels([Label("a", START + 2 * HOUR, "1")])
    evaluator = world.evaluator()
    settle(world, evaluator)
    older = [Label("x", START, "0"), Label("a", START + HOUR, "0")]
    world.store_labels(older, partition=1)  # read later, and at a higher position
    settle(world, evaluator)
    assert [(m.errors, m.revision) for m in world.emitted if m.size_ms == DAY][-1] == (0, 2)


def test_labels_gather_while_the_evaluator_rests_unless_it_is_behind() -> None:
    assert rest_s(0.1, 1.0, behind=False) == pytest.approx(0.9)
    assert rest_s(2.0, 1.0, behind=False) == 6.0
    assert rest_s(20.0, 1.0, behind=False) == MAX_REST_S
    assert rest_s(20.0, 1.0, behind=True) == 0.0


TASKS = ("binary", "multiclass", "regression")
SETS = 201  # a day of a model is one


@dataclass(frozen=True)
class LabelSet:
    """A day of predictions of one model, what is sent as labels, and which of it is the truth in the end."""

    task: str
    start: int
    predictions: list[Prediction]
    labels: list[Label]
    truth: dict[str, str]


def said_and_true(task: str, score: float, rng: np.random.Generator) -> tuple[str, list[str]]:
    """A prediction, and three labels that it may get."""
    if task == "binary":
        return str(int(score > 0.5)), [str(int(rng.random() < score)) for _ in range(3)]
    if task == "multiclass":
        return f"c{rng.integers(4)}", [f"c{rng.integers(5)}" for _ in range(3)]
    return repr(score * 10), [repr(score * 10 + float(rng.normal())) for _ in range(3)]


def label_set(i: int, rng: np.random.Generator) -> LabelSet:
    """Two versions; a third of the labels is sent twice, a third corrected up to twice, and some come weeks late or never."""
    task, start = TASKS[i % len(TASKS)], START + i // len(TASKS) * DAY
    predictions, labels, truth = [], [], {}
    for j in range(60):
        name, ts, score = f"{i}-{j}", start + int(rng.integers(DAY)), float(rng.random())
        said, words = said_and_true(task, score, rng)
        carrier, version = "UA" if j % 3 else "B6", "78"[int(rng.random() < 0.3)]
        predictions.append(Prediction(name, ts, version, carrier, said, score, task))
        if rng.random() < 0.1:
            continue
        late = 30 * DAY if rng.random() < 0.1 else 0
        times = ts + late + np.cumsum(rng.integers(1, 5 * HOUR, 3))
        newest = int(rng.choice([0, 0, 0, 1, 2]))
        sent = [Label(name, int(times[k]), words[k], task) for k in range(newest + 1)]
        labels += sent + (sent[:1] if rng.random() < 0.33 else [])
        truth[name] = words[newest]
    return LabelSet(task, start, predictions, labels, truth)


def by_oracle(task: str, rows: list[tuple[str, str, float]]) -> dict[str, float]:
    """What scikit-learn says about (label, prediction, score)."""
    y, p, score = ([row[i] for row in rows] for i in range(3))
    if task == "regression":
        a, b = np.array(y, dtype=float), np.array(p, dtype=float)
        return {
            "mae": oracle.mean_absolute_error(a, b),
            "rmse": oracle.root_mean_squared_error(a, b),
            **({"r2": oracle.r2_score(a, b)} if len(a) > 1 else {}),
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without labels
        found = {
            "accuracy": oracle.accuracy_score(y, p),
            "balanced_accuracy": oracle.balanced_accuracy_score(y, p),
        }
        if task == "multiclass":
            return found | {"f1": oracle.f1_score(y, p, average="macro", zero_division=0.0)}
    if len(set(y)) == 2:
        return found | {
            "roc_auc": oracle.roc_auc_score(y, score),
            "pr_auc": oracle.average_precision_score(y, score, pos_label="1"),
            "log_loss": oracle.log_loss(y, score, labels=["0", "1"]),
            "brier": oracle.brier_score_loss(y, score, pos_label="1"),
        }
    return {"accuracy": found["accuracy"]}


def last_words(
    server: str, name: str, sets: Sequence[LabelSet], rng: np.random.Generator
) -> dict[tuple[str, Place], Performance]:
    """The last message of each window after all was stored in random order, and the evaluator restarted now and then."""
    world = next(fresh(server, name))
    waiting: dict[str, list[Any]] = {
        "scored": [p for each in sets for p in each.predictions],
        "labels": [x for each in sets for x in each.labels],
    }
    for rows in waiting.values():
        rng.shuffle(rows)
    daily = {"windows": {"pane": "1d", "sizes": ["1d"]}}
    specs = [parse_spec({**SPEC, **daily, "model": t, "task": t}, origin="test") for t in TASKS]
    evaluator = world.evaluator(*specs)
    while any(waiting.values()):
        topic = rng.choice([topic for topic, rows in waiting.items() if rows])
        n = int(rng.integers(1_000, 6_000))
        part, waiting[topic] = waiting[topic][:n], waiting[topic][n:]
        store_rows = world.store_predictions if topic == "scored" else world.store_labels
        store_rows(part, int(rng.integers(PARTITIONS)))
        if rng.random() < 0.5:
            evaluator.step()
            evaluator = world.evaluator(*specs)
    for spec in specs:
        world.close_windows(START + SETS * DAY, spec.model)
    settle(world, evaluator)
    world.store.close()
    return {(m.model, place(m)): m for m in world.finals()}


def test_two_hundred_label_sets_in_any_order_end_as_scikit_learn_says(server: str) -> None:
    rng = np.random.default_rng(8)
    sets = [label_set(i, rng) for i in range(SETS)]
    found = last_words(server, "sets1", sets, np.random.default_rng(1))
    compared = 0
    for each in sets:
        for version in "78":
            rows = [
                (each.truth[p.id], p.prediction, p.score)
                for p in each.predictions
                if p.id in each.truth and p.version == version
            ]
            message = found[each.task, (version, "", DAY, each.start)]
            expected = by_oracle(each.task, rows)
            metrics = {name: message.metrics.get(name) for name in expected}
            assert metrics == pytest.approx(expected, abs=1e-9), (each.task, version, each.start)
            compared += message.labelled
    assert compared == sum(len(each.truth) for each in sets)
    again = last_words(server, "sets2", sets, np.random.default_rng(2))
    assert {key: again[key] for key in found if again[key] != found[key]} == {}
    assert again.keys() == found.keys()


def test_a_crash_before_the_cursor_is_saved_repeats_the_same_messages(world: World) -> None:
    predictions, labels = history(48, np.random.default_rng(4))
    world.store_predictions(predictions)
    world.store_labels(labels)
    world.close_windows(START + 2 * DAY)

    class CrashError(Exception):
        pass

    kept: list[Performance] = []

    def crash_after(messages: Sequence[Performance]) -> None:
        kept.extend(messages)
        if any(m.final for m in messages):
            raise CrashError

    spec = parse_spec(SPEC, origin="test")
    dying = Evaluator(
        Truth(world.store.link, versions=3), lambda: {MODEL: spec}, world.progress, crash_after
    )
    with pytest.raises(CrashError):
        settle(world, dying)
    settle(world, world.evaluator())
    repeated = {place(m): m for m in world.finals()}
    finals = [m for m in kept if m.final]
    assert finals
    assert all(repeated[place(m)] == m for m in finals)


def test_another_broker_starts_the_positions_anew(world: World) -> None:
    world.store_predictions([Prediction("a", START, "7", "UA", "1", 0.9)])
    settle(world, world.evaluator())
    world.cluster = "there"
    world.stored = dict.fromkeys(world.stored, 0)
    world.ends = dict.fromkeys(world.ends, 0)
    world.store_labels([Label("a", START + HOUR, "0")])
    settle(world, world.evaluator())
    assert {m.errors for m in world.emitted} == {1}


def test_a_model_without_a_task_is_joined_and_not_measured(world: World) -> None:
    world.store_predictions([Prediction("a", START, "7", "UA", "1", 0.9)])
    world.store_labels([Label("a", START + HOUR, "0")])
    settle(world, world.evaluator(parse_spec({"model": MODEL}, origin="test")))
    assert world.emitted == []
    assert Truth(world.store.link, versions=3).outcomes(MODEL, START, START + 1).n == 1


def test_labels_are_complete_up_to_the_slowest_of_the_partitions_that_had_some(
    world: World,
) -> None:
    evaluator = world.evaluator()
    world.store_predictions([Prediction("a", START, "7", "UA", "1", 0.9)])
    world.close_windows(START + 2 * DAY)
    world.store_labels([Label("a", START + HOUR, "1")], partition=1)
    world.store_labels([Label("x", START + 5 * DAY, "1")], partition=0)
    settle(world, evaluator)
    assert not world.finals()
    world.store_labels([Label("y", START + 5 * DAY, "1")], partition=0)  # and none in the other
    settle(world, evaluator)
    assert world.finals(DAY)


@dataclass(frozen=True)
class Fate:
    """A story of a prediction, ``P``, and of labels: whose, how many hours after it was made, and what they say. Then what its day says."""

    name: str
    story: str
    counted: dict[str, int]
    day: tuple[int, int, int] | None = None  # labelled, revision, errors


LATE = 180 * 24  # hours of the retention
FATES = [
    Fate("joined", "P, a 1 1", {"joined": 1}, (1, 1, 0)),
    Fate("corrected", "P, a 1 1, a 2 0", {"joined": 1, "corrected": 1}, (1, 2, 1)),
    Fate("corrected, the older comes later", "P, a 2 0, a 1 1", {"joined": 1, "corrected": 1}, (1, 2, 1)),
    Fate("duplicate", "P, a 1 0, a 1 0", {"joined": 1, "duplicate": 1}, (1, 1, 1)),
    Fate("duplicate that says something else", "P, a 1 1, a 1 0", {"joined": 1, "duplicate": 1}, (1, 1, 1)),
    Fate("early", "a 1 0, P", {"unmatched": 1, "found_later": 1}, (1, 1, 1)),
    Fate("early twice", "a 1 1, a 2 0, P", {"unmatched": 2, "found_later": 1}, (1, 2, 1)),
    Fate("early, corrected", "a 1 1, P, a 2 0", {"unmatched": 1, "found_later": 1, "corrected": 1}, (1, 2, 1)),
    Fate("unknown", "P, b 1 0", {"unmatched": 1}),
    Fate("late", f"P, a {LATE} 0", {"joined": 1}, (1, 1, 1)),
    Fate("too late", f"P, a {LATE + 1} 0", {"unmatched": 1}),
    Fate("too late, early", f"a {LATE + 1} 0, P", {"unmatched": 1}),
    Fate("of a clock that is behind", "P, a -24 0", {"joined": 1}, (1, 1, 1)),
    Fate("too early", "P, a -25 0", {"unmatched": 1}),
    Fate("too early, early", "a -25 0, P", {"unmatched": 1}),
]  # fmt: skip


def tell(world: World, fate: Fate, at: int, after_each: Callable[[], None]) -> None:
    for word in fate.story.split(", "):
        if word == "P":
            world.store_predictions([Prediction(f"a{at}", at, "7", "UA", "1", 0.9)])
        else:
            name, hours, label = word.split()
            world.store_labels([Label(f"{name}{at}", at + int(hours) * HOUR, label)])
        after_each()


def day_of(world: World, at: int) -> tuple[int, int, int] | None:
    days = [m for m in world.emitted if (m.size_ms, m.start_ms, m.segment) == (DAY, at, "")]
    return (days[-1].labelled, days[-1].revision, days[-1].errors) if days else None


def test_each_label_has_a_fate_and_is_counted_by_it(world: World) -> None:
    evaluator = world.evaluator()
    for i, fate in enumerate(FATES):
        at, before = START + i * DAY, counted()
        tell(world, fate, at, lambda: settle(world, evaluator))
        assert day_of(world, at) == fate.day, fate.name
        seen = {name: n - before[name] for name, n in counted().items() if n > before[name]}
        assert seen == fate.counted, fate.name


def test_the_fate_of_a_label_does_not_depend_on_what_it_is_joined_with(world: World) -> None:
    before = counted()
    for i, fate in enumerate(FATES):
        tell(world, fate, START + i * DAY, lambda: None)
    settle(world, world.evaluator())
    seen = {name: n - before[name] for name, n in counted().items()}
    assert seen == {"joined": 10, "corrected": 4, "duplicate": 2, "unmatched": 5, "found_later": 0}
    for i, fate in enumerate(FATES):
        assert day_of(world, START + i * DAY) == fate.day, fate.name


def test_what_is_not_joined_yet_is_told_as_lag(world: World) -> None:
    evaluator = world.evaluator()
    world.ends["labels", 0], world.stored["labels", 0] = 7, 4
    evaluator.step()
    labels = {"process": "evaluator", "topic": "driftline.labels"}
    for partition, lag in (("0", 3), ("1", 0)):
        series = {**labels, "partition": partition}
        assert REGISTRY.get_sample_value("driftline_consumer_lag_messages", series) == lag


def counted() -> dict[str, float]:
    return {fate: metrics.LABELS.labels(fate)._value.get() for fate in metrics.LABEL_FATES}


def asked(question: Callable[[], Progress]) -> Progress:
    """The answer, as the process gets it: partitions of a new topic have no leader for a moment, which is worth another try."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return question()
        except TransientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_the_broker_says_where_topics_end_and_what_the_sink_has_stored(broker_address: str) -> None:
    settings = Settings(
        kafka=KafkaSettings(
            bootstrap=broker_address, topic_prefix=f"e{free_port()}.", session_timeout_s=6
        )
    )
    topics = wiring.topics(settings)
    base: dict[str, Any] = {"bootstrap.servers": broker_address}
    topics_.create(AdminClient(base), topics, wiring.widths(settings))
    producer = Producer(base)
    for _ in range(3):
        producer.produce(topics.labels, b"x", partition=1)
        producer.flush(10)  # a batch each: the embedded broker counts whole batches
    sink_ = Consumer({**base, "group.id": sink_group(topics)})
    sink_.commit(offsets=[TopicPartition(topics.labels, 1, 2)], asynchronous=False)
    sink_.close()
    broker = Broker(settings)
    progress = asked(broker.progress)
    assert len(progress.ends) == len(progress.stored) == 8
    assert (progress.ends["labels", 1], progress.stored["labels", 1]) == (3, 2)
    assert progress.stored["scored", 0] == progress.ends["scored", 0] == 0
    message = Performance(MODEL, "7", "", DAY, START, 1, 2, 1, 0, True, {"accuracy": 1.0})
    broker.emit([message])
    broker.close()
    reader = Consumer({**base, "group.id": "reader"})
    reader.assign([TopicPartition(topics.performance, partition_of(MODEL, 4), 0)])
    found = reader.consume(1, timeout=10)
    reader.close()
    assert [wire.decode(m.value() or b"") for m in found] == [message]
