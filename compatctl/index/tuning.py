"""Which ef_search the queries of a model need: it was tuned for another model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Keys, Vectors
from compatctl.errors import InputError
from compatctl.index.hnsw import HnswIndex

_TIE = 1e-5
"""Cosines that differ by less are of rows that are equally near."""


@dataclass(frozen=True, kw_only=True)
class EfTuning:
    """The chosen ``ef``, and the ``sweep`` of (ef, recall@k) that led to it."""

    ef: int
    sweep: tuple[tuple[int, float], ...]


def recall_per_query(
    index: HnswIndex, queries: Vectors, exact_keys: Keys, k: int, ef: int
) -> NDArray[np.float64]:
    """(Q,) share of the exact k nearest rows of each query that a search with ``ef`` finds.

    ``exact_keys`` (Q, k or more) are the true nearest of ``queries`` (Q, D), nearest first. A
    found row counts when it is as near as the k-th true one, so that ties cost nothing.
    """
    k = min(k, len(index))
    kth = np.einsum("qd,qd->q", queries, index.vectors(np.asarray(exact_keys)[:, k - 1]))
    _, scores = index.search(queries, k, ef)
    shares: NDArray[np.float64] = (scores >= kth[:, None] - _TIE).mean(axis=1)
    return shares


def recall_at(index: HnswIndex, queries: Vectors, exact_keys: Keys, k: int, ef: int) -> float:
    """ANN recall@k: the mean of ``recall_per_query``."""
    return float(recall_per_query(index, queries, exact_keys, k, ef).mean())


def tune_ef(
    index: HnswIndex, queries: Vectors, exact_keys: Keys, k: int, target: float
) -> EfTuning:
    """The first ef of k, 2k, 4k, ... that reaches ``target`` recall@k; N, or the best, if none.

    Raises:
        InputError: there is no query.
    """
    if len(queries) == 0:
        raise InputError("ef cannot be tuned without queries")
    sweep: list[tuple[int, float]] = []
    ef = min(k, len(index))
    while True:
        sweep.append((ef, recall_at(index, queries, exact_keys, k, ef)))
        if sweep[-1][1] >= target or ef >= len(index):
            break
        ef = min(2 * ef, len(index))
    best = max(sweep, key=lambda point: (point[1], -point[0]))
    return EfTuning(ef=best[0], sweep=tuple(sweep))
