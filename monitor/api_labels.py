"""The part of the API that labels come in by: rows are checked here, and go to the topic, which stays the one way in.

Who was told that a label is accepted can count on it: the broker has it. To send rows again does no harm, since rows of one id and ``ts`` are one label.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Request, Response

from monitor.api_answers import answers, json
from monitor.api_orders import (
    Desk,
    NothingTakenError,
    body_of,
    broker_in_http,
    media_type_of,
    same_site_check,
)
from monitor.errors import InvalidEventError
from monitor.events import Aliases
from monitor.labels import Receipt, RefusedRow, Rows, csv_rows, json_rows, sift
from monitor.store import Store

MAX_BODY: Final = 1 << 20  # as a message: some 10,000 labels, which a broker takes in a moment
_JSON, _CSV = "application/json", "text/csv"
_LABEL: Final = {
    "type": "object",
    "required": ["model", "label"],
    "properties": {
        "id": {"type": ["string", "integer"], "description": "Of the prediction; else prediction_id, or the model's join key."},
        "model": {"type": "string"},
        "label": {"type": ["string", "number", "boolean"]},
        "ts": {"type": ["string", "number"], "description": "When it became known: RFC 3339 or epoch milliseconds; by default now."},
    },
}  # fmt: skip
_SCHEMA: Final = {
    _JSON: {"schema": {"oneOf": [_LABEL, {"type": "array", "items": _LABEL}]}},
    _CSV: {"schema": {"description": "The same fields as columns, after a header row."}},
}  # fmt: skip


class Taken(msgspec.Struct, frozen=True):
    """What ``Receipt.to_dict`` says, for OpenAPI."""

    accepted: int
    refused: int
    reasons: dict[str, int]
    errors: list[RefusedRow]
    truncated: bool


def label_routes(store: Store, desk: Desk | None, public_url: str) -> APIRouter:
    """The route; without a way to the broker it says that there is none."""
    router = APIRouter(prefix="/api/v1/labels", dependencies=[Depends(same_site_check(public_url))])

    @router.post(
        "",
        openapi_extra={"requestBody": {"required": True, "content": _SCHEMA}},
        **answers(Taken, 413, 415, status=202),
    )
    def take_labels(
        request: Request, body: Annotated[bytes, Depends(body_of(_JSON, _CSV, most=MAX_BODY))]
    ) -> Response:
        """Take labels: JSON, one or an array, or CSV. 202 says how many were accepted, and names rows that were refused, the first of them as 1.

        422 where not one is a label; 503 while the broker does not answer: nothing is claimed, send the same again.
        """
        if desk is None or desk.take is None:
            raise HTTPException(
                503, "this API has no broker to give labels to: use `driftline labels load`"
            )
        receipt = Receipt()
        rows = _rows(body, media_type_of(request))
        labels = list(sift(rows, receipt, arrival_ms=desk.clock_ms(), aliases=_join_keys(store)))
        if receipt.refused and not labels:
            raise NothingTakenError("not one row is a label", receipt.to_dict())
        with broker_in_http("no label is sure to be taken, send the same again"):
            desk.take(labels)
        receipt.accepted = len(labels)
        return json(receipt.to_dict(), 202)

    return router


def _rows(body: bytes, media_type: str) -> Rows:
    try:
        if media_type == _JSON:
            return json_rows(body)
        text = io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", "surrogateescape", newline="")
        return csv_rows(text)
    except InvalidEventError as err:
        raise HTTPException(422, str(err)) from None


def _join_keys(store: Store) -> Aliases:
    """Of the models as they are now. All are looked up at once, and not before a row without id asks."""
    known = cache(store.join_keys)
    return lambda model: known().get(model, ())
