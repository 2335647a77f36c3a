"""Thresholds and verification metrics, against explicit loops over all pairs."""

from __future__ import annotations

import dataclasses
import statistics
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core.pair_tiles import PairTruth
from compatctl.core.thresholds import (
    ACCEPT_ALL,
    accuracy,
    accuracy_at,
    count_accepts,
    crossvalidated_accuracy,
    equal_error_rate,
    roc,
    tar_at_far,
    threshold_keeping_far,
)
from compatctl.errors import InputError

INF = float("inf")
SCORES = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.1, 0.25, 0.3, 0.7, 1.0])
PAIRS = st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: len({same for _, same in pairs}) == 2
)


def arrays(pairs):
    """(P,) scores and (P,) bool of a list of pairs."""
    return np.array([score for score, _ in pairs]), np.array([same for _, same in pairs])


def unit(rows):
    """Rows scaled to length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def tied(rng, n):
    """(n, 8) unit rows of four entries ±0.5: products are exact in any order, with many ties."""
    rows = np.zeros((n, 8), dtype=np.float32)
    for row in rows:
        row[rng.choice(8, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return rows


def pair_inputs(queries, query_labels, gallery, gallery_labels, self_row=None):
    """What both functions of all pairs take first: queries, gallery and the kinds of pairs."""
    truth = PairTruth(query_labels=query_labels, gallery_labels=gallery_labels, self_row=self_row)
    return queries, gallery, truth


def curve_by_loop(pairs):
    """(threshold, accepted same, accepted different) at +inf and every distinct score."""
    thresholds = [INF, *sorted({score for score, _ in pairs}, reverse=True)]
    return [
        (
            threshold,
            sum(score >= threshold for score, same in pairs if same),
            sum(score >= threshold for score, same in pairs if not same),
        )
        for threshold in thresholds
    ]


def sizes(pairs):
    """How many pairs are of one class, and how many are not."""
    n_same = sum(same for _, same in pairs)
    return n_same, len(pairs) - n_same


def best_by_loop(pairs):
    """Best accuracy, and the median of the thresholds that reach it."""
    n_diff = sizes(pairs)[1]
    right = [(t, same + n_diff - diff) for t, same, diff in curve_by_loop(pairs)]
    most = max(n for _, n in right)
    return most / len(pairs), statistics.median_high([t for t, n in right if n == most])


def pairs_by_loop(queries, query_labels, gallery, gallery_labels, own):
    """(query, cosine, same class) of every pair but the own ones."""
    return [
        (i, float(queries[i] @ gallery[j]), bool(query_labels[i] == gallery_labels[j]))
        for i in range(len(queries))
        for j in range(len(gallery))
        if j != own[i]
    ]


def scene(seed, Q=9, G=11, C=3, make=tied):
    """Queries and gallery rows of C classes, some own rows, one of them of another class."""
    rng = np.random.default_rng(seed)
    own = rng.integers(-1, G, Q)
    return make(rng, Q), rng.integers(0, C, Q), make(rng, G), rng.integers(0, C, G), own


def random_rows(rng, n):
    """(n, 16) random unit rows: products that tie nowhere and are not exact."""
    return unit(rng.normal(size=(n, 16)))


@given(pairs=PAIRS)
@settings(max_examples=150, deadline=None)
def test_curve_equals_loop(pairs):
    """The curve has the loop's thresholds and shares, one point for tied scores (-0 ties 0)."""
    result = roc(*arrays(pairs))
    n_same, n_diff = sizes(pairs)
    expected = curve_by_loop(pairs)
    assert (result.n_same, result.n_diff) == (n_same, n_diff)
    assert result.thresholds.tolist() == [t for t, _, _ in expected]
    assert result.tar.tolist() == [same / n_same for _, same, _ in expected]
    assert result.far.tolist() == [diff / n_diff for _, _, diff in expected]
    assert {result.thresholds.dtype, result.far.dtype, result.tar.dtype} == {np.dtype(np.float64)}


