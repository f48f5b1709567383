"""Where notifications and actions go, as a model's spec names it: addresses and references to secrets, never a secret.

Each target names its receiver's own terms. What is sent there is ``alerting.payloads`` and ``alerting.pipelines``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ActionName: TypeAlias = Literal["retrain", "rollback"]
ACTIONS: Final[tuple[ActionName, ...]] = get_args(ActionName)
_SECRET: Final = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]*|file:/\S+)")
_MAILBOX: Final = re.compile(r"[^\s@<>(),;:\"\[\]]+@[A-Za-z0-9.-]+")
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
PLACEHOLDERS: Final = frozenset(
    {
        "action",
        "advice",
        "cause",
        "incident",
        "key",
        "model",
        "onset",
        "rollback_to",
        "severity",
        "title",
        "version",
    }
)
"""What a template may hold in braces; ``key`` is the idempotency key."""


def is_reference(value: object) -> bool:
    """Whether a text names a secret instead of being one."""
    return isinstance(value, str) and _SECRET.fullmatch(value) is not None


def _secret(value: object) -> str:
    if not isinstance(value, str) or not is_reference(value):
        # The value itself is never quoted: it may be the secret.
        raise ValueError("give a reference, env:NAME or file:/path, not the secret itself")
    return value


def _address(value: object) -> str:
    if isinstance(value, str) and is_reference(value):
        return value
    if isinstance(value, str) and re.fullmatch(r"https?://[^\s@]+", value):
        return value
    raise ValueError("give an http(s) address without user and password, or env:NAME or file:/path")


def _mailbox(value: object) -> str:
    if isinstance(value, str) and _MAILBOX.fullmatch(value):
        return value
    raise ValueError("give an address such as ml-team@example.com")


SecretRef = Annotated[str, BeforeValidator(_secret)]
Address = Annotated[str, BeforeValidator(_address)]
Mailbox = Annotated[str, BeforeValidator(_mailbox)]
Name = Annotated[str, Field(pattern=_NAME, max_length=253)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SlackTarget(_Strict):
    """A Slack incoming webhook: its address is a secret."""

    url: SecretRef


class TeamsTarget(_Strict):
    """A Microsoft Teams workflow that starts "when a Teams webhook request is received": its address is a secret."""

    url: SecretRef


class PagerDutyTarget(_Strict):
    """A PagerDuty Events v2 integration. ``url`` is for a proxy or a test receiver."""

    routing_key: SecretRef
    url: Address = "https://events.pagerduty.com/v2/enqueue"


class AlertmanagerTarget(_Strict):
    """A Prometheus Alertmanager, by the address under which its page is served; ``token`` is for a proxy before it."""

    url: Address
    token: SecretRef | None = None


class EmailTarget(_Strict):
    """People who get mail; the server that sends it is a setting (``DRIFTLINE_EMAIL__SERVER``)."""

    to: tuple[Mailbox, ...] = Field(min_length=1, max_length=50)


class WebhookTarget(_Strict):
    """A receiver of CloudEvents, signed per Standard Webhooks."""

    url: Address
    secret: SecretRef


class AirflowTarget(_Strict):
    """A DAG of Apache Airflow 3. ``token`` is a JWT of its API; ``conf`` is given to the run beside what happened."""

    url: Address
    dag: str = Field(pattern=r"^[A-Za-z0-9_.~-]+$", max_length=250)
    token: SecretRef
    conf: dict[str, Any] = Field(default_factory=dict, max_length=32)


class ArgoWorkflowsTarget(_Strict):
    """A WorkflowTemplate of Argo Workflows; its arguments get ``parameters`` beside what happened, if it declares them."""

    url: Address
    namespace: Name
    template: Name
    token: SecretRef
    parameters: tuple[Literal["model", "version", "incident", "cause", "onset"], ...] = ("model",)


class GitHubTarget(_Strict):
    """A workflow of GitHub Actions that starts on ``repository_dispatch``. ``token`` may write the repository's contents."""

    repository: str = Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", max_length=200)
    token: SecretRef
    event_type: str = Field(default="", max_length=100)  # driftline-retrain, driftline-rollback
    url: Address = "https://api.github.com"


class MLflowTarget(_Strict):
    """An alias of MLflow's model registry that is moved back to the good version. ``name`` defaults to the model's."""

    url: Address
    alias: str = Field(default="champion", min_length=1, max_length=255)
    name: str = Field(default="", max_length=255)
    token: SecretRef | None = None


class ArgoRolloutsTarget(_Strict):
    """A Rollout of Argo Rollouts that is aborted, by the address of the Kubernetes API."""

    url: Address
    namespace: Name
    rollout: Name
    token: SecretRef


