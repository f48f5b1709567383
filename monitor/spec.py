"""What a user says about a model: one YAML file, checked once, with an error that names the line of thought to change.

A spec holds references to secrets (``env:NAME``, ``file:/path``), never a secret: it travels on Kafka and is shown by the API.
"""

from __future__ import annotations

import re
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from monitor.errors import ConfigError
from monitor.targets import ActionName, ActionTarget, NotifyTarget, fits
from monitor.wire import Evidence, Verdict, VerdictKind

_UNITS_MS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
MAX_DURATION_MS: Final = 3_660 * _UNITS_MS["d"]
_DURATION: Final = re.compile(r"(\d+)\s*(ms|s|m|h|d|w)")
_KEY: Final = re.compile(r"[a-z_]{1,24}")  # how our own keys look; anything else is not quoted
MAX_WINDOWS: Final = 8  # window sizes of a model: each costs an accumulator per segment
MAX_SEGMENTS: Final = 8
MAX_MIN_WINDOWS: Final = 1_000
LIMITS: Final = ("above", "below", "rises_by", "falls_by", "times")
# Statistics of which the reference has a value, too.
FROM_REFERENCE: Final = (
    "missing",
    "non_finite",
    "wrong_type",
    "unseen",
    "out_of_range",
    "off_grid",
    "mean",
    "latency_p50",
    "latency_p95",
    "latency_p99",
    "request_error_rate",
    "accuracy",
    "error_rate",
)
# Statistics of which it has none.
METRICS: Final = (
    "balanced_accuracy",
    "requests",
    "volume",
    "precision",
    "recall",
    "fpr",
    "f1",
    "selection_rate",
    "base_rate",
    "roc_auc",
    "pr_auc",
    "log_loss",
    "brier",
    "ece",
    "mae",
    "rmse",
    "mape",
    "bias",
    "r2",
    "coverage",
    "label_coverage",
    "selection_rate_gap",
    "recall_gap",
    "fpr_gap",
    "estimated_accuracy",
    "estimated_precision",
    "estimated_recall",
    "estimated_f1",
    "estimated_base_rate",
)
MAX_VECTORS: Final = 8  # embeddings and groups: each adds 2 KiB to a profile


def parse_duration_ms(text: object) -> int:
    """Milliseconds of ``"90s"``, ``"5m"``, ``"1h"``, ``"7d"``, ``"1w"``.

    Raises:
        ValueError: no number with one of these units.
    """
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 30s, 10m, 1h or 7d")
    return int(match[1]) * _UNITS_MS[match[2]]


def format_duration(ms: int) -> str:
    """The shortest exact form: ``86_400_000`` is ``"1d"``."""
    for unit, size in sorted(_UNITS_MS.items(), key=lambda item: -item[1]):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def _duration(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return parse_duration_ms(value)
    except ValueError:
        # Not quoted: whatever stands in a wrong place may be a secret.
        raise ValueError("give a duration such as 30s, 10m, 1h or 7d") from None


Duration = Annotated[int, BeforeValidator(_duration), Field(gt=0, le=MAX_DURATION_MS)]


Output = Annotated[str, Field(max_length=136, pattern=r"^([^\[\]]{1,128}(\[\d{1,4}\])?)?$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FeatureSpec(_Strict):
    """How a feature is read.

    ``numeric`` takes numbers and booleans; ``categorical`` takes strings, and numbers as their text; ``embedding`` takes lists of ``dim`` numbers.
    """

    type: Literal["numeric", "categorical", "embedding"]
    dim: int | None = Field(default=None, ge=1, le=4_096)

    @model_validator(mode="after")
    def _length(self) -> Self:
        if (self.type == "embedding") != (self.dim is not None):
            raise ValueError(
                "give dim, the length of its lists, for an embedding and for nothing else"
            )
        return self


class ScoreSpec(_Strict):
    """What ``score`` means: the probability of ``positive_class``."""

    positive_class: int | str | bool = 1


class Calibration(_Strict):
    """How many first events become the reference."""

    events: int = Field(default=5_000, ge=100, le=200_000)


class ReferenceSpec(_Strict):
    """Where the reference comes from: a file of past predictions, or the first events."""

    file: Path | None = None
    calibrate: Calibration | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.calibrate is None):
            raise ValueError("give either file or calibrate")
        return self


class WindowSpec(_Strict):
    """Event time is cut into panes; windows are whole panes. All in milliseconds, written as durations."""

    pane: Duration = 10_000
    sizes: tuple[Duration, ...] = (60_000, 3_600_000)
    lateness: Duration = 5_000

    @model_validator(mode="after")
    def _whole_panes(self) -> Self:
        if not 1 <= len(self.sizes) <= MAX_WINDOWS:
            raise ValueError(f"give 1 to {MAX_WINDOWS} window sizes")
        for size in self.sizes:
            if size % self.pane:
                raise ValueError(
                    f"window {format_duration(size)} is not a whole number of panes of {format_duration(self.pane)}"
                )
        if len(set(self.sizes)) != len(self.sizes):
            raise ValueError("a window size is given twice")
        return self


class AlarmBudget(_Strict):
    """False alarms that the user accepts, per model."""

    false_alarms: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    per: Duration = 30 * 86_400_000


class LabelSpec(_Strict):
    """When labels are due, what joins them, and what is right. A performance window is final once ``expected_delay`` has passed after its end.

    ``join_key`` names fields that stand for ``id`` in predictions and labels that have neither ``id`` nor ``prediction_id``, in the order in which
    they are tried: ``request_id``; ``tags.NAME``, a tag; ``ce-id``, the id of the CloudEvent. A prediction of a number is right if it is off by
    at most ``tolerance``; without one, by no more than nine in ten of the reference's were.
    """

    expected_delay: Duration = 86_400_000
    join_key: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = Field(
        default=(), max_length=8
    )
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class IngestSpec(_Strict):
    """How requests and responses of a serving stack become predictions (``monitor.inference``).

    ``features`` names the columns of requests without names, in their order. ``prediction`` and ``score`` name an output of the response, or one
    of its columns: ``predict``, ``predict_proba[1]``; of V1 the output is ``predictions``. ``mode`` is what the logger sends, as KServe's mode says:
    of ``all``, request and response are one prediction; of the others, each is one alone.
    """

    mode: Literal["all", "request", "response"] = "all"
    features: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(), max_length=2_000
    )
    prediction: Output = ""
    score: Output = ""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.features)) != len(self.features):
            raise ValueError("ingest.features names a feature twice")
        return self