@given(pairs=PAIRS, far=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.75, 1.0]))
@settings(max_examples=150, deadline=None)
def test_tar_at_far_equals_loop(pairs, far):
    """It is the largest TAR within the requested FAR, at the highest threshold that reaches it."""
    n_same, n_diff = sizes(pairs)
    allowed = [point for point in curve_by_loop(pairs) if point[2] / n_diff <= far]
    threshold, same, diff = max(allowed, key=lambda point: (point[1], point[0]))
    result = tar_at_far(roc(*arrays(pairs)), far)
    assert (result.threshold, result.tar, result.far) == (threshold, same / n_same, diff / n_diff)
    assert result.far <= far
    assert result.resolved == (far >= 1 / n_diff)


def test_tar_at_far_never_interpolates():
    """Between two points the lower one counts, and ties are accepted together."""
    curve = roc(np.array([0.9, 0.8, 0.8, 0.8, 0.1]), np.array([True, True, False, False, False]))
    result = tar_at_far(curve, 0.5)
    assert dataclasses.astuple(result) == (0.5, 0.9, 0.0, True)
    assert tar_at_far(curve, 0.7).tar == 1.0


def test_far_below_one_pair_is_marked():
    """A FAR finer than one different-class pair is measured at FAR 0 and not resolved."""
    scores = np.linspace(1, 0, 1001)
    curve = roc(scores, np.arange(1001) == 0)
    assert tar_at_far(curve, 1e-3).resolved
    fine = tar_at_far(curve, 0.99e-3)
    assert (fine.resolved, fine.far, fine.tar, fine.threshold) == (False, 0.0, 1.0, 1.0)
    worst = tar_at_far(roc(-scores, np.arange(1001) == 0), 1e-4)
    assert (worst.resolved, worst.tar, worst.threshold) == (False, 0.0, INF)


@given(pairs=PAIRS)
@settings(max_examples=150, deadline=None)
def test_accuracy_equals_loop(pairs):
    """The best share over all thresholds, at the median of the equally good ones."""
    result = accuracy(roc(*arrays(pairs)))
    assert (result.accuracy, result.threshold) == best_by_loop(pairs)
    assert accuracy_at(*arrays(pairs), result.threshold) == result.accuracy


@given(pairs=PAIRS, threshold=st.sampled_from([-INF, -0.5, 0.0, 0.1, 0.299, 0.3, 1, INF]))
@settings(max_examples=60, deadline=None)
def test_accuracy_at_equals_loop(pairs, threshold):
    """A pair is decided rightly when ``score >= threshold`` says what it is."""
    right = sum((score >= threshold) == same for score, same in pairs)
    assert accuracy_at(*arrays(pairs), threshold) == pytest.approx(right / len(pairs))


def test_accuracy_takes_the_median_of_ties():
    """Of two equally good thresholds it is the higher one, of three the middle one."""
    two = accuracy(roc(np.array([0.9, 0.5]), np.array([False, True])))
    assert (two.accuracy, two.threshold) == (0.5, INF)
    scores, same = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 1], dtype=bool)
    three = accuracy(roc(scores, same))
    assert (three.accuracy, three.threshold) == (0.6, 0.7)


