"""The two compatibility inequalities, measured exactly over all pairs.

An old (deployed) model k and a new model t with unit-norm features h are compatible when, for
items i != j, with the distance ``d(a, b) = 1 - a.b`` (CVPR 2024, arXiv 2405.02581; TPAMI 2026,
arXiv 2606.12488; first stated by Shen et al., BCT, CVPR 2020, arXiv 2003.11942):

    (1a)  same class:       d(h_i^t, h_j^k) <= d(h_i^k, h_j^k)
    (1b)  different class:  d(h_i^t, h_j^k) >= d(h_i^k, h_j^k)

The theorems hold in expectation, so the means are what is tested; the shares of single pairs are
information. (1b) moves its mean by the order of 1/(K-1) for K classes, far less than single pairs
scatter: judge it with a margin. And both may hold while retrieval gets worse, so they stand beside
the retrieval criterion and never replace it.

Shapes: ``Q`` queries, ``G`` gallery rows, ``D`` dimensions. Features are unit rows in any float
type, labels are integer class codes. ``own_row[i]`` is the gallery row of query ``i``'s own item,
or -1 where the gallery does not hold it; that pair (i = j) is in no mean and in no share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError

Features = NDArray[np.floating[Any]]
Codes = NDArray[np.int64]
Floats = NDArray[np.float64]

NORM_TOLERANCE = 1e-3
"""How far a row's length may be from 1: half precision passes, an unnormalised row does not."""

_ROWS = 4096
"""Rows turned to float64 at once: the features are never copied whole."""


@dataclass(frozen=True, kw_only=True)
class PairMeans:
    """Mean cosines, in [-1, 1], of the pairs (query, gallery row) of two kinds."""

    cos_same: float
    """Over pairs of one class; NaN where there is none."""
    cos_diff: float
    """Over pairs of different classes; NaN where there is none."""
    n_same: int
    n_diff: int


@dataclass(frozen=True, kw_only=True)
class Inequalities:
    """Both inequalities of new queries against old ones, on the old gallery."""

    old_old: PairMeans
    new_old: PairMeans
    same_gain: float
    """cos_same(new, old) - cos_same(old, old): (1a) holds in the mean iff >= 0; NaN: no pair."""
    diff_gain: float
    """cos_diff(old, old) - cos_diff(new, old): (1b) holds in the mean iff >= 0; NaN: no pair."""
    share_same: float
    """Share of same-class pairs that satisfy (1a), in [0, 1]; NaN: not asked for, or no pair."""
    share_diff: float
    """Share of different-class pairs that satisfy (1b), in [0, 1]; NaN as above."""
    drift_mean: float | None
    """Mean distance of a new query to its own old gallery row, in [0, 2]; None: it has none."""


def pair_means(
    queries: Features,
    query_labels: Codes,
    gallery: Features,
    gallery_labels: Codes,
    own_row: Codes | None = None,
) -> PairMeans:
    """Exact mean cosine of same-class and of different-class pairs, in O((Q + G) D).

    With A_c and B_c the sums of the queries and of the gallery rows of class c, and A, B their
    totals, the cosines of all same-class pairs add up to ``sum_c A_c . B_c`` and those of all
    other pairs to ``A . B - sum_c A_c . B_c``; own pairs are taken off again. Sums are float64.

    Args:
        queries: (Q, D) unit rows.
        query_labels: (Q,) integer codes.
        gallery: (G, D) unit rows.
        gallery_labels: (G,) integer codes.
        own_row: (Q,) gallery row that is the query's own item, or -1; None for none.

    Raises:
        InputError: wrong shapes or types, rows that are not finite and of length 1, an own row
            outside the gallery.
    """
    queries, gallery = as_features(queries, "queries"), as_features(gallery, "gallery")
    check_dimensions(queries, gallery, "queries", "gallery")
    query_labels = as_labels(query_labels, len(queries), "query_labels")
    gallery_labels = as_labels(gallery_labels, len(gallery), "gallery_labels")
    own = as_own_row(own_row, len(queries), len(gallery))
    classes = np.unique(np.concatenate([query_labels, gallery_labels]))
    A, n_query = _class_sums(queries, query_labels, classes)
    B, n_gallery = _class_sums(gallery, gallery_labels, classes)
    mine = np.flatnonzero(own >= 0)
    own_cosines = _row_products(queries, mine, gallery, own[mine])
    own_same = query_labels[mine] == gallery_labels[own[mine]]
    class_total = float((A * B).sum())
    all_total = float(A.sum(axis=0) @ B.sum(axis=0))
    same = class_total - float(own_cosines[own_same].sum())
    diff = all_total - class_total - float(own_cosines[~own_same].sum())
    n_class = int((n_query * n_gallery).sum())
    n_same = n_class - int(own_same.sum())
    n_diff = len(queries) * len(gallery) - n_class - int((~own_same).sum())
    return PairMeans(
        cos_same=_ratio(same, n_same), cos_diff=_ratio(diff, n_diff), n_same=n_same, n_diff=n_diff
    )


