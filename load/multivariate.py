"""What the multivariate statistic keeps and finds: ``python -m load.multivariate [--short] [--readme]``.

Three tables: the level of its limit on clean data, its power beside per-feature KS tests and an exact kernel test, and its cost.

Windows for the level are drawn from a pool of two million vectors, as block sums: independent blocks in any order, blocks of a series in theirs. A
reference is drawn for every hundred windows, since its own luck is part of the rate. Two windows of independent blocks share at most 0.5 % of
them on average, so the binomial error that is shown holds; those of a series overlap more. The pool's own scatter is that of 40,000 blocks: at 100
features it is 2.5 % wider than the truth, which adds a few percent to the smallest level (a pool of 10,000 blocks added a third). A window of 50
is one block of the pool, so the error of the smallest level is a tenth wider there than shown.
"""

from __future__ import annotations

import argparse
import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import signal, stats
from scipy.spatial import distance

from load.markdown import README, table, write_block
from monitor.binning import Floats, Ints
from monitor.fourier import FourierMap, FourierSum, embed
from monitor.mmd import MmdNull, Spectrum

ALPHAS: Final = (0.05, 0.01, 0.001)
BLOCK: Final = 50
REFERENCE: Final = 20_000
SAMPLE: Final = 4_096
PHI: Final = 0.9
STREAMS: Final = ((0.0, 5), (0.0, 20), (0.0, 100), (PHI, 5), (PHI, 20))  # phi, features
POWER_ALPHA: Final = 0.01
SEED: Final = 20_261_122

Draw = Callable[[np.random.Generator, int], Floats]


