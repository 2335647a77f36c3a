"""An hnswlib file, read without hnswlib: what must hold before hnswlib may open it.

The layout is that of ``saveIndex`` in nmslib/hnswlib, hnswlib/hnswalg.h (0.8.0), little endian:
a header of 96 bytes; ``count`` records of ``record_bytes`` (the links of level 0, the row as
float32, the key as uint64); then for each row the size of its upper links as uint32, and these.
A list of links is a uint16 count, a byte whose lowest bit marks the row deleted (level 0 only), an
unused byte, and room for 2 M (level 0) or M row numbers as uint32.

hnswlib checks none of it: another dimension or a wrong link reads outside the allocated memory.
``check_layout`` (checks.py) does.

A mapped page counts as memory of the process once it was read. So files are read in blocks, and the
pages of a block are given back when the next one is asked for (where the platform can): 1,000,000
rows of 128 dimensions are 660 MB that would stand beside hnswlib's own 800 MB.
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

from compatctl.core.arrays import Keys, Vectors
from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.files import os_errors

UNIT_TOLERANCE = 1e-3
"""How far from 1 a row's norm may be: float32 rows are within 1e-6, float16 ones within 1e-3."""

MAX_ROWS = (1 << 32) - 1
"""The most rows of an index: hnswlib numbers them in 32 bits."""

MAX_ROOM_BYTES = 1 << 40
"""The most bytes that a header may ask for, whatever the file has: who opens the file without a
number of rows allocates its capacity."""

MAX_EF_CONSTRUCTION = 1_000_000

BLOCK = 16384
"""The most rows of a block."""

_NEIGHBOURS = max(mmap.PAGESIZE, 1 << 21)
"""Bytes: what is mapped where one byte is read: 64 KiB (fault_around_bytes), or a huge page where
the file system caches the file in such (seen with Linux 6.18 and ext4)."""

BLOCK_BYTES = 2**18
"""The most bytes of a block, unless one row is more."""

_SCATTERED = 16
"""Rows anywhere in a file that are read at once: each may map ``_NEIGHBOURS`` around it."""

_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)
_HEADER = struct.Struct("<QQQQQQiIQQQdQ")


