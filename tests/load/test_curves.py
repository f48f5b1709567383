"""Scaling curves: what they promise, and one point with everything in it, counted right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from load import curves
from load.curves import (
    CURVES,
    FEATURE_CURVE,
    MIDDLE,
    Point,
    curve,
    events_of,
    main,
    measured,
    report,
)
from load.measuring import BATCH, Spent


def spent(cpu_us: float, *more: float) -> list[Spent]:
    return [Spent(1_000, us / 1_000, 1.0) for us in (cpu_us, *more)]


def linear(point: Point) -> list[Spent]:
    return spent(5.0 + 0.1 * point.features)


def test_a_line_is_linear_and_a_curve_is_not() -> None:
    points = CURVES[FEATURE_CURVE]
    straight = {point: linear(point) for point in points}
    found = curve(FEATURE_CURVE, points, straight)
    assert found.holds
    assert found.off == pytest.approx([0, 0, 0, 0])
    assert found.points == ["5", "20", "100", "500"]
    bent = straight | {points[2]: spent(15.0 * 1.16)}
    assert not curve(FEATURE_CURVE, points, bent).holds


def test_flat_is_within_fifteen_percent_of_the_middle_and_the_median_counts() -> None:
    points = CURVES["models"]
    flat = {point: spent(10.0, 90.0, 9.0) for point in points}
    assert curve("models", points, flat).holds
    assert curve("models", points, flat).cpu_us == pytest.approx([10.0] * 5)
    for us, holds in ((11.4, True), (8.6, True), (11.6, False), (8.4, False)):
        found = curve("models", points, flat | {points[-1]: spent(us)})
        assert found.holds == holds, us
        assert found.off[-1] == pytest.approx(us / 10 - 1)


def test_every_curve_goes_through_the_middle() -> None:
    for name, points in CURVES.items():
        assert MIDDLE in points
        assert {replace(point, **{name: getattr(MIDDLE, name)}) for point in points} == {MIDDLE}


def test_large_events_are_fewer_but_fill_two_batches() -> None:
    counts = [events_of(point, 200_000) for point in CURVES[FEATURE_CURVE]]
    assert counts == [200_000, 200_000, 40_000, 2 * BATCH]


def test_points_take_turns_and_a_curve_that_falls_short_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = list[list[Point]]()

    def measure(points: list[Point], *, events: int, rounds: int) -> dict[Point, list[Spent]]:
        taken.append(points)
        steep = {point: 2.0 if point.models > 10 else 1.0 for point in points}
        return {p: spent(steep[p] * linear(p)[0].cpu_us) for p in points}

    monkeypatch.setattr(curves, "measure", measure)
    assert main([]) == 1
    assert len(taken[0]) == len(set(taken[0])) == 11  # the middle is measured once a round
    said = capsys.readouterr().out
    assert "models: falls short" in said
    assert said.count(": holds") == 3
    assert main(["--short"]) == 0


def test_the_second_round_goes_backwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = [MIDDLE, Point(models=3), Point(models=10)]
    order = list[Point]()

    def one(folder: Path, bootstrap: str, name: str, point: Point, events: int) -> Spent:
        order.append(point)
        return Spent(events, 1.0, 1.0)

    monkeypatch.setattr(curves, "measured", one)
    found = curves.rounds_of(tmp_path, "", points, events=7, rounds=2)
    assert order == [*points, *points[::-1]]
    assert found == {point: [Spent(7, 1.0, 1.0)] * 2 for point in points}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_point_with_everything_in_it_counts_right(kafka: str, tmp_path: Path) -> None:
    """Too few to say what it costs: the full run is ``python -m load.curves``."""
    point = Point(features=5, models=3, pane="1s", workers=2)
    found = measured(tmp_path, kafka, f"curves-{tmp_path.name}", point, 2 * BATCH)
    assert found.events == 2 * BATCH
    assert 0.1 < found.cpu_us < 1_000
    said = report({"models": curve("models", [MIDDLE], {MIDDLE: [found]})}, "So:")
    assert "models: holds" in said
