"""Answers of the store that are asked again within a moment: a dashboard's readers, and a rollout's gates, ask the same.

An answer is at most ``FRESH_S`` older than the question. Whoever asks while it is looked up waits for that one look, so that however many ask,
the database is asked for each thing once a second.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from monitor.store import Store

FRESH_S: Final = 1.0
MAX_KEPT: Final = 256


@dataclass(slots=True)
class _Look:
    """One look. Mutable: it becomes known once."""

    at_s: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: bool = False
    value: Any = None


class Recent:
    """Remembers what functions returned; share it between threads. Mutable: it owns what is kept. A failure is not kept."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looks: OrderedDict[Hashable, _Look] = OrderedDict()  # the first began first

    def get(self, key: Hashable, look: Callable[[], Any]) -> Any:
        """What ``look`` returns, or did for this key a moment ago."""
        one = self._current(key)
        with one.lock:
            if not one.known:
                one.value = look()
                one.known = True
        return one.value

    def _current(self, key: Hashable) -> _Look:
        with self._lock:
            now_s = self._monotonic()
            one = self._looks.get(key)
            if one is None or now_s - one.at_s >= FRESH_S:
                one = self._looks[key] = _Look(now_s)
                self._looks.move_to_end(key)
            first = next(iter(self._looks.values()))
            while len(self._looks) > MAX_KEPT or now_s - first.at_s >= FRESH_S:
                self._looks.popitem(last=False)
                first = next(iter(self._looks.values()))
            return one


class _Reader:
    """A store whose questions go through ``Recent``."""

    def __init__(self, store: Store, recent: Recent) -> None:
        self._store, self._recent = store, recent

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def ask(*about: Hashable, **scope: Hashable) -> Any:
            key = (name, about, tuple(sorted(scope.items())))
            return self._recent.get(key, lambda: method(*about, **scope))

        return ask


def reader(store: Store, recent: Recent) -> Store:
    """A store for reading, that asks the database for each thing once in ``FRESH_S``."""
    return cast("Store", _Reader(store, recent))
