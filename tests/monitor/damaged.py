"""Reads damaged messages, and counts what was read, by a kernel that was compiled to watch itself: ``python -m tests.monitor.damaged LIBRARY ROUNDS``."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from monitor import kernel
from monitor.columns import Columns
from monitor.counting import Grouping
from monitor.kernel import Kernel, Read
from monitor.profile import Layout
from tests.monitor.alike import FORMS, LIMITS, NOW
from tests.monitor.test_kernel import LEFT, USUAL


def damaged(rng: random.Random, value: bytes) -> bytes:
    """The message with a few bytes changed, cut out, put in or repeated."""
    for _ in range(rng.randrange(4)):
        at, end = sorted(rng.randrange(len(value) + 1) for _ in range(2))
        part = rng.choice([b"", rng.randbytes(rng.randrange(4)), value[at:end] * 2, b'"', b"\\", b"{", b"9" * 30])  # fmt: skip
        value = value[:at] + part + value[at + rng.randrange(3) :]
    return value


def count(layout: Layout, read: Read) -> None:
    """The profiles of what was read, in two ways to divide it."""
    n = len(read.ts_ms)
    groupings = [Grouping(np.zeros(n, dtype=np.intp), 1), Grouping(np.arange(n) % 2, 2)]
    columns = Columns(read.ts_ms, read.features, read.outputs, read.errors, read.tags)
    (whole,), parts = columns.profiles(layout, groupings)
    assert sum(part.n for part in parts) == whole.n == n


def main(library: str, rounds: int) -> None:
    """Read as many batches; an error of memory ends the process."""
    kernel.LIBRARY = Path(library)  # type: ignore[misc]  # before it is loaded
    rng, reader = random.Random(rounds), Kernel(FORMS)
    known = [*USUAL.values(), *LEFT.values()]
    was_read = 0
    for _ in range(rounds):
        batch = [damaged(rng, rng.choice(known)) for _ in range(rng.randrange(1, 6))]
        found = reader.read(batch, LIMITS, now_ms=NOW)
        was_read += int((found.rows_of > 0).sum())
        for name, reads in found.of_model.items():
            for read in reads:
                count(FORMS[name].layout, read)
    assert was_read > rounds / 5
    sys.stdout.write(f"{rounds}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
