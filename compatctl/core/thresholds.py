"""What a deployed similarity threshold accepts, and verification metrics on labelled pairs.

A pair is accepted if its cosine >= the threshold. FAR is the accepted share of different-class
pairs, TAR that of same-class pairs, and FRR = 1 - TAR.

A threshold set for one query model means something else for the next. ``count_accepts`` counts what
it accepts with each; ``threshold_keeping_far`` finds the threshold at which the new model accepts
no more different-class pairs than the old one did. Both score with float32 matrix products, as a
server does; the last bits may depend on ``block``, so use one value of it.

Shapes: ``P`` labelled pairs with ``scores`` (P,) finite floats and ``same`` (P,) bool; ``Q``
queries, ``G`` gallery rows, ``D`` dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import (
    AnyFloats,
    Bools,
    Codes,
    Features,
    Floats,
    as_features,
    as_labels,
    ordered_bits,
    ratio,
)
from compatctl.core.pair_tiles import PairTruth, score_tiles
from compatctl.errors import InputError

ACCEPT_ALL = -1.01
"""A threshold below every product of two rows that pass as unit rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Roc:
    """One point per distinct score; FAR and TAR rise from 0 to 1."""

    thresholds: Floats
    """(T,) descending: +inf, which accepts nothing, then every distinct score."""
    far: Floats
    tar: Floats
    n_same: int
    n_diff: int


@dataclass(frozen=True, kw_only=True)
class TarAtFar:
    """The point of a curve at a requested FAR; its threshold is +inf if TAR is 0."""

    tar: float
    threshold: float
    far: float
    """The FAR reached, at most the requested one."""
    resolved: bool
    """False if the requested FAR is below 1 / n_diff: then FAR 0 was measured."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The largest share of correctly decided pairs, and a threshold that reaches it."""

    accuracy: float
    threshold: float


@dataclass(frozen=True, kw_only=True, eq=False)
class AcceptCounts:
    """(Q,) same-class and different-class pairs of each query, and how many a threshold accepts.

    Pairs with the query's own row are in neither.
    """

    same_accepted: Codes
    same_pairs: Codes
    diff_accepted: Codes
    diff_pairs: Codes

    @property
    def far(self) -> float:
        """Share of different-class pairs that are accepted; NaN if there is none."""
        return ratio(self.diff_accepted.sum(), self.diff_pairs.sum())

    @property
    def frr(self) -> float:
        """Share of same-class pairs that are rejected; NaN if there is none."""
        return ratio((self.same_pairs - self.same_accepted).sum(), self.same_pairs.sum())


