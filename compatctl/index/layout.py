"""An hnswlib file, read without hnswlib: what must hold before hnswlib may open it.

The layout is that of ``saveIndex`` in nmslib/hnswlib, hnswlib/hnswalg.h (0.8.0), little endian:
a header of 96 bytes; ``count`` records of ``record_bytes`` (the links of level 0, the row as
float32, the key as uint64); then for each row the size of its upper links as uint32, and these.
A list of links is a uint16 count, a byte whose lowest bit marks the row deleted (level 0 only), an
unused byte, and room for 2 M (level 0) or M row numbers as uint32.

hnswlib checks none of it: another dimension or a wrong link reads outside the allocated memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.files import clear_errors

Floats = NDArray[np.float32]
Keys = NDArray[np.uint64]

UNIT_TOLERANCE = 1e-3
"""How far from 1 a row's norm may be: float32 rows are within 1e-6, float16 ones within 1e-3."""

BLOCK = 16384
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
    with clear_errors("reading", path), path.open("rb") as file:
        raw = file.read(_HEADER.size)
        size = path.stat().st_size
    if len(raw) < _HEADER.size:
        raise _damaged(path, f"{size} bytes are less than a header")
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
        raise _damaged(path, "its header is not that of an hnswlib index of float32 rows")
    if not 1 <= count <= capacity or not 0 <= entry < count or not 0 <= max_level < 64:
        raise _damaged(path, f"its header names {count} rows and entry {entry}")
    if size < _HEADER.size + count * (record + 4):
        raise _damaged(path, f"{size} bytes are too few for {count} rows of {record} bytes")
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
    """The rows of a checked file, mapped: ``vectors`` (N, D) float32 and ``keys`` (N,) uint64."""

    header: HnswHeader
    vectors: Floats
    keys: Keys

    @classmethod
    def read(cls, path: Path) -> Self:
        """Check every number of the file that hnswlib trusts, and map its rows.

        Raises:
            InputError: the file is missing or must not be read.
            DamagedError: a link, a key or a row cannot be hnswlib's, or rows are marked deleted.
        """
        header = read_header(path)
        with clear_errors("reading", path):
            mapped = np.memmap(path, np.uint8, "r")
        if len(mapped) != header.file_bytes:
            raise _damaged(path, "it changed while it was read")
        end = _HEADER.size + header.count * header.record_bytes
        records = mapped[_HEADER.size : end].view(_record(header))
        levels = _upper_levels(mapped[end:], header, path)
        _check_level0(records, header, path)
        _check_upper(mapped[end:], levels, header, path)
        keys = np.array(records["key"])
        if (twice := first_duplicate(keys)) is not None:
            raise _damaged(path, f"the key {twice} is there twice")
        vectors = records["row"]
        check_unit(vectors, f"{path}: stored row", DamagedError)
        return cls(header=header, vectors=vectors, keys=keys)


def check_unit(rows: Floats, what: str, error: type[CompatError] = InputError) -> None:
    """Refuse rows (N, D) that are not finite or not of norm 1, by the number of the first.

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
                f"{what} {start + at} {found}", tip="rows must be finite and of unit length"
            )


def first_duplicate(keys: Keys) -> int | None:
    """The smallest of the keys (N,) that is there twice, or None."""
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    return int(twice[0]) if len(twice) else None


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


def _check_level0(records: NDArray[Any], header: HnswHeader, path: Path) -> None:
    for start in range(0, header.count, BLOCK):
        block = records[start : start + BLOCK]
        if (block["deleted"] & 1).any():
            raise DamagedError(
                f"{path} has rows that are marked deleted (row {start + _first(block['deleted'])})",
                tip="build the index again from its live rows, and take that one",
            )
        if block["deleted"].any() or block["unused"].any():
            raise _damaged(path, f"a flag near row {start} that hnswlib does not have")
        used = _used(block["links"], 2 * header.M, path)
        if (block["to"][used] >= header.count).any():
            raise _damaged(path, f"a link near row {start} leads to no row")


def _upper_levels(upper: NDArray[np.uint8], header: HnswHeader, path: Path) -> NDArray[np.int64]:
    """The level (N,) of each row, from the sizes of its upper links; they must fill the file."""
    bytes_per_level = 4 * header.M + 4
    raw = upper.tobytes()
    levels = np.zeros(header.count, np.int64)
    at = 0
    for row in range(header.count):
        if at + 4 > len(raw):
            raise _damaged(path, "it is cut short")
        (size,) = struct.unpack_from("<I", raw, at)
        if size:
            levels[row], rest = divmod(size, bytes_per_level)
            if rest or levels[row] > header.max_level:
                raise _damaged(path, f"row {row} has upper links of {size} bytes")
        at += 4 + size
    if at != len(raw):
        raise _damaged(path, f"its rows end {abs(len(raw) - at)} bytes from the file's end")
    if levels[header.entry] != header.max_level:
        raise _damaged(path, f"its entry {header.entry} is not on the highest level")
    return levels


def _check_upper(
    upper: NDArray[np.uint8], levels: NDArray[np.int64], header: HnswHeader, path: Path
) -> None:
    """Every link of level l must lead to a row that is on level l too."""
    for starts, level in _upper_lists(levels, 4 * header.M + 4):
        lists = upper[starts[:, None] + np.arange(4 * header.M + 4)]
        used = _used(lists[:, :2].copy().view("<u2")[:, 0], header.M, path)
        to = lists[:, 4:].copy().view("<u4")[used]
        if (to >= header.count).any() or (levels[to] < level).any():
            raise _damaged(path, f"a link of level {level} leads to no row of that level")


def _upper_lists(levels: NDArray[np.int64], size: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """For each level, where its lists of links begin (n,), and the level, from 1."""
    begins = np.cumsum(4 + levels * size) - levels * size
    for level in range(1, int(levels.max()) + 1):
        begin = begins[levels >= level] + (level - 1) * size
        for start in range(0, len(begin), BLOCK):
            yield begin[start : start + BLOCK], level


def _used(counts: NDArray[Any], room: int, path: Path) -> NDArray[np.bool_]:
    """Which of the ``room`` places of each list (n, room) hold a link."""
    if (counts > room).any():
        raise _damaged(path, f"a row has {int(counts.max())} links where {room} are the most")
    return np.arange(room) < counts[:, None]


def _first(values: NDArray[Any]) -> int:
    return int(np.argmax(values != 0))


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{path} is not an intact hnswlib index: {why}", tip="take it from a backup, or build it"
    )
