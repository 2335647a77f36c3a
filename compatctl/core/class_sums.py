"""Sums of features by class: the exact mean cosine over all pairs, in linear time.

With A_c and B_c the sums of the queries and of the gallery rows of class c, and A, B their totals,
the cosines of all same-class pairs add up to ``sum_c A_c . B_c`` and those of all other pairs to
``A . B - sum_c A_c . B_c``. Excluded pairs are then subtracted: a query with its own gallery row,
and with the rows that it ignores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import (
    NO_CLASS,
    Codes,
    Features,
    Floats,
    as_labels,
    as_self_row,
    check_dimensions,
    ratio,
)
from compatctl.core.ignored import Ignored

_ROWS = 4096
"""Rows processed at once, so that the features are never copied whole."""

_MANY = 64
"""Rows of a class from which it is summed alone."""


@dataclass(frozen=True, kw_only=True)
class PairMeans:
    """Mean cosines, in [-1, 1], of same-class and different-class (query, gallery row) pairs."""

    cos_same: float
    """Over same-class pairs; NaN if there is none."""
    cos_diff: float
    """Over different-class pairs; NaN if there is none."""
    n_same: int
    n_diff: int

    @classmethod
    def from_sums(cls, same: float, n_same: int, diff: float, n_diff: int) -> PairMeans:
        """From summed cosines and numbers of pairs of both kinds."""
        means = ratio(same, n_same), ratio(diff, n_diff)
        return cls(cos_same=means[0], cos_diff=means[1], n_same=int(n_same), n_diff=int(n_diff))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassSums:
    """What the means over pairs need, by class of the queries (C classes), in float64.

    Gallery rows of other classes are never resampled, so their total is enough.
    """

    codes: Codes
    """(C,) the queries' classes, ascending."""
    queries: Floats
    """(C, D) sum of the queries of each class."""
    n_queries: Codes
    """(C,)"""
    gallery: Floats
    """(C, D) sum of the gallery rows of each of these classes."""
    n_gallery: Codes
    """(C,)"""
    other: Floats
    """(D,) sum of the gallery rows of all other classes."""
    n_other: int
    excluded_same: Floats
    """(C,) summed cosine of excluded same-class pairs."""
    n_excluded_same: Codes
    """(C,)"""
    excluded_diff: Floats
    """(M,) cosine of each excluded different-class pair."""
    excluded_diff_classes: Codes
    """(M, 2) position of the query's class, and of the row's class or -1 if no query has it."""

    @property
    def same(self) -> tuple[Floats, Codes]:
        """(C,) summed cosine and (C,) number of same-class pairs."""
        total = np.einsum("cd,cd->c", self.queries, self.gallery) - self.excluded_same
        return total, self.n_queries * self.n_gallery - self.n_excluded_same

    def negated(self) -> ClassSums:
        """The sums of the negated queries."""
        return replace(
            self,
            queries=-self.queries,
            excluded_same=-self.excluded_same,
            excluded_diff=-self.excluded_diff,
        )

    def means(self) -> PairMeans:
        """The exact means over all pairs."""
        same, n_same = self.same
        everything = self.queries.sum(axis=0) @ (self.gallery.sum(axis=0) + self.other)
        diff = everything - same.sum() - self.excluded_same.sum() - self.excluded_diff.sum()
        n = self.n_queries.sum() * (self.n_gallery.sum() + self.n_other)
        n_diff = n - (self.n_queries * self.n_gallery).sum() - len(self.excluded_diff)
        return PairMeans.from_sums(same.sum(), n_same.sum(), diff, n_diff)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuerySums:
    """Sums by query, for judged relevance or if classes are not resampled."""

    same: tuple[Floats, Codes]
    """(Q,) summed cosine and (Q,) number of relevant, or same-class, pairs."""
    diff: tuple[Floats, Codes]
    """(Q,) summed cosine and (Q,) number of all other pairs."""

    def negated(self) -> QuerySums:
        """As ``ClassSums.negated``."""
        return QuerySums(same=(-self.same[0], self.same[1]), diff=(-self.diff[0], self.diff[1]))

    def means(self) -> PairMeans:
        """As ``ClassSums.means``."""
        (same, n_same), (diff, n_diff) = self.same, self.diff
        return PairMeans.from_sums(same.sum(), n_same.sum(), diff.sum(), n_diff.sum())


