"""Model specs: what is refused, in one line, without a word that may be a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import ConfigError
from monitor.spec import ModelSpec, format_duration, load_spec, parse_duration_ms, parse_spec

SECRET = "https://hooks.slack.com/services/T0/B0/Hunter2"
EXAMPLE = """
model: flight-delay
task: binary
features:
  carrier:  {type: categorical}
  distance: {type: numeric}
score: {positive_class: 1}
segments: [carrier]
reference: {file: january.parquet}
windows: {pane: 10s, sizes: [10m, 1h], lateness: 30s}
alarm_budget: {false_alarms: 1, per: 30d}
labels: {expected_delay: 6h, join_key: [request_id, inferenceId, ce-id, tags.call]}
notify: [{slack: {url: env:SLACK_WEBHOOK}}, {pagerduty: {routing_key: file:/run/secrets/pd}}]
actions:
  retrain:  {webhook: {url: "https://ci.example/retrain", secret: env:WH}, approval: manual, cooldown: 24h, per_day: 1}
  rollback: {webhook: {url: "https://deploy.example/rollback", secret: env:WH}, dry_run: true}
rules:
  - {statistic: accuracy, falls_by: 0.03, window: 1h}
  - {feature: "distance", segment: "carrier=*", kind: data_drift, ignore: true}
silences:
  - {starts: 2026-12-24T18:00:00+01:00, ends: 2026-12-25T06:00:00Z, every: 52w, author: ada, comment: no flights}
