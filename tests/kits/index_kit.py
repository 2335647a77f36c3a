"""Build an index in one call."""

from __future__ import annotations

import numpy as np

from compatctl.index import HnswIndex, HnswParams
from compatctl.progress import Progress, silent


def build_index(
    rows: np.ndarray,
    keys: np.ndarray,
    params: HnswParams,
    progress: Progress = silent,
    *,
    threads: int = 1,
) -> HnswIndex:
    """An index of unit rows (n, D), added in one batch."""
    index = HnswIndex.create(params, len(rows))
    index.add(rows, keys, progress, threads=threads)
    return index
