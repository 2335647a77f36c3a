"""Sets of names and digests as eight-byte prefixes: small enough for a model to carry.

A name outside a set of n entries is taken for a member with probability n / 2^64. With a million
entries and ten thousand lookups, that happens once in two thousand million runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Words
from compatctl.core.hash_order import hash_key
from compatctl.errors import InputError

_WIDTH = 8


def name_prefix(name: str) -> int:
    """The first eight bytes of the sha256 of a name, as an integer."""
    return int.from_bytes(hash_key(name)[:_WIDTH], "big")


def digest_prefix(digest: str) -> int:
    """The first eight bytes of a sha256 in hex, as an integer.

    Raises:
        ValueError: it is not a sha256.
    """
    if len(digest) != 64:
        raise ValueError(f"{digest!r} is no sha256")
    return int.from_bytes(bytes.fromhex(digest)[:_WIDTH], "big")


@dataclass(frozen=True, eq=False)
class DigestPrefixes:
    """A set of 64-bit integers."""

    rows: Words
    """(n,) strictly ascending."""

    @classmethod
    def from_ints(cls, numbers: Iterable[int] = ()) -> Self:
        """The set of these integers."""
        return cls(np.unique(np.fromiter(numbers, np.uint64)))

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, number: int) -> bool:
        index = int(np.searchsorted(self.rows, np.uint64(number)))
        return index < len(self.rows) and bool(self.rows[index] == np.uint64(number))

    def contains(self, numbers: Words) -> Bools:
        """(n,) whether each of ``numbers`` (n,) is in the set."""
        return np.isin(numbers, self.rows)

    def __or__(self, other: DigestPrefixes) -> DigestPrefixes:
        return DigestPrefixes(np.union1d(self.rows, other.rows))

    def __sub__(self, other: DigestPrefixes) -> DigestPrefixes:
        return DigestPrefixes(np.setdiff1d(self.rows, other.rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DigestPrefixes) and np.array_equal(self.rows, other.rows)

    def __le__(self, other: DigestPrefixes) -> bool:
        return bool(np.isin(self.rows, other.rows).all())

    __hash__ = None  # type: ignore[assignment]

    def deltas(self) -> Bytes:
        """(n, 8) big-endian differences between neighbours, which are small and pack well."""
        deltas = np.diff(self.rows, prepend=np.uint64(0)).astype(">u8")
        return deltas.view(np.uint8).reshape(-1, _WIDTH)

    @classmethod
    def from_deltas(cls, deltas: Bytes) -> Self:
        """The set whose ``deltas`` are these (n, 8) bytes.

        Raises:
            InputError: no set has these deltas.
        """
        if deltas.ndim != 2 or deltas.shape[1] != _WIDTH:
            raise InputError(f"a set of digests is of eight bytes each, got {deltas.shape}")
        rows = np.cumsum(np.ascontiguousarray(deltas).view(">u8").reshape(-1), dtype=np.uint64)
        if (rows[1:] <= rows[:-1]).any():
            raise InputError("a set of digests must ascend")
        return cls(rows)
