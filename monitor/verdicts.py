"""A closed window against its reference: every statistic with its limit, and what stands for "too few to say".

A statistic below its minimum sample is ``no_data``, never "fine". Limits come from ``monitor.calibration`` and the model's alarm budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import special

from monitor.binning import NumericBins
from monitor.budget import Levels, benjamini_hochberg
from monitor.calibration import QUALITY_RATES, RATES, Null, rate_counts
from monitor.canary import Answer, Canary
from monitor.decomposition import moved
from monitor.latency import PERCENTS, percentiles
from monitor.mmd import Finding, find
from monitor.profile import LATENCY, PREDICTION, SCORE, Field, Profile
from monitor.reference import Reference
from monitor.rules import Measured
from monitor.wire import Performance, Verdict, VerdictKind, VerdictStatus

MIN_VALUES: Final = (
    50  # from here on the null laws of PSI and KS were measured, with up to 20 groups
)
MIN_RATE: Final = 5
MIN_BEYOND: Final = 5  # values above a percentile: of fewer it is the luck of the slowest request
MIN_LABELLED: Final = 100
REQUEST_ERRORS: Final = "request_error_rate"
INPUTS_DIFFER: Final = "inputs_differ"
# Of millions of events a tenth of a percent is significant, and nobody's night: below 1 in 200 more than usual nothing is a breach.
LEAST_RATE: Final = 0.005
# A little more missing, or some new categories (a route that opens), is how traffic changes. A pipeline fault is a jump.
QUALITY_JUMP: Final[dict[str, float]] = {"missing": 0.05, "unseen": 0.25}
LOG_LARGEST: Final = math.log(1e300)  # beyond it an e-value is shown as this
_ANSWERS: Final[dict[Answer, tuple[VerdictStatus, str]]] = {
    "worse": ("breach", "worse"),
    "not_worse": ("ok", "not worse within margin"),
    "unknown": ("no_data", "not yet known"),
}
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
    null = reference.nulls.get(segment, {}).get(size_ms)
    if null is None or reference.profiles[segment].n == 0 or size_ms not in levels.rates:
        return [_no_data("", "reference", profile.n)]
    rates = _judge_rates(null, profile, levels.rates[size_ms], RATES)
    if not whole:
        return [_no_data("", "distribution", profile.n), *rates]
    vectors = find(
        reference.vector_nulls.get(segment, {}).get(size_ms, {}),
        reference.profiles[segment],
        profile,
    )
    level = levels.distributions[size_ms]
    return [*_judge_distributions(reference, segment, null, profile, level, vectors), *rates]


def judge_pane(
    reference: Reference, segment: str, profile: Profile, *, size_ms: int, levels: Levels
) -> list[Verdict]:
    """Breaches of data quality in one pane: broken data should not wait for a window to close. Only breaches are returned."""
    null = reference.nulls.get(segment, {}).get(size_ms)
    if null is None or profile.n < MIN_RATE:
        return []
    found = _judge_rates(null, profile, levels.pane, QUALITY_RATES, breaches_only=True)
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


def compared(
    canary: Canary,
    baseline: str,
    *,
    feature: str = PREDICTION,
    statistic: str = "more_errors",
    rows: str = "labels",
) -> Verdict:
    """What is known of a version beside an older one: worse is a breach, not worse within the margin is ``ok``, and else it is not yet known."""
    known = canary.known
    status, words = _ANSWERS[known.answer]
    return Verdict(
        kind="canary",
        feature=feature,
        statistic=statistic,
        status=status,
        value=known.difference,
        limit=None,
        p_value=None,
        n=known.new_n,
        evidence={
            "answer": words,
            "compared_with": baseline,
            f"its_{rows}": known.old_n,
            "margin": canary.margin,
            "e_value": shown_e(known.log_e_worse),
            **({} if known.decided_after is None else {"decided_after": known.decided_after}),
        },
    )


def shown_e(log_e: float) -> float:
    """An e-value by its logarithm, as large as is shown."""
    return math.exp(min(log_e, LOG_LARGEST))


def means(reference: Reference, segment: str, profile: Profile) -> Iterator[Measured]:
    """The mean of each numeric field, which has no limit of its own: the watch over the means looks at panes."""
    for f in profile.layout.fields:
        if isinstance(f.bins, NumericBins):
            n, mean, _ = profile.moments(f.name)
            known, usual, _ = reference.profiles[segment].moments(f.name)
            before = usual if known else None
            yield Measured(kind_of(f.name), f.name, "mean", mean, before, n, MIN_VALUES)


def requests(
    reference: Reference, segment: str, profile: Profile, *, size_ms: int, whole: bool
) -> Iterator[Measured]:
    """How a window was served: percentiles of the latency in ms, the share of requests with an error where nobody else judges it, and of a ``whole`` window requests a second.

    The requests of a second have no usual value: a reference may be a sample of its time.
    """
    past = reference.profiles[segment]
    found, usual = percentiles(profile), percentiles(past)
    n = 0 if found is None else int(profile.counts(LATENCY).sum())
    for i, percent in enumerate(PERCENTS):
        least = max(MIN_VALUES, 100 * MIN_BEYOND // (100 - percent))
        yield Measured(
            kind="service",
            feature=LATENCY,
            statistic=f"latency_p{percent}",
            value=0.0 if found is None else found[i],
            usual=None if usual is None else usual[i],
            n=n,
            least=least,
        )
    null = reference.nulls.get(segment, {}).get(size_ms)
    if null is None or not (profile.errors and len(null.errors)):  # else it has its limit
        share, before = (p.errors / max(p.n, 1) for p in (profile, past))
        yield Measured("service", "", REQUEST_ERRORS, share, before, profile.n, MIN_RATE)
    if whole:
        yield Measured("service", "", "requests", 1000 * profile.n / size_ms, None, profile.n, 1)


def measures(performance: Performance, reference: Reference) -> Iterator[Measured]:
    """What labels say beside the accuracy."""
    n = performance.labelled
    for name, value in performance.metrics.items():
        if name != "accuracy" or reference.accuracy is None:
            yield Measured("performance", PREDICTION, name, value, None, n, MIN_LABELLED)
    accuracy = performance.metrics.get("accuracy")
    if accuracy is not None:
        usual = None if reference.accuracy is None else 1 - reference.accuracy
        yield Measured(
            "performance", PREDICTION, "error_rate", 1 - accuracy, usual, n, MIN_LABELLED
        )


def kind_of(field_name: str) -> VerdictKind:
    """What a shift in the distribution of a field is called."""
    if field_name in (PREDICTION, SCORE):
        return "prediction_drift"
    return "service" if field_name == LATENCY else "data_drift"


def _judge_distributions(
    reference: Reference,
    segment: str,
    null: Null,
    profile: Profile,
    level: float,
    vectors: Sequence[Finding],
) -> list[Verdict]:
    """PSI of every field, KS of the numeric ones and what is found in vectors: one family."""
    found = reference.comparison(segment)(profile.vector)
    present = null.values > 0
    numeric = profile.layout.numeric
    psi_p = np.where(
        present & (found.n >= MIN_VALUES), null.psi_p_values(found.n, found.psi), np.nan
    )
    ks_p = np.where(
        present & numeric & (found.n >= MIN_VALUES), null.ks_p_values(found.n, found.ks), np.nan
    )
    of_vectors = np.array([v.p_value for v in vectors])
    alpha = benjamini_hochberg(np.concatenate((psi_p, ks_p, of_vectors)), level)
    psi_limit, ks_limit = null.psi_limit(found.n, alpha), null.ks_limit(found.n, alpha)
    verdicts: list[Verdict] = []
    for i, f in enumerate(profile.layout.fields):
        if not present[i] and found.n[i] == 0:
            continue
        psi = _Judged("psi", found.psi[i], psi_limit[i], psi_p[i], found.n[i])
        verdicts.append(_verdict(f, psi, alpha, reference, segment, profile))
        if numeric[i]:
            ks = _Judged("ks", found.ks[i], ks_limit[i], ks_p[i], found.n[i])
            verdicts.append(_verdict(f, ks, alpha, reference, segment, profile))
    return verdicts + [v.verdict(alpha) for v in vectors]


class _Judged(NamedTuple):
    statistic: str
    value: float
    limit: float
    p_value: float  # NaN: too few to say
    n: float


def _verdict(
    f: Field, it: _Judged, alpha: float, reference: Reference, segment: str, profile: Profile
) -> Verdict:
    if np.isnan(it.p_value):
        return _no_data(f.name, it.statistic, int(it.n), kind=kind_of(f.name))
    breach = it.p_value <= alpha
    return Verdict(
        kind=kind_of(f.name),
        feature=f.name,
        statistic=it.statistic,
        status="breach" if breach else "ok",
        value=float(it.value),
        limit=float(it.limit),
        p_value=_p(float(it.p_value)),
        n=int(it.n),
        evidence=_evidence(reference, segment, profile, f) if breach else {},
    )


def _judge_rates(
    null: Null,
    profile: Profile,
    level: float,
    names: tuple[str, ...],
    *,
    breaches_only: bool = False,
) -> list[Verdict]:
    """One family; told where the defect occurs: the rest is zero, which no limit is below. A limit costs more than its p-value.

    The errors of requests belong to it, unless only breaches of panes are wanted.
    """
    n = profile.n
    if n < MIN_RATE:
        return [_no_data("", "rates", n, kind="data_quality")]
    counts = rate_counts(profile.layout, profile.vector)
    counts[:, len(names) :] = 0
    errors = 0 if breaches_only or not len(null.errors) else profile.errors
    if not (counts.any() or errors):
        return []
    p = null.rate_p_values(n, counts)
    error_p = np.nan if breaches_only else null.error_p_value(n, profile.errors)
    alpha = benjamini_hochberg(np.append(p[:, : len(names)], error_p), level)
    told = (p <= alpha) & (counts > 0) if breaches_only else counts > 0
    limits = null.rate_limit(n, alpha, where=told)
    verdicts = []
    for i, j in zip(*np.nonzero(told), strict=True):
        f = profile.layout.fields[i]
        usual = float(null.rate_counts[i, j]) / null.m
        rate = _Rate(int(counts[i, j]), n, usual, float(limits[i, j]), float(p[i, j]))
        kind = _rate_kind(f.name, names[j], rate.value - usual)
        verdicts.append(rate.verdict(kind, f.name, names[j], _unseen(profile, f, names[j])))
    if errors:
        usual = float(null.errors[0]) / null.m
        rate = _Rate(errors, n, usual, null.error_limit(n, alpha), error_p)
        verdicts.append(rate.verdict("service", "", REQUEST_ERRORS, {}))
    return verdicts


class _Rate(NamedTuple):
    """A share of the events of a window, and what is usual."""

    found: int
    n: int
    usual: float
    likely: float  # passed by chance no more often than the level says
    p_value: float

    @property
    def value(self) -> float:
        return self.found / self.n

    def verdict(
        self, kind: VerdictKind, feature: str, statistic: str, more: dict[str, str]
    ) -> Verdict:
        limit = min(max(self.likely, self.usual + LEAST_RATE), 1.0)
        return Verdict(
            kind=kind,
            feature=feature,
            statistic=statistic,
            status="breach" if self.value > limit else "ok",
            value=self.value,
            limit=limit,
            p_value=_p(self.p_value),
            n=self.n,
            evidence={"reference": self.usual, **more},
        )


def _rate_kind(field: str, rate: str, jump: float) -> VerdictKind:
    if rate not in QUALITY_RATES or jump < QUALITY_JUMP.get(rate, 0.0):
        return kind_of(field)
    return "data_quality"


def _unseen(profile: Profile, f: Field, rate: str) -> dict[str, str]:
    texts = profile.unseen.get(f.name)
    if rate != "unseen" or not texts:
        return {}
    return {"examples": ", ".join(sorted(texts, key=lambda t: (-texts[t], t))[:3])}


def _evidence(
    reference: Reference, segment: str, profile: Profile, f: Field
) -> dict[str, float | int | str]:
    usual = reference.profiles[segment]
    found: dict[str, float | int | str] = {}
    if where := moved(f.bins, usual.counts(f.name), profile.counts(f.name)):
        found["moved"] = where
    if isinstance(f.bins, NumericBins):
        found["mean"] = profile.moments(f.name)[1]
        found["reference_mean"] = usual.moments(f.name)[1]
    return found


def _no_data(feature: str, statistic: str, n: int, kind: VerdictKind = "no_data") -> Verdict:
    return Verdict(kind, feature, statistic, "no_data", None, None, None, n)


def _p(value: float) -> float:
    return max(value, _SMALLEST_P)
