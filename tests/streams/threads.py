"""Loops of the product in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def in_thread(loop: Callable[[threading.Event], None], *, stop_s: float = 30.0) -> Iterator[None]:
    """Run a loop until the block ends, and then for ``stop_s`` at most; what ended it before is raised there."""
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
        thread.join(stop_s)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
