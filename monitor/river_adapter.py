"""River's detectors of one stream of values, where writing our own would gain nothing: KSWIN, DDM, EDDM, HDDM, Page-Hinkley.

They keep river's decisions to the last alarm. What is added is what a service needs: values that make no sense change nothing,
the state is saved and restored exactly, and panes are taken where that has a meaning.

A snapshot is data, never code: plain values that ``restore`` puts into a detector that it has built itself, of a kind that it
knows. Nothing in it names a class or a function, so it may come from a topic that others can write to. The
state is river's private one, so another release of river does not read it.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MethodType
from typing import Any, Final, Literal, Protocol, get_args

import msgspec

from monitor.errors import IncompatibleError

Kind = Literal["kswin", "ddm", "eddm", "hddm_a", "hddm_w", "page_hinkley"]
Setting = bool | int | float | str

SNAPSHOT_VERSION: Final = 1
_CRC_BYTES: Final = 4
_RATES: Final[frozenset[Kind]] = frozenset({"ddm", "hddm_a", "hddm_w"})  # of values in [0, 1]
_COUNTS: Final[frozenset[Kind]] = frozenset({"ddm", "hddm_a"})  # decide on counts of errors
# A compiled mean tells four float64 and, at byte 24, whether it has begun. It would panic on anything else.
_COMPILED_BYTES: Final = 33
_COMPILED_FLAG: Final = 24
_ROUNDING: Final = 1e-6  # relative; how exact a pane's mean and M2 must be to be those of 0 and 1


class RiverDetector:
    """One of river's detectors: true at the values at which it fires, then it starts anew.

    ==============  ==================  ============================================================
    kind            values              blind to; false alarms in 10,000 clean values at its defaults
    ==============  ==================  ============================================================
    kswin           finite              slow drift (its window is 100); 14, on AR(1) of 0.9 89
    ddm             0 to 1, errors      falls; rises after a long quiet past come late
    eddm            0 or 1, errors      rises that leave the distance between errors; many
    hddm_a, _w      0 to 1, errors      falls, unless ``two_sided_test``
    page_hinkley    finite              scale: it is fixed at about 1; 6, on AR(1) of 0.9 158
    ==============  ==================  ============================================================

    Sources: Raab et al. 2020 (KSWIN); Gama et al. 2004 (DDM); Baena-Garcia et al. 2006 (EDDM); Frias-Blanco et al. 2015 (HDDM);
    Page 1954. ADWIN is ours: ``monitor.adwin``.

    Mutable because it is a stream's state: one owner, values in order.

    >>> detector = RiverDetector("ddm")
    >>> [i for i in range(400) if detector.update(float(i % (10 if i < 200 else 2) == 0))]
    [222]

    Args:
        kind: which.
        settings: river's own, by its names. KSWIN draws from its window, so it needs a ``seed``.

    Raises:
        ValueError: a kind or a setting that river does not have.
    """

    def __init__(self, kind: Kind, **settings: Setting) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind is one of {', '.join(get_args(Kind))}, not {kind!r}")
        if kind == "kswin" and "seed" not in settings:
            raise ValueError("kswin draws from its window at random: give it a seed")
        self.kind: Kind = kind
        self._settings = settings
        try:
            self._river = _classes()[kind](**settings)
        except TypeError as err:
            raise ValueError(f"{kind}: {err}") from err

    def update(self, value: float) -> bool:
        """Take in one value; true if it fires.

        Raises:
            ValueError: a value outside the range of the kind; the state is as before.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{self.kind} takes finite values, not {value}")
        if self.kind in _RATES and not 0 <= value <= 1:
            raise ValueError(f"{self.kind} takes errors, from 0 to 1, not {value}")
        if self.kind == "eddm" and value not in (0.0, 1.0):
            raise ValueError(f"eddm takes errors, 0 or 1, not {value}")
        return self._fires(value)

    def update_pane(self, n: int, mean: float, m2: float) -> bool:
        """Take in ``n`` errors (0 or 1) of which only their moments are known; true if one of them fires. O(n).

        They are fed with the ones spread evenly: the same alarms on every run, and fewer by chance than in the order in which
        they came, as runs of errors within a pane are gone. An empty pane is none.

        Raises:
            ValueError: moments that zeros and ones cannot have; or a kind other than DDM and HDDM_A, for which moments say too
                little: KSWIN and Page-Hinkley need the values, EDDM the distances between errors, and HDDM_W weighs the
                last twenty or so (fed with even panes of 200 it slept through a rise from 0.1 to 0.3). The state is as before.
        """
        if self.kind not in _COUNTS:
            raise ValueError(f"{self.kind} needs the values of a pane, not their moments")
        if n < 0 or n != math.floor(n):
            raise ValueError("n counts events: whole and not negative")
        if n == 0:
            return False
        if not (0 <= mean <= 1 and abs(m2 - n * mean * (1 - mean)) <= _ROUNDING * n):
            raise ValueError(f"{self.kind} takes panes of zeros and ones: M2 is n mean (1 - mean)")
        ones = round(n * mean)
        if abs(ones - n * mean) > _ROUNDING * n:
            raise ValueError(f"{self.kind} takes panes of zeros and ones: n mean is whole")
        fired = [self._fires(float(value)) for value in _spread(n, ones)]
        return any(fired)

    def snapshot(self) -> bytes:
        """Everything, settings included: ``restore`` continues to the same bit."""
        saved = _Snapshot(_release(), self.kind, self._settings, _tell(self._river))
        body = msgspec.msgpack.encode(saved)
        return bytes([SNAPSHOT_VERSION]) + zlib.crc32(body).to_bytes(_CRC_BYTES, "big") + body

    @classmethod
    def restore(cls, body: bytes) -> RiverDetector:
        """The detector whose ``snapshot`` is ``body``.

        Raises:
            IncompatibleError: damaged, or of another version of this form or of river.
        """
        if body[:1] != bytes([SNAPSHOT_VERSION]):
            raise IncompatibleError(
                f"detector snapshot of version {body[:1].hex() or 'none'}; this release reads {SNAPSHOT_VERSION:02x}"
            )
        crc, state = body[1 : 1 + _CRC_BYTES], body[1 + _CRC_BYTES :]
        if zlib.crc32(state).to_bytes(_CRC_BYTES, "big") != crc:
            raise IncompatibleError("damaged detector snapshot")
        try:
            saved = _SNAPSHOT.decode(state)
            if saved.release != _release():
                raise IncompatibleError(
                    f"detector snapshot of river {saved.release}, this is {_release()}"
                )
            detector = cls(saved.kind, **saved.settings)
            _become(detector._river, saved.state)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as err:
            raise IncompatibleError("damaged detector snapshot") from err
        return detector

    def _fires(self, value: float) -> bool:
        self._river.update(value)
        return bool(self._river.drift_detected)


