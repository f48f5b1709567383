"""A first spec, drafted from a sample of events: what they say by themselves, and comments where a person has to decide.

Kinds are those that a reference would infer (``reference.kind_of``), but for lists of numbers, which are embeddings. No value of a feature is
written down: a spec travels, and a sample may be personal. Names are quoted as YAML needs it, in comments too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from monitor.binning import category_text
from monitor.columns import feature_names, from_events
from monitor.events import Event
from monitor.profile import PREDICTION, SCORE
from monitor.raw import Raw
from monitor.reference import kind_of
from monitor.spec import MAX_VECTORS, Calibration, ModelSpec, parse_spec
from monitor.tables import class_text

_ENOUGH: Final = 200  # events of a window: fewer say little
_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
_MAX_KEY: Final = 1_000  # characters: YAML takes keys of 1,024
_MAX_DIM: Final = 4_096
_FEW: Final = 10  # distinct numbers: perhaps they are codes
_CLASSES: Final = 20  # more distinct whole numbers are amounts
_GROUPS: Final = 32  # more distinct texts are no segments
_MANY: Final = 100
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class _Feature:
    """A line of ``features``; ``kind`` is empty where a feature is left out."""

    key: str
    kind: str
    note: str = ""
    dim: int | None = None
    groups: bool = False  # it may be a segment

    @property
    def line(self) -> str:
        dim = "" if self.dim is None else f", dim: {self.dim}"
        return _noted(f"  {self.key}: {{type: {self.kind}{dim}}}", self.note)


def draft(model: str, events: Sequence[Event]) -> str:
    """The YAML of a spec that ``load_spec`` takes. ``events``: of this model, one or more, in any order."""
    names = feature_names(events)
    columns = from_events(events, names)
    features = list(_features(columns.features))
    kept = [feature for feature in features if feature.kind]
    task, task_note, positive = _task(columns.outputs[PREDICTION], columns.outputs[SCORE])
    lines = [
        f"# Drafted from {len(events):,} events: read it, decide what is marked (?), then: driftline apply FILE",
        f"model: {_key(model)}",
        _noted(f"task: {task}", task_note),
    ]
    if positive is not None:
        lines.append(
            f"score: {{positive_class: {_key(positive)}}}  # (?) the class whose scores are higher"
        )
    if kept:
        lines += ["features:", *(feature.line for feature in kept)]
    for feature in features:
        if not feature.kind:
            lines.append(f"# left out: {feature.key}: {feature.note}")
    groups = ", ".join([feature.key for feature in kept if feature.groups][:_NAMED])
    lines += [
        f"# segments: [{groups}]  # (?) watched one by one, at most 8",
        _noted(
            f"reference: {{calibrate: {{events: {Calibration().events}}}}}",
            "(?) the first events are the reference; or {file: last_month.parquet}",
        ),
        *_windows([event.ts_ms for event in events]),
        "alarm_budget: {false_alarms: 1, per: 30d}  # (?) how many false alarms you accept",
        _noted("labels: {expected_delay: 1d}", f"(?) how long labels take{_joined(events)}"),
        '# notify: [{slack: {url: "env:SLACK_WEBHOOK"}}]  # (?) who is told; also teams, pagerduty, alertmanager, email, webhook',
    ]
    return "\n".join(lines) + "\n"


def read_draft(text: str) -> ModelSpec:
    """The spec that a draft is."""
    return parse_spec(yaml.safe_load(text), origin="the draft")


def _noted(line: str, note: str) -> str:
    return f"{line}  # {note}" if note else line


def _key(name: str) -> str:
    """A text in YAML, on one line, as a key or a value or in a comment."""
    # In single quotes a line break would be one.
    quotes = None if name.isprintable() else '"'
    listed = yaml.safe_dump(
        [name],
        default_flow_style=True,
        default_style=quotes,
        allow_unicode=quotes is None,
        width=1 << 30,
    )
    return str(listed.strip()[1:-1])


def _features(columns: Mapping[str, Raw]) -> Iterator[_Feature]:
    vectors = 0
    for name, column in columns.items():
        feature = _feature(_key(name), [value for value in column if value is not None])
        vectors += feature.kind == "embedding"
        if len(feature.key) > _MAX_KEY:
            yield _Feature(f"{feature.key[:_NAMED]}...", "", "its name is too long")
        elif feature.kind == "embedding" and vectors > MAX_VECTORS:
            yield _Feature(feature.key, "", f"more than {MAX_VECTORS} embeddings")
        else:
            yield feature


def _feature(key: str, values: list[Any]) -> _Feature:
    kind = kind_of(values)
    if kind is None:
        return _Feature(key, "", "no value in the sample")
    if kind == "numeric":
        codes = not all(isinstance(value, bool) for value in values)
        few = codes and len(values) >= _MANY and 2 < len(set(values)) <= _FEW
        return _Feature(key, kind, "(?) few values: if they are codes, categorical" * few)
    if all(isinstance(value, list) for value in values):
        return _vector(key, values)
    texts = [text for text in map(category_text, values) if text is not None]
    if not texts:
        return _Feature(key, "", "neither numbers nor texts")
    distinct = len(set(texts))
    note = ""
    if all(map(_is_number, texts)):
        note = "(?) numbers as text: to count as numbers they have to be sent as such"
    elif distinct > max(_MANY, len(texts) / 2):
        note = f"(?) {distinct:,} values in {len(texts):,} events: an id? Then leave it out"
    return _Feature(key, kind, note, groups=2 <= distinct <= _GROUPS)


def _vector(key: str, values: list[list[Any]]) -> _Feature:
    lengths = {len(value) for value in values}
    dim = lengths.pop()
    if lengths or not 1 <= dim <= _MAX_DIM or {kind_of(value) for value in values} != {"numeric"}:
        return _Feature(key, "", "lists that are not of one length and of numbers")
    return _Feature(key, "embedding", dim=dim)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _task(predictions: Raw, scores: Raw) -> tuple[str, str, str | None]:
    """The task, how it was guessed, and of two classes the positive one where that is not ``1``."""
    found = [
        (text, score)
        for prediction, score in zip(predictions, scores, strict=True)
        if (text := class_text(prediction)) is not None
    ]
    if not found:
        some = any(prediction is not None for prediction in predictions)
        said = "(?) predictions are neither numbers nor short texts" * some
        return "none", said or "no event has a prediction", None
    classes = {text for text, _ in found}
    whole = all(text.lstrip("-").isdecimal() for text in classes)
    if not whole and all(map(_is_number, classes)):
        return "regression", "(?) predictions are numbers", None
    if len(classes) <= 2:
        said = " and ".join(_key(text) for text in sorted(classes))
        return "binary", f"(?) predictions are {said}", _positive(found)
    if whole and len(classes) > _CLASSES:
        return "regression", "(?) predictions are numbers", None
    return "multiclass", f"(?) predictions are of {len(classes):,} classes", None


def _positive(found: Sequence[tuple[str, float | None]]) -> str | None:
    by_class: dict[str, list[float]] = {}
    for text, score in found:
        if score is not None:
            by_class.setdefault(text, []).append(score)
    if len(by_class) < 2 or "1" in by_class:
        return None
    return max(sorted(by_class), key=lambda text: sum(by_class[text]) / len(by_class[text]))


def _windows(times_ms: Sequence[int]) -> Iterator[str]:
    """Windows that hold some hundreds of events at the rate of the sample; of a sample that has no rate, the default."""
    span_ms = max(times_ms) - min(times_ms)
    an_hour = len(times_ms) / span_ms * _HOUR_MS if span_ms else None
    said = "" if an_hour is None else f"; the sample has {an_hour:,.3g} events an hour"
    if an_hour is None or an_hour >= 60 * _ENOUGH:
        sizes = "{pane: 10s, sizes: [1m, 1h]}"
    elif an_hour >= _ENOUGH:
        sizes = "{pane: 1m, sizes: [1h, 1d]}"
    else:
        sizes = "{pane: 1h, sizes: [1d, 1w]}"
    yield f"windows: {sizes}  # (?) a window should have hundreds{said}"


def _joined(events: Sequence[Event]) -> str:
    without = sum(event.id is None for event in events)
    if not without:
        return ""
    return f"; {without:,} events have no id to join labels by: send one, or say join_key: [NAME]"
