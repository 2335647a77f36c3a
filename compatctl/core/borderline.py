"""Checks whose outcome another seed could change: their p-value is too near the level.

With B replicates a p-value p has the standard error ``sqrt(p (1 - p) / B)``. If the level lies
within a few of these, the outcome depends on the draw, and a longer draw must decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from compatctl.core.estimate import Estimate
from compatctl.core.gate import Check, Measurement, Verdict
from compatctl.core.policy import Policy, Rule

SIGMAS = 4.0
"""Standard errors of a p-value within which the draw could decide."""

Key = tuple[str, str]
"""A check's name and its group."""


def borderline_checks(
    policy: Policy, measurements: Iterable[Measurement], verdict: Verdict
) -> set[Key]:
    """Names and groups of the deciding checks whose outcome another draw could change."""
    checks = {(check.name, check.group): check for check in verdict.checks}
    rules = policy.rules
    return {
        key
        for measurement in measurements
        if (key := (measurement.name, measurement.group)) in checks
        and checks[key].decides
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
        if abs(p - level) <= SIGMAS * error and not fixed:
            return True
    return False
