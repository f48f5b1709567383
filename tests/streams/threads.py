"""Loops of the product in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STOP_S = 30.0


@contextmanager
def in_thread(loop: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a loop until the block ends; what ended it before is raised there."""
    stop, failures = threading.Event(), list[BaseException]()

    def body() -> None:
        try:
            loop(stop)
        except BaseException as failure:  # noqa: BLE001  it is raised in the test
            failures.append(failure)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_STOP_S)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
