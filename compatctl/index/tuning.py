"""The ef_search that a model's queries need: that of another model may be too low or too high."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Floats, Keys, Vectors
from compatctl.errors import InputError
from compatctl.index.protocol import VectorIndex

_TIE = 1e-5
"""Rows whose cosines differ by less are equally near."""


@dataclass(frozen=True, kw_only=True)
class EfTuning:
    """The chosen ``ef``, and the ``sweep`` of (ef, recall@k) that led to it."""

    ef: int
    sweep: tuple[tuple[int, float], ...]


def recall_per_query(
    index: VectorIndex, queries: Vectors, exact_keys: Keys, k: int, ef: int
) -> Floats:
    """ANN recall@k (Q,): the share of the k nearest rows that a search with ``ef`` finds.

    ``exact_keys`` (Q, k or more) are the true nearest rows of ``queries`` (Q, D), nearest first. A
    result counts when it is as near as the k-th true one, so ties cost nothing.
    """
    k = min(k, len(index))
    kth = np.einsum("qd,qd->q", queries, index.vectors(np.asarray(exact_keys)[:, k - 1]))
    _, scores = index.search(queries, k, ef)
    recall: Floats = (scores >= kth[:, None] - _TIE).mean(axis=1)
    return recall


def tune_ef(
    index: VectorIndex, queries: Vectors, exact_keys: Keys, k: int, target: float
) -> EfTuning:
    """The first ef of k, 2k, 4k, ..., N that reaches ``target`` recall@k; the best one if none.

    Raises:
        InputError: there is no query.
    """
    if len(queries) == 0:
        raise InputError("ef cannot be tuned without queries")
    sweep: list[tuple[int, float]] = []
    ef = min(k, len(index))
    while True:
        recall = float(recall_per_query(index, queries, exact_keys, k, ef).mean())
        sweep.append((ef, recall))
        if recall >= target or ef >= len(index):
            break
        ef = min(2 * ef, len(index))
    best, _ = max(sweep, key=lambda point: (point[1], -point[0]))
    return EfTuning(ef=best, sweep=tuple(sweep))
