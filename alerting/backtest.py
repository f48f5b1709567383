"""What would have paged? History judged again, under other rules, through the same incident machine.

::

    closed windows ──► judge, under each budget ──► verdicts ──┬─────────────────────► incidents of that budget
                                                               └─ a fixed threshold ─► incidents of that threshold

A fixed threshold replaces the limits and nothing else, and its verdicts go through the same machine: what differs between two rows
of a report is the rule alone. A fixed threshold is about one statistic; a budget also judges rates and changes of the mean.

Blind spots. Panes are not stored: broken data are found when the smallest window closes, not after two panes, and detectors that live on
panes are fed with the smallest windows. Labels are not replayed, so performance opens nothing and changes no cause. Sums of vectors are not
stored, so MMD is not replayed and counts as no data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec.structs import replace
from pydantic import ValidationError
from scipy import special

from alerting.book import DAY_MS, Book
from alerting.episodes import Episode, Page, Sighting, false_pages, sight
from alerting.incidents import Change, step
from monitor.binning import Floats
from monitor.errors import ConfigError
from monitor.judge import Judge
from monitor.panes import ClosedWindow, SeriesKey
from monitor.reference import Reference
from monitor.spec import AlarmBudget, ModelSpec, format_duration
from monitor.wire import Verdict, Verdicts

MONTH_MS: Final = 30 * DAY_MS
_BUDGET: Final = re.compile(r"\s*([0-9.]+)\s*/\s*(.+?)\s*")


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits that follow from an alarm budget."""

    budget: AlarmBudget
    in_force: bool = False

    @property
    def name(self) -> str:
        """Such as ``budget 1/30d``."""
        per = format_duration(self.budget.per)
        told = f"budget {self.budget.false_alarms:g}/{per}"
        return f"{told} (in force)" if self.in_force else told


@dataclass(frozen=True, slots=True)
class Fixed:
    """One number for one statistic, the same in every field and every window.

    Attributes:
        statistic: ``psi`` breaks above ``value``; ``ks`` where its textbook p-value is below it.
        value: the PSI, or the p-value: Kolmogorov's law for independent values, ``sup |D| / sqrt(1/n + 1/m)``.
        bonferroni: divide the p-value by the number of fields that a window tests.
    """

    statistic: Literal["psi", "ks"]
    value: float
    bonferroni: bool = False

    def __post_init__(self) -> None:
        """Refuse what could never break, or always."""
        if not 0 < self.value < (1 if self.statistic == "ks" else np.inf):
            raise ValueError("a PSI is above 0, and a p-value between 0 and 1")
        if self.bonferroni and self.statistic != "ks":
            raise ValueError("a PSI has no p-value to divide")

    @property
    def name(self) -> str:
        """Such as ``KS p < 0.05, Bonferroni``."""
        if self.statistic == "psi":
            return f"PSI > {self.value:g}"
        return f"KS p < {self.value:g}{', Bonferroni' if self.bonferroni else ''}"

    def limits(self, n: Floats, m: Floats, tests: int) -> Floats:
        """``(fields,)`` what the statistic of ``n`` values may be beside a reference of ``m``."""
        if self.statistic == "psi":
            return np.full(len(n), self.value)
        level = self.value / tests if self.bonferroni else self.value
        return np.asarray(special.kolmogi(level) * np.sqrt(1.0 / n + 1.0 / m))


Rule: TypeAlias = Budget | Fixed