@given(seed=st.integers(0, 10**6), n_folds=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_crossvalidated_accuracy_equals_loop(seed, n_folds):
    """Each fold is judged at the threshold of the others, and every fold weighs the same."""
    rng = np.random.default_rng(seed)
    folds = np.concatenate([np.repeat(np.arange(n_folds), 2), rng.integers(0, n_folds, 12)]) * 7 - 3
    same = np.concatenate([np.tile([True, False], n_folds), rng.random(12) < 0.5])
    scores = np.round(rng.normal(same, 1.0), 1)
    shares = []
    for fold in set(folds.tolist()):
        others = [(s, k) for s, k, f in zip(scores.tolist(), same, folds, strict=True) if f != fold]
        members = [
            (s, k) for s, k, f in zip(scores.tolist(), same, folds, strict=True) if f == fold
        ]
        threshold = best_by_loop(others)[1]
        shares.append(sum((s >= threshold) == k for s, k in members) / len(members))
    result = crossvalidated_accuracy(scores, same, folds)
    assert result == pytest.approx(sum(shares) / len(shares))


def test_crossvalidation_does_not_see_its_own_fold():
    """A fold whose scores lie elsewhere is judged by the others' threshold, and fails."""
    scores = np.array([0.9, 0.1, 0.9, 0.1, 0.09, 0.01])
    same, folds = np.tile([True, False], 3), np.repeat([0, 1, 2], 2)
    assert accuracy(roc(scores, same)).accuracy == pytest.approx(5 / 6)
    # Fold 2 alone accepts nothing at 0.9; folds 0 and 1 each meet the threshold 0.9 or 0.1.
    loose = crossvalidated_accuracy(scores, same, folds)
    assert loose == pytest.approx((1 + 1 + 0.5) / 3)


@given(pairs=PAIRS)
@settings(max_examples=150, deadline=None)
def test_equal_error_rate_equals_loop(pairs):
    """The midpoint of FAR and FRR where they are nearest, at the highest such threshold."""
    n_same, n_diff = sizes(pairs)
    points = [(diff, n_same - same) for _, same, diff in curve_by_loop(pairs)]
    diff, missed = min(points, key=lambda point: abs(point[0] * n_same - point[1] * n_diff))
    result = equal_error_rate(roc(*arrays(pairs)))
    assert result == pytest.approx((diff / n_diff + missed / n_same) / 2, abs=1e-15)


def test_equal_error_rate_of_known_curves():
    """0 for separated scores, 1/2 where all tie, 1 where reversed, 0.3 where 3 of 10 cross."""
    same = np.repeat([True, False], 10)
    assert equal_error_rate(roc(np.where(same, 0.9, 0.1), same)) == 0.0
    assert equal_error_rate(roc(np.full(20, 0.5), same)) == 0.5
    assert equal_error_rate(roc(np.where(same, 0.1, 0.9), same)) == 1.0
    scores = np.concatenate([np.r_[11:18] + 20.0, np.r_[1:4], np.r_[11:14], np.r_[1:8] - 20.0])
    assert equal_error_rate(roc(scores, same)) == pytest.approx(0.3)


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(1, 4)),
    threshold=st.sampled_from([-INF, -0.5, 0.0, 0.1, 0.25, 1.0, INF, 1e300]),
    block=st.sampled_from([1, 2, 3, 1024]),
)
@settings(max_examples=100, deadline=None)
def test_accepts_equals_double_loop(seed, shape, threshold, block):
    """Counts by query are those of the loop, own pairs in none, whatever the block."""
    Q, G, C = shape
    queries, query_labels, gallery, gallery_labels, own = scene(seed, Q, max(G, 1), C)
    gallery, gallery_labels = gallery[:G], gallery_labels[:G]
    own = np.minimum(own, G - 1)
    result = count_accepts(
        *pair_inputs(queries, query_labels, gallery, gallery_labels, own), threshold, block=block
    )
    expected = np.zeros((4, Q), dtype=int)
    for i, score, same in pairs_by_loop(queries, query_labels, gallery, gallery_labels, own):
        expected[0 if same else 2, i] += score >= threshold
        expected[1 if same else 3, i] += 1
    counts = np.array(
        [result.same_accepted, result.same_pairs, result.diff_accepted, result.diff_pairs]
    )
    assert counts.dtype == np.int64
    assert counts.tolist() == expected.tolist()
    same_in, same_all, diff_in, diff_all = expected.sum(axis=1).tolist()
    assert result.far == pytest.approx(diff_in / diff_all if diff_all else np.nan, nan_ok=True)
    wanted_frr = (same_all - same_in) / same_all if same_all else np.nan
    assert result.frr == pytest.approx(wanted_frr, nan_ok=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_accepts_takes_any_float_type_and_no_own_row(dtype):
    """Half, single and double rows count alike where products are exact; own rows may be absent."""
    queries, query_labels, gallery, gallery_labels, _ = scene(3)
    result = count_accepts(
        *pair_inputs(queries.astype(dtype), query_labels, gallery.astype(dtype), gallery_labels),
        0.25,
    )
    scores, same = queries @ gallery.T, query_labels[:, None] == gallery_labels
    assert result.same_accepted.tolist() == ((scores >= 0.25) & same).sum(axis=1).tolist()
    assert result.diff_accepted.tolist() == ((scores >= 0.25) & ~same).sum(axis=1).tolist()
    assert (result.same_pairs + result.diff_pairs).tolist() == [11] * 9


def test_threshold_is_not_rounded_to_float32():
    """A float32 score of 0.6 (above 0.6) passes 0.6, and fails a threshold a hair above itself."""
    score = float(np.float32(0.6))
    queries, gallery = np.array([[1, 0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    labels = np.zeros(1, dtype=np.int64)
    for threshold, passes in ((0.6, 1), (score, 1), (np.nextafter(score, 1), 0)):
        result = count_accepts(*pair_inputs(queries, labels, gallery, labels), threshold)
        assert result.same_accepted.tolist() == [passes]


def check_keeps(arguments, own, accepted, scores, block):
    """The threshold is the next float32 above the (accepted + 1)-th largest of the scores."""
    result = threshold_keeping_far(*pair_inputs(*arguments, own), accepted, block=block)
    ordered = np.sort(np.asarray(scores, dtype=np.float32))[::-1]
    if accepted == len(ordered):
        assert result == ACCEPT_ALL
    else:
        assert result == float(np.nextafter(ordered[accepted], np.float32(INF)))
    let_in = int((ordered.astype(np.float64) >= result).sum())
    assert let_in <= accepted
    counted = count_accepts(*pair_inputs(*arguments, own), result, block=block)
    assert int(counted.diff_accepted.sum()) == let_in


@given(
    seed=st.integers(0, 10**6),
    C=st.integers(1, 4),
    block=st.sampled_from([4, 5, 1024]),
    share=st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_threshold_equals_explicit_sort_with_ties(seed, C, block, share):
    """With many tied scores of either sign, and zeros, it is what sorting all scores gives."""
    *arguments, own = scene(seed, C=C)
    diff = [score for _, score, same in pairs_by_loop(*arguments, own) if not same]
    check_keeps(arguments, own, round(share * len(diff)), diff, block)


@pytest.mark.parametrize("block", [7, 64])
def test_threshold_equals_explicit_sort_without_ties(block):
    """For every count of random pairs it is what sorting gives, and lets in exactly that many."""
    *arguments, own = scene(5, Q=7, G=23, make=random_rows)
    queries, query_labels, gallery, gallery_labels = arguments
    scores = np.concatenate([queries @ gallery[i : i + block].T for i in range(0, 23, block)], 1)
    diff = scores[(query_labels[:, None] != gallery_labels) & (own[:, None] != np.arange(23))]
    assert len(np.unique(diff)) == len(diff)
    for accepted in range(len(diff) + 1):
        check_keeps(arguments, own, accepted, diff, block)
        result = threshold_keeping_far(*pair_inputs(*arguments, own), accepted, block=block)
        counted = count_accepts(*pair_inputs(*arguments, own), result, block=block)
        assert counted.diff_accepted.sum() == accepted


def test_threshold_is_the_lowest_one():
    """One float32 lower would accept more different-class pairs than allowed."""
    *arguments, own = scene(6, Q=30, G=40, make=random_rows)
    for accepted in (0, 1, 17, 400):
        result = threshold_keeping_far(*pair_inputs(*arguments, own), accepted)
        assert count_accepts(*pair_inputs(*arguments, own), result).diff_accepted.sum() == accepted
        lower = float(np.nextafter(np.float32(result), np.float32(-INF)))
        assert (
            count_accepts(*pair_inputs(*arguments, own), lower).diff_accepted.sum() == accepted + 1
        )


def test_threshold_where_every_pair_or_none_may_pass():
    """All pairs, or no different-class pair at all: the threshold below every score."""
    queries = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    opposite, labels = -queries, np.array([0, 0])
    assert threshold_keeping_far(*pair_inputs(queries, labels, opposite, labels), 0) == ACCEPT_ALL
    assert (
        threshold_keeping_far(*pair_inputs(queries, labels, opposite, labels + 1), 4) == ACCEPT_ALL
    )
    assert count_accepts(*pair_inputs(queries, labels, opposite, labels + 1), ACCEPT_ALL).far == 1.0
    tight = threshold_keeping_far(*pair_inputs(queries, labels, opposite, labels + 1), 3)
    assert tight == float(np.nextafter(np.float32(-1), np.float32(0)))
    assert count_accepts(*pair_inputs(queries, labels, opposite, labels + 1), tight).far == 0.0
    assert (
        threshold_keeping_far(*pair_inputs(queries[:0], labels[:0], opposite, labels), 0)
        == ACCEPT_ALL
    )


def test_new_model_keeps_the_deployed_far():
    """With the threshold found, the new model accepts no more pairs than the old one did."""
    old, labels, gallery, gallery_labels, own = scene(8, Q=30, G=40, make=random_rows)
    new = unit(old + 0.3)
    before = count_accepts(*pair_inputs(old, labels, gallery, gallery_labels, own), 0.3)
    allowed = int(before.diff_accepted.sum())
    kept = threshold_keeping_far(*pair_inputs(new, labels, gallery, gallery_labels, own), allowed)
    after = count_accepts(*pair_inputs(new, labels, gallery, gallery_labels, own), kept)
    assert after.diff_accepted.sum() == allowed > 0
    assert after.far == before.far


@pytest.mark.parametrize("tie", [False, True])
def test_memory_is_bounded_by_the_block(tie):
    """Four million scores, all of them equal or not, are never held at once."""
    rng = np.random.default_rng(0)
    rows = (
        np.tile(unit(rng.normal(size=(1, 4))), (2000, 1))
        if tie
        else unit(rng.normal(size=(2000, 4)))
    )
    labels = np.arange(2000)
    tracemalloc.start()
    threshold_keeping_far(*pair_inputs(rows, labels, rows, -1 - labels), 2_000_000, block=128)
    count_accepts(*pair_inputs(rows, labels, rows, labels), 0.5, block=128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # the scores alone would take 15 MiB


SAME = np.array([True, False, True])


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        (np.array([0.1, np.nan, 0.3]), SAME, "scores must be finite, got nan for pair 1"),
        (np.array([0.1, 0.2, np.inf]), SAME, "scores must be finite, got inf for pair 2"),
        (np.array([1, 2, 3]), SAME, "scores must be .* floats"),
        (np.zeros((3, 1)), SAME, "scores must be .* floats"),
        (np.zeros(0), SAME[:0], "P >= 1"),
        (np.zeros(2), SAME, r"same must be \(2,\) bool"),
        (np.zeros(3), SAME.astype(int), "same must be .* got int64"),
    ],
)
def test_bad_pairs_are_refused(scores, same, message):
    """Wrong types, shapes and scores that are not finite are refused."""
    with pytest.raises(InputError, match=message):
        roc(scores, same)
    with pytest.raises(InputError, match=message):
        accuracy_at(scores, same, 0.5)
    with pytest.raises(InputError, match=message):
        crossvalidated_accuracy(scores, same, np.arange(len(scores)))


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_pair_is_refused(kind):
    """A ROC curve needs both kinds of pairs; an accuracy does not."""
    with pytest.raises(InputError, match="needs same-class and different-class pairs"):
        roc(np.zeros(3), np.full(3, kind))
    assert accuracy_at(np.zeros(3), np.full(3, kind), 0.0) == float(kind)


def test_bad_folds_are_refused():
    """One fold, folds of the wrong length or type, folds that leave one kind of pair."""
    scores, same = np.array([0.9, 0.1, 0.8, 0.2]), np.array([True, False, True, False])
    with pytest.raises(InputError, match="at least two folds, got 1"):
        crossvalidated_accuracy(scores, same, np.zeros(4, dtype=int))
    with pytest.raises(InputError, match="folds must be"):
        crossvalidated_accuracy(scores, same, np.zeros(3, dtype=int))
    with pytest.raises(InputError, match="folds must be"):
        crossvalidated_accuracy(scores, same, np.zeros(4))
    with pytest.raises(InputError, match="got 0 and 2") as caught:
        crossvalidated_accuracy(scores, same, np.array([0, 1, 0, 1]))
    assert "folds" in caught.value.tip


@pytest.mark.parametrize("far", [-0.1, 1.1, float("nan"), "0.1", None, True])
def test_bad_far_is_refused(far):
    """A FAR is a number from 0 to 1."""
    curve = roc(np.array([0.9, 0.1]), np.array([True, False]))
    with pytest.raises(InputError, match="far must"):
        tar_at_far(curve, far)


@pytest.mark.parametrize("threshold", [float("nan"), "0.5", None, True])
def test_bad_threshold_is_refused(threshold):
    """A threshold is a number, and not NaN."""
    *arguments, own = scene(1)
    with pytest.raises(InputError, match="threshold must be a number"):
        count_accepts(*pair_inputs(*arguments, own), threshold)
    with pytest.raises(InputError, match="threshold must be a number"):
        accuracy_at(np.zeros(3), SAME, threshold)


def test_each_query_may_have_its_own_threshold():
    """Counts at (Q,) thresholds equal those of each query alone; other shapes and NaN raise."""
    *arguments, own = scene(2, Q=30, G=40, make=random_rows)
    at = np.random.default_rng(3).uniform(-0.5, 0.5, 30)
    result = count_accepts(*pair_inputs(*arguments, own), at, block=7)
    for q, threshold in enumerate(at):
        alone = count_accepts(*pair_inputs(*arguments, own), float(threshold), block=7)
        assert result.same_accepted[q] == alone.same_accepted[q]
        assert result.diff_accepted[q] == alone.diff_accepted[q]
    for bad in (at[:5], np.where(np.arange(30) == 4, np.nan, at)):
        with pytest.raises(InputError, match="threshold must be a number for each query"):
            count_accepts(*pair_inputs(*arguments, own), bad)


@pytest.mark.parametrize("accepted", [-1, 10**9, 1.0, True, None])
def test_bad_count_is_refused(accepted):
    """The count of pairs is a whole number from 0 to all different-class pairs."""
    *arguments, own = scene(1)
    with pytest.raises(InputError, match="accepted must"):
        threshold_keeping_far(*pair_inputs(*arguments, own), accepted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.ones((9, 8), dtype=np.float32)}, "queries must be unit rows"),
        ({0: np.eye(9, dtype=np.float32)}, "queries have 9 dimensions"),
        ({1: np.zeros(8, dtype=int)}, "query_labels must be"),
        ({2: np.zeros((11, 8), dtype=int)}, "gallery must be"),
        ({3: np.zeros(11)}, "gallery_labels must be"),
        ({4: np.full(9, 11)}, "self_row must lie in -1 to 10"),
    ],
)
@pytest.mark.parametrize("function", [count_accepts, threshold_keeping_far])
def test_bad_features_are_refused(function, change, message):
    """Both functions of all pairs refuse what every function of core refuses."""
    *arguments, own = scene(1)
    changed = [*arguments, own]
    for position, value in change.items():
        changed[position] = value
    with pytest.raises(InputError, match=message):
        function(*pair_inputs(*changed), 0)
    with pytest.raises(InputError, match="block must be"):
        function(*pair_inputs(*arguments, own), 0, block=0)
