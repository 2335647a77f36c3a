"""The file format of hnswlib, read without hnswlib.

The layout is that of ``saveIndex`` in nmslib/hnswlib, hnswlib/hnswalg.h (0.8.0), little endian:
a header of 96 bytes; ``count`` records of ``record_bytes`` (the links of level 0, the row as
float32, the key as uint64); then for each row the size of its upper links as uint32, and these.
A list of links is a uint16 count, a byte whose lowest bit marks the row deleted (level 0 only), an
unused byte, and space for 2 M (level 0) or M row numbers as uint32.

hnswlib checks none of it: another dimension or a wrong link reads outside the allocated memory.
``check_layout`` (checks.py) does.

A mapped page counts as memory of the process once it is read. So files are read in blocks, and the
pages of a block are released when the next one is requested, where the platform can.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Keys, Rows, Vectors
from compatctl.errors import DamagedError
from compatctl.files import os_errors, refuse_pointer
from compatctl.index.rows import KeyLookup

MAX_ROWS = (1 << 32) - 1
"""hnswlib numbers rows in 32 bits."""

MAX_CAPACITY_BYTES = 1 << 40
"""A loader that gives no number of rows allocates the capacity of the header, whatever the file
holds."""

MAX_EF_CONSTRUCTION = 1_000_000

BLOCK_BYTES = 2**18
"""The most bytes of a block of rows, unless one row has more."""

_NEIGHBOURS = max(mmap.PAGESIZE, 1 << 21)
"""Bytes that reading one byte may map: 64 KiB (fault_around_bytes), or a huge page where the file
system caches the file in such (seen with Linux 6.18 and ext4)."""

_SCATTERED = 16
"""Rows at any positions that are read at once: each may map ``_NEIGHBOURS`` around it."""

_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)
_HEADER = struct.Struct("<QQQQQQiIQQQdQ")


@dataclass(frozen=True, kw_only=True)
class HnswHeader:
    """The header of an hnswlib file, which does not record the space.

    ``dim`` is a row's length, ``count`` the number of rows, ``capacity`` how many it has space
    for, ``entry`` the row where a search starts, ``record_bytes`` the size of a row's record,
    ``file_bytes`` that of the file.
    """

    dim: int
    count: int
    capacity: int
    M: int
    ef_construction: int
    max_level: int
    entry: int
    record_bytes: int
    file_bytes: int


def read_header(path: Path) -> HnswHeader:
    """Read and check the header of an hnswlib file.

    Raises:
        InputError: the file is missing, must not be read, or is a pointer to the file.
        DamagedError: it contradicts itself or the file's size: the file is cut short, changed, or
            no hnswlib index.
    """
    with os_errors("reading", path), path.open("rb") as file:
        raw = file.read(_HEADER.size)
        refuse_pointer(path, raw)
        size = path.stat().st_size
    if len(raw) < _HEADER.size:
        raise damaged_error(path, f"{size} bytes are less than a header")
    (level0, capacity, count, record, label_at, data_at) = _HEADER.unpack(raw)[:6]
    (max_level, entry, max_m, max_m0, m, mult, ef_construction) = _HEADER.unpack(raw)[6:]
    dim, rest = divmod(label_at - data_at, 4)
    if (
        level0 != 0
        or rest
        or dim < 1
        or not 2 <= m <= 10000
        or (max_m, max_m0) != (m, 2 * m)
        or data_at != 4 * max_m0 + 4
        or record != label_at + 8
        or not abs(mult * math.log(m) - 1.0) <= 1e-6
    ):
        raise damaged_error(path, "its header is not that of an hnswlib index of float32 rows")
    if capacity > MAX_ROWS or capacity * record > MAX_CAPACITY_BYTES:
        raise damaged_error(path, f"its header has a capacity of {capacity} rows of {record} bytes")
    if not 1 <= ef_construction <= MAX_EF_CONSTRUCTION:
        raise damaged_error(path, f"its header has ef_construction {ef_construction}")
    if not 1 <= count <= capacity or not 0 <= entry < count or not 0 <= max_level < 64:
        raise damaged_error(path, f"its header has {count} rows and the entry {entry}")
    if size < _HEADER.size + count * (record + 4):
        raise damaged_error(path, f"{size} bytes are too few for {count} rows of {record} bytes")
    return HnswHeader(
        dim=dim,
        count=count,
        capacity=capacity,
        M=m,
        ef_construction=ef_construction,
        max_level=max_level,
        entry=entry,
        record_bytes=record,
        file_bytes=size,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredRows:
    """The rows of an hnswlib file, mapped and read in blocks; only the keys are kept in memory.

    The file may be deleted meanwhile but must not be changed.
    """

    path: Path
    header: HnswHeader
    mapped: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file; only its header is checked.

        Raises:
            InputError, DamagedError: as ``read_header``.
        """
        header = read_header(path)
        with os_errors("reading", path), path.open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise damaged_error(path, "it changed while it was read") from None
        if len(mapped) != header.file_bytes:
            raise damaged_error(path, "it changed while it was read")
        return cls(path=path, header=header, mapped=mapped)

    def __len__(self) -> int:
        return self.header.count

    @property
    def end(self) -> int:
        """The byte where the records end and the upper levels begin."""
        return _HEADER.size + self.header.count * self.header.record_bytes

    @property
    def records(self) -> NDArray[Any]:
        """Every record (N,) with ``links``, ``deleted``, ``unused``, ``to`` (2 M,), ``row`` (D,)
        and ``key``, in the mapped file: what is read stays in memory until ``release``."""
        return np.frombuffer(self.mapped, _record(self.header), len(self), _HEADER.size)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """The first row and the records (n,) of each block of rows start..stop.

        A block is valid until the next one is requested: copy it to keep it.
        """
        records = self.records
        stop = len(self) if stop is None else stop
        step = max(1, BLOCK_BYTES // self.header.record_bytes)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield first, records[first:last]
            self._release_rows(first, last)

    def release(self, start: int, stop: int) -> None:
        """Release the pages of bytes start..stop, and those shortly before, which Linux maps too.

        They are read again when needed.
        """
        if _DONTNEED is not None:
            page = start - start % _NEIGHBOURS
            self.mapped.madvise(_DONTNEED, page, stop - page)

    def release_tail(self, start: int, stop: int) -> None:
        """``release`` bytes counted from ``end``."""
        self.release(self.end + start, self.end + stop)

    @cached_property
    def keys(self) -> Keys:
        """Every key (N,) uint64 in the order of the rows."""
        return self.read_keys()

    def read_keys(self) -> Keys:
        """A copy of every key (N,) uint64 in the order of the rows, not cached."""
        keys = np.empty(len(self), np.uint64)
        for first, block in self.blocks():
            keys[first : first + len(block)] = block["key"]
        return keys

    def find(self, keys: Keys) -> Rows:
        """The row (n,) of each key (n,), -1 where there is none."""
        return self._lookup.find(keys)

    def require(self, keys: Keys) -> Rows:
        """The row (n,) of each key (n,).

        Raises:
            DamagedError: there is none of a key.
        """
        rows = self.find(keys)
        if (rows < 0).any():
            raise damaged_error(self.path, f"there is no row under the key {keys[rows < 0][0]}")
        return rows

    def rows(self, positions: Rows) -> Vectors:
        """A copy (n, D) of the rows at positions (n,), in any order."""
        vectors = np.empty((len(positions), self.header.dim), np.float32)
        stored, order = self.records["row"], np.argsort(positions, kind="stable")
        for start in range(0, len(positions), _SCATTERED):
            chunk = order[start : start + _SCATTERED]
            vectors[chunk] = stored[positions[chunk]]
            self._release_rows(int(positions[chunk[0]]), int(positions[chunk[-1]]) + 1)
        return vectors

    @cached_property
    def _lookup(self) -> KeyLookup:
        return KeyLookup(self.keys)

    def _release_rows(self, first: int, last: int) -> None:
        size = self.header.record_bytes
        self.release(_HEADER.size + first * size, _HEADER.size + last * size)


def _record(header: HnswHeader) -> np.dtype[Any]:
    return np.dtype(
        [
            ("links", "<u2"),
            ("deleted", "u1"),
            ("unused", "u1"),
            ("to", "<u4", (2 * header.M,)),
            ("row", "<f4", (header.dim,)),
            ("key", "<u8"),
        ]
    )


def damaged_error(path: Path, why: str) -> DamagedError:
    """The error for a file that hnswlib cannot have written."""
    return DamagedError(
        f"{path} is not an intact hnswlib index: {why}", tip="take it from a backup, or build it"
    )
