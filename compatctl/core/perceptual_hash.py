"""Perceptual hashes: 24 bytes of an image that survive re-encoding, resizing and small edits.

Two images match if no byte of their hashes differs by more than ``LIMIT``. The bytes are mean
brightness and mean colour of fields of the image, so a limit of 6 means 6 of 256 levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from compatctl.core.arrays import Bools, Floats, PerceptualHashes, Rows

FIELDS = 4
"""Fields per side whose mean brightness is in a hash."""

COLOURS = 2
"""Fields per side whose two mean colours are in a hash."""

WIDTH = FIELDS * FIELDS + 2 * COLOURS * COLOURS
LIMIT = 6
"""Largest difference of any byte between hashes of one image; docs/verify.md has measurements."""

BLOCK = 1 << 20
"""Pairs compared at once."""


def matches_any_hash(
    hashes: PerceptualHashes, known: PerceptualHashes, limit: int = LIMIT
) -> Bools:
    """(Q,) whether each of ``hashes`` (Q, 24) matches one of ``known`` (T, 24), both uint8.

    Rows are compared within neighbouring cells of the mean brightness of their four quarters.
    """
    matched = np.zeros(len(hashes), bool)
    known = np.unique(known, axis=0)
    if not len(hashes) or not len(known):
        return matched
    order = np.argsort(_cell(_quarters(known), limit), kind="stable")
    known, cells = known[order], _cell(_quarters(known), limit)[order]
    low, high = (_quarters(hashes) + offset for offset in (-limit, limit))
    for sides in itertools.product((False, True), repeat=4):
        corner = _cell(np.where(sides, high, low), limit)
        first, last = (np.searchsorted(cells, corner, side) for side in ("left", "right"))
        rows = np.flatnonzero(~matched & (last > first))
        for row, candidate in _pairs(rows, first[rows], last[rows], matched):
            difference = np.abs(hashes[row].astype(np.int16) - known[candidate]).max(axis=1)
            matched[row[difference <= limit]] = True
    return matched


def _quarters(hashes: PerceptualHashes) -> Floats:
    """(N, 4) mean brightness of each quarter; it differs by at most what the bytes differ by."""
    half = FIELDS // 2
    fields = hashes[:, : FIELDS * FIELDS].reshape(-1, 2, half, 2, half)
    means: Floats = fields.mean(axis=(2, 4)).reshape(-1, 4)
    return means


def _cell(quarters: Floats, limit: int) -> Rows:
    """(N,) the number of the cell, 2 ``limit`` + 1 levels wide, that holds each row."""
    levels = np.floor(quarters / (2 * limit + 1)).astype(np.int64) + 1
    cell: Rows = levels @ np.array([1 << 30, 1 << 20, 1 << 10, 1], np.int64)
    return cell


def _pairs(rows: Rows, first: Rows, last: Rows, matched: Bools) -> Iterator[tuple[Rows, Rows]]:
    """Each row with its candidates ``first`` to ``last``, in blocks; matched rows are dropped."""
    while len(rows):
        take = np.minimum(last - first, max(1, BLOCK // len(rows)))
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(take)[:-1]]), take)
        yield np.repeat(rows, take), starts + np.arange(int(take.sum()))
        first = first + take
        still_open = (first < last) & ~matched[rows]
        rows, first, last = rows[still_open], first[still_open], last[still_open]
