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
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from compatctl.core.estimate import Estimate
from compatctl.core.policy import Policy, Rule, rules
from compatctl.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]

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
    small: bool = False
    """A slice under the policy's least size."""
    at_best: Estimate | None = None
    """The estimate with everything that is unknown counted for the candidate: a failure must hold
    there too. None: nothing is unknown."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How much would settle an inconclusive check, if the estimate is the truth."""

    classes: int
    queries: int
    """At as many queries a class as there are now."""
    to_show: Literal["pass", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One named test of one group."""

    name: str
    group: str
    estimate: float | None
    """What was measured; None where it is not defined."""
    low: float | None
    """Lower end of the estimate's confidence interval; None where it is not defined."""
    high: float | None
    """Upper end of the same."""
    threshold: float | None
    """What the estimate is held against; None where the policy sets nothing."""
    margin: float | None
    """How far the estimate may miss the threshold; None where the test has no margin."""
    p: float | None
    """p-value of passing, Holm-adjusted where the check decides; None without an interval or a
    threshold."""
    n: int
    """Queries, or pairs for the inequalities, that the estimate is a mean of."""
    n_classes: int | None
    """Classes that were resampled; None where there is no interval."""
    outcome: Outcome
    decides: bool
    needed: Needed | None
    detail: str
    """One sentence for people."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of the deciding checks, and every check."""

    outcome: Outcome
    checks: tuple[Check, ...]


def judge(policy: Policy, measurements: Iterable[Measurement]) -> Verdict:
    """Apply the policy to every measurement.

    A deciding check that fails makes the verdict ``fail``; else one that is inconclusive, or no
    deciding check at all, makes it ``inconclusive``; else it is ``pass``. A check without a
    threshold in the policy is measured, stays ``inconclusive`` and does not decide. One that asks
    whether the evidence is good (``Rule.may_fail``) passes or is inconclusive. The empirical
    criterion has to be among the checks that decide, or the verdict is inconclusive.

    Raises:
        InputError: one check of one group twice.
    """
    found = tuple(measurements)
    names = [(one.name, one.group) for one in found]
    if len(set(names)) != len(names):
        raise InputError(f"each group is judged once, got {', '.join(map(str, sorted(names)))}")
    ruled = rules(policy)
    deciding = [one for one in found if decides(one, ruled)]
    adjusted = _adjusted(deciding, ruled)
    unsettled = sum(min(pair) > policy.alpha / 2 for pair in adjusted.values())
    checks = tuple(
        _check(policy, one, ruled, adjusted.get((one.name, one.group)), unsettled) for one in found
    )
    outcomes = {check.outcome for check in checks if check.decides}
    criterion = any(check.decides and check.name == "recall_gain" for check in checks)
    outcome: Outcome = "pass" if outcomes == {"pass"} and criterion else "inconclusive"
    return Verdict(outcome="fail" if "fail" in outcomes else outcome, checks=checks)


def decides(one: Measurement, ruled: dict[str, Rule]) -> bool:
    """Whether a check has a say: a rule, a deciding group, and no slice that is too small."""
    return one.name in ruled and one.may_decide and not one.small


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given; each at least the given one and at most 1."""
    order = sorted(range(len(p)), key=lambda at: p[at])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted


def _adjusted(
    deciding: Sequence[Measurement], ruled: dict[str, Rule]
) -> dict[tuple[str, str], tuple[float, float]]:
    """(name, group) -> adjusted p-values of passing and of failing."""
    sampled = [one for one in deciding if isinstance(one.estimate, Estimate)]
    raw = [_p_values(one.estimate, ruled[one.name]) for one in sampled]  # type: ignore[arg-type]
    both = zip(holm([p for p, _ in raw]), holm([p for _, p in raw]), strict=True)
    return {(one.name, one.group): pair for one, pair in zip(sampled, both, strict=True)}


def _p_values(estimate: Estimate, rule: Rule) -> tuple[float, float]:
    """p-values of passing and of failing."""
    above, below = estimate.p_above(rule.limit), estimate.p_below(rule.limit)
    return (above, below) if rule.above else (below, above)


def _check(
    policy: Policy,
    one: Measurement,
    ruled: dict[str, Rule],
    p: tuple[float, float] | None,
    unsettled: int,
) -> Check:
    """One check, inconclusive where there is too little evidence, no estimate or no threshold."""
    rule = ruled.get(one.name)
    sample = one.estimate if isinstance(one.estimate, Estimate) else None
    value = sample.value if sample else float(one.estimate)  # type: ignore[arg-type]
    defined = math.isfinite(value) and one.n > 0
    low, high = sample.interval(1 - policy.alpha) if sample and defined else (None, None)
    if sample and rule and p is None:
        p = _p_values(sample, rule)
    gap = _gap(policy, one, sample) if defined else "nothing was there to compare"
    outcome: Outcome = "inconclusive"
    if rule and not gap:
        outcome = _outcome(policy, value, rule, p)
        if outcome == "fail" and not (rule.may_fail and _fails_at_best(policy, one, rule)):
            outcome = "inconclusive"
    open_question = bool(sample and rule and defined and outcome == "inconclusive")
    return Check(
        name=one.name,
        group=one.group,
        estimate=value if defined else None,
        low=low,
        high=high,
        threshold=rule.threshold if rule else None,
        margin=rule.margin if rule else None,
        p=p[0] if p and defined else None,
        n=int(one.n),
        n_classes=sample.n_classes if sample else None,
        outcome=outcome,
        decides=decides(one, ruled),
        needed=_needed(policy, one, sample, rule, unsettled)
        if open_question and sample and rule
        else None,
        detail=f"{one.detail}{', but ' + gap if gap else ''}.",
    )


def _outcome(policy: Policy, value: float, rule: Rule, p: tuple[float, float] | None) -> Outcome:
    if p is None:
        at_limit = value == rule.limit and not (rule.above and rule.may_fail)
        beyond = value > rule.limit if rule.above else value < rule.limit
        return "pass" if beyond or at_limit else "fail"
    if p[0] <= policy.alpha / 2:
        return "pass"
    return "fail" if p[1] <= policy.alpha / 2 else "inconclusive"


def _fails_at_best(policy: Policy, one: Measurement, rule: Rule) -> bool:
    """Whether a failure stands with everything unknown counted for the candidate."""
    return one.at_best is None or _p_values(one.at_best, rule)[1] <= policy.alpha / 2


def _gap(policy: Policy, one: Measurement, sample: Estimate | None) -> str:
    """What is missing before the check can decide anything; empty when nothing is."""
    if sample is None:
        return ""
    part = one.name in {"slice_gain", "untouched_gain"}
    least = policy.slice_min_queries if part else policy.min_queries
    if one.n_queries < least:
        return f"only {one.n_queries} of the {least} queries asked for had a match to find"
    if sample.n_classes < policy.min_classes and not part:
        return (
            f"the queries are of {sample.n_classes} classes and {policy.min_classes} are asked for"
        )
    return ""


def _needed(
    policy: Policy, one: Measurement, sample: Estimate, rule: Rule, unsettled: int
) -> Needed | None:
    """Classes that would settle the check with the policy's power, were the estimate the truth.

    At the level that Holm's method leaves it while ``unsettled`` checks are open.
    """
    normal = NormalDist()
    distance = abs(sample.value - rule.limit)
    if not distance or not math.isfinite(sample.spread) or not sample.n_classes:
        return None
    z = normal.inv_cdf(1 - policy.alpha / 2 / max(1, unsettled)) + normal.inv_cdf(policy.power)
    classes = sample.n_classes * (z * sample.spread / distance) ** 2
    if classes > _MOST:
        return None
    at_least = max(math.ceil(classes), policy.min_classes, sample.n_classes + 1)
    queries = math.ceil(at_least * one.n_queries / sample.n_classes)
    beyond = (sample.value > rule.limit) == rule.above
    return Needed(
        classes=at_least,
        queries=max(queries, policy.min_queries),
        to_show="pass" if beyond else "fail",
    )
