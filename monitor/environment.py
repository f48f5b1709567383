"""From the environment and a YAML file to ``Settings``: the only reader of the environment.

Four layers, the first that speaks wins::

    DRIFTLINE_GROUP__NAME  >  DRIFTLINE_GROUP__NAME_FILE (secrets)  >  YAML file  >  default

The YAML file (``--config FILE`` or ``DRIFTLINE_CONFIG``) has the groups as its top-level keys. A name that does not
exist is an error in both: a setting that is silently ignored is worse than one that is refused.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from monitor.errors import ConfigError
from monitor.settings import PREFIX, Settings

CONFIG_VARIABLE: Final = "DRIFTLINE_CONFIG"
# Kubernetes injects these for every Service called driftline-*: they are not ours to refuse.
_SERVICE_LINK: Final = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT_\d+_(TCP|UDP)(_\w+)?$")

Group = Literal[
    "kafka",
    "clickhouse",
    "limits",
    "profiler",
    "bridge",
    "detector",
    "sink",
    "evaluator",
    "dispatcher",
    "email",
    "approvals",
    "api",
    "metrics",
    "log",
    "embedded",
]


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as help texts show it. ``variable_file`` is the variable that names a file with the secret, or ``""``."""

    group: str
    variable: str
    variable_file: str
    default: str
    description: str


def describe(*groups: Group) -> Iterator[SettingRow]:
    """Every setting of the groups, or of all groups, in order: the one source of every table of settings."""
    for group, group_field in Settings.model_fields.items():
        if groups and group not in groups:
            continue
        for name, field in _group_model(group_field).model_fields.items():
            variable = f"{PREFIX}{group}__{name}".upper()
            secret = field.annotation is SecretStr
            yield SettingRow(
                group,
                variable,
                f"{variable}_FILE" if secret else "",
                _shown(field),
                field.description or "",
            )


def load(config: Path | None = None) -> Settings:
    """The settings of this process.

    Args:
        config: a YAML file; without it, the file that ``DRIFTLINE_CONFIG`` names, if any.

    Raises:
        ConfigError: a name or value is wrong, or a file cannot be read; one line that never quotes a value.
    """
    _refuse_unknown(os.environ)
    named = os.environ.get(CONFIG_VARIABLE)
    path = config or (Path(named) if named else None)
    values = _read_yaml(path) if path is not None else {}
    for row in describe():
        if row.variable_file and os.environ.get(row.variable_file):
            group, name = _path_of(row.variable)
            values.setdefault(group, {})[name] = _read_secret(row.variable_file)
    try:
        return Settings(**values)
    except ValidationError as err:
        first = err.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        variable = PREFIX + "__".join(str(part) for part in first["loc"][:2]).upper()
        raise ConfigError(f"{where} ({variable}): {problem_of(err)}") from err


def problem_of(err: ValidationError) -> str:
    """What is wrong with the first value that is, and how many more are: one line that never quotes a value."""
    first = err.errors(include_input=False, include_url=False)[0]
    message = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
    more = f" (and {err.error_count() - 1} more)" if err.error_count() > 1 else ""
    return f"{message.removeprefix('Value error, ')}{more}"


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings. Holds secrets: for ``execve``, not for eyes."""
    variables: dict[str, str] = {}
    for row in describe():
        group, name = _path_of(row.variable)
        value = getattr(getattr(settings, group), name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            variables[row.variable] = ",".join(value) if isinstance(value, tuple) else str(value)
    return variables


def colour_wanted() -> bool:
    """Whether colour may be used, per the NO_COLOR convention (no-color.org)."""
    return not os.environ.get("NO_COLOR")


def _group_model(field: FieldInfo) -> type[BaseModel]:
    model = field.annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError("a setting stands outside of a group")
    return model


def _path_of(variable: str) -> tuple[str, str]:
    group, _, name = variable.removeprefix(PREFIX).lower().partition("__")
    return group, name


def _shown(field: FieldInfo) -> str:
    default = field.default
    if default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {CONFIG_VARIABLE}
    for row in describe():
        known |= {row.variable, row.variable_file}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in known:
            continue
        if _SERVICE_LINK.search(name) or value.startswith(("tcp://", "udp://")):
            continue
        close = difflib.get_close_matches(name, sorted(known), n=1)
        hint = (
            f"; did you mean {close[0]}?"
            if close
            else "; `driftline run --help` lists the processes"
        )
        raise ConfigError(f"{name} is not a setting{hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read: {_cause(err)}") from err
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        raise ConfigError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not YAML") from err
    except (ValueError, RecursionError) as err:  # a date such as 2013-02-31; brackets without end
        raise ConfigError(f"{path}: not YAML: a value in it cannot be read") from err
    if document is None:
        return {}
    groups = list(Settings.model_fields)
    if not isinstance(document, dict) or not all(
        isinstance(name, str) and isinstance(group, dict) for name, group in document.items()
    ):
        raise ConfigError(f"{path}: expected a mapping of groups ({', '.join(groups)}) to settings")
    return document


def _read_secret(variable: str) -> str:
    path = Path(os.environ[variable])
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{variable}: {path} cannot be read: {_cause(err)}") from err


def _cause(err: OSError | UnicodeDecodeError) -> str:
    return (err.strerror or "failed").lower() if isinstance(err, OSError) else "not UTF-8"
