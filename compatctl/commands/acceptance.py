"""What a threshold accepts: error rates of both models, what keeps them, and how scores moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compatctl.core.arrays import Features
from compatctl.core.compatibility import Inequalities
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.policy import Policy
from compatctl.core.score_counts import score_counts
from compatctl.core.thresholds import Accepts, accepts, threshold_keeping_far
from compatctl.report import ErrorRates, OperatingPoint

FARS = (0.01, 0.001)
"""False accept rates at which both models' thresholds and false reject rates are reported."""
SCORE_SHIFT = 0.05
"""A mean cosine that moves by more than this moves what a threshold accepts, and is warned of."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The similarity thresholds that are used with old and with new queries."""

    old: float
    new: float


def error_rates(
    queries: tuple[Features, Features], gallery: Features, truth: PairTruth, at: Thresholds
) -> tuple[tuple[Accepts, Accepts], ErrorRates]:
    """False accepts and false rejects of old and new queries, and the threshold that keeps the
    FAR of the old ones."""

    def of(features: Features, threshold: float) -> Accepts:
        return accepts(
            features,
            truth.query_labels,
            gallery,
            truth.gallery_labels,
            threshold,
            truth.own_row,
            judged=truth.judged,
        )

    old, new = of(queries[0], at.old), of(queries[1], at.new)
    keeping = threshold_keeping_far(
        queries[1],
        truth.query_labels,
        gallery,
        truth.gallery_labels,
        int(old.diff_accepted.sum()),
        truth.own_row,
        judged=truth.judged,
    )
    return (old, new), ErrorRates(
        old_threshold=at.old,
        new_threshold=at.new,
        far={"old": old.far, "new": new.far},
        frr={"old": old.frr, "new": new.frr},
        keeping_threshold=keeping,
        keeping_frr=of(queries[1], keeping).frr,
    )


def operating_points(
    queries: tuple[Features, Features], gallery: Features, truth: PairTruth
) -> tuple[OperatingPoint, ...]:
    """Thresholds and FRR of old and new queries at a few false accept rates."""
    old, new = (score_counts(one, gallery, truth) for one in queries)
    counts = {"old": old, "new": new}
    found = []
    for far in FARS:
        points = {name: one.at_far(far) for name, one in counts.items()}
        resolved = {name: point for name, point in points.items() if point is not None}
        if len(resolved) == len(points):
            found.append(
                OperatingPoint(
                    far=far,
                    threshold={name: point[0] for name, point in resolved.items()},
                    frr={name: point[1] for name, point in resolved.items()},
                )
            )
    return tuple(found)


def shift_warnings(found: Inequalities | None, *, threshold_given: bool) -> tuple[str, ...]:
    """A sentence where scores moved and no threshold was given, by which it would be judged."""
    if found is None or threshold_given:
        return ()
    moved = {"its class": found.same_gain, "other classes": -found.diff_gain}
    large = {kind: by for kind, by in moved.items() if abs(by) > SCORE_SHIFT}
    if not large:
        return ()
    by = " and ".join(f"by {by:+.2f} to items of {kind}" for kind, by in large.items())
    return (
        f"scores moved: the mean cosine of a query {by}. A threshold in your system will not mean "
        "the same; give it with --threshold, and it is judged",
    )


def threshold_step(policy: Policy, stands: set[str], rates: ErrorRates | None) -> str:
    """What to do where only the threshold's checks stand in the way; empty where others do too.

    ``stands``: names of the deciding checks that did not pass.
    """
    if rates is None or not stands or not stands <= {"far_ratio", "frr_increase"}:
        return ""
    if stands == {"frr_increase"} and not rates.keeping_frr < rates.frr["new"]:
        return ""  # no lower threshold keeps the false accept rate
    if not rates.far["old"] > 0 and "far_ratio" in stands:
        return (
            f"old queries accept no item of another class at {rates.old_threshold:g} here, so a "
            "ratio of false accepts is not defined: hold out more classes"
        )
    # Rounded up, because below it more would be accepted; a cosine has no threshold beyond 1.
    keeping = max(-1.0, min(1.0, math.ceil(rates.keeping_threshold * 10_000) / 10_000))
    most = policy.max_frr_increase
    rise = rates.keeping_frr - rates.frr["old"]
    if most is not None and rise > most:
        return (
            "keep the old model, or find another: at the threshold that keeps the false accept "
            f"rate, {keeping:.4f}, the false reject rate moves from {rates.frr['old']:.4f} to "
            f"{rates.keeping_frr:.4f}"
        )
    return (
        f"accept new ones at {keeping:.4f}, which keeps the false accept rate (false reject rate "
        f"{rates.frr['old']:.4f} before, {rates.keeping_frr:.4f} then); verify again with "
        f"--new-threshold {keeping:.4f}"
    )
