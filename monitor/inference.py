"""Bodies of requests and responses, as serving stacks write them, to predictions.

A body holds many rows, and each becomes one event, ``ID`` if it is the only one and ``ID-ROW`` otherwise, the first row being 0::

    request   V1 {"instances"}, V2 {"inputs": tensors}, MLflow {"dataframe_split" | "dataframe_records" | "inputs"}, Seldon {"data"}, [rows]
    response  V1 and MLflow {"predictions"}, V2 {"outputs": tensors}, Seldon {"data"}, [rows]

Nothing is guessed: columns without names are named by ``ingest.features`` of the model's spec, and which output is the prediction and which the
score is said there too, unless there is one output of one value, or one is called ``prediction``. What cannot be told is an error that says what to write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, TypeAlias

import msgspec

from monitor.errors import InvalidEventError
from monitor.spec import IngestSpec, ModelSpec

Row: TypeAlias = dict[str, Any]
Columns: TypeAlias = dict[str, list[Any]]
"""Values by name; of a column that is wide, a value is a list."""

MAX_ID: Final = 200  # characters: events are cut at 256, and rows add their number
MAX_ROWS: Final = 1 << 15  # of a body of 1 MiB: an event with all that is required has 32 bytes
# Of the events of one body: names that stand in it once stand in each of them.
MAX_EVENT_BYTES: Final = 16 << 20
_NOTHING: Final = IngestSpec()
_SHOWN: Final = 5  # names in an error
_LEAST_VALUE: Final = 16  # bytes of a value in memory, a reference at the least
_CANONICAL: Final = ("prediction", "score")
_OUTPUT: Final = re.compile(r"([^\[\]]+)(?:\[(\d+)\])?")


@dataclass(frozen=True, slots=True)
class About:
    """What stands around a body: of which model, and when.

    Attributes:
        ts: RFC 3339 or epoch milliseconds, as in an event.
        version: as somebody said; without it, what the response says, and then ``endpoint``.
        error: why there is no answer.
    """

    model: str
    id: str
    ts: str | float
    version: str = ""
    endpoint: str = ""
    latency_ms: float | None = None
    error: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the bodies of a model are read: what its spec says of it, or nothing where it has none."""

    ingest: IngestSpec = _NOTHING
    embeddings: frozenset[str] = frozenset()

    @staticmethod
    def of(spec: ModelSpec) -> Reading:
        """By a spec."""
        wide = (name for name, feature in spec.features.items() if feature.type == "embedding")
        return Reading(spec.ingest, frozenset(wide))


def event_rows(about: About, reading: Reading, request: object, response: object) -> list[bytes]:
    """Events as JSON, one for each row.

    Args:
        about: what stands around the bodies.
        reading: how they are read.
        request: a parsed body; ``None``: there is none.
        response: likewise. The very same object as the request: each of its rows holds both, and what is no output is a feature.

    Raises:
        InvalidEventError: a body cannot be read, or the two have not the same number of rows.
    """
    features = None if request is None else features_of(request, reading)
    answers = None if response is None else answers_of(response, reading.ingest)
    if features is not None and request is response:
        features = [_without_outputs(row, reading.ingest) for row in features]
    if features is None and answers is None:
        raise InvalidEventError("missing_field", "neither a request nor a response")
    counts = {len(rows) for rows in (features, answers) if rows is not None}
    if len(counts) != 1:
        (n, m) = (len(features or ()), len(answers or ()))
        raise InvalidEventError("wrong_type", f"{n} rows in the request, {m} in the response")
    (n,) = counts
    frame = _frame(about, response)
    out: list[bytes] = []
    left = MAX_EVENT_BYTES
    for i in range(n):
        event = {"id": about.id if n == 1 else f"{about.id}-{i}", **frame}
        if features is not None:
            event["features"] = features[i]
        if answers is not None:
            event |= answers[i]
        out.append(msgspec.json.encode(event))
        left -= len(out[-1])
        if left < 0:
            raise InvalidEventError("too_large", f"its events have over {MAX_EVENT_BYTES} bytes")
    return out


def _frame(about: About, response: object) -> Row:
    """What all the events of a body have."""
    said = response.get("model_version") if isinstance(response, Mapping) else None
    frame: Row = {"ts": about.ts, "model": about.model}
    version = about.version or (said if isinstance(said, str) else "") or about.endpoint
    for name, value in (
        ("version", version),
        ("latency_ms", about.latency_ms),
        ("error", about.error),
        ("tags", dict(about.tags)),
    ):
        if value not in (None, "", {}):
            frame[name] = value
    return frame


