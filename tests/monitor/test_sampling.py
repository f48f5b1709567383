from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitor.sampling import StridedSample

CUTS = st.lists(st.integers(0, 40), max_size=20)


@given(CUTS, st.integers(1, 30))
def test_the_sample_is_every_stride_th_row_however_the_stream_was_cut(
    cuts: list[int], most: int
) -> None:
    rows = np.arange(2.0 * sum(cuts)).reshape(-1, 2)
    sample = StridedSample(most, np.empty((0, 2)))
    for part in np.split(rows, np.cumsum(cuts)):
        sample.add(part)
    assert len(sample.rows) <= most
    assert sample.rows.tolist() == rows[:: sample.stride].tolist()
    assert sample.stride == 1 or len(rows) > most * sample.stride / 2


def test_a_sample_does_not_hold_on_to_what_it_did_not_choose() -> None:
    sample, rows = StridedSample(4, np.empty(0)), np.arange(8.0)
    sample.add(rows)
    rows[:] = -1
    assert sample.rows.tolist() == [0, 2, 4, 6]
