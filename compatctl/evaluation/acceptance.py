"""What a threshold accepts: error rates of both models, what keeps them, and how scores moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Codes, Features, Floats
from compatctl.core.calibration import ScoreMap, fit_score_map
from compatctl.core.compatibility import Inequalities
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.policy import Policy
from compatctl.core.score_histogram import score_histogram
from compatctl.core.thresholds import AcceptCounts, count_accepts, threshold_keeping_far
from compatctl.report import Calibration, ErrorRates, OperatingPoint

FARS = (0.01, 0.001)
"""False accept rates at which both models' thresholds and false reject rates are reported."""
SCORE_SHIFT = 0.05
"""A mean cosine that moves by more than this moves what a threshold accepts, and is warned of."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The similarity thresholds that are used with old and with new queries.

    ``scale``: the map from old queries' cosines to the scores that the thresholds are of, where the
    store has one.
    """

    old: float
    new: float
    scale: ScoreMap | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """That scores are to be calibrated; ``scale`` as ``Thresholds``."""

    scale: ScoreMap | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFitCalibration:
    """The map from new queries' cosines to the scores that callers know, and one for each half of
    the classes that was fitted on the other half, so that no class is judged by its own map."""

    of_all: ScoreMap
    of_others: tuple[ScoreMap, ScoreMap]
    half: Codes
    """(Q,) 0 or 1: which of them is a query's."""
    far: dict[str, dict[str, float]]
    """At old thresholds of a few false accept rates: that rate, and the new one by the other
    half's map."""

    @property
    def reported(self) -> Calibration:
        """As the report has it."""
        return Calibration(knots=self.of_all.knots, far=self.far)

    def cosines(self, threshold: float) -> Floats:
        """(Q,) the cosine at which each new query is accepted."""
        of_half = np.array([one.inverse(threshold) for one in self.of_others])
        return np.asarray(of_half[self.half], dtype=np.float64)


def fit_calibration(
    queries: tuple[Features, Features],
    gallery: Features,
    truth: PairTruth,
    classes: Codes,
    scale: ScoreMap | None = None,
) -> CrossFitCalibration:
    """Fit the map that keeps every false accept rate from old to new queries.

    Args:
        queries: old and new ones (Q, D).
        gallery: (G, D) that both search.
        truth: what each pair is.
        classes: (Q,) codes of what goes into one half; of several kinds (Q, K) the first.
        scale: as ``Thresholds``.

    Raises:
        InputError: too few pairs of two classes.
    """
    first = classes if classes.ndim == 1 else classes[:, 0]
    half = np.unique(first, return_inverse=True)[1] % 2
    parts = [half == one for one in (0, 1)]
    old, new = (
        [score_histogram(one[part], gallery, truth.select_queries(part)) for part in parts]
        for one in queries
    )
    raw = [fit_score_map(old[one], new[one]) for one in (1, 0)]
    of_all = fit_score_map(old[0] + old[1], new[0] + new[1])
    far = {}
    for asked in FARS:
        point = (old[0] + old[1]).at_far(asked)
        if point is not None:
            at = [raw[one].inverse(point[0]) for one in (0, 1)]
            accepted = sum(new[one].accepted(at[one]) for one in (0, 1))
            pairs = sum(int(one.diff.sum()) for one in new)
            far[f"{asked:g}"] = {"old": (old[0] + old[1]).far_at(point[0]), "new": accepted / pairs}
    by_second, by_first = (one if scale is None else one.then(scale) for one in raw)
    return CrossFitCalibration(
        of_all=of_all if scale is None else of_all.then(scale),
        of_others=(by_second, by_first),
        half=half.astype(np.int64),
        far=far,
    )


def error_rates(
    queries: tuple[Features, Features],
    gallery: Features,
    truth: PairTruth,
    at: Thresholds,
    calibration: CrossFitCalibration | None = None,
) -> tuple[tuple[AcceptCounts, AcceptCounts], ErrorRates]:
    """False accepts and false rejects of old and new queries, and the threshold that keeps the
    FAR of the old ones. With a ``calibration`` new queries are held to the old threshold by it."""

    def of(features: Features, threshold: float | Floats) -> AcceptCounts:
        return count_accepts(features, gallery, truth, threshold)

    cosines = {"old": at.old if at.scale is None else at.scale.inverse(at.old), "new": at.new}
    used: float | Floats = at.new
    if calibration is not None:
        used, cosines["new"] = calibration.cosines(at.old), calibration.of_all.inverse(at.old)
    old, new = of(queries[0], cosines["old"]), of(queries[1], used)
    keeping = threshold_keeping_far(queries[1], gallery, truth, int(old.diff_accepted.sum()))
    return (old, new), ErrorRates(
        old_threshold=at.old,
        new_threshold=at.new,
        cosines=cosines,
        calibrated=calibration is not None,
        far={"old": old.far, "new": new.far},
        frr={"old": old.frr, "new": new.frr},
        same_far_threshold=keeping,
        same_far_frr=of(queries[1], keeping).frr,
    )


def operating_points(
    queries: tuple[Features, Features], gallery: Features, truth: PairTruth
) -> tuple[OperatingPoint, ...]:
    """Thresholds and FRR of old and new queries at a few false accept rates."""
    old, new = (score_histogram(one, gallery, truth) for one in queries)
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


def shift_warnings(found: Inequalities | None, *, judged: bool) -> tuple[str, ...]:
    """A sentence where scores moved and neither a threshold nor a calibration was asked for."""
    if found is None or judged:
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


def scale_warnings(scale: ScoreMap | None, *, calibrate: bool) -> tuple[str, ...]:
    """A sentence where the store maps scores today, and would not with the candidate."""
    if scale is None or calibrate:
        return ()
    return (
        "scores that search prints are mapped to an earlier model's scale today, and would be the "
        "candidate's own cosines: verify with --calibrate to keep what thresholds mean",
    )


def threshold_step(policy: Policy, stands: set[str], rates: ErrorRates | None) -> str:
    """What to do where only the threshold's checks stand in the way; empty where others do too.

    ``stands``: names of the deciding checks that did not pass.
    """
    if rates is None or not stands or not stands <= {"far_ratio", "frr_increase"}:
        return ""
    if rates.calibrated and rates.far["old"] > 0:
        return ""  # the map keeps the false accept rate as well as any threshold
    if stands == {"frr_increase"} and not rates.same_far_frr < rates.frr["new"]:
        return ""  # no lower threshold keeps the false accept rate
    if not rates.far["old"] > 0 and "far_ratio" in stands:
        return (
            f"old queries accept no item of another class at {rates.old_threshold:g} here, so a "
            "ratio of false accepts is not defined: hold out more classes"
        )
    # Rounded up, because below it more would be accepted; a cosine has no threshold beyond 1.
    keeping = max(-1.0, min(1.0, math.ceil(rates.same_far_threshold * 10_000) / 10_000))
    most = policy.max_frr_increase
    rise = rates.same_far_frr - rates.frr["old"]
    if most is not None and rise > most:
        return (
            "keep the old model, or find another: at the threshold that keeps the false accept "
            f"rate, {keeping:.4f}, the false reject rate moves from {rates.frr['old']:.4f} to "
            f"{rates.same_far_frr:.4f}"
        )
    return (
        f"accept new ones at {keeping:.4f}, which keeps the false accept rate (false reject rate "
        f"{rates.frr['old']:.4f} before, {rates.same_far_frr:.4f} then); verify again with "
        f"--calibrate, which keeps your threshold, or with --new-threshold {keeping:.4f}"
    )
