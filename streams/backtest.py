"""``driftline backtest``: a model's stored windows and published reference, judged again under other rules."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from alerting.backtest import Backtest, Budget, Fixed, Outcome, Rule, parse_budget
from alerting.episodes import Episode, parse_episodes
from monitor import store
from monitor.errors import ConfigError, DriftlineError
from monitor.history import History
from monitor.settings import Settings
from monitor.tables import FOREVER_MS
from streams.authoring import followed

_MAX_FILE: Final = 8 << 20


class Report(msgspec.Struct, frozen=True):
    """What was replayed and what came of it.

    Attributes:
        from_ms, to_ms: from the first window's start to the last one's end.
        windows: windows that were judged.
        left_out: windows of another reference or of a size that the spec does not have any more.
        episodes: the labelled incidents that the sightings are about.
        outcomes: one per rule, the budget in force first.
    """

    model: str
    from_ms: int
    to_ms: int
    windows: int
    left_out: int
    episodes: list[Episode]
    outcomes: list[Outcome]


def rules_of(budgets: Sequence[str], *, psi: float, ks_p: float) -> list[Rule]:
    """What is compared with the budget in force: other budgets, and fixed thresholds; 0 leaves one out.

    Raises:
        ConfigError: a budget cannot be read, or a threshold could never break.
    """
    rules: list[Rule] = [Budget(parse_budget(text)) for text in budgets]
    try:
        rules += [Fixed("psi", psi)] if psi else []
        rules += [Fixed("ks", ks_p), Fixed("ks", ks_p, bonferroni=True)] if ks_p else []
    except ValueError as err:
        raise ConfigError(f"--psi, --ks-p: {err}") from err
    return rules


def read_episodes(file: Path) -> tuple[Episode, ...]:
    """Labelled incidents of a CSV file with a heading, or of a YAML list.

    Raises:
        ConfigError: the file cannot be read, or is of another form.
    """
    try:
        if file.stat().st_size > _MAX_FILE:
            raise ConfigError(f"{file}: larger than {_MAX_FILE >> 20} MiB")
        text = file.read_text(encoding="utf-8-sig")
        rows: Any = (
            list(csv.DictReader(text.splitlines(), strict=True))
            if file.suffix.lower() == ".csv"
            else yaml.safe_load(text)
        )
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file}: cannot be read: {err}") from err
    except (csv.Error, yaml.YAMLError, ValueError, RecursionError) as err:
        raise ConfigError(f"{file}: neither CSV nor YAML") from err
    return parse_episodes(rows, origin=str(file))


def run(
    settings: Settings,
    name: str,
    rules: Sequence[Rule],
    *,
    from_ms: int | None = None,
    to_ms: int | None = None,
    episodes: Sequence[Episode] = (),
    progress: Callable[[int, int], None] = lambda _judged, _of: None,
) -> Report:
    """Replay the windows of a model that lie in ``[from_ms, to_ms)`` under the budget in force and ``rules``; all of them without times. ``progress``: windows judged, of how many.

    Raises:
        ConfigError: no such model, no reference yet, or a time that ends before it starts.
        DriftlineError: there are no windows to replay.
        TransientError: broker or database are away.
    """
    from_ms, to_ms = from_ms or 0, FOREVER_MS if to_ms is None else min(to_ms, FOREVER_MS)
    if from_ms >= to_ms:
        raise ConfigError("--from is not before --to")
    model = followed(settings, name)
    if model.reference is None:
        raise ConfigError(f"{name} has no reference yet: there is nothing to compare with")
    link = store.connect(settings.clickhouse)
    try:
        history = History(
            link.link,
            name,
            model.reference.layout,
            model.spec.windows.sizes,
            from_ms=from_ms,
            to_ms=to_ms,
        )
        extent = history.extent
        if not extent.windows:
            raise DriftlineError(
                f"no windows of {name} are stored for this time and its reference"
                f" ({extent.left_out:,} of another reference or window size)"
            )
        in_force = Budget(model.spec.alarm_budget, in_force=True)
        backtest = Backtest(model.spec, model.reference, [in_force, *rules])
        for windows in history.by_end():
            backtest.take(windows)
            progress(backtest.windows, extent.windows)
    finally:
        link.close()
    return Report(
        model=name,
        from_ms=backtest.from_ms or 0,
        to_ms=backtest.to_ms or 0,
        windows=backtest.windows,
        left_out=extent.left_out,
        episodes=list(episodes),
        outcomes=backtest.outcomes(episodes),
    )
