"""River's detectors behind one face: river's alarms, exact snapshots that hold no code, panes of errors, values that make no sense."""

from __future__ import annotations

import doctest
import zlib
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import drift
from river.drift import binary

from monitor import river_adapter as module
from monitor.errors import IncompatibleError
from monitor.river_adapter import Kind, RiverDetector

Floats = npt.NDArray[np.float64]
KINDS: list[tuple[Kind, dict[str, Any]]] = [
    ("kswin", {"seed": 3, "window_size": 60, "stat_size": 20}),
    ("ddm", {"warm_start": 20}),
    ("eddm", {}),
    ("hddm_a", {"two_sided_test": True}),
    ("hddm_w", {"lambda_val": 0.1}),
    ("page_hinkley", {"threshold": 10.0, "mode": "up"}),
]
COUNTING: list[Kind] = ["ddm", "hddm_a"]


def levels() -> Floats:
    """Stream 1 of river's detector tests: 0 or 1, then 0 to 7."""
    rng = np.random.RandomState(12345)
    return np.concatenate((rng.randint(2, size=1000), rng.randint(8, size=1000))).astype(np.float64)


def errors() -> Floats:
    """Stream 2: a rate of 0.2, then of 0.8."""
    rng = np.random.RandomState(12345)
    drawn = [rng.binomial(1, rate) for rate in (0.2, 0.8) for _ in range(1000)]
    return np.array(drawn, dtype=np.float64)


def switches() -> Floats:
    """Stream 3: a rate of 0.5 and of 0.99 in turn, each for 500."""
    rng = np.random.RandomState(12345)
    drawn = [rng.normal(centre, 0.1, 500) > 0 for centre in (0.0, 0.25, 0.0, 0.25)]
    return np.concatenate(drawn).astype(np.float64)


def alarms(detector: RiverDetector, stream: Floats) -> list[int]:
    return [i for i, value in enumerate(stream) if detector.update(float(value))]


@pytest.mark.parametrize(
    ("kind", "settings", "stream", "expected"),
    [
        (
            "kswin",
            {"alpha": 1e-4, "window_size": 200, "stat_size": 100, "seed": 42},
            levels,
            [1042],
        ),
        ("page_hinkley", {}, levels, [1020, 1397, 1548, 1988]),
        ("ddm", {}, errors, [1049]),
        ("eddm", {}, errors, [663, 828, 1007, 1078]),
        ("hddm_a", {}, errors, [1047]),
        ("hddm_a", {"two_sided_test": True}, switches, [531, 1015, 1545]),
        ("hddm_w", {}, errors, [1018]),
        ("hddm_w", {"two_sided_test": True}, switches, [507, 1032, 1508]),
    ],
)
def test_the_alarms_on_rivers_own_test_streams_are_rivers(
    kind: Kind, settings: dict[str, Any], stream: Any, expected: list[int]
) -> None:
    classes = {"hddm_a": binary.HDDMA, "hddm_w": binary.HDDMW, "kswin": drift.KSWIN}
    classes |= {"ddm": binary.DDM, "eddm": binary.EDDM, "page_hinkley": drift.PageHinkley}
    oracle, fired = classes[kind](**settings), []
    for i, value in enumerate(stream()):
        oracle.update(value)
        fired += [i] if oracle.drift_detected else []
    assert alarms(RiverDetector(kind, **settings), stream()) == fired == expected


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("cut", [0, 1, 57, 700])
def test_a_restored_detector_goes_on_to_the_same_bit(
    kind: Kind, settings: dict[str, Any], cut: int
) -> None:
    rng = np.random.default_rng(1)
    stream = np.concatenate([rng.random(300) < rate for rate in (0.1, 0.5, 0.1, 0.7)]).astype(float)
    whole = RiverDetector(kind, **settings)
    alarms(whole, stream[:cut])
    resumed = RiverDetector.restore(whole.snapshot())
    assert resumed.snapshot() == whole.snapshot()
    later = alarms(whole, stream[cut:])
    assert alarms(resumed, stream[cut:]) == later
    assert later  # a detector that never fires would say nothing
    assert resumed.snapshot() == whole.snapshot()


