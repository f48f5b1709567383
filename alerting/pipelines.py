"""How each receiver of actions is asked for a retrain or a rollback: one HTTP request, without any I/O.

What a receiver offers against a second run is used: a run's own name, a state that is set and not changed by steps, an idempotency
key. Where it offers nothing the request is not ``repeatable``.

Sources: Airflow 3 ``POST /api/v2/dags/{dag_id}/dagRuns``, Argo Workflows ``WorkflowService.SubmitWorkflow``, GitHub "Create a
repository dispatch event", MLflow REST "Set registered model alias", the ``Rollout`` of Argo Rollouts (``status.abort``), the
``InferenceService`` of KServe (``canaryTrafficPercent``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from alerting.requests import Request, Resolve, bearer, headed, rfc3339, signed_webhook
from monitor.spec import ActionSpec
from monitor.targets import (
    PLACEHOLDER,
    Acting,
    AirflowTarget,
    ArgoRolloutsTarget,
    ArgoWorkflowsTarget,
    GitHubTarget,
    HttpTarget,
    KServeTarget,
    MLflowTarget,
    WebhookTarget,
    check_template,
)
from monitor.wire import OutboxItem

_EXISTS: Final = frozenset({409})  # a run of this name: an earlier attempt was taken
_GITHUB_VERSION: Final = "2022-11-28"
_NOTE: Final = 1_000


def action_request(item: OutboxItem, spec: ActionSpec, resolve: Resolve, *, at_s: int) -> Request:
    """The request that asks for ``item``; ``at_s`` is the Unix time of this attempt.

    Raises:
        ValueError: a webhook secret that claims to be base64 (``whsec_``) is not, or a token or an address cannot be sent.
            None of them is quoted.
    """
    target = spec.chosen
    if isinstance(target, WebhookTarget):
        return signed_webhook(item, target, resolve, at_s)
    return _BUILD[type(target)](item, target, resolve)


def facts(item: OutboxItem) -> dict[str, str]:
    """What a pipeline is told, and what templates may name (``monitor.targets.PLACEHOLDERS``)."""
    incident = item.incident
    return {
        "action": item.action,
        "advice": incident.advice,
        "cause": incident.cause,
        "incident": incident.id,
        "key": item.id,
        "model": incident.model,
        "onset": rfc3339(incident.onset_ms),
        "rollback_to": incident.rollback_to or "",
        "severity": incident.severity,
        "title": incident.title,
        "version": incident.version,
    }


def _airflow(item: OutboxItem, target: AirflowTarget, resolve: Resolve) -> Request:
    body = {
        "dag_run_id": f"driftline-{item.id}",
        "logical_date": None,  # the key has to be there
        "conf": {**target.conf, "driftline": facts(item)},
        "note": item.incident.title[:_NOTE],
    }
    path = f"/api/v2/dags/{quote(target.dag, safe='')}/dagRuns"
    return _call(item, target.url, path, body, target.token, resolve, done=_EXISTS)


def _argo_workflows(item: OutboxItem, target: ArgoWorkflowsTarget, resolve: Resolve) -> Request:
    known = facts(item)
    body = {
        "namespace": target.namespace,
        "resourceKind": "WorkflowTemplate",
        "resourceName": target.template,
        "submitOptions": {
            "name": f"driftline-{item.id}",
            "parameters": [f"{name}={known[name]}" for name in target.parameters],
            "labels": f"driftline.dev/incident={item.incident.id}",
        },
    }
    path = f"/api/v1/workflows/{target.namespace}/submit"
    return _call(item, target.url, path, body, target.token, resolve, done=_EXISTS)


def _github(item: OutboxItem, target: GitHubTarget, resolve: Resolve) -> Request:
    known = facts(item)
    known.pop("advice")  # ten keys at most
    body = {
        "event_type": target.event_type or f"driftline-{item.action}",
        "client_payload": known,
    }
    headers = {
        "accept": "application/vnd.github+json",
        "x-github-api-version": _GITHUB_VERSION,
        "user-agent": "driftline",  # without one GitHub refuses
    }
    path = f"/repos/{target.repository}/dispatches"
    return _call(
        item, target.url, path, body, target.token, resolve, headers=headers, repeatable=False
    )


def _mlflow(item: OutboxItem, target: MLflowTarget, resolve: Resolve) -> Request:
    body = {
        "name": target.name or item.incident.model,
        "alias": target.alias,
        "version": item.incident.rollback_to or "",
    }
    path = "/api/2.0/mlflow/registered-models/alias"
    return _call(item, target.url, path, body, target.token, resolve)


def _argo_rollouts(item: OutboxItem, target: ArgoRolloutsTarget, resolve: Resolve) -> Request:
    path = (
        f"/apis/argoproj.io/v1alpha1/namespaces/{target.namespace}/rollouts/{target.rollout}/status"
    )
    return _patch(item, target, path, {"status": {"abort": True}}, resolve)


def _kserve(item: OutboxItem, target: KServeTarget, resolve: Resolve) -> Request:
    path = (
        f"/apis/serving.kserve.io/v1beta1/namespaces/{target.namespace}"
        f"/inferenceservices/{target.service}"
    )
    body = {"spec": {"predictor": {"canaryTrafficPercent": 0}}}
    return _patch(item, target, path, body, resolve)


def _http(item: OutboxItem, target: HttpTarget, resolve: Resolve) -> Request:
    known = facts(item)
    url = resolve(target.url)
    check_template(url)  # one behind a reference was not seen before
    headers = headed({name.lower(): resolve(value) for name, value in target.headers.items()})
    headers |= bearer(target.token, resolve)
    body = known if target.body is None else _filled(target.body, known)
    return Request(
        _placed(url, lambda name: quote(known[name], safe="")),
        {"content-type": "application/json", **headers, **_keys(item)},
        msgspec.json.encode(body),
        method=target.method,
        repeatable=target.idempotent,
    )


def _call(
    item: OutboxItem,
    base: str,
    path: str,
    body: dict[str, Any],
    token: str | None,
    resolve: Resolve,
    *,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Request:
    """A request of JSON under a service's address; ``more`` is of ``Request``."""
    sent = {"content-type": "application/json", **(headers or {})} | _keys(item)
    url = resolve(base).rstrip("/") + path
    return Request(url, sent | bearer(token, resolve), msgspec.json.encode(body), **more)


