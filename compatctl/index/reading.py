"""The rows of an index file in a caller's order, without the index: one array, nothing more."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compatctl.core.arrays import Keys, Vectors
from compatctl.index.checks import check_stored
from compatctl.index.layout import StoredRows, damaged_error
from compatctl.index.params import HnswParams


def read_all(
    path: Path,
    params: HnswParams,
    keys: Keys,
    *,
    prevalidated: bool = False,
    extra_capacity: int = 0,
) -> Vectors:
    """The rows (N, D) float32 of the N ``keys`` of a file, all of them, in their order.

    ``extra_capacity``: so many rows more at the end, for the caller to fill.

    The file is read once, from its beginning to its end; hnswlib is not used, so that memory is
    that of the rows and of two numbers a row. ``prevalidated`` as in ``HnswIndex.load``.

    Raises:
        InputError: the file is missing or must not be read.
        DamagedError: it is damaged, not of these parameters, or its keys are not ``keys``.
    """
    stored = StoredRows.open(path)
    params.expect(stored.header, len(keys), path)
    if not prevalidated:
        check_stored(stored)
    places = stored.find(np.asarray(keys, np.uint64))
    if (places < 0).any():
        missing = np.asarray(keys)[places < 0][0]
        raise damaged_error(path, f"there is no row under the key {missing}")
    row_of = np.empty(len(keys), np.int64)
    row_of[places] = np.arange(len(keys))
    found = np.empty((len(keys) + extra_capacity, params.dim), np.float32)
    for first, block in stored.blocks():
        found[row_of[first : first + len(block)]] = block["row"]
    return found
