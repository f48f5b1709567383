"""A distribution beside its reference, in a terminal: a line for each bin, of the two shares and a bar for each.

Both sides have one scale, so lengths can be compared across and along.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
from rich.cells import cell_len, set_cell_size

from monitor.raw import Floats
from monitor.store import Distribution
from streams.console import plain

ROWS: Final = 20
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_LEAST_BAR: Final = 4
_NUMBERS: Final = 8  # of a share: "100.0 % "


class Bin(msgspec.Struct, frozen=True):
    """A line: its name, and its share of the reference's values and of the window's, 0 to 1."""

    name: str
    reference: float
    window: float


def bins_of(found: Distribution, rows: int = ROWS) -> list[Bin]:
    """At most ``rows`` lines: neighbouring numeric bins added up, empty ones at the ends left out; of categories the largest, then the rest."""
    counts = np.zeros((2, max(len(found.reference), len(found.counts))))
    counts[0, : len(found.reference)] = found.reference
    counts[1, : len(found.counts)] = found.counts
    names, counts = (
        _categories(found, counts, rows)
        if found.kind == "categorical"
        else _numbers(found.edges, counts, rows)
    )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [Bin(name, float(a), float(b)) for name, a, b in zip(names, *shares, strict=True)]


def draw(bins: Sequence[Bin], width: int, *, blocks: bool) -> list[tuple[str, str, str]]:
    """For each bin its name, the reference's side and the window's, each padded; ``blocks`` where the terminal can show them, ``#`` elsewhere."""
    names = [plain(each.name) for each in bins]
    longest = max(map(cell_len, names), default=0)
    bar = max(_LEAST_BAR, (width - min(longest, width // 3) - 2 - 2 * _NUMBERS) // 2)
    label = max(0, min(longest, width - 2 - 2 * _NUMBERS - 2 * bar))
    most = max((max(each.reference, each.window) for each in bins), default=0) or 1

    def side(share: float) -> str:
        eighths = round(share / most * (bar - 1) * 8)
        whole, rest = divmod(eighths, 8)
        if blocks:
            drawn = _EIGHTHS[8] * whole + _EIGHTHS[rest].strip()
        else:
            drawn = "#" * round(eighths / 8)
        return f"{share:6.1%} ".replace("%", " %").rjust(_NUMBERS) + drawn.ljust(bar)

    return [
        (f"{_fit(name, label)}  ", side(each.reference), side(each.window))
        for name, each in zip(names, bins, strict=True)
    ]


def _numbers(edges: Sequence[float], counts: Floats, rows: int) -> tuple[list[str], Floats]:
    filled = np.flatnonzero(counts.any(axis=0)).tolist()
    first, last = (filled[0], filled[-1]) if filled else (0, 0)
    starts = list(range(first, last + 1, -(-(last + 1 - first) // rows)))
    # Between -inf, the edges and inf; of the edges as many digits as tell them apart.
    bounds = [-np.inf, *edges, np.inf]
    cuts = [bounds[start] for start in (*starts, last + 1)]
    texts = _told_apart(cuts)
    names = [
        f"< {high}" if low == "-inf" else f">= {low}" if high == "inf" else f"{low} to {high}"
        for low, high in pairwise(texts)
    ]
    return names, np.add.reduceat(counts[:, : last + 1], starts, axis=1)


def _told_apart(numbers: Sequence[float]) -> list[str]:
    texts: list[str] = []
    for digits in range(3, 18):
        texts = [f"{number:.{digits}g}" for number in numbers]
        if len(set(texts)) == len(numbers):
            break
    return texts


def _categories(found: Distribution, counts: Floats, rows: int) -> tuple[list[str], Floats]:
    """The last bin is of all that the reference does not name."""
    names = [*found.labels, "other"][: counts.shape[1]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rank = sorted(range(len(found.labels)), key=lambda i: (-shares[:, i].max(), names[i]))
    kept, rest = rank[: rows - 1], rank[rows - 1 :]
    sums = counts[:, rest].sum(axis=1) + counts[:, len(found.labels) :].sum(axis=1)
    shown = [names[i] for i in kept]
    if sums.any():
        kept_counts = np.column_stack([counts[:, kept], sums])
        return [*shown, f"other ({len(rest)} more)" if rest else "other"], kept_counts
    return shown, counts[:, kept]


def _fit(name: str, columns: int) -> str:
    cut = name if cell_len(name) <= columns else set_cell_size(name, columns - 1) + "~"
    return set_cell_size(cut, columns)