def inequalities(  # noqa: PLR0917 - two models of queries on one labelled gallery
    old_queries: Features,
    new_queries: Features,
    query_labels: Codes,
    old_gallery: Features,
    gallery_labels: Codes,
    own_row: Codes | None = None,
    *,
    block: int = 2048,
    shares: bool = True,
) -> Inequalities:
    """Whether new queries keep (1a) and (1b) against the old gallery, in the mean.

    Args:
        old_queries: (Q, D) unit rows, the queries by the deployed model.
        new_queries: (Q, D) unit rows, the same queries by the candidate.
        query_labels: (Q,) integer codes.
        old_gallery: (G, D) unit rows, by the deployed model.
        gallery_labels: (G,) integer codes.
        own_row: (Q,) gallery row that is the query's own item, or -1; None for none.
        block: side of the tiles of pairs that the shares hold in memory, >= 1.
        shares: also count single pairs, which takes O(Q G D); False leaves them NaN.

    Raises:
        InputError: as ``pair_means``, or old and new queries of different shapes.
    """
    old_queries = as_features(old_queries, "old_queries")
    new_queries = as_features(new_queries, "new_queries")
    if old_queries.shape != new_queries.shape:
        raise InputError(
            f"old and new queries must be the same items in the same dimensions, got "
            f"{old_queries.shape} and {new_queries.shape}"
        )
    check_positive(block, "block")
    old_old = pair_means(old_queries, query_labels, old_gallery, gallery_labels, own_row)
    new_old = pair_means(new_queries, query_labels, old_gallery, gallery_labels, own_row)
    own = as_own_row(own_row, len(old_queries), len(old_gallery))
    mine = np.flatnonzero(own >= 0)
    drift = 1 - _row_products(new_queries, mine, old_gallery, own[mine])
    kept = (float("nan"), float("nan"))
    if shares:
        labels = np.asarray(query_labels), np.asarray(gallery_labels)
        kept = _shares(old_queries, new_queries, old_gallery, labels, own, block=block)
    return Inequalities(
        old_old=old_old,
        new_old=new_old,
        same_gain=new_old.cos_same - old_old.cos_same,
        diff_gain=old_old.cos_diff - new_old.cos_diff,
        share_same=kept[0],
        share_diff=kept[1],
        drift_mean=float(drift.mean()) if len(drift) else None,
    )


def _class_sums(features: Features, labels: Codes, classes: Codes) -> tuple[Floats, Codes]:
    """(C, D) float64 sums and (C,) counts of the rows of each class."""
    position = np.searchsorted(classes, labels)
    sums = np.zeros((len(classes), features.shape[1]), dtype=np.float64)
    for start in range(0, len(features), _ROWS):
        here = position[start : start + _ROWS]
        order = np.argsort(here, kind="stable")
        found, first = np.unique(here[order], return_index=True)
        rows = features[start : start + _ROWS][order].astype(np.float64)
        sums[found] += np.add.reduceat(rows, first, axis=0)
    return sums, np.bincount(position, minlength=len(classes)).astype(np.int64)


