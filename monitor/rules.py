"""Limits by hand: what a model's owner knows better than the calibration, such as "accuracy below 0.8" or "never mind the seasons".

The first rule of the spec that fits a verdict decides it. A rule may also name what has no calibrated limit (the mean of a feature, the F1 of
labelled windows): it is judged then, and only then. What a rule judges is not part of the alarm budget, and changes nothing for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from monitor.spec import RuleSpec
from monitor.wire import Verdict, VerdictKind


class Place(NamedTuple):
    """Which window is judged."""

    version: str
    segment: str
    size_ms: int


class Measured(NamedTuple):
    """A statistic that nobody else judges. ``usual`` is the reference's value; below ``least`` of ``n`` it says nothing."""

    kind: VerdictKind
    feature: str
    statistic: str
    value: float
    usual: float | None
    n: int
    least: int


def apply(
    rules: Sequence[RuleSpec],
    place: Place,
    verdicts: Iterable[Verdict],
    measured: Iterable[Measured] = (),
) -> list[Verdict]:
    """The verdicts of one window under the rules, with those on what only a rule asks for. O(verdicts * rules)."""
    found = [_decided(rules, place, verdict) for verdict in verdicts]
    for it in measured:
        verdict = Verdict(it.kind, it.feature, it.statistic, "no_data", it.value, None, None, it.n)
        rule = _rule(rules, place, verdict)
        if rule is None or rule.ignore:
            continue
        if it.n < it.least:
            found.append(replace(verdict, value=None))
        else:
            found.append(_limited(verdict, rule, it.usual))
    return found


def _decided(rules: Sequence[RuleSpec], place: Place, verdict: Verdict) -> Verdict:
    rule = None if verdict.status == "no_data" else _rule(rules, place, verdict)
    if rule is None:
        return verdict
    if rule.ignore:
        return replace(verdict, status="ok", evidence={**verdict.evidence, "rule": "ignored"})
    usual = verdict.evidence.get("reference")
    return _limited(verdict, rule, usual if isinstance(usual, int | float) else None)


def _rule(rules: Sequence[RuleSpec], place: Place, verdict: Verdict) -> RuleSpec | None:
    return next(
        (
            rule
            for rule in rules
            if rule.window in (None, place.size_ms)
            and rule.fits(verdict, version=place.version, segment=place.segment)
        ),
        None,
    )


def _limited(verdict: Verdict, rule: RuleSpec, usual: float | None) -> Verdict:
    """The verdict under a limit by hand; ``no_data`` where it counts from a value that the reference does not have."""
    limit = _limit(rule, usual)
    value = verdict.value
    if limit is None or value is None:
        return replace(verdict, status="no_data", value=None, limit=None, p_value=None)
    broken = value < limit if _is_least(rule) else value > limit
    evidence = {**verdict.evidence, "rule": "limit by hand"}
    if usual is not None:
        evidence["reference"] = usual
    status = "breach" if broken else "ok"
    return replace(verdict, status=status, limit=limit, p_value=None, evidence=evidence)


def _is_least(rule: RuleSpec) -> bool:
    return rule.below is not None or rule.falls_by is not None


def _limit(rule: RuleSpec, usual: float | None) -> float | None:
    if rule.above is not None:
        return rule.above
    if rule.below is not None:
        return rule.below
    if usual is None:
        return None
    if rule.rises_by is not None:
        return usual + rule.rises_by
    if rule.falls_by is not None:
        return usual - rule.falls_by
    assert rule.times is not None
    return usual * rule.times
