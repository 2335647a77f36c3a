"""Recall of the deployed index against exact search, and the ef that reaches the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Vectors
from compatctl.core.nearest import exact_search
from compatctl.deployment.gallery import DeployedGallery
from compatctl.evaluation.gallery import EvaluationGallery
from compatctl.index import AnnRecalls, VectorIndex
from compatctl.report import AnnRecall

K = 10
TARGET = 0.95
MAX_QUERIES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnQueries:
    """Queries (q, D) and the keys (q, k) of their exact nearest rows."""

    queries: Vectors
    nearest: NDArray[np.uint64]

    @classmethod
    def of(cls, queries: Vectors, rows: Vectors, keys: NDArray[np.uint64]) -> Self:
        """The queries (q, D), searched exactly in the rows (N, D) that are under ``keys`` (N,)."""
        k = min(K, len(keys))
        return cls(queries=queries, nearest=keys[exact_search(queries, rows, k).rows])


def sample_queries(n: int) -> NDArray[np.int64]:
    """At most 1,000 of n queries, evenly spaced."""
    return np.arange(0, n, max(1, n // MAX_QUERIES))[:MAX_QUERIES]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnCheck:
    """At most 1,000 of ``n`` queries, ``taken``, and their exact nearest rows of the store."""

    n: int
    taken: NDArray[np.int64]
    queries: AnnQueries

    @classmethod
    def of(cls, gallery: DeployedGallery, searched: EvaluationGallery, queries: Vectors) -> Self:
        """The queries (Q, D), searched exactly in the store's rows; the index is not loaded."""
        taken = sample_queries(len(queries))
        rows = searched.vectors[: searched.n_stored]
        ann_queries = AnnQueries.of(queries[taken], rows, np.asarray(gallery.catalog.keys))
        return cls(n=len(queries), taken=taken, queries=ann_queries)

    def measure(self, gallery: DeployedGallery) -> tuple[AnnRecall, NDArray[np.float64]]:
        """``measure_ann_recall`` of the deployed index.

        Beside it (Q,): the recall of each query at the ef needed, NaN if it was not taken.
        """
        ef = gallery.manifest.index.ef_search
        recall, by_query = measure_ann_recall(gallery.index, ef, self.queries)
        every = np.full(self.n, np.nan)
        every[self.taken] = by_query
        return recall, every


def measure_ann_recall(
    index: VectorIndex, ef: int, queries: AnnQueries
) -> tuple[AnnRecall, NDArray[np.float64]]:
    """ANN recall@10 of an index against exact search, at the current ``ef`` and at the one needed.

    ``ef_needed`` is the smallest ef of the sweep that reaches the target, never below ``ef``.
    Beside it (q,): the recall of each query at that ef.
    """
    vectors, exact = queries.queries, queries.nearest
    k = exact.shape[1]
    recalls = AnnRecalls(index, vectors, exact, k)
    enough = recalls.mean(ef) >= TARGET
    tuned = recalls.tune(TARGET, start=0 if enough else ef)  # what is less than ef finds less
    needed = ef if enough else max(ef, tuned.ef)
    recall = AnnRecall(
        k=k,
        ef_current=ef,
        recall_current=recalls.mean(ef),
        ef_needed=needed,
        recall_needed=recalls.mean(needed),
        target=TARGET,
        n_queries=len(vectors),
        sweep=tuned.sweep,
    )
    return recall, recalls.per_query(needed)
