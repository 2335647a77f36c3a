"""Retrieval quality of search results: recall@k, mAP@k and negative flips.

Shapes: ``Q`` queries, ``G`` gallery rows. ``self_row[i]`` is the gallery row of query ``i``'s own
item, or -1 if the gallery lacks it; that row is never an answer to that query.

Libraries differ in two definitions. Here *recall@k* is the hit rate (CMC@k): the share of queries
with an item of their class among the first k, as in the papers on compatible features (BCT, arXiv
2003.11942; CVPR 2024, arXiv 2405.02581). *mAP@k* divides a query's sum of precisions by
``min(R, k)``, with R the number of gallery items of its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compatctl.core.arrays import (
    Bools,
    Codes,
    Floats,
    Scores,
    as_labels,
    as_self_row,
    check_positive,
)
from compatctl.core.ignored import Ignored
from compatctl.core.nearest import Neighbours
from compatctl.errors import InputError

NEVER = np.iinfo(np.int64).max
"""``first_hit`` of a query without a hit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval:
    """Retrieval quality of one query model on one gallery."""

    n_queries: int
    """Q: all queries, with or without a match."""
    n_without_match: int
    """Queries with R = 0, which are in no mean."""
    recall: dict[int, float]
    """k -> hit rate in [0, 1]; NaN if every query has R = 0."""
    map_at_k: float
    """Mean average precision in [0, 1]; NaN if every query has R = 0."""
    map_k: int
    """The k of ``map_at_k``."""
    first_hit: Codes
    """(Q,) rank, from 1, of the first hit, or ``NEVER``."""
    average_precision: Floats
    """(Q,) in [0, 1]; NaN if R = 0."""
    first_row: Codes | None = None
    """(Q,) gallery row of the first answer, right or wrong; -1 if there is none."""
    first_score: Scores | None = None
    """(Q,) cosine of that answer; -inf if there is none."""

    @property
    def has_match(self) -> Bools:
        """(Q,) queries with R > 0, which are in the means."""
        return ~np.isnan(self.average_precision)

    @property
    def hit1(self) -> Bools:
        """(Q,) whether the first answer is a hit."""
        return self.hit(1)

    def hit(self, k: int) -> Bools:
        """(Q,) whether one of the first k answers is a hit; ``k`` at most the columns searched."""
        return self.first_hit <= k

    @property
    def n_with_match(self) -> int:
        """Number of queries in the means."""
        return self.n_queries - self.n_without_match


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Shares of ``n`` queries whose first answer changed between right and wrong, in [0, 1]."""

    negative: float
    """Right before, wrong now (the negative flip rate); NaN if ``n`` is 0."""
    positive: float
    """Wrong before, right now; NaN if ``n`` is 0."""
    n: int


def evaluate(
    neighbours: Neighbours,
    query_labels: Codes,
    gallery_labels: Codes,
    self_row: Codes | None = None,
    *,
    ignored: Ignored | None = None,
    ks: Sequence[int] = (1, 5),
    map_k: int | None = None,
) -> Retrieval:
    """Recall@k and mAP@k of the result of ``exact_search``.

    R, the number of gallery items of a query's class, excludes its own row and the rows that it
    ignores. Queries with R = 0 are in no mean. A query's average precision at k is
    ``sum_{r <= k, hit at r} precision@r / min(R, k)``.

    Args:
        neighbours: searched with the same ``self_row`` and ``ignored``; at least ``max(ks)`` and
            ``map_k`` columns, or as many as the gallery has rows.
        query_labels: (Q,) integer codes.
        gallery_labels: (G,) integer codes.
        self_row: (Q,) as given to ``exact_search``.
        ignored: as given to ``exact_search``.
        ks: the k of each recall, each >= 1.
        map_k: the k of mAP, >= 1; None for ``min(100, G)``.

    Raises:
        InputError: wrong shapes or types, too few columns, an ignored or ``self_row``
            among the answers, a row twice for one query.
    """
    query_labels = as_labels(query_labels, len(neighbours.rows), "query_labels")
    gallery_labels = as_labels(gallery_labels, len(gallery_labels), "gallery_labels")
    self_row = as_self_row(self_row, len(query_labels), len(gallery_labels))
    if map_k is None:
        map_k = max(1, min(100, len(gallery_labels)))
    _check_columns(neighbours, (*ks, map_k), len(gallery_labels))
    _check_rows(neighbours.rows, self_row, ignored)
    hits = _hits(neighbours.rows, query_labels, gallery_labels)
    relevant = _relevant(query_labels, gallery_labels, self_row)
    if ignored is not None:
        for query, row in ignored.blocks():
            same_class = query_labels[query] == gallery_labels[row]
            excluded = query[same_class & (self_row[query] != row)]
            relevant -= np.bincount(excluded, minlength=len(relevant))
    return _retrieval(neighbours, hits, relevant, ks, map_k)


def evaluate_judged(
    neighbours: Neighbours,
    judged_query: Codes,
    judged_row: Codes,
    n_gallery: int,
    *,
    ks: Sequence[int] = (1, 5),
    map_k: int | None = None,
) -> Retrieval:
    """``evaluate`` with relevance judged pair by pair instead of by class.

    ``judged_query`` and ``judged_row`` (J,) are query positions and gallery rows of the relevant
    pairs. No pair may appear twice, be a query's own row, or be ignored. ``n_gallery`` is G; the
    rest is as in ``evaluate``.

    Raises:
        InputError: wrong shapes or types, positions out of range, a pair judged twice, too few
            columns.
    """
    Q, n = len(neighbours.rows), len(judged_query)
    query = as_labels(judged_query, n, "judged_query")
    row = as_labels(judged_row, n, "judged_row")
    if n and not (
        query.min() >= 0 and query.max() < Q and row.min() >= 0 and row.max() < n_gallery
    ):
        raise InputError(f"judgments must name queries below {Q} and rows below {n_gallery}")
    keys = np.unique(query * max(n_gallery, 1) + row)
    if len(keys) != n:
        raise InputError(f"each pair must be judged once, got {n - len(keys)} repeated judgments")
    if map_k is None:
        map_k = max(1, min(100, n_gallery))
    _check_columns(neighbours, (*ks, map_k), n_gallery)
    answers = np.arange(Q)[:, None] * max(n_gallery, 1) + neighbours.rows
    hits = np.isin(answers, keys) & (neighbours.rows >= 0)
    return _retrieval(neighbours, hits, np.bincount(query, minlength=Q), ks, map_k)


def _retrieval(
    neighbours: Neighbours, hits: Bools, relevant: Codes, ks: Sequence[int], map_k: int
) -> Retrieval:
    """From (Q, k) neighbours, (Q, k) hits and (Q,) R."""
    has_match = relevant > 0
    precisions = _average_precision(hits[:, :map_k], relevant, map_k)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, NEVER).astype(np.int64)
    return Retrieval(
        n_queries=len(hits),
        n_without_match=int((~has_match).sum()),
        recall={int(k): _mean(first[has_match] <= k) for k in ks},
        map_at_k=_mean(precisions[has_match]),
        map_k=map_k,
        first_hit=first,
        average_precision=precisions,
        first_row=neighbours.rows[:, 0].copy(),
        first_score=neighbours.scores[:, 0].copy(),
    )


def cmc(retrieval: Retrieval, max_k: int = 10) -> Floats:
    """The cumulative match curve: (max_k,) hit rates in [0, 1] at k = 1 .. max_k.

    Queries with R = 0 are left out; NaN if none is left. ``max_k`` must not exceed the columns
    searched.

    Raises:
        InputError: ``max_k`` is not a whole number >= 1.
    """
    check_positive(max_k, "max_k")
    first = retrieval.first_hit[retrieval.has_match]
    return np.array([_mean(first <= k) for k in range(1, max_k + 1)], dtype=np.float64)


def flips(old_hit1: Bools, new_hit1: Bools, has_match: Bools | None = None) -> Flips:
    """Shares of queries whose first answer went from right to wrong, and from wrong to right.

    ``old_hit1``, ``new_hit1`` and ``has_match`` (Q,) are as in ``Retrieval``; None: all queries.

    Raises:
        InputError: another type than bool, or different lengths.
    """
    old, new = _as_bools(old_hit1, "old_hit1"), _as_bools(new_hit1, "new_hit1")
    mask = np.ones(len(old), dtype=bool) if has_match is None else _as_bools(has_match, "has_match")
    if not len(old) == len(new) == len(mask):
        raise InputError(
            "flips compare the same queries, "
            f"got {len(old)} old, {len(new)} new and {len(mask)} has_match"
        )
    return Flips(
        negative=_mean((old & ~new)[mask]), positive=_mean((~old & new)[mask]), n=int(mask.sum())
    )


def _check_columns(neighbours: Neighbours, ks: Sequence[int], G: int) -> None:
    for k in ks:
        check_positive(k, "k")
    columns = neighbours.rows.shape[1]
    if columns < min(max(ks), G):
        raise InputError(
            f"recall or mAP at {max(ks)} needs that many neighbours per query, got {columns}",
            tip=f"search with k={max(ks)} or more",
        )
    if neighbours.rows.size and not -1 <= neighbours.rows.min() <= neighbours.rows.max() < G:
        raise InputError(f"neighbours must be gallery rows 0 to {G - 1} or -1")


def _check_rows(rows: Codes, self_row: Codes, ignored: Ignored | None) -> None:
    if ignored is not None and ignored.contains(rows).any():
        raise InputError(
            "an answer of a query is an item that it ignores",
            tip="search and evaluate with the same ignored",
        )
    if ((rows == self_row[:, None]) & (rows >= 0)).any():
        raise InputError(
            "an answer of a query is its own item", tip="search and evaluate with the same self_row"
        )
    ordered = np.sort(rows, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise InputError("a gallery row is twice among the answers of one query")


def _hits(rows: Codes, query_labels: Codes, gallery_labels: Codes) -> Bools:
    if len(gallery_labels) == 0:
        return np.zeros(rows.shape, dtype=bool)
    hits: Bools = gallery_labels[rows] == query_labels[:, None]
    return hits & (rows >= 0)


def _relevant(query_labels: Codes, gallery_labels: Codes, self_row: Codes) -> Codes:
    """(Q,) R: gallery items of the query's class, without its own."""
    ordered = np.sort(gallery_labels)
    first = np.searchsorted(ordered, query_labels, side="left")
    last = np.searchsorted(ordered, query_labels, side="right")
    self_hit = _hits(self_row[:, None], query_labels, gallery_labels)[:, 0]
    return (last - first - self_hit).astype(np.int64)


def _average_precision(hits: Bools, R: Codes, k: int) -> Floats:
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    total = (precision * hits).sum(axis=1)
    return np.where(R > 0, total / np.maximum(np.minimum(R, k), 1), np.nan)


def _mean(values: Any) -> float:
    return float(np.mean(values)) if np.size(values) else float("nan")


def _as_bools(array: Bools, name: str) -> Bools:
    array = np.asarray(array)
    if array.ndim != 1 or array.dtype != np.bool_:
        raise InputError(f"{name} must be (Q,) bool, got {array.dtype} {array.shape}")
    return array
