"""Measurements of whether the searched gallery is good evidence.

They are the gain of queries whose matches are untouched, the gain that is left if unknown answers
count against the new model, the share of queries with a match, and the recall of old queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compatctl.core.gate import Measurement
from compatctl.core.measurements import DECIDING_GROUP, Draw, GroupEvidence
from compatctl.core.policy import Policy
from compatctl.core.resampling import estimate_ratios, hit_change


def add_gallery_checks(
    policy: Policy,
    group: GroupEvidence,
    found: Sequence[Measurement],
    draw: Draw,
    replicates: int,
) -> list[Measurement]:
    """``found`` with these measurements added, if the group decides.

    If answers are of unknown relevance, a failure of the gain must hold in the best case as well.
    """
    if group.name != DECIDING_GROUP:
        return list(found)
    return [
        *_at_best(group, found, draw, replicates),
        *_unjudged(policy, group, draw, replicates),
        *_untouched(policy, group, draw, replicates),
        *_plain(policy, group),
    ]


def _at_best(
    group: GroupEvidence, found: Sequence[Measurement], draw: Draw, replicates: int
) -> list[Measurement]:
    if group.unjudged is None:
        return list(found)
    ratio = hit_change(group.classes, *group.unjudged.best, group.query_weights)
    best = estimate_ratios([ratio], replicates, draw())[0]
    return [replace(one, best_case=best) if one.name == "recall_gain" else one for one in found]


def _unjudged(
    policy: Policy, group: GroupEvidence, draw: Draw, replicates: int
) -> list[Measurement]:
    if group.unjudged is None:
        return []
    k, has_match = policy.recall_at, group.old_old.has_match
    shares = group.unjudged.shares(has_match)
    ratio = hit_change(group.classes, *group.unjudged.worst, group.query_weights)
    return [
        Measurement(
            name="unjudged_gain",
            group=group.name,
            estimate=estimate_ratios([ratio], replicates, draw())[0],
            n=group.old_old.n_with_match,
            n_queries=group.old_old.n_with_match,
            may_decide=True,
            unit=group.unit,
            detail=f"Of the first {k} answers {shares['old'][str(k)]:.2%} of old and "
            f"{shares['new'][str(k)]:.2%} of new queries are rows whose relevance nobody knows; "
            "this is the gain if all of them speak against the new model",
        )
    ]


def _untouched(
    policy: Policy, group: GroupEvidence, draw: Draw, replicates: int
) -> list[Measurement]:
    overlap = group.training_overlap
    if overlap is None or overlap.of_gallery >= 1.0:
        return []
    old, new, k = group.old_old, group.new_old, policy.recall_at
    kept = old.has_match & overlap.untouched
    n = int(kept.sum())
    before, after = ((one.hit(k) & kept).sum() / max(1, n) for one in (old, new))
    ratio = hit_change(group.classes, old.hit(k), new.hit(k), kept)
    said = (
        f"Recall@{k} of the {n} queries all of whose matches are rows that training did not pass "
        f"through the new model is {after:.4f} with new queries and {before:.4f} with old ones"
    )
    if not n:
        said = (
            f"A share of {1 - overlap.of_gallery:.2%} of the gallery is rows that training "
            "did not pass through the new model, and no query asks for them alone"
        )
    return [
        Measurement(
            name="untouched_gain",
            group=group.name,
            estimate=estimate_ratios([ratio], replicates, draw())[0],
            n=n,
            n_queries=n,
            may_decide=True,
            unit=group.unit,
            detail=said,
        )
    ]


def _plain(policy: Policy, group: GroupEvidence) -> list[Measurement]:
    old, k = group.old_old, policy.recall_at
    asked = old.n_queries if group.answerable is None else int(group.answerable.sum())
    lost = asked - old.n_with_match
    return [
        Measurement(
            name="matched_share",
            group=group.name,
            estimate=old.n_with_match / max(1, asked),
            n=asked,
            n_queries=asked,
            may_decide=True,
            unit=group.unit,
            detail=f"{lost} of {asked} queries have nothing to find in the gallery",
        ),
        Measurement(
            name="old_recall",
            group=group.name,
            estimate=old.recall[k],
            n=old.n_with_match,
            n_queries=old.n_with_match,
            may_decide=True,
            unit=group.unit,
            detail=f"Recall@{k} of the old model on its own gallery is {old.recall[k]:.4f}; where "
            "it is next to nothing, labels, preprocessing or index are not those of the gallery",
        ),
    ]
