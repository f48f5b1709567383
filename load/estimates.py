"""How far estimated performance is from what labels say later: ``python -m load.estimates [--short] [--readme]``.

Beside it the guess that costs nothing: "as in the reference". Both are compared with the accuracy that the labels of each window gave, on the
demo's flights (eleven months, another season in each, and the two accidents) and on made-up models of which the truth is known:

- *covariate shift*: the share of hard cases, with scores near a half, rises and falls; scores stay calibrated
- *concept drift*: from the middle on half of what the scores said is not so any more. No estimate from scores can see this, and it is shown for that

``inside`` is the share of windows whose accuracy lies in the band; 0.95 where scores still mean what they meant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from load.markdown import README, table, write_block
from load.sources import labelled
from monitor import reference as references
from monitor.columns import from_batch
from monitor.profile import SCORE
from monitor.reference import Reference
from monitor.spec import ModelSpec, parse_spec
from streams.demo import flights, replay

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DAY_MS: Final = 86_400_000
SHORT_MONTHS: Final = (6, 7)
SPEC: Final[dict[str, Any]] = {
    "task": "binary",
    "windows": {"pane": "1h", "sizes": ["1d"], "lateness": "1h"},
}


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """Labelled predictions: ``window`` numbers of ``n`` rows, scores, and whether each was right."""

    window: Ints
    score: Floats
    right: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: mean absolute errors in accuracy, over windows."""

    name: str
    windows: int
    estimate: float
    constant: float
    inside: float


def compare(name: str, known: Reference, served: Served) -> Row:
    """Estimates of all windows with labels enough, against what the labels say."""
    meaning, usual = known.meaning, known.accuracy
    assert meaning is not None
    assert usual is not None
    errors, guesses, inside = [], [], []
    for rows in _windows(served.window):
        found = meaning.estimate(_histogram(known, served.score[rows])).get("accuracy")
        if found is None:
            continue
        accuracy = float(served.right[rows].mean())
        errors.append(abs(found.value - accuracy))
        guesses.append(abs(usual - accuracy))
        # The band is for the labels of just this window: no more noise is added.
        inside.append(found.low <= accuracy <= found.high)
    means = (float(np.mean(each)) for each in (errors, guesses, inside))
    return Row(name, len(errors), *means)


def on_flights(*, short: bool) -> Iterator[Row]:
    """The demo's flights, by day and by week, the two accidents among them."""
    year = flights.load(np.random.default_rng(2013))
    model = replay.train(year)
    known = _reference(replay.reference_table(year, model))
    months = SHORT_MONTHS if short else replay.SERVED_MONTHS
    served = labelled(replay.served(year, model, months=months))
    for words, size in (("day", DAY_MS), ("week", 7 * DAY_MS)):
        yield compare(
            f"flights, by {words}", known, Served(served.at_ms // size, served.score, served.right)
        )


def made_up(rng: np.random.Generator, *, drift: bool, windows: int) -> tuple[Reference, Served]:
    """A calibrated model; the share of hard cases swings between 0.1 and 0.9 from window to window."""
    n = 2_000
    score = _scores(rng, np.full(20_000, 0.4))
    label = rng.random(score.size) < score
    known = _reference(
        pa.table(
            {
                "ts": pa.array(np.arange(score.size) * 60_000, pa.timestamp("ms", "UTC")),
                "x": score,
                "prediction": (score >= 0.5).astype(np.int64),
                "score": score,
                "label": label.astype(np.int64),
            }
        )
    )
    window = np.repeat(np.arange(windows), n)
    hard = 0.5 + 0.4 * np.sin(window * 2 * np.pi / windows)
    score = _scores(rng, np.full(len(window), 0.4) if drift else hard)
    label = rng.random(score.size) < score
    if drift:
        forgotten = (window >= windows // 2) & (rng.random(score.size) < 0.5)
        label = np.where(forgotten, rng.random(score.size) < 0.5, label)
    return known, Served(window, score, (score >= 0.5) == label)


def report(*, short: bool) -> list[Row]:
    """All rows."""
    rng = np.random.default_rng(7)
    windows = 60 if short else 300
    rows = [*on_flights(short=short)]
    for name, drift in (("covariate shift", False), ("concept drift (cannot be seen)", True)):
        rows.append(compare(name, *made_up(rng, drift=drift, windows=windows)))
    return rows


def _scores(rng: np.random.Generator, hard: Floats) -> Floats:
    """Hard cases score near a half, the others near 0 and 1."""
    easy = rng.beta(1, 12, hard.size)
    easy = np.where(rng.random(hard.size) < 0.5, easy, 1 - easy)
    return np.asarray(np.where(rng.random(hard.size) < hard, rng.beta(8, 8, hard.size), easy))


def _reference(past: pa.Table) -> Reference:
    outputs = {"ts", "prediction", "score", "latency_ms", "label"}
    features = {
        name: {"type": "categorical" if pa.types.is_string(past[name].type) else "numeric"}
        for name in past.column_names
        if name not in outputs
    }
    spec: ModelSpec = parse_spec({**SPEC, "model": "m", "features": features}, origin="load")
    return references.build(
        spec, lambda: [from_batch(b, origin="load") for b in past.to_batches(50_000)]
    )


def _histogram(known: Reference, score: Floats) -> Ints:
    bins = known.layout.by_name[SCORE].bins
    codes = bins.encode(score.tolist()).codes
    return np.bincount(codes, minlength=bins.bins)[: bins.bins]


def _windows(window: Ints) -> Iterator[npt.NDArray[np.intp]]:
    order = np.argsort(window, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(window[order])) + 1)


def main(arguments: Sequence[str]) -> int:
    """Print the table; 1 where an estimate is no better than the guess, though it could be."""
    parser = argparse.ArgumentParser(prog="python -m load.estimates", description=__doc__)
    parser.add_argument("--short", action="store_true", help="two months and 60 windows")
    parser.add_argument("--readme", action="store_true", help="write the block of the README, too")
    options = parser.parse_args(arguments)
    rows = report(short=options.short)
    header = ("Windows of", "number", "error of the estimate", "error of the guess", "inside")
    body = table(
        header,
        [
            (
                row.name,
                str(row.windows),
                f"{100 * row.estimate:.2f} points",
                f"{100 * row.constant:.2f} points",
                f"{row.inside:.2f}",
            )
            for row in rows
        ],
    )
    sys.stdout.write(f"{body}\n")
    if options.readme:
        write_block(README, "estimates", body)
    fair = [row for row in rows if "cannot" not in row.name]
    return int(any(row.estimate >= row.constant for row in fair))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
