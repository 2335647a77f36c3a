"""The two inequalities over all pairs, against explicit double loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core.class_sums import class_sums
from compatctl.core.compatibility import inequalities
from compatctl.core.nearest import exact_search
from compatctl.core.retrieval import evaluate
from compatctl.errors import InputError


def unit(rows):
    """Rows scaled to length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def simplex_of(K):
    """(K, K) unit rows with pairwise cosine -1/(K-1), made without the program's own frame."""
    return unit(np.eye(K) - 1.0 / K).astype(np.float64)


def pairs_by_loop(queries, query_labels, gallery, gallery_labels, own):
    """Cosines of all same-class and all different-class pairs, own pairs left out."""
    same, diff = [], []
    for i in range(len(queries)):
        for j in range(len(gallery)):
            if j == own[i]:
                continue
            cosine = sum(float(a) * float(b) for a, b in zip(queries[i], gallery[j], strict=True))
            (same if query_labels[i] == gallery_labels[j] else diff).append(cosine)
    return np.array(same), np.array(diff)


@pytest.fixture
def scene():
    """11 queries (old and new features) and 13 gallery rows of 4 classes, some of them own rows."""
    rng = np.random.default_rng(7)
    own = np.array([0, 1, 2, -1, 4, 5, -1, 12, 8, 8, -1])
    gallery_labels = rng.integers(0, 4, 13)
    query_labels = np.where(own >= 0, gallery_labels[own], rng.integers(0, 4, 11))
    query_labels[8] = (gallery_labels[8] + 1) % 4  # relabelled since it was indexed
    old, new = unit(rng.normal(size=(11, 5))), unit(rng.normal(size=(11, 5)))
    return old, new, query_labels, unit(rng.normal(size=(13, 5))), gallery_labels, own


def test_means_equal_double_loop(scene):
    """Sums over classes give the mean over every pair, own pairs excluded, to 1e-12."""
    old, _, query_labels, gallery, gallery_labels, own = scene
    measured = class_sums(old, query_labels, gallery, gallery_labels, own).means()
    same, diff = pairs_by_loop(old, query_labels, gallery, gallery_labels, own)
    assert (measured.n_same, measured.n_diff) == (len(same), len(diff))
    assert measured.cos_same == pytest.approx(same.mean(), abs=1e-12)
    assert measured.cos_diff == pytest.approx(diff.mean(), abs=1e-12)
    assert measured.n_same + measured.n_diff == 11 * 13 - (own >= 0).sum()


@given(seed=st.integers(0, 10**6), Q=st.integers(1, 8), G=st.integers(1, 9), C=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_means_equal_double_loop_on_any_layout(seed, Q, G, C):
    """The means hold for any labels and self_row; no pair gives NaN and n = 0."""
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng.normal(size=(Q, 3))), unit(rng.normal(size=(G, 3)))
    query_labels, gallery_labels = rng.integers(-C, C, Q), rng.integers(-C, C, G)
    own = rng.integers(-1, G, Q)
    measured = class_sums(queries, query_labels, gallery, gallery_labels, own).means()
    same, diff = pairs_by_loop(queries, query_labels, gallery, gallery_labels, own)
    for mean, n, pairs in (
        (measured.cos_same, measured.n_same, same),
        (measured.cos_diff, measured.n_diff, diff),
    ):
        assert n == len(pairs)
        expected = pairs.mean() if n else np.nan
        assert mean == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_formula_for_one_set_of_items():
    """If queries and gallery are the same N items, the counts equal the published ones."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), [1, 2, 3, 4, 5])
    old, new = unit(rng.normal(size=(15, 6))), unit(rng.normal(size=(15, 6)))
    measured = class_sums(new, labels, old, labels, np.arange(15)).means()
    sums = [(new[labels == c].sum(axis=0), old[labels == c].sum(axis=0)) for c in range(5)]
    within = sum(float(a @ b) for a, b in sums)
    assert measured.n_same == sum(n * (n - 1) for n in (1, 2, 3, 4, 5))
    assert measured.n_diff == 15**2 - sum(n * n for n in (1, 2, 3, 4, 5))
    assert measured.cos_same == pytest.approx(
        (within - (new * old).sum()) / measured.n_same, abs=1e-6
    )
    total = float(new.sum(axis=0) @ old.sum(axis=0))
    assert measured.cos_diff == pytest.approx((total - within) / measured.n_diff, abs=1e-6)


@pytest.mark.parametrize("block", [1, 3, 2048])
def test_gains_shares_and_drift_equal_double_loop(scene, block):
    """Gains, shares and drift equal loops over single pairs, for any tile size."""
    old, new, query_labels, gallery, gallery_labels, own = scene
    measured = inequalities(old, new, query_labels, gallery, gallery_labels, own, block=block)
    old_same, old_diff = pairs_by_loop(old, query_labels, gallery, gallery_labels, own)
    new_same, new_diff = pairs_by_loop(new, query_labels, gallery, gallery_labels, own)
    assert measured.same_gain == pytest.approx(new_same.mean() - old_same.mean(), abs=1e-12)
    assert measured.diff_gain == pytest.approx(old_diff.mean() - new_diff.mean(), abs=1e-12)
    assert measured.share_same == pytest.approx((new_same >= old_same).mean())
    assert measured.share_diff == pytest.approx((new_diff <= old_diff).mean())
    drift = [1 - float(new[i] @ gallery[own[i]]) for i in range(11) if own[i] >= 0]
    assert measured.drift_mean == pytest.approx(np.mean(drift), abs=1e-6)


def test_identical_model_gains_exactly_nothing(scene):
    """Equal features give gains of exactly 0, and every pair ties, which satisfies both."""
    old, _, query_labels, gallery, gallery_labels, own = scene
    measured = inequalities(old, old.copy(), query_labels, gallery, gallery_labels, own)
    assert (measured.same_gain, measured.diff_gain) == (0.0, 0.0)
    assert (measured.share_same, measured.share_diff) == (1.0, 1.0)


def test_shares_are_optional_and_undefined_is_nan(scene):
    """Shares that are not computed, and means over no pair, are NaN; without own rows drift is
    None."""
    old, new, query_labels, gallery, gallery_labels, own = scene
    measured = inequalities(old, new, query_labels, gallery, gallery_labels, own, shares=False)
    assert np.isnan(measured.share_same)
    assert np.isnan(measured.share_diff)
    assert np.isfinite(measured.same_gain)
    single = inequalities(old, new, np.zeros(11, int), gallery, np.zeros(13, int))
    assert single.new_old.n_diff == 0
    assert np.isnan(single.new_old.cos_diff)
    assert np.isnan(single.diff_gain)
    assert np.isnan(single.share_diff)
    assert single.drift_mean is None


def test_large_sets_keep_precision():
    """Sums over 20,000 float32 rows are off by less than 1e-9, far below an effect of 1e-4."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 50, 20_000)
    centre = rng.normal(size=8)
    features = unit(rng.normal(size=(20_000, 8)) + centre)
    measured = class_sums(features, labels, features[:500], labels[:500]).means()
    cosines = features.astype(np.float64) @ features[:500].astype(np.float64).T
    same = labels[:, None] == labels[None, :500]
    assert measured.cos_same == pytest.approx(cosines[same].mean(), abs=1e-9)
    assert measured.cos_diff == pytest.approx(cosines[~same].mean(), abs=1e-9)


