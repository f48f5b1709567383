"""What the comparison of two versions promises, measured: ``python -m load.canaries [--short] [--readme]``.

Pairs of made-up versions, looked at after every window of 100 labels each, with the rates of both swinging through a season together:

- *no difference*: how often the new one is called worse in the whole time, which the error rate bounds
- *worse by just the margin*: how often it is called "not worse within margin", which the error rate bounds as well
- *worse*: how many labels of the new version it took until it was called so

Then what requests say without any label (``load.beside``): pairs of equal versions, looked at after every pane, of which each of the two alarms and the inputs may be wrong as
often as the error rate says; one that is worse by no more than what nobody minds; and how many requests it took until something broken was found.

Then the demo's bad release: version 8 beside version 7, with the flights' own labels in windows of a day.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from load.beside import Release
from load.beside import watch as watch_requests
from load.markdown import README, table, write_block
from load.sources import labelled
from monitor.binning import Floats
from monitor.canary import Answer, Canary, Rates, SequentialResult
from monitor.spec import CanarySpec
from streams.demo import flights, replay

PER_WINDOW: Final = 100
WINDOWS: Final = 200  # 20,000 labels of each version
ERROR_RATE: Final = 0.01
MARGIN: Final = 0.02
# Labels of the new version in nine cases of ten, by how much worse it is: monitor.canary.
PROMISED: Final = {0.03: 12_000, 0.1: 1_200}
TOLD: Final = ("more_request_errors", "more_slow_requests", "inputs_differ")
# Requests of the new version in nine cases of ten, by what is wrong with it.
FAULTS: Final = (
    ("twice as many errors, 4 % and not 2 %", Release(failing=0.02), TOLD[0], 8_000),
    ("five times as many errors", Release(failing=0.08), TOLD[0], 1_000),
    ("latency + 20 %", Release(times=1.2), TOLD[1], 8_000),
    ("latency + 50 %", Release(times=1.5), TOLD[1], 1_000),
    ("one feature of 20 loses 10 % of its values", Release(lost=0.1), TOLD[2], 2_000),
    ("one feature of 20 is read as HHMM", Release(raw=True), TOLD[2], 400),
)
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. ``median`` and ``nine_in_ten``: labels until the answer "worse", infinite where it never came."""

    name: str
    pairs: int
    worse: int
    not_worse: int
    median: float
    nine_in_ten: float


def watch(rate: float, difference: float, rng: np.random.Generator) -> tuple[set[Answer], float]:
    """All answers that a pair ever gets, and after how many labels it was "worse"."""
    canary = Canary(ERROR_RATE, MARGIN)
    swing = rate * 0.4 * np.sin(np.arange(WINDOWS) * 2 * np.pi / 50)
    old = rng.binomial(PER_WINDOW, rate + swing)
    new = rng.binomial(PER_WINDOW, rate + swing + difference)
    seen: set[Answer] = set()
    for x, y in zip(old.tolist(), new.tolist(), strict=True):
        known = canary.update(Rates(PER_WINDOW, x, PER_WINDOW, y))
        seen.add(known.answer)
        if known.answer == "worse" and known.decided_after is not None:
            return seen, known.decided_after
    return seen, np.inf


def run(name: str, rate: float, difference: float, pairs: int, seed: int) -> Row:
    """Watch that many pairs."""
    rng = np.random.default_rng(seed)
    seen = [watch(rate, difference, rng) for _ in range(pairs)]
    after = np.sort([labels for _, labels in seen])
    return Row(
        name,
        pairs,
        sum("worse" in answers for answers, _ in seen),
        sum("not_worse" in answers for answers, _ in seen),
        *_quantiles(after),
    )


@dataclass(frozen=True, slots=True)
class Told:
    """A line of the table of requests: pairs of which something was told, by statistic, and the requests until ``expected`` was."""

    name: str
    pairs: int
    told: dict[str, int]
    expected: str
    median: float
    nine_in_ten: float


def requests(
    name: str, old: Release, new: Release, pairs: int, seed: int, expected: str = ""
) -> Told:
    """Watch that many pairs: to the end, or until what is expected was told."""
    rng, spec = np.random.default_rng(seed), CanarySpec(margin=MARGIN, error_rate=ERROR_RATE)
    found = [watch_requests(old, new, spec, rng, until=expected) for _ in range(pairs)]
    after = np.sort([each.get(expected, np.inf) for each in found])
    return Told(
        name,
        pairs,
        {statistic: sum(statistic in each for each in found) for statistic in TOLD},
        expected,
        *_quantiles(after),
    )


