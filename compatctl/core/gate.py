"""The gate: a policy's thresholds applied to measurements, and a verdict of three values.

A check passes where its whole confidence interval lies beyond the policy's limit, fails where it
lies on the other side, and is inconclusive otherwise, so that an estimate alone decides nothing.
p-values of all checks that decide are adjusted by Holm's method (Scandinavian Journal of Statistics
6, 1979), those for passing and those for failing apart.

The deciding check is the empirical criterion of Shen et al. (BCT, CVPR 2020, arXiv 2003.11942): new
queries on the old gallery must beat old queries on it, strictly. The two compatibility inequalities
(CVPR 2024, arXiv 2405.02581; TPAMI 2026, arXiv 2606.12488) are judged in the mean and with a
margin, because (1b) moves by the order of 1/(K-1) for K classes.

What cannot be told is never a pass: with too few queries or classes, or an estimate that is not
defined, a check is inconclusive.

``settle`` makes every outcome from the numbers that a report holds. ``verify`` calls it on what it
measured, and ``deploy`` calls it again on what the report says.
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
    "old_recall",
    "proven_store",
    "design_effect",
    "training_record",
    "near_copies",
)
"""Checks whose estimate may be no sample: it has no interval then, and the limit alone decides."""

SMALL_SAMPLE_CHECKS = ("slice_gain", "chain_gain")
"""Checks that do not decide where they have fewer queries than ``slice_min_queries``."""

_MOST = 10**9
"""Where more classes than this are needed, nothing but a larger effect settles the check."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """One quantity of one group, before any policy looks at it."""

    name: str
    """The check's name, which a rule of the policy is for."""
    group: str
    estimate: Estimate | float
    """A plain number is not a sample: it has no interval, and the limit alone decides."""
    n: int
    """Queries or pairs that the estimate is a mean of."""
    n_queries: int
    """Queries behind it, for the policy's least evidence."""
    may_decide: bool
    """False for groups that are reported beside the deciding one."""
    best_case: Estimate | None = None
    """The estimate with everything that is unknown counted for the candidate: a failure must hold
    there too. None: nothing is unknown."""
    unit: tuple[str, ...] = ("class",)
    """What was resampled: ``class``, ``query`` or a column; several where they cross."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class SampleSizeNeeded:
    """How much would settle an inconclusive check, if the estimate is the truth."""

    classes: int
    queries: int
    """At as many queries a class as there are now."""
    to_show: Literal["pass", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One named test of one group: what was measured, and what ``settle`` makes of it."""

    name: str
    group: str
    estimate: float | None
    """What was measured; None where it is not defined."""
    low: float | None
    """Lower end of the estimate's confidence interval; None where it is not defined."""
    high: float | None
    """Upper end of the same."""
    raw_p: tuple[float, float] | None
    """p-values of passing and of failing, before any adjustment; None without an interval or a
    threshold."""
    fail_p_at_best: float | None
    """p-value of failing with everything that is unknown counted for the candidate: a failure must
    hold there too. None: nothing is unknown."""
    n: int
    """Queries, or pairs for the inequalities, that the estimate is a mean of."""
    n_queries: int
    """Queries behind it, for the policy's least evidence."""
    n_classes: int | None
    """Classes, or other units, that were resampled; of several kinds the scarcest one's. None
    where there is no interval."""
    may_decide: bool
    """False for groups that are reported beside the deciding one."""
    unit: tuple[str, ...] = ("class",)
    """What was resampled: ``class``, ``query`` or a column; several where they cross."""
    threshold: float | None = None
    """What the estimate is held against; None where the policy sets nothing."""
    margin: float | None = None
    """How far the estimate may miss the threshold; None where the test has no margin."""
    p: float | None = None
    """p-value of passing, Holm-adjusted where the check decides; None without an interval or a
    threshold."""
    p_fail: float | None = None
    """The same of failing."""
    outcome: Outcome = "inconclusive"
    decides: bool = False
    needed: SampleSizeNeeded | None = None
    detail: str
    """One sentence for people."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of the deciding checks, and every check."""

    outcome: Outcome
    checks: tuple[Check, ...]


