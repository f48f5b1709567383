from __future__ import annotations

from dataclasses import replace

from streams.models import Model
from tests.monitor.builders import reference, spec


def test_what_is_right_comes_from_the_spec_and_else_from_the_reference() -> None:
    known = replace(reference(), tolerance=12.5)
    silent, clear = (spec(task="regression", labels=labels) for labels in ({}, {"tolerance": 0}))
    assert Model(silent, known).measured.labels.tolerance == 12.5
    assert Model(silent, None).measured.labels.tolerance is None
    assert Model(clear, known).measured.labels.tolerance == 0
    assert Model(silent, known).measured.model_copy(update={"labels": silent.labels}) == silent
