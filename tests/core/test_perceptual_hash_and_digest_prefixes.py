"""Compact records of training data: perceptual hashes and digest prefixes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from compatctl.core.digest_prefixes import DigestPrefixes, digest_prefix, name_prefix
from compatctl.core.perceptual_hash import LIMIT, WIDTH, matches_any_hash
from compatctl.data import pack, unpack
from compatctl.errors import InputError


def slow(queries: np.ndarray, known: np.ndarray, limit: int) -> np.ndarray:
    """Every look against every other."""
    apart = np.abs(queries[:, None].astype(int) - known[None]).max(axis=2)
    return (apart <= limit).any(axis=1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", [2, 8, 30, 256])
def test_hash_matches_equal_comparing_all_pairs(seed: int, spread: int) -> None:
    """Copies within, at and beyond the limit match as in a comparison of all pairs."""
    rng = np.random.default_rng(seed)
    low = int(rng.integers(0, 257 - spread))
    known = rng.integers(low, low + spread, (500, WIDTH)).astype(np.uint8)
    moved = known[:150].astype(int) + rng.integers(-LIMIT - 1, LIMIT + 2, (150, WIDTH))
    far = known[150:200].astype(int) + rng.choice([-LIMIT, LIMIT], (50, WIDTH))
    other = rng.integers(0, 256, (100, WIDTH))
    queries = np.clip(np.concatenate([moved, far, other]), 0, 255).astype(np.uint8)
    for limit in (0, 3, LIMIT):
        assert np.array_equal(matches_any_hash(queries, known, limit), slow(queries, known, limit))
    assert not matches_any_hash(queries, known[:0]).any()
    assert len(matches_any_hash(queries[:0], known)) == 0


def test_hash_matches_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a block changes nothing."""
    rng = np.random.default_rng(0)
    known, queries = (rng.integers(90, 130, (n, WIDTH)).astype(np.uint8) for n in (900, 300))
    whole = matches_any_hash(queries, known, 12)
    monkeypatch.setattr("compatctl.core.perceptual_hash.BLOCK", 7)
    assert np.array_equal(matches_any_hash(queries, known, 12), whole)


def test_prefixes_are_those_of_the_names() -> None:
    """A set holds exactly the names it was made of, and survives packing."""
    names = [f"item {at}" for at in range(2000)]
    prefixes = DigestPrefixes.from_ints(map(name_prefix, names))
    assert len(prefixes) == 2000
    assert all(name_prefix(name) in prefixes for name in names)
    assert not any(name_prefix(f"other {at}") in prefixes for at in range(2000))
    digest = hashlib.sha256(b"item 3").hexdigest()
    assert digest_prefix(digest) == name_prefix("item 3")
    back = DigestPrefixes.from_deltas(unpack(pack(prefixes.deltas()), len(prefixes), 8))
    assert back == prefixes
    half = DigestPrefixes.from_ints(map(name_prefix, names[:1000]))
    assert half <= prefixes
    assert not prefixes <= half
    assert half | DigestPrefixes.from_ints(map(name_prefix, names[1000:])) == prefixes
    assert (
        DigestPrefixes.from_deltas(unpack(pack(DigestPrefixes.from_ints().deltas()), 0, 8))
        == DigestPrefixes.from_ints()
    )


def test_a_million_entries_take_eight_megabytes() -> None:
    """A million entries pack into less than eight megabytes."""
    rows = np.random.default_rng(0).integers(0, 2**64, 1_000_000, np.uint64)
    assert len(pack(DigestPrefixes(np.unique(rows)).deltas())) < 8_000_000


def test_inconsistent_deltas_are_refused() -> None:
    """Wrong sizes, decompression bombs, other bytes and sets that do not ascend are refused."""
    packed = pack(np.zeros((10, 8), np.uint8))
    wrong = ((packed, 9), (packed, 11), (packed, -1), (packed, 2**40), ("AAAA", 1), ("é", 1))
    for text, n in wrong:
        with pytest.raises(InputError):
            unpack(text, n, 8)
    bomb = pack(np.zeros((4_000_000, 8), np.uint8))
    with pytest.raises(InputError):
        unpack(bomb, 100, 8)
    with pytest.raises(InputError, match="ascend"):
        DigestPrefixes.from_deltas(unpack(packed, 10, 8))
