"""Actions against strict receivers: each takes ours, and a repeat of it changes nothing where the receiver can tell."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from alerting.pipelines import action_request, facts
from alerting.requests import Request
from monitor.errors import ConfigError
from monitor.spec import ActionSpec, parse_spec
from monitor.targets import PLACEHOLDERS, HttpTarget
from monitor.wire import OutboxItem
from tests.alerting.strict import TOKEN, World
from tests.alerting.test_payloads import item

NOW = 1_700_000_000
SECRETS = {
    "env:TOKEN": TOKEN,
    "env:HEADER": "planted-header",
    "env:URL": "https://ci.example/{model}",
}
CLUSTER = {"url": "https://10.0.0.1:6443", "namespace": "ml", "token": "env:TOKEN"}
ROLLOUT = "/apis/argoproj.io/v1alpha1/namespaces/ml/rollouts/fraud"
SERVICE = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices/fraud"


def asked(kind: str, target: dict[str, Any], of: OutboxItem) -> Request:
    spec = ActionSpec.model_validate({kind: target})
    return action_request(of, spec, lambda text: SECRETS.get(text, text), at_s=NOW)


def retrain() -> OutboxItem:
    return item("action", action="retrain", advice="retrain")


def rollback() -> OutboxItem:
    return item("action", action="rollback", advice="rollback", rollback_to="6")


@pytest.mark.parametrize(
    ("kind", "target", "name"),
    [
        (
            "airflow",
            {"url": "https://air.example/", "dag": "retrain.daily", "token": "env:TOKEN"},
            f"retrain.daily/driftline-{'a' * 32}",
        ),
        (
            "argo_workflows",
            {"url": "https://argo.example", "namespace": "ml", "template": "retrain", "token": "env:TOKEN"},
            f"ml/driftline-{'a' * 32}",
        ),
    ],
)  # fmt: skip
def test_a_run_has_a_name_by_which_the_scheduler_knows_a_repeat(
    kind: str, target: dict[str, Any], name: str
) -> None:
    world = World()
    request = asked(kind, target, retrain())
    assert world.answer(request) == 200
    assert list(world.runs) == [name]
    status = world.answer(request)
    assert status in request.done, "the repeat counts as delivered"
    assert request.repeatable
    assert len(world.runs) == 1


def test_airflow_gets_the_users_conf_beside_what_happened() -> None:
    world = World()
    conf = {"rows": 10, "nested": {"a": [1]}}
    target = {"url": "https://air.example", "dag": "d", "token": "env:TOKEN", "conf": conf}
    world.answer(asked("airflow", target, retrain()))
    (run,) = world.runs.values()
    assert run.conf == {**conf, "driftline": facts(retrain())}
    assert run.logical_date is None


def test_argo_gets_the_parameters_that_its_template_declares() -> None:
    world = World()
    target = {**CLUSTER, "template": "t", "parameters": ["model", "version", "cause"]}
    assert world.answer(asked("argo_workflows", target, retrain())) == 200
    (run,) = world.runs.values()
    assert run.submitOptions.parameters == [
        "model=flight-delay",
        "version=7",
        "cause=pipeline_fault",
    ]


def test_github_cannot_tell_a_repeat_so_none_is_sent() -> None:
    world = World()
    request = asked("github", {"repository": "acme/models", "token": "env:TOKEN"}, retrain())
    assert request.url == "https://api.github.com/repos/acme/models/dispatches"
    assert world.answer(request) == 204
    (dispatch,) = world.dispatched
    assert dispatch.event_type == "driftline-retrain"
    assert dispatch.client_payload["model"] == "flight-delay"
    assert dispatch.client_payload["key"] == "a" * 32
    assert not request.repeatable


def test_an_alias_of_mlflow_goes_back_to_the_named_version() -> None:
    world = World()
    request = asked("mlflow", {"url": "https://mlflow.example", "token": "env:TOKEN"}, rollback())
    assert [world.answer(request), world.answer(request)] == [200, 200]
    assert world.aliases == {("flight-delay", "champion"): "6"}
    named = {"url": "https://m.example", "token": "env:TOKEN", "name": "fd", "alias": "live"}
    world.answer(asked("mlflow", named, rollback()))
    assert world.aliases["fd", "live"] == "6"


def test_a_rollout_is_aborted_and_a_canary_gets_nothing_with_all_else_as_it_was() -> None:
    world = World()
    world.objects[ROLLOUT] = {"status": {"phase": "Progressing"}}
    world.objects[SERVICE] = {"spec": {"predictor": {"canaryTrafficPercent": 20, "minReplicas": 2}}}
    for kind, target in (("argo_rollouts", {"rollout": "fraud"}), ("kserve", {"service": "fraud"})):
        request = asked(kind, {**CLUSTER, **target}, rollback())
        assert [world.answer(request), world.answer(request)] == [200, 200]
    assert world.objects[ROLLOUT] == {"status": {"phase": "Progressing", "abort": True}}
    assert world.objects[SERVICE] == {
        "spec": {"predictor": {"canaryTrafficPercent": 0, "minReplicas": 2}}
    }


def test_a_template_is_filled_in_and_a_value_cannot_leave_its_place() -> None:
    nasty = '"}/../admin?x=1&y={version}\n'
    of = msgspec.structs.replace(
        retrain(), incident=msgspec.structs.replace(retrain().incident, model=nasty, title=nasty)
    )
    target = {
        "url": "https://ci.example/models/{model}/train?why={title}",
        "method": "PUT",
        "headers": {"X-Key": "env:HEADER", "x-plain": "plain"},
        "body": {"text": "{title} of {model}", "many": ["{version}", 3, {"deep": "{cause}"}], "n": None},
        "token": "env:TOKEN",
    }  # fmt: skip
    request = asked("http", target, of)
    quoted = "%22%7D%2F..%2Fadmin%3Fx%3D1%26y%3D%7Bversion%7D%0A"
    assert request.url == f"https://ci.example/models/{quoted}/train?why={quoted}"
    assert msgspec.json.decode(request.body) == {
        "text": f"{nasty} of {nasty}",
        "many": ["7", 3, {"deep": "pipeline_fault"}],
        "n": None,
    }
    assert request.method == "PUT"
    assert request.headers["x-key"] == "planted-header"
    assert request.headers["x-plain"] == "plain"
    assert request.headers["idempotency-key"] == "a" * 32
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert "planted" not in repr(request)


def test_without_a_body_an_http_target_gets_all_there_is_and_a_secret_address_may_be_a_template() -> None:  # fmt: skip
    request = asked("http", {"url": "env:URL", "idempotent": True}, rollback())
    assert request.url == "https://ci.example/flight-delay"
    assert request.repeatable
    assert msgspec.json.decode(request.body) == facts(rollback())
    assert facts(rollback())["rollback_to"] == "6"


@pytest.mark.parametrize("url", ["https://{model}.example/", "https://planted.example/{nothing}"])
def test_a_template_behind_a_reference_is_checked_when_it_is_used_and_not_quoted(url: str) -> None:
    target = ActionSpec.model_validate({"http": {"url": "env:URL"}})
    with pytest.raises(ValueError, match="placeholders") as caught:
        action_request(retrain(), target, lambda text: url if text == "env:URL" else text, at_s=NOW)
    assert "planted" not in str(caught.value)


def test_templates_may_name_what_is_told_and_nothing_else() -> None:
    assert facts(retrain()).keys() == PLACEHOLDERS


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"url": "https://{model}.example/"}, "host of an address is fixed"),
        ({"url": "https://ci.example/{nothing}"}, "placeholders are action, "),
        ({"url": "https://ci.example/", "body": {"a": ["{x.y}"]}}, "placeholders are action, "),
        ({"url": "https://ci.example/", "headers": {"Authorization": "x"}}, "authorization as token"),
        ({"url": "https://ci.example/", "headers": {"x": "a\r\nb: c"}}, "one line"),
        ({"url": "https://ci.example/", "headers": {"x y": "a"}}, "letters, digits and dashes"),
        ({"url": "https://ci.example/", "method": "GET"}, "'POST', 'PUT' or 'PATCH'"),
    ],
)  # fmt: skip
def test_what_would_be_no_template_is_refused_with_the_spec(
    target: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        HttpTarget.model_validate(target)


@pytest.mark.parametrize(
    ("actions", "problem"),
    [
        ({"retrain": {"kserve": {**CLUSTER, "service": "s"}}}, "kserve can roll back and cannot retrain"),
        ({"retrain": {}}, "an action has exactly one of webhook, airflow, "),
        (
            {"rollback": {"github": {"repository": "a/b", "token": "env:T"}, "http": {"url": "https://x.example"}}},
            "exactly one of",
        ),
        ({"retrain": {"github": {"repository": "a/b/c", "token": "env:T"}}}, "repository"),
        ({"retrain": {"github": {"repository": "a/b", "token": "planted"}}}, "not the secret itself"),
    ],
)  # fmt: skip
def test_an_action_that_cannot_be_is_refused_with_the_spec(
    actions: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_spec({"model": "m", "actions": actions}, origin="spec")
    assert "planted" not in str(caught.value)
