"""``python -m load.chaos``: a million events and forty faults on real Kafka, and then every count is compared.

Exit codes: 0 every invariant holds; 1 one does not, or a run could not be finished. The last line is the summary.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

from load.chaos.cluster import Runner
from load.chaos.mutants import MUTANTS
from load.chaos.progress import Recovery
from load.chaos.trial import Shape, Verdict, run
from load.markdown import table

_SECONDS: Final = 220e-6  # an event: 4,500 a second
_LEAST_S: Final = 45.0
_OUTAGE_S: Final = 60.0
_SHORT: Final = Shape(events=60_000, faults=8, seconds=30.0, database_s=10.0)
MUTANT_EVENTS: Final = 20_000
_MUTANT_S: Final = 22.0  # in 15 some were never struck
_BEGAN: Final = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds one after the other, and print what was found."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    shape, verdicts = _shape(options), []
    for seed in range(options.seed, options.seed + options.runs):
        with _directory(options.keep, seed) as directory:
            verdicts.append(run(seed, shape, directory, _say))
        if options.runs > 1:
            _say(verdicts[-1].line())
        if options.json:
            options.json.write_text(json.dumps([_plain(v) for v in verdicts], indent=1))
    _report(verdicts)
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def mutated(name: str) -> Shape:
    """A run just long enough for a mutant to be struck and found out."""
    mutant = MUTANTS[name]
    return Shape(MUTANT_EVENTS, 0, _MUTANT_S, 0.0, runner=mutant.runner, mutant=mutant)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m load.chaos", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--seed", type=int, default=1, help="of the events, the faults and the receiver")
    add("--events", type=int, default=1_000_000)
    add("--faults", type=int, default=40)
    add("--seconds", type=float, help="how long the events are sent; 220 s a million if not given")
    add(
        "--session",
        type=float,
        default=_SHORT.session_s,
        metavar="S",
        help="seconds of a Kafka session",
    )
    add("--runner", choices=get_args(Runner), default="transactional", help="of the detectors")
    add("--runs", type=int, default=1, metavar="N", help="seeds SEED to SEED + N - 1")
    add("--short", action="store_true", help="60,000 events and 8 faults, as CI runs it")
    add(
        "--mutant",
        choices=sorted(MUTANTS),
        help="break one hop: the run has to fail, but for the two controls",
    )
    add("--json", type=Path, metavar="FILE", help="write everything that was found")
    add("--keep", type=Path, metavar="DIR", help="leave logs and data there")
    return parser


def _shape(options: argparse.Namespace) -> Shape:
    if options.mutant:
        return mutated(options.mutant)
    if options.short:
        shape = _SHORT
    else:
        seconds = options.seconds or max(_LEAST_S, options.events * _SECONDS)
        shape = Shape(options.events, options.faults, seconds, min(_OUTAGE_S, seconds / 3))
    return replace(shape, session_s=options.session, runner=options.runner)


@contextmanager
def _directory(keep: Path | None, seed: int) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="driftline-chaos-") as scratch:
            yield Path(scratch)
        return
    home = keep / f"seed-{seed}"
    home.mkdir(parents=True)
    yield home


def _report(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.failed:
            print(f"seed {verdict.seed} was not finished: {verdict.failed}\n")
        for row in verdict.rows:
            for problem in row.problems:
                print(f"seed {verdict.seed}: {row.name}: {problem}")
    last = verdicts[-1]
    print(_invariants(last))
    found = [r for verdict in verdicts if verdict.marks for r in verdict.marks.recoveries]
    if found:
        print(f"\n{_recoveries(found)}")
    for verdict in verdicts:
        print(f"\n{verdict.line()}" if verdict is verdicts[0] else verdict.line())
    if len(verdicts) > 1:
        passed = sum(verdict.holds for verdict in verdicts)
        seeds = f"{verdicts[0].seed}-{last.seed}"
        word = "PASS" if passed == len(verdicts) else "FAIL"
        print(f"chaos seeds={seeds} passed={passed}/{len(verdicts)} {word}")


def _invariants(verdict: Verdict) -> str:
    rows = [[row.name, row.checked, "yes" if row.holds else "**NO**"] for row in verdict.rows]
    return table(["invariant", "checked", "holds"], rows)


def _recoveries(found: Sequence[Recovery]) -> str:
    rows = []
    for kind, target in sorted({(one.kind, one.target) for one in found}):
        those = [one for one in found if (one.kind, one.target) == (kind, target)]
        committed = [one.committed_s for one in those if one.committed_s is not None]
        verdicts = [one.verdict_s for one in those if one.verdict_s is not None]
        rows.append([f"{kind} {target}", str(len(those)), *_spread(committed), *_spread(verdicts)])
    header = [
        "fault",
        "n",
        "to the next commit, median",
        "max",
        "to the next verdict, median",
        "max",
    ]
    return table(header, rows)


def _spread(seconds: Sequence[float]) -> tuple[str, str]:
    return (f"{median(seconds):.1f} s", f"{max(seconds):.1f} s") if seconds else ("", "")


def _plain(verdict: Verdict) -> dict[str, Any]:
    marks = verdict.marks
    return {
        "line": verdict.line(),
        "seed": verdict.seed,
        "events": verdict.shape.events,
        "faults": verdict.shape.faults,
        "holds": verdict.holds,
        "failed": verdict.failed,
        "took_s": verdict.took_s,
        "invariants": [asdict(row) | {"holds": row.holds} for row in verdict.rows],
        "marks": None
        if marks is None
        else {
            "catch_up_s": marks.catch_up_s,
            "gap_s": marks.gap_s(),
            "peaks_bytes": marks.peaks,
            "starts": marks.starts,
            "own_ends": marks.own_ends,
            "struck": [asdict(one) for one in marks.struck],
            "recoveries": [asdict(one) for one in marks.recoveries],
        },
    }


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:6.1f}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
