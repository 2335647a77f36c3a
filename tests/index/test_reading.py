"""Rows read from an index file without loading the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from index_kit import build_index

from compatctl.errors import DamagedError
from compatctl.index import HnswIndex, HnswParams, read_all


@pytest.mark.parametrize("ascend", [True, False])
def test_rows_are_those_of_the_loaded_index(tmp_path: Path, ascend: bool) -> None:
    """They are in the order of the requested keys, whatever their order in the file."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    keys = np.arange(500, dtype=np.uint64) if ascend else rng.permutation(500).astype(np.uint64)
    params = HnswParams(dim=16)
    build_index(rows, keys, params).save(tmp_path / "i.hnsw")
    requested = rng.permutation(keys)
    vectors = read_all(tmp_path / "i.hnsw", params, requested)
    loaded = HnswIndex.load(tmp_path / "i.hnsw", params)
    np.testing.assert_array_equal(vectors, loaded.vectors(requested))
    with pytest.raises(DamagedError, match="no row under the key 900"):
        read_all(
            tmp_path / "i.hnsw", params, np.where(requested == 3, 900, requested).astype(np.uint64)
        )
    with pytest.raises(DamagedError):
        read_all(tmp_path / "i.hnsw", params, requested[:400])