class CanarySpec(_Strict):
    """How two versions that are live at once are compared, by their labels (``monitor.canary``) and by their requests (``monitor.beside``).

    ``margin``: of the error rate, and of the share of slow requests, that nobody minds. ``error_rate``: chance of calling a version worse that is not, or not
    worse by the margin when it is, however long it is watched; of each question by itself.
    """

    margin: float = Field(default=0.02, gt=0, lt=1)
    error_rate: float = Field(default=0.01, gt=0, lt=1)


class Matcher(_Strict):
    """Which verdicts, or which evidence, something is about. What is not given fits anything; ``*`` stands for any text.

    ``segment: ""`` is the model as a whole.
    """

    kind: VerdictKind | None = None
    feature: str | None = Field(default=None, max_length=256)
    statistic: str | None = Field(default=None, max_length=64)
    version: str | None = Field(default=None, max_length=128)
    segment: str | None = Field(default=None, max_length=256)

    def fits(self, of: Verdict | Evidence, *, version: str, segment: str) -> bool:
        """Whether it is about this, of a version and a segment."""
        return self.kind in (None, of.kind) and all(
            pattern is None or fnmatchcase(text, pattern)
            for pattern, text in (
                (self.feature, of.feature),
                (self.statistic, of.statistic),
                (self.version, version),
                (self.segment, segment),
            )
        )


class RuleSpec(Matcher):
    """A limit by hand, in place of the calibrated one, or ``ignore``: then it is recorded and never an alarm.

    ``above`` and ``below`` are values (latencies in milliseconds, ``requests`` per second, ``volume`` in times what the hour of the week lets expect); ``rises_by``, ``falls_by`` and ``times`` count from the
    reference's value. ``window`` is the size of the windows that it holds for; without it, all.
    """

    window: Duration | None = None
    above: float | None = Field(default=None, allow_inf_nan=False)
    below: float | None = Field(default=None, allow_inf_nan=False)
    rises_by: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    falls_by: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    times: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    ignore: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) + self.ignore != 1:
            raise ValueError(f"give exactly one of {', '.join(LIMITS)} and ignore")
        if self.ignore:
            return self
        if self.statistic not in ("psi", "ks", *FROM_REFERENCE, *METRICS):
            raise ValueError(
                f"name a statistic that has a limit: psi, ks, {', '.join((*FROM_REFERENCE, *METRICS))}"
            )
        if given[0] in LIMITS[2:] and self.statistic not in FROM_REFERENCE:
            raise ValueError(f"{given[0]} counts from the reference, which has no {self.statistic}")
        return self


class SilenceSpec(Matcher):
    """A time in which nobody is told of what it fits; without a matcher, a maintenance window. ``every`` repeats it.

    What still fires at its end is told then.
    """

    starts: AwareDatetime
    ends: AwareDatetime
    every: Duration | None = None
    author: str = Field(default="", max_length=128)
    comment: str = Field(default="", max_length=500)

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.ends <= self.starts:
            raise ValueError("a silence ends after it begins")
        if self.every is not None and self.every < _ms(self.ends) - _ms(self.starts):
            raise ValueError("a silence ends before it is repeated")
        return self

    def holds(self, at_ms: int) -> bool:
        """Whether it is silent at a time."""
        since_ms = at_ms - _ms(self.starts)
        if self.every is not None and since_ms >= 0:
            since_ms %= self.every
        return 0 <= since_ms < _ms(self.ends) - _ms(self.starts)


