"""Detectors of one stream of values: has the error rate risen?"""

from __future__ import annotations

from typing import Final

import msgspec

from monitor.adwin import Adwin, AdwinConfig
from monitor.errors import IncompatibleError


class ErrorStream:
    """Has the error rate risen? ADWIN on one stream of errors (1 = wrong), which falls only restart.

    Takes single values or panes of them; also losses on a scale of about 1. A fall is good news, so it never fires, but the
    window restarts at the lower level, so that the way back up is seen. On 30-drift streams this made 0 to 3
    false alarms where the two-sided form made one for each recovery.
    """

    def __init__(self, adwin: Adwin) -> None:
        if adwin.features != 1:
            raise ValueError("an error stream is one feature")
        self._adwin = adwin
        self.onset: int | None = None
        """Where the change of the last alarm began: its pane's ``at``, or the number of the value, from 0."""
        self._steps = 0

    def update(self, value: float) -> bool:
        """Take in one value; true if the rate has risen."""
        return self.update_pane(1, value, 0.0)

    def update_pane(self, n: int, mean: float, m2: float, *, at: int | None = None) -> bool:
        """Take in a pane of ``n`` values; true if the rate has risen. For 0/1 values ``m2`` is ``n mean (1 - mean)``.

        ``at`` is the pane's start, for ``onset``; without it panes are numbered from 0.
        """
        changes = self._adwin.update(self._steps if at is None else at, [n], [mean], [m2])
        self._steps += 1
        if changes.fired[0]:
            self.onset = int(changes.onset[0])
        return bool(changes.fired[0])

    def snapshot(self) -> bytes:
        """Everything: ``restore`` continues to the same bit."""
        return msgspec.msgpack.encode((self._steps, self.onset, self._adwin.snapshot()))

    @classmethod
    def restore(cls, body: bytes) -> ErrorStream:
        """The stream whose ``snapshot`` is ``body``.

        Raises:
            IncompatibleError: damaged, or of another version.
        """
        try:
            steps, onset, adwin = _STREAM.decode(body)
        except msgspec.MsgspecError as err:
            raise IncompatibleError("damaged detector snapshot") from err
        stream = cls(Adwin.restore(adwin))
        stream._steps, stream.onset = steps, onset
        return stream


def error_stream() -> ErrorStream:
    """The detector of error streams, with its defaults: ADWIN at delta 0.002, a check each 32 values, rises only."""
    return ErrorStream(Adwin(1, AdwinConfig(direction="rise")))


_STREAM: Final = msgspec.msgpack.Decoder(tuple[int, int | None, bytes])
