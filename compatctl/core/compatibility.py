"""The two compatibility inequalities, measured exactly over all pairs.

An old (deployed) model k and a new model t with unit-norm features h are compatible if, for items
i != j and the distance ``d(a, b) = 1 - a.b`` (CVPR 2024, arXiv 2405.02581; TPAMI 2026,
arXiv 2606.12488; first stated by Shen et al., BCT, CVPR 2020, arXiv 2003.11942):

    (1a)  same class:       d(h_i^t, h_j^k) <= d(h_i^k, h_j^k)
    (1b)  different class:  d(h_i^t, h_j^k) >= d(h_i^k, h_j^k)

The theorems hold in expectation, so the means are tested; the shares of single pairs are only
reported. (1b) moves its mean by the order of 1/(K-1) for K classes, far less than single pairs
vary, so it needs a margin. Both may hold while retrieval gets worse: they complement the retrieval
criterion and never replace it.

Shapes: ``Q`` queries, ``G`` gallery rows, ``D`` dimensions. ``self_row[i]`` is the gallery row of
query ``i``'s own item, or -1; that pair (i = j) is in no mean and in no share.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from compatctl.core.arrays import (
    Codes,
    Features,
    as_features,
    as_self_row,
    check_positive,
    ratio,
)
from compatctl.core.class_sums import (
    ClassSums,
    PairMeans,
    QuerySums,
    class_sums,
    excluded_pairs,
    excluded_sums,
    labelled_query_sums,
    query_sums,
    row_products,
    sums_by_position,
)
from compatctl.core.ignored import Ignored
from compatctl.core.pair_tiles import PairTruth, pair_kinds
from compatctl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inequalities:
    """Both inequalities for new and old queries on the old gallery."""

    old_old: PairMeans
    new_old: PairMeans
    same_gain: float
    """cos_same(new, old) - cos_same(old, old): (1a) holds in the mean iff >= 0; NaN: no pair."""
    diff_gain: float
    """cos_diff(old, old) - cos_diff(new, old): (1b) holds in the mean iff >= 0; NaN: no pair."""
    share_same: float
    """Share of same-class pairs that satisfy (1a), in [0, 1]; NaN if not computed, or no pair."""
    share_diff: float
    """Share of different-class pairs that satisfy (1b), in [0, 1]; NaN as above."""
    drift_mean: float | None
    """Mean distance of a new query to its own old gallery row, in [0, 2]; None: no such row."""
    sums: ClassSums | QuerySums = field(repr=False, compare=False)
    """Sums of the change, which resampling re-weights."""


def inequalities(  # noqa: PLR0917 - two models of queries on one labelled gallery
    old_queries: Features,
    new_queries: Features,
    query_labels: Codes,
    old_gallery: Features,
    gallery_labels: Codes,
    self_row: Codes | None = None,
    *,
    ignored: Ignored | None = None,
    block: int = 2048,
    shares: bool = True,
    by_query: bool = False,
) -> Inequalities:
    """Whether new queries keep (1a) and (1b) against the old gallery, in the mean.

    Args:
        old_queries: (Q, D) unit rows, the queries by the deployed model.
        new_queries: (Q, D) unit rows, the same queries by the candidate.
        query_labels: (Q,) integer codes.
        old_gallery: (G, D) unit rows, by the deployed model.
        gallery_labels: (G,) integer codes; a row of ``NO_CLASS`` is in no pair.
        self_row: (Q,) gallery row that is the query's own item, or -1; None for none.
        ignored: further pairs that are in no mean and in no share; None for none.
        block: side of the tiles of pairs that the shares hold in memory, >= 1.
        shares: also count single pairs, which takes O(Q G D); False leaves them NaN.
        by_query: keep sums by query, to resample something other than classes.

    Raises:
        InputError: as ``class_sums``, or old and new queries of different shapes.
    """
    old_queries = as_features(old_queries, "old_queries")
    new_queries = as_features(new_queries, "new_queries")
    if old_queries.shape != new_queries.shape:
        raise InputError(
            f"old and new queries must be the same items in the same dimensions, got "
            f"{old_queries.shape} and {new_queries.shape}"
        )
    check_positive(block, "block")
    old_gallery = as_features(old_gallery, "old_gallery")
    self_row = as_self_row(self_row, len(old_queries), len(old_gallery))
    old = class_sums(old_queries, query_labels, old_gallery, gallery_labels, self_row, ignored)
    truth = PairTruth(
        query_labels=np.asarray(query_labels),
        gallery_labels=np.asarray(gallery_labels),
        self_row=self_row,
        ignored=ignored,
    )
    sums = _class_change(old, new_queries, old_gallery, truth)
    satisfied = (float("nan"), float("nan"))
    if shares:
        satisfied = _shares(old_queries, new_queries, old_gallery, truth, block=block)
    in_gallery = np.flatnonzero(self_row >= 0)
    drift = 1 - row_products(new_queries, in_gallery, old_gallery, self_row[in_gallery])
    drift_mean = float(drift.mean()) if len(in_gallery) else None
    if by_query:
        pairs = query_labels, old_gallery, gallery_labels, self_row, ignored
        before, after = (labelled_query_sums(q, *pairs) for q in (old_queries, new_queries))
        change = _query_change(before, after)
        return _inequalities(before, change, shares=satisfied, drift_mean=drift_mean)
    return _inequalities(old, sums, shares=satisfied, drift_mean=drift_mean)


def judged_inequalities(  # noqa: PLR0917 - two models of queries on one judged gallery
    old_queries: Features,
    new_queries: Features,
    old_gallery: Features,
    judged_query: Codes,
    judged_row: Codes,
    self_row: Codes | None = None,
    *,
    ignored: Ignored | None = None,
) -> Inequalities:
    """``inequalities`` with the pairs judged relevant as same-class pairs; without shares.

    ``judged_query`` and ``judged_row`` (J,) are query positions and gallery rows of the relevant
    pairs, each once, none excluded. The rest is as in ``inequalities``.
    """
    pairs = (judged_query, judged_row, self_row, ignored)
    old = query_sums(old_queries, old_gallery, *pairs)
    new = query_sums(new_queries, old_gallery, *pairs)
    unknown = (float("nan"), float("nan"))
    return _inequalities(old, _query_change(old, new), shares=unknown, drift_mean=None)


def _query_change(old: QuerySums, new: QuerySums) -> QuerySums:
    """The change of the sums over the same pairs."""
    return QuerySums(
        same=(new.same[0] - old.same[0], old.same[1]), diff=(new.diff[0] - old.diff[0], old.diff[1])
    )


def _inequalities(
    old: ClassSums | QuerySums,
    change: ClassSums | QuerySums,
    *,
    shares: tuple[float, float],
    drift_mean: float | None,
) -> Inequalities:
    old_old, gain = old.means(), change.means()
    new_old = replace(
        old_old,
        cos_same=old_old.cos_same + gain.cos_same,
        cos_diff=old_old.cos_diff + gain.cos_diff,
    )
    return Inequalities(
        old_old=old_old,
        new_old=new_old,
        same_gain=gain.cos_same,
        diff_gain=-gain.cos_diff,
        share_same=shares[0],
        share_diff=shares[1],
        drift_mean=drift_mean,
        sums=change,
    )


def _class_change(
    old: ClassSums, new_queries: Features, gallery: Features, truth: PairTruth
) -> ClassSums:
    """The sums of the queries' change, new minus old; the gallery is not summed again.

    Sums and excluded pairs are subtracted in float64.
    """
    C, position = len(old.codes), np.searchsorted(old.codes, truth.query_labels)
    A, _ = sums_by_position(new_queries, position, C)
    assert truth.self_row is not None
    labels = truth.query_labels, truth.gallery_labels
    pairs = excluded_pairs(truth.self_row, truth.ignored)
    same, _, diff, _ = excluded_sums(new_queries, position, gallery, labels, pairs, C)
    return replace(
        old,
        queries=A - old.queries,
        excluded_same=same - old.excluded_same,
        excluded_diff=diff - old.excluded_diff,
    )


def _shares(
    old: Features, new: Features, gallery: Features, truth: PairTruth, *, block: int
) -> tuple[float, float]:
    """Shares of same-class and of different-class pairs that satisfy their inequality.

    The sign of ``(new_i - old_i) . gallery_j`` decides, so an unchanged query ties exactly. A tie
    satisfies both.
    """
    counts = np.zeros((2, 2), dtype=np.int64)  # [same, diff] x [satisfied, all]
    for rows, columns, same, diff in pair_kinds(len(old), len(gallery), truth, block):
        change = new[rows].astype(np.float64) - old[rows].astype(np.float64)
        rise = change @ gallery[columns].astype(np.float64).T
        for kind, (pairs, holds) in enumerate(((same, rise >= 0), (diff, rise <= 0))):
            counts[kind] += (pairs & holds).sum(), pairs.sum()
    return ratio(counts[0, 0], counts[0, 1]), ratio(counts[1, 0], counts[1, 1])
