"""Estimates by resampled classes, against loops over the same weights and over single pairs."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compatctl.core import resampling
from compatctl.core.binomial import tail, upper_limit
from compatctl.core.class_sums import QuerySums, class_sums, labelled_query_sums, query_sums
from compatctl.core.estimate import Estimate, RareChangeBound
from compatctl.core.resampling import (
    Ratio,
    estimate_diff,
    estimate_pairs,
    estimate_ratios,
    estimate_same,
    half_samples,
    hit_change,
    query_ratio,
)
from compatctl.core.sampling_units import minimal_kinds
from compatctl.errors import InputError

ONE = (-1.0, 1.0)
"""The bounds of a gain."""


def rng(seed=0):
    """A generator of the given seed."""
    return np.random.default_rng(seed)


def weights_of(C, B, seed):
    """(B, C) weights, as an equal generator draws them."""
    return np.concatenate(list(half_samples(C, B, rng(seed))))


def ratio(totals, counts=10.0, bounds=ONE, harm=0):
    """A statistic of classes with these totals, each over as many queries."""
    totals = np.asarray(totals, dtype=np.float64)
    return Ratio(
        totals=totals, counts=np.broadcast_to(counts, totals.shape) * 1.0, bounds=bounds, harm=harm
    )


def one(totals, B=1999, seed=0, **keywords):
    """The estimate of one statistic."""
    return estimate_ratios([ratio(totals, **keywords)], B, rng(seed))[0]


def unit(rows):
    """Rows scaled to length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def check_replicates(estimate, drawn):
    """The replicates are those of the loop, sorted, with the empty ones (None) apart."""
    kept = sorted(value for value in drawn if value is not None)
    assert estimate.n_empty == len(drawn) - len(kept)
    assert np.all(estimate.replicates[: estimate.n_empty] == -np.inf)
    np.testing.assert_allclose(estimate.replicates[estimate.n_empty :], kept, rtol=0, atol=1e-11)


# Weights


def test_weights_are_fair_coins_times_two():
    """Every weight is 0 or 2, with mean and variance 1, and no two classes go together."""
    W = weights_of(40, 20_000, 1)
    assert W.shape == (20_000, 40)
    assert set(np.unique(W)) == {0.0, 2.0}
    assert abs(W.mean() - 1) < 0.005
    together = np.cov(W.T)
    assert np.abs(together - np.eye(40)).max() < 0.05


def test_consecutive_replicates_differ():
    """Rows are independent draws: half of the weights change from one to the next."""
    W = weights_of(2000, 50, 2)
    changed = (W[1:] != W[:-1]).mean(axis=1)
    assert 0.42 < changed.min() < changed.max() < 0.58


# Ratios


