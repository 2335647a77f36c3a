"""Draws and orders that depend on a text alone: the same on every machine, in every data set.

Stores, memory files and splits depend on the exact values. Do not change either hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def hash_fraction(text: str) -> float:
    """A number in [0, 1): the first 8 bytes of the sha1 of ``text``, big-endian, over 2^64."""
    digest = hashlib.sha1(_encoded(text), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_key(text: str) -> bytes:
    """The key that sorts ids into hash order: the sha256 of ``text``, 32 bytes."""
    return hashlib.sha256(_encoded(text)).digest()


def hash_order(ids: Iterable[str]) -> list[str]:
    """The ids sorted by ``hash_key``."""
    return sorted(ids, key=hash_key)


def _encoded(text: str) -> bytes:
    """UTF-8; an id from a file name may hold lone surrogates."""
    return text.encode("utf-8", "surrogatepass")
