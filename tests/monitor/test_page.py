from __future__ import annotations

from importlib import resources

from monitor.spec import Calibration


def test_the_page_says_after_how_many_events_a_new_model_appears() -> None:
    script = resources.files("monitor").joinpath("page", "page.js").read_text()
    assert f"a new model appears after its first {Calibration().events:,}" in script
