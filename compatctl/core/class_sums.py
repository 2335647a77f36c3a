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
"""A class with more rows than this is summed on its own."""


@dataclass(frozen=True, kw_only=True)
class PairMeans:
    """Mean cosines, in [-1, 1], of same-class and different-class (query, gallery row) pairs."""

    cos_same: float
    """Over same-class pairs; NaN if there is none."""
    cos_diff: float
    """Over different-class pairs; NaN if there is none."""
    n_same: int
    n_diff: int


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
        return PairMeans(
            cos_same=ratio(same.sum(), n_same.sum()),
            cos_diff=ratio(diff, n_diff),
            n_same=int(n_same.sum()),
            n_diff=int(n_diff),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class QuerySums:
    """Sums by query, for judged relevance or if classes are not resampled."""

    same: tuple[Floats, Codes]
    """(Q,) summed cosine and (Q,) number of relevant, or same-class, pairs."""
    diff: tuple[Floats, Codes]
    """(Q,) summed cosine and (Q,) number of all other pairs."""

    def negated(self) -> QuerySums:
        """The sums of the negated queries."""
        return QuerySums(same=(-self.same[0], self.same[1]), diff=(-self.diff[0], self.diff[1]))

    def means(self) -> PairMeans:
        """The exact means over all pairs."""
        (same, n_same), (diff, n_diff) = self.same, self.diff
        return PairMeans(
            cos_same=ratio(same.sum(), n_same.sum()),
            cos_diff=ratio(diff.sum(), n_diff.sum()),
            n_same=int(n_same.sum()),
            n_diff=int(n_diff.sum()),
        )


def query_sums(  # noqa: PLR0917
    queries: Features,
    gallery: Features,
    judged_query: Codes,
    judged_row: Codes,
    self_row: Codes | None = None,
    ignored: Ignored | None = None,
) -> QuerySums:
    """Sums by query, in O((Q + G + J) D) for J relevant pairs.

    Args:
        queries: (Q, D) finite rows; not checked.
        gallery: (G, D) unit rows.
        judged_query: (J,) query positions of the relevant pairs.
        judged_row: (J,) gallery rows of these pairs; none may be excluded.
        self_row: (Q,) gallery row that is the query's own item, or -1; None for none.
        ignored: further excluded pairs; None for none.
    """
    own = as_self_row(self_row, len(queries), len(gallery))
    lost, n_lost = np.zeros(len(queries)), np.zeros(len(queries), dtype=np.int64)
    for query, row in excluded_pairs(own, ignored):
        lost += np.bincount(query, row_products(queries, query, gallery, row), len(queries))
        n_lost += np.bincount(query, minlength=len(queries))
    cosines = row_products(queries, judged_query, gallery, judged_row)
    same = np.bincount(judged_query, cosines, minlength=len(queries)).astype(np.float64)
    n_same = np.bincount(judged_query, minlength=len(queries)).astype(np.int64)
    total, _ = sums_by_position(gallery, np.zeros(len(gallery), dtype=np.int64), 1)
    everything = queries.astype(np.float64) @ total[0]
    return QuerySums(
        same=(same, n_same),
        diff=(everything - same - lost, len(gallery) - n_same - n_lost),
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
    own = as_self_row(self_row, len(queries), len(gallery))
    codes, at = np.unique(query_labels, return_inverse=True)
    sums, counts = sums_by_position(gallery, _position(gallery_labels, codes), len(codes) + 1)
    same, n_same = row_products(queries, np.arange(len(queries)), sums, at), counts[at]
    diff = queries.astype(np.float64) @ sums.sum(axis=0) - same
    n_diff = len(gallery) - n_same
    for query, row in excluded_pairs(own, ignored):
        cosines = row_products(queries, query, gallery, row)
        alike = query_labels[query] == gallery_labels[row]
        for kept, totals, numbers in ((alike, same, n_same), (~alike, diff, n_diff)):
            np.subtract.at(totals, query[kept], cosines[kept])
            np.subtract.at(numbers, query[kept], 1)
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
        InputError: wrong shapes or types, or an own row outside the gallery.
    """
    check_dimensions(queries, gallery, "queries", "gallery")
    query_labels = as_labels(query_labels, len(queries), "query_labels")
    gallery_labels = as_labels(gallery_labels, len(gallery), "gallery_labels")
    own = as_self_row(self_row, len(queries), len(gallery))
    codes = np.unique(query_labels)
    at = np.searchsorted(codes, query_labels)
    A, n_query = sums_by_position(queries, at, len(codes))
    position = _position(gallery_labels, codes)
    position[gallery_labels == NO_CLASS] = len(codes) + 1
    B, n_gallery = sums_by_position(gallery, position, len(codes) + 2)
    labels = query_labels, gallery_labels
    excluded_same, n_excluded_same, excluded_diff, pairs = excluded_sums(
        queries, at, gallery, labels, excluded_pairs(own, ignored), len(codes)
    )
    theirs = _position(gallery_labels[pairs[1]], codes)
    theirs[theirs == len(codes)] = -1
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
        excluded_diff_classes=np.stack([at[pairs[0]], theirs], axis=1),
    )


def excluded_pairs(own: Codes, ignored: Ignored | None) -> Iterator[tuple[Codes, Codes]]:
    """Yield blocks of (n,) queries and (n,) rows of the excluded pairs, each pair once.

    ``own`` (Q,) is the gallery row of the query's own item, or -1.
    """
    mine = np.flatnonzero(own >= 0)
    yield mine, own[mine]
    for query, row in ignored.blocks() if ignored is not None else ():
        others = own[query] != row
        yield query[others], row[others]


def excluded_sums(  # noqa: PLR0917
    queries: Features,
    at: Codes,
    gallery: Features,
    labels: tuple[Codes, Codes],
    pairs: Iterable[tuple[Codes, Codes]],
    C: int,
) -> tuple[Floats, Codes, Floats, tuple[Codes, Codes]]:
    """Sums over the excluded pairs.

    ``at`` (Q,) is the position of each query's class; ``labels`` are those of queries and gallery.

    Returns:
        (C,) summed cosine and (C,) number of same-class pairs, (M,) cosines of different-class
        pairs, and the (M,) queries and (M,) rows of the latter.
    """
    total, number = np.zeros(C), np.zeros(C, dtype=np.int64)
    diff: list[tuple[Floats, Codes, Codes]] = []
    for every_query, every_row in pairs:
        known = labels[1][every_row] != NO_CLASS
        query, row = every_query[known], every_row[known]
        cosines = row_products(queries, query, gallery, row)
        same = labels[0][query] == labels[1][row]
        total += np.bincount(at[query[same]], cosines[same], minlength=C)
        number += np.bincount(at[query[same]], minlength=C)
        diff.append((cosines[~same], query[~same], row[~same]))
    values, query, row = map(np.concatenate, zip(*diff, strict=True))
    return total, number, values, (query, row)


def _position(labels: Codes, codes: Codes) -> Codes:
    """(n,) position of each label in the sorted ``codes``, or ``len(codes)``."""
    at = np.searchsorted(codes, labels)
    at[at == len(codes)] = 0
    known = codes[at] == labels if len(codes) else np.zeros(len(labels), dtype=bool)
    return np.where(known, at, len(codes))


def sums_by_position(features: Features, position: Codes, n: int) -> tuple[Floats, Codes]:
    """(n, D) float64 sums and (n,) counts of the rows at each position.

    Rows are sorted by position. The first rows of all positions are added at once, then the second
    rows, and so on; positions with many rows are summed one by one.
    """
    sums = np.zeros((n, features.shape[1]), dtype=np.float64)
    counts = np.bincount(position, minlength=n).astype(np.int64)
    order = np.argsort(position, kind="stable")
    first = np.cumsum(counts) - counts
    for one in np.flatnonzero(counts > _MANY):
        rows = order[first[one] : first[one] + counts[one]]
        for start in range(0, len(rows), _ROWS):
            sums[one] += features[rows[start : start + _ROWS]].sum(axis=0, dtype=np.float64)
    few = np.flatnonzero((counts > 0) & (counts <= _MANY))
    for start in range(0, len(few), _ROWS):
        at = few[start : start + _ROWS]
        for place in range(int(counts[at].max())):
            at = at[counts[at] > place]
            sums[at] += features[order[first[at] + place]]
    return sums, counts


def row_products(a: Features, a_rows: Codes, b: Features, b_rows: Codes) -> Floats:
    """(n,) float64 products ``a[a_rows[i]] . b[b_rows[i]]``."""
    products = np.empty(len(a_rows), dtype=np.float64)
    for start in range(0, len(a_rows), _ROWS):
        part = slice(start, start + _ROWS)
        left, right = a[a_rows[part]], b[b_rows[part]]
        products[part] = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    return products
