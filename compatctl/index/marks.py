"""Vectors of an index file, by their marks: 64 bits that say which row it is, without the row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Checksums, Keys, Vectors
from compatctl.index.layout import KeyLookup, StoredRows
from compatctl.index.params import HnswParams
from compatctl.index.readback import row_checksums


def read_rows(path: Path, params: HnswParams, count: int, keys: Keys) -> Vectors:
    """The rows (n, D) under ``keys`` (n,) in a file, which is not loaded.

    Raises:
        DamagedError: the file is not of these parameters and number of rows, or has no such key.
    """
    stored = StoredRows.open(path)
    params.expect(stored.header, count, path)
    return stored.rows(stored.find(keys))


def checksums_of(rows: Vectors) -> Checksums:
    """The mark (n,) uint64 of each row (n, D): equal rows have equal ones; two others have, of
    all, one chance in 2^63 or so."""
    return row_checksums(np.ascontiguousarray(rows, np.float32))


def find_checksums(
    path: Path, params: HnswParams, count: int, marks: Checksums, *, but: Keys | None = None
) -> NDArray[np.bool_]:
    """Which of the marks (n,) are of a row in the file, in one pass; rows under ``but`` (m,) are
    passed over.

    Raises:
        DamagedError: the file is not of these parameters and number of rows.
    """
    stored = StoredRows.open(path)
    params.expect(stored.header, count, path)
    found = np.zeros(len(marks), np.bool_)
    if not len(marks):
        return found
    order = np.argsort(marks, kind="stable")
    wanted, passed = marks[order], KeyLookup(np.zeros(0, np.uint64) if but is None else but)
    seen = np.zeros(0, np.uint64)
    for _, block in stored.blocks():
        here = row_checksums(block["row"].copy())[passed.find(block["key"].copy()) < 0]
        at = np.minimum(np.searchsorted(wanted, here), len(wanted) - 1)
        seen = np.union1d(seen, here[wanted[at] == here])
    found[order] = np.isin(wanted, seen)
    return found


def read_keys(path: Path, params: HnswParams, count: int) -> Keys:
    """Every key (N,) in a file, which is not loaded, in the order of the rows.

    Raises:
        DamagedError: the file is not of these parameters and number of rows.
    """
    stored = StoredRows.open(path)
    params.expect(stored.header, count, path)
    return stored.read_keys()
