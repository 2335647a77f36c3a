"""The ef_search that a model's queries need: that of another model may be too low or too high."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Floats, Keys, Vectors
from compatctl.errors import InputError
from compatctl.index.protocol import VectorIndex

_TIE = 1e-5
"""Rows whose cosines differ by less are equally near."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EfTuning:
    """The chosen ``ef``, and the ``sweep`` of (ef, recall@k) that led to it."""

    ef: int
    sweep: tuple[tuple[int, float], ...]


class AnnRecalls:
    """ANN recall@k of an index at one ef after another.

    ``exact_keys`` (Q, k or more) are the true nearest rows of ``queries`` (Q, D), nearest first. A
    result counts when it is as near as the k-th true one, so ties cost nothing.

    A query of which all k are found is not searched again at a larger ef, which would find them
    too. A search of an HNSW graph takes the nearest row that it has not expanded yet. What a
    smaller ef leaves out is farther than the ef rows it holds, so a larger ef expands the same rows
    in the same order, and goes on where the smaller one ends.

    Raises:
        InputError: there is no query.
    """

    def __init__(self, index: VectorIndex, queries: Vectors, exact_keys: Keys, k: int) -> None:
        if len(queries) == 0:
            raise InputError("ef cannot be tuned without queries")
        self._index, self._queries, self._k = index, queries, min(k, len(index))
        farthest = index.vectors(np.asarray(exact_keys)[:, self._k - 1])
        self._kth = np.einsum("qd,qd->q", queries, farthest)
        self._measured: dict[int, Floats] = {}

    def per_query(self, ef: int) -> Floats:
        """The share (Q,) of the k nearest rows that a search with ``ef`` finds."""
        if ef not in self._measured:
            smaller = max((tried for tried in self._measured if tried < ef), default=None)
            found = np.zeros(len(self._queries)) if smaller is None else self._measured[smaller]
            left = np.flatnonzero(found < 1)
            _, scores = self._index.search(self._queries[left], self._k, ef)
            self._measured[ef] = found.copy()
            self._measured[ef][left] = (scores >= self._kth[left, None] - _TIE).mean(axis=1)
        return self._measured[ef]

    def mean(self, ef: int) -> float:
        """The mean of ``per_query``."""
        return float(self.per_query(ef).mean())

    def tune(self, target: float, start: int = 0) -> EfTuning:
        """The first ef of s, 2s, 4s, ... that reaches ``target``; the best one if none.

        s is ``start``, or k if that is larger. The last ef is the index's ``max_ef``.
        """
        tried, ef = [], min(max(self._k, start), self._index.max_ef)
        while True:
            tried.append(ef)
            if self.mean(ef) >= target or ef >= self._index.max_ef:
                break
            ef = min(2 * ef, self._index.max_ef)
        sweep = tuple((ef, self.mean(ef)) for ef in tried)
        best, _ = max(sweep, key=lambda point: (point[1], -point[0]))
        return EfTuning(ef=best, sweep=sweep)
