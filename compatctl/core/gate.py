"""The gate: apply a policy's thresholds to measurements, and return one of three verdicts.

A check passes if its whole confidence interval lies beyond the policy's limit, fails if the whole
interval lies on the other side, and is inconclusive otherwise. An estimate alone decides nothing.
The p-values of all deciding checks are adjusted by Holm's method (Scandinavian Journal of
Statistics 6, 1979), separately for passing and for failing.

The deciding check is the empirical criterion of Shen et al. (BCT, CVPR 2020, arXiv 2003.11942): new
queries on the old gallery must strictly beat old queries on it. The two compatibility inequalities
(CVPR 2024, arXiv 2405.02581; TPAMI 2026, arXiv 2606.12488) are judged in the mean and with a
margin, because (1b) moves by the order of 1/(K-1) for K classes.

With too few queries or classes, or an undefined estimate, a check is inconclusive, never a pass.

``settle`` derives every outcome from the figures in a report: ``verify`` calls it on its
measurements, ``deploy`` again on the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compatctl.core.estimate import Estimate
from compatctl.core.policy import Policy, Rule
from compatctl.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]

CHECKS_WITHOUT_INTERVAL = (
    "parity",
    "latency_ratio",
    "stored_share",
    "matched_share",
    "old_hit_rate",
    "proven_store",
    "design_effect",
    "training_record",
    "near_copies",
    "gallery_pass",
)
"""Checks whose estimate may be no sample: then there is no interval, and the limit decides."""

SMALL_SAMPLE_CHECKS = ("slice_gain", "chain_gain")
"""Checks that do not decide if they have fewer queries than ``slice_min_queries``."""

VETO_CHECKS = frozenset({"half_warm_gain", "warm_gain"})
"""Checks that decide by failing alone: re-scored answers as the cache of free vectors fills. What
is deployed, the answers with an empty cache, must pass; these must not fail."""

BORDERLINE_SIGMAS = 4.0
"""Standard errors of a p-value within which the draw could decide."""

CheckKey = tuple[str, str]
"""A check's name and its group."""

_MAX_CLASSES = 10**9
"""If a check needs more classes than this, only a larger effect can settle it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """One quantity of one group, before a policy is applied."""

    name: str
    """The check's name, as in ``Policy.rules``."""
    group: str
    estimate: Estimate | float
    """A plain float is not a sample: it has no interval, and the limit alone decides."""
    n: int
    """Queries, or pairs for the inequalities, in the mean."""
    n_queries: int
    """Queries behind the estimate, to compare with the policy's minimum."""
    may_decide: bool
    """False for groups that are only reported."""
    best_case: Estimate | None = None
    """The estimate if everything unknown counts for the candidate: a failure must hold there too.
    None: nothing is unknown."""
    unit: tuple[str, ...] = ("class",)
    """What was resampled: ``class``, ``query`` or a column; several if they are crossed."""
    detail: str
    nothing: str = "Nothing was there to compare"
    """Instead of ``detail`` where ``n`` is 0, whose numbers are then of nothing."""