class KServeTarget(_Strict):
    """An InferenceService of KServe whose canary gets no more traffic, by the address of the Kubernetes API."""

    url: Address
    namespace: Name
    service: Name
    token: SecretRef


def check_template(url: str) -> None:
    """Refuse an address whose host is not fixed, or that names what there is not. The address is not quoted.

    Raises:
        ValueError: it is one.
    """
    try:
        host = urlsplit(url).netloc
    except ValueError:  # its text quotes the host, and user and password before it
        raise ValueError("the address is not valid") from None
    if "{" in host:
        raise ValueError("the host of an address is fixed: placeholders stand behind it")
    _check_names([url])


def _check_names(templates: Iterable[str]) -> None:
    for template in templates:
        if not PLACEHOLDERS.issuperset(PLACEHOLDER.findall(template)):
            raise ValueError(f"placeholders are {', '.join(sorted(PLACEHOLDERS))}")


class HttpTarget(_Strict):
    """Any address. ``{model}`` and the like in the path and in the texts of ``body`` are filled in, each escaped for its place.

    A receiver that is not ``idempotent`` is called once where nobody can say whether the first call was taken.
    """

    url: Address
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    headers: dict[str, str] = Field(default_factory=dict, max_length=16)
    body: dict[str, Any] | None = None
    token: SecretRef | None = None  # sent as Authorization: Bearer
    idempotent: bool = False

    @model_validator(mode="after")
    def _templates(self) -> Self:
        if not is_reference(self.url):
            check_template(self.url)
        _check_names(_texts(self.body))
        for name, value in self.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.isprintable():
                raise ValueError("a header is a name of letters, digits and dashes, and one line")
            if name.lower() in ("authorization", "host", "content-length"):
                raise ValueError("give authorization as token; host and length are not yours")
        return self


Notified: TypeAlias = (
    SlackTarget | TeamsTarget | PagerDutyTarget | AlertmanagerTarget | EmailTarget | WebhookTarget
)
Acting: TypeAlias = (
    WebhookTarget
    | AirflowTarget
    | ArgoWorkflowsTarget
    | GitHubTarget
    | MLflowTarget
    | ArgoRolloutsTarget
    | KServeTarget
    | HttpTarget
)


class _OneOf(_Strict):
    """A choice: exactly one of its optional fields is given."""

    _what: ClassVar[str]

    @classmethod
    def _kinds(cls) -> list[str]:
        return [name for name, field in cls.model_fields.items() if field.default is None]

    def _given(self) -> list[str]:
        return [name for name in self._kinds() if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self._given()) != 1:
            *some, last = self._kinds()
            raise ValueError(f"{self._what} has exactly one of {', '.join(some)} and {last}")
        return self

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return self._given()[0]


class NotifyTarget(_OneOf):
    """One target. ``name`` tells two of one kind apart; it defaults to the kind."""

    _what: ClassVar[str] = "a notify entry"
    name: str = Field(default="", max_length=64)
    slack: SlackTarget | None = None
    teams: TeamsTarget | None = None
    pagerduty: PagerDutyTarget | None = None
    alertmanager: AlertmanagerTarget | None = None
    email: EmailTarget | None = None
    webhook: WebhookTarget | None = None

    @property
    def chosen(self) -> Notified:
        """The one that is given."""
        found: Notified = getattr(self, self.kind)
        return found

    @property
    def target(self) -> str:
        """The name under which it stands in the outbox."""
        return self.name or self.kind


_EITHER: Final = frozenset({"webhook", "airflow", "argo_workflows", "github", "http"})
_ROLLBACK: Final = frozenset({"mlflow", "argo_rollouts", "kserve"})


class ActionTarget(_OneOf):
    """What carries an action out."""

    _what: ClassVar[str] = "an action"
    webhook: WebhookTarget | None = None
    airflow: AirflowTarget | None = None
    argo_workflows: ArgoWorkflowsTarget | None = None
    github: GitHubTarget | None = None
    mlflow: MLflowTarget | None = None
    argo_rollouts: ArgoRolloutsTarget | None = None
    kserve: KServeTarget | None = None
    http: HttpTarget | None = None

    @property
    def chosen(self) -> Acting:
        """The one that is given."""
        found: Acting = getattr(self, self.kind)
        return found


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def action_named(text: str) -> ActionName | None:
    """The action of this name, such as that of an advice; ``None`` if it is none."""
    return next((name for name in ACTIONS if name == text), None)


def fits(target: ActionTarget, action: ActionName) -> bool:
    """Whether a target can carry out an action: what only moves traffic or an alias back cannot retrain."""
    return target.kind in _EITHER or (action == "rollback" and target.kind in _ROLLBACK)
