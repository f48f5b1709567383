"""The error tree. Its reader asks one question: retry, dead-letter or crash?

- ``TransientError``: the same call may succeed later: retry with backoff, lose nothing.
- ``InvalidEventError``: these bytes will never be right: to the dead letters, with the reason.
- ``ConfigError``: a setting, spec or address is wrong: one line to the user, exit code 2.
- everything else is a defect: crash, and let the supervisor restart.
"""

from __future__ import annotations

from typing import Literal, get_args

RejectReason = Literal[
    "not_json",  # neither JSON nor Arrow nor a CloudEvent that we know
    "missing_field",  # no ts, or no model, or neither features nor prediction
    "wrong_type",  # a field of the envelope has the wrong type
    "bad_timestamp",  # ts cannot be read as a time
    "future_timestamp",  # ts is further ahead than clocks differ: never moves a watermark
    "too_old",  # older than max_age, where that is set
    "too_large",  # message, feature count or nesting above the limits
    "unknown_model",  # automatic registration is off, or its cap is reached
    "killed_worker",  # decoding it ends the process: found out after three have ended
]
REJECT_REASONS: tuple[RejectReason, ...] = get_args(RejectReason)


class DriftlineError(Exception):
    """Base of the errors that a caller can act on."""


class TransientError(DriftlineError):
    """A dependency did not answer: the same call may succeed later."""


class ConfigError(DriftlineError):
    """A setting, a spec or an address is wrong. The message is one line and says what to do."""


class NothingToDoError(ConfigError):
    """What somebody asks for would change nothing."""


class IncompatibleError(DriftlineError):
    """Two values of different binnings, or bytes of a schema version that this release cannot read."""


class InvalidEventError(DriftlineError):
    """An event that will never be valid.

    Attributes:
        reason: one of ``REJECT_REASONS``; bounded, so it may be a metric label.
        detail: for people; may quote field names and sizes, never values. Not a label.
    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