@pytest.mark.parametrize("kind", COUNTING)
def test_a_pane_of_errors_counts_as_its_errors_evenly_spread(kind: Kind) -> None:
    panes, single = RiverDetector(kind), RiverDetector(kind)
    for pane, ones in enumerate([2] * 20 + [9] * 20):
        fired = panes.update_pane(20, ones / 20, ones * (1 - ones / 20))
        values = [(i + 1) * ones // 20 - i * ones // 20 for i in range(20)]
        assert sum(values) == ones
        assert fired == (sum([single.update(value) for value in values]) > 0), pane
    assert panes.snapshot() == single.snapshot()


@pytest.mark.parametrize("kind", COUNTING)
def test_a_rise_is_found_from_panes_as_well(kind: Kind) -> None:
    rng = np.random.default_rng(5)
    detector = RiverDetector(kind)
    rates = [rng.binomial(200, 0.1 if day < 30 else 0.3) / 200 for day in range(60)]
    fired = [day for day, p in enumerate(rates) if detector.update_pane(200, p, 200 * p * (1 - p))]
    assert 30 <= fired[0] <= 32


def test_an_empty_pane_is_none() -> None:
    detector = RiverDetector("ddm")
    before = detector.snapshot()
    assert detector.update_pane(0, 0.0, 0.0) is False
    assert detector.snapshot() == before


BAD_PANES: list[tuple[Kind, int, float, float, str]] = [
    ("ddm", 10, 0.55, 10 * 0.55 * 0.45, "whole"),
    ("ddm", 10, 0.5, 1.0, "M2"),
    ("hddm_a", 10, 1.5, 0.0, "zeros and ones"),
    ("ddm", 10, float("nan"), 0.0, "zeros and ones"),
    ("ddm", 10, 0.5, float("nan"), "M2"),
    ("hddm_w", 10, 0.5, 2.5, "needs the values"),
    ("hddm_a", -1, 0.5, 0.0, "n counts"),
    ("kswin", 10, 0.5, 2.5, "needs the values"),
    ("page_hinkley", 10, 0.5, 2.5, "needs the values"),
    ("eddm", 10, 0.5, 2.5, "needs the values"),
]


@pytest.mark.parametrize(("kind", "n", "mean", "m2", "message"), BAD_PANES)
def test_a_pane_that_cannot_be_one_of_errors_is_refused_and_changes_nothing(
    kind: Kind, n: int, mean: float, m2: float, message: str
) -> None:
    detector = RiverDetector(kind, **({"seed": 1} if kind == "kswin" else {}))
    detector.update(1.0)
    before = detector.snapshot()
    with pytest.raises(ValueError, match=message):
        detector.update_pane(n, mean, m2)
    assert detector.snapshot() == before


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_changes_nothing(
    kind: Kind, settings: dict[str, Any], value: float
) -> None:
    detector = RiverDetector(kind, **settings)
    alarms(detector, errors()[:50])
    before = detector.snapshot()
    with pytest.raises(ValueError, match=f"{kind} takes finite"):
        detector.update(value)
    assert detector.snapshot() == before


@pytest.mark.parametrize(
    ("kind", "value"),
    [("ddm", 1.5), ("ddm", -0.1), ("hddm_a", 2.0), ("hddm_w", -1.0), ("eddm", 0.5), ("eddm", 2.0)],
)
def test_a_value_that_is_no_error_is_refused_and_changes_nothing(kind: Kind, value: float) -> None:
    detector = RiverDetector(kind)
    detector.update(1)
    before = detector.snapshot()
    with pytest.raises(ValueError, match="takes errors"):
        detector.update(value)
    assert detector.snapshot() == before


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("adwin", {}, "kind is one of"),
        ("kswin", {}, "seed"),
        ("kswin", {"seed": 1, "alpha": 2.0}, "Alpha"),
        ("ddm", {"delta": 0.1}, "ddm: .*delta"),
    ],
)
def test_a_kind_or_setting_that_river_does_not_have_is_refused(
    kind: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RiverDetector(kind, **settings)


def forged(change: dict[str, Any], kind: Kind = "hddm_w") -> bytes:
    """A snapshot with parts of its state replaced, and a checksum that fits."""
    body = RiverDetector(kind, **({"seed": 1} if kind == "kswin" else {})).snapshot()
    release, name, settings, state = msgspec.msgpack.decode(body[5:])
    return sealed([release, name, settings, state | change])


def sealed(saved: list[Any]) -> bytes:
    body = msgspec.msgpack.encode(saved)
    return b"\x01" + zlib.crc32(body).to_bytes(4, "big") + body


def sample(ewmean: Any) -> dict[str, Any]:
    """The state of a part of HDDM_W, with a compiled mean that is ``ewmean``."""
    return {
        "_ewma": {"fading_factor": 0.05, "_ewmean": ewmean},
        "_is_init": True,
        "_ibc": 1.0,
        "_lambd_sq": 0.1,
        "_c_lambd_sq": 0.1,
    }


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x02" + RiverDetector("ddm").snapshot()[1:], id="another version"),
        pytest.param(RiverDetector("ddm").snapshot()[:-1], id="cut short"),
        pytest.param(RiverDetector("ddm").snapshot()[:-1] + b"\xff", id="a byte changed"),
        pytest.param(sealed(["0.1.0", "ddm", {}, {}]), id="another river"),
        pytest.param(sealed([module._release(), "system", {}, {}]), id="a kind that is none"),
        pytest.param(sealed([module._release(), "ddm", {"cmd": 1}, {}]), id="no such setting"),
        pytest.param(sealed([module._release(), "ddm", {}, {}]), id="no state"),
        pytest.param(sealed([module._release(), "ddm", {}, 7]), id="a state that is none"),
        pytest.param(forged({"__class__": 1}), id="an attribute more"),
        pytest.param(forged({"_total": 1.0}), id="a number for a part"),
        pytest.param(forged({"_incr_cutpoint": "x"}), id="a text for a number"),
        pytest.param(forged({"_total": sample(b"x")}), id="a compiled part of one byte"),
        pytest.param(forged({"_total": sample(b"\xff" * 33)}), id="a compiled part of rubbish"),
        pytest.param(forged({"_total": sample(3)}), id="a compiled part that is none"),
        pytest.param(
            forged({"_rng": [3, [-1] * 625, None]}, "kswin"), id="an impossible generator"
        ),
        pytest.param(forged({"_rng": []}, "kswin"), id="no generator"),
        pytest.param(forged({"window": ["x"]}, "kswin"), id="a text in the window"),
    ],
)
def test_a_snapshot_that_is_not_one_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(IncompatibleError, match="snapshot"):
        RiverDetector.restore(body)


def test_a_forged_part_of_the_right_form_is_taken() -> None:
    """So that the refusals above are for what they say, not for how they were forged."""
    good = RiverDetector("hddm_w").snapshot()
    assert RiverDetector.restore(forged({})).snapshot() == good
    assert RiverDetector.restore(forged({"_total": sample(bytes(33))})).snapshot() != good


@given(st.integers(0, 300), st.data())
def test_errors_are_spread_as_evenly_as_whole_places_allow(n: int, data: st.DataObject) -> None:
    ones = data.draw(st.integers(0, n))
    spread = np.array(list(module._spread(n, ones)), dtype=int)
    assert spread.sum() == ones
    if n:
        fed = np.cumsum(spread)
        assert np.all(np.abs(fed - np.arange(1, n + 1) * ones / n) < 1)


def test_the_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0
