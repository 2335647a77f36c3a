"""The weight of a fused encoder: chosen on validation queries, its gain measured on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.adapters import fuse_rows
from compatctl.core.arrays import Bools, Floats
from compatctl.core.choice import best_setting, cross_fitted_hits, resampled_choices
from compatctl.core.resampling import estimate_ratio, hit_change
from compatctl.core.sampling_units import count_units
from compatctl.evaluation.comparison import PairedEmbeddings
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.routes import WEIGHTS
from compatctl.migration.selection import Fold, class_halves

CONFIDENCE = 0.95
REPLICATES = 10_000


@dataclass(frozen=True, kw_only=True)
class WeightTrial:
    """One weight of the new feature: hit@1 of the fused validation queries on the old gallery,
    and its gain over the old model's. Both were seen by the choice."""

    weight: float
    hit_rate: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class WeightSearch:
    """The ``trials`` of every weight, and the one that all validation queries choose.

    ``weight_low`` to ``weight_high`` is what 95% of resamplings of the classes choose.

    ``gain`` is the gain in hit@1 over the old model's ``old_hit_rate``, in [-1, 1], where each
    half of the classes is measured with the weight that the other half chose (``half_weights``).
    ``low`` to ``high`` is its 95% interval.
    """

    weight: float
    weight_low: float
    weight_high: float
    trials: tuple[WeightTrial, ...]
    old_hit_rate: float
    half_weights: tuple[float, ...]
    gain: float
    low: float
    high: float
    queries: int
    classes: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning if the gain is not shown."""
        if self.low > 0.0:
            return ()
        return (
            f"the fused model is not shown to gain on validation classes: {self.gain:+.4f} "
            f"({self.low:+.4f} to {self.high:+.4f})",
        )


def search_weight(
    truth: GroundTruth, labels: Sequence[str], embeddings: PairedEmbeddings
) -> WeightSearch:
    """Try ``WEIGHTS`` on validation queries (Q,) with these class ``labels``, by exact search.

    Of equal weights the one nearest to one half is chosen.
    """
    old, new, gallery = embeddings.old_queries, embeddings.new_queries, embeddings.old_gallery
    weights = sorted(WEIGHTS, key=lambda weight: abs(weight - 0.5))
    before = retrieval(truth, old, gallery, (1,), map_k=1)
    kept = before.has_match
    hits = np.stack(
        [
            retrieval(truth, fuse_rows(old, new, weight), gallery, (1,), map_k=1).hit1
            for weight in weights
        ]
    )[:, kept]
    truth, before_hits = truth.select_queries(kept), before.hit1[kept]
    folds = [(choosing[kept], measuring[kept]) for choosing, measuring in class_halves(labels)]
    gain, low, high = _gain(truth, before_hits, cross_fitted_hits(hits, folds))
    chosen = best_setting(hits)
    low_weight, high_weight = _weight_interval(truth, np.array(weights), hits)
    hit_rate = hits.mean(axis=1)
    return WeightSearch(
        weight=weights[chosen],
        weight_low=min(low_weight, weights[chosen]),
        weight_high=max(high_weight, weights[chosen]),
        trials=tuple(
            WeightTrial(
                weight=weight,
                hit_rate=float(hit_rate[weights.index(weight)]),
                gain=float(hit_rate[weights.index(weight)] - before_hits.mean()),
            )
            for weight in WEIGHTS
        ),
        old_hit_rate=float(before_hits.mean()),
        half_weights=_half_weights(weights, hits, folds),
        gain=gain,
        low=low,
        high=high,
        queries=int(kept.sum()),
        classes=count_units(truth.classes, np.ones(int(kept.sum()), bool)),
    )


def _gain(truth: GroundTruth, before: Bools, after: Bools) -> tuple[float, float, float]:
    """The gain in hit@1 and its interval."""
    ratio = hit_change(truth.classes, before, after)
    estimate = estimate_ratio(ratio, REPLICATES, np.random.default_rng(0))
    return estimate.value, *estimate.interval(CONFIDENCE)


def _weight_interval(truth: GroundTruth, weights: Floats, hits: Bools) -> tuple[float, float]:
    """The central weights that resamplings choose."""
    choices = resampled_choices(hits, truth.classes, REPLICATES, np.random.default_rng(0))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(weights[choices], (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)


def _half_weights(
    weights: Sequence[float], hits: Bools, folds: Sequence[Fold]
) -> tuple[float, ...]:
    """The weight that each half of the classes chooses."""
    return tuple(weights[best_setting(hits, choosing)] for choosing, _ in folds)
