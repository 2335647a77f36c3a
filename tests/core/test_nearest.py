"""Fast exact search, against a full sort of exact scores."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core import nearest
from compatctl.core.nearest import exact_search


def unit_rows(rng, n, d, dtype=np.float32):
    """(n, d) rows of length 1, as nearly as the type can."""
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def check(queries, gallery, k, self_row=None, **keywords):
    """``search`` returns what a full sort by (float64 score rounded to float32, row) returns."""
    neighbours = exact_search(queries, gallery, k, self_row, **keywords)
    assert neighbours.rows.shape == neighbours.scores.shape == (len(queries), k)
    assert (neighbours.rows.dtype, neighbours.scores.dtype) == (np.int64, np.float32)
    for i, query in enumerate(queries.astype(np.float64)):
        rows = np.arange(len(gallery))
        if self_row is not None:
            rows = rows[rows != self_row[i]]
        exact = (gallery[rows].astype(np.float64) * query).sum(axis=1).astype(np.float32)
        order = np.lexsort((rows, -exact))[:k]
        missing = k - len(order)
        assert neighbours.rows[i].tolist() == rows[order].tolist() + [-1] * missing
        assert neighbours.scores[i].tolist() == exact[order].tolist() + [-np.inf] * missing
    return neighbours


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles, many part batches and a pool that is full at once, in small galleries."""
    monkeypatch.setattr(nearest, "_CELLS", 96)
    monkeypatch.setattr(nearest, "_SLAB", 32)
    monkeypatch.setattr(nearest, "_POOL", 8)
    monkeypatch.setattr(nearest, "_EXACT", 64)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_equals_a_full_sort(data):
    """The result equals a full sort for any shapes, duplicates, k, block and tile size."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    Q, G = data.draw(st.integers(0, 12), label="Q"), data.draw(st.integers(0, 150), label="G")
    D, k = data.draw(st.integers(1, 40), label="D"), data.draw(st.integers(1, 160), label="k")
    distinct = data.draw(st.integers(1, 200), label="distinct")
    gallery = unit_rows(rng, distinct, D)[rng.integers(0, distinct, G)]
    queries = unit_rows(rng, Q, D)
    if data.draw(st.booleans(), label="sorted") and Q:
        gallery = gallery[np.argsort(gallery @ queries[0])]
    own = rng.integers(-1, G, Q) if data.draw(st.booleans(), label="own") else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_CELLS", data.draw(st.integers(1, 4000), label="cells"))
        patch.setattr(nearest, "_SLAB", data.draw(st.integers(1, 1000), label="slab"))
        patch.setattr(nearest, "_POOL", data.draw(st.integers(1, 400), label="pool"))
        patch.setattr(nearest, "_EXACT", data.draw(st.integers(1, 400), label="exact"))
        check(queries, gallery, k, own, block=data.draw(st.integers(1, 14), label="block"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_types(small_tiles, dtype):
    """Half and double precision are scored as they are, in any memory order."""
    rng = np.random.default_rng(1)
    queries, gallery = unit_rows(rng, 11, 19, dtype), unit_rows(rng, 90, 19, dtype)
    check(queries, gallery, 7)
    check(np.asfortranarray(queries), np.asfortranarray(gallery)[::-1], 7)


def test_double_precision_separates_float32_ties():
    """float64 rows that are equal in float32 are ranked by their float64 scores."""
    rng = np.random.default_rng(2)
    close = unit_rows(rng, 1, 64, np.float64) + rng.normal(scale=1e-9, size=(300, 64))
    check(unit_rows(rng, 5, 64, np.float64), close, 10)
    check(close[:5], close, 10)


@pytest.mark.parametrize("k", [1, 49, 50, 51, 500])
def test_k_up_to_and_beyond_the_gallery(small_tiles, k):
    """With k >= G every row is an answer except the query's own."""
    rng = np.random.default_rng(3)
    gallery = unit_rows(rng, 50, 8)
    check(gallery[:9], gallery, k)
    check(gallery[:9], gallery, k, self_row=np.arange(9) * 6 - 1)


def test_empty_gallery_or_queries():
    """An empty gallery gives no neighbours, and no queries give no answers."""
    rows = unit_rows(np.random.default_rng(4), 3, 5)
    check(rows, rows[:0], 2)
    check(rows[:0], rows, 2)
    check(rows[:0], rows[:0], 2)


@pytest.mark.parametrize("turn", [1, -1])
def test_sorted_gallery(small_tiles, turn):
    """A gallery sorted by score, either way, gives the full sort."""
    rng = np.random.default_rng(5)
    gallery = unit_rows(rng, 400, 12)
    queries = unit_rows(rng, 1, 12) + rng.normal(scale=1e-5, size=(6, 12)).astype(np.float32)
    gallery = gallery[np.argsort(gallery @ queries[0])[::turn]]
    check(queries, gallery, 5)
    check(queries, gallery, 5, self_row=np.array([399, 398, 0, 1, -1, 200]))


def test_best_rows_in_one_group_of_the_bound_are_found(small_tiles):
    """Best rows that share one group of the quick bound are all found."""
    rng = np.random.default_rng(6)
    gallery, queries = unit_rows(rng, 480, 12), unit_rows(rng, 1, 12)
    gallery[::8] = queries[0] + rng.normal(scale=1e-5, size=(60, 12)).astype(np.float32)
    check(np.repeat(queries, 3, axis=0), gallery, 2)


def test_signed_zeros_tie(small_tiles):
    """A score of -0 and one of 0 are equal, so the lower row comes first."""
    gallery = np.array([[0, 1], [0, -1], [-0.0, 1], [0, -1]] * 3, dtype=np.float32)
    gallery[5] = [-1, 0]
    queries = np.array([[1, 0], [-1, 0], [1, -0.0]], dtype=np.float32)
    check(queries, gallery, 7)


def test_identical_rows_in_bounded_memory():
    """When all rows tie, only the k lowest are kept: no array of all ties is ever held."""
    rng = np.random.default_rng(7)
    gallery = np.repeat(unit_rows(rng, 1, 4), 20_000, axis=0)
    queries = np.repeat(gallery[:1], 200, axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_CELLS", 2**18)
        patch.setattr(nearest, "_EXACT", 2**12)
        tracemalloc.start()
        neighbours = exact_search(queries, gallery, 3, self_row=np.arange(200) - 1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    expected = [[row for row in range(4) if row != i - 1][:3] for i in range(200)]
    assert neighbours.rows.tolist() == expected
    # 200 x 20,000 scores would be 16 MB and as many candidates 80 MB; a tile is 1.3 MB.
    assert peak < 4e6


def test_no_copy_of_a_contiguous_gallery():
    """A float32 gallery in memory order is read in place, and scores are held a tile at a time."""
    rng = np.random.default_rng(8)
    gallery = unit_rows(rng, 20_000, 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_CELLS", 2**17)
        tracemalloc.start()
        exact_search(gallery[:64], gallery, 5)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < gallery.nbytes / 3
