"""Does the real index find what is nearest to the new queries, and at which ef?"""

from __future__ import annotations

import numpy as np

from compatctl.commands.evaluation import Floats
from compatctl.commands.gallery import DeployedGallery
from compatctl.commands.report import AnnHealth
from compatctl.core.retrieval import search
from compatctl.index import tune_ef

K = 10
TARGET = 0.95
MAX_QUERIES = 1000


def ann_health(gallery: DeployedGallery, queries: Floats) -> AnnHealth:
    """ANN recall@10 of at most 1,000 queries (Q, D), evenly taken, against exact search.

    ``ef_needed`` is the smallest ef of the sweep that reaches the target, never under today's.
    """
    step = max(1, len(queries) // MAX_QUERIES)
    sample = queries[::step][:MAX_QUERIES]
    keys = gallery.index.keys()
    k = min(K, len(keys))
    exact = keys[search(sample, gallery.index.vectors(keys), k).rows]
    now = gallery.manifest.index.ef_search
    tuned = tune_ef(gallery.index, sample, exact, k, TARGET)
    sweep = {**dict(tuned.sweep), **dict(_at(gallery, sample, exact, k, now))}
    needed = now if sweep[now] >= TARGET else max(now, tuned.ef)
    return AnnHealth(
        k=k,
        ef_now=now,
        recall_now=sweep[now],
        ef_needed=needed,
        recall_needed=sweep[needed],
        target=TARGET,
        n_queries=len(sample),
    )


def _at(
    gallery: DeployedGallery, queries: Floats, exact: np.ndarray, k: int, ef: int
) -> tuple[tuple[int, float], ...]:
    found, _ = gallery.index.search(queries, k, ef)
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]
    return ((ef, float(np.mean(hits)) / k),)
