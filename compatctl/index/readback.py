"""Whether a file that hnswlib wrote holds the rows that it was given: no row is kept for it.

The rows of the file that an index was loaded from come first in the file that it is saved to, in
their order (hnswlib copies their records and appends): they are compared word for word. Of each row
that was added since a mark of 64 bits is kept.

A mark is the sum of the row's words (its float32 as uint32), each times an odd number that is fixed
for its place, mod 2^64. An odd number has an inverse mod 2^64, so that a difference in one word
always changes the mark; one in several words goes unseen only if their products cancel, which for
weights drawn at random has a chance of at most 2^-32 (where the words differ in their highest bit
only; mostly it is near 2^-63). That is enough against disks, which is what a read-back is for;
whoever would choose words to cancel could as well change the file after it was read back. Against
that the store has digests.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Checksums, Keys, Vectors
from compatctl.errors import DamagedError
from compatctl.index.checks import check_stored
from compatctl.index.layout import KeyLookup, StoredRows

_MARKED = 2048


def row_checksums(rows: Vectors) -> Checksums:
    """The mark (n,) uint64 of each row (n, D) float32."""
    found = np.empty(len(rows), np.uint64)
    weights = _weights(rows.shape[1])
    for start in range(0, len(rows), _MARKED):
        words = np.ascontiguousarray(rows[start : start + _MARKED]).view(np.uint32)
        found[start : start + _MARKED] = words.astype(np.uint64) @ weights
    return found


@lru_cache(maxsize=8)
def _weights(dim: int) -> Checksums:
    return np.random.default_rng(2**61 - 1).integers(0, 2**64, dim, np.uint64) | np.uint64(1)


def check_written(path: Path, before: StoredRows | None, keys: Keys, marks: Checksums) -> None:
    """Read a file back: the rows of ``before``, then those with these keys and marks (n,).

    The latter may be in any order: threads add rows as they come.

    Raises:
        DamagedError: it is not an intact index, or not of exactly these rows and keys.
    """
    written = StoredRows.open(path)
    check_stored(written, keys=False)  # each is compared below with those that must be there
    start = 0 if before is None else len(before)
    if len(written) != start + len(keys):
        raise _other(path, "keys")
    if before is not None:
        if written.header.record_bytes != before.header.record_bytes:
            raise _other(path, "rows")
        _check_same(written, before)
    seen, order = np.zeros(len(keys), np.bool_), KeyLookup(keys)
    for _, block in written.blocks(start):
        at = order.find(np.ascontiguousarray(block["key"]))
        if (at < 0).any():
            raise _other(path, "keys")
        if (marks[at] != row_checksums(block["row"])).any():
            raise _other(path, "rows")
        seen[at] = True
    if not seen.all():
        raise _other(path, "keys")


def _check_same(written: StoredRows, before: StoredRows) -> None:
    """The records of ``before`` come first in ``written``; their links may be others."""
    both = zip(written.blocks(0, len(before)), before.blocks(), strict=True)
    for (_, new), (_, old) in both:
        if not np.array_equal(new["key"], old["key"]):
            raise _other(written.path, "keys")
        if not np.array_equal(new["row"].view("<u4"), old["row"].view("<u4")):
            raise _other(written.path, "rows")


def _other(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path}: read back other {what} than were written")