def judge(policy: Policy, measurements: Iterable[Measurement], *, attempt: int = 1) -> Verdict:
    """Apply the policy to every measurement; ``attempt`` as for ``settle``.

    Raises:
        InputError: one check of one group twice.
    """
    found = tuple(measurements)
    rules = policy.rules
    numbers = [_numbers(policy, one, rules.get(one.name)) for one in found]
    verdict = settle(policy, numbers, attempt=attempt)
    adjusted = _adjusted([one for one in verdict.checks if one.decides], attempt)
    unsettled = sum(min(pair) > policy.alpha / 2 for pair in adjusted.values())
    checks = tuple(
        replace(check, needed=_needed(policy, one, check, rules, attempt * max(1, unsettled)))
        for check, one in zip(verdict.checks, found, strict=True)
    )
    return replace(verdict, checks=checks)


def settle(policy: Policy, checks: Sequence[Check], *, attempt: int = 1) -> Verdict:
    """The outcome of every check by its numbers, and the verdict; what they said before is ignored.

    At the k-th ``attempt`` of one candidate on the same data, p-values of passing are multiplied by
    k before Holm's method, so that who asks often enough is not answered yes by chance.

    A deciding check that fails makes the verdict ``fail``; else one that is inconclusive, or no
    deciding check at all, makes it ``inconclusive``; else it is ``pass``. A check without a
    threshold in the policy is measured, stays ``inconclusive`` and does not decide. One that asks
    whether the evidence is good (``Rule.may_fail``) passes or is inconclusive. The empirical
    criterion has to be among the checks that decide, or the verdict is inconclusive.

    Raises:
        InputError: one check of one group twice.
    """
    names = [(one.name, one.group) for one in checks]
    if len(set(names)) != len(names):
        raise InputError(f"each group is judged once, got {', '.join(map(str, sorted(names)))}")
    rules = policy.rules
    have_say = [replace(one, decides=decides(policy, one, rules)) for one in checks]
    adjusted = _adjusted([one for one in have_say if one.decides], attempt)
    found = tuple(
        _settled(policy, one, rules.get(one.name), adjusted.get((one.name, one.group)))
        for one in have_say
    )
    outcomes = {check.outcome for check in found if check.decides}
    criterion = any(check.decides and check.name == "recall_gain" for check in found)
    outcome: Outcome = "pass" if outcomes == {"pass"} and criterion else "inconclusive"
    return Verdict(outcome="fail" if "fail" in outcomes else outcome, checks=found)


def decides(policy: Policy, one: Check, rules: dict[str, Rule]) -> bool:
    """Whether a check has a say: a rule, a deciding group, and no slice that is too small."""
    small = one.name in SMALL_SAMPLE_CHECKS and one.n_queries < policy.slice_min_queries
    return one.name in rules and one.may_decide and not small


