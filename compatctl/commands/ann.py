"""Does the real index find what is nearest to the new queries, and at which ef?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compatctl.commands.gallery import DeployedGallery
from compatctl.commands.trial import Floats
from compatctl.core.nearest import search
from compatctl.index import shares_found, tune_ef
from compatctl.report import AnnHealth

K = 10
TARGET = 0.95
MAX_QUERIES = 1000


def ann_health(gallery: DeployedGallery, queries: Floats) -> tuple[AnnHealth, NDArray[np.float64]]:
    """ANN recall@10 of at most 1,000 queries (Q, D), evenly taken, against exact search.

    ``ef_needed`` is the smallest ef of the sweep that reaches the target, never under today's.
    Beside it (Q,): the share that each query finds at that ef, NaN where it was not taken.
    """
    step = max(1, len(queries) // MAX_QUERIES)
    taken = np.arange(0, len(queries), step)[:MAX_QUERIES]
    sample = queries[taken]
    keys = gallery.index.keys()
    k = min(K, len(keys))
    exact = keys[search(sample, gallery.index.vectors(), k).rows]
    now = gallery.manifest.index.ef_search
    shares = shares_found(gallery.index, sample, exact, k, now)
    recall_now = float(shares.mean())
    tuned = tune_ef(gallery.index, sample, exact, k, TARGET)
    needed = now if recall_now >= TARGET or tuned.ef <= now else tuned.ef
    found = np.full(len(queries), np.nan)
    if needed != now:
        shares = shares_found(gallery.index, sample, exact, k, needed)
    found[taken] = shares
    health = AnnHealth(
        k=k,
        ef_now=now,
        recall_now=recall_now,
        ef_needed=needed,
        recall_needed=float(np.nanmean(found)),
        target=TARGET,
        n_queries=len(sample),
        sweep=tuned.sweep,
    )
    return health, found