def test_second_inequality_is_an_effect_of_order_one_in_k():
    """At K = 1024 the mean of (1b) moves by about 1e-4 while one pair scatters by 0.03."""
    K, each, rng = 1024, 2, np.random.default_rng(0)
    labels = np.repeat(np.arange(K), each)
    vertices = simplex_of(K)[labels]
    noise = rng.normal(size=(2, K * each, K)) / np.sqrt(K)
    old, new = unit(vertices + 0.6 * noise[0]), unit(vertices + 0.4 * noise[1])
    measured = inequalities(old, new, labels, old, labels, np.arange(len(labels)), shares=False)
    assert 2e-5 < measured.diff_gain < 4e-4
    single = (new[:300] - old[:300]) @ old[600:900].T
    assert 0.01 < single.std() < 0.05
    assert single.std() > 100 * measured.diff_gain


def test_both_means_hold_while_retrieval_falls():
    """5 drifting classes of 50 leave (1a) and (1b) satisfied while top-1 falls from 1.00 to 0.9."""
    K, each, rng = 50, 12, np.random.default_rng(0)
    vertices, labels = simplex_of(K), np.repeat(np.arange(K), each)
    target = np.where(labels < 5, labels + 20, labels)  # classes 0..4 land on those of others
    noise = rng.normal(size=(2, len(labels), K)) / np.sqrt(K)
    old = unit(vertices[labels] + 0.8 * noise[0])
    new = unit(vertices[target] + 0.2 * noise[1])
    own = np.arange(len(labels))
    measured = inequalities(old, new, labels, old, labels, own)
    assert measured.same_gain > 0
    assert measured.diff_gain > 0
    before = evaluate(exact_search(old, old, 100, own), labels, labels, own).hit_rate[1]
    after = evaluate(exact_search(new, old, 100, own), labels, labels, own).hit_rate[1]
    assert before > 0.995
    assert after == pytest.approx(0.9, abs=0.01)


def test_bad_arguments_are_refused(scene):
    """NaN, other dimensions, missing labels and self_row outside the gallery are named."""
    old, new, query_labels, gallery, gallery_labels, own = scene
    broken = new.copy()
    broken[3, 2] = np.nan
    with pytest.raises(InputError, match="new_queries must be unit rows: row 3"):
        inequalities(old, broken, query_labels, gallery, gallery_labels, own)
    with pytest.raises(InputError, match="same items"):
        inequalities(old, new[:5], query_labels, gallery, gallery_labels, own)
    with pytest.raises(InputError, match="block"):
        inequalities(old, new, query_labels, gallery, gallery_labels, own, block=0)
    with pytest.raises(InputError, match="dimensions"):
        class_sums(old, query_labels, unit(gallery[:, :4]), gallery_labels, own)
    with pytest.raises(InputError, match="gallery_labels"):
        class_sums(old, query_labels, gallery, gallery_labels[:-1], own)
    with pytest.raises(InputError, match="self_row"):
        class_sums(old, query_labels, gallery, gallery_labels, own + 1)
