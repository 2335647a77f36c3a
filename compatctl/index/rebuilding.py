"""A new index of a file's rows, some of them replaced or all mapped: built anew, not in place.

hnswlib replaces a row under its key in place (``updatePoint`` in hnswlib/hnswalg.h): the new row
takes the old one's level, its neighbours of one and two steps are linked again, and links that rows
further away keep to it stay. The graph then depends on its history, and rows can become unreachable
("Enhancing HNSW Index for Real-Time Updates: Addressing Unreachable Points and Performance
Degradation", arXiv 2407.07871); hnswlib's author would rather build anew (nmslib/hnswlib, issue
303). Measured on 3,500 rows of real features, half of them replaced (M 16, ef_construction 200):
ANN recall@10 at ef 16 is .966 after updates and .984 built anew, at ef 64 .9988 and .9990. With M 8
and ef_construction 50, once all rows had been updated, up to 6 no longer found themselves at ef
400; built anew, all did. An update costs about as much as four insertions, so that building anew is
slower only where fewer than one row in four is replaced.

It needs no more memory than the new index: rows of the old file are read in blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Keys, Vectors
from compatctl.errors import InputError
from compatctl.index.checks import check_stored, first_duplicate
from compatctl.index.hnsw import HnswIndex
from compatctl.index.layout import KeyLookup, StoredRows
from compatctl.index.params import HnswParams
from compatctl.progress import Progress, silent

_BLOCK = 2048

RowsAt = Callable[[NDArray[np.int64]], Vectors]
"""Positions (n,) among the replaced keys -> their new rows (n, D) float32, unit rows."""


def build_with_replacements(
    path: Path,
    params: HnswParams,
    count: int,
    *,
    keys: Keys,
    rows_at: RowsAt,
    progress: Progress = silent,
) -> HnswIndex:
    """A new index of the ``count`` rows in a file, with those of ``keys`` (n,) replaced.

    Every row keeps its key and its place in the order; with the same rows the bytes that ``save``
    writes are the same. The file's digest is the caller's to compare.

    Raises:
        InputError: there is no row of a key, or a key twice; a new row that is not finite or not
            of unit length; the file is missing.
        DamagedError: the file is damaged, or not of these parameters and number of rows.
        CompatError: there is not enough memory.
    """
    if (twice := first_duplicate(keys.copy())) is not None:
        raise InputError(f"the key {twice} is to be replaced twice")
    stored, order = _opened(path, params, count), KeyLookup(keys)
    if len(lost := keys[stored.find(keys) < 0]):
        raise InputError(f"the index has no row under the key {lost[0]}")

    def replaced(here: Keys, rows: Vectors) -> Vectors:
        at = order.find(here)
        if (new := at >= 0).any():
            rows[new] = rows_at(at[new])
        return rows

    return _built(stored, params, replaced, progress)


def build_mapped(
    path: Path,
    params: HnswParams,
    count: int,
    *,
    adapter: Callable[[Vectors], Vectors],
    dim: int,
    progress: Progress = silent,
) -> HnswIndex:
    """A new index of ``adapter`` of the ``count`` rows in a file: (n, D) in, (n, dim) unit rows
    out, in blocks. Every row keeps its key and its place in the order.

    Raises:
        InputError: a new row that is not finite or not of unit length; the file is missing.
        DamagedError, CompatError: as ``rebuilt``.
    """
    stored = _opened(path, params, count)
    return _built(stored, replace(params, dim=dim), lambda _, rows: adapter(rows), progress)


def count_deleted(path: Path) -> int:
    """How many rows of a file are marked deleted; nothing else of it is looked at but its header.

    Raises:
        InputError, DamagedError: as ``read_header``.
    """
    stored = StoredRows.open(path)
    return sum(int((block["deleted"] & 1).sum()) for _, block in stored.blocks())


def build_without_deleted(
    path: Path, params: HnswParams, progress: Progress = silent
) -> tuple[HnswIndex, Keys]:
    """A new index of the rows in a file that are not marked deleted, under their keys and in their
    order, and the keys (n,) of those that are.

    Raises:
        InputError: every row is marked deleted; the file is missing.
        DamagedError, CompatError: as ``rebuilt``.
    """
    stored = StoredRows.open(path)
    params.expect(stored.header, None, path)
    check_stored(stored, deleted=True)
    marked = np.concatenate([block["deleted"].astype(bool) for _, block in stored.blocks()])
    if marked.all():
        raise InputError(f"{path}: every row is marked deleted", tip="there is nothing to adopt")
    return _of_rows(stored, params, ~marked, progress), stored.keys[marked]


def build_without(
    path: Path,
    params: HnswParams,
    count: int,
    *,
    keys: Keys,
    progress: Progress = silent,
) -> HnswIndex:
    """A new index of the ``count`` rows in a file but for those of ``keys`` (n,), built anew.

    hnswlib's own deletion marks a row and keeps its numbers in the file; here they are not read.
    It takes as long as building the index does. The rows that stay keep key and order.

    Raises:
        InputError: there is no row of a key, a key twice, or no row stays; the file is missing.
        DamagedError, CompatError: as ``rebuilt``.
    """
    if (twice := first_duplicate(keys.copy())) is not None:
        raise InputError(f"the key {twice} is to be removed twice")
    stored = _opened(path, params, count)
    at = stored.find(keys)
    if len(lost := keys[at < 0]):
        raise InputError(f"the index has no row under the key {lost[0]}")
    if len(keys) >= count:
        raise InputError("no row would stay")
    stay = np.ones(count, np.bool_)
    stay[at] = False
    return _of_rows(stored, params, stay, progress)


def _opened(path: Path, params: HnswParams, count: int) -> StoredRows:
    stored = StoredRows.open(path)
    params.expect(stored.header, count, path)
    check_stored(stored)
    return stored


def _of_rows(
    stored: StoredRows, params: HnswParams, stay: NDArray[np.bool_], progress: Progress
) -> HnswIndex:
    """An index of those of the stored rows that ``stay`` (N,), in their order."""
    index = HnswIndex.begin(params, int(stay.sum()))
    for first, block in stored.blocks(most=_BLOCK):
        progress("building the index", first, len(stored))
        here = stay[first : first + len(block)]
        index.add(block["row"][here].copy(), block["key"][here].copy())
    progress("building the index", len(stored), len(stored))
    return index


def _built(
    stored: StoredRows,
    params: HnswParams,
    changed: Callable[[Keys, Vectors], Vectors],
    progress: Progress,
) -> HnswIndex:
    """An index of what ``changed`` makes of copies of the stored keys (n,) and rows (n, D)."""
    count = len(stored)
    index = HnswIndex.begin(params, count)
    for first, block in stored.blocks(most=_BLOCK):
        progress("building the index", first, count)
        here = block["key"].copy()
        index.add(changed(here, block["row"].copy()), here)
    progress("building the index", count, count)
    return index
