"""Rows and keys, whatever engine stores them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from compatctl.core.arrays import NORM_TOLERANCE, Checksums, Keys, Rows, Vectors
from compatctl.errors import CompatError, DamagedError, InputError

_CHECKSUM_BLOCK = 2048
_KEY_BLOCK = 1 << 16


class NotUnitError(DamagedError):
    """A stored row is not finite or not of unit length: damaged, or of a space without norms."""


def check_unit(
    rows: Vectors, name: str, error: type[CompatError] = InputError, *, first: int = 0
) -> None:
    """Refuse rows (N, D) that are not finite or not of norm 1.

    The message has ``name`` and the number of the row; ``first`` is the number of ``rows[0]``.

    Raises:
        CompatError: of the class ``error``.
    """
    if len(rows) == 1 and abs(float(rows[0] @ rows[0]) - 1.0) <= NORM_TOLERANCE:
        return  # |n^2 - 1| is at least |n - 1|; a single search has no time for more
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        bad = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))
    if len(bad):
        row = int(bad[0])
        finite = bool(np.isfinite(rows[row]).all())
        defect = f"has the norm {norms[row]:.6g}, not 1" if finite else "is not finite"
        raise error(f"{name} {first + row} {defect}", tip="rows must be finite and of unit length")


def first_duplicate(keys: Keys) -> int | None:
    """The smallest key that occurs twice in ``keys`` (N,), or None; sorts them in place."""
    keys.sort()
    same = keys[1:] == keys[:-1]
    return int(keys[np.argmax(same)]) if same.any() else None


class KeyLookup:
    """Positions of distinct keys (N,). Ascending keys need no second table."""

    def __init__(self, keys: Keys) -> None:
        ascending = bool((keys[1:] > keys[:-1]).all())
        self._order = None if ascending else np.argsort(keys, kind="stable")
        self._keys = keys if self._order is None else keys[self._order]

    def find(self, keys: Keys) -> Rows:
        """The position (n,) of each key (n,), -1 where there is none."""
        if len(self._keys) == 0:
            return np.full(len(keys), -1)
        nearest = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        positions = nearest if self._order is None else self._order[nearest]
        return np.where(self._keys[nearest] == keys, positions, -1)


def same_keys(first: Keys, second: Keys) -> bool:
    """Whether distinct keys (N,) and (M,) are the same ones, in any order, in one pass over both.

    Where the orders differ, sums of scattered keys are compared: that other keys are taken for the
    same ones has a chance of 2^-64.
    """
    if len(first) != len(second):
        return False
    return bool(np.array_equal(first, second)) or _scattered(first) == _scattered(second)


def _scattered(keys: Keys) -> int:
    """The sum mod 2^64 of the keys after splitmix64's last steps, which scatter near keys."""
    total = 0
    for start in range(0, len(keys), _KEY_BLOCK):
        words = keys[start : start + _KEY_BLOCK] + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
        total += int((words ^ (words >> np.uint64(31))).sum(dtype=np.uint64))
    return total % 2**64


def row_checksums(rows: Vectors) -> Checksums:
    """A checksum (n,) uint64 of each row (n, D), taken as float32.

    It is the sum of the row's words (its float32 as uint32), each times a fixed odd weight for its
    position, mod 2^64. An odd weight has an inverse mod 2^64, so a difference in one word always
    changes the checksum. A difference in several words goes unseen only if the products cancel:
    with random weights the chance is at most 2^-32 (where only the highest bits differ), mostly
    near 2^-63. That protects against disks; against an attacker the store has digests.
    """
    checksums = np.empty(len(rows), np.uint64)
    weights = _weights(rows.shape[1])
    for start in range(0, len(rows), _CHECKSUM_BLOCK):
        block = np.ascontiguousarray(rows[start : start + _CHECKSUM_BLOCK], np.float32)
        checksums[start : start + _CHECKSUM_BLOCK] = (
            block.view(np.uint32).astype(np.uint64) @ weights
        )
    return checksums


@lru_cache(maxsize=8)
def _weights(dim: int) -> Checksums:
    return np.random.default_rng(2**61 - 1).integers(0, 2**64, dim, np.uint64) | np.uint64(1)
