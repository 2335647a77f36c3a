"""Exact retrieval on the old, the new and the mixed gallery, by what is relevant to the queries."""

from __future__ import annotations

from collections.abc import Iterable, Sized

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
"""Places of the match curve, and neighbours that the rank bias looks at."""


def recall_ks(policy: Policy) -> tuple[int, ...]:
    """Every k at which recall is measured."""
    return tuple(sorted({1, 5, CMC_MAX_K, policy.recall_at, policy.wide_recall_at}))


def retrieval(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, ks: tuple[int, ...], map_k: int = MAP_K
) -> Retrieval:
    """recall@k and mAP of queries (Q, D) on a gallery (G, D), exactly."""
    map_k = max(1, min(map_k, len(gallery)))
    found = exact_search(queries, gallery, max(map_k, *ks), truth.self_row, ignored=truth.ignored)
    return _evaluate(truth, found, ks, map_k)


def retrieval_by_part(
    truth: GroundTruth,
    queries: Vectors,
    searched: Iterable[tuple[Bools, Vectors]],
    ks: tuple[int, ...],
    map_k: int = MAP_K,
) -> Retrieval:
    """The same where parts of the queries (Q,) search galleries (G, D) of the same items."""
    map_k = max(1, min(map_k, len(truth.gallery_labels)))
    k = max(map_k, *ks)
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for part, gallery in searched:
        ignored = truth.ignored and truth.ignored.select_queries(part)
        found = exact_search(queries[part], gallery, k, truth.self_row[part], ignored=ignored)
        rows[part], scores[part] = found.rows, found.scores
    return _evaluate(truth, Neighbours(rows=rows, scores=scores), ks, map_k)


def retrieval_of_rows(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, rows: Rows, ks: tuple[int, ...]
) -> Retrieval:
    """The same on some ``rows`` (n,), ascending, of a gallery (G, D), which are not copied at once;
    ``truth`` is of these rows."""
    map_k = max(1, min(MAP_K, len(rows)))
    pieces = row_pieces(gallery, rows)
    found = exact_search_pieces(queries, pieces, max(map_k, *ks), truth.self_row, truth.ignored)
    return _evaluate(truth, found, ks, map_k)


def exact_neighbours(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, policy: Policy
) -> Neighbours:
    k = max(_map_k(gallery), *recall_ks(policy))
    return exact_search(queries, gallery, k, truth.self_row, ignored=truth.ignored)


def score_neighbours(truth: GroundTruth, found: Neighbours, policy: Policy) -> Retrieval:
    return _evaluate(truth, found, recall_ks(policy), _map_k(truth.gallery_labels))


def _map_k(gallery: Sized) -> int:
    return max(1, min(MAP_K, len(gallery)))


def _evaluate(truth: GroundTruth, found: Neighbours, ks: tuple[int, ...], map_k: int) -> Retrieval:
    if truth.judged is not None:
        n = len(truth.gallery_labels)
        return evaluate_judged(found, *truth.judged, n, ks=ks, map_k=map_k)
    return evaluate(
        found,
        truth.query_labels,
        truth.gallery_labels,
        truth.self_row,
        ignored=truth.ignored,
        ks=ks,
        map_k=map_k,
    )


def mixed_retrieval(
    truth: GroundTruth, old: Vectors, new: Vectors, queries: Vectors, policy: Policy
) -> tuple[Retrieval, float]:
    """Quality on the gallery that has rows of ``new`` where ``half`` says so, else of ``old``, and
    the rank bias: the share of re-embedded rows among the first ten answers, less that of all.

    Queries (Q, D), ``old`` and ``new`` (G, D), unit rows; a row that is not taken is not read. Of
    an empty gallery the bias is NaN.
    """
    assert truth.reembedded is not None
    ks = recall_ks(policy)
    map_k = max(1, min(MAP_K, len(truth.reembedded)))
    pieces = mixed_pieces(old, new, truth.reembedded)
    found = exact_search_pieces(queries, pieces, max(map_k, *ks), truth.self_row, truth.ignored)
    if not len(old):
        return _evaluate(truth, found, ks, map_k), float("nan")
    first = found.rows[:, :CMC_MAX_K]
    by_new = truth.reembedded[first] & (first >= 0)
    bias = by_new.sum() / max(1, (first >= 0).sum()) - truth.reembedded.sum() / max(
        1, len(truth.reembedded)
    )
    return _evaluate(truth, found, ks, map_k), float(bias)