def features_of(body: object, reading: Reading) -> list[Row]:
    """Features of each row of a request.

    Raises:
        InvalidEventError: it is of no form that is known, or its columns have no names.
    """
    names = reading.ingest.features
    if isinstance(body, list):
        return _rows(body, names)
    said = body if isinstance(body, dict) else {}
    inputs = said.get("inputs")
    if isinstance(inputs, list) and any(_is_tensor(each) for each in inputs):
        return _tensor_rows(inputs, reading)
    if isinstance(inputs, dict):
        return _by_row(_checked_columns(inputs))
    for name in ("instances", "dataframe_records", "inputs"):
        if isinstance(said.get(name), list):
            return _rows(said[name], names)
    split = said.get("dataframe_split")
    if isinstance(split, dict):
        return _rows(_list(split, "data"), _names(split.get("columns")) or names)
    if isinstance(said.get("data"), dict):
        columns, rows = _seldon(said["data"])
        return _rows(rows, names or columns)
    raise InvalidEventError(
        "missing_field",
        "no request that we know: it has neither instances, inputs, dataframe_split, dataframe_records nor data",
    )


def answers_of(body: object, ingest: IngestSpec) -> list[Row]:
    """``prediction`` and ``score`` of each row of a response.

    Raises:
        InvalidEventError: it is of no form that is known, or nobody said what its outputs are.
    """
    outputs = _outputs(body)
    chosen = {"prediction": ingest.prediction, "score": ingest.score}
    if not any(chosen.values()):
        chosen = _evident(outputs)
    found = {field_: _taken(outputs, path) for field_, path in chosen.items() if path}
    return _by_row(found)


def _without_outputs(row: Row, ingest: IngestSpec) -> Row:
    chosen = (ingest.prediction, ingest.score) if ingest.prediction or ingest.score else _CANONICAL
    outputs = {path.partition("[")[0] for path in chosen}
    names = ingest.features or row
    return {name: row[name] for name in names if name in row and name not in outputs}


def _outputs(body: object) -> Columns:
    if isinstance(body, list):
        return _predictions(body)
    said = body if isinstance(body, dict) else {}
    if isinstance(said.get("outputs"), list):
        return {name: column for name, column, _ in _tensors(said["outputs"])}
    if isinstance(said.get("data"), dict):
        names, rows = _seldon(said["data"])
        if names and all(isinstance(row, list) and len(row) == len(names) for row in rows):
            return {name: [row[i] for row in rows] for i, name in enumerate(names)}
        return {"data": _flattened(rows)}
    found = said.get("predictions")
    if isinstance(found, list):
        return _predictions(found)
    if isinstance(found, dict):
        return _checked_columns(found)
    raise InvalidEventError(
        "missing_field", "no response that we know: it has neither predictions, outputs nor data"
    )


def _predictions(rows: list[Any]) -> Columns:
    """Outputs of V1: fields, where each row is an object, or else the one called ``predictions``."""
    _refuse_many(len(rows))
    if not rows or not all(isinstance(row, dict) for row in rows):
        return {"predictions": _flattened(rows)}
    names = dict.fromkeys(name for row in rows for name in row)
    if (
        len(names) * len(rows) > MAX_EVENT_BYTES // _LEAST_VALUE
    ):  # of rows that share no name, a square
        raise InvalidEventError("too_large", f"{len(names)} outputs of {len(rows)} rows")
    return {name: _flattened([row.get(name) for row in rows]) for name in names}


def _evident(outputs: Columns) -> dict[str, str]:
    """Which output is the prediction where nobody said it: the one of this name, or the only one if it has one value."""
    if "prediction" in outputs:
        return {name: name for name in _CANONICAL if name in outputs}
    if len(outputs) == 1:
        ((name, column),) = outputs.items()
        if not any(isinstance(value, list | dict) for value in column):
            return {"prediction": name}
    wide = [name for name, column in outputs.items() if column and isinstance(column[0], list)]
    example = f"{_shown(wide)}, of which [0] is the first column" if wide else _shown(outputs)
    raise InvalidEventError(
        "missing_field",
        f"which output is the prediction, and which the score? Say it in the model's spec, ingest: {{prediction: NAME, score: NAME[1]}}; here are: {example}",
    )


def _taken(outputs: Columns, path: str) -> list[Any]:
    """Values of an output that the spec names."""
    match = _OUTPUT.fullmatch(path)
    assert match is not None, "the spec checks it"
    name, index = match[1], match[2]
    if name not in outputs:
        raise InvalidEventError(
            "missing_field",
            f"the response has no output {name}, which ingest of the model's spec names: it has {_shown(outputs)}",
        )
    if index is None:
        return outputs[name]
    i = int(index)
    try:
        return [v[i] if isinstance(v, list) else (v,)[i] for v in outputs[name]]
    except IndexError:
        raise InvalidEventError("wrong_type", f"the output {name} has no column {i}") from None


def _rows(rows: list[Any], names: Sequence[str]) -> list[Row]:
    """Rows with names: their own, or those of the columns."""
    _refuse_many(len(rows))
    return [row if isinstance(row, dict) else _named(row, names) for row in rows]