class Outcome(msgspec.Struct, frozen=True):
    """What one rule made of the history.

    Attributes:
        pages: incidents that opened, or opened again, by opening.
        pages_per_month: a month has 30 days.
        open_share: part of the time in which at least one incident was open. Few pages are no merit of a rule that never falls silent.
        expected_per_month: false alarms that chance alone makes. For a budget that is the budget, with the shares of panes and labels, which
            are not replayed. For a fixed threshold it is the sum, over its tests, of the probability to pass it under the null that
            was learnt from the reference: breaches, of which an incident may hold many.
        breaches: verdicts beyond their limit: what an alert for each would have sent.
        verdicts: all statistics that were looked at.
        no_data: of these, the ones with too little data to judge.
        sightings: what became of each labelled episode.
        false_pages: pages that belong to no episode; ``None`` where there are no episodes.
    """

    rule: str
    pages: list[Page]
    pages_per_month: float
    open_share: float
    expected_per_month: float
    breaches: int
    verdicts: int
    no_data: int
    sightings: list[Sighting]
    false_pages: int | None


def parse_budget(text: str) -> AlarmBudget:
    """The budget in ``"1/30d"``: false alarms, per duration.

    Raises:
        ConfigError: not of that form.
    """
    match = _BUDGET.fullmatch(text)
    try:
        if match is not None:
            return AlarmBudget.model_validate({"false_alarms": match[1], "per": match[2]})
    except ValidationError:
        pass  # said below, in one line
    raise ConfigError(f"{text!r} is not a budget such as 1/30d: false alarms per duration")


@dataclass(slots=True)
class _Tally:
    """One rule's way through the history. Mutable: it counts, and holds the rule's incidents."""

    rule: Rule
    book: Book
    pages: dict[tuple[str, int | None], Page] = field(default_factory=dict)
    expected: float = 0.0
    breaches: int = 0
    verdicts: int = 0
    no_data: int = 0

    def add(self, message: Verdicts) -> None:
        self.verdicts += len(message.verdicts)
        self.no_data += sum(v.status == "no_data" for v in message.verdicts)
        self.breaches += sum(v.status == "breach" for v in message.verdicts)
        self.book, changes = step(self.book, message)
        for change in changes:
            self._note(change)

    def _note(self, change: Change) -> None:
        incident = change.incident
        key = incident.id, incident.reopened_ms
        if change.transition == "fired":
            self.pages[key] = Page(
                id=incident.id,
                family=change.case.family,
                cause=incident.cause,
                title=incident.title,
                onset_ms=incident.onset_ms,
                opened_ms=incident.reopened_ms or incident.opened_ms,
                resolved_ms=None,
                features=sorted({e.feature for e in incident.evidence if e.feature}),
            )
        elif change.transition == "resolved":
            known = self.pages[key]
            self.pages[key] = replace(known, resolved_ms=incident.resolved_ms)


