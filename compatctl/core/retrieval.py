"""Exact nearest-neighbour search by cosine, and what retrieval quality follows from it.

Shapes: ``Q`` queries, ``G`` gallery rows, ``D`` dimensions. Features are unit rows in any float
type, labels are integer class codes. ``own_row[i]`` is the gallery row of query ``i``'s own item,
or -1 where the gallery does not hold it; that row is never an answer to that query.

Two definitions are worth stating, because libraries differ in them. *recall@k* is the hit rate
(CMC@k): the share of queries with an item of their class among the first k, which is what the
papers on compatible features report (BCT, arXiv 2003.11942; CVPR 2024, arXiv 2405.02581). *mAP@k*
divides a query's sum of precisions by ``min(R, k)``, R being the gallery items of its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.compatibility import (
    NORM_TOLERANCE,
    Codes,
    Features,
    as_features,
    as_labels,
    as_own_row,
    check_dimensions,
    check_positive,
)
from compatctl.errors import InputError

_CELLS = 2**24
"""Scores held at once while searching: 64 MiB of float32, whatever the size of the gallery."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Found rows, best first. Where fewer than k exist: row -1 with score -inf."""

    rows: NDArray[np.int64]
    """(Q, k) gallery rows, or -1."""
    scores: NDArray[np.float32]
    """(Q, k) cosines in [-1, 1], not increasing along a row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval:
    """Retrieval quality of one query model on one gallery."""

    n_queries: int
    """Q: every query asked, with or without an item of its class to find."""
    n_without_match: int
    """Queries with R = 0: nothing could be found, so they are in no mean."""
    recall: dict[int, float]
    """k -> hit rate in [0, 1]; NaN where every query has R = 0."""
    map_at_k: float
    """Mean average precision in [0, 1]; NaN where every query has R = 0."""
    map_k: int
    """The k of ``map_at_k``."""
    hit1: NDArray[np.bool_]
    """(Q,) whether the first answer is of the query's class."""
    average_precision: NDArray[np.float64]
    """(Q,) in [0, 1]; NaN where R = 0."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(Q,) the queries that are in the means: those with R > 0."""
        return ~np.isnan(self.average_precision)

    @property
    def n_counted(self) -> int:
        """How many queries are in the means."""
        return self.n_queries - self.n_without_match


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Queries whose first answer changed between right and wrong; shares of ``n``, in [0, 1]."""

    negative: float
    """Right before, wrong now (the negative flip rate); NaN where ``n`` is 0."""
    positive: float
    """Wrong before, right now; NaN where ``n`` is 0."""
    n: int


def search(
    queries: Features,
    gallery: Features,
    k: int,
    own_row: Codes | None = None,
    block: int = 1024,
) -> Neighbours:
    """The k nearest gallery rows of each query, exactly.

    Equal scores go to the lower row, also across the k-th place. A float32 matrix product may
    score two identical rows differently in its last bit, so it only chooses candidates, with a
    margin wider than its rounding error; these are scored again in float64 and ranked by that
    score rounded to float32. The answer therefore does not depend on ``block``.

    Args:
        queries: (Q, D) unit rows.
        gallery: (G, D) unit rows, G >= 0.
        k: how many, >= 1; may exceed G.
        own_row: (Q,) gallery row that is the query's own item, or -1; None for none.
        block: queries scored at once, >= 1; fewer when the gallery is large.

    Raises:
        InputError: wrong shapes, NaN or infinite or non-unit rows, k < 1, rows out of range.
    """
    queries, gallery = as_features(queries, "queries"), as_features(gallery, "gallery")
    check_dimensions(queries, gallery, "queries", "gallery")
    own = as_own_row(own_row, len(queries), len(gallery))
    check_positive(k, "k")
    check_positive(block, "block")
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for i, candidates in _candidates(queries, gallery, k, own, block):
        # The product of two float32 numbers is exact in float64, and a sum along a contiguous
        # axis adds in the same order for every row: identical rows get identical scores.
        products = gallery[candidates].astype(np.float64) * queries[i].astype(np.float64)
        exact = products.sum(axis=1).astype(np.float32)
        order = np.lexsort((candidates, -exact))[:k]
        rows[i, : len(order)] = candidates[order]
        scores[i, : len(order)] = exact[order]
    return Neighbours(rows=rows, scores=scores)


def _candidates(
    queries: Features, gallery: Features, k: int, own: Codes, block: int
) -> Iterator[tuple[int, Codes]]:
    """For each query, rows that certainly include its k best and all ties with the k-th."""
    G, D = gallery.shape
    if G == 0:
        return
    # Either of two scores may be off by D unit roundoffs (rows have length 1), plus the rounding
    # of the float64 score to float32.
    margin = np.float32((2 * D + 4) * 2.0**-24 * (1 + NORM_TOLERANCE) ** 2)
    columns = np.ascontiguousarray(gallery, dtype=np.float32).T
    step = max(1, min(block, _CELLS // G))
    for start in range(0, len(queries), step):
        scores = np.asarray(queries[start : start + step], dtype=np.float32) @ columns
        mine = own[start : start + step]
        has_own = np.flatnonzero(mine >= 0)
        scores[has_own, mine[has_own]] = -np.inf
        if k < G:
            worst = np.partition(scores, G - k, axis=1)[:, G - k] - margin
        else:
            worst = np.full(len(scores), -np.inf, dtype=np.float32)
        for offset, (row, least) in enumerate(zip(scores, worst, strict=True)):
            yield start + offset, np.flatnonzero((row >= least) & (row > -np.inf))


def evaluate(
    neighbours: Neighbours,
    query_labels: Codes,
    gallery_labels: Codes,
    own_row: Codes | None = None,
    *,
    ks: Sequence[int] = (1, 5),
    map_k: int | None = None,
) -> Retrieval:
    """Recall@k and mAP@k of what ``search`` found.

    R, the number of gallery items of a query's class, excludes the query's own row. Queries with
    R = 0 are left out of every mean and counted. A query's average precision at k is
    ``sum_{r <= k, hit at r} precision@r / min(R, k)``.

    Args:
        neighbours: found with the same ``own_row``; at least ``max(ks)`` and ``map_k`` columns,
            or as many as the gallery has rows.
        query_labels: (Q,) integer codes.
        gallery_labels: (G,) integer codes.
        own_row: (Q,) as given to ``search``.
        ks: the k of each recall, each >= 1.
        map_k: the k of mAP, >= 1; None for ``min(100, G)``.

    Raises:
        InputError: wrong shapes or types, too few columns, an own row among the found ones, the
            same row found twice for one query.
    """
    query_labels, gallery_labels = _labels(neighbours, query_labels, gallery_labels)
    own = as_own_row(own_row, len(query_labels), len(gallery_labels))
    if map_k is None:
        map_k = max(1, min(100, len(gallery_labels)))
    _check_columns(neighbours, (*ks, map_k), len(gallery_labels))
    _check_rows(neighbours.rows, own)
    hits = _hits(neighbours.rows, query_labels, gallery_labels)
    relevant = _relevant(query_labels, gallery_labels, own)
    counted = relevant > 0
    precisions = _average_precision(hits[:, :map_k], relevant, map_k)
    return Retrieval(
        n_queries=len(query_labels),
        n_without_match=int((~counted).sum()),
        recall={int(k): _mean(hits[counted, :k].any(axis=1)) for k in ks},
        map_at_k=_mean(precisions[counted]),
        map_k=map_k,
        hit1=hits[:, 0],
        average_precision=precisions,
    )


def cmc(
    neighbours: Neighbours,
    query_labels: Codes,
    gallery_labels: Codes,
    own_row: Codes | None = None,
    max_k: int = 10,
) -> NDArray[np.float64]:
    """The cumulative match curve: (max_k,) hit rates in [0, 1] at k = 1 .. max_k, not decreasing.

    Queries with R = 0 are left out; NaN where that leaves none.

    Raises:
        InputError: as ``evaluate``.
    """
    check_positive(max_k, "max_k")
    ks = range(1, max_k + 1)
    recall = evaluate(neighbours, query_labels, gallery_labels, own_row, ks=ks, map_k=1).recall
    return np.array([recall[k] for k in ks], dtype=np.float64)


def flips(
    old_hit1: NDArray[np.bool_],
    new_hit1: NDArray[np.bool_],
    counted: NDArray[np.bool_] | None = None,
) -> Flips:
    """Shares of the same queries that went from right to wrong, and from wrong to right.

    Args:
        old_hit1: (Q,) bool, the first answer was right with the old query model.
        new_hit1: (Q,) bool, the same queries with the new one.
        counted: (Q,) bool, ``Retrieval.counted``; None for all queries.

    Raises:
        InputError: another type than bool, or different lengths.
    """
    old, new = _as_bools(old_hit1, "old_hit1"), _as_bools(new_hit1, "new_hit1")
    kept = np.ones(len(old), dtype=bool) if counted is None else _as_bools(counted, "counted")
    if not len(old) == len(new) == len(kept):
        raise InputError(
            "flips compare the same queries, "
            f"got {len(old)} old, {len(new)} new and {len(kept)} counted"
        )
    return Flips(
        negative=_mean((old & ~new)[kept]), positive=_mean((~old & new)[kept]), n=int(kept.sum())
    )


def ann_recall(found: NDArray[np.integer[Any]], exact: NDArray[np.integer[Any]]) -> float:
    """Mean share of the exact neighbours that an approximate index found, in [0, 1].

    Not recall@k: it compares an index with exact search on the same features, and knows no class.

    Args:
        found: (Q, k) rows or keys from the index, any integer type; -1 means none.
        exact: (Q, k) the same from exact search; a query with none is left out.

    Raises:
        InputError: other shapes or types, or no exact neighbour at all.
    """
    found, exact = _as_keys(found, "found"), _as_keys(exact, "exact")
    if len(found) != len(exact):
        raise InputError(f"found has {len(found)} queries, exact has {len(exact)}")
    shares = []
    for mine, truth in zip(found, exact, strict=True):
        wanted = {key for key in truth.tolist() if key >= 0}
        if wanted:
            shares.append(len(wanted.intersection(mine.tolist())) / len(wanted))
    if not shares:
        raise InputError("ANN recall needs at least one query with an exact neighbour, got none")
    return float(np.mean(shares))


def _labels(neighbours: Neighbours, queries: Codes, gallery: Codes) -> tuple[Codes, Codes]:
    return (
        as_labels(queries, len(neighbours.rows), "query_labels"),
        as_labels(gallery, len(gallery), "gallery_labels"),
    )


def _check_columns(neighbours: Neighbours, ks: Sequence[int], G: int) -> None:
    for k in ks:
        check_positive(k, "k")
    columns = neighbours.rows.shape[1]
    if columns < min(max(ks), G):
        raise InputError(
            f"recall or mAP at {max(ks)} needs as many neighbours a query, got {columns}",
            tip=f"search with k={max(ks)} or more",
        )
    if neighbours.rows.size and not -1 <= neighbours.rows.min() <= neighbours.rows.max() < G:
        raise InputError(f"neighbours must be gallery rows 0 to {G - 1} or -1")


def _check_rows(rows: Codes, own: Codes) -> None:
    if ((rows == own[:, None]) & (rows >= 0)).any():
        raise InputError(
            "a query found its own item", tip="search and evaluate with the same own_row"
        )
    ordered = np.sort(rows, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise InputError("the same gallery row was found twice for one query")


def _hits(rows: Codes, query_labels: Codes, gallery_labels: Codes) -> NDArray[np.bool_]:
    if len(gallery_labels) == 0:
        return np.zeros(rows.shape, dtype=bool)
    hits: NDArray[np.bool_] = gallery_labels[rows] == query_labels[:, None]
    return hits & (rows >= 0)


def _relevant(query_labels: Codes, gallery_labels: Codes, own: Codes) -> Codes:
    """(Q,) R: gallery items of the query's class, its own one not among them."""
    ordered = np.sort(gallery_labels)
    first = np.searchsorted(ordered, query_labels, side="left")
    last = np.searchsorted(ordered, query_labels, side="right")
    mine = _hits(own[:, None], query_labels, gallery_labels)[:, 0]
    return (last - first - mine).astype(np.int64)


def _average_precision(hits: NDArray[np.bool_], R: Codes, k: int) -> NDArray[np.float64]:
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    total = (precision * hits).sum(axis=1)
    return np.where(R > 0, total / np.maximum(np.minimum(R, k), 1), np.nan)


def _mean(values: Any) -> float:
    return float(np.mean(values)) if np.size(values) else float("nan")


def _as_bools(array: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
    array = np.asarray(array)
    if array.ndim != 1 or array.dtype != np.bool_:
        raise InputError(f"{name} must be (Q,) bool, got {array.dtype} {array.shape}")
    return array


def _as_keys(array: NDArray[np.integer[Any]], name: str) -> NDArray[np.integer[Any]]:
    array = np.asarray(array)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be (Q, k) integers, got {array.dtype} {array.shape}")
    return array