def _named(row: object, names: Sequence[str]) -> Row:
    values = row if isinstance(row, list) else [row]
    if not names:
        raise _nameless(len(values))
    if len(values) != len(names):
        raise InvalidEventError("wrong_type", f"{len(values)} columns, and {len(names)} names")
    return dict(zip(names, values, strict=True))


def _nameless(columns: int) -> InvalidEventError:
    return InvalidEventError(
        "missing_field",
        f"{columns} columns without names: name them in the model's spec, ingest: {{features: [a, b]}}, in their order",
    )


def _tensor_rows(tensors: list[Any], reading: Reading) -> list[Row]:
    """Rows of V2: a tensor is a column under its name, or columns that the spec names, all tensors in order."""
    found = list(_tensors(tensors))
    names = reading.ingest.features
    n = len(found[0][1])
    if any(len(column) != n for _, column, _ in found):
        raise InvalidEventError("wrong_type", "the tensors have not the same number of rows")
    if not names:
        for name, _, width in found:
            if width > 1 and name not in reading.embeddings:
                raise _nameless(width)
        return _rows(_by_row({name: column for name, column, _ in found}), ())
    columns = [column if width > 1 else [[v] for v in column] for _, column, width in found]
    rows = [[v for column in columns for v in column[i]] for i in range(n)]
    return _rows(rows, names)


def _tensors(tensors: list[Any]) -> Iterable[tuple[str, list[Any], int]]:
    """Name, value of each row, and width of each tensor; a value is a list if it is wider than 1."""
    if len({tensor.get("name") for tensor in tensors if _is_tensor(tensor)}) != len(tensors):
        raise InvalidEventError("wrong_type", "tensors are objects with name, shape and data, each of its own name")  # fmt: skip
    for tensor in tensors:
        name, shape = tensor["name"], tensor["shape"]
        flat = _flat(_list(tensor, "data"))
        if prod(shape) != len(flat):
            raise InvalidEventError("wrong_type", f"tensor {name[:64]}: {len(flat)} values are not of its shape")  # fmt: skip
        n, width = shape[0], prod(shape[1:])
        _refuse_many(n)
        yield (
            name,
            flat if width == 1 else [flat[i * width : (i + 1) * width] for i in range(n)],
            width,
        )


def _is_tensor(tensor: object) -> bool:
    if not isinstance(tensor, dict):
        return False
    shape = tensor.get("shape")
    return (
        isinstance(tensor.get("name"), str)
        and isinstance(shape, list)
        and 1 <= len(shape) <= 8
        and all(type(n) is int and 1 <= n < 1 << 32 for n in shape)
    )


def _flat(values: list[Any]) -> list[Any]:
    """Row by row, however deep."""
    while any(isinstance(value, list) for value in values):
        values = [x for value in values for x in (value if isinstance(value, list) else (value,))]
    return values


def _seldon(data: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Names and rows of Seldon's own protocol: ``ndarray``, or ``tensor`` with its shape."""
    names = _names(data.get("names"))
    tensor = data.get("tensor")
    if not isinstance(tensor, dict):
        return names, _list(data, "ndarray")
    shape, values = tensor.get("shape"), _list(tensor, "values")
    named = {"name": "tensor", "shape": shape, "data": values}
    ((_, column, width),) = _tensors([named])
    return names, column if width > 1 else [[value] for value in column]


def _flattened(rows: list[Any]) -> list[Any]:
    """A list of one value is that value."""
    return [row[0] if isinstance(row, list) and len(row) == 1 else row for row in rows]


def _by_row(columns: Columns) -> list[Row]:
    n = len(next(iter(columns.values()), ()))
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def _checked_columns(columns: dict[str, Any]) -> Columns:
    """Columns of one length, a single value being one of one row."""
    lists = {n: c if isinstance(c, list) else [c] for n, c in columns.items()}
    if len({len(column) for column in lists.values()}) > 1:
        raise InvalidEventError("wrong_type", "the columns have not the same number of rows")
    _refuse_many(max(map(len, lists.values()), default=0))
    return {name: _flattened(column) for name, column in lists.items()}


def _list(of: Mapping[str, Any], name: str) -> list[Any]:
    found = of.get(name)
    if not isinstance(found, list):
        raise InvalidEventError("missing_field", f"no {name} in JSON: it is no list, or came in binary")  # fmt: skip
    return found


def _names(said: object) -> list[str]:
    names = said if isinstance(said, list) else []
    return [str(name)[:256] for name in names]


def _refuse_many(rows: int) -> None:
    if rows > MAX_ROWS:
        raise InvalidEventError("too_large", f"{rows} rows; the bound is {MAX_ROWS}")


def _shown(names: Iterable[str]) -> str:
    """Some names, cut to size."""
    chosen = [name[:64] for name in names]
    return ", ".join(chosen[:_SHOWN]) + (", ..." if len(chosen) > _SHOWN else "")
