"""What files of kept vectors have in common: records of one size, which are only appended.

A record is found by its item, and only if it is what was written: a lookup compares checksums, so
that an append that was cut off, or a damaged disk, is never served.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Rows, Vectors
from compatctl.manifest import Erasures
from compatctl.store._layout import MANIFEST, blob_path, is_regular_file, read_manifest
from compatctl.store._side_records import intact, is_of

BLOCK = 4096
"""Records that are read at a time."""


def read_vectors(
    records: Bytes,
    positions: Rows,
    keys: Bytes,
    marks: Bytes | None,
    *,
    decode: Callable[[Bytes, int], Vectors],
    dim: int,
) -> tuple[Vectors, Bools]:
    """The vectors (n, D) at ``positions`` (n,), -1: none, of the file's ``records`` (N, R).

    A record of another item than ``keys`` (n, 16), of another image than ``marks`` (n, 8), or that
    is not what was written, is not found: its vector is zero. ``decode`` takes records (m, R), D.
    Also returns (n,) which were found.
    """
    vectors, found = np.zeros((len(keys), dim), np.float32), np.zeros(len(keys), bool)
    for start in range(0, len(keys), BLOCK):
        held = start + np.flatnonzero(positions[start : start + BLOCK] >= 0)
        if len(held):
            block = np.asarray(records[positions[held]])
            good = is_of(block, keys[held], None if marks is None else marks[held])
            good &= intact(block)
            found[held] = good
            vectors[held[good]] = decode(block[good], dim)
    return vectors, found


def is_file_at(path: Path, file: IO[bytes] | None) -> bool:
    """Whether an open file is the one at ``path``: a removal deletes it, or replaces it."""
    if file is None:
        return False
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all bytes at an offset, and wait until they are on the disk."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
    os.fsync(descriptor)


class RemovedItems:
    """The items that were removed from a store; the list is read once for each digest of it."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._read: tuple[str, Erasures] | None = None

    def among(self, ids: Sequence[str]) -> frozenset[str]:
        """Which of these are removed now; a removal commits before it cleans files of vectors.

        Raises:
            DamagedError: the list is missing or changed.
        """
        if not ids or not is_regular_file(self._store / MANIFEST):
            return frozenset()
        digest = read_manifest(self._store).erasures
        if digest is None:
            return frozenset()
        if self._read is None or self._read[0] != digest:
            self._read = digest, Erasures.read(blob_path(self._store, "erasures", digest))
        return frozenset(self._read[1].matching(ids))
