"""How long detectors run before they cry wolf, and how soon they find: ``python -m load.run_length [--short] [--readme]``.

Two tables. Run lengths on clean streams, in panes, against the promise A of ``monitor.sequential``; and delays after a shift of one of 50 features,
at a budget of one false alarm in 36,000 panes of the family. Each column of a simulation is a run of its own, so all runs go in lockstep.

The rule that keeps it honest: a stream's parameters are computed from its formula, never fitted to the runs that are shown.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.signal import lfilter
from typing_extensions import override

from load.markdown import README, table, write_block
from monitor.adwin import Adwin
from monitor.charts import Cusum, CusumConfig, cusum_threshold
from monitor.moments import Floats
from monitor.sequential import EDetector, EDetectorConfig, mean_tolerance

FAMILY: Final = 50
FAMILY_RUN_LENGTH: Final = 36_000.0  # of the delays: 720 panes a feature
SHIFTS: Final = (0.1, 0.25, 0.5, 1.0)
PANE: Final = 200  # values, of the delays
REFERENCE: Final = 20_000  # values, where the tolerance comes from
SLACK: Final = 0.05  # half the smallest of SHIFTS
DAY: Final = 144  # panes
SWING: Final = 0.5
HORIZON: Final = 3  # times A: runs that did not fire until then are counted as such

Moments = tuple[Floats, Floats]  # means and M2, (runs,) each
Draw = Callable[[np.random.Generator, int, int], Moments]  # rng, runs, number of the pane


@dataclass(frozen=True)
class Stream:
    """A clean stream of mean 0 and variance 1.

    Attributes:
        n: values of a pane.
        draw: one pane of each of many runs.
        design_effect: of long sums, from the formula of the stream.
        proven: whether the theorem covers it: values that are independent in time.
    """

    name: str
    n: int
    draw: Draw
    design_effect: float = 1.0
    proven: bool = True


def moments(values: Floats) -> Moments:
    """Of ``(n, runs)`` values."""
    mean = values.mean(axis=0)
    return mean, ((values - mean) ** 2).sum(axis=0)


def normal(n: int) -> Stream:
    def draw(rng: np.random.Generator, runs: int, _: int) -> Moments:
        return rng.normal(0, 1 / math.sqrt(n), runs), rng.chisquare(n - 1, runs)

    return Stream("N(0, 1)", n, draw)


def lognormal(n: int) -> Stream:
    mean, deviation = math.exp(0.5), math.sqrt((math.e - 1) * math.e)

    def draw(rng: np.random.Generator, runs: int, _: int) -> Moments:
        return moments((rng.lognormal(0, 1, (n, runs)) - mean) / deviation)

    return Stream("lognormal(0, 1)", n, draw)


def bernoulli(n: int, p: float) -> Stream:
    variance = p * (1 - p)

    def draw(rng: np.random.Generator, runs: int, _: int) -> Moments:
        share = rng.binomial(n, p, runs) / n
        return (share - p) / math.sqrt(variance), n * share * (1 - share) / variance

    return Stream(f"Bernoulli({p:g})", n, draw)


def uniform(n: int) -> Stream:
    def draw(rng: np.random.Generator, runs: int, _: int) -> Moments:
        return moments(rng.uniform(-math.sqrt(3), math.sqrt(3), (n, runs)))

    return Stream("uniform", n, draw)


def autoregressive(n: int, phi: float) -> Stream:
    """AR(1): the design effect of a long sum is ``(1 + phi) / (1 - phi)``."""
    last = np.zeros((1, 0))

    def draw(rng: np.random.Generator, runs: int, pane: int) -> Moments:
        nonlocal last
        if pane == 1:
            last = rng.normal(0, 1, (1, runs))
        noise = rng.normal(0, math.sqrt(1 - phi * phi), (n, runs))
        values, _ = lfilter([1.0], [1.0, -phi], noise, axis=0, zi=phi * last)
        last = values[-1:]
        return moments(values)

    return Stream(f"AR(1), {phi:g}", n, draw, (1 + phi) / (1 - phi), proven=False)


def season(n: int) -> Stream:
    """A day of 144 panes with a sine for a mean. The design effect is that of the worst window up to a day."""
    scale = math.sqrt(1 + SWING**2 / 2)
    wave = SWING * np.sin(2 * np.pi * np.arange(2 * DAY) / DAY)
    worst = 1.0
    for length in range(1, DAY + 1):
        sums = np.convolve(wave, np.ones(length) / length, "valid")[:DAY]
        worst = max(worst, (1 + n * length * float(np.mean(sums**2))) / scale**2)

    def draw(rng: np.random.Generator, runs: int, pane: int) -> Moments:
        phase = np.arange(runs) / runs * DAY
        level = SWING * np.sin(2 * np.pi * (pane + phase) / DAY)
        mean = (level + rng.normal(0, 1 / math.sqrt(n), runs)) / scale
        return mean, rng.chisquare(n - 1, runs) / scale**2

    return Stream("daily season", n, draw, worst, proven=False)


def streams() -> list[Stream]:
    independent = [normal(5), normal(1_000), lognormal(30), lognormal(300)]
    independent += [bernoulli(30, 0.01), bernoulli(1_000, 0.01), uniform(30)]
    return [
        *independent,
        autoregressive(50, 0.5),
        autoregressive(50, 0.9),
        autoregressive(300, 0.9),
        season(100),
    ]


@dataclass(frozen=True)
class RunLength:
    """Panes over alarms, each run watched until its first alarm or the horizon."""

    panes: int
    alarms: int

    @property
    def mean(self) -> float:
        return self.panes / max(self.alarms, 1)

    @property
    def error(self) -> float:
        """Standard error: alarms are nearly a Poisson count."""
        return self.mean / math.sqrt(max(self.alarms, 1))

    @override
    def __str__(self) -> str:
        if self.alarms == 0:
            return f"over {self.panes:,}"
        return f"{self.mean:,.0f} ± {self.error:,.0f}"


def run_lengths(
    stream: Stream, promise: float, runs: int, rng: np.random.Generator
) -> dict[str, RunLength]:
    """Of the e-detector, CUSUM at the threshold for the same run length on N(0, 1), and ADWIN; all know the design effect."""
    n, zeros, effect = np.full(runs, stream.n), np.zeros(runs), stream.design_effect
    threshold = cusum_threshold(promise, SLACK, values=stream.n / effect)
    ours = EDetector(runs, EDetectorConfig(math.inf), design_effect=effect)
    cusum = Cusum(runs, CusumConfig(threshold, SLACK), design_effect=effect)
    adwin = Adwin(runs, design_effect=effect)
    horizon = int(HORIZON * promise)
    first = {name: np.full(runs, horizon + 1) for name in ("e-detector", "CUSUM", "ADWIN")}
    for pane in range(1, horizon + 1):
        mean, m2 = stream.draw(rng, runs, pane)
        fired = {
            "e-detector": ours.update(pane, n, mean, m2).log_e >= math.log(promise),
            "CUSUM": cusum.update(pane, n, mean, zeros).fired,
            "ADWIN": adwin.update(pane, n, mean, m2).fired,
        }
        for name, now in fired.items():
            first[name][now & (first[name] > horizon)] = pane
    return {
        name: RunLength(
            int(np.minimum(when, horizon).sum()), int(np.count_nonzero(when <= horizon))
        )
        for name, when in first.items()
    }


def family_run_length(
    promise: float, families: int, rng: np.random.Generator, *, same: bool
) -> RunLength:
    """Of 50 features at once, with restarts, and all alarms counted; the features are independent, or all the same."""
    stream = normal(100)
    detectors = [EDetector(FAMILY, EDetectorConfig(promise)) for _ in range(families)]
    panes, alarms, n = int(HORIZON * promise), 0, np.full(FAMILY, stream.n)
    for pane in range(1, panes + 1):
        for detector in detectors:
            drawn = stream.draw(rng, 1 if same else FAMILY, pane)
            mean, m2 = (np.broadcast_to(x, (FAMILY,)) for x in drawn)
            alarms += bool(detector.update(pane, n, mean, m2).fired.any())
    return RunLength(panes * families, alarms)


@dataclass(frozen=True)
class Delay:
    """Panes from a shift to its alarm."""

    panes: Floats  # of the runs that found it
    missed: int

    @override
    def __str__(self) -> str:
        if len(self.panes) == 0:
            return "missed"
        text = f"{self.panes.mean():.1f} ± {self.panes.std() / math.sqrt(len(self.panes)):.1f}"
        return text + (f" ({self.missed} missed)" if self.missed else "")


def delays(shift: float, runs: int, rng: np.random.Generator) -> dict[str, Delay]:
    """The feature that shifts after 100 clean panes, in ``runs`` families of 50, watched for 400 panes more."""
    n, zeros, spread = np.full(runs, PANE), np.zeros(runs), 1 / math.sqrt(PANE)
    tolerance = mean_tolerance(np.full(FAMILY, REFERENCE), 1.0)[0]
    alone = FAMILY * FAMILY_RUN_LENGTH
    ours = EDetector(runs, EDetectorConfig(math.inf))
    careful = EDetector(runs, EDetectorConfig(math.inf), tolerance=tolerance)
    cusum = Cusum(runs, CusumConfig(cusum_threshold(alone, SLACK, values=PANE), SLACK))
    adwin = Adwin(runs)
    names = ("e-detector", f"e-detector, reference of {REFERENCE:,}", "CUSUM", "ADWIN 0.002")
    found = {name: np.zeros(runs) for name in names}
    for pane in range(-99, 401):
        mean = rng.normal(shift * (pane > 0), spread, runs)
        m2 = rng.chisquare(PANE - 1, runs)
        fired = (
            ours.update(pane, n, mean, m2).log_e >= math.log(alone),
            careful.update(pane, n, mean, m2).log_e >= math.log(alone),
            cusum.update(pane, n, mean, zeros).fired,
            adwin.update(pane, n, mean, m2).fired,
        )
        for when, now in zip(found.values(), fired, strict=True):
            when[now & (when == 0) & (pane > 0)] = pane
    return {
        name: Delay(when[when > 0], int(np.count_nonzero(when == 0)))
        for name, when in found.items()
    }


def cost_us(clock_ns: Callable[[], int], rng: np.random.Generator, repeats: int) -> float:
    """The least time of a pane of 50 features, in microseconds."""
    detector, n = EDetector(FAMILY, EDetectorConfig(1e6)), np.full(FAMILY, PANE)
    mean, m2 = normal(PANE).draw(rng, FAMILY, 1)
    least = math.inf
    for _ in range(repeats):
        start = clock_ns()
        for pane in range(50):
            detector.update(pane, n, mean, m2)
        least = min(least, (clock_ns() - start) / 50 / 1_000)
    return least


def report(
    promise: float, runs: int, families: int, rng: np.random.Generator
) -> tuple[str, list[str]]:
    """Both tables, and the rows that break the promise: by more than three standard errors, where it is proven."""
    rows, broken = [], []
    for stream in streams():
        found = run_lengths(stream, promise, runs, rng)
        mark = "" if stream.proven else " (*)"
        effect = f"{stream.design_effect:.3g}"
        rows.append([f"{stream.name}, {stream.n} a pane{mark}", effect, *map(str, found.values())])
        ours = found["e-detector"]
        if stream.proven and ours.mean + 3 * ours.error < promise:
            broken.append(stream.name)
    for same, name in ((False, "independent"), (True, "all the same")):
        family = family_run_length(promise, families, rng, same=same)
        rows.append([f"50 features, {name}", "1", str(family), "", ""])
        if family.mean + 3 * family.error < promise:
            broken.append(name)
    header = ["clean stream", "design effect", "e-detector", "CUSUM", "ADWIN 0.002"]
    by_shift = [delays(shift, runs, rng) for shift in SHIFTS]
    found_rows = [[name, *(str(found[name]) for found in by_shift)] for name in by_shift[0]]
    shift_header = ["shift of 1 feature in 50", *(f"{shift:g} sigma" for shift in SHIFTS)]
    return f"{table(header, rows)}\n\n{table(shift_header, found_rows)}", broken


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if a promise is broken."""
    options = parser().parse_args(arguments)
    promise, runs, families = (60.0, 60, 4) if options.short else (1_000.0, 200, 10)
    rng = np.random.default_rng(options.seed)
    text, broken = report(promise, runs, families, rng)
    cost = cost_us(time.thread_time_ns, rng, 10)
    heading = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, `python -m load.run_length{' --short' if options.short else ''} --seed {options.seed}`. "
        f"Panes until a false alarm, mean and standard error of {runs} runs, watched for {HORIZON} A ({families} families of 50, with all their alarms). "
        f"The e-detector promises A = {promise:,.0f} or more; CUSUM's threshold is for the same A on independent Gaussian values. "
        f"(*) Values depend on the past: not covered by the theorem. Then panes of {PANE} values until a shift is found, at one false alarm in "
        f"{FAMILY_RUN_LENGTH:,.0f} panes of the family (ADWIN: at its own rate). {cost:.0f} us of CPU a pane of 50 features."
    )
    text = f"{heading}\n\n{text}"
    print(text)
    for name in broken:
        print(f"the promise is broken: {name}", file=sys.stderr)
    if options.readme:
        write_block(README, "run-length", text)
    return int(bool(broken))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m load.run_length", description=__doc__)
    found.add_argument("--short", action="store_true", help="shorter runs, for CI")
    found.add_argument("--readme", action="store_true", help="write the README's block")
    found.add_argument("--seed", type=int, default=2026)
    return found


if __name__ == "__main__":
    sys.exit(main())