def _quantiles(after: Floats) -> tuple[float, float]:
    """Median and ninth decile of sorted delays: one of them, infinite where it never came."""
    n = len(after)
    return float(after[(n - 1) // 2]), float(after[-(-9 * n // 10) - 1])


def bad_release() -> SequentialResult:
    """The flights of the demo's bad release by the day they were predicted on, all labels in."""
    year = flights.load(np.random.default_rng(2013))
    month = int(str(np.datetime64(replay.BAD_RELEASE.from_ms, "ms"))[5:7])
    served = labelled(replay.served(year, replay.train(year), months=[month]))
    old, new = (served.version == name for name in (replay.VERSION, replay.CANARY_VERSION))
    day = served.at_ms // DAY_MS
    canary = Canary(ERROR_RATE, MARGIN)
    for each in np.unique(day[new]):
        rows = [(day == each) & of for of in (old, new)]
        canary.update(
            Rates(*(int(n) for of in rows for n in (of.sum(), (of & ~served.right).sum())))
        )
    return canary.known


def main(arguments: Sequence[str]) -> int:
    """Print the table; 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m load.canaries", description=__doc__)
    parser.add_argument("--short", action="store_true", help="60 pairs instead of 1,000")
    parser.add_argument("--readme", action="store_true", help="write the block of the README, too")
    options = parser.parse_args(arguments)
    pairs = 60 if options.short else 1_000
    equal = run("no difference", 0.2, 0.0, pairs, 1)
    margin = run("worse by the margin of 2 points", 0.2, MARGIN, pairs, 2)
    worse = {
        points: run(f"worse by {round(100 * points)} points", 0.2, points, pairs // 4, 3)
        for points in PROMISED
    }
    usual = Release()
    many = pairs // 2 if options.short else pairs
    same = requests("no difference", usual, usual, many, 4)
    # As much worse as nobody minds: 5 % is less than two points more slow requests, also in the worst of the season.
    close = requests(
        "half a point more errors, latency + 5 %", usual, Release(0.005, 1.05), many, 5
    )
    faults = [
        (requests(name, usual, new, max(many // 10, 20), 6, expected), most)
        for name, new, expected, most in FAULTS
    ]
    release = bad_release()
    rows = [
        (
            row.name,
            *(f"{count:,}" for count in (row.pairs, row.worse, row.not_worse)),
            _labels(row.median),
            _labels(row.nine_in_ten),
        )
        for row in (equal, margin, *worse.values())
    ]
    header = ("The new version is", "pairs", "called worse", "called not worse", "labels: median", "9 in 10")  # fmt: skip
    words = (
        f"The demo's bad release: {release.answer.replace('_', ' ')} after {_labels(release.decided_after)} labelled flights of version "
        f"{replay.CANARY_VERSION}; it errs {100 * release.difference:.1f} points more often."
    )
    told = [
        (
            row.name,
            f"{row.pairs:,}",
            *(f"{row.told[statistic]:,}" for statistic in TOLD),
            _labels(row.median),
            _labels(row.nine_in_ten),
        )
        for row in (same, close, *(fault for fault, _ in faults))
    ]
    heads = ("Without labels, the new version has", "pairs", "more errors", "more slow", "inputs differ", "requests: median", "9 in 10")  # fmt: skip
    body = f"{table(header, rows)}\n\n{table(heads, told)}\n\n{words}"
    sys.stdout.write(f"{body}\n")
    if options.readme:
        write_block(README, "canaries", body)
    # Three standard deviations above the rate where few pairs are watched.
    most = ERROR_RATE * pairs + (3 * (ERROR_RATE * pairs) ** 0.5 if options.short else 0)
    kept = (
        equal.worse <= most,
        margin.not_worse <= most,
        all(row.nine_in_ten <= PROMISED[points] for points, row in worse.items()),
        all(count <= most for row in (same, close) for count in row.told.values()),
        all(row.nine_in_ten <= bound for row, bound in faults),
        release.answer == "worse",
    )
    return int(not all(kept))


def _labels(n: float | None) -> str:
    return "-" if n is None or np.isinf(n) else f"{round(n):,}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
