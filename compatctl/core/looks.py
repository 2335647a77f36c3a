"""Looks: 24 bytes of an image that survive another encoding, another size, a changed pixel.

Two images look alike where no byte of their looks differs by more than ``LIMIT``. The bytes are
means of fields of the image (``data``), so that a limit has a meaning: six of 256 levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from compatctl.core.arrays import Bools, Floats, Looks, Rows

FIELDS = 4
"""Fields a side whose mean brightness is in a look."""

COLOURS = 2
"""Fields a side whose two mean colours are in a look."""

WIDTH = FIELDS * FIELDS + 2 * COLOURS * COLOURS
LIMIT = 6
"""The largest difference of any byte between looks of one image; measured in docs/verify.md."""

BLOCK = 1 << 20
"""Pairs that are compared at once."""


def matches_any_look(asked: Looks, known: Looks, limit: int = LIMIT) -> Bools:
    """(Q,) whether a row of ``asked`` (Q, 24) looks like one of ``known`` (T, 24), both uint8.

    Rows are sorted into cells by the mean brightness of their four quarters, and compared with what
    lies in the neighbouring cells. Memory: blocks of ``BLOCK`` pairs.
    """
    found = np.zeros(len(asked), bool)
    known = np.unique(known, axis=0)
    if not len(asked) or not len(known):
        return found
    order = np.argsort(_cell(_quarters(known), limit), kind="stable")
    known, cells = known[order], _cell(_quarters(known), limit)[order]
    low, high = (_quarters(asked) + by for by in (-limit, limit))
    for sides in itertools.product((False, True), repeat=4):
        corner = _cell(np.where(sides, high, low), limit)
        first, last = (np.searchsorted(cells, corner, side) for side in ("left", "right"))
        rows = np.flatnonzero(~found & (last > first))
        for mine, theirs in _pairs(rows, first[rows], last[rows], found):
            apart = np.abs(asked[mine].astype(np.int16) - known[theirs]).max(axis=1)
            found[mine[apart <= limit]] = True
    return found


def _quarters(looks: Looks) -> Floats:
    """(N, 4) mean brightness of each quarter: two looks within a limit have these within it."""
    half = FIELDS // 2
    fields = looks[:, : FIELDS * FIELDS].reshape(-1, 2, half, 2, half)
    means: Floats = fields.mean(axis=(2, 4)).reshape(-1, 4)
    return means


def _cell(quarters: Floats, limit: int) -> Rows:
    """The number of a cell of 2 ``limit`` + 1 levels a side."""
    at = np.floor(quarters / (2 * limit + 1)).astype(np.int64) + 1
    cell: Rows = at @ np.array([1 << 30, 1 << 20, 1 << 10, 1], np.int64)
    return cell


def _pairs(
    rows: Rows,
    first: Rows,
    last: Rows,
    found: Bools,
) -> Iterator[tuple[Rows, Rows]]:
    """Rows with all of their range, in blocks; rows that were ``found`` meanwhile are left out."""
    while len(rows):
        take = np.minimum(last - first, max(1, BLOCK // len(rows)))
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(take)[:-1]]), take)
        yield np.repeat(rows, take), starts + np.arange(int(take.sum()))
        first = first + take
        open_rows = (first < last) & ~found[rows]
        rows, first, last = rows[open_rows], first[open_rows], last[open_rows]
