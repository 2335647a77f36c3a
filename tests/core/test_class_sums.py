"""Sums by class and by query, which the resampling re-weights, against loops over items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core import class_sums as module
from compatctl.core.class_sums import class_sums, query_sums, row_products, sums_by_position
from compatctl.errors import InputError


def unit(rows):
    """Rows scaled to length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def small_rows(monkeypatch):
    """Five rows at a time, so that small inputs take several blocks."""
    monkeypatch.setattr(module, "_ROWS", 5)


@pytest.mark.usefixtures("small_rows")
def test_every_sum_equals_a_loop():
    """Sums of queries, gallery rows and own pairs by class equal a loop, for any block size."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        Q, G = rng.integers(1, 14, 2)
        queries, gallery = unit(rng.normal(size=(Q, 3))), unit(rng.normal(size=(G, 3)))
        query_labels, gallery_labels = rng.integers(-2, 4, Q), rng.integers(-3, 6, G)
        own = rng.integers(-1, G, Q)
        sums = class_sums(queries, query_labels, gallery, gallery_labels, own)
        assert sums.codes.tolist() == sorted(set(query_labels.tolist()))
        for c, code in enumerate(sums.codes):
            members = [i for i in range(Q) if query_labels[i] == code]
            stored = [j for j in range(G) if gallery_labels[j] == code]
            np.testing.assert_allclose(sums.queries[c], queries[members].sum(axis=0), atol=1e-12)
            np.testing.assert_allclose(sums.gallery[c], gallery[stored].sum(axis=0), atol=1e-12)
            assert (sums.n_queries[c], sums.n_gallery[c]) == (len(members), len(stored))
            own_rows = [i for i in members if own[i] >= 0]
            same = [i for i in own_rows if gallery_labels[own[i]] == code]
            total = sum(float(queries[i] @ gallery[own[i]]) for i in same)
            assert sums.excluded_same[c] == pytest.approx(total, abs=1e-12)
            assert sums.n_excluded_same[c] == len(same)
            cosines = [
                float(queries[i] @ gallery[j]) for i in members for j in stored if own[i] != j
            ]
            assert sums.same[0][c] == pytest.approx(sum(cosines), abs=1e-12)
            assert sums.same[1][c] == len(cosines)
        others = [j for j in range(G) if gallery_labels[j] not in query_labels]
        np.testing.assert_allclose(sums.other, gallery[others].sum(axis=0), atol=1e-12)
        assert sums.n_other == len(others)


@given(seed=st.integers(0, 10**6), Q=st.integers(1, 7), G=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_sums_by_query_equal_a_loop(seed, Q, G):
    """Sums by query over judged pairs and over all others equal a loop."""
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng.normal(size=(Q, 3))), unit(rng.normal(size=(G, 3)))
    relevant = rng.random((Q, G)) < 0.4
    sums = query_sums(queries, gallery, *np.nonzero(relevant))
    for i in range(Q):
        for kind, (totals, counts) in ((True, sums.same), (False, sums.diff)):
            cosines = [float(queries[i] @ gallery[j]) for j in range(G) if relevant[i, j] == kind]
            assert totals[i] == pytest.approx(sum(cosines), abs=1e-12)
            assert counts[i] == len(cosines)
    means, cosines = sums.means(), queries @ gallery.T
    assert (means.n_same, means.n_diff) == (relevant.sum(), (~relevant).sum())
    for mean, pairs in ((means.cos_same, relevant), (means.cos_diff, ~relevant)):
        expected = cosines[pairs].mean() if pairs.any() else np.nan
        assert mean == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.usefixtures("small_rows")
def test_positions_without_a_row_are_zero():
    """A position without a row sums to 0; half-precision rows are summed in float64."""
    rows = np.full((12, 2), 0.1, dtype=np.float16)
    sums, counts = sums_by_position(rows, np.array([3] * 7 + [0] * 5), 5)
    assert sums.dtype == np.float64
    assert counts.tolist() == [5, 0, 0, 7, 0]
    np.testing.assert_allclose(sums[:, 0], float(np.float16(0.1)) * counts, rtol=1e-12)


@pytest.mark.usefixtures("small_rows")
def test_row_products_equal_a_loop():
    """Rows are paired in the given order, repeats included; no pair gives an empty array."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(8, 4)).astype(np.float32)
    left, right = rng.integers(0, 6, 13), rng.integers(0, 8, 13)
    expected = [
        sum(float(x) * float(y) for x, y in zip(a[i], b[j], strict=True))
        for i, j in zip(left, right, strict=True)
    ]
    np.testing.assert_allclose(row_products(a, left, b, right), expected, rtol=0, atol=1e-12)
    assert row_products(a, left[:0], b, right[:0]).shape == (0,)


def test_no_query_gives_empty_sums():
    """Without a query there is no class and no pair."""
    none, labels = np.zeros((0, 3)), np.zeros(0, dtype=np.int64)
    sums = class_sums(none, labels, unit(np.ones((2, 3))), np.array([1, 2]))
    assert (len(sums.codes), sums.n_other) == (0, 2)
    means = sums.means()
    assert (means.n_same, means.n_diff) == (0, 0)
    assert np.isnan([means.cos_same, means.cos_diff]).all()


def test_bad_shapes_are_refused():
    """Different dimensions, labels of another length and self_row out of range are named."""
    rows, labels = unit(np.ones((2, 3))), np.array([0, 1])
    with pytest.raises(InputError, match="dimensions"):
        class_sums(rows, labels, unit(np.ones((2, 4))), labels)
    with pytest.raises(InputError, match="query_labels"):
        class_sums(rows, labels[:1], rows, labels)
    with pytest.raises(InputError, match="gallery_labels"):
        class_sums(rows, labels, rows, np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="self_row"):
        class_sums(rows, labels, rows, labels, np.array([0, 2]))


def test_sums_by_query_exclude_own_items():
    """A query's own row is in neither sum."""
    rng = np.random.default_rng(5)
    queries, gallery = (rows / np.linalg.norm(rows, axis=1, keepdims=True)
                        for rows in (rng.normal(size=(6, 4)), rng.normal(size=(9, 4))))  # fmt: skip
    own = np.array([-1, 3, 0, -1, 8, 5])
    judged = np.array([[i, j] for i in range(6) for j in range(9) if (i + j) % 4 == 0])
    judged = judged[judged[:, 1] != own[judged[:, 0]]]
    result = query_sums(queries, gallery, judged[:, 0], judged[:, 1], own).means()
    pairs = {(i, j) for i in range(6) for j in range(9) if own[i] != j}
    same = {(int(i), int(j)) for i, j in judged}
    for kind, value, n in (
        (same, result.cos_same, result.n_same),
        (pairs - same, result.cos_diff, result.n_diff),
    ):
        assert n == len(kind)
        assert value == pytest.approx(np.mean([queries[i] @ gallery[j] for i, j in kind]))
