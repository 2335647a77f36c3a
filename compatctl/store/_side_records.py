"""The records of a side file as arrays: keys, checksums, and the search for keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Checksums, Rows, Vectors, Words, unit_rows
from compatctl.files import DIGEST_BYTES
from compatctl.store._side_layout import (
    IMAGE_BYTES,
    KEY_BYTES,
    PREFIX_BYTES,
    record_bytes,
)

_BEFORE_CHECKSUM = KEY_BYTES + IMAGE_BYTES


def item_keys(ids: Sequence[str]) -> Bytes:
    """The keys (n, 16) uint8 of items."""
    digests = [hashlib.sha256(item.encode("utf-8", "surrogatepass")).digest() for item in ids]
    whole = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return np.ascontiguousarray(whole[:, :KEY_BYTES])


def image_marks(images: Bytes | None, n: int) -> Bytes:
    """The bytes (n, 8) uint8 that a record holds of the images' digests (n, 32); zero for None."""
    if images is None:
        return np.zeros((n, IMAGE_BYTES), np.uint8)
    return np.ascontiguousarray(images[:, :IMAGE_BYTES])


def pack(keys: Bytes, marks: Bytes, contents: Bytes, size: int) -> Bytes:
    """Records (n, ``size``) uint8 of items and their contents (n, C), with their checksums."""
    records = np.zeros((len(keys), size), np.uint8)
    records[:, :KEY_BYTES] = keys
    records[:, KEY_BYTES:_BEFORE_CHECKSUM] = marks
    records[:, PREFIX_BYTES : PREFIX_BYTES + contents.shape[1]] = contents
    records[:, _BEFORE_CHECKSUM:PREFIX_BYTES] = checksums(records)[:, None].view(np.uint8)
    return records


def encode(keys: Bytes, marks: Bytes, vectors: Vectors) -> Bytes:
    """Records (n, R) uint8 of vectors (n, D), with their checksums."""
    halves = np.ascontiguousarray(vectors, np.float16).view(np.uint8)
    return pack(keys, marks, halves, record_bytes(vectors.shape[1]))


def decode(records: Bytes, dim: int) -> Vectors:
    """The unit vectors (n, D) of records (n, R)."""
    halves = np.ascontiguousarray(records[:, PREFIX_BYTES : PREFIX_BYTES + 2 * dim])
    return unit_rows(halves.view(np.float16).astype(np.float32))


def checksums(records: Bytes) -> Checksums:
    """A checksum (n,) of each record (n, R), without the bytes of its own.

    It is a constant plus the sum of the record's 32-bit words, each times an odd weight for its
    position, mod 2^64: a difference in one word always changes it, and a record of zeros is wrong.
    """
    words = np.ascontiguousarray(records).view("<u4").astype(np.uint64)
    words[:, _BEFORE_CHECKSUM // 4 : PREFIX_BYTES // 4] = 0
    weights = _weights(words.shape[1])
    return np.asarray(words @ weights + weights[0], np.uint64)


def intact(records: Bytes) -> Bools:
    """(n,): whether each record (n, R) is what was written."""
    written = np.ascontiguousarray(records[:, _BEFORE_CHECKSUM:PREFIX_BYTES]).view("<u8")[:, 0]
    return np.asarray(checksums(records) == written, bool)


def is_of(records: Bytes, keys: Bytes, marks: Bytes | None) -> Bools:
    """(n,): whether each record is of this item and, unless ``marks`` is None, of this image."""
    same = (records[:, :KEY_BYTES] == keys).all(axis=1)
    if marks is not None:
        same &= (records[:, KEY_BYTES:_BEFORE_CHECKSUM] == marks).all(axis=1)
    return np.asarray(same, bool)


def words_of(keys: Bytes) -> Words:
    """The first 64 bits (n,) of keys (n, >= 8)."""
    return np.ascontiguousarray(keys[:, :8]).view("<u8")[:, 0]


@dataclass(frozen=True, eq=False)
class Positions:
    """The position of the newest record of each key: (K,) ascending words, (K,) positions."""

    words: Words
    at: Rows

    @classmethod
    def of(cls, words: Words, first: int = 0) -> Self:
        """The positions of records (n,) that lie one after another from ``first`` on."""
        order = np.argsort(words, kind="stable")
        ordered = words[order]
        last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
        return cls(words=ordered[last], at=order[last] + first)

    def __len__(self) -> int:
        return len(self.words)

    def find(self, words: Words) -> Rows:
        """The position (n,) of each key, -1 where there is none."""
        if not len(self):
            return np.full(len(words), -1, np.int64)
        nearest = np.minimum(np.searchsorted(self.words, words), len(self) - 1)
        return np.where(self.words[nearest] == words, self.at[nearest], -1)

    def merged(self, newer: Positions) -> Positions:
        """These positions, replaced by newer ones where a key is in both."""
        older = newer.find(self.words) < 0
        words = np.concatenate([self.words[older], newer.words])
        at = np.concatenate([self.at[older], newer.at])
        order = np.argsort(words, kind="stable")
        return Positions(words[order], at[order])


def no_positions() -> Positions:
    """The positions in an empty file."""
    return Positions(np.zeros(0, np.uint64), np.zeros(0, np.int64))


@lru_cache(maxsize=8)
def _weights(n: int) -> Words:
    return np.random.default_rng(2**61 - 1).integers(0, 2**64, n, np.uint64) | np.uint64(1)
