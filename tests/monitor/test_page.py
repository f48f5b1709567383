from __future__ import annotations

import re
from importlib import resources
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from monitor.spec import Calibration

Vector = npt.NDArray[np.float64]
STYLE: Final = resources.files("monitor").joinpath("page", "style.css").read_text()
# What a pair of eyes makes of linear RGB: Machado, Oliveira and Fernandes 2009, at full severity.
EYES: Final = {
    "all cones": np.eye(3),
    "no red": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "no green": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "no blue": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
TO_XYZ: Final = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def colours(dark: bool) -> dict[str, Vector]:
    """The page's named colours in one scheme, as linear RGB."""
    light, _, rest = STYLE.partition("@media (prefers-color-scheme: dark)")
    named = re.findall(
        r"--([\w-]+): #([0-9a-f]{3,6});", rest.partition("\n}\n")[0] if dark else light
    )
    found = {}
    for name, digits in named:
        whole = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
        share = np.array([int(whole[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        found[name] = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return found


def contrast(one: Vector, other: Vector) -> float:
    """WCAG 2: from 1 to 21."""
    low, high = sorted(float(TO_XYZ[1] @ colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def difference(one: Vector, other: Vector, eyes: Vector) -> float:
    """CIE76, as these eyes see it: 2.3 is just noticed."""

    def lab(colour: Vector) -> Vector:
        xyz = TO_XYZ @ np.clip(eyes @ colour, 0, 1) / np.array([0.9505, 1.0, 1.089])
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    return float(np.linalg.norm(lab(one) - lab(other)))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_are_read_on_every_ground(dark: bool) -> None:
    named = colours(dark)
    assert len(named) >= 20
    for ground in ("page", "card", "raised"):
        for words in ("ink", "soft", "accent", "bad", "warn", "good"):
            assert contrast(named[words], named[ground]) >= 4.5, (words, ground)


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_bands_and_lines_are_told_apart_by_every_kind_of_eye(dark: bool, eyes: str) -> None:
    named = colours(dark)
    bands = [named[f"cell-{i}"] for i in range(5)]
    for one, other in combinations(bands, 2):
        assert difference(one, other, EYES[eyes]) > 10
    # Versions: three lines in one chart are many already.
    for one, other in combinations([named[f"v{i}"] for i in range(3)], 2):
        assert difference(one, other, EYES[eyes]) > 10
    assert difference(named["reference"], named["current"], EYES[eyes]) > 10
    for i in range(5):
        assert contrast(named[f"v{i}"], named["card"]) >= 3, "WCAG 2 asks 3 of graphics"


def test_the_page_says_after_how_many_events_a_new_model_appears() -> None:
    script = resources.files("monitor").joinpath("page", "views", "fleet.js").read_text()
    assert f"a new model appears after its first {Calibration().events:,}" in script