"""
HOOK = {"url": "https://ci.example/x", "secret": "env:WH"}


def test_the_example_of_the_design_is_a_spec_and_survives_its_json_form(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(EXAMPLE)
    spec = load_spec(path)
    assert spec.windows.sizes == (600_000, 3_600_000)
    assert [target.kind for target in spec.notify] == ["slack", "pagerduty"]
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_everything_but_the_name_has_a_default() -> None:
    spec = parse_spec({"model": "m"}, origin="test")
    assert spec.reference.calibrate is not None
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


@given(st.integers(0, 10**12))
def test_a_duration_comes_back_from_its_text(ms: int) -> None:
    assert parse_duration_ms(format_duration(ms)) == ms


@given(st.integers(1, 1000), st.sampled_from(["ms", "s", "m", "h", "d", "w"]))
def test_the_text_of_a_duration_is_never_longer_than_it_was_written(n: int, unit: str) -> None:
    assert len(format_duration(parse_duration_ms(f"{n}{unit}"))) <= len(f"{n}{unit}")


@pytest.mark.parametrize("text", ["", "5", "5 minutes", "-5m", "1.5h", "5M", "m", 5, None, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration_ms(text)


REFUSED: list[Any] = [
    ({}, "model: Field required"),
    ({"model": ""}, "model: "),
    ({"model": "a b"}, "model: "),
    ({"model": "m", "taks": "binary"}, "taks: Extra inputs"),
    ({"model": "m", "task": "classify"}, "task: "),
    ({"model": "m", "features": {"a": {"type": "text"}}}, "features.a.type"),
    ({"model": "m", "features": {"a": {"type": "numeric"}}, "segments": ["b"]}, "segment 1 is"),
    ({"model": "m", "segments": list("abcdefghi")}, "segments: "),
    ({"model": "m", "reference": {}}, "either file or calibrate"),
    ({"model": "m", "reference": {"calibrate": {"events": 5}}}, "reference.calibrate.events"),
    ({"model": "m", "reference": {"file": "a", "calibrate": {}}}, "either file or calibrate"),
    ({"model": "m", "windows": {"pane": "0s"}}, "windows.pane"),
    ({"model": "m", "windows": {"pane": "7s"}}, "window 1m is not a whole number of panes of 7s"),
    ({"model": "m", "windows": {"sizes": []}}, "1 to 8 window sizes"),
    ({"model": "m", "windows": {"sizes": ["1m", "60s"]}}, "given twice"),
    ({"model": "m", "windows": {"pane": 10**30, "sizes": [10**30]}}, "windows.pane"),
    ({"model": "m", "windows": {"pane": "5 min"}}, "give a duration such as"),
    ({"model": "m", "alarm_budget": {"false_alarms": 0}}, "alarm_budget.false_alarms"),
    ({"model": "m", "alarm_budget": {"false_alarms": float("inf")}}, "alarm_budget.false_alarms"),
    ({"model": "m", "notify": [{}]}, "exactly one of slack"),
    ({"model": "m", "notify": [{"slack": {"url": "env:A"}}] * 2}, "two notify targets"),
    ({"model": "m", "notify": [{"name": "retrain", "webhook": HOOK}]}, "names of actions"),
    ({"model": "m", "actions": {"retrain": {"webhook": HOOK, "per_day": 0}}}, "actions.retrain"),
    ({"model": "m", "actions": {"retrain": {"webhook": HOOK, "to": "5"}}}, "a retrain goes to no version"),
    ({"model": "m", "silences": [{"starts": "2026-01-01T00:00Z"}]}, "silences.0.ends: Field required"),
    ({"model": "m", "silences": [{"starts": "2026-01-01T00:00", "ends": "2026-01-02T00:00Z"}]}, "timezone"),
    ({"model": "m", "silences": [{"starts": "2026-01-02T00:00Z", "ends": "2026-01-02T00:00Z"}]}, "ends after it begins"),
    ({"model": "m", "silences": [{"starts": "2026-01-01T00:00Z", "ends": "2026-01-03T00:00Z", "every": "1d"}]}, "ends before it is repeated"),
    ({"model": "m", "silences": [{"starts": "2026-01-01T00:00Z", "ends": "2026-01-03T00:00Z", "model": "x"}]}, "Extra inputs"),
    (["model"], "expected a mapping"),
    (None, "expected a mapping"),
    ({1: 2, "model": "m"}, "spec.yaml: "),
]  # fmt: skip


@pytest.mark.parametrize(("document", "says"), REFUSED)
def test_a_wrong_spec_is_one_line_that_names_the_place(document: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(document, origin="spec.yaml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("spec.yaml: ")
    assert "\n" not in str(caught.value)


MISPLACED: list[Any] = [
    {"model": SECRET},
    {"task": SECRET},
    {SECRET: None},
    {"features": SECRET},
    {"features": {SECRET: "numeric"}},
    {"features": {"a": {"type": SECRET}}},
    {"features": {"a": {"type": "numeric"}}, "segments": [SECRET]},
    {"score": {"positive_class": [SECRET]}},
    {"reference": SECRET},
    {"reference": {"file": [SECRET]}},
    {"reference": {"calibrate": {"events": SECRET}}},
    {"windows": {"pane": SECRET}},
    {"windows": {"sizes": [SECRET]}},
    {"alarm_budget": {"per": SECRET}},
    {"alarm_budget": {"false_alarms": SECRET}},
    {"labels": {"expected_delay": SECRET}},
    {"notify": SECRET},
    {"notify": [SECRET]},
    {"notify": [{"slack": SECRET}]},
    {"notify": [{"slack": {"url": SECRET}}]},
    {"notify": [{"slack": {SECRET: None}}]},
    {"notify": [{SECRET: {"url": "env:A"}}]},
    {"notify": [{"name": [SECRET], "webhook": HOOK}]},
    {"notify": [{"pagerduty": {"routing_key": SECRET}}]},
    {"notify": [{"pagerduty": {"routing_key": "env:A", "url": "ftp://u:" + SECRET}}]},
    {"notify": [{"webhook": {"url": f"https://user:{SECRET}@host/x", "secret": "env:A"}}]},
    {"notify": [{"webhook": {"url": "https://host", "secret": SECRET}}]},
    {"notify": [{"webhook": {"url": "https://host", "secret": {SECRET: None}}}]},
    {"actions": {"retrain": SECRET}},
    {"actions": {"retrain": {"webhook": HOOK, "approval": SECRET}}},
    {"actions": {"retrain": {"webhook": HOOK, "cooldown": SECRET}}},
    {"actions": {"retrain": {"webhook": HOOK, "dry_run": SECRET}}},
    {"actions": {SECRET: {"webhook": HOOK}}},
]  # fmt: skip


@pytest.mark.parametrize("document", MISPLACED, ids=str)
def test_a_secret_in_a_wrong_place_is_never_quoted(
    document: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({"model": "m", **document}))
    with pytest.raises(ConfigError) as caught:
        load_spec(path)
    assert "Hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: [" + SECRET, "line 1: not YAML"),
        ("model: m\n\t" + SECRET, "line 2: not YAML"),
        ("model: !!python/object:os.system m", "not YAML"),
        ("model: 2013-02-31", "not YAML"),
        ("a: &a [*a]", "model: Field required"),
        ("[" * 500, "not YAML"),
        ("", "expected a mapping"),
        ("model: \x00", "not YAML"),
    ],
)
def test_a_file_that_is_no_yaml_is_named_with_the_line(
    text: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_spec(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "Hunter2" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            load_spec(path)
        assert "\n" not in str(caught.value)
