"""What Slack, PagerDuty and a CloudEvents consumer take, as types with their documented limits.

Unknown fields are refused where the service refuses them. Written from the services' documents alone (Slack Block Kit
reference, PagerDuty Events API v2, CloudEvents 1.0), never from our sender: these types are its oracle.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Short = Annotated[str, Meta(min_length=1, max_length=255)]


class Words(Struct, forbid_unknown_fields=True):
    """Text of a section or a context."""

    type: Literal["plain_text", "mrkdwn"]
    text: Annotated[str, Meta(min_length=1, max_length=3000)]
    emoji: bool | None = None
    verbatim: bool | None = None


class Field(Words, forbid_unknown_fields=True):
    """One cell of a section in two columns."""

    text: Annotated[str, Meta(min_length=1, max_length=2000)]


class Title(Struct, forbid_unknown_fields=True):
    """Text of a header."""

    type: Literal["plain_text"]
    text: Annotated[str, Meta(min_length=1, max_length=150)]
    emoji: bool | None = None


class Caption(Title, forbid_unknown_fields=True):
    """Text of a button."""

    text: Annotated[str, Meta(min_length=1, max_length=75)]


class Button(Struct, forbid_unknown_fields=True):
    """A link or an action."""

    type: Literal["button"]
    text: Caption
    url: Annotated[str, Meta(max_length=3000)] | None = None
    action_id: Short | None = None
    value: Annotated[str, Meta(max_length=2000)] | None = None
    style: Literal["primary", "danger"] | None = None


class Block(Struct, forbid_unknown_fields=True, tag_field="type"):
    """What all blocks have."""

    block_id: Short | None = None


class Header(Block, tag="header", kw_only=True):
    """A line in large type."""

    text: Title


class Section(Block, tag="section", kw_only=True):
    """Text, fields, or both: one of them is required."""

    text: Words | None = None
    fields: Annotated[list[Field], Meta(min_length=1, max_length=10)] | None = None
    accessory: Button | None = None


class Context(Block, tag="context", kw_only=True):
    """Small print."""

    elements: Annotated[list[Words], Meta(min_length=1, max_length=10)]


class Actions(Block, tag="actions", kw_only=True):
    """A row of buttons."""

    elements: Annotated[list[Button], Meta(min_length=1, max_length=25)]


class Divider(Block, tag="divider"):
    """A rule."""


class SlackMessage(Struct, forbid_unknown_fields=True):
    """Body of an incoming webhook, with the limits of Block Kit."""

    text: Annotated[str, Meta(min_length=1, max_length=40_000)]
    blocks: Annotated[
        list[Header | Section | Context | Actions | Divider], Meta(max_length=50)
    ] = []


class Alert(Struct, forbid_unknown_fields=True):
    """What a trigger says."""

    summary: Annotated[str, Meta(min_length=1, max_length=1024)]
    source: Annotated[str, Meta(min_length=1)]
    severity: Literal["critical", "error", "warning", "info"]
    timestamp: Annotated[datetime, Meta(tz=True)] | None = None
    component: str | None = None
    group: str | None = None
    class_: str | None = msgspec.field(default=None, name="class")
    custom_details: dict[str, Any] | str | None = None


class PagerDutyEvent(Struct, forbid_unknown_fields=True):
    """Body of ``/v2/enqueue``."""

    routing_key: Annotated[str, Meta(pattern=r"^[0-9A-Za-z]{32}$")]
    event_action: Literal["trigger", "acknowledge", "resolve"]
    dedup_key: Short | None = None
    payload: Alert | None = None
    images: list[dict[str, str]] = []
    links: list[dict[str, str]] = []
    client: str | None = None
    client_url: str | None = None


class CloudEvent(Struct):
    """A structured-mode event, as far as the specification requires; ``data`` is the sender's affair."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(min_length=1)]
    type: Annotated[str, Meta(min_length=1)]
    data: dict[str, Any]
    subject: Annotated[str, Meta(min_length=1)] | None = None
    time: Annotated[datetime, Meta(tz=True)] | None = None
    datacontenttype: Literal["application/json"] | None = None