class ActionSpec(ActionTarget):
    """A guarded action. It is off unless it stands in the spec; then a person approves it unless ``approval: auto``.

    ``min_windows``: windows that have to be broken before it is asked for. ``to``: the version to roll back to, instead of the one that the
    incident names. ``helps_within``: what still breaks in a window that begins after the action and ends after this escalates.
    """

    approval: Literal["manual", "auto"] = "manual"
    dry_run: bool = False
    cooldown: Duration = 86_400_000
    per_day: int = Field(default=1, ge=1, le=100)
    min_windows: int = Field(default=1, ge=1, le=MAX_MIN_WINDOWS)
    to: str = Field(default="", max_length=128)
    helps_within: Duration = 3 * 86_400_000


class ActionsSpec(_Strict):
    """The actions that a model allows."""

    retrain: ActionSpec | None = None
    rollback: ActionSpec | None = None

    @model_validator(mode="after")
    def _able(self) -> Self:
        if self.retrain is not None and not fits(self.retrain, "retrain"):
            raise ValueError(f"{self.retrain.kind} can roll back and cannot retrain")
        if self.retrain is not None and self.retrain.to:
            raise ValueError("a retrain goes to no version: give `to` for a rollback")
        return self

    def of(self, name: ActionName) -> ActionSpec | None:
        """The rules of an action; ``None`` where it is not allowed."""
        return self.retrain if name == "retrain" else self.rollback


class ModelSpec(_Strict):
    """A model as its owner describes it. Everything but the name has a default."""

    model: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    task: Literal["binary", "multiclass", "regression", "none"] = "none"
    features: dict[str, FeatureSpec] = Field(default_factory=dict, max_length=2_000)
    # Groups of numeric features that are watched together: what no single one of them shows.
    multivariate: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    score: ScoreSpec = ScoreSpec()
    segments: tuple[str, ...] = Field(default=(), max_length=MAX_SEGMENTS)
    # Segments whose groups are to fare alike: their rates are compared with everyone else's.
    protected: tuple[str, ...] = ()
    reference: ReferenceSpec = ReferenceSpec(calibrate=Calibration())
    windows: WindowSpec = WindowSpec()
    alarm_budget: AlarmBudget = AlarmBudget()
    labels: LabelSpec = LabelSpec()
    ingest: IngestSpec = IngestSpec()
    canary: CanarySpec = CanarySpec()
    notify: tuple[NotifyTarget, ...] = Field(default=(), max_length=16)
    rules: tuple[RuleSpec, ...] = Field(default=(), max_length=64)
    silences: tuple[SilenceSpec, ...] = Field(default=(), max_length=64)
    actions: ActionsSpec = ActionsSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [target.target for target in self.notify]
        if len(set(names)) != len(names):
            raise ValueError("two notify targets have one name: set name on them")
        if {"retrain", "rollback"} & set(names):
            raise ValueError("retrain and rollback are names of actions, not of notify targets")
        for i, segment in enumerate(self.segments):
            if self.features and not segment.startswith("tags.") and segment not in self.features:
                raise ValueError(f"segment {i + 1} is neither a feature nor tags.NAME")
        if not set(self.protected) <= set(self.segments):
            raise ValueError("protected names what stands in segments, too")
        return self

    def told(self, name: str) -> NotifyTarget | None:
        """The notify target of a name; ``None`` if there is none."""
        return next((target for target in self.notify if target.target == name), None)

    @model_validator(mode="after")
    def _vectors(self) -> Self:
        embeddings = sum(f.type == "embedding" for f in self.features.values())
        if len(self.multivariate) + embeddings > MAX_VECTORS:
            raise ValueError(f"at most {MAX_VECTORS} embeddings and multivariate groups")
        for i, (name, members) in enumerate(self.multivariate.items()):
            if name in self.features or name.startswith("$"):
                raise ValueError(f"multivariate group {i + 1} has the name of a field")
            if not 2 <= len(set(members)) == len(members):
                raise ValueError(
                    f"multivariate group {i + 1} needs two features or more, each once"
                )
            if any(m not in self.features or self.features[m].type != "numeric" for m in members):
                raise ValueError(f"multivariate group {i + 1}: declare its features as numeric")
        return self


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1_000)


def load_spec(path: Path) -> ModelSpec:
    """The spec in a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or does not describe a model; one line, without the values.
    """
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read: {err}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: 2013-02-31
        mark = getattr(err, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: not YAML") from err
    return parse_spec(document, origin=str(path))


def parse_spec(document: object, *, origin: str) -> ModelSpec:
    """The spec in a parsed document; ``origin`` stands in the error."""
    if not isinstance(document, dict):
        raise ConfigError(f"{origin}: expected a mapping that starts with `model: NAME`")
    try:
        return ModelSpec.model_validate(document)
    except ValidationError as err:
        first = err.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(_place, first["loc"])) or "spec"
        more = f" (and {err.error_count() - 1} more)" if err.error_count() > 1 else ""
        raise ConfigError(f"{origin}: {where}: {first['msg']}{more}") from err


def _place(part: int | str) -> str:
    return str(part) if isinstance(part, int) or _KEY.fullmatch(part) else "?"
