"""Every value of an hnswlib file that hnswlib trusts, checked before hnswlib may open the file."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Bools, Checksums, Keys
from compatctl.errors import DamagedError
from compatctl.index.hnswlib.layout import BLOCK_BYTES, HnswHeader, StoredRows, damaged_error
from compatctl.index.rows import KeyLookup, NotUnitError, check_unit, first_duplicate, row_checksums

_NOT_ZERO = re.compile(rb"[^\0]")
_LISTS_AT_ONCE = 64
"""The lists of a high level are far apart, and reading each maps its surroundings."""


def check_layout(
    stored: StoredRows, *, keys: bool = True, deleted: bool = False, unit: bool = True
) -> None:
    """Check every value that hnswlib trusts, reading the file in blocks.

    ``keys``: refuse duplicate keys. ``deleted``: rows may be marked deleted. ``unit``: rows must
    be of unit length. To skip this check later, remember the digest of the file: it covers these
    bytes only.

    Raises:
        DamagedError: a link, a key or a flag that hnswlib cannot have written, or a deleted row.
        NotUnitError: a row is not finite or not of unit length.
    """
    header, path = stored.header, stored.path
    tail = memoryview(stored.mapped)[stored.end :]
    _check_upper(stored, upper_lists(tail, header, path, stored.release_tail))
    for first, block in stored.blocks():
        _check_level0(block, first, header, path, deleted=deleted)
        if unit:
            check_unit(block["row"], f"{path}: stored row", NotUnitError, first=first)
    if keys and (duplicate := first_duplicate(stored.read_keys())) is not None:
        raise damaged_error(path, f"the key {duplicate} is there twice")


@dataclass(frozen=True, kw_only=True, eq=False)
class UpperLists:
    """The rows with upper links: the ``level`` (N,) uint8 of each row, and where the lists of the U
    rows above level 0 begin, in their order: ``begins`` (U,) int64, in bytes from the first."""

    level: NDArray[np.uint8]
    begins: NDArray[np.int64]


def upper_lists(
    tail: memoryview | bytes,
    header: HnswHeader,
    path: Path,
    release: Callable[[int, int], None] | None = None,
) -> UpperLists:
    """Read the sizes of the upper links, which must fill the file's ``tail`` exactly.

    ``release`` gets the bytes of the tail, from and to, that are not read again.

    Each size says where the next one is. Nearly all are 0 (15 of 16 with M = 16): a search for the
    next byte that is not 0 skips a whole run. Allowed sizes are multiples of 4.

    Raises:
        DamagedError: a size is not that of whole levels, or the sizes end elsewhere than the file.
    """
    bytes_per_level = 4 * header.M + 4
    words, row, word, released = len(tail) // 4, 0, 0, 0
    level, begins = bytearray(header.count), array("q")
    while True:
        nonzero = _NOT_ZERO.search(tail, 4 * word)
        upper = min(nonzero.start() // 4, words) if nonzero else max(words, word)
        zeros = min(upper - word, header.count - row)
        row, word = row + zeros, word + zeros
        if row == header.count:
            break
        if word >= words:
            raise damaged_error(path, "it is cut short")
        size = int.from_bytes(tail[4 * word : 4 * word + 4], "little")
        levels, rest = divmod(size, bytes_per_level)
        if rest or levels > header.max_level:
            raise damaged_error(path, f"row {row} has upper links of {size} bytes")
        level[row] = levels
        begins.append(4 * word + 4)
        row, word = row + 1, word + 1 + size // 4
        if release is not None and 4 * (word - released) >= BLOCK_BYTES:
            release(4 * released, min(4 * word, len(tail)))
            released = word
    if excess := abs(len(tail) - 4 * word):
        raise damaged_error(path, f"its rows end {excess} bytes from the file's end")
    if level[header.entry] != header.max_level:
        raise damaged_error(path, f"its entry {header.entry} is not on the highest level")
    return UpperLists(level=np.frombuffer(level, np.uint8), begins=np.array(begins, np.int64))


def _check_level0(
    block: NDArray[Any], first: int, header: HnswHeader, path: Path, *, deleted: bool
) -> None:
    """Flags and links of the records (n,) of one block, whose first row is ``first``."""
    marked = block["deleted"] & 1
    if marked.any() and not deleted:
        row = first + int(np.argmax(block["deleted"] != 0))
        raise DamagedError(
            f"{path} has rows that are marked deleted (row {row})",
            tip="compatctl import --drop-deleted builds it again from its live rows",
        )
    if (block["deleted"] != marked).any() or block["unused"].any():
        raise damaged_error(path, f"a flag near row {first} that hnswlib does not have")
    used = _used_links(block["links"], 2 * header.M, path)
    if (block["to"][used] >= header.count).any():
        raise damaged_error(path, f"a link near row {first} leads to no row")


def _check_upper(stored: StoredRows, upper: UpperLists) -> None:
    """Every link of level l must lead to a row that is on level l too."""
    header, path = stored.header, stored.path
    count = (header.file_bytes - stored.end) // 4
    words = np.frombuffer(stored.mapped, "<u4", count, stored.end)
    size = header.M + 1
    levels = upper.level[upper.level > 0]
    for level in range(1, header.max_level + 1):
        begins = upper.begins[levels >= level] // 4 + (level - 1) * size
        for start in range(0, len(begins), _LISTS_AT_ONCE):
            chunk = begins[start : start + _LISTS_AT_ONCE]
            lists = words[chunk[:, None] + np.arange(size)]
            to = lists[:, 1:][_used_links(lists[:, 0] & 0xFFFF, header.M, path)]
            if (to >= header.count).any() or (upper.level[to] < level).any():
                raise damaged_error(path, f"a link of level {level} leads to no row of that level")
            stored.release_tail(0, 4 * int(chunk[-1] + size))


def _used_links(counts: NDArray[Any], most: int, path: Path) -> Bools:
    """(n, most): which places of each list hold a link."""
    if (counts > most).any():
        raise damaged_error(path, f"a row has {int(counts.max())} links where {most} are the most")
    return np.arange(most) < counts[:, None]


def check_written(path: Path, base: StoredRows | None, keys: Keys, checksums: Checksums) -> None:
    """Read a file back: the rows of ``base``, then rows with these keys and checksums (n,).

    hnswlib copies the records of the file that an index was loaded from and appends: they are
    compared word for word. Of added rows only the checksums are kept; threads may add them in any
    order.

    Raises:
        DamagedError: it is not an intact index, or not of exactly these rows and keys.
    """
    written = StoredRows.open(path)
    check_layout(written, keys=False)  # each key is compared below
    start = 0 if base is None else len(base)
    if len(written) != start + len(keys):
        raise _changed(path, "keys")
    if base is not None:
        _check_same(written, base)
    seen, lookup = np.zeros(len(keys), np.bool_), KeyLookup(keys)
    for _, block in written.blocks(start):
        positions = lookup.find(np.ascontiguousarray(block["key"]))
        if (positions < 0).any():
            raise _changed(path, "keys")
        if (checksums[positions] != row_checksums(block["row"])).any():
            raise _changed(path, "rows")
        seen[positions] = True
    if not seen.all():
        raise _changed(path, "keys")


def _check_same(written: StoredRows, base: StoredRows) -> None:
    """The records of ``base`` come first in ``written``; their links may differ."""
    if written.header.record_bytes != base.header.record_bytes:
        raise _changed(written.path, "rows")
    pairs = zip(written.blocks(0, len(base)), base.blocks(), strict=True)
    for (_, new), (_, old) in pairs:
        if not np.array_equal(new["key"], old["key"]):
            raise _changed(written.path, "keys")
        if not np.array_equal(new["row"].view("<u4"), old["row"].view("<u4")):
            raise _changed(written.path, "rows")


def _changed(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path}: read back other {what} than were written")
