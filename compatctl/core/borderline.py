"""Which verdicts hang on the draw: checks whose p-value lies within chance of the level.

A p-value of B replicates is known to ``sqrt(p (1 - p) / B)``. Where the level lies within a few of
these, another seed could turn the outcome, and a longer draw has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from compatctl.core.estimate import Estimate
from compatctl.core.gate import Check, Measurement, Verdict
from compatctl.core.policy import Policy, Rule

SIGMAS = 4.0
"""Standard deviations of a p-value within which the draw could decide."""

Key = tuple[str, str]
"""A check's name and its group."""


def borderline_checks(policy: Policy, found: Iterable[Measurement], verdict: Verdict) -> set[Key]:
    """Names and groups of the deciding checks whose outcome another draw could turn."""
    checks = {(check.name, check.group): check for check in verdict.checks}
    rules = policy.rules
    return {
        key
        for one in found
        if (key := (one.name, one.group)) in checks
        and checks[key].decides
        and isinstance(one.estimate, Estimate)
        and _close(policy, one.estimate, checks[key], rules[one.name])
    }


def _close(policy: Policy, estimate: Estimate, check: Check, rule: Rule) -> bool:
    if check.raw_p is None or check.p is None or check.p_fail is None:
        return False
    drawn = estimate.replicate_p_values(rule.limit)
    sides = (drawn, drawn[::-1])[not rule.above]
    for p, raw, adjusted in zip(sides, check.raw_p, (check.p, check.p_fail), strict=True):
        level = policy.alpha / 2 * raw / adjusted if adjusted > 0 else policy.alpha / 2
        error = math.sqrt(level * (1 - level) / len(estimate.replicates))
        # A p-value that is larger for another reason than the draw does not move with it.
        fixed = raw > level and raw > p * (1 + 1e-9)
        if abs(p - level) <= SIGMAS * error and not fixed:
            return True
    return False
