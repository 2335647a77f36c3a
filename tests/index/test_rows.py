"""Keys, whatever engine stores them."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.index.rows import same_keys

N = 200_000


@pytest.mark.parametrize("highest", [N, 2**40, 2**64 - 1])
def test_keys_are_the_same_exactly_where_their_sets_are(highest: int) -> None:
    """In any order; one key that is another, or two that are moved against each other so that their
    sum stays, are seen. The reference compares sets."""
    random = np.random.default_rng(highest)
    keys = np.unique(random.integers(0, highest, 2 * N, np.uint64))[:N]
    keys = random.permutation(keys)
    free = np.uint64(keys.max() // 2 + 1)
    while free in keys:
        free += np.uint64(1)
    one, two = keys.copy(), keys.copy()
    one[random.integers(len(keys))] = free
    two[:2] = [two[0] + np.uint64(1), two[1] - np.uint64(1)]
    for other in (keys, random.permutation(keys), one, two, keys[1:], keys[:0]):
        assert same_keys(other, keys) == (set(other.tolist()) == set(keys.tolist()))
        assert same_keys(keys, other) == same_keys(other, keys)
    assert same_keys(keys[:0], keys[:0])
