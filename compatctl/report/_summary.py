"""The verdict in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compatctl.core.gate import Check, Verdict, describe_units
from compatctl.core.policy import CRITERIA
from compatctl.report._report import Attempts

_MEASURES = {
    "hit_gain": "hits",
    "ndcg_gain": "nDCG",
    "mrr_gain": "MRR",
    "recall_gain": "recall",
}


def summary(verdict: Verdict) -> str:
    """The verdict in one sentence, with the gain, the failed checks, or the open ones."""
    deciding = [check for check in verdict.checks if check.decides]
    if verdict.outcome == "pass":
        gain = next(check for name in CRITERIA for check in deciding if check.name == name)
        if gain.margin is not None:
            return (
                "The new model does not find less than the old one in the gallery as it is, within "
                f"a margin of {gain.margin:g}: {_interval(gain)}."
            )
        return (
            "The new model finds more than the old one in the gallery as it is: the gain in "
            f"{_MEASURES[gain.name]} is {_interval(gain)}."
        )
    if verdict.outcome == "fail":
        failed = [check for check in deciding if check.outcome == "fail"]
        names = ", ".join(_name(check) for check in failed)
        return f"The new model must not be deployed: {names} failed."
    open_checks = [check for check in deciding if check.outcome == "inconclusive"]
    names = ", ".join(_name(check) for check in open_checks) or "no check could decide"
    return f"The evidence does not settle it: {names}.{_needed(open_checks)}"


def attempt_sentence(attempt: Attempts) -> str:
    """The number of the attempt, and seed and policy of the earlier ones."""
    counts = Counter(f"seed {entry.seed}, policy {entry.policy}" for entry in attempt.earlier[-5:])
    earlier = "; ".join(
        name if count == 1 else f"{name}, {count} times" for name, count in counts.items()
    )
    return (
        f"Attempt {attempt.number} of this candidate on these data (earlier: {earlier}): p-values "
        f"of passing are multiplied by {attempt.number}."
    )


def _interval(check: Check) -> str:
    return f"{check.estimate:+.4f}, between {check.low:+.4f} and {check.high:+.4f}"


def _name(check: Check) -> str:
    return check.name if check.group == "unseen" else f"{check.name} ({check.group})"


def _needed(checks: Sequence[Check]) -> str:
    sizes = [(check.needed, check.unit) for check in checks if check.needed]
    if not sizes:
        return ""
    most, unit = max(sizes, key=lambda size: size[0].classes)
    return f" About {describe_units(most.classes, unit)} with {most.queries} queries would."
