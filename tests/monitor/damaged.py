"""Reads damaged messages by a kernel that was compiled to watch itself: ``python -m tests.monitor.damaged LIBRARY ROUNDS``."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from monitor import kernel
from monitor.kernel import Kernel
from tests.monitor.alike import FORMS, LIMITS, NOW
from tests.monitor.test_kernel import LEFT, USUAL


def damaged(rng: random.Random, value: bytes) -> bytes:
    """The message with a few bytes changed, cut out, put in or repeated."""
    for _ in range(rng.randrange(4)):
        at, end = sorted(rng.randrange(len(value) + 1) for _ in range(2))
        part = rng.choice([b"", rng.randbytes(rng.randrange(4)), value[at:end] * 2, b'"', b"\\", b"{", b"9" * 30])  # fmt: skip
        value = value[:at] + part + value[at + rng.randrange(3) :]
    return value


def main(library: str, rounds: int) -> None:
    """Read as many batches; an error of memory ends the process."""
    kernel.LIBRARY = Path(library)  # type: ignore[misc]  # before it is loaded
    rng, reader = random.Random(rounds), Kernel(FORMS)
    known = [*USUAL.values(), *LEFT.values()]
    was_read = 0
    for _ in range(rounds):
        batch = [damaged(rng, rng.choice(known)) for _ in range(rng.randrange(1, 6))]
        was_read += int((reader.read(batch, LIMITS, now_ms=NOW).rows_of > 0).sum())
    assert was_read > rounds / 5
    sys.stdout.write(f"{rounds}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
