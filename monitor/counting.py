"""Columns in, profiles out: one pass over each column of a batch, whatever the number of groups its rows are divided into.

The numbers that a profile holds are whole, and so are all sums on the way: no answer depends on the order or the parts in which they were added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from monitor.binning import (
    CLIP,
    FLAGS,
    MAX_NUMERIC_BINS,
    WORD_BITS,
    Codes,
    Encoded,
    Floats,
    Ints,
    Raw,
)
from monitor.counter import Group, counter_of
from monitor.profile import MOMENTS, Field, Layout, Profile, keep_hints
from monitor.raw import MAX_DOT_ROWS, square_sum
from monitor.vectors import VectorField

PART_ROWS: Final = MAX_DOT_ROWS  # 80 kB a column: malloc maps and unmaps memory from 128 KiB on
_EXACT_BITS: Final = 53  # up to 2**53 a float64 adds whole numbers without rounding
_EXACT_ROWS: Final = 1 << (_EXACT_BITS - WORD_BITS)


@dataclass(frozen=True, slots=True)
class Grouping:
    """A way to divide the rows of a batch: ``group`` is ``(n,)``, each in ``[0, groups)``."""

    group: Codes
    groups: int

    def part(self, rows: slice | Codes) -> Grouping:
        """The same of some of the rows."""
        return Grouping(self.group[rows], self.groups)


def profile_groups(
    layout: Layout,
    columns: Mapping[str, Encoded],
    errors: npt.NDArray[np.bool_],
    group: Codes,
    groups: int,
) -> list[Profile]:
    """One profile per group of the rows of a batch, from columns that are encoded already; see ``profile_groupings``.

    Raises:
        ValueError: the layout has vectors, whose numbers encoded columns no longer hold.
    """
    if layout.vectors:
        raise ValueError("vectors are counted from raw columns: profile_groupings")
    rows = Grouping(group, groups)
    tally = _Tally(layout, errors, rows)
    for f in layout.fields:
        tally.add(f, columns[f.name], rows)
    return tally.profiles()


def profile_groupings(
    layout: Layout,
    column: Callable[[str], Raw],
    errors: npt.NDArray[np.bool_],
    groupings: Sequence[Grouping],
) -> list[list[Profile]]:
    """For each grouping of the rows of a batch, a profile per group.

    Args:
        layout: the model's binning.
        column: the raw column of a feature or an output, ``n`` rows; asked once per field, and again for vectors.
        errors: ``(n,)`` whether the event carried an error.
        groupings: ways to divide the rows, as by pane and by segment.

    Cost: O(fields * (n + groups * bins)); a loop over fields and parts of ``PART_ROWS``, never over rows. What the library does not count is encoded one part of
    one column at a time, so the next one gets its memory while that is in the cache: fresh pages cost more than the counting does.
    """
    tallies = [_Tally(layout, errors, grouping) for grouping in groupings]
    # A part costs groups * bins beside its rows: of many groups the parts are larger.
    step = max([PART_ROWS, *(MAX_NUMERIC_BINS * grouping.groups for grouping in groupings)])
    cuts = [slice(at, at + step) for at in range(0, len(errors), step)]
    parts = [(cut, [grouping.part(cut) for grouping in groupings]) for cut in cuts]
    for f, raw in _left(layout, column, tallies, groupings):
        for cut, rows in parts:
            encoded = f.bins.encode(raw[cut])
            for tally, part in zip(tallies, rows, strict=True):
                tally.add(f, encoded, part)
    for v in layout.vectors:
        counted = v.bins.count(column, [(rows.group, rows.groups) for rows in groupings])
        for tally, part_of_vector in zip(tallies, counted, strict=True):
            tally.add_vector(v, part_of_vector)
    return [tally.profiles() for tally in tallies]


def _left(
    layout: Layout,
    column: Callable[[str], Raw],
    tallies: Sequence[_Tally],
    groupings: Sequence[Grouping],
) -> Iterable[tuple[Field, Raw]]:
    """The fields that numpy has to count, and their columns: those that the library does not."""
    counter = counter_of(layout)
    if counter is None or not tallies:
        return ((f, column(f.name)) for f in layout.fields)
    groups = [Group(rows.group, tally.vectors) for rows, tally in zip(groupings, tallies, strict=True)]  # fmt: skip
    left, others = counter.count(column, groups)
    for f, at, texts in others:
        for rows, tally in zip(groupings, tallies, strict=True):
            tally.add_unseen(f, rows.group[at], texts)
    return ((layout.by_name[name], raw) for name, raw in left.items())


class _Tally:
    """The profiles of one grouping. Mutable: they are being counted.

    Attributes:
        vectors: ``(groups, layout.size)``.
    """

    def __init__(self, layout: Layout, errors: npt.NDArray[np.bool_], rows: Grouping) -> None:
        self._layout = layout
        self.vectors = np.zeros((rows.groups, layout.size), dtype=np.int64)
        self.vectors[:, 0] = np.bincount(rows.group, minlength=rows.groups)
        self.vectors[:, 1] = np.bincount(rows.group[errors], minlength=rows.groups)
        self._unseen: list[dict[str, dict[str, int]]] = [{} for _ in range(rows.groups)]

    def add(self, f: Field, column: Encoded, rows: Grouping) -> None:
        counts = _count(column.codes, f.classes.stop - f.classes.start, rows)
        self.vectors[:, f.classes] += counts
        if column.flags is not None:
            flagged = np.flatnonzero(column.flags)
            which = column.flags[flagged] - 1
            self.vectors[:, f.flags] += _count(which, len(FLAGS), rows.part(flagged))
        if column.known is not None:
            self.vectors[:, f.moments] += counts @ column.known
        elif column.measured is not None:
            self.vectors[:, f.moments] += _sums(column.measured, rows)
        elif column.unseen:
            others = np.flatnonzero(column.codes == f.bins.bins - 1)
            self.add_unseen(f, rows.group[others], column.unseen)

    def add_unseen(self, f: Field, group: Codes, texts: Sequence[str]) -> None:
        """Texts that are no category, and the group of each."""
        for at, text in zip(group.tolist(), texts, strict=True):
            counts = self._unseen[at].setdefault(f.name, {})
            counts[text] = counts.get(text, 0) + 1

    def add_vector(self, f: VectorField, counted: Ints) -> None:
        self.vectors[:, f.place] += counted

    def profiles(self) -> list[Profile]:
        self._layout.normalise(self.vectors)
        return [
            Profile(
                self._layout, vector, {name: keep_hints(texts) for name, texts in unseen.items()}
            )
            for vector, unseen in zip(self.vectors, self._unseen, strict=True)
        ]


def _count(codes: Codes, width: int, rows: Grouping) -> Ints:
    """``(groups, width)`` how often each code below ``width`` occurs."""
    if rows.groups > 1:
        codes = rows.group * width + codes
    counts: Ints = np.bincount(codes, minlength=rows.groups * width)
    return counts.reshape(rows.groups, width)


def _sums(quanta: Floats, rows: Grouping) -> Ints:
    """``(groups, 3)`` exact sums of whole numbers up to ``CLIP``, and of their squares.

    Floating point adds whole numbers exactly while no sum passes 2**53, in any order: of ``_EXACT_ROWS`` numbers none can. A sum of squares
    below 2**52 has not come near it; from there on the squares are summed in words of 32 bits.
    """
    if len(quanta) > _EXACT_ROWS:
        head, tail = slice(_EXACT_ROWS), slice(_EXACT_ROWS, None)
        return _sums(quanta[head], rows.part(head)) + _sums(quanta[tail], rows.part(tail))
    if rows.groups == 1 and (low := square_sum(quanta)) < 1 << _EXACT_BITS - 1:
        return np.array([[int(np.add.reduce(quanta)), 0, int(low)]])
    sums = np.zeros((rows.groups, MOMENTS), dtype=np.int64)
    sums[:, 0] = _add(quanta, rows)
    squares = quanta * quanta  # at most 2**52
    lows = _add(squares, rows)
    if lows.max() < 1 << _EXACT_BITS - 1:
        sums[:, 2] = lows
        return sums
    words = np.floor(squares / (1 << WORD_BITS))
    squares -= words * (1 << WORD_BITS)
    sums[:, 1], sums[:, 2] = _add(words, rows), _add(squares, rows)
    return sums


def _add(x: Floats, rows: Grouping) -> Floats:
    """``(groups,)`` sums."""
    if rows.groups == 1:
        return np.add.reduce(x, keepdims=True)
    return np.bincount(rows.group, weights=x, minlength=rows.groups).astype(np.float64, copy=False)


assert CLIP * CLIP <= 1 << 52
assert CLIP * _EXACT_ROWS <= 1 << _EXACT_BITS
