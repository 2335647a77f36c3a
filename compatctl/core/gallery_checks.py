"""Measurements of whether the searched gallery is good evidence.

They are the gain of queries whose matches are untouched, the gain that is left if unknown answers
count against the new model, the share of queries with a match, and the hit rate of old queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from compatctl.core.gate import Measurement
from compatctl.core.measurements import DECIDING_GROUP, Draw, GroupEvidence, ranking_measures
from compatctl.core.policy import Policy
from compatctl.core.resampling import estimate_ratio, hit_change, query_ratio


def add_gallery_checks(
    policy: Policy,
    group: GroupEvidence,
    measurements: Sequence[Measurement],
    draw: Draw,
    replicates: int,
) -> list[Measurement]:
    """``measurements`` with these added, if the group decides.

    If answers are of unknown relevance, a failure of the gain must hold in the best case as well.
    """
    if group.name != DECIDING_GROUP:
        return list(measurements)
    return [
        *_add_best_cases(policy, group, measurements, draw, replicates),
        *_unjudged_gain(policy, group, draw, replicates),
        *_untouched_gain(policy, group, draw, replicates),
        *_match_checks(policy, group),
    ]


def _add_best_cases(
    policy: Policy,
    group: GroupEvidence,
    measurements: Sequence[Measurement],
    draw: Draw,
    replicates: int,
) -> list[Measurement]:
    """The measurements, those of gains with their estimate if unknown answers count for the new
    model: hits as ``UnjudgedBounds.best``, other measures as 1 where there is such an answer."""
    ratios = {}
    if group.unjudged is not None:
        ratios["hit_gain"] = hit_change(group.classes, *group.unjudged.best, group.query_weights)
    ks = {"ndcg_gain": policy.ndcg_at, "mrr_gain": policy.mrr_at, "recall_gain": policy.recall_at}
    values = ranking_measures(policy, group.new_old, group.old_old)
    for name, k in ks.items():
        if (unknown := group.unknown_found.get(k)) is not None and unknown.any():
            _, after, before = values[name]
            change = np.nan_to_num(np.where(unknown, 1.0, after) - before)
            ratios[name] = query_ratio(group.classes, change, group.query_weights, (-1.0, 1.0), -1)
    best = {name: estimate_ratio(ratio, replicates, draw()) for name, ratio in ratios.items()}
    return [replace(m, best_case=best[m.name]) if m.name in best else m for m in measurements]


def _unjudged_gain(
    policy: Policy, group: GroupEvidence, draw: Draw, replicates: int
) -> Iterator[Measurement]:
    if group.unjudged is None:
        return
    k = policy.hit_at
    shares = group.unjudged.shares(group.old_old.has_match)
    ratio = hit_change(group.classes, *group.unjudged.worst, group.query_weights)
    yield group.measurement(
        "unjudged_gain",
        estimate_ratio(ratio, replicates, draw()),
        f"Of the first {k} answers, {shares['old'][str(k)]:.2%} of old and "
        f"{shares['new'][str(k)]:.2%} of new queries are rows of unknown relevance; "
        "this is the gain if all of them count against the new model",
    )


def _untouched_gain(
    policy: Policy, group: GroupEvidence, draw: Draw, replicates: int
) -> Iterator[Measurement]:
    overlap = group.training_overlap
    if overlap is None or overlap.of_gallery >= 1.0:
        return
    old, new, k = group.old_old, group.new_old, policy.hit_at
    untouched = old.has_match & overlap.untouched
    n = int(untouched.sum())
    before, after = ((test.hit(k) & untouched).sum() / max(1, n) for test in (old, new))
    detail = (
        f"Hit@{k} of the {n} queries all of whose matches are rows that training did not pass "
        f"through the new model is {after:.4f} with new queries and {before:.4f} with old ones"
    )
    nothing = (
        f"Training did not pass {1 - overlap.of_gallery:.2%} of the gallery's rows through the new "
        "model, and no query has matches among them alone"
    )
    ratio = hit_change(group.classes, old.hit(k), new.hit(k), untouched)
    estimate = estimate_ratio(ratio, replicates, draw())
    yield group.measurement("untouched_gain", estimate, detail, n=n, n_queries=n, nothing=nothing)


def _match_checks(policy: Policy, group: GroupEvidence) -> Iterator[Measurement]:
    old, k = group.old_old, policy.hit_at
    n = old.n_queries if group.answerable is None else int(group.answerable.sum())
    yield group.measurement(
        "matched_share",
        old.n_with_match / max(1, n),
        f"{n - old.n_with_match} of {n} queries have no match in the gallery",
        n=n,
        n_queries=n,
    )
    yield group.measurement(
        "old_hit_rate",
        old.hit_rate[k],
        f"Hit@{k} of the old model on its own gallery is {old.hit_rate[k]:.4f}; if it is close to "
        "0, labels, preprocessing or index are not those of the gallery",
    )