@given(seed=st.integers(0, 10**6), C=st.integers(1, 9), S=st.integers(1, 3), B=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_ratios_equal_a_loop(seed, C, S, B):
    """Values and replicates are weighted totals over weighted counts, class by class."""
    draw = rng(seed)
    ratios = [ratio(draw.integers(-3, 4, C) * 0.5, counts=draw.integers(0, 4, C)) for _ in range(S)]
    result = estimate_ratios(ratios, B, rng(seed + 1))
    W = weights_of(C, B, seed + 1)
    for statistic, estimate in zip(ratios, result, strict=True):
        drawn = []
        for w in [np.ones(C), *W]:
            total = sum(w[c] * statistic.totals[c] for c in range(C))
            count = sum(w[c] * statistic.counts[c] for c in range(C))
            drawn.append(total / count if count else None)
        assert estimate.value == pytest.approx(
            math.nan if drawn[0] is None else drawn[0], abs=1e-12, nan_ok=True
        )
        check_replicates(estimate, drawn[1:])
        assert estimate.n_classes == sum(count > 0 for count in statistic.counts)
        assert estimate.bounds == ONE


def test_ratios_share_their_replicates():
    """A statistic and its double, estimated together, have the same replicates twice as large."""
    totals = rng(3).normal(size=30)
    half, full = estimate_ratios([ratio(totals), ratio(2 * totals)], 500, rng(4))
    np.testing.assert_allclose(2 * half.replicates, full.replicates, rtol=1e-12)


@given(seed=st.integers(0, 10**6), Q=st.integers(0, 40), every=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_change_of_hits_equals_a_loop(seed, Q, every):
    """Totals are hits won minus hits lost, by class."""
    draw = rng(seed)
    classes = draw.choice([7, -3, 100, 12], Q)
    before, after, has_match = (draw.random(Q) < share for share in (0.5, 0.6, 0.7))
    result = hit_change(classes, before, after, None if every else has_match)
    codes = sorted({int(code) for code in classes})
    totals, counts = dict.fromkeys(codes, 0), dict.fromkeys(codes, 0)
    for code, old, new, kept in zip(classes, before, after, has_match, strict=True):
        if every or kept:
            totals[int(code)] += int(new and not old) - int(old and not new)
            counts[int(code)] += 1
    assert result.totals.tolist() == [totals[code] for code in codes]
    assert result.counts.tolist() == [counts[code] for code in codes]
    assert (result.bounds, result.harm, result.n_classes) == (ONE, -1, None)


@pytest.mark.parametrize("short", range(4))
def test_a_change_of_hits_needs_the_same_queries(short):
    """Arrays of different lengths are refused."""
    parts = [np.arange(5), *np.ones((3, 5), dtype=bool)]
    parts[short] = parts[short][:1]
    with pytest.raises(InputError, match="needs the same queries"):
        hit_change(*parts)


def test_no_statistic_and_bad_arguments():
    """No statistic gives an empty list; different numbers of classes, or no replicate, raise."""
    assert estimate_ratios([], 10, rng()) == []
    with pytest.raises(InputError, match="different numbers of classes"):
        estimate_ratios([ratio([1.0, 2.0]), ratio([1.0])], 10, rng())
    with pytest.raises(InputError, match="different numbers of classes"):
        estimate_ratios([Ratio(totals=np.ones(2), counts=np.ones(3), bounds=ONE)], 10, rng())
    with pytest.raises(InputError, match="at least one replicate"):
        estimate_ratios([ratio([1.0])], 0, rng())


def test_equal_seeds_give_equal_estimates():
    """The replicates depend on the seed and on nothing else."""
    totals = rng(5).normal(size=25)
    assert np.array_equal(one(totals, seed=6).replicates, one(totals, seed=6).replicates)
    assert not np.array_equal(one(totals, seed=6).replicates, one(totals, seed=7).replicates)


@pytest.mark.parametrize("C", [3, 7, 25])
def test_blocks_do_not_change_the_weights(monkeypatch, C):
    """The same seed draws the same weights for any block size."""
    whole = weights_of(C, 40, 8)
    for cells in (1, C, 3 * C, 7 * C + 1):
        monkeypatch.setattr(resampling, "_CELLS", cells)
        blocks = list(half_samples(C, 40, rng(8)))
        assert max(len(block) for block in blocks) <= max(1, cells // C)
        assert np.array_equal(np.concatenate(blocks), whole)


def test_blocks_add_up(monkeypatch):
    """Small blocks give as many replicates of the same kind, of pairs and of classes."""
    monkeypatch.setattr(resampling, "_CELLS", 8)
    sums, _ = scene(3)
    first, second = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 0])
    result = [
        one(rng(9).normal(size=4), B=101),
        estimate_diff(sums, 101, rng()),
        estimate_pairs(np.arange(4.0), first, second, 101, rng()),
    ]
    for estimate in result:
        assert len(estimate.replicates) == 101
        assert np.all(np.diff(estimate.replicates[estimate.n_empty :]) >= 0)


def test_memory_is_bounded():
    """200,000 classes never hold all their weights, which would take 320 MB here."""
    totals = rng(10).normal(size=200_000)
    statistics = [ratio(totals), ratio(totals**2, bounds=(0.0, np.inf))]
    tracemalloc.start()
    try:
        result = estimate_ratios(statistics, 200, rng(11))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300e6
    assert len(result[0].replicates) == 200
    assert result[0].spread == pytest.approx(totals.std() / 10 / math.sqrt(200_000), rel=0.2)


# Pairs of queries and gallery rows


def scene(seed, relabelled=0):
    """Sums of a small scene and its parts: own rows, classes on one side only, relabelled items.

    ``relabelled``: 0 for none; 1: own rows of classes that no query has; 2: of any other class.
    """
    draw = rng(seed)
    Q, G = int(draw.integers(4, 12)), int(draw.integers(4, 12))
    query_labels, gallery_labels = draw.integers(0, 5, Q), draw.integers(0, 7, G)
    self_row = np.where(draw.random(Q) < 0.6, draw.integers(0, G, Q), -1)
    for i in np.flatnonzero(self_row >= 0):
        if gallery_labels[self_row[i]] == query_labels[i]:
            continue
        other = gallery_labels[self_row[i]] not in query_labels
        if relabelled == 0 or (relabelled == 1 and not other):
            self_row[i] = -1
    queries, gallery = unit(draw.normal(size=(Q, 4))), unit(draw.normal(size=(G, 4)))
    parts = queries, query_labels, gallery, gallery_labels, self_row
    return class_sums(*parts), parts


def pairs_by_loop(parts, w, kind):
    """The mean cosine of pairs weighted by the classes of both items; None where none counts."""
    queries, query_labels, gallery, gallery_labels, self_row = parts
    classes = list(np.unique(query_labels))
    total = count = 0.0
    for i in range(len(queries)):
        for j in range(len(gallery)):
            same = query_labels[i] == gallery_labels[j]
            if j == self_row[i] or same != (kind == "same"):
                continue
            weight = w[classes.index(query_labels[i])]
            if not same and gallery_labels[j] in classes:
                weight *= w[classes.index(gallery_labels[j])]
            total += weight * float(queries[i] @ gallery[j])
            count += weight
    return total / count if count else None


def check_pairs(seed, kind, relabelled):
    """The estimate of a random scene is that of the loop over its pairs."""
    sums, parts = scene(seed, relabelled)
    C, B = len(sums.codes), 24
    estimate = (estimate_same if kind == "same" else estimate_diff)(sums, B, rng(seed))
    value = pairs_by_loop(parts, np.ones(C), kind)
    assert estimate.value == pytest.approx(
        math.nan if value is None else value, abs=1e-11, nan_ok=True
    )
    check_replicates(estimate, [pairs_by_loop(parts, w, kind) for w in weights_of(C, B, seed)])


@given(seed=st.integers(0, 10**6), relabelled=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_same_class_pairs_equal_a_loop(seed, relabelled):
    """A same-class pair weighs w_c, its own pair left out, whatever the own rows' labels are."""
    check_pairs(seed, "same", relabelled)


@given(seed=st.integers(0, 10**6), relabelled=st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_different_class_pairs_equal_a_loop(seed, relabelled):
    """A pair of classes c and c' weighs w_c w_c', and w_c where no query is of class c'."""
    check_pairs(seed, "diff", relabelled)


def test_different_class_pairs_with_relabelled_own_items_equal_a_loop():
    """An own pair of two labels that queries have is left out with the weight it came in with."""
    for seed in range(40):
        check_pairs(seed, "diff", 2)


def test_leave_one_out_pairs_equal_a_loop():
    """Where queries and gallery are the same items, each one's own pair is in no replicate."""
    draw = rng(12)
    features, labels = unit(draw.normal(size=(14, 3))), np.arange(14) % 3
    parts = features, labels, features, labels, np.arange(14)
    sums = class_sums(*parts)
    W = weights_of(len(sums.codes), 30, 13)
    for kind, estimate in (
        ("same", estimate_same(sums, 30, rng(13))),
        ("diff", estimate_diff(sums, 30, rng(13))),
    ):
        assert estimate.n_empty > 0 or kind == "same"
        assert estimate.value == pytest.approx(pairs_by_loop(parts, np.ones(W.shape[1]), kind))
        check_replicates(estimate, [pairs_by_loop(parts, w, kind) for w in W])


def test_judged_pairs_equal_a_loop():
    """Where relevance was judged, every query is its own class and all gallery rows weigh 1."""
    draw = rng(15)
    queries, gallery = unit(draw.normal(size=(7, 4))), unit(draw.normal(size=(9, 4)))
    relevant = draw.random((7, 9)) < 0.3
    relevant[2] = False
    sums = query_sums(queries, gallery, *np.nonzero(relevant))
    cosines = queries @ gallery.T
    for kind, function in ((relevant, estimate_same), (~relevant, estimate_diff)):
        estimate = function(sums, 40, rng(16))
        drawn = []
        for w in weights_of(7, 40, 16):
            weights = w[:, None] * kind
            drawn.append((weights * cosines).sum() / weights.sum() if weights.any() else None)
        assert estimate.value == pytest.approx(cosines[kind].mean(), abs=1e-12)
        assert estimate.n_classes == (6 if kind is relevant else 7)
        check_replicates(estimate, drawn)


def test_estimates_without_pairs_are_undefined():
    """One class has no different-class pair, single items no same-class pair: NaN, whole range."""
    features = unit(rng(14).normal(size=(6, 3)))
    self_row = np.arange(6)
    alone = class_sums(features, np.zeros(6, int), features, np.zeros(6, int), self_row)
    single = class_sums(features, self_row, features, self_row, self_row)
    for estimate in (estimate_diff(alone, 99, rng()), estimate_same(single, 99, rng())):
        assert math.isnan(estimate.value)
        assert estimate.n_empty == 99
        assert estimate.interval(0.95) == (-2.0, 2.0)
        assert estimate.p_above(-1.0) == estimate.p_below(1.0) == 1.0


@given(seed=st.integers(0, 10**6), C=st.integers(1, 6), P=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_labelled_pairs_equal_a_loop(seed, C, P):
    """A pair of two classes weighs w_a w_b, one within a class w_a."""
    draw = rng(seed)
    values, first, second = draw.normal(size=P), draw.integers(0, C, P), draw.integers(0, C, P)
    estimate = estimate_pairs(values, first, second, 25, rng(seed))
    present = int(max(first.max(), second.max())) + 1
    drawn = []
    for w in weights_of(present, 25, seed):
        total = count = 0.0
        for value, a, b in zip(values, first, second, strict=True):
            weight = w[a] if a == b else w[a] * w[b]
            total, count = total + weight * value, count + weight
        drawn.append(total / count if count else None)
    assert estimate.value == pytest.approx(values.mean(), abs=1e-12)
    check_replicates(estimate, drawn)
    assert estimate.n_classes == len({*first, *second})


def test_no_labelled_pair_is_undefined():
    """Without a pair the estimate is NaN and nothing is shown."""
    none = np.zeros(0, dtype=np.int64)
    estimate = estimate_pairs(np.zeros(0), none, none, 50, rng())
    assert math.isnan(estimate.value)
    assert (estimate.n_empty, estimate.n_classes) == (50, 0)
    assert estimate.p_above(-1.0) == estimate.p_below(1.0) == 1.0


# Intervals and p-values


@st.composite
def estimates(draw):
    """Estimates of few or many classes, with empty replicates, ties and guards of rare harm."""
    seed, C = draw(st.integers(0, 10**6)), draw(st.integers(1, 14))
    harm, B = draw(st.sampled_from([-1, 0, 1])), draw(st.sampled_from([1, 19, 39, 200, 399]))
    few = draw(st.integers(0, C))
    at = rng(seed)
    counts = at.integers(0, 6, C)
    totals = np.array([at.integers(-n, n + 1) for n in counts])
    totals[few:] = 0
    if harm == 1:
        totals = np.abs(totals)
    bounds = (0.0, 1.0) if harm == 1 else ONE
    statistic = ratio(totals, counts=counts, bounds=bounds, harm=harm)
    return estimate_ratios([statistic], B, rng(seed))[0]


@given(estimate=estimates(), level=st.floats(0.5, 0.999))
@settings(max_examples=200, deadline=None)
def test_an_interval_holds_its_estimate(estimate, level):
    """Whatever the replicates are, the estimate is in its interval, and that within the bounds."""
    low, high = estimate.interval(level)
    assert estimate.bounds[0] <= low <= high <= estimate.bounds[1]
    if not math.isnan(estimate.value):
        assert low <= estimate.value <= high


def test_an_interval_holds_an_estimate_beyond_its_replicates():
    """Replicates that all lie on one side of the estimate move an end of the interval to it."""
    for value in (-0.5, 0.5):
        estimate = Estimate(
            value=value,
            replicates=np.linspace(-0.1, 0.1, 999),
            n_empty=0,
            n_classes=50,
            bounds=ONE,
        )
        low, high = estimate.interval(0.95)
        assert low <= value <= high
        assert high - low < 0.7
        assert estimate.p_above(0.5) == estimate.p_below(-0.5) == 1.0
        assert estimate.p_above(value) == estimate.p_below(value) == 1.0


def test_replicates_at_the_threshold_speak_against_it():
    """A p-value counts the replicates on the other side, those that tie and the empty ones."""
    drawn = np.array([-np.inf, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6])
    estimate = Estimate(value=0.35, replicates=drawn, n_empty=1, n_classes=50, bounds=ONE)
    assert [estimate.p_above(t) for t in (0.0, 0.1, 0.15, 0.2)] == [0.2, 0.3, 0.3, 0.5]
    assert [estimate.p_below(t) for t in (0.7, 0.6, 0.55, 0.5)] == [0.2, 0.3, 0.3, 0.5]
    assert estimate.interval(0.6) == (0.1, 0.6)
    assert estimate.interval(0.4) == (0.2, 0.5)
    assert estimate.interval(0.8) == ONE


@given(estimate=estimates(), wide=st.floats(0.8, 0.999), narrow=st.floats(0.5, 0.8))
@settings(max_examples=60, deadline=None)
def test_intervals_are_nested(estimate, wide, narrow):
    """More confidence never makes an interval shorter at either end."""
    (low, high), (inner_low, inner_high) = estimate.interval(wide), estimate.interval(narrow)
    assert low <= inner_low <= inner_high <= high


@given(
    estimate=estimates(),
    alpha=st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.2, 0.3173, 0.5]),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_intervals_and_p_values_agree(estimate, alpha, data):
    """The interval lies beyond t exactly where the p-value of the other side is alpha / 2 or less.

    That holds for every t that is possible, the replicates and the estimate itself included; only
    at the guard's own limit, which is as exact as bisection makes it, either may be said.
    """
    low, high = estimate.interval(1 - alpha)
    least, most = estimate.bounds
    drawn = estimate.replicates[estimate.n_empty :]
    points = [*np.linspace(least, most, 41), *np.unique(drawn)[:40]]
    if not math.isnan(estimate.value):
        points.append(estimate.value)
    t = float(data.draw(st.sampled_from(points) | st.floats(least, most)))
    if estimate.rare is not None:
        for changed in (estimate.rare.fell, estimate.rare.rose):
            guard = upper_limit(changed, estimate.rare.n, alpha / 2)
            assume(guard == 1.0 or abs(abs(t) - guard) > 1e-9)
    for skew, level in ((estimate.skew_low, 1 - alpha / 2), (estimate.skew_high, alpha / 2)):
        if skew is not None:
            end = estimate.value - skew.quantile(level)
            assume(abs(t - end) > 1e-6 * max(1.0, abs(end)))
    assert (low > t) == (estimate.p_above(t) <= alpha / 2)
    assert (high < t) == (estimate.p_below(t) <= alpha / 2)


@given(estimate=estimates())
@settings(max_examples=60, deadline=None)
def test_p_values_are_probabilities_and_monotone(estimate):
    """They lie in (0, 1], and a threshold further off is never easier to pass."""
    grid = np.linspace(*estimate.bounds, 31)[1:-1]
    above, below = ([p(float(t)) for t in grid] for p in (estimate.p_above, estimate.p_below))
    assert all(0 < p <= 1 for p in (*above, *below))
    assert np.all(np.diff(above) >= 0)
    assert np.all(np.diff(below) <= 0)


def test_the_least_p_value_is_one_of_all_replicates():
    """Where no replicate speaks against it, a p-value is 1 / (B + 1) and not 0."""
    estimate = one(np.arange(1.0, 41.0) / 5, B=999)
    assert estimate.p_above(0.0) == 1 / 1000
    assert estimate.p_below(1.0) == 1 / 1000
    assert estimate.p_above(0.99) == estimate.p_below(0.0) == 1.0


@pytest.mark.parametrize("C", [1, 2, 3, 4])
def test_few_classes_give_the_whole_range(C):
    """Up to four classes say nothing at 95%: every value is possible and no threshold is passed."""
    for seed in range(20):
        estimate = one(np.arange(1.0, C + 1), seed=seed)
        assert estimate.n_empty > 0
        assert estimate.interval(0.95) == ONE
        assert estimate.p_above(-0.99) > 0.025
        assert estimate.p_below(0.99) > 0.025


def test_five_classes_give_the_whole_range():
    """Five classes are left out with probability 1/32, more than 2.5%, whatever the seed is."""
    for seed in range(200):
        assert one(np.arange(1.0, 6.0), B=999, seed=seed).interval(0.95) == ONE


def test_ten_classes_give_an_interval():
    """Ten classes of positive gains are enough for an interval above 0 and below 1."""
    low, high = one(np.arange(1.0, 11.0) / 2).interval(0.95)
    assert 0 < low < 0.275 < high < 1


def test_identical_outcomes():
    """No change in any class is an estimate of 0, above and below which nothing is shown."""
    estimate = one(np.zeros(500), harm=-1)
    assert estimate.value == 0.0
    assert estimate.p_above(0.0) == estimate.p_below(0.0) == 1.0
    low, high = estimate.interval(0.95)
    assert low == pytest.approx(-upper_limit(0, 500, 0.025))
    assert high == -low
    everywhere = one(np.full(500, 3.0))
    assert everywhere.value == pytest.approx(0.3)
    assert everywhere.interval(0.95) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize("C", [20, 100, 1000])
def test_no_flips_give_the_binomial_limit(C):
    """With no negative flip in C classes as much may be hidden as Clopper and Pearson allow."""
    estimate = one(np.zeros(C), bounds=(0.0, 1.0), harm=1)
    assert estimate.rare == RareChangeBound(fell=0, rose=0, n=C)
    limit = upper_limit(0, C, 0.025)
    assert estimate.interval(0.95) == (0.0, pytest.approx(limit, rel=1e-9))
    assert estimate.p_below(0.5 * limit) == pytest.approx(tail(0, C, 0.5 * limit))
    assert estimate.p_below(0.99 * limit) > 0.025
    assert estimate.p_below(1.01 * limit) <= 0.025


def test_five_changed_classes_are_bounded_and_six_are_not():
    """Up to five changed classes their numbers bound loss and gain, afterwards they do not."""
    for changed, harmed in ((1, 1), (3, 0), (5, 2), (5, 5)):
        totals = np.zeros(60)
        totals[:changed] = 2.0
        totals[:harmed] = -1.0
        estimate = one(totals, harm=-1)
        assert estimate.rare == RareChangeBound(fell=harmed, rose=changed - harmed, n=60)
        low, high = estimate.interval(0.95)
        assert low <= -upper_limit(harmed, 60, 0.025) + 1e-12
        assert high >= upper_limit(changed - harmed, 60, 0.025) - 1e-12
    totals = np.zeros(60)
    totals[:6] = -1.0
    assert one(totals, harm=-1).rare is None
    # The binomial says that up to a tenth of the classes could be lost, which is all they had.
    assert one(totals, harm=-1).interval(0.95)[0] > -upper_limit(5, 60, 0.025)
    totals[5] = 0.0
    assert one(totals, harm=0).rare is None


def test_rare_harm_counts_effective_classes():
    """Where one class holds nearly all queries, few classes worth of evidence are left."""
    counts = np.array([1000.0, *np.ones(50)])
    statistic = ratio(np.zeros(51), counts=counts, harm=-1)
    estimate = estimate_ratios([statistic], 999, rng())[0]
    assert estimate.rare == RareChangeBound(fell=0, rose=0, n=int(1050**2 / (1000**2 + 50)))
    assert estimate.interval(0.95)[0] == pytest.approx(-upper_limit(0, 1, 0.025))


def test_where_nothing_counts_the_estimate_is_undefined():
    """Classes without a query that counts: NaN, every replicate empty, the whole range possible."""
    for harm in (-1, 0, 1):
        estimate = one(np.zeros(30), counts=0.0, harm=harm)
        assert math.isnan(estimate.value)
        assert (estimate.n_empty, estimate.n_classes, estimate.rare) == (1999, 0, None)
        assert estimate.interval(0.95) == ONE
        assert estimate.p_above(-0.5) == estimate.p_below(0.5) == 1.0
    none = estimate_ratios([ratio(np.zeros(0))], 99, rng())[0]
    assert math.isnan(none.value)
    assert (none.n_empty, none.n_classes) == (99, 0)


def test_the_spread_is_the_standard_error():
    """For many classes of equal size half of the 68% interval is the textbook standard error."""
    totals = 10 * (0.1 + 0.2 * rng(20).normal(size=400))
    assert one(totals, B=4000).spread == pytest.approx(totals.std() / 10 / 20, rel=0.06)


def test_intervals_of_few_unequal_classes_hold_the_truth():
    """Symmetric contributions of eight classes: at most 5% of the 95% intervals miss the truth.

    600 samples with p = 0.05 give more than 47 misses in one of a thousand cases.
    """
    draw = rng(21)
    missed = 0
    for seed in range(600):
        counts = draw.integers(1, 30, 8).astype(np.float64)
        totals = counts * draw.normal(size=8) * 0.2
        estimate = one(totals, B=399, seed=seed, counts=counts)
        missed += not estimate.interval(0.95)[0] <= 0.0 <= estimate.interval(0.95)[1]
    assert 5 < missed < 47


def test_the_interval_of_asymmetric_changes_is_skewed():
    """The interval is Hall's at least, with a quarter of a class that lost or won all it could."""
    totals = np.zeros(200)
    totals[:12] = 1.0
    estimate = one(totals, bounds=(0.0, 1.0), harm=1)
    low, high = estimate.interval(0.95)
    assert high - estimate.value > estimate.value - low
    # The upper end: a class of ten queries that all flipped, with the weight 1/4.
    share = (12 + 0.25 * 10) / (2000 + 0.25 * 10)
    beyond = np.append(totals, 10.0) - share * 10
    weights = np.append(np.ones(200), 0.25)
    scatter = math.sqrt(float(weights @ beyond**2))
    skewness = float(weights @ beyond**3) / scatter**3
    error = scatter / 2002.5
    assert estimate.skew_high.error == pytest.approx(error)
    assert estimate.skew_high.skewness == pytest.approx(skewness)
    assert estimate.skew_high.shift == pytest.approx(share - estimate.value)
    # Hall's transformation of the studentised distance to the end is the normal quantile.
    t = (share - high) / error
    assert t + skewness * (t**2 / 3 + 1 / 6) + skewness**2 * t**3 / 27 == pytest.approx(
        -1.959964, abs=1e-4
    )


def test_old_hit_rate_bounds_what_an_unseen_class_can_lose():
    """If the old model finds a tenth, an unseen class loses at most a tenth."""
    totals = rng(30).integers(-3, 4, 60).astype(np.float64)
    wide, tight = (
        estimate_ratios(
            [replace(ratio(totals, harm=-1), class_bounds=class_bounds)], 1999, rng(31)
        )[0]
        for class_bounds in (None, (-0.1, 0.9))
    )
    for skew, worst in ((tight.skew_low, -0.1), (tight.skew_high, 0.9), (wide.skew_low, -1.0)):
        assert skew.shift == pytest.approx(0.25 * (worst - tight.value) / 60.25)
    assert tight.interval(0.95)[0] > wide.interval(0.95)[0]


def test_continuous_values_of_both_signs_have_no_unseen_class():
    """If harm cannot be counted, half-samples stand alone, unless all classes move one way."""
    totals = rng(32).normal(size=60)
    assert one(totals, harm=0).skew_low is one(totals, harm=0).skew_high is None
    assert one(np.abs(totals), harm=0).skew_low.shift == 0.0


# Units of several kinds


def crossed_replicates(ratio, B, seed):
    """Slow: draws of each kind on its own, added up, at the scatter of all kinds together."""
    draw, value = rng(seed), ratio.totals.sum() / ratio.counts.sum()
    beyond = ratio.totals - value * ratio.counts
    added, alone = np.zeros(B), []
    for units in ratio.kinds.T:
        W = np.concatenate(list(half_samples(units.max() + 1, B, draw)))[:, units]
        with np.errstate(invalid="ignore"):
            added += (W @ ratio.totals) / (W @ ratio.counts) - value
        alone.append(sum(beyond[units == u].sum() ** 2 for u in np.unique(units)))
    together = sum(
        beyond[i] * beyond[j]
        for i in range(len(beyond))
        for j in range(len(beyond))
        if (ratio.kinds[i] == ratio.kinds[j]).any()
    )
    return value + added * math.sqrt(max(together, *alone) / sum(alone))


@pytest.mark.parametrize("K", [2, 3])
def test_crossed_units_equal_a_loop(K):
    """Replicates move by every kind, as much as pairs of queries that share a unit say."""
    for seed in range(8):
        draw = rng(seed)
        classes = draw.integers(0, 14, (90, K))
        built = query_ratio(classes, draw.integers(-1, 2, 90) * 1.0, draw.random(90) < 0.9, ONE, -1)
        assert built.kinds.shape == (len(np.unique(classes, axis=0)), K)
        result = estimate_ratios([built], 200, rng(seed + 50))[0]
        np.testing.assert_allclose(
            result.replicates, np.sort(crossed_replicates(built, 200, seed + 50)), atol=1e-12
        )
        assert result.n_classes == 14


def test_units_within_larger_units_are_dropped():
    """Users within one class each, and a copy of the classes, leave the classes alone."""
    classes = np.repeat(np.arange(10), 6)
    users = np.arange(60) // 2
    assert minimal_kinds([classes, users, classes.copy()])[1] == (0,)
    assert minimal_kinds([users, classes])[1] == (1,)
    across = np.arange(60) % 4
    kept, at = minimal_kinds([classes, users, across])
    assert at == (0, 2)
    assert np.array_equal(kept, np.stack([classes, across], axis=1))
    with pytest.raises(InputError, match="at most 4 kinds"):
        minimal_kinds([rng(k).integers(0, 5, 60) for k in range(5)])


def test_sums_of_queries_equal_those_of_classes():
    """Sums by query give the same means as sums by class."""
    draw = rng(33)
    queries, gallery = unit(draw.normal(size=(20, 4))), unit(draw.normal(size=(15, 4)))
    labels, row_class = np.arange(20) % 4, np.arange(15) % 6
    self_row = np.where(np.arange(20) < 9, np.arange(20), -1)
    parts = queries, labels, gallery, row_class, self_row
    by_class, by_query = class_sums(*parts), labelled_query_sums(*parts)
    assert astuple(by_query.means()) == pytest.approx(astuple(by_class.means()))
    for queried, classwise in zip(by_query.same, by_class.same, strict=True):
        np.testing.assert_allclose(np.bincount(labels, queried), classwise, atol=1e-12)
    cosines = queries @ gallery.T
    different = (labels[:, None] != row_class) & (self_row[:, None] != np.arange(15))
    np.testing.assert_allclose(by_query.diff[0], (cosines * different).sum(axis=1), atol=1e-12)
    assert by_query.diff[1].tolist() == different.sum(axis=1).tolist()


def test_sums_by_query_are_resampled_by_the_given_units():
    """Copies of a query spread like many if drawn singly, like few if drawn by class."""
    totals = np.repeat(rng(34).normal(size=12), 20)
    sums = QuerySums(same=(totals, np.ones(240, int)), diff=(totals, np.ones(240, int)))
    classes = np.repeat(np.arange(12), 20)
    for function in (estimate_same, estimate_diff):
        alone = function(sums, 1999, rng(35))
        together = function(sums, 1999, rng(35), classes)
        assert together.spread > 3 * alone.spread
        assert (alone.n_classes, together.n_classes) == (240, 12)
