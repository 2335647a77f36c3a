"""The gate: a policy's thresholds applied to the evidence of each group of held-out queries.

Only the group ``unseen``, of classes that took no part in training, decides: it is what the queries
of next month look like. Other groups get the same checks, with ``decides`` false.

The deciding check is the empirical criterion of Shen et al. (BCT, CVPR 2020, arXiv 2003.11942): new
queries on the old gallery must beat old queries on it, strictly. The two compatibility inequalities
(CVPR 2024, arXiv 2405.02581; TPAMI 2026, arXiv 2606.12488) are judged in the mean: (1a) by its
sign, (1b) as a non-inferiority test, because its effect is of the order 1/(K-1) for K classes.

What cannot be told is never a pass: with too few queries or classes, or an estimate that is not
defined, a check is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from compatctl.core.compatibility import Inequalities
from compatctl.core.retrieval import Flips, Retrieval
from compatctl.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]

DECIDING_GROUP = "unseen"
POLICY_FORMAT = 1

_ROUNDING = 1e-12
"""Differences of shares carry rounding errors of about 1e-16: 0.55 - 0.5 must not exceed 0.05."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a candidate must show; every threshold is checked when the policy is made.

    Raises:
        InputError: a value of another type or outside its range, or a newer format.
    """

    name: str = "default"
    format: int = POLICY_FORMAT
    min_queries: int = 200
    """Queries with something to find, >= 1; with fewer the gate cannot tell."""
    min_classes: int = 20
    """Classes among the queries, >= 1; with fewer the gate cannot tell."""
    recall_at: int = 1
    """The k of the recall that decides, >= 1."""
    min_recall_gain: float = 0.0
    """recall(new, old) - recall(old, old) must be greater than this, in [0, 1)."""
    require_same_class: bool = True
    """Whether (1a) in the mean decides; otherwise it is measured only."""
    different_class_margin: float = 0.05
    """(1b) in the mean may be missed by this cosine at most, in [0, 2]."""
    max_negative_flips: float | None = None
    """Largest share of queries that turn from right to wrong, in [0, 1]; None: measured only."""
    min_self_test_gain: float | None = None
    """Least recall(new, new) - recall(old, old), in [-1, 1]; None: measured only."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"a policy needs a name, got {self.name!r}")
        _check_format(self.format)
        for count in ("min_queries", "min_classes", "recall_at"):
            _check_count(count, getattr(self, count))
        if not isinstance(self.require_same_class, bool):
            raise InputError(
                f"policy: require_same_class must be true or false, got {self.require_same_class!r}"
            )
        _check_range("min_recall_gain", self.min_recall_gain, 0.0, 1.0)
        if self.min_recall_gain >= 1:
            raise InputError("policy: min_recall_gain must be below 1: no gain exceeds it")
        _check_range("different_class_margin", self.different_class_margin, 0.0, 2.0)
        if self.max_negative_flips is not None:
            _check_range("max_negative_flips", self.max_negative_flips, 0.0, 1.0)
        if self.min_self_test_gain is not None:
            _check_range("min_self_test_gain", self.min_self_test_gain, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupEvidence:
    """Everything measured on one group of held-out queries."""

    name: str
    """``unseen`` decides; any other name, such as ``seen``, is reported."""
    n_queries: int
    """Queries asked, >= 0."""
    n_classes: int
    """Classes among them, >= 0."""
    inequalities: Inequalities
    old_old: Retrieval
    """Old queries on the old gallery."""
    new_old: Retrieval
    """New queries on the old gallery: the cross-test."""
    new_new: Retrieval
    """New queries on a new gallery: the self-test."""
    flips: Flips
    """From ``old_old`` to ``new_old``."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One named test of one group."""

    name: str
    group: str
    estimate: float | None
    """What was measured; None where it is not defined."""
    low: float | None = None
    """Lower end of the estimate's confidence interval; None where none was computed."""
    high: float | None = None
    """Upper end of the estimate's confidence interval; None where none was computed."""
    threshold: float | None
    """What the estimate is held against; None where the policy sets nothing."""
    margin: float | None = None
    """How far the estimate may miss the threshold; None where the test has no margin."""
    n: int
    """Queries, or pairs for the inequalities, that the estimate is a mean of."""
    outcome: Outcome
    decides: bool
    detail: str
    """One sentence for people."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of the deciding checks, and every check."""

    outcome: Outcome
    checks: tuple[Check, ...]


def judge(policy: Policy, evidence: Iterable[GroupEvidence]) -> Verdict:
    """Apply the policy to every group.

    A deciding check that fails makes the verdict ``fail``; else one that is inconclusive, or no
    deciding check at all, makes it ``inconclusive``; else it is ``pass``. A check without a
    threshold in the policy is measured, stays ``inconclusive`` and does not decide.

    Raises:
        InputError: two groups of one name, a recall at ``policy.recall_at`` that was not computed,
            or tests of one group that were not made on the same queries.
    """
    groups = tuple(evidence)
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise InputError(f"each group is judged once, got {', '.join(names)}")
    checks: list[Check] = []
    for group in groups:
        _check_group(policy, group)
        gap = _evidence_gap(policy, group)
        checks += [
            _recall_gain(policy, group, gap),
            _same_class(policy, group, gap),
            _different_class(policy, group, gap),
            _negative_flips(policy, group, gap),
            _self_test_gain(policy, group, gap),
        ]
    outcomes = {check.outcome for check in checks if check.decides}
    outcome: Outcome = "pass" if outcomes == {"pass"} else "inconclusive"
    return Verdict(outcome="fail" if "fail" in outcomes else outcome, checks=tuple(checks))


def _recall_gain(policy: Policy, group: GroupEvidence, gap: str) -> Check:
    k = policy.recall_at
    new, old = group.new_old.recall[k], group.old_old.recall[k]
    gain = new - old
    return _check(
        "recall_gain",
        group,
        gap,
        estimate=gain,
        threshold=policy.min_recall_gain,
        holds=gain > policy.min_recall_gain + _ROUNDING,
        n=group.new_old.n_counted,
        detail=f"recall@{k} on the old gallery is {new:.4f} with new queries and {old:.4f} with old"
        f" ones, a gain of {gain:+.4f} that must exceed {policy.min_recall_gain:g}",
    )


def _same_class(policy: Policy, group: GroupEvidence, gap: str) -> Check:
    gain = group.inequalities.same_gain
    return _check(
        "same_class",
        group,
        gap,
        estimate=gain,
        threshold=0.0,
        holds=gain >= -_ROUNDING,
        n=min(group.inequalities.new_old.n_same, group.inequalities.old_old.n_same),
        asked=policy.require_same_class,
        detail="the mean cosine to old gallery items of the query's class moves by "
        f"{gain:+.5f} from old to new queries, and should not fall (1a)",
    )


def _different_class(policy: Policy, group: GroupEvidence, gap: str) -> Check:
    gain, margin = group.inequalities.diff_gain, policy.different_class_margin
    return _check(
        "different_class",
        group,
        gap,
        estimate=gain,
        threshold=0.0,
        margin=margin,
        holds=gain >= -margin - _ROUNDING,
        n=min(group.inequalities.new_old.n_diff, group.inequalities.old_old.n_diff),
        detail="the mean cosine to old gallery items of other classes moves by "
        f"{-gain:+.5f} from old to new queries, and may rise by {margin:g} at most (1b)",
    )


def _negative_flips(policy: Policy, group: GroupEvidence, gap: str) -> Check:
    share, limit = group.flips.negative, policy.max_negative_flips
    allowed = "the policy sets no limit" if limit is None else f"at most {limit:g} may"
    return _check(
        "negative_flips",
        group,
        gap,
        estimate=share,
        threshold=limit,
        holds=limit is not None and share <= limit + _ROUNDING,
        n=group.flips.n,
        asked=limit is not None,
        detail=f"a share of {share:.4f} of the queries turned from right to wrong, and {allowed}",
    )


def _self_test_gain(policy: Policy, group: GroupEvidence, gap: str) -> Check:
    k, least = policy.recall_at, policy.min_self_test_gain
    new, old = group.new_new.recall[k], group.old_old.recall[k]
    gain = new - old
    wanted = "the policy asks for none" if least is None else f"at least {least:+g} is asked for"
    return _check(
        "self_test_gain",
        group,
        gap,
        estimate=gain,
        threshold=least,
        holds=least is not None and gain >= least - _ROUNDING,
        n=group.new_new.n_counted,
        asked=least is not None,
        detail=f"recall@{k} of each model on its own gallery is {new:.4f} new and {old:.4f} old, "
        f"a gain of {gain:+.4f} where {wanted}",
    )


def _check(
    name: str,
    group: GroupEvidence,
    gap: str,
    *,
    estimate: float,
    threshold: float | None,
    holds: bool,
    n: int,
    detail: str,
    margin: float | None = None,
    asked: bool = True,
) -> Check:
    """One check, inconclusive where there is too little evidence, no estimate or no threshold."""
    defined = math.isfinite(estimate) and n > 0
    if not defined:
        detail = f"{name.replace('_', ' ')} is not defined: nothing was there to compare"
    elif gap:
        detail = f"{detail}, but {gap}"
    outcome: Outcome = "inconclusive"
    if defined and not gap and threshold is not None:
        outcome = "pass" if holds else "fail"
    return Check(
        name=name,
        group=group.name,
        estimate=float(estimate) if defined else None,
        threshold=None if threshold is None else float(threshold),
        margin=None if margin is None else float(margin),
        n=int(n),
        outcome=outcome,
        decides=asked and group.name == DECIDING_GROUP,
        detail=f"{detail[0].upper()}{detail[1:]}.",
    )


def _evidence_gap(policy: Policy, group: GroupEvidence) -> str:
    """What is missing before the group can decide anything; empty when nothing is."""
    queries = min(group.n_queries, group.old_old.n_counted, group.new_old.n_counted)
    if queries < policy.min_queries:
        return f"only {queries} of the {policy.min_queries} queries asked for had a match to find"
    if group.n_classes < policy.min_classes:
        return (
            f"the queries are of {group.n_classes} classes and {policy.min_classes} are asked for"
        )
    return ""


def _check_group(policy: Policy, group: GroupEvidence) -> None:
    for test in (group.old_old, group.new_old, group.new_new):
        if policy.recall_at not in test.recall:
            computed = ", ".join(str(k) for k in test.recall)
            raise InputError(
                f"policy {policy.name} decides on recall@{policy.recall_at}, "
                f"but the evidence holds recall at {computed}"
            )
    counts = {(test.n_queries, test.n_counted) for test in (group.old_old, group.new_old)}
    if len(counts) != 1:
        raise InputError(f"group {group.name}: old and new were not tested on the same queries")


def _check_format(value: object) -> None:
    if isinstance(value, bool) or value != POLICY_FORMAT:
        raise InputError(
            f"policy format {value!r} is not known, this version reads {POLICY_FORMAT}",
            tip="use the compatctl version that the policy was written for",
        )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"policy: {name} must be a whole number of at least 1, got {value!r}")


def _check_range(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise InputError(f"policy: {name} must be a number from {low:g} to {high:g}, got {value!r}")
