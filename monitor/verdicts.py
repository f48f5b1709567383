"""A closed window against its reference: every statistic with its limit, and what stands for "too few to say".

A statistic below its minimum sample is ``no_data``, never "fine". Limits come from ``monitor.calibration`` and the model's alarm budget.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import special

from monitor.binning import NumericBins
from monitor.budget import Levels
from monitor.calibration import PSI_GROUPS, QUALITY_RATES, RATES, Null, rate_counts
from monitor.distances import group_equal_mass, ks, psi
from monitor.profile import LATENCY, PREDICTION, SCORE, Field, Profile
from monitor.reference import Reference
from monitor.wire import Performance, Verdict, VerdictKind, VerdictStatus

MIN_PSI: Final = 20 * PSI_GROUPS  # the gamma form holds from about 20 expected events per group
MIN_KS: Final = 50
MIN_RATE: Final = 5
MIN_LABELLED: Final = 100
# Of millions of events a tenth of a percent is significant, and nobody's night: below 1 in 200 more than usual nothing is a breach.
LEAST_RATE: Final = 0.005
# A little more missing, or some new categories (a route that opens), is how traffic changes. A pipeline fault is a jump.
QUALITY_JUMP: Final[dict[str, float]] = {"missing": 0.05, "unseen": 0.25}
_SMALLEST_P: Final = 1e-300  # below it floats lose their meaning; shown as this


def judge_window(
    reference: Reference,
    segment: str,
    profile: Profile,
    *,
    size_ms: int,
    levels: Levels,
    whole: bool = True,
) -> list[Verdict]:
    """PSI, KS and rates of every field of a window. Cost: O(fields * bins).

    A window that is not ``whole``, because its series began inside it, has seen a part of the day or of the week: its distributions are
    not comparable and are ``no_data``. Its rates are.
    """
    expected = reference.profiles.get(segment)
    null = reference.nulls.get(segment, {}).get(size_ms)
    if expected is None or null is None or expected.n == 0:
        return [_no_data("", "reference", profile.n)]
    rates = _judge_rates(null, profile, levels.window, RATES)
    if not whole:
        return [_no_data("", "distribution", profile.n), *rates]
    # Missing values are in no bin: what is left of each field has a size of its own.
    n = np.array([profile.counts(f.name).sum() for f in profile.layout.fields], dtype=np.float64)
    psi_limits, ks_limits = null.psi_limit(n, levels.window), null.ks_limit(n, levels.window)
    verdicts: list[Verdict] = []
    for i, f in enumerate(profile.layout.fields):
        if _absent(expected, f) and _absent(profile, f):
            continue
        verdicts.append(_judge_psi(expected, profile, f, null, i, float(psi_limits[i])))
        if isinstance(f.bins, NumericBins):
            verdicts.append(_judge_ks(expected, profile, f, null, i, float(ks_limits[i])))
    return verdicts + rates


def judge_pane(
    reference: Reference, segment: str, profile: Profile, *, size_ms: int, levels: Levels
) -> list[Verdict]:
    """Breaches of data quality in one pane: broken data should not wait for a window to close. Only breaches are returned."""
    null = reference.nulls.get(segment, {}).get(size_ms)
    if null is None or profile.n < MIN_RATE:
        return []
    found = _judge_rates(null, profile, levels.pane, QUALITY_RATES)
    return [v for v in found if v.status == "breach" and v.kind == "data_quality"]


def judge_performance(
    performance: Performance, reference: Reference, *, alpha: float
) -> list[Verdict]:
    """Accuracy of a labelled window against the reference's, one-sided: only a fall is bad news.

    The limit is the two-sample z form with the reference's variance and design effect; from about ``MIN_LABELLED`` labels.
    """
    accuracy = performance.metrics.get("accuracy")
    if reference.accuracy is None or accuracy is None:
        return []
    n, m = performance.labelled, reference.labelled
    if n < MIN_LABELLED:
        return [_no_data("$prediction", "accuracy", n, kind="performance")]
    p = reference.accuracy
    spread = float(
        np.sqrt(max(p * (1 - p), 1.0 / m) * reference.accuracy_deff * (1.0 / n + 1.0 / m))
    )
    limit = p + float(special.ndtri(alpha)) * spread
    return [
        Verdict(
            kind="performance",
            feature="$prediction",
            statistic="accuracy",
            status="breach" if accuracy < limit else "ok",
            value=accuracy,
            limit=limit,
            p_value=_p(float(special.ndtr((accuracy - p) / spread))),
            n=n,
            evidence={"reference": p, "labelled": n, "predictions": performance.predictions},
        )
    ]


def kind_of(field_name: str) -> VerdictKind:
    """What a shift in the distribution of a field is called."""
    if field_name in (PREDICTION, SCORE):
        return "prediction_drift"
    return "service" if field_name == LATENCY else "data_drift"


def _absent(profile: Profile, f: Field) -> bool:
    return int(profile.vector[f.counts].sum()) == 0


def _judge_psi(
    expected: Profile, profile: Profile, f: Field, null: Null, i: int, limit: float
) -> Verdict:
    n = int(profile.vector[f.counts].sum())
    if n < MIN_PSI or _absent(expected, f):
        return _no_data(f.name, "psi", n, kind=kind_of(f.name))
    p = expected.vector[f.counts]
    value = float(psi(p, profile.vector[f.counts], starts=group_equal_mass(p, PSI_GROUPS)))
    return _verdict(f, "psi", value, limit, null.psi_p_value(i, n, value), n, expected, profile)


def _judge_ks(
    expected: Profile, profile: Profile, f: Field, null: Null, i: int, limit: float
) -> Verdict:
    n = int(profile.vector[f.counts].sum())
    if n < MIN_KS or _absent(expected, f):
        return _no_data(f.name, "ks", n, kind=kind_of(f.name))
    value = float(ks(expected.vector[f.counts], profile.vector[f.counts]).low)
    return _verdict(f, "ks", value, limit, null.ks_p_value(i, n, value), n, expected, profile)


def _judge_rates(
    null: Null, profile: Profile, alpha: float, names: tuple[str, ...]
) -> list[Verdict]:
    """Rates are judged where the defect occurs: the rest is zero, which no limit is below."""
    n = profile.n
    if n < MIN_RATE:
        return [_no_data("", "rates", n, kind="data_quality")]
    counts = rate_counts(profile.layout, profile.vector)[:, : len(names)]
    if not counts.any():
        return []
    limits = null.rate_limit(n, alpha)
    verdicts = []
    for i, j in zip(*np.nonzero(counts), strict=True):
        f = profile.layout.fields[i]
        usual = float(null.rate_counts[i, j]) / null.m
        rate = float(counts[i, j]) / n
        limit = min(max(float(limits[i, j]), usual + LEAST_RATE), 1.0)
        verdicts.append(
            Verdict(
                kind=_rate_kind(f.name, names[j], rate - usual),
                feature=f.name,
                statistic=names[j],
                status="breach" if rate > limit else "ok",
                value=rate,
                limit=limit,
                p_value=None,
                n=n,
                evidence={"reference": usual, **_unseen(profile, f, names[j])},
            )
        )
    return verdicts


def _rate_kind(field: str, rate: str, jump: float) -> VerdictKind:
    if rate not in QUALITY_RATES or jump < QUALITY_JUMP.get(rate, 0.0):
        return kind_of(field)
    return "data_quality"


def _unseen(profile: Profile, f: Field, rate: str) -> dict[str, str]:
    texts = profile.unseen.get(f.name)
    if rate != "unseen" or not texts:
        return {}
    return {"examples": ", ".join(sorted(texts, key=lambda t: (-texts[t], t))[:3])}


def _verdict(
    f: Field,
    statistic: str,
    value: float,
    limit: float,
    p_value: float,
    n: int,
    expected: Profile,
    now: Profile,
) -> Verdict:
    status: VerdictStatus = "breach" if value > limit else "ok"
    evidence: dict[str, float | int | str] = {}
    if isinstance(f.bins, NumericBins):
        evidence = {"mean": now.moments(f.name)[1], "reference_mean": expected.moments(f.name)[1]}
    return Verdict(
        kind_of(f.name), f.name, statistic, status, value, limit, _p(p_value), n, None, evidence
    )


def _no_data(feature: str, statistic: str, n: int, kind: VerdictKind = "no_data") -> Verdict:
    return Verdict(kind, feature, statistic, "no_data", None, None, None, n)


def _p(value: float) -> float:
    return max(value, _SMALLEST_P)
