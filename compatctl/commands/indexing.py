"""Items into an index: embedded and added in batches, so that their features are never all held."""

from __future__ import annotations

import numpy as np

from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.index import HnswIndex
from compatctl.progress import Progress, silent

AT_ONCE = 4096
"""Items that are embedded before they enter the index."""


def index_items(
    index: HnswIndex | None,
    encoder: Encoder,
    items: Dataset,
    *,
    first_key: int,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> tuple[list[int], tuple[str, ...]]:
    """Embed the items and add them under the keys from ``first_key`` on; in memory only.

    Without an index they are embedded and let go. Gives the rows of ``items`` that were embedded,
    in the order of their keys, and the ids of those whose image does not decode.

    Raises:
        InputError: an image does not decode (unless ``skip_bad``), or its row is not finite and of
            unit length; there are no keys left.
    """
    rows: list[int] = []
    bad: list[str] = []
    for start in range(0, len(items), AT_ONCE):
        part = np.arange(start, min(start + AT_ONCE, len(items)))
        done = encoder.embed(items.take(part), skip_bad=skip_bad)
        bad += [item.id for item in done.bad]
        if index is not None and len(done.rows):
            keys = np.arange(len(done.rows), dtype=np.uint64) + np.uint64(first_key + len(rows))
            index.add(done.features, keys)
        rows += part[done.rows].tolist()
        progress("items indexed", len(rows) + len(bad), len(items))
    return rows, tuple(bad)
