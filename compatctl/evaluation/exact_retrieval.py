"""Every measure of a ranking by exact search, on whole galleries, parts of them and mixed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.nearest import (
    Neighbours,
    exact_search,
    exact_search_pieces,
    mixed_pieces,
    row_pieces,
)
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval, evaluate, evaluate_judged
from compatctl.evaluation.ground_truth import GroundTruth

MAP_K = 100
CMC_MAX_K = 10
"""Last rank of the match curve, and the neighbours that the rank bias counts."""


def measured_ks(policy: Policy) -> tuple[int, ...]:
    """Every k at which the ranking is measured."""
    ks = {1, 5, CMC_MAX_K, policy.hit_at, policy.wide_hit_at, *ranking_ks(policy)}
    return tuple(sorted(ks))


def ranking_ks(policy: Policy) -> tuple[int, int, int]:
    """The k of nDCG, of MRR and of recall."""
    return policy.ndcg_at, policy.mrr_at, policy.recall_at


def retrieval(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, ks: tuple[int, ...], map_k: int = MAP_K
) -> Retrieval:
    """Every measure of queries (Q, D) on a gallery (G, D)."""
    neighbours = nearest_rows(truth, queries, gallery, ks, map_k)
    return evaluate_neighbours(truth, neighbours, ks, map_k)


def nearest_rows(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, ks: tuple[int, ...], map_k: int = MAP_K
) -> Neighbours:
    """As many nearest gallery rows (G, D) of queries (Q, D) as ``retrieval`` needs."""
    k = max(_limit(map_k, truth), *ks)
    return exact_search(queries, gallery, k, truth.self_row, ignored=truth.ignored)


def evaluate_neighbours(
    truth: GroundTruth, neighbours: Neighbours, ks: tuple[int, ...], map_k: int = MAP_K
) -> Retrieval:
    """Every measure of the ranked rows of Q queries."""
    map_k = _limit(map_k, truth)
    if truth.judged is not None:
        n = len(truth.gallery_labels)
        judged = (*truth.judged, n)
        return evaluate_judged(neighbours, *judged, grades=truth.grades, ks=ks, map_k=map_k)
    return evaluate(
        neighbours,
        truth.query_labels,
        truth.gallery_labels,
        truth.self_row,
        ignored=truth.ignored,
        ks=ks,
        map_k=map_k,
    )


def retrieval_by_part(
    truth: GroundTruth,
    queries: Vectors,
    searched: Iterable[tuple[Bools, Vectors]],
    ks: tuple[int, ...],
    map_k: int = MAP_K,
) -> Retrieval:
    """``retrieval`` where each part of the queries (Q,) searches a gallery (G, D) of its own, of
    the same items."""
    k = max(_limit(map_k, truth), *ks)
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for part, gallery in searched:
        ignored = truth.ignored and truth.ignored.select_queries(part)
        nearest = exact_search(queries[part], gallery, k, truth.self_row[part], ignored=ignored)
        rows[part], scores[part] = nearest.rows, nearest.scores
    return evaluate_neighbours(truth, Neighbours(rows=rows, scores=scores), ks, map_k)


def retrieval_of_rows(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, rows: Rows, ks: tuple[int, ...]
) -> Retrieval:
    """``retrieval`` on the ascending ``rows`` (n,) of a gallery (G, D), copied block by block;
    ``truth`` is of these rows."""
    pieces, k = row_pieces(gallery, rows), max(_limit(MAP_K, truth), *ks)
    neighbours = exact_search_pieces(queries, pieces, k, truth.self_row, truth.ignored)
    return evaluate_neighbours(truth, neighbours, ks)


def mixed_retrieval(
    truth: GroundTruth,
    old: Vectors,
    new: Vectors,
    queries: Vectors,
    policy: Policy,
    *,
    rank: Callable[[Neighbours], Neighbours] | None = None,
) -> tuple[Retrieval, float]:
    """Retrieval on the mixed gallery: rows of ``new`` where ``truth.reembedded``, else of ``old``.

    Beside it the rank bias: the share of re-embedded rows among the first ten answers, less their
    share of the gallery; NaN for an empty gallery. Queries (Q, D), ``old`` and ``new`` (G, D) are
    unit rows; a row that is not taken is not read. ``rank`` orders what was found again.
    """
    mask, ks = truth.reembedded, measured_ks(policy)
    assert mask is not None
    pieces, k = mixed_pieces(old, new, mask), max(_limit(MAP_K, truth), *ks)
    neighbours = exact_search_pieces(queries, pieces, k, truth.self_row, truth.ignored)
    if rank is not None:
        neighbours = rank(neighbours)
    test = evaluate_neighbours(truth, neighbours, ks)
    if not len(old):
        return test, float("nan")
    first = neighbours.rows[:, :CMC_MAX_K]
    by_new = mask[first] & (first >= 0)
    bias = by_new.sum() / max(1, (first >= 0).sum()) - mask.sum() / max(1, len(mask))
    return test, float(bias)


def _limit(map_k: int, truth: GroundTruth) -> int:
    """At most every gallery row, at least one."""
    return max(1, min(map_k, len(truth.gallery_labels)))
