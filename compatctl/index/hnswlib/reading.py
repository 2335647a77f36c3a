"""Rows and keys of an hnswlib file, read without hnswlib and without loading the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compatctl.core.arrays import Keys, Vectors
from compatctl.index.hnswlib.checks import check_layout
from compatctl.index.hnswlib.layout import StoredRows
from compatctl.index.hnswlib.params import HnswParams


def read_all(
    path: Path,
    params: HnswParams,
    keys: Keys,
    *,
    prevalidated: bool = False,
    extra_capacity: int = 0,
) -> Vectors:
    """All N rows (N, D) float32 of a file, in the order of ``keys`` (N,).

    ``extra_capacity`` appends that many rows for the caller to fill. The file is read once, front
    to back: memory is that of the rows and two integers a row. ``prevalidated`` as in
    ``HnswIndex.load``.

    Raises:
        InputError: the file is missing or must not be read.
        DamagedError: it is damaged, not of these parameters, or its keys are not ``keys``.
    """
    stored = open_stored(path, params, len(keys), prevalidated=prevalidated)
    row_of = np.empty(len(keys), np.int64)
    row_of[stored.require(np.asarray(keys, np.uint64))] = np.arange(len(keys))
    rows = np.empty((len(keys) + extra_capacity, params.dim), np.float32)
    for first, block in stored.blocks():
        rows[row_of[first : first + len(block)]] = block["row"]
    return rows


def read_some(path: Path, params: HnswParams, count: int, keys: Keys) -> Vectors:
    """The rows (n, D) float32 of some ``keys`` (n,) of a file of ``count`` rows.

    The file's layout is not checked.

    Raises:
        DamagedError: the file is not of these parameters and number of rows, or lacks a key.
    """
    stored = open_stored(path, params, count, prevalidated=True)
    return stored.rows(stored.require(np.asarray(keys, np.uint64)))


def read_keys(path: Path, params: HnswParams, count: int, *, prevalidated: bool = True) -> Keys:
    """Every key (N,) of a file of ``count`` rows, in the order of the rows.

    Only the header is checked, unless ``prevalidated`` is false: then as ``HnswIndex.load`` does.

    Raises:
        DamagedError: the file is not of these parameters and number of rows, or is damaged.
    """
    return open_stored(path, params, count, prevalidated=prevalidated).read_keys()


def count_deleted(path: Path) -> int:
    """The number of rows of a file that are marked deleted; only its header is checked.

    Raises:
        InputError, DamagedError: as ``read_header``.
    """
    stored = StoredRows.open(path)
    return sum(int((block["deleted"] & 1).sum()) for _, block in stored.blocks())


def open_stored(
    path: Path, params: HnswParams, count: int | None, *, prevalidated: bool = False
) -> StoredRows:
    """Map a file of these parameters and ``count`` rows (None: any), checked unless
    ``prevalidated``."""
    stored = StoredRows.open(path)
    params.check_header(stored.header, count, path)
    if not prevalidated:
        check_layout(stored)
    return stored