@dataclass(frozen=True)
class Pool:
    """Clean vectors as sums of blocks of ``BLOCK``, in order, and what a reference's first pass learns."""

    fourier: FourierMap
    spectrum: Spectrum
    sums: Ints
    ordered: bool  # blocks depend on their neighbours

    @classmethod
    def of(
        cls, dimensions: int, blocks: int, rng: np.random.Generator, *, phi: float = 0.0
    ) -> Pool:
        """Normal vectors, independent or each component an AR(1) series of unit variance."""
        series = Series(dimensions, phi, rng)
        first = series.take(SAMPLE)
        fourier = FourierMap.fit(first, seed=int(rng.integers(1 << 31)))
        group = np.repeat(np.arange(100), BLOCK)
        parts = [fourier.sums(series.take(100 * BLOCK), group, 100) for _ in range(blocks // 100)]
        spectrum = Spectrum.of(fourier.embed(first))
        return cls(fourier, spectrum, np.concatenate(parts), phi > 0)

    def draw(self, vectors: int, rng: np.random.Generator, windows: int = 1) -> Ints:
        """``(windows, blocks, 2 * D)`` sums of as many vectors each."""
        size, most = vectors // BLOCK, len(self.sums)
        if self.ordered:
            starts = rng.integers(0, most - size, windows)
            return np.asarray(self.sums[starts[:, None] + np.arange(size)])
        return np.asarray(self.sums[rng.integers(0, most, (windows, size))])


class Series:
    """Vectors that go on where they stopped. Mutable: it remembers the last one."""

    def __init__(self, dimensions: int, phi: float, rng: np.random.Generator) -> None:
        self._phi, self._rng = phi, rng
        self._last = rng.normal(size=(1, dimensions)) * phi

    def take(self, n: int) -> Floats:
        noise = self._rng.normal(size=(n, self._last.shape[1]))
        if self._phi == 0.0:
            return noise
        noise *= np.sqrt(1 - self._phi**2)
        values, self._last = signal.lfilter([1.0], [1.0, -self._phi], noise, axis=0, zi=self._last)
        return np.asarray(values)


def level(pool: Pool, n: int, trials: int, rng: np.random.Generator) -> list[float]:
    """Share of ``trials`` clean windows of ``n`` vectors beyond the limit, for each of ``ALPHAS``."""
    per = 100
    beyond = np.zeros(len(ALPHAS))
    counts = np.full(REFERENCE // BLOCK, BLOCK)
    for _ in range(trials // per):
        blocks = pool.draw(REFERENCE, rng)[0]
        null = MmdNull.learn(counts, blocks, pool.spectrum, n // BLOCK)
        known = FourierSum(REFERENCE, blocks.sum(axis=0))
        windows = np.concatenate([pool.draw(n, rng, 10).sum(axis=1) for _ in range(per // 10)])
        values = unbiased(known, n, windows)
        beyond += [np.count_nonzero(values > null.limit(n, alpha)) for alpha in ALPHAS]
    return list(beyond / (trials // per * per))


def unbiased(reference: FourierSum, n: int, windows: Ints) -> Floats:
    """``monitor.mmd.mmd2`` of many windows of ``n`` vectors at once."""
    means = embed(np.full(len(windows), n), windows)
    known = reference.mean
    own = (1 - np.sum(means**2, axis=1)) / (n - 1) + (1 - np.sum(known**2)) / (reference.n - 1)
    return np.asarray(np.sum((means - known) ** 2, axis=1) - own)


def exact_p_value(x: Floats, y: Floats, bandwidth: float, shuffles: int, seed: int) -> float:
    """The kernel test without features: quadratic in the vectors, its null by permutation (Gretton et al. 2012, section 3)."""
    rng = np.random.default_rng(seed)
    both = np.concatenate((x, y))
    kernel = np.exp(-distance.squareform(distance.pdist(both, "sqeuclidean")) / 2 / bandwidth**2)
    n, m = len(x), len(y)
    side = np.where(np.arange(n + m) < n, 1.0 / n, -1.0 / m)
    sides = np.stack([side, *(rng.permutation(side) for _ in range(shuffles))])
    values = np.einsum("ij,ij->i", sides @ kernel, sides)  # biased: a shuffle keeps its diagonal
    return float(np.count_nonzero(values >= values[0] * (1 - 1e-12))) / (shuffles + 1)


@dataclass(frozen=True)
class Change:
    """A change to find: what is drawn after it, against independent normals before."""

    name: str
    dimensions: int
    drawn: Draw


def correlated(dimensions: int, rho: float) -> Draw:
    """Unit normals of which the first two are correlated: no single one of them changes."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        x = rng.normal(size=(n, dimensions))
        x[:, 1] = rho * x[:, 0] + np.sqrt(1 - rho**2) * x[:, 1]
        return x

    return draw


def shifted(dimensions: int, changed: int, by: float) -> Draw:
    """Unit normals of which the first ``changed`` have another mean."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        x = rng.normal(size=(n, dimensions))
        x[:, :changed] += by
        return x

    return draw


CHANGES: Final = (
    Change("none, 20 features", 20, shifted(20, 0, 0.0)),
    Change("correlation 0.3 in 2 of 20", 20, correlated(20, 0.3)),
    Change("correlation 0.5 in 2 of 20", 20, correlated(20, 0.5)),
    Change("mean 0.5 sigma in 5 of 100", 100, shifted(100, 5, 0.5)),
)


def power(
    change: Change, n: int, m: int, trials: int, rng: np.random.Generator, *, exact: bool = False
) -> tuple[float, float, float]:
    """Share of windows in which the change is found at ``POWER_ALPHA``: by ours, by KS per feature with Bonferroni's correction, by the exact test (NaN if not asked for).

    Each trial draws its own reference of ``m`` vectors and its own map.
    """
    found = np.zeros(3)
    group = np.zeros(max(m, n), dtype=np.intp)
    for _ in range(trials):
        past, now = rng.normal(size=(m, change.dimensions)), change.drawn(rng, n)
        fourier = FourierMap.fit(past, seed=int(rng.integers(1 << 31)))
        blocks = fourier.sums(past, np.arange(m) * 100 // m, 100)
        spectrum = Spectrum.of(fourier.embed(past[:SAMPLE]))
        counts = np.bincount(np.arange(m) * 100 // m)
        null = MmdNull.learn(counts, blocks, spectrum, max(1, 100 * n // m))
        window = fourier.sums(now, group[:n], 1)
        value = unbiased(FourierSum(m, blocks.sum(axis=0)), n, window)[0]
        least = min(
            stats.ks_2samp(a, b, method="asymp").pvalue for a, b in zip(now.T, past.T, strict=True)
        )
        found[0] += value > null.limit(n, POWER_ALPHA)
        found[1] += least < POWER_ALPHA / change.dimensions
        if exact:
            seed = int(rng.integers(1 << 31))
            found[2] += exact_p_value(now, past, fourier.bandwidth, 299, seed) <= POWER_ALPHA
    shares = found / trials
    return float(shares[0]), float(shares[1]), float(shares[2]) if exact else float("nan")


def cost(dimensions: int, rng: np.random.Generator, clock: Callable[[], float]) -> float:
    """Microseconds of processor a vector, the best of five batches of 4,096; asserts that the sums are those of the parts."""
    vectors = rng.normal(size=(4_096, dimensions))
    fourier = FourierMap.fit(vectors, seed=1)
    group = rng.integers(0, 4, len(vectors))
    took, sums = [], np.zeros(0, dtype=np.int64)
    for _ in range(5):
        start = clock()
        sums = fourier.sums(vectors, group, 4)
        took.append(clock() - start)
    alone = fourier.sums(vectors, np.zeros(len(vectors), dtype=np.intp), 1)
    if not np.array_equal(sums.sum(axis=0), alone[0]):
        raise AssertionError("the sums depend on how the vectors were grouped")
    return min(took) / len(vectors) * 1e6


@dataclass(frozen=True)
class Size:
    """How much is tried."""

    pools: int  # for each row of the level, each with its own map
    blocks: int  # of a pool
    level_trials: int  # for each window size, over all pools
    power_trials: int
    windows: tuple[int, ...]


SHORT: Final = Size(1, 2_000, 1_000, 5, (50, 1_000))
FULL: Final = Size(2, 40_000, 20_000, 50, (50, 200, 1_000, 10_000))


def level_table(size: Size, seed: int) -> str:
    """Level on clean data; asserts that none is beyond 3 times its level and 5 binomial errors."""
    rows = []
    for phi, dimensions in STREAMS:
        rng = np.random.default_rng([seed, dimensions, int(10 * phi)])
        shares = np.zeros((len(size.windows), len(ALPHAS)))
        for _ in range(size.pools):
            pool = Pool.of(dimensions, size.blocks, rng, phi=phi)
            for i, n in enumerate(size.windows):
                shares[i] += level(pool, n, size.level_trials // size.pools, rng)
        shares /= size.pools
        most = 3 * np.array(ALPHAS) + 5 * error(np.array(ALPHAS), size.level_trials)
        if np.any(shares > most):
            raise AssertionError(f"{dimensions} features, phi {phi}: {shares.max(axis=0)}")
        clean = f"AR(1), phi = {phi}" if phi else "independent"
        for n, found in zip(size.windows, shares, strict=True):
            cells = [f"{share:.4f}" for share in found]
            rows.append([clean, str(dimensions), f"{n:,}", *cells])
    noise = [f"{a} ± {error(np.array(a), size.level_trials):.4f}" for a in ALPHAS]
    return table(["clean data", "features", "vectors a window", *noise], rows)


def error(share: Floats, trials: int) -> Floats:
    """Binomial standard error."""
    return np.asarray(np.sqrt(share * (1 - share) / trials))


def power_table(size: Size, seed: int) -> str:
    """Shares of changes found; asserts that where nothing changed no more is found than the level and 5 errors allow."""
    rows = []
    allowed = POWER_ALPHA + 5 * float(error(np.array(POWER_ALPHA), size.power_trials))
    for change in CHANGES:
        few = change.dimensions > 50
        sizes = [(100, REFERENCE), (300, REFERENCE)] if few else [(n, REFERENCE) for n in (1_000, 3_000, 10_000)]  # fmt: skip
        for n, m in [*sizes, (300, 300) if few else (1_000, 1_000)]:
            rng = np.random.default_rng([seed, n, m, change.dimensions])
            ours, ks, exact = power(change, n, m, size.power_trials, rng, exact=m != REFERENCE)
            if change is CHANGES[0] and ours > allowed:
                raise AssertionError(f"found {ours} where nothing changed, of {n} vectors")
            known = "" if np.isnan(exact) else f"{exact:.2f}"
            rows.append([change.name, f"{n:,}", f"{m:,}", f"{ours:.2f}", f"{ks:.2f}", known])
    header = ["change", "vectors", "reference", "MMD", "KS per feature, Bonferroni", "exact MMD, permutations"]  # fmt: skip
    return table(header, rows)


def cost_table(seed: int) -> str:
    """Processor time a vector on one thread's clock; the state is the same for all."""
    rng = np.random.default_rng(seed)
    rows = [[f"{d:,}", f"{cost(d, rng, time.process_time):.2f}"] for d in (5, 20, 100, 768, 2_000)]
    return table(["numbers a vector", "us a vector"], rows)


def report(size: Size, seed: int, date: str, command: str) -> str:
    """All tables as Markdown."""
    return "\n\n".join(
        (
            f"{date}, `{command}`, seed {seed}. Reference of {REFERENCE:,} vectors, {size.pools} maps a row, {size.level_trials:,} windows a rate; "
            "the header has each level and its binomial error.",
            level_table(size, seed),
            f"Share of windows in which a change is found at level {POWER_ALPHA}, of {size.power_trials} (error at most {0.5 / np.sqrt(size.power_trials):.2f}).",
            power_table(size, seed),
            "Cost on this machine's processor, for 128 frequencies: 2 KiB of state.",
            cost_table(seed),
        )
    )


def main() -> None:
    """Print the tables; with ``--readme`` into the block ``multivariate`` as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--readme", action="store_true", help="write the README's block")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--date", default=dt.datetime.now(dt.UTC).date().isoformat())
    chosen = parser.parse_args()
    command = "python -m load.multivariate" + (" --short" if chosen.short else "")
    body = report(SHORT if chosen.short else FULL, chosen.seed, chosen.date, command)
    print(body)
    if chosen.readme:
        write_block(README, "multivariate", body)


if __name__ == "__main__":
    main()
