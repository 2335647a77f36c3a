"""Sums of features by class: the exact mean cosine over all pairs, without looking at a pair.

With A_c and B_c the sums of the queries and of the gallery rows of class c, and A, B their totals,
the cosines of all same-class pairs add up to ``sum_c A_c . B_c`` and those of all other pairs to
``A . B - sum_c A_c . B_c``; pairs that do not count are taken off again: own ones (query and
gallery row of one item) and those that a query ignores.
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
"""Rows taken at once: the features are never copied whole."""

_MANY = 64
"""Rows of one class from which on it is summed by itself."""


@dataclass(frozen=True, kw_only=True)
class PairMeans:
    """Mean cosines, in [-1, 1], of the pairs (query, gallery row) of two kinds."""

    cos_same: float
    """Over pairs of one class; NaN where there is none."""
    cos_diff: float
    """Over pairs of different classes; NaN where there is none."""
    n_same: int
    n_diff: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassSums:
    """All that the means over pairs need, by class of the queries (C of them).

    Gallery rows of other classes are never resampled, so their total is enough. Sums are float64.
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
    """(C,) summed cosine of the pairs that do not count, own and ignored ones."""
    n_excluded_same: Codes
    """(C,)"""
    excluded_diff: Floats
    """(M,) cosine of each such pair whose two labels differ."""
    excluded_diff_classes: Codes
    """(M, 2) where its two classes stand: the query's, the gallery row's or -1 if no query's."""

    @property
    def same(self) -> tuple[Floats, Codes]:
        """(C,) summed cosine and (C,) number of same-class pairs of each class of queries."""
        total = np.einsum("cd,cd->c", self.queries, self.gallery) - self.excluded_same
        return total, self.n_queries * self.n_gallery - self.n_excluded_same

    def negated(self) -> ClassSums:
        """The same of minus the queries."""
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
    """The same query by query, where relevance was judged pair by pair or no class is drawn."""

    same: tuple[Floats, Codes]
    """(Q,) summed cosine and (Q,) number of the pairs judged relevant, or of one class."""
    diff: tuple[Floats, Codes]
    """(Q,) the same of all other pairs."""

    def negated(self) -> QuerySums:
        """The same of minus the queries."""
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
        judged_query: (J,) query positions, and
        judged_row: (J,) gallery rows, of the pairs that are relevant; none that does not count.
        self_row: (Q,) gallery row that is the query's own item, or -1; None for none.
        ignored: pairs that do not count besides; None for none.
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
    """``query_sums`` where the pairs of one class are the relevant ones; arguments and errors as
    ``class_sums``. In O((Q + G) D)."""
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
        ignored: pairs that do not count besides; None for none.

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
    """Blocks of (n,) queries and (n,) rows of the pairs that do not count, each once.

    ``own``: (Q,) gallery row that is the query's own item, or -1.
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
    """Of pairs that do not count: (C,) summed cosine and (C,) number of those of one class, (M,)
    cosines of those of two, and their (M,) queries and (M,) rows.

    ``at``: (Q,) place of each query's class among the C; ``labels``: of queries and gallery rows.
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
    """(n,) where each label stands in the sorted ``codes``; ``len(codes)`` where it does not."""
    at = np.searchsorted(codes, labels)
    at[at == len(codes)] = 0
    known = codes[at] == labels if len(codes) else np.zeros(len(labels), dtype=bool)
    return np.where(known, at, len(codes))


def sums_by_position(features: Features, position: Codes, n: int) -> tuple[Floats, Codes]:
    """(n, D) float64 sums and (n,) counts of the rows at each position.

    Rows are sorted by position; then the first row of every position is added at once, the second
    of every position that has one, and so on; positions with many rows are summed one by one.
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