def _patch(
    item: OutboxItem,
    target: ArgoRolloutsTarget | KServeTarget,
    path: str,
    body: dict[str, Any],
    resolve: Resolve,
) -> Request:
    """A merge patch of an object of Kubernetes."""
    kind = {"content-type": "application/merge-patch+json"}
    url, token = target.url, target.token
    return _call(item, url, path, body, token, resolve, headers=kind, method="PATCH")


def _keys(item: OutboxItem) -> dict[str, str]:
    return {"idempotency-key": item.id}


def _filled(value: Any, known: dict[str, str]) -> Any:
    """A template's copy with its texts filled in: a value cannot leave the text in which it stands."""
    if isinstance(value, str):
        return _placed(value, known.__getitem__)
    if isinstance(value, dict):
        return {name: _filled(inner, known) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, known) for inner in value]
    return value


def _placed(template: str, text_of: Callable[[str], str]) -> str:
    return PLACEHOLDER.sub(lambda match: text_of(match[1]), template)


_BUILD: Final[Mapping[type[Acting], Callable[[OutboxItem, Any, Resolve], Request]]] = {
    AirflowTarget: _airflow,
    ArgoWorkflowsTarget: _argo_workflows,
    GitHubTarget: _github,
    MLflowTarget: _mlflow,
    ArgoRolloutsTarget: _argo_rollouts,
    KServeTarget: _kserve,
    HttpTarget: _http,
}
