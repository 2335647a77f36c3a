"""Scores of another engine from cosines and norms, for queries of length 1.

The inner product is ``c n`` and the squared L2 distance ``1 + n^2 - 2 c n``, with the cosine ``c``
of a query and a row, and the row's norm ``n`` before it was divided by it. Ranks are higher for
nearer rows in every similarity; a score is what the engine returns.
"""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import AnyFloats, Floats
from compatctl.core.similarity import Similarity


def rank_by_norms(similarity: Similarity, cosines: AnyFloats, norms: Floats) -> Floats:
    """What orders rows as the engine does, higher is nearer; arrays of one shape, or broadcast."""
    cosines = np.asarray(cosines, np.float64)
    if similarity == "cosine":
        return cosines + 0.0 * norms
    if similarity == "dot":
        return cosines * norms
    return 2.0 * cosines * norms - norms * norms


def highest_rank(
    similarity: Similarity, cosines: AnyFloats, least_norm: float, most_norm: float
) -> Floats:
    """The highest rank (Q,) of rows whose cosine is at most ``cosines`` (Q,)."""
    cosines = np.asarray(cosines, np.float64)
    best = np.clip(cosines, least_norm, most_norm)
    if similarity != "l2":
        best = np.where(cosines > 0.0, most_norm, least_norm)
    return rank_by_norms(similarity, cosines, best.astype(np.float64))


def engine_score(similarity: Similarity, ranks: Floats) -> Floats:
    """The engine's scores of ranks: L2 counts down to 0, the others upwards."""
    return 1.0 - ranks if similarity == "l2" else ranks
