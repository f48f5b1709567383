"""A version beside an older one, before any label: what is worse, what differs, and with whom it is compared."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from monitor import reference as references
from monitor.beside import NOBODY, Beside, Peer, with_peers
from monitor.columns import Columns
from monitor.panes import Closed, ClosedPane, ClosedWindow, SeriesKey
from monitor.profile import Profile
from monitor.versions import OTHER_VERSION
from monitor.wire import Verdict
from tests.monitor.builders import DAY, MODEL, SECOND, START, columns, past, profile_of, spec

PANE = 10 * SECOND
SPEC = spec()
SIZES = SPEC.windows.sizes


def served(
    rng: np.random.Generator,
    n: int = 100,
    *,
    failing: float = 0.02,
    times: float = 1.0,
    wind: float = 1.0,
    gusty: float = 0.0,
    score: float = 1.0,
) -> Columns:
    """Requests of one version in a pane: the share that fails, how many times as slow, windy and sure
    they are, and the share with three times the wind.
    """
    rows = past(rng, n)
    changes = {
        "wind": rows.column("wind").to_numpy() * np.where(rng.random(n) < gusty, 3, wind),
        "score": rows.column("score").to_numpy() ** (1 / score),
        "latency_ms": 20 * np.exp(0.5 * rng.normal(size=n)) * times,
        "error": ["timeout" if fails else None for fails in rng.random(n) < failing],
    }
    names = [name for name in rows.schema.names if name not in changes]
    kept = {name: rows.column(name) for name in names}
    return columns(pa.record_batch(kept | {name: pa.array(v) for name, v in changes.items()}))


REFERENCE = references.build(SPEC, lambda: [served(np.random.default_rng(0), 20_000)])
NOTHING = Profile.zero(REFERENCE.layout)


def fresh(version: str = "8", **canary: float) -> Beside:
    return Beside(version, spec(canary=canary).canary, SIZES, REFERENCE)


def pane(seed: object, n: int = 100, **changes: Any) -> Profile:
    rng = np.random.default_rng([zlib.crc32(repr(seed).encode()), n])
    return profile_of(REFERENCE, served(rng, n, **changes))


def watch(beside: Beside, panes: Iterable[int], **changes: Any) -> list[Verdict]:
    """Version 8, as told, beside 7 in these panes; what is known after the last."""
    at_ms = START
    for i in panes:
        at_ms = START + i * PANE
        peers = {"7": Peer(START - PANE, pane((i, 7))), "8": Peer(START, pane((i, 8), **changes))}
        beside.pane(at_ms, peers)
    return beside.window(at_ms)


def found(verdicts: list[Verdict]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(v.statistic, v.feature): (v.status, str(v.evidence["answer"])) for v in verdicts}


ERRORS, SLOW = ("more_request_errors", ""), ("more_slow_requests", "$latency_ms")
WORSE, NOT_WORSE = ("breach", "worse"), ("ok", "not worse within margin")
NOT_KNOWN = ("no_data", "not yet known")


def test_equal_versions_are_not_worse_and_do_not_differ() -> None:
    told = found(watch(fresh(), range(150)))
    assert (told[ERRORS], told[SLOW]) == (NOT_WORSE, NOT_WORSE)
    outputs = {told["scores_differ", name] for name in ("$prediction", "$score")}
    assert outputs == {NOT_KNOWN}
    ((_, nearest),) = [item for item in told.items() if item[0][0] == "inputs_differ"]
    assert nearest == NOT_KNOWN


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"failing": 0.06}, {ERRORS: WORSE}),
        ({"times": 1.3}, {SLOW: WORSE}),
        ({"wind": 1.6}, {("inputs_differ", "wind"): ("breach", "differs")}),
        ({"score": 3.0}, {("scores_differ", "$score"): ("ok", "differs")}),
    ],
    ids=["errors", "latency", "a feature", "the score"],
)
def test_what_is_wrong_is_told_and_nothing_else(
    changes: dict[str, float], broken: dict[tuple[str, str], tuple[str, str]]
) -> None:
    told = found(watch(fresh(), range(150), **changes))
    said = {key for key, (status, answer) in told.items() if status == "breach" or answer == "differs"}  # fmt: skip
    assert said == broken.keys()
    assert {key: told[key] for key in said} == broken


def test_a_verdict_says_with_whom_and_how_much() -> None:
    told = watch(fresh(), range(100), times=1.5, wind=1.6)
    (slow,) = [v for v in told if v.statistic == "more_slow_requests"]
    assert slow.evidence["compared_with"] == "7"
    assert slow.evidence["its_requests"] == 9_900  # the first pane gives the threshold
    assert slow.value == pytest.approx(0.16, abs=0.05)
    (wind,) = [v for v in told if v.feature == "wind"]
    assert (wind.kind, wind.evidence["compared_with"]) == ("canary", "7")
    assert wind.value is not None
    assert wind.value > 0.3


def test_a_difference_that_is_sure_and_small_is_no_breach() -> None:
    beside = fresh()
    for i in range(10):
        peers = {"7": Peer(0, pane((i, 7), 4_000)), "8": Peer(1, pane((i, 8), 4_000, gusty=0.04))}
        beside.pane(START + i, peers)
    (wind,) = [v for v in beside.window(START) if v.statistic == "inputs_differ"]
    assert (wind.feature, wind.status, wind.evidence["answer"]) == ("wind", "ok", "differs")
    assert wind.value == pytest.approx(0.03, abs=0.015)


def test_a_version_that_recovers_is_not_worse_any_more() -> None:
    beside = fresh()
    assert found(watch(beside, range(30), failing=0.3))[ERRORS] == WORSE
    assert found(watch(beside, range(30, 40)))[ERRORS] == WORSE
    assert found(watch(beside, range(40, 150)))[ERRORS] == NOT_WORSE


def test_latencies_that_no_reference_has_are_not_compared() -> None:
    without = references.build(SPEC, lambda: [columns(past(np.random.default_rng(0), 2_000))])
    beside = Beside("8", SPEC.canary, SIZES, without)
    for i in range(3):
        rows = {v: profile_of(without, served(np.random.default_rng([i, int(v)]))) for v in "78"}
        beside.pane(START + i, {v: Peer(START - (v == "7"), rows[v]) for v in "78"})
    statistics = {v.statistic for v in beside.window(START)}
    assert statistics == {"more_request_errors", "inputs_differ", "scores_differ"}


def test_who_never_sends_errors_hears_nothing_of_them() -> None:
    beside = fresh()
    for i in range(3):
        peers = {v: Peer(int(v), pane((i, v), failing=0.0)) for v in "78"}
        beside.pane(START + i, peers)
    assert ERRORS not in found(beside.window(START))


def test_a_window_without_a_pane_of_both_is_not_spoken_of() -> None:
    beside = fresh()
    assert watch(beside, range(20))
    assert beside.window(START + 20 * PANE) == []
    beside.pane(START + 21 * PANE, {"8": Peer(START, pane(1))})
    assert beside.window(START + 20 * PANE) == []


def test_the_older_of_two_is_compared_with_nobody() -> None:
    beside = fresh("7")
    assert watch(beside, range(5)) == []
    assert beside.snapshot() == b""


def test_the_baseline_stays_while_it_serves_and_another_is_chosen_a_day_after_it_has_gone() -> None:
    beside, began = fresh("9"), {"7": 0, "8": 1, "9": 2}

    def among(at_ms: int, *versions: str) -> str:
        peers = {v: Peer(began[v], pane((at_ms, v))) for v in (*versions, "9")}
        beside.pane(at_ms, peers)
        told = beside.window(at_ms)
        return str(told[0].evidence["compared_with"]) if told else ""

    assert among(START, "8", "7") == "7"
    assert among(START + PANE, "8") == ""
    assert among(START + DAY - PANE, "8") == ""
    assert among(START + DAY - PANE, "8", "7") == "7"
    assert among(START + 2 * DAY - PANE, "8") == "8"
    assert among(START + 2 * DAY, "8", "7") == "8"


def test_a_restart_changes_nothing() -> None:
    whole, cut = fresh(), fresh()
    for i in range(40):
        snapshot = cut.snapshot()
        cut = fresh()
        cut.restore(snapshot)
        for beside in (whole, cut):
            watch(beside, [i], failing=0.1, times=1.1, wind=1.6)
    assert cut.snapshot() == whole.snapshot()
    assert cut.window(START) == whole.window(START)


@pytest.mark.parametrize("error_rate", [0.01, 0.02], ids=["damaged", "another error rate"])
def test_what_is_of_other_settings_or_damaged_starts_anew(error_rate: float) -> None:
    before = fresh()
    watch(before, range(3))
    stored = msgspec.msgpack.decode(before.snapshot())
    if error_rate == 0.01:
        stored[3] = [b"x", b"x"]
    after = fresh(error_rate=error_rate)
    after.restore(msgspec.msgpack.encode(stored))
    assert after.snapshot() == b""
    assert found(watch(after, range(150)))[ERRORS] == NOT_WORSE


def test_snapshots_are_a_few_kilobytes() -> None:
    beside = fresh()
    watch(beside, range(100))
    assert len(beside.snapshot()) < 4_096


def test_each_pane_is_given_those_of_its_start_and_bins() -> None:
    def closed(version: str, at: int, segment: str = "", bins: str = "b") -> ClosedPane:
        key = SeriesKey(MODEL, version, segment, bins)
        return ClosedPane(key, at, NOTHING, (key,), began_ms=int(version, 36))

    window = ClosedWindow(SeriesKey(MODEL, "7", "", "b"), 0, 60, NOTHING, whole=True)
    stream: list[Closed] = [
        closed("7", 0),
        closed("8", 0),
        closed("8", 0, "carrier=UA"),
        closed("9", 0, bins="c"),
        window,
        closed("8", 10),
    ]
    given = [(one, {v: peer.began_ms for v, peer in peers.items()}) for one, peers in with_peers(stream)]  # fmt: skip
    both = {"7": 7, "8": 8}
    assert given == list(zip(stream, [both, both, {}, {"9": 9}, {}, {"8": 8}], strict=True))
    others = SeriesKey(MODEL, OTHER_VERSION, "", "b")
    assert next(with_peers([ClosedPane(others, 0, NOTHING)]))[1] == NOBODY
