"""What a threshold accepts: error rates of both models, the threshold or map that keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Codes, Features, Floats
from compatctl.core.calibration import ScoreMap, fit_score_map
from compatctl.core.compatibility import Inequalities
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.policy import Policy
from compatctl.core.score_histogram import ScoreHistogram, score_histogram
from compatctl.core.thresholds import AcceptCounts, count_accepts, threshold_keeping_far
from compatctl.report import Calibration, ErrorRates, OperatingPoint

FARS = (0.01, 0.001)
"""False accept rates at which thresholds and false reject rates of both models are reported."""
SCORE_SHIFT = 0.05
"""A mean cosine that moves by more than this is warned of: thresholds change their meaning."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The similarity thresholds of old and of new queries.

    ``scale``: the store's map from old queries' cosines to the scores that thresholds apply to.
    """

    old: float
    new: float
    scale: ScoreMap | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """Asks for calibrated scores; ``scale`` as in ``Thresholds``."""

    scale: ScoreMap | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFitCalibration:
    """The map from new queries' cosines to the scores that callers know, and for each half of the
    classes one that is fitted on the other half, so that no class is judged by its own map."""

    of_all: ScoreMap
    of_others: tuple[ScoreMap, ScoreMap]
    half: Codes
    """(Q,) 0 or 1: the half of each query."""
    far: dict[str, dict[str, float]]
    """At the old thresholds of ``FARS``: the old rate, and the new one by the other half's map."""

    @property
    def reported(self) -> Calibration:
        """The report's entry."""
        return Calibration(knots=self.of_all.knots, far=self.far)

    def cosines(self, threshold: float) -> Floats:
        """(Q,) the cosine at which each new query is accepted."""
        of_half = np.array([scale.inverse(threshold) for scale in self.of_others])
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
        classes: (Q,) codes of the units that are halved; of several kinds (Q, K) the first.
        scale: as in ``Thresholds``.

    Raises:
        InputError: too few pairs of two classes.
    """
    first = classes if classes.ndim == 1 else classes[:, 0]
    half = np.unique(first, return_inverse=True)[1] % 2
    parts = [half == index for index in (0, 1)]
    old, new = (
        [score_histogram(features[part], gallery, truth.select_queries(part)) for part in parts]
        for features in queries
    )
    raw = [fit_score_map(old[index], new[index]) for index in (1, 0)]
    of_all = fit_score_map(old[0] + old[1], new[0] + new[1])
    far = {}
    for rate in FARS:
        point = (old[0] + old[1]).at_far(rate)
        if point is not None:
            cosines = [raw[index].inverse(point[0]) for index in (0, 1)]
            accepted = sum(new[index].accepted(cosines[index]) for index in (0, 1))
            pairs = sum(int(counts.diff.sum()) for counts in new)
            far[f"{rate:g}"] = {"old": (old[0] + old[1]).far_at(point[0]), "new": accepted / pairs}
    by_second, by_first = (fit if scale is None else fit.then(scale) for fit in raw)
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
    thresholds: Thresholds,
    calibration: CrossFitCalibration | None = None,
) -> tuple[tuple[AcceptCounts, AcceptCounts], ErrorRates]:
    """False accepts and false rejects of old and new queries, and the threshold that keeps the
    FAR of the old ones. A ``calibration`` maps new queries to the old threshold."""

    def of(features: Features, threshold: float | Floats) -> AcceptCounts:
        return count_accepts(features, gallery, truth, threshold)

    cosines = {"old": thresholds.old, "new": thresholds.new}
    if thresholds.scale is not None:
        cosines["old"] = thresholds.scale.inverse(thresholds.old)
    used: float | Floats = thresholds.new
    if calibration is not None:
        used, cosines["new"] = (
            calibration.cosines(thresholds.old),
            calibration.of_all.inverse(thresholds.old),
        )
    old, new = of(queries[0], cosines["old"]), of(queries[1], used)
    keeping = threshold_keeping_far(queries[1], gallery, truth, int(old.diff_accepted.sum()))
    return (old, new), ErrorRates(
        old_threshold=thresholds.old,
        new_threshold=thresholds.new,
        cosines=cosines,
        calibrated=calibration is not None,
        far={"old": old.far, "new": new.far},
        frr={"old": old.frr, "new": new.frr},
        same_far_threshold=keeping,
        same_far_frr=of(queries[1], keeping).frr,
    )


def operating_points(
    scores: tuple[ScoreHistogram, ScoreHistogram],
) -> tuple[OperatingPoint, ...]:
    """Thresholds and FRR of old and new queries at a few false accept rates, by their scores."""
    counts = {"old": scores[0], "new": scores[1]}
    rows = []
    for far in FARS:
        points = {name: of_model.at_far(far) for name, of_model in counts.items()}
        resolved = {name: point for name, point in points.items() if point is not None}
        if len(resolved) == len(points):
            rows.append(
                OperatingPoint(
                    far=far,
                    threshold={name: point[0] for name, point in resolved.items()},
                    frr={name: point[1] for name, point in resolved.items()},
                )
            )
    return tuple(rows)


def shift_warnings(means: Inequalities | None, *, judged: bool) -> tuple[str, ...]:
    """A sentence if scores moved and neither a threshold nor ``--calibrate`` is given."""
    if means is None or judged:
        return ()
    moved = {"its class": means.same_gain, "other classes": -means.diff_gain}
    large = {kind: by for kind, by in moved.items() if abs(by) > SCORE_SHIFT}
    if not large:
        return ()
    by = " and ".join(f"by {by:+.2f} to items of {kind}" for kind, by in large.items())
    return (
        f"scores moved: the mean cosine of a query {by}. A threshold in your system will not mean "
        "the same; give it with --threshold, and it is judged",
    )


def scale_warnings(scale: ScoreMap | None, *, calibrate: bool) -> tuple[str, ...]:
    """A sentence if the store maps scores now, and would not with the candidate."""
    if scale is None or calibrate:
        return ()
    return (
        "scores that search prints are mapped to an earlier model's scale today, and would be the "
        "candidate's own cosines: verify with --calibrate to keep what thresholds mean",
    )


def threshold_step(policy: Policy, failed: set[str], rates: ErrorRates | None) -> str:
    """What to do if only the threshold's checks ``failed`` to pass; empty if others did too."""
    if rates is None or not failed or not failed <= {"far_ratio", "frr_increase"}:
        return ""
    if rates.calibrated and rates.far["old"] > 0:
        return ""  # the map keeps the false accept rate as well as any threshold
    if failed == {"frr_increase"} and not rates.same_far_frr < rates.frr["new"]:
        return ""  # no lower threshold keeps the false accept rate
    if not rates.far["old"] > 0 and "far_ratio" in failed:
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
