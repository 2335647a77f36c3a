"""Does the real index find what is nearest to the queries, and at which ef?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Vectors
from compatctl.core.nearest import exact_search
from compatctl.deployment.gallery import DeployedGallery
from compatctl.evaluation.searched_gallery import Searched
from compatctl.index import HnswIndex, shares_found, tune_ef
from compatctl.report import AnnRecall

K = 10
TARGET = 0.95
MAX_QUERIES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Queries (q, D) that are put to an index, and the keys (q, k) of their exact nearest rows."""

    queries: Vectors
    nearest: NDArray[np.uint64]

    @classmethod
    def of(cls, queries: Vectors, rows: Vectors, keys: NDArray[np.uint64]) -> Self:
        """The queries (q, D), searched exactly in the rows (N, D) that are under ``keys`` (N,)."""
        k = min(K, len(keys))
        return cls(queries=queries, nearest=keys[exact_search(queries, rows, k).rows])


def sample(n: int) -> NDArray[np.int64]:
    """At most 1,000 of n queries, evenly taken."""
    return np.arange(0, n, max(1, n // MAX_QUERIES))[:MAX_QUERIES]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnQueries:
    """At most 1,000 of Q queries, ``taken``, and their exact nearest rows of the store."""

    n: int
    taken: NDArray[np.int64]
    asked: Asked

    @classmethod
    def of(cls, gallery: DeployedGallery, searched: Searched, queries: Vectors) -> Self:
        """The queries (Q, D), searched exactly in the store's rows; the index is not loaded."""
        taken = sample(len(queries))
        rows = searched.vectors[: searched.n_stored]
        asked = Asked.of(queries[taken], rows, np.asarray(gallery.catalog.keys))
        return cls(n=len(queries), taken=taken, asked=asked)

    def ask(self, gallery: DeployedGallery) -> tuple[AnnRecall, NDArray[np.float64]]:
        """``health_of`` the deployed index. Beside it (Q,): the share that each query finds at the
        ef needed, NaN where it was not taken."""
        health, shares = health_of(gallery.index, gallery.manifest.index.ef_search, self.asked)
        found = np.full(self.n, np.nan)
        found[self.taken] = shares
        return health, found


def health_of(index: HnswIndex, now: int, asked: Asked) -> tuple[AnnRecall, NDArray[np.float64]]:
    """ANN recall@10 of an index against exact search, at the ef of now and at the one needed.

    ``ef_needed`` is the smallest ef of the sweep that reaches the target, never under ``now``.
    Beside it (q,): the share that each query finds at that ef.
    """
    sent, exact = asked.queries, asked.nearest
    k = exact.shape[1]
    shares = shares_found(index, sent, exact, k, now)
    recall_current = float(shares.mean())
    tuned = tune_ef(index, sent, exact, k, TARGET)
    needed = now if recall_current >= TARGET or tuned.ef <= now else tuned.ef
    if needed != now:
        shares = shares_found(index, sent, exact, k, needed)
    health = AnnRecall(
        k=k,
        ef_current=now,
        recall_current=recall_current,
        ef_needed=needed,
        recall_needed=float(shares.mean()),
        target=TARGET,
        n_queries=len(sent),
        sweep=tuned.sweep,
    )
    return health, shares
