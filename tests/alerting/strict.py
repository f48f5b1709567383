"""What the services behind actions accept, written from their own documents and apart from the sender: strict, so what passes here would there.

Sources: Airflow 3's ``TriggerDAGRunPostBody`` (unknown keys are refused, ``logical_date`` is required), Argo Workflows'
``WorkflowSubmitRequest`` and ``SubmitOpts``, GitHub's REST reference, MLflow's REST reference, Kubernetes' merge patch (RFC 7386).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from alerting.requests import Request

TOKEN = "planted-token"


class AirflowRun(msgspec.Struct, forbid_unknown_fields=True):
    logical_date: str | None  # required, may be null
    dag_run_id: str | None = None
    data_interval_start: str | None = None
    data_interval_end: str | None = None
    run_after: str | None = None
    conf: dict[str, Any] | None = None
    note: str | None = None


class SubmitOpts(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    generateName: str = ""  # noqa: N815
    entryPoint: str = ""  # noqa: N815
    parameters: list[str] = []
    serviceAccount: str = ""  # noqa: N815
    dryRun: bool = False  # noqa: N815
    serverDryRun: bool = False  # noqa: N815
    labels: str = ""
    annotations: str = ""
    priority: int = 0


class ArgoSubmit(msgspec.Struct, forbid_unknown_fields=True):
    namespace: str
    resourceKind: str  # noqa: N815
    resourceName: str  # noqa: N815
    submitOptions: SubmitOpts  # noqa: N815


class Dispatch(msgspec.Struct, forbid_unknown_fields=True):
    event_type: str
    client_payload: dict[str, Any] = {}


class Alias(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    alias: str
    version: str


@dataclass
class World:
    """The services: what runs, which aliases stand where, what was patched. Mutable."""

    runs: dict[str, Any] = field(default_factory=dict)
    dispatched: list[Dispatch] = field(default_factory=list)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)

    def answer(self, request: Request) -> int:
        """The status of the service that the address belongs to."""
        path = urlsplit(request.url).path
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401
        for method, pattern, service in self._services():
            match = re.fullmatch(pattern, path)
            if match and method == request.method:
                try:
                    return service(request, *match.groups())
                except msgspec.ValidationError:
                    return 422
        return 404

    def _services(self) -> list[tuple[str, str, Callable[..., int]]]:
        patched = r"(/apis/argoproj\.io/v1alpha1/namespaces/[a-z0-9-]+/rollouts/[a-z0-9-]+)/status"
        served = r"(/apis/serving\.kserve\.io/v1beta1/namespaces/[a-z0-9-]+/inferenceservices/[a-z0-9-]+)"
        return [
            ("POST", r"/api/v2/dags/([^/]+)/dagRuns", self._airflow),
            ("POST", r"/api/v1/workflows/([a-z0-9-]+)/submit", self._argo),
            ("POST", r"/repos/([^/]+/[^/]+)/dispatches", self._github),
            ("POST", r"/api/2\.0/mlflow/registered-models/alias", self._mlflow),
            ("PATCH", patched, self._kubernetes),
            ("PATCH", served, self._kubernetes),
        ]

    def _airflow(self, request: Request, dag: str) -> int:
        run = _json(request, AirflowRun)
        name = f"{dag}/{run.dag_run_id}"
        if not re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run.dag_run_id or ""):
            return 422  # [scheduler] allowed_run_id_pattern
        return self._run(name, run)

    def _argo(self, request: Request, namespace: str) -> int:
        submit = _json(request, ArgoSubmit)
        name = submit.submitOptions.name
        if submit.namespace != namespace or submit.resourceKind != "WorkflowTemplate":
            return 400
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) or len(name) > 63:
            return 400
        if not all("=" in parameter for parameter in submit.submitOptions.parameters):
            return 400
        for label in filter(None, submit.submitOptions.labels.split(",")):
            value = label.partition("=")[2]
            if len(value) > 63 or not re.fullmatch(
                r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", value
            ):
                return 400
        return self._run(f"{namespace}/{name}", submit)

    def _run(self, name: str, what: Any) -> int:
        if name in self.runs:
            return 409
        self.runs[name] = what
        return 200

    def _github(self, request: Request, _: str) -> int:
        dispatch = _json(request, Dispatch)
        if "user-agent" not in request.headers:
            return 403
        if len(dispatch.event_type) > 100 or len(dispatch.client_payload) > 10:
            return 422
        self.dispatched.append(dispatch)
        return 204

    def _mlflow(self, request: Request) -> int:
        alias = _json(request, Alias)
        if not alias.version.isdecimal() or alias.alias == "latest":
            return 400
        self.aliases[alias.name, alias.alias] = alias.version
        return 200

    def _kubernetes(self, request: Request, name: str) -> int:
        if request.headers["content-type"] != "application/merge-patch+json":
            return 415
        if name not in self.objects:
            return 404
        self.objects[name] = _merged(self.objects[name], msgspec.json.decode(request.body))
        return 200


def _json(request: Request, kind: Any) -> Any:
    if request.headers["content-type"] != "application/json":
        raise msgspec.ValidationError("not JSON")
    return msgspec.json.decode(request.body, type=kind)


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    new = dict(old) if isinstance(old, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = _merged(new.get(name), value)
    return new