class Backtest:
    """History on its way through several rules at once. Mutable: it holds a judge per series and budget, and a book per rule.

    Args:
        spec: the model's, with the budget in force.
        reference: what windows are compared with: all of them have its bins, and sizes of the spec.
        rules: what is compared.
    """

    def __init__(self, spec: ModelSpec, reference: Reference, rules: Sequence[Rule]) -> None:
        budgets = {spec.alarm_budget, *(r.budget for r in rules if isinstance(r, Budget))}
        self._spec, self._reference = spec, reference
        self._specs = {b: spec.model_copy(update={"alarm_budget": b}) for b in budgets}
        self._judges: dict[tuple[AlarmBudget, SeriesKey], Judge] = {}
        self._tallies = [_Tally(rule, Book(spec.model)) for rule in rules]
        self._place = {f.name: i for i, f in enumerate(reference.layout.fields)}
        self._smallest_ms = min(spec.windows.sizes)
        self.windows = 0
        self.from_ms: int | None = None
        self.to_ms: int | None = None

    def take(self, windows: Sequence[ClosedWindow]) -> None:
        """Judge the windows that end at one time, ends in rising order, windows in the order of their keys."""
        for i, window in enumerate(windows):
            end_ms = window.start_ms + window.size_ms
            self.from_ms = min(window.start_ms, end_ms if self.from_ms is None else self.from_ms)
            self.to_ms, self.windows = end_ms, self.windows + 1
            judged = {budget: self._judge(budget, window) for budget in self._specs}
            for tally in self._tallies:
                if isinstance(tally.rule, Budget):
                    message = judged[tally.rule.budget]
                else:
                    message = judged[self._spec.alarm_budget]
                    found, expected = self._restated(tally.rule, window, message.verdicts)
                    message = replace(message, verdicts=found)
                    tally.expected += expected
                tally.add(replace(message, closes=i == len(windows) - 1))

    def outcomes(self, episodes: Sequence[Episode] = ()) -> list[Outcome]:
        """What came of each rule so far, in their order."""
        return [self._outcome(tally, episodes) for tally in self._tallies]

    def _judge(self, budget: AlarmBudget, window: ClosedWindow) -> Verdicts:
        judge = self._judges.get((budget, window.key))
        if judge is None:
            judge = Judge(window.key, self._specs[budget], self._reference)
            self._judges[budget, window.key] = judge
        if window.size_ms == self._smallest_ms:
            # For the detectors alone: the window's own rates are judged below, at a window's level.
            judge.pane(window.start_ms, window.size_ms, window.profile)
        found = judge.window(window.start_ms, window.size_ms, window.profile, whole=window.whole)
        assert found is not None  # there is a reference
        return found

    def _restated(
        self, rule: Fixed, window: ClosedWindow, verdicts: Sequence[Verdict]
    ) -> tuple[list[Verdict], float]:
        """The verdicts on one statistic under a fixed limit, and how many of them chance alone would break."""
        kept = [v for v in verdicts if v.statistic == rule.statistic or v.kind == "no_data"]
        made = [v for v in kept if v.value is not None]
        null = self._reference.nulls.get(window.key.segment, {}).get(window.size_ms)
        if null is None or not made:
            return kept, 0.0
        at = [self._place[v.feature] for v in made]
        n, m = np.ones(len(self._place)), np.ones(len(self._place))
        expected = self._reference.profiles[window.key.segment]
        n[at] = [v.n for v in made]
        m[at] = [expected.counts(v.feature).sum() for v in made]
        limits = rule.limits(n, m, len(made))
        chances = null.psi_p_values if rule.statistic == "psi" else null.ks_p_values
        found = [_under(v, float(limits[i])) for v, i in zip(made, at, strict=True)]
        found += [v for v in kept if v.value is None]
        return found, float(chances(n, limits)[at].sum())

    def _outcome(self, tally: _Tally, episodes: Sequence[Episode]) -> Outcome:
        from_ms, to_ms = self.from_ms or 0, self.to_ms or 0
        months = max(to_ms - from_ms, 1) / MONTH_MS
        pages = sorted(tally.pages.values(), key=lambda page: (page.opened_ms, page.id))
        expected = tally.expected / months
        if isinstance(tally.rule, Budget):
            expected = tally.rule.budget.false_alarms * MONTH_MS / tally.rule.budget.per
        return Outcome(
            rule=tally.rule.name,
            pages=pages,
            pages_per_month=len(pages) / months,
            open_share=_open_ms(pages, to_ms) / max(to_ms - from_ms, 1),
            expected_per_month=expected,
            breaches=tally.breaches,
            verdicts=tally.verdicts,
            no_data=tally.no_data,
            sightings=sight(episodes, pages, from_ms=from_ms, to_ms=to_ms),
            false_pages=false_pages(episodes, pages) if episodes else None,
        )


def _open_ms(pages: Sequence[Page], to_ms: int) -> int:
    """Time until ``to_ms`` that the pages, by opening, cover together."""
    covered, through_ms = 0, 0
    for page in pages:
        closed_ms = to_ms if page.resolved_ms is None else min(page.resolved_ms, to_ms)
        covered += max(0, closed_ms - max(page.opened_ms, through_ms))
        through_ms = max(through_ms, closed_ms)
    return covered


def _under(verdict: Verdict, limit: float) -> Verdict:
    assert verdict.value is not None
    return replace(
        verdict, status="breach" if verdict.value > limit else "ok", limit=limit, p_value=None
    )