def roc(scores: AnyFloats, same: Bools) -> Roc:
    """FAR and TAR of (P,) pairs at every distinct threshold.

    Raises:
        InputError: wrong shapes or types, a score that is not finite, no pair of either kind.
    """
    scores, same = _as_pairs(scores, same)
    n_same = int(same.sum())
    n_diff = len(same) - n_same
    if n_same == 0 or n_diff == 0:
        raise InputError(
            f"a ROC curve needs same-class and different-class pairs, got {n_same} and {n_diff}",
            tip="where this is a fold's training part, spread both kinds over the folds",
        )
    order = np.argsort(-scores)
    scores, same = scores[order], same[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of each run of ties
    true_accepts = np.cumsum(same)[last]
    thresholds = np.append(np.inf, scores[last])
    tar = np.append(0, true_accepts) / n_same
    far = np.append(0, last + 1 - true_accepts) / n_diff
    return Roc(thresholds=thresholds, far=far, tar=tar, n_same=n_same, n_diff=n_diff)


def tar_at_far(roc: Roc, far: float) -> TarAtFar:
    """The largest TAR among the points with FAR <= ``far``, without interpolation.

    Of points with that TAR it takes the highest threshold, so the lowest FAR.

    Raises:
        InputError: ``far`` is not a number in [0, 1].
    """
    far = _as_number(far, "far")
    if not 0 <= far <= 1:
        raise InputError(f"far must lie in 0 to 1, got {far}")
    allowed = np.searchsorted(roc.far, far, side="right") - 1
    best = np.searchsorted(roc.tar, roc.tar[allowed], side="left")
    return TarAtFar(
        tar=float(roc.tar[best]),
        threshold=float(roc.thresholds[best]),
        far=float(roc.far[best]),
        resolved=far >= 1 / roc.n_diff,
    )


def accuracy(roc: Roc) -> Accuracy:
    """The largest share of correctly decided pairs over all thresholds.

    Of equally good thresholds it takes the median; of an even number, the higher of the middle two.
    It may be +inf, which accepts nothing.
    """
    true_accepts, false_accepts = _counts(roc)
    right = true_accepts + roc.n_diff - false_accepts
    best = np.flatnonzero(right == right.max())
    return Accuracy(
        accuracy=ratio(right.max(), roc.n_same + roc.n_diff),
        threshold=float(roc.thresholds[best[(len(best) - 1) // 2]]),
    )


def accuracy_at(scores: AnyFloats, same: Bools, threshold: float) -> float:
    """Share of (P,) pairs that ``score >= threshold`` decides correctly; it may be infinite.

    Raises:
        InputError: wrong shapes or types, no pair, a score that is not finite, a NaN threshold.
    """
    scores, same = _as_pairs(scores, same)
    return float(((scores >= _as_number(threshold, "threshold")) == same).mean())


def crossvalidated_accuracy(scores: AnyFloats, same: Bools, folds: Codes) -> float:
    """Mean accuracy over folds, each at the best threshold of the others (LFW's protocol).

    The threshold is that of ``accuracy`` on the other folds. Every fold weighs the same.

    Raises:
        InputError: as ``roc`` of the other folds, or ``folds`` not (P,) integers, fewer than two.
    """
    scores, same = _as_pairs(scores, same)
    folds = as_labels(folds, len(scores), "folds")
    names = np.unique(folds)
    if len(names) < 2:
        raise InputError(f"cross-validation needs at least two folds, got {len(names)}")
    accuracies = []
    for name in names:
        test = folds == name
        threshold = accuracy(roc(scores[~test], same[~test])).threshold
        accuracies.append(accuracy_at(scores[test], same[test], threshold))
    return float(np.mean(accuracies))


def equal_error_rate(roc: Roc) -> float:
    """The error rate where FAR and FRR cross, in [0, 1].

    It is their midpoint at the point of the curve where they are nearest, without interpolation; of
    several such points, at the highest threshold.
    """
    true_accepts, false_accepts = _counts(roc)
    false_rejects = roc.n_same - true_accepts
    # Whole numbers: |FAR - FRR| times n_same times n_diff, so that ties are ties.
    i = int(np.argmin(np.abs(false_accepts * roc.n_same - false_rejects * roc.n_diff)))
    return float((false_accepts[i] / roc.n_diff + false_rejects[i] / roc.n_same) / 2)


def count_accepts(
    queries: Features,
    gallery: Features,
    truth: PairTruth,
    threshold: float | Floats,
    *,
    block: int = 1024,
) -> AcceptCounts:
    """Count the (query, gallery row) pairs that a threshold accepts.

    Queries (Q, D) and gallery (G, D) are unit rows. ``threshold`` is any number, or one for each
    query (Q,), and is compared as float64. Memory: a few tiles of ``block`` x ``block``, >= 1.

    Raises:
        InputError: as ``score_tiles``, or a NaN threshold.
    """
    counts = np.zeros((4, len(as_features(queries, "queries"))), dtype=np.int64)
    if not isinstance(threshold, np.ndarray):
        threshold = np.full(counts.shape[1], _as_number(threshold, "threshold"))
    if threshold.shape != counts.shape[1:] or np.isnan(threshold).any():
        raise InputError(f"a threshold must be a number for each query, got {threshold.shape}")
    threshold = threshold.astype(np.float64)[:, None]
    for rows, scores, same, diff in score_tiles(queries, gallery, truth, block):
        passed = scores >= threshold[rows]
        for kind, counted in enumerate((same & passed, same, diff & passed, diff)):
            counts[kind, rows] += np.count_nonzero(counted, axis=1)
    return AcceptCounts(
        same_accepted=counts[0], same_pairs=counts[1], diff_accepted=counts[2], diff_pairs=counts[3]
    )


def threshold_keeping_far(
    queries: Features, gallery: Features, truth: PairTruth, accepted: int, *, block: int = 1024
) -> float:
    """The lowest float32 threshold that accepts at most ``accepted`` different-class pairs.

    That is the float32 just above the (accepted + 1)-th largest different-class score, found
    exactly; if that score ties with larger ones, fewer pairs are accepted. If ``accepted`` is all
    of them, it is ``ACCEPT_ALL``. Two passes over the scores each count 2^16 bins: of the upper
    half of their bits, then of the lower half within the bin that matters. With the same ``block``,
    ``count_accepts`` sees the same scores. Other arguments are as there.

    Raises:
        InputError: as ``score_tiles``, or ``accepted`` out of range.
    """
    if isinstance(accepted, bool) or not isinstance(accepted, int | np.integer):
        raise InputError(f"accepted must be a whole number of pairs, got {accepted!r}")
    upper = np.zeros(2**16, dtype=np.int64)
    for _, scores, _, diff in score_tiles(queries, gallery, truth, block):
        upper += np.bincount(
            (ordered_bits(scores[diff].view(np.int32)) >> 16) + 2**15, minlength=2**16
        )
    n_diff = int(upper.sum())
    if not 0 <= accepted <= n_diff:
        raise InputError(f"accepted must lie in 0 to {n_diff}, got {accepted}")
    if accepted == n_diff:
        return ACCEPT_ALL
    high, position = _bin_at(upper, n_diff - int(accepted) - 1)
    lower = np.zeros(2**16, dtype=np.int64)
    for _, scores, _, diff in score_tiles(queries, gallery, truth, block):
        keys = ordered_bits(scores[diff].view(np.int32))
        inside = keys[(keys >> 16) + 2**15 == high]
        lower += np.bincount(inside & (2**16 - 1), minlength=2**16)
    low, _ = _bin_at(lower, position)
    key = np.array([(high - 2**15) * 2**16 + low], dtype=np.int32)
    score = ordered_bits(key).view(np.float32)
    return float(np.nextafter(score, np.float32(np.inf))[0])


def _bin_at(counts: Codes, position: int) -> tuple[int, int]:
    """The bin of the value at ``position`` in ascending order, and its position in that bin."""
    totals = np.cumsum(counts)
    # The last bin at most, should a second pass round a score to the other side of a bin's edge.
    index = min(int(np.searchsorted(totals, position, side="right")), len(counts) - 1)
    return index, position - int(totals[index] - counts[index])


def _counts(roc: Roc) -> tuple[Codes, Codes]:
    """(T,) accepted same-class and (T,) accepted different-class pairs, whole numbers."""
    true, false = np.rint(roc.tar * roc.n_same), np.rint(roc.far * roc.n_diff)
    return true.astype(np.int64), false.astype(np.int64)


def _as_number(value: float, name: str) -> float:
    number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not number or np.isnan(value):
        raise InputError(f"{name} must be a number, got {value!r}")
    return float(value)


def _as_pairs(scores: AnyFloats, same: Bools) -> tuple[Floats, Bools]:
    """(P,) float64 scores and (P,) bool, P >= 1, or InputError."""
    scores, same = np.asarray(scores), np.asarray(same)
    if scores.ndim != 1 or len(scores) == 0 or not np.issubdtype(scores.dtype, np.floating):
        raise InputError(f"scores must be (P,) floats, P >= 1, got {scores.dtype} {scores.shape}")
    if same.shape != scores.shape or same.dtype != np.bool_:
        raise InputError(f"same must be ({len(scores)},) bool, got {same.dtype} {same.shape}")
    if not np.isfinite(scores).all():
        bad = int(np.argmin(np.isfinite(scores)))
        raise InputError(f"scores must be finite, got {scores[bad]} for pair {bad}")
    return scores.astype(np.float64, copy=False), same
