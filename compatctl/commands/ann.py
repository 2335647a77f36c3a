"""Does the real index find what is nearest to the new queries, and at which ef?"""

from __future__ import annotations

from compatctl.commands.evaluation import Floats
from compatctl.commands.gallery import DeployedGallery
from compatctl.commands.report import AnnHealth
from compatctl.core.retrieval import search
from compatctl.index import recall_at, tune_ef

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
    exact = keys[search(sample, gallery.index.vectors(), k).rows]
    now = gallery.manifest.index.ef_search
    recall_now = recall_at(gallery.index, sample, exact, k, now)
    tuned = tune_ef(gallery.index, sample, exact, k, TARGET)
    enough = recall_now >= TARGET or tuned.ef <= now
    return AnnHealth(
        k=k,
        ef_now=now,
        recall_now=recall_now,
        ef_needed=now if enough else tuned.ef,
        recall_needed=recall_now if enough else tuned.recall,
        target=TARGET,
        n_queries=len(sample),
    )
