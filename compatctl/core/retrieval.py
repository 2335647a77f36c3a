"""Retrieval quality of search results: hit@k, recall@k, nDCG@k, MRR@k, mAP@k, negative flips.

Shapes: ``Q`` queries, ``G`` gallery rows, ``J`` judged pairs. ``self_row[i]`` is the gallery row of
query ``i``'s own item, or -1 if the gallery lacks it; that row is never an answer to that query.

With R the number of rows that are relevant to a query:

- *hit@k* (CMC@k, Success@k): whether one of the first k answers is relevant. Papers on compatible
  features call its mean recall@k (BCT, arXiv 2003.11942; CVPR 2024, arXiv 2405.02581).
- *recall@k*: the relevant rows among the first k, divided by R.
- *MRR@k*: one over the rank of the first relevant answer, 0 if it is not among the first k.
- *nDCG@k*: the sum of ``grade / log2(rank + 1)`` over the first k answers, divided by that of the
  best order. The gain is the grade itself, as in trec_eval; a class gives every item the grade 1.
- *mAP@k* divides a query's sum of precisions by ``min(R, k)``; trec_eval divides by R.

The means are over queries with R > 0; trec_eval also counts queries of which nothing is relevant.
Equal scores are in the order of the rows, as ``exact_search`` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

_CELLS = 2**22
"""Gains held at once: 32 MiB of float64."""

NEVER = np.iinfo(np.int64).max
"""``first_hit`` of a query without a hit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval:
    """Retrieval quality of one query model on one gallery."""

    n_queries: int
    """Q: all queries, with or without a match."""
    n_without_match: int
    """Queries with R = 0, which are in no mean."""
    hit_rate: dict[int, float]
    """k -> share of queries with a hit@k, in [0, 1]; NaN if every query has R = 0."""
    map_at_k: float
    """Mean average precision in [0, 1]; NaN if every query has R = 0."""
    map_k: int
    """The k of ``map_at_k``."""
    first_hit: Codes
    """(Q,) rank, from 1, of the first hit, or ``NEVER``."""
    average_precision: Floats
    """(Q,) in [0, 1]; NaN if R = 0."""
    recall: dict[int, Floats]
    """k -> (Q,) recall@k in [0, 1]; NaN if R = 0."""
    ndcg: dict[int, Floats]
    """k -> (Q,) nDCG@k in [0, 1]; NaN if R = 0."""
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

    def reciprocal_rank(self, k: int) -> Floats:
        """(Q,) one over the rank of the first hit, 0 if that is beyond k; NaN if R = 0."""
        inverse = np.where(self.first_hit <= k, 1.0 / self.first_hit, 0.0)
        return np.where(self.has_match, inverse, np.nan)

    def mean(self, values: Floats) -> float:
        """The mean of (Q,) values over the queries with a match; NaN if there is none."""
        return _mean(values[self.has_match])

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
    """Every measure of the result of ``exact_search``; items of the query's class are relevant.

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
        ks: the k of hit@k, recall@k and nDCG@k, each >= 1.
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
    relevant = _relevant(query_labels, gallery_labels, self_row)
    if ignored is not None:
        for query, row in ignored.blocks():
            same_class = query_labels[query] == gallery_labels[row]
            excluded = query[same_class & (self_row[query] != row)]
            relevant -= np.bincount(excluded, minlength=len(relevant))
    best = np.cumsum(_discounts(max(ks)))
    ideal = {k: best[np.minimum(np.maximum(relevant, 1), k) - 1] for k in ks}

    def gains(part: slice) -> Floats:
        hits = _hits(neighbours.rows[part], query_labels[part], gallery_labels)
        return hits.astype(np.float64)

    return _retrieval(neighbours, gains, relevant, ideal, map_k)


def evaluate_judged(
    neighbours: Neighbours,
    judged_query: Codes,
    judged_row: Codes,
    n_gallery: int,
    *,
    grades: Floats | None = None,
    ks: Sequence[int] = (1, 5),
    map_k: int | None = None,
) -> Retrieval:
    """``evaluate`` with relevance judged pair by pair instead of by class.

    ``judged_query`` and ``judged_row`` (J,) are query positions and gallery rows of the relevant
    pairs. No pair may appear twice, be a query's own row, or be ignored. ``grades`` (J,) are how
    relevant they are, finite and above 0, None for 1 each; they change nDCG alone. ``n_gallery`` is
    G; the rest is as in ``evaluate``.

    Raises:
        InputError: wrong shapes or types, positions out of range, a pair judged twice, a grade that
            is not above 0, too few columns.
    """
    Q, n = len(neighbours.rows), len(judged_query)
    query = as_labels(judged_query, n, "judged_query")
    row = as_labels(judged_row, n, "judged_row")
    if n and not (
        query.min() >= 0 and query.max() < Q and row.min() >= 0 and row.max() < n_gallery
    ):
        raise InputError(f"judgments must name queries below {Q} and rows below {n_gallery}")
    gain = _as_grades(grades, n)
    keys, first = np.unique(query * max(n_gallery, 1) + row, return_index=True)
    if len(keys) != n:
        raise InputError(f"each pair must be judged once, got {n - len(keys)} repeated judgments")
    if map_k is None:
        map_k = max(1, min(100, n_gallery))
    _check_columns(neighbours, (*ks, map_k), n_gallery)
    ideal = _ideal(query, gain, Q, ks)

    def gains(part: slice) -> Floats:
        answers = np.arange(Q)[part, None] * max(n_gallery, 1) + neighbours.rows[part]
        return np.where(neighbours.rows[part] >= 0, _grades_of(answers, keys, gain[first]), 0.0)

    return _retrieval(neighbours, gains, np.bincount(query, minlength=Q), ideal, map_k)


def _retrieval(
    neighbours: Neighbours,
    gains_of: Callable[[slice], Floats],
    relevant: Codes,
    ideal: dict[int, Floats],
    map_k: int,
) -> Retrieval:
    """From (Q, n) neighbours, (q, n) gains of a slice of the queries, (Q,) R, and k -> (Q,) DCG of
    the best order; block by block, so that few arrays of every query's answers are held."""
    Q, columns = neighbours.rows.shape
    step = max(1, _CELLS // max(columns, 1))
    blocks = [
        _ranked(gains_of(part), relevant[part], {k: best[part] for k, best in ideal.items()}, map_k)
        for part in (slice(start, start + step) for start in range(0, max(Q, 1), step))
    ]
    first = np.concatenate([block.first_hit for block in blocks])
    precisions = np.concatenate([block.average_precision for block in blocks])
    has_match = relevant > 0
    return Retrieval(
        n_queries=Q,
        n_without_match=int((~has_match).sum()),
        hit_rate={int(k): _mean(first[has_match] <= k) for k in ideal},
        map_at_k=_mean(precisions[has_match]),
        map_k=map_k,
        first_hit=first,
        average_precision=precisions,
        recall={int(k): np.concatenate([block.recall[k] for block in blocks]) for k in ideal},
        ndcg={int(k): np.concatenate([block.ndcg[k] for block in blocks]) for k in ideal},
        first_row=neighbours.rows[:, 0].copy(),
        first_score=neighbours.scores[:, 0].copy(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranked:
    """The per-query arrays of ``Retrieval`` for a block of queries."""

    first_hit: Codes
    average_precision: Floats
    recall: dict[int, Floats]
    ndcg: dict[int, Floats]


def _ranked(gains: Floats, relevant: Codes, ideal: dict[int, Floats], map_k: int) -> _Ranked:
    """From (q, n) gains of the answers in their order."""
    hits, has_match, discounts = gains > 0, relevant > 0, _discounts(gains.shape[1])

    def share(total: Floats | Codes, best: Floats | Codes) -> Floats:
        return np.where(has_match, total / np.where(has_match, best, 1), np.nan)

    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, NEVER)
    return _Ranked(
        first_hit=first.astype(np.int64),
        average_precision=_average_precision(hits[:, :map_k], relevant, map_k),
        recall={k: share(hits[:, :k].sum(axis=1), relevant) for k in ideal},
        ndcg={k: share(gains[:, :k] @ discounts[:k], best) for k, best in ideal.items()},
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
            f"a measure at {max(ks)} needs that many neighbours per query, got {columns}",
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


def _discounts(n: int) -> Floats:
    """(n,) weights of the ranks 1 to n in a DCG."""
    return 1.0 / np.log2(np.arange(2, n + 2, dtype=np.float64))


def _grades_of(answers: Codes, keys: Codes, grades: Floats) -> Floats:
    """Grades of the answers, 0 without one; ``keys`` (J,) ascending, with ``grades`` (J,)."""
    if not len(keys):
        return np.zeros(answers.shape)
    position = np.minimum(np.searchsorted(keys, answers), len(keys) - 1)
    return np.where(keys[position] == answers, grades[position], 0.0)


def _ideal(query: Codes, grades: Floats, Q: int, ks: Sequence[int]) -> dict[int, Floats]:
    """k -> (Q,) the DCG@k of the judged grades (J,) in descending order; 0 without any."""
    order = np.lexsort((-grades, query))
    ordered, gain = query[order], grades[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    gain = gain / np.log2(rank + 2.0)
    return {
        k: np.bincount(ordered[rank < k], gain[rank < k], minlength=Q).astype(np.float64)
        for k in ks
    }


def _as_grades(grades: Floats | None, n: int) -> Floats:
    gain = np.ones(n) if grades is None else np.asarray(grades, dtype=np.float64)
    if gain.shape != (n,) or not (np.isfinite(gain) & (gain > 0)).all():
        raise InputError(f"grades must be {n} finite numbers above 0, got {gain[:5]}")
    return gain


def _mean(values: Any) -> float:
    return float(np.mean(values)) if np.size(values) else float("nan")


def _as_bools(array: Bools, name: str) -> Bools:
    array = np.asarray(array)
    if array.ndim != 1 or array.dtype != np.bool_:
        raise InputError(f"{name} must be (Q,) bool, got {array.dtype} {array.shape}")
    return array
