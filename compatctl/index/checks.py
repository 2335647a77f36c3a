"""Every number of an hnswlib file that hnswlib trusts, checked before hnswlib may open it."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Keys
from compatctl.errors import DamagedError
from compatctl.index.layout import (
    BLOCK_BYTES,
    HnswHeader,
    NotUnitError,
    StoredRows,
    check_unit,
    damaged_error,
)

_NOT_ZERO = re.compile(rb"[^\0]")


def check_layout(path: Path) -> HnswHeader:
    """The header of an hnswlib file, after every number in it that hnswlib trusts was checked.

    The file is read in blocks. Other bytes of the same path are not covered: who remembers that a
    file passed must remember its digest.

    Raises:
        InputError: the file is missing or must not be read.
        DamagedError: a link, a key or a row cannot be hnswlib's, or rows are marked deleted.
    """
    stored = StoredRows.open(path)
    check_stored(stored)
    return stored.header


def check_stored(stored: StoredRows, *, keys: bool = True, deleted: bool = False) -> None:
    """``check_layout`` of a file that is mapped already.

    ``keys``: look for a key that is there twice; a caller who compares every key with those that
    must be there need not. ``deleted``: rows may be marked deleted.

    Raises:
        DamagedError: see there.
        NotUnitError: a row is not finite and of unit length.
    """
    header, path = stored.header, stored.path
    tail = memoryview(stored.mapped)[stored.end :]
    _check_upper(stored, upper_lists(tail, header, path, stored.release_tail))
    for first, block in stored.blocks():
        _check_level0(block, first, header, path, deleted=deleted)
        check_unit(block["row"], f"{path}: stored row", NotUnitError, first=first)
    if keys and (twice := first_duplicate(stored.read_keys())) is not None:
        raise damaged_error(path, f"the key {twice} is there twice")


def first_duplicate(keys: Keys) -> int | None:
    """The smallest of the keys (N,) that is there twice, or None; the keys are sorted in place."""
    keys.sort()
    same = keys[1:] == keys[:-1]
    return int(keys[np.argmax(same)]) if same.any() else None


@dataclass(frozen=True, kw_only=True, eq=False)
class UpperLists:
    """Which rows have upper links: ``level`` (N,) uint8 of each row, and for the U rows above level
    0, in their order, where their lists begin: ``begins`` (U,) int64, in bytes from the first."""

    level: NDArray[np.uint8]
    begins: NDArray[np.int64]


def upper_lists(
    tail: memoryview | bytes,
    header: HnswHeader,
    path: Path,
    done: Callable[[int, int], None] | None = None,
) -> UpperLists:
    """What the sizes of the upper links say, which must fill the file's ``tail`` exactly.

    ``done`` is told which bytes of the tail, from and to, will not be looked at again.

    A size says where the next one is, so that they must be walked. Nearly all are 0 (15 of 16 with
    M = 16): a search for the next byte that is not 0 passes a whole run of them. Sizes that are
    allowed are multiples of 4, so that the walk stays on words.

    Raises:
        DamagedError: a size is not that of whole levels, or the sizes end elsewhere than the file.
    """
    bytes_per_level = 4 * header.M + 4
    words, row, at, before = len(tail) // 4, 0, 0, 0
    level, begins = bytearray(header.count), array("q")
    while True:
        found = _NOT_ZERO.search(tail, 4 * at)
        upper = min(found.start() // 4, words) if found else max(words, at)
        zeros = min(upper - at, header.count - row)
        row, at = row + zeros, at + zeros
        if row == header.count:
            break
        if at >= words:
            raise damaged_error(path, "it is cut short")
        size = int.from_bytes(tail[4 * at : 4 * at + 4], "little")
        levels, rest = divmod(size, bytes_per_level)
        if rest or levels > header.max_level:
            raise damaged_error(path, f"row {row} has upper links of {size} bytes")
        level[row] = levels
        begins.append(4 * at + 4)
        row, at = row + 1, at + 1 + size // 4
        if done is not None and 4 * (at - before) >= BLOCK_BYTES:
            done(4 * before, min(4 * at, len(tail)))
            before = at
    if 4 * at != len(tail):
        raise damaged_error(
            path, f"its rows end {abs(len(tail) - 4 * at)} bytes from the file's end"
        )
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
    used = _used(block["links"], 2 * header.M, path)
    if (block["to"][used] >= header.count).any():
        raise damaged_error(path, f"a link near row {first} leads to no row")


def _check_upper(stored: StoredRows, upper: UpperLists) -> None:
    """Every link of level l must lead to a row that is on level l too."""
    header, path = stored.header, stored.path
    count = (header.file_bytes - stored.end) // 4
    words = np.frombuffer(stored.mapped, "<u4", count, stored.end)
    size = header.M + 1
    levels = upper.level[upper.level > 0]
    step = 64  # the lists of a high level are far from each other: each maps its surroundings
    for level in range(1, header.max_level + 1):
        begins = upper.begins[levels >= level] // 4 + (level - 1) * size
        for start in range(0, len(begins), step):
            lists = words[begins[start : start + step, None] + np.arange(size)]
            to = lists[:, 1:][_used(lists[:, 0] & 0xFFFF, header.M, path)]
            if (to >= header.count).any() or (upper.level[to] < level).any():
                raise damaged_error(path, f"a link of level {level} leads to no row of that level")
            stored.release_tail(0, 4 * int(begins[min(start + step, len(begins)) - 1] + size))


def _used(counts: NDArray[Any], room: int, path: Path) -> NDArray[np.bool_]:
    """Which of the ``room`` places of each list (n, room) hold a link."""
    if (counts > room).any():
        raise damaged_error(path, f"a row has {int(counts.max())} links where {room} are the most")
    return np.arange(room) < counts[:, None]
