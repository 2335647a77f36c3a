"""Rows of keys, against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.errors import DamagedError
from compatctl.manifest import Catalog

KEYS = {
    "own": np.arange(9),
    "ascending": np.arange(9) * 3 + 5,
    "any": np.random.default_rng(0).permutation(9).astype(np.uint64) * np.uint64(7),
}


@pytest.mark.parametrize("kind", KEYS)
def test_rows_of_keys_are_those_of_a_dictionary(kind: str) -> None:
    """Whatever the order of the keys; a key that the catalogue lacks is damage."""
    keys = KEYS[kind].astype(np.uint64)
    ids = tuple(f"item {row}" for row in range(len(keys)))
    catalog = Catalog(ids=ids, labels=ids, keys=keys, model_of=np.zeros(9), models=("a" * 64,))
    row_of = {int(key): row for row, key in enumerate(keys)}
    asked = np.random.default_rng(1).choice(keys, (4, 6))
    np.testing.assert_array_equal(
        catalog.rows_of(asked), [[row_of[int(key)] for key in line] for line in asked]
    )
    assert catalog.rows_of(np.zeros((2, 0), np.uint64)).shape == (2, 0)
    for missing in (int(keys.max()) + 1, 2**64 - 1):
        with pytest.raises(DamagedError, match="the catalogue has none"):
            catalog.rows_of(np.array([[missing]], np.uint64))