def query_sums(  # noqa: PLR0917
    queries: Features,
    gallery: Features,
    judged_query: Codes,
    judged_row: Codes,
    self_row: Codes | None = None,
    ignored: Ignored | None = None,
) -> QuerySums:
    """Sums by query, in O((Q + G + J) D) for J relevant pairs.

    ``judged_query`` and ``judged_row`` (J,) are query positions and gallery rows of the relevant
    pairs; none may be excluded. The rest is as in ``class_sums``.
    """
    self_row = as_self_row(self_row, len(queries), len(gallery))
    excluded, n_excluded = np.zeros(len(queries)), np.zeros(len(queries), dtype=np.int64)
    for query, row in excluded_pairs(self_row, ignored):
        excluded += np.bincount(query, row_products(queries, query, gallery, row), len(queries))
        n_excluded += np.bincount(query, minlength=len(queries))
    cosines = row_products(queries, judged_query, gallery, judged_row)
    same = np.bincount(judged_query, cosines, minlength=len(queries)).astype(np.float64)
    n_same = np.bincount(judged_query, minlength=len(queries)).astype(np.int64)
    total, _ = sums_by_position(gallery, np.zeros(len(gallery), dtype=np.int64), 1)
    everything = queries.astype(np.float64) @ total[0]
    return QuerySums(
        same=(same, n_same),
        diff=(everything - same - excluded, len(gallery) - n_same - n_excluded),
    )


def labelled_query_sums(  # noqa: PLR0917
    queries: Features,
    query_labels: Codes,
    gallery: Features,
    gallery_labels: Codes,
    self_row: Codes | None = None,
    ignored: Ignored | None = None,
) -> QuerySums:
    """``query_sums`` with same-class pairs as the relevant ones, in O((Q + G) D).

    Arguments and errors are as in ``class_sums``.
    """
    query_labels = as_labels(query_labels, len(queries), "query_labels")
    gallery_labels = as_labels(gallery_labels, len(gallery), "gallery_labels")
    self_row = as_self_row(self_row, len(queries), len(gallery))
    codes, position = np.unique(query_labels, return_inverse=True)
    sums, counts = sums_by_position(gallery, _position(gallery_labels, codes), len(codes) + 1)
    same = row_products(queries, np.arange(len(queries)), sums, position)
    n_same = counts[position]
    diff = queries.astype(np.float64) @ sums.sum(axis=0) - same
    n_diff = len(gallery) - n_same
    for query, row in excluded_pairs(self_row, ignored):
        cosines = row_products(queries, query, gallery, row)
        same_class = query_labels[query] == gallery_labels[row]
        for pairs, totals, n in ((same_class, same, n_same), (~same_class, diff, n_diff)):
            np.subtract.at(totals, query[pairs], cosines[pairs])
            np.subtract.at(n, query[pairs], 1)
    return QuerySums(same=(same, n_same), diff=(diff, n_diff))


def class_sums(  # noqa: PLR0917
    queries: Features,
    query_labels: Codes,
    gallery: Features,
    gallery_labels: Codes,
    self_row: Codes | None = None,
    ignored: Ignored | None = None,
) -> ClassSums:
    """Sums by class, in one pass over queries and gallery: O((Q + G) D).

    Args:
        queries: (Q, D) finite rows, unit ones or differences of unit ones; not checked.
        query_labels: (Q,) integer codes.
        gallery: (G, D) unit rows.
        gallery_labels: (G,) integer codes; a row of ``NO_CLASS`` is in no pair.
        self_row: (Q,) gallery row that is the query's own item, or -1; None for none.
        ignored: further excluded pairs; None for none.

    Raises:
        InputError: wrong shapes or types, or ``self_row`` outside the gallery.
    """
    check_dimensions(queries, gallery, "queries", "gallery")
    query_labels = as_labels(query_labels, len(queries), "query_labels")
    gallery_labels = as_labels(gallery_labels, len(gallery), "gallery_labels")
    self_row = as_self_row(self_row, len(queries), len(gallery))
    codes = np.unique(query_labels)
    query_position = np.searchsorted(codes, query_labels)
    A, n_query = sums_by_position(queries, query_position, len(codes))
    row_position = _position(gallery_labels, codes)
    row_position[gallery_labels == NO_CLASS] = len(codes) + 1
    B, n_gallery = sums_by_position(gallery, row_position, len(codes) + 2)
    labels = query_labels, gallery_labels
    excluded_same, n_excluded_same, excluded_diff, pairs = excluded_sums(
        queries, query_position, gallery, labels, excluded_pairs(self_row, ignored), len(codes)
    )
    other_position = _position(gallery_labels[pairs[1]], codes)
    other_position[other_position == len(codes)] = -1
    return ClassSums(
        codes=codes,
        queries=A,
        n_queries=n_query,
        gallery=B[:-2],
        n_gallery=n_gallery[:-2],
        other=B[-2],
        n_other=int(n_gallery[-2]),
        excluded_same=excluded_same,
        n_excluded_same=n_excluded_same,
        excluded_diff=excluded_diff,
        excluded_diff_classes=np.stack([query_position[pairs[0]], other_position], axis=1),
    )