@dataclass(frozen=True, kw_only=True)
class HnswHeader:
    """The header of an hnswlib file; the space is not recorded in it.

    ``dim`` is a row's length, ``count`` the number of rows and ``capacity`` the room for them,
    ``record_bytes`` the size of a row's record, ``file_bytes`` that of the file.
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
        InputError: the file is missing or must not be read.
        DamagedError: its numbers contradict each other or the file's size: it is cut short,
            changed, or no hnswlib index.
    """
    with os_errors("reading", path), path.open("rb") as file:
        raw = file.read(_HEADER.size)
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
    if capacity > MAX_ROWS or capacity * record > MAX_ROOM_BYTES:
        raise damaged_error(path, f"its header asks for room for {capacity} rows of {record} bytes")
    if not 1 <= ef_construction <= MAX_EF_CONSTRUCTION:
        raise damaged_error(path, f"its header has ef_construction {ef_construction}")
    if not 1 <= count <= capacity or not 0 <= entry < count or not 0 <= max_level < 64:
        raise damaged_error(path, f"its header names {count} rows and entry {entry}")
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
    """The rows of an hnswlib file, mapped and read in blocks; nothing of it is kept but keys.

    The file may be deleted meanwhile; it must not be written to.
    """

    path: Path
    header: HnswHeader
    mapped: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file whose header was checked here, and nothing else.

        Raises:
            InputError: the file is missing or must not be read.
            DamagedError: see ``read_header``.
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
        """Where the records end, and the sizes and links of the upper levels begin, in bytes."""
        return _HEADER.size + self.header.count * self.header.record_bytes

    @property
    def records(self) -> NDArray[Any]:
        """Every record (N,) with ``links``, ``deleted``, ``unused``, ``to`` (2 M,), ``row`` (D,)
        and ``key``, in the mapped file: what is read of it stays in memory until ``release``."""
        return np.frombuffer(self.mapped, _record(self.header), len(self), _HEADER.size)

    def blocks(
        self, start: int = 0, stop: int | None = None, most: int = BLOCK
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """The number of the first row, and the records (n,), of each block of rows start..stop.

        A block is to be read before the next one is asked for, and copied if it is kept.
        """
        records = self.records
        stop = len(self) if stop is None else stop
        step = max(1, min(most, BLOCK_BYTES // self.header.record_bytes))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield first, records[first:last]
            self._release_rows(first, last)

    def release(self, start: int, stop: int) -> None:
        """Give the pages of the bytes start..stop back; they are read again when needed.

        So are those shortly before: where one is read, Linux maps its neighbours.
        """
        if _DONTNEED is not None:
            page = start - start % _NEIGHBOURS
            self.mapped.madvise(_DONTNEED, page, stop - page)

    def release_tail(self, start: int, stop: int) -> None:
        """``release`` of bytes that are counted from ``end``."""
        self.release(self.end + start, self.end + stop)

    @cached_property
    def keys(self) -> Keys:
        """Every key (N,) uint64 in the order of the rows, read when first needed, and kept."""
        return self.read_keys()

    def read_keys(self) -> Keys:
        """A copy of every key (N,) uint64 in the order of the rows."""
        found = np.empty(len(self), np.uint64)
        for first, block in self.blocks():
            found[first : first + len(block)] = block["key"]
        return found

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The row (n,) of each key (n,), -1 where there is none."""
        return self._order.find(keys)

    def rows(self, at: NDArray[np.int64]) -> Vectors:
        """A copy (n, D) of the rows at positions (n,), in any order."""
        found = np.empty((len(at), self.header.dim), np.float32)
        rows, order = self.records["row"], np.argsort(at, kind="stable")
        for start in range(0, len(at), _SCATTERED):
            here = order[start : start + _SCATTERED]
            found[here] = rows[at[here]]
            self._release_rows(int(at[here[0]]), int(at[here[-1]]) + 1)
        return found

    @cached_property
    def _order(self) -> KeyLookup:
        return KeyLookup(self.keys)

    def _release_rows(self, first: int, last: int) -> None:
        size = self.header.record_bytes
        self.release(_HEADER.size + first * size, _HEADER.size + last * size)


class KeyLookup:
    """Where each of the keys (N,), all different, is; keys that ascend need no second table."""

    def __init__(self, keys: Keys) -> None:
        ascend = bool((keys[1:] > keys[:-1]).all())
        self._order = None if ascend else np.argsort(keys, kind="stable")
        self._keys = keys if self._order is None else keys[self._order]

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The position (n,) of each key (n,), -1 where there is none."""
        if len(self._keys) == 0:
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        there = self._keys[at] == keys
        return np.where(there, at if self._order is None else self._order[at], -1)


class NotUnitError(DamagedError):
    """A stored row is not finite or not of unit length: damaged, or of a space without norms."""


def check_unit(
    rows: Vectors, what: str, error: type[CompatError] = InputError, *, first: int = 0
) -> None:
    """Refuse rows (N, D) that are not finite or not of norm 1, by the number of the first.

    ``first`` is the number of ``rows[0]``.

    Raises:
        CompatError: of the class ``error``.
    """
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("nd,nd->n", block, block))
            bad = ~(np.abs(norms - 1.0) <= UNIT_TOLERANCE)
        if bad.any():
            at = int(np.argmax(bad))
            finite = bool(np.isfinite(block[at]).all())
            found = f"has the norm {norms[at]:.6g}, not 1" if finite else "is not finite"
            raise error(
                f"{what} {first + start + at} {found}", tip="rows must be finite and of unit length"
            )


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
    """The error for a file that hnswlib cannot have written so."""
    return DamagedError(
        f"{path} is not an intact hnswlib index: {why}", tip="take it from a backup, or build it"
    )