def describe_units(n: int, unit: tuple[str, ...]) -> str:
    """``n`` units in words: ``12 classes``, ``12 values of user``; of kinds that cross, of each."""
    known = {"class": "classes", "query": "single queries"}
    words = [known.get(one, f"values of {one}") for one in unit]
    return f"{n} {words[0]}" if len(words) == 1 else f"{n} each of {' and '.join(words)}"


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given; each at least the given one and at most 1."""
    order = sorted(range(len(p)), key=lambda at: p[at])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted


def _adjusted(
    deciding: Sequence[Check], attempt: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """(name, group) -> adjusted p-values of passing and of failing."""
    sampled = [one for one in deciding if one.raw_p is not None]
    raw = [one.raw_p for one in sampled if one.raw_p is not None]
    passing = holm([min(1.0, attempt * p) for p, _ in raw])
    both = zip(passing, holm([p for _, p in raw]), strict=True)
    return {(one.name, one.group): pair for one, pair in zip(sampled, both, strict=True)}


def _numbers(policy: Policy, one: Measurement, rule: Rule | None) -> Check:
    """A measurement as the numbers from which ``settle`` goes on."""
    sample = one.estimate if isinstance(one.estimate, Estimate) else None
    value = sample.value if sample else float(one.estimate)  # type: ignore[arg-type]
    defined = math.isfinite(value) and one.n > 0
    low, high = sample.interval(1 - policy.alpha) if sample and defined else (None, None)
    check = Check(
        name=one.name,
        group=one.group,
        estimate=value if defined else None,
        low=low,
        high=high,
        raw_p=_p_values(sample, rule) if sample and rule else None,
        fail_p_at_best=_p_values(one.best_case, rule)[1] if one.best_case and rule else None,
        n=int(one.n),
        n_queries=int(one.n_queries),
        n_classes=sample.n_classes if sample else None,
        may_decide=bool(one.may_decide),
        unit=one.unit,
        detail="",
    )
    gap = _gap(policy, check)
    return replace(check, detail=f"{one.detail}{', but ' + gap if gap else ''}.")


def _p_values(estimate: Estimate, rule: Rule) -> tuple[float, float]:
    """p-values of passing and of failing."""
    above, below = estimate.p_above(rule.limit), estimate.p_below(rule.limit)
    return (above, below) if rule.above else (below, above)


def _settled(
    policy: Policy, one: Check, rule: Rule | None, adjusted: tuple[float, float] | None
) -> Check:
    """One check, inconclusive where there is too little evidence, no estimate or no threshold."""
    defined = one.estimate is not None
    p = adjusted or one.raw_p
    outcome: Outcome = "inconclusive"
    if rule and one.estimate is not None and not _gap(policy, one):
        outcome = _outcome(policy, one.estimate, rule, p)
        best_case = one.fail_p_at_best is None or one.fail_p_at_best <= policy.alpha / 2
        if outcome == "fail" and not (rule.may_fail and best_case):
            outcome = "inconclusive"
    return replace(
        one,
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


def _gap(policy: Policy, one: Check) -> str:
    """What is missing before the check can decide anything; empty when nothing is."""
    if one.estimate is None:
        return "nothing was there to compare"
    if one.n_classes is None:
        return ""
    part = one.name in {"slice_gain", "untouched_gain"}
    least = policy.slice_min_queries if part else policy.min_queries
    if one.n_queries < least:
        return f"only {one.n_queries} of the {least} queries asked for had a match to find"
    if one.n_classes < policy.min_classes and not part:
        there = describe_units(one.n_classes, one.unit)
        return f"the queries are of {there} and {policy.min_classes} are asked for"
    return ""


def _needed(
    policy: Policy, one: Measurement, check: Check, rules: dict[str, Rule], unsettled: int
) -> SampleSizeNeeded | None:
    """Classes that would settle the check with the policy's power, were the estimate the truth.

    At the level that Holm's method leaves it while ``unsettled`` checks are open.
    """
    sample, rule = one.estimate, rules.get(one.name)
    if not isinstance(sample, Estimate) or rule is None:
        return None
    if check.estimate is None or check.outcome != "inconclusive":
        return None
    level = policy.alpha / 2 / max(1, unsettled)
    classes = sample.n_classes * sample.times_needed(rule.limit, level, policy.power)
    if not 0 < classes <= _MOST:
        return None
    at_least = max(math.ceil(classes), policy.min_classes, sample.n_classes + 1)
    queries = math.ceil(at_least * one.n_queries / sample.n_classes)
    beyond = (sample.value > rule.limit) == rule.above
    return SampleSizeNeeded(
        classes=at_least,
        queries=max(queries, policy.min_queries),
        to_show="pass" if beyond else "fail",
    )
