"""New indexes from the rows of a file: some replaced, all mapped, or some left out.

hnswlib's update in place (``updatePoint``) keeps the old row's level and the links of rows further
away. The graph then depends on its history, and rows can become unreachable (arXiv 2407.07871;
nmslib/hnswlib, issue 303). Measured on 3,500 rows of real features, half of them replaced (M 16,
ef_construction 200): ANN recall@10 at ef 16 is .966 after updates and .984 built anew, at ef 64
.9988 and .9990. With M 8 and ef_construction 50, after an update of all rows up to 6 no longer
found themselves at ef 400; built anew, all did. An update costs about as much as four insertions,
so building anew is slower only where fewer than one row in four is replaced.

It needs no more memory than the new index: the old file is read in blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools, Keys, Rows, Vectors
from compatctl.errors import InputError
from compatctl.index.hnswlib.checks import check_layout
from compatctl.index.hnswlib.index import HnswIndex
from compatctl.index.hnswlib.layout import StoredRows
from compatctl.index.hnswlib.params import HnswParams
from compatctl.index.hnswlib.reading import open_stored
from compatctl.index.rows import KeyLookup, first_duplicate
from compatctl.progress import Progress, silent

RowsAt = Callable[[Rows], Vectors]
"""Positions (n,) among the replaced keys -> their new unit rows (n, D) float32."""


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

    Every row keeps its key and its place; the same rows give the same file. The caller compares
    the digest of the old file.

    Raises:
        InputError: there is no row of a key, or a key twice; a new row that is not finite or not
            of unit length; the file is missing.
        DamagedError: the file is damaged, or not of these parameters and number of rows.
        CompatError: there is not enough memory.
    """
    stored, lookup = open_stored(path, params, count), KeyLookup(keys)
    _find_all(stored, keys, "replaced")

    def replaced(_: int, block_keys: Keys, rows: Vectors) -> tuple[Keys, Vectors]:
        positions = lookup.find(block_keys)
        if (new := positions >= 0).any():
            rows[new] = rows_at(positions[new])
        return block_keys, rows

    return _build(stored, params, count, replaced, progress)


def build_replaced(
    path: Path,
    params: HnswParams,
    count: int,
    *,
    keys: Keys,
    rows_at: RowsAt,
    dim: int,
    progress: Progress = silent,
) -> HnswIndex:
    """A new index of the ``count`` keys in a file, each with another row, of ``dim`` dimensions.

    ``keys`` (count,) are all keys of the file. Every key keeps its place.

    Raises:
        InputError: there is no row of a key, or a key twice, or a row of another key; a new row
            that is not finite or not of unit length; the file is missing.
        DamagedError, CompatError: as ``build_with_replacements``.
    """
    stored, lookup = open_stored(path, params, count), KeyLookup(keys)
    if len(keys) != len(stored):
        raise InputError(f"{len(keys)} keys replace the rows of an index of {len(stored)}")
    _find_all(stored, keys, "replaced")

    def replaced(_: int, block_keys: Keys, __: Vectors) -> tuple[Keys, Vectors]:
        return block_keys, rows_at(lookup.find(block_keys))

    return _build(stored, replace(params, dim=dim), count, replaced, progress)


def build_mapped(
    path: Path,
    params: HnswParams,
    count: int,
    *,
    adapter: Callable[[Vectors], Vectors],
    dim: int,
    progress: Progress = silent,
) -> HnswIndex:
    """A new index of the ``count`` rows in a file, mapped by ``adapter`` in blocks.

    ``adapter`` takes rows (n, D) and returns unit rows (n, dim). Every row keeps its key and its
    place.

    Raises:
        InputError: a new row that is not finite or not of unit length; the file is missing.
        DamagedError, CompatError: as ``build_with_replacements``.
    """
    stored, mapped = open_stored(path, params, count), replace(params, dim=dim)
    return _build(stored, mapped, count, lambda _, keys, rows: (keys, adapter(rows)), progress)


def build_without_deleted(
    path: Path, params: HnswParams, progress: Progress = silent
) -> tuple[HnswIndex, Keys]:
    """A new index of the rows in a file that are not marked deleted, and the keys (n,) of the rest.

    The rows keep key and order.

    Raises:
        InputError: every row is marked deleted; the file is missing.
        DamagedError, CompatError: as ``build_with_replacements``.
    """
    stored = open_stored(path, params, None, prevalidated=True)
    check_layout(stored, deleted=True)
    deleted = np.concatenate([block["deleted"].astype(bool) for _, block in stored.blocks()])
    if deleted.all():
        raise InputError(f"{path}: every row is marked deleted", tip="there is nothing to adopt")
    return _build_kept(stored, params, ~deleted, progress), stored.keys[deleted]


def build_without(
    path: Path,
    params: HnswParams,
    count: int,
    *,
    keys: Keys,
    progress: Progress = silent,
) -> HnswIndex:
    """A new index of the ``count`` rows in a file except those of ``keys`` (n,).

    hnswlib's own deletion marks a row and leaves it in the file; here it is never copied. The rows
    that stay keep key and order.

    Raises:
        InputError: there is no row of a key, a key twice, or no row stays; the file is missing.
        DamagedError, CompatError: as ``build_with_replacements``.
    """
    stored = open_stored(path, params, count)
    keep = np.ones(count, np.bool_)
    keep[_find_all(stored, keys, "removed")] = False
    if not keep.any():
        raise InputError("no row would stay")
    return _build_kept(stored, params, keep, progress)


def _find_all(stored: StoredRows, keys: Keys, participle: str) -> Rows:
    """The rows (n,) of distinct ``keys`` (n,), each of which must be there."""
    if (duplicate := first_duplicate(keys.copy())) is not None:
        raise InputError(f"the key {duplicate} would be {participle} twice")
    rows = stored.find(keys)
    if (rows < 0).any():
        raise InputError(f"the index has no row under the key {keys[rows < 0][0]}")
    return rows


def _build(
    stored: StoredRows,
    params: HnswParams,
    count: int,
    change: Callable[[int, Keys, Vectors], tuple[Keys, Vectors]],
    progress: Progress,
) -> HnswIndex:
    """An index of ``count`` rows: what ``change`` makes of each block, given its first row, keys
    (n,) and rows (n, D) as copies."""
    index = HnswIndex.create(params, count)
    for first, block in stored.blocks():
        progress("building the index", first, len(stored))
        keys, rows = change(first, block["key"].copy(), block["row"].copy())
        index.add(rows, keys)
    progress("building the index", len(stored), len(stored))
    return index


def _build_kept(
    stored: StoredRows, params: HnswParams, keep: Bools, progress: Progress
) -> HnswIndex:
    """An index of the stored rows in the mask ``keep`` (N,), in their order."""

    def kept(first: int, keys: Keys, rows: Vectors) -> tuple[Keys, Vectors]:
        block = keep[first : first + len(keys)]
        return keys[block], rows[block]

    return _build(stored, params, int(keep.sum()), kept, progress)