@dataclass(frozen=True, kw_only=True)
class SampleSizeNeeded:
    """The sample that would settle an inconclusive check if the estimate is the truth."""

    classes: int
    queries: int
    """With as many queries per class as now."""
    to_show: Literal["pass", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of one group: the ``Measurement``'s entries, and the outcome from ``settle``."""

    name: str
    group: str
    estimate: float | None
    """What was measured; None if undefined."""
    low: float | None
    """Lower end of the confidence interval; None without one."""
    high: float | None
    """Upper end."""
    raw_p: tuple[float, float] | None
    """Unadjusted p-values of passing and of failing; None without an interval or a threshold."""
    fail_p_at_best: float | None
    """p-value of failing in the best case; None: nothing is unknown."""
    n: int
    n_queries: int
    n_classes: int | None
    """Resampled classes or other units, of the kind that has fewest; None without an interval."""
    may_decide: bool
    unit: tuple[str, ...] = ("class",)
    threshold: float | None = None
    """What the estimate is compared with; None if the policy sets nothing."""
    margin: float | None = None
    """How far the estimate may miss the threshold; None without a margin."""
    p: float | None = None
    """p-value of passing, Holm-adjusted if the check decides; None as for ``raw_p``."""
    p_fail: float | None = None
    """p-value of failing, likewise."""
    outcome: Outcome = "inconclusive"
    decides: bool = False
    needed: SampleSizeNeeded | None = None
    detail: str
    """One sentence for people."""

    @property
    def key(self) -> CheckKey:
        """Name and group, which no other check of a verdict has."""
        return self.name, self.group


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of the deciding checks together, and every check."""

    outcome: Outcome
    checks: tuple[Check, ...]


def judge(policy: Policy, measurements: Iterable[Measurement], *, attempt: int = 1) -> Verdict:
    """Apply the policy to every measurement; ``attempt`` as for ``settle``.

    Raises:
        InputError: one check of one group twice.
    """
    measurements, rules = tuple(measurements), policy.rules
    checks = [_as_check(policy, m, rules.get(m.name)) for m in measurements]
    verdict = settle(policy, checks, attempt=attempt)
    adjusted = _adjusted([check for check in verdict.checks if check.decides], attempt)
    unsettled = sum(min(pair) > policy.alpha / 2 for pair in adjusted.values())
    with_sizes = tuple(
        replace(check, needed=_needed(policy, m, check, rules, attempt * max(1, unsettled)))
        for check, m in zip(verdict.checks, measurements, strict=True)
    )
    return replace(verdict, checks=with_sizes)


def settle(policy: Policy, checks: Sequence[Check], *, attempt: int = 1) -> Verdict:
    """The outcome of every check from its numbers, and the verdict; earlier outcomes are ignored.

    At the k-th ``attempt`` of one candidate on the same data, p-values of passing are multiplied by
    k before Holm's method, so that repeating ``verify`` does not pass a candidate by chance.

    The verdict is ``fail`` if a deciding check fails, else ``inconclusive`` if one is inconclusive
    or none decides, else ``pass``. The empirical criterion must be among the deciding checks, or
    the verdict is not a pass. A check without a threshold in the policy is measured, stays
    ``inconclusive`` and does not decide. A check of the evidence itself (``Rule.may_fail`` is
    False) passes or is inconclusive. One of ``VETO_CHECKS`` that does not fail changes nothing.

    Raises:
        InputError: one check of one group twice.
    """
    keys = [check.key for check in checks]
    if len(set(keys)) != len(keys):
        raise InputError(f"each group is judged once, got {', '.join(map(str, sorted(keys)))}")
    rules = policy.rules
    marked = [replace(check, decides=decides(policy, check, rules)) for check in checks]
    adjusted = _adjusted([check for check in marked if check.decides], attempt)
    settled = tuple(
        _settled(policy, check, rules.get(check.name), adjusted.get(check.key)) for check in marked
    )
    outcomes = {
        check.outcome
        for check in settled
        if check.decides and (check.outcome == "fail" or check.name not in VETO_CHECKS)
    }
    criterion = any(check.decides and check.name == policy.criterion for check in settled)
    outcome: Outcome = "pass" if outcomes == {"pass"} and criterion else "inconclusive"
    return Verdict(outcome="fail" if "fail" in outcomes else outcome, checks=settled)


def decides(policy: Policy, check: Check, rules: dict[str, Rule]) -> bool:
    """Whether a check decides: it has a rule, its group decides, and it is not too small."""
    small = check.name in SMALL_SAMPLE_CHECKS and check.n_queries < policy.slice_min_queries
    return check.name in rules and check.may_decide and not small


def describe_units(n: int, unit: tuple[str, ...]) -> str:
    """``n`` units in words: ``12 classes``, ``12 values of user``; of crossed kinds each has ``n``
    or more."""
    singulars = {"class": "class", "query": "single query"}
    plurals = {"class": "classes", "query": "single queries"}
    if n == 1 and len(unit) == 1:
        return f"1 {singulars.get(unit[0], f'value of {unit[0]}')}"
    words = [plurals.get(name, f"values of {name}") for name in unit]
    return f"{n} {words[0]}" if len(words) == 1 else f"{n} or more each of {' and '.join(words)}"


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order of ``p``; each at least the raw one and at most 1."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def _adjusted(deciding: Sequence[Check], attempt: int) -> dict[CheckKey, tuple[float, float]]:
    """The adjusted p-values of passing and of failing."""
    raw = {check.key: check.raw_p for check in deciding if check.raw_p is not None}
    needed = [key for key in raw if key[0] not in VETO_CHECKS]
    passing = {key: min(1.0, attempt * p) for key, (p, _) in raw.items()}
    passing |= dict(zip(needed, holm([passing[key] for key in needed]), strict=True))
    failing = holm([p for _, p in raw.values()])
    return {key: (passing[key], p) for key, p in zip(raw, failing, strict=True)}


def _as_check(policy: Policy, measurement: Measurement, rule: Rule | None) -> Check:
    """A measurement as a check without an outcome, the input of ``settle``."""
    estimate, best_case = measurement.estimate, measurement.best_case
    sample = estimate if isinstance(estimate, Estimate) else None
    value = estimate.value if isinstance(estimate, Estimate) else float(estimate)
    defined = math.isfinite(value) and measurement.n > 0
    low, high = sample.interval(1 - policy.alpha) if sample and defined else (None, None)
    check = Check(
        name=measurement.name,
        group=measurement.group,
        estimate=value if defined else None,
        low=low,
        high=high,
        raw_p=_p_values(sample, rule) if sample and rule else None,
        fail_p_at_best=_p_values(best_case, rule)[1] if best_case and rule else None,
        n=int(measurement.n),
        n_queries=int(measurement.n_queries),
        n_classes=sample.n_classes if sample else None,
        may_decide=bool(measurement.may_decide),
        unit=measurement.unit,
        detail="",
    )
    return replace(check, detail=f"{_sentence(measurement, _shortfall(policy, check))}.")


def _sentence(measurement: Measurement, shortfall: str) -> str:
    """What was measured, and what is missing before it can decide anything."""
    if measurement.n == 0:
        return measurement.nothing
    return f"{measurement.detail}, but {shortfall}" if shortfall else measurement.detail


def _p_values(estimate: Estimate, rule: Rule) -> tuple[float, float]:
    """p-values of passing and of failing."""
    above, below = estimate.p_above(rule.limit), estimate.p_below(rule.limit)
    return (above, below) if rule.above else (below, above)


def _settled(
    policy: Policy, check: Check, rule: Rule | None, adjusted: tuple[float, float] | None
) -> Check:
    """The check with its outcome: inconclusive without enough evidence, estimate or threshold."""
    defined = check.estimate is not None
    p = adjusted or check.raw_p
    outcome: Outcome = "inconclusive"
    if rule and check.estimate is not None and not _shortfall(policy, check):
        outcome = _outcome(policy, check.estimate, rule, p)
        at_best = check.fail_p_at_best is None or check.fail_p_at_best <= policy.alpha / 2
        if outcome == "fail" and not (rule.may_fail and at_best):
            outcome = "inconclusive"
    return replace(
        check,
        threshold=rule.threshold if rule else None,
        margin=rule.margin if rule else None,
        p=p[0] if p and defined else None,
        p_fail=p[1] if p and defined else None,
        outcome=outcome,
    )


def _outcome(policy: Policy, value: float, rule: Rule, p: tuple[float, float] | None) -> Outcome:
    if p is None:
        at_limit = value == rule.limit and not (rule.above and rule.may_fail)
        beyond = value > rule.limit if rule.above else value < rule.limit
        return "pass" if beyond or at_limit else "fail"
    if p[0] <= policy.alpha / 2:
        return "pass"
    return "fail" if p[1] <= policy.alpha / 2 else "inconclusive"


def _shortfall(policy: Policy, check: Check) -> str:
    """What is missing before the check can decide anything; empty if nothing is."""
    if check.estimate is None:
        return "nothing was there to compare"
    if check.n_classes is None:
        return ""
    part = check.name in {"slice_gain", "untouched_gain"}
    min_queries = policy.slice_min_queries if part else policy.min_queries
    if check.n_queries < min_queries:
        return f"only {check.n_queries} of the {min_queries} required queries have a match"
    if check.n_classes < policy.min_classes and not part:
        units = describe_units(check.n_classes, check.unit)
        return f"the queries are of {units}, and {policy.min_classes} are required"
    return ""


def _needed(
    policy: Policy, measurement: Measurement, check: Check, rules: dict[str, Rule], unsettled: int
) -> SampleSizeNeeded | None:
    """The sample that would settle the check with the policy's power if the estimate is the truth.

    The level is the one that Holm's method leaves while ``unsettled`` checks are open.
    """
    sample, rule = measurement.estimate, rules.get(measurement.name)
    if not isinstance(sample, Estimate) or rule is None:
        return None
    if check.estimate is None or check.outcome != "inconclusive":
        return None
    level = policy.alpha / 2 / max(1, unsettled)
    classes = sample.n_classes * sample.times_needed(rule.limit, level, policy.power)
    if not 0 < classes <= _MAX_CLASSES:
        return None
    at_least = max(math.ceil(classes), policy.min_classes, sample.n_classes + 1)
    queries = math.ceil(at_least * measurement.n_queries / sample.n_classes)
    beyond = (sample.value > rule.limit) == rule.above
    return SampleSizeNeeded(
        classes=at_least,
        queries=max(queries, policy.min_queries),
        to_show="pass" if beyond else "fail",
    )


def borderline_checks(
    policy: Policy, measurements: Iterable[Measurement], verdict: Verdict
) -> set[CheckKey]:
    """The deciding checks whose outcome another seed could change, so a longer draw must decide.

    With B replicates a p-value p has the standard error ``sqrt(p (1 - p) / B)``. A check is
    borderline if the level lies within ``BORDERLINE_SIGMAS`` of these.
    """
    checks, rules = {check.key: check for check in verdict.checks if check.decides}, policy.rules
    return {
        key
        for measurement in measurements
        if (key := (measurement.name, measurement.group)) in checks
        and isinstance(measurement.estimate, Estimate)
        and _is_close(policy, measurement.estimate, checks[key], rules[measurement.name])
    }


def _is_close(policy: Policy, estimate: Estimate, check: Check, rule: Rule) -> bool:
    if check.raw_p is None or check.p is None or check.p_fail is None:
        return False
    above, below = estimate.replicate_p_values(rule.limit)
    drawn = (above, below) if rule.above else (below, above)
    for p, raw, adjusted in zip(drawn, check.raw_p, (check.p, check.p_fail), strict=True):
        level = policy.alpha / 2 * raw / adjusted if adjusted > 0 else policy.alpha / 2
        error = math.sqrt(level * (1 - level) / len(estimate.replicates))
        # A correction raised this p-value above the drawn one, so another draw does not move it.
        fixed = raw > level and raw > p * (1 + 1e-9)
        if abs(p - level) <= BORDERLINE_SIGMAS * error and not fixed:
            return True
    return False