def excluded_pairs(self_row: Codes, ignored: Ignored | None) -> Iterator[tuple[Codes, Codes]]:
    """Yield blocks of (n,) queries and (n,) rows of the excluded pairs, each pair once.

    ``self_row`` (Q,) is the gallery row of the query's own item, or -1.
    """
    in_gallery = np.flatnonzero(self_row >= 0)
    yield in_gallery, self_row[in_gallery]
    for query, row in ignored.blocks() if ignored is not None else ():
        others = self_row[query] != row
        yield query[others], row[others]


def excluded_sums(  # noqa: PLR0917
    queries: Features,
    query_position: Codes,
    gallery: Features,
    labels: tuple[Codes, Codes],
    pairs: Iterable[tuple[Codes, Codes]],
    C: int,
) -> tuple[Floats, Codes, Floats, tuple[Codes, Codes]]:
    """Sums over the excluded pairs.

    ``query_position`` (Q,) is that of each query's class, below ``C``; ``labels`` are those of
    queries and gallery. Returns (C,) summed cosine and (C,) number of same-class pairs, (M,)
    cosines of different-class pairs, and the (M,) queries and (M,) rows of the latter.
    """
    total, count = np.zeros(C), np.zeros(C, dtype=np.int64)
    diff: list[tuple[Floats, Codes, Codes]] = []
    for query, row in pairs:
        labelled = labels[1][row] != NO_CLASS
        query, row = query[labelled], row[labelled]  # noqa: PLW2901
        cosines = row_products(queries, query, gallery, row)
        same = labels[0][query] == labels[1][row]
        total += np.bincount(query_position[query[same]], cosines[same], minlength=C)
        count += np.bincount(query_position[query[same]], minlength=C)
        diff.append((cosines[~same], query[~same], row[~same]))
    values, query, row = map(np.concatenate, zip(*diff, strict=True))
    return total, count, values, (query, row)


def _position(labels: Codes, codes: Codes) -> Codes:
    """(n,) position of each label in the sorted ``codes``, or ``len(codes)``."""
    position = np.searchsorted(codes, labels)
    position[position == len(codes)] = 0
    known = codes[position] == labels if len(codes) else np.zeros(len(labels), dtype=bool)
    return np.where(known, position, len(codes))


def sums_by_position(features: Features, position: Codes, n: int) -> tuple[Floats, Codes]:
    """(n, D) float64 sums and (n,) counts of the rows at each position.

    Rows are sorted by position. The first rows of all positions are added at once, then the second
    rows, and so on; positions with many rows are summed one by one.
    """
    sums = np.zeros((n, features.shape[1]), dtype=np.float64)
    counts = np.bincount(position, minlength=n).astype(np.int64)
    order = np.argsort(position, kind="stable")
    first = np.cumsum(counts) - counts
    for large in np.flatnonzero(counts > _MANY):
        rows = order[first[large] : first[large] + counts[large]]
        for start in range(0, len(rows), _ROWS):
            sums[large] += features[rows[start : start + _ROWS]].sum(axis=0, dtype=np.float64)
    small = np.flatnonzero((counts > 0) & (counts <= _MANY))
    for start in range(0, len(small), _ROWS):
        positions = small[start : start + _ROWS]
        for rank in range(int(counts[positions].max())):
            positions = positions[counts[positions] > rank]
            sums[positions] += features[order[first[positions] + rank]]
    return sums, counts


def row_products(a: Features, a_rows: Codes, b: Features, b_rows: Codes) -> Floats:
    """(n,) float64 products ``a[a_rows[i]] . b[b_rows[i]]``."""
    products = np.empty(len(a_rows), dtype=np.float64)
    for start in range(0, len(a_rows), _ROWS):
        part = slice(start, start + _ROWS)
        left, right = a[a_rows[part]], b[b_rows[part]]
        products[part] = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    return products