def _row_products(a: Features, a_rows: Codes, b: Features, b_rows: Codes) -> Floats:
    """(n,) float64 products ``a[a_rows[i]] . b[b_rows[i]]``."""
    products = np.empty(len(a_rows), dtype=np.float64)
    for start in range(0, len(a_rows), _ROWS):
        part = slice(start, start + _ROWS)
        left, right = a[a_rows[part]].astype(np.float64), b[b_rows[part]].astype(np.float64)
        products[part] = (left * right).sum(axis=1)
    return products


def _shares(
    old: Features,
    new: Features,
    gallery: Features,
    labels: tuple[Codes, Codes],
    own: Codes,
    *,
    block: int,
) -> tuple[float, float]:
    """Shares of same-class and of different-class pairs that satisfy their inequality.

    The sign of ``(new_i - old_i) . gallery_j`` decides, so that a query which did not change ties
    exactly, and a tie satisfies both.
    """
    counts = np.zeros((2, 2), dtype=np.int64)  # [same, diff] x [satisfied, all]
    for top in range(0, len(old), block):
        rows = slice(top, top + block)
        change = new[rows].astype(np.float64) - old[rows].astype(np.float64)
        for left in range(0, len(gallery), block):
            columns = slice(left, left + block)
            moved = change @ gallery[columns].astype(np.float64).T
            same = labels[0][rows, None] == labels[1][None, columns]
            others = np.arange(left, left + moved.shape[1])[None, :] != own[rows, None]
            for kind, (pairs, holds) in enumerate(((same, moved >= 0), (~same, moved <= 0))):
                counts[kind] += (pairs & others & holds).sum(), (pairs & others).sum()
    return _ratio(counts[0, 0], counts[0, 1]), _ratio(counts[1, 0], counts[1, 1])


def _ratio(total: Any, n: Any) -> float:
    return float(total / n) if n else float("nan")


def check_positive(value: int, name: str) -> None:
    """Raise InputError unless ``value`` is a whole number >= 1 (True is not one)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")


def as_features(array: Features, name: str) -> Features:
    """``array`` itself, once known to be (N, D) finite floats of unit rows, D >= 1.

    Raises:
        InputError: anything else; the message names the first bad row.
    """
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[1] == 0 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} must be (N, D) floats, got {array.dtype} {array.shape}")
    lengths = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= NORM_TOLERANCE))
    if len(bad):
        raise InputError(
            f"{name} must be unit rows: row {bad[0]} has length {lengths[bad[0]]:.6g} "
            f"({len(bad)} of {len(array)} rows are bad)",
            tip="normalise the features, and look for NaN in what the model returned",
        )
    return array


def check_dimensions(a: Features, b: Features, a_name: str, b_name: str) -> None:
    """Raise InputError unless both have the same number of columns."""
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"{a_name} have {a.shape[1]} dimensions, {b_name} has {b.shape[1]}",
            tip="a query model must end in as many numbers as the gallery's vectors have",
        )


def as_labels(labels: Codes, n: int, name: str) -> Codes:
    """(n,) int64 codes, or InputError."""
    labels = np.asarray(labels)
    if labels.size == 0 and labels.shape == (n,):
        return np.zeros(0, dtype=np.int64)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name} must be ({n},) integer codes, got {labels.dtype} {labels.shape}")
    return labels.astype(np.int64, copy=False)


def as_own_row(own_row: Codes | None, Q: int, G: int) -> Codes:
    """(Q,) int64 gallery rows or -1, all -1 for None; InputError where out of range."""
    if own_row is None:
        return np.full(Q, -1, dtype=np.int64)
    own = as_labels(own_row, Q, "own_row")
    if len(own) and not -1 <= own.min() <= own.max() < G:
        raise InputError(
            f"own_row must lie in -1 to {G - 1}, got {own.min()} to {own.max()}",
        )
    return own
