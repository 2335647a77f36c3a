"""The gate: a policy's thresholds applied to the evidence of held-out queries.

Only the group ``unseen`` decides: classes that no model was trained on are what next month brings.
What cannot be told is never a pass. Estimates are means over all queries or pairs; ``low`` and
``high`` are the places of their confidence intervals, which are not computed yet.

Source of the criterion: Shen et al., BCT (CVPR 2020, arXiv 2003.11942); of the inequalities: CVPR
2024 (arXiv 2405.02581).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compatctl.core.compatibility import Inequalities
from compatctl.core.retrieval import Flips, Retrieval
from compatctl.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]
DECIDING_GROUP = "unseen"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a candidate must show. Shares and recalls are in [0, 1], cosines in [-1, 1].

    ``min_recall_gain`` is strict: the gain must be greater. ``different_class_margin``: how much
    nearer, in cosine, the new query may be to other classes. None: measured, does not decide.

    Raises:
        InputError: a value is out of range.
    """

    format: int = 1
    name: str = "custom"
    min_queries: int = 200
    min_classes: int = 20
    recall_at: int = 1
    min_recall_gain: float = 0.0
    require_same_class: bool = True
    different_class_margin: float = 0.01
    max_negative_flips: float | None = None
    min_self_test_gain: float | None = None

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "format": (1, 1),
            "min_queries": (1, 10**9),
            "min_classes": (2, 10**9),
            "recall_at": (1, 1000),
            "min_recall_gain": (-1.0, 1.0),
            "different_class_margin": (0.0, 2.0),
            "max_negative_flips": (0.0, 1.0),
            "min_self_test_gain": (-1.0, 1.0),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"policy: {name} must lie in {low} .. {high}, got {value!r}")
        if not self.name:
            raise InputError("policy: name is empty")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One test: ``estimate`` against ``threshold`` over ``n`` queries or pairs, and its outcome."""

    name: str
    group: str
    estimate: float
    low: float | None
    high: float | None
    threshold: float | None
    margin: float | None
    n: int
    outcome: Outcome
    decides: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Every check, and what they come to together."""

    outcome: Outcome
    checks: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupEvidence:
    """What was measured on one group of queries; recall and flips count the ``n_queries`` that
    have a match in the gallery."""

    name: str
    n_queries: int
    n_classes: int
    inequalities: Inequalities
    old_old: Retrieval
    new_old: Retrieval
    new_new: Retrieval
    flips: Flips


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """A check before it is decided: it passes where ``holds``; None: reported, does not decide."""

    name: str
    estimate: float
    threshold: float | None
    holds: bool
    n: int
    detail: str
    margin: float | None = None


def judge(policy: Policy, evidence: Sequence[GroupEvidence]) -> Verdict:
    """The verdict: any failing check that decides fails it, any undecided one leaves it open.

    No deciding check at all is ``inconclusive``, as is evidence under the policy's minimum.
    """
    checks = [check for group in evidence for check in _checks(policy, group)]
    outcomes = [check.outcome for check in checks if check.decides]
    outcome: Outcome = "pass"
    if "fail" in outcomes:
        outcome = "fail"
    elif "inconclusive" in outcomes or not outcomes:
        outcome = "inconclusive"
    return Verdict(outcome=outcome, checks=tuple(checks))


def _checks(policy: Policy, group: GroupEvidence) -> list[Check]:
    decides = group.name == DECIDING_GROUP
    too_little = group.n_queries < policy.min_queries or group.n_classes < policy.min_classes
    found = [_evidence(policy, group, decides=decides, too_little=too_little)]
    for rule in (*_retrieval(policy, group), *_inequalities(policy, group)):
        told = math.isfinite(rule.estimate) and not too_little
        found.append(
            Check(
                name=rule.name,
                group=group.name,
                estimate=rule.estimate,
                low=None,
                high=None,
                threshold=rule.threshold,
                margin=rule.margin,
                n=rule.n,
                outcome=("pass" if rule.holds else "fail") if told else "inconclusive",
                decides=decides and rule.threshold is not None,
                detail=rule.detail,
            )
        )
    return found


def _evidence(policy: Policy, group: GroupEvidence, *, decides: bool, too_little: bool) -> Check:
    return Check(
        name="evidence",
        group=group.name,
        estimate=float(group.n_queries),
        low=None,
        high=None,
        threshold=float(policy.min_queries),
        margin=None,
        n=group.n_queries,
        outcome="inconclusive" if too_little else "pass",
        decides=decides,
        detail=(
            f"{group.n_queries} queries of {group.n_classes} classes; the policy asks for "
            f"{policy.min_queries} of {policy.min_classes}"
        ),
    )


def _retrieval(policy: Policy, group: GroupEvidence) -> list[_Rule]:
    k, n = policy.recall_at, group.n_queries
    gain = group.new_old.recall[k] - group.old_old.recall[k]
    own = group.new_new.recall[k] - group.old_old.recall[k]
    most, least = policy.max_negative_flips, policy.min_self_test_gain
    flips = group.flips.negative
    return [
        _Rule(
            name=f"recall@{k} gain",
            estimate=gain,
            threshold=policy.min_recall_gain,
            holds=gain > policy.min_recall_gain,
            n=n,
            detail="new query on the old gallery minus old query on it; must be greater",
        ),
        _Rule(
            name="negative flips",
            estimate=flips,
            threshold=most,
            holds=most is None or flips <= most,
            n=group.flips.n,
            detail="share of queries that were right at the first hit and become wrong",
        ),
        _Rule(
            name=f"self-test recall@{k} gain",
            estimate=own,
            threshold=least,
            holds=least is None or own >= least,
            n=n,
            detail="new query on a gallery of its own minus old query on the old gallery",
        ),
    ]


def _inequalities(policy: Policy, group: GroupEvidence) -> list[_Rule]:
    found, margin = group.inequalities, policy.different_class_margin
    return [
        _Rule(
            name="(1a) same-class cosine",
            estimate=found.same_gain,
            threshold=0.0 if policy.require_same_class else None,
            holds=found.same_gain >= 0.0,
            n=found.new_old.n_same,
            detail="mean same-class cosine of new queries minus old ones; must not be negative",
        ),
        _Rule(
            name="(1b) different-class cosine",
            estimate=found.diff_gain,
            threshold=-margin,
            holds=found.diff_gain >= -margin,
            n=found.new_old.n_diff,
            margin=margin,
            detail="mean different-class cosine of old queries minus new ones; not under -margin",
        ),
    ]
