"""Coverage-guided fuzzing of the decoders. ``python -m load.fuzz [libFuzzer options]``, for example ``-max_total_time=300``.

It needs ``pip install atheris``, which is no dependency: hypothesis asks the same of the same decoders in every test run (``tests/monitor/test_fuzz_events.py``).
An input that raises anything but what the decoder promises, or takes seconds, ends it and is written to a file.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

MOST_S: Final = 2.0
MODULES: Final = (
    "monitor.arrow",
    "monitor.captures",
    "monitor.events",
    "monitor.halves",
    "monitor.inference",
    "monitor.reference",
    "monitor.wire",
)


def main(arguments: Sequence[str]) -> int:
    """Fuzz until an option ends it, or something is found."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("fuzz: atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["monitor"]):
        for name in MODULES:
            importlib.import_module(name)
    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()
    return 0


def one_input(data: bytes) -> None:
    """The first byte chooses the decoder."""
    from monitor import reference, wire
    from monitor.errors import IncompatibleError, InvalidEventError
    from monitor.events import ARROW_TYPE, CLOUDEVENT_TYPE, Event, Limits, decode_message

    headers: tuple[dict[str, bytes], ...] = (
        {},
        {"content-type": ARROW_TYPE.encode()},
        {"content-type": CLOUDEVENT_TYPE.encode()},
    )
    began, value = time.process_time(), data[1:]
    match data[0] % 8 if data else 0:
        case 3:
            _incompatible(IncompatibleError, wire.decode, wire.pack(value))
        case 4:
            _incompatible(IncompatibleError, reference.load, value)
        case 6:
            _body(value)
        case kind:
            for outcome in decode_message(
                value, headers[kind % 3], Limits(), now_ms=1_700_000_000_000
            ):
                if not isinstance(outcome, Event | InvalidEventError):
                    raise TypeError(type(outcome).__name__)
    if time.process_time() - began > MOST_S:
        raise TimeoutError(f"{time.process_time() - began:.1f} s")


def _body(value: bytes) -> None:
    """A body of a serving stack, in each place where one may stand."""
    from monitor.captures import Said, capture_of
    from monitor.errors import InvalidEventError
    from monitor.events import Limits, parsed
    from monitor.halves import structured
    from monitor.inference import About, Reading, event_rows

    limits, about = Limits(), About("m", "a", 1_700_000_000_000)
    for decode in (
        lambda: structured(value, limits),
        lambda: capture_of(parsed(value, limits), Said("m"), limits),
        lambda: event_rows(about, Reading(), parsed(value, limits), None),
        lambda: event_rows(about, Reading(), None, parsed(value, limits)),
    ):
        with contextlib.suppress(InvalidEventError):
            decode()


def _incompatible(expected: type[Exception], decode: Any, value: bytes) -> None:
    try:
        decode(value)
    except (expected, RecursionError):  # streams.stage.read expects both
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
