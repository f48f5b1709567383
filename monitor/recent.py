"""Answers of the store that are asked again within a moment: a dashboard's readers, and a rollout's gates, ask the same.

::

    age of the answer   0 ........ FRESH_S ............... STALE_S ......
    who asks            gets it    gets it, and one look    waits for
                                   begins behind it         a new look

So however many ask, the database is asked for each thing about once a second, and nobody waits for it who asks often: while a look that began behind an
answer takes long, that answer is given until it is ``OLD_S`` old. Whoever asks while the first look is under way waits for that one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

from monitor.store import Store

FRESH_S: Final = 1.0
STALE_S: Final = 3.0
OLD_S: Final = 10.0
MAX_KEPT: Final = 256
_LOOKS: Final = 4  # at once: more would only queue in the database

Look: TypeAlias = Callable[[], Any]


@dataclass(slots=True)
class _Answer:
    """The last answer, if there is one, how old it may become, and the look for the next, if one is under way. Mutable: looks end."""

    at_s: float
    good_s: float = STALE_S
    value: Any = None
    known: bool = False
    next: Future[Any] | None = None


class Recent:
    """Remembers what functions returned; share it between threads. Mutable: it owns what is kept. A failure is not kept."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Answer] = OrderedDict()  # the last asked for is last
        self._pool = ThreadPoolExecutor(_LOOKS, thread_name_prefix="recent")

    def get(self, key: Hashable, look: Look) -> Any:
        """What ``look`` returns, or did for this key a moment ago; raises what it raises."""
        with self._lock:
            now_s = self._monotonic()
            answer = self._kept.get(key)
            if answer is None:
                answer = self._kept[key] = _Answer(now_s)
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            age_s = now_s - answer.at_s if answer.known else OLD_S
            if age_s >= FRESH_S and answer.next is None:
                answer.good_s = OLD_S if age_s < STALE_S else STALE_S
                answer.next = self._pool.submit(self._look, answer, look, now_s)
            if age_s < answer.good_s:
                return answer.value
            under_way = answer.next
        assert under_way is not None
        return under_way.result()

    def forget(self) -> None:
        """Something has changed: whoever asks from now on waits for a look that begins after this."""
        with self._lock:
            self._kept.clear()

    def _look(self, answer: _Answer, look: Look, now_s: float) -> Any:
        try:
            value = look()
        except BaseException:
            with self._lock:
                answer.next = None
            raise
        with self._lock:
            answer.at_s, answer.value, answer.known, answer.next = now_s, value, True, None
        return value


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
    """A store for reading, that asks the database for each thing about once in ``FRESH_S``."""
    return cast("Store", _Reader(store, recent))