class _River(Protocol):
    @property
    def drift_detected(self) -> bool: ...

    def update(self, x: float) -> None: ...


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    release: str
    kind: Kind
    settings: dict[str, Setting]
    state: Any  # as _tell makes it


_SNAPSHOT: Final = msgspec.msgpack.Decoder(_Snapshot)


@cache
def _classes() -> Mapping[Kind, Callable[..., _River]]:
    # Here, because it takes a second: river.drift imports scipy.stats and river's data sets.
    from river import drift
    from river.drift import binary

    return {
        "kswin": drift.KSWIN,
        "ddm": binary.DDM,
        "eddm": binary.EDDM,
        "hddm_a": binary.HDDMA,
        "hddm_w": binary.HDDMW,
        "page_hinkley": drift.PageHinkley,
    }


@cache
def _release() -> str:
    from river.__version__ import __version__

    return str(__version__)


def _spread(n: int, ones: int) -> Iterator[bool]:
    """``ones`` of ``n`` as evenly as whole places allow."""
    return ((i + 1) * ones // n > i * ones // n for i in range(n))


def _tell(part: Any) -> Any:
    """The state of a detector, or of a part of it, as plain values. ``_become`` is its inverse."""
    match part:
        case None | bool() | int() | str():
            return part
        case float():
            return float(part)  # numpy's are floats as well
        case deque():
            return [_tell(item) for item in part]
        case _ if hasattr(part, "getstate"):  # the generator of KSWIN
            return part.getstate()
        case _ if hasattr(part, "__setstate__"):  # compiled parts: bytes
            return part.__getstate__()
        case _:
            return {
                name: _tell(value)
                for name, value in vars(part).items()
                if not isinstance(value, MethodType)  # chosen by a setting
            }


def _become(part: Any, state: Any) -> None:
    """Put ``state`` into a part that was built with the same settings."""
    own = {name for name, value in vars(part).items() if not isinstance(value, MethodType)}
    if not isinstance(state, dict) or own != state.keys():
        raise ValueError("other attributes")
    for name, value in state.items():
        built = getattr(part, name)
        if built is None or isinstance(built, int | float | str):
            setattr(part, name, _plain(built, value))
        else:
            _fill(built, value)


def _plain(built: float | str | None, value: Any) -> float | str | None:
    if isinstance(built, str) and value == built:
        return built
    if not isinstance(built, str) and isinstance(value, int | float | None):
        return value  # a bool is an int
    raise ValueError("texts are settings, and all else is a number")


def _fill(built: Any, value: Any) -> None:
    if isinstance(built, deque):
        built.clear()
        built.extend(float(item) for item in value)
    elif hasattr(built, "setstate"):
        version, words, gauss = value
        built.setstate((version, tuple(words), gauss))
    elif hasattr(built, "__setstate__"):
        if len(value) != _COMPILED_BYTES or value[_COMPILED_FLAG] > 1:
            raise ValueError("not the state of a mean")
        built.__setstate__(value)
    else:
        _become(built, value)
